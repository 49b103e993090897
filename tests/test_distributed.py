"""Several processes on CPU: what two of them compute is what one computes, and a kill costs nothing but its time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from local_hub import LocalHub
from rank_processes import (
    ROOT,
    corpus_arguments,
    finish,
    run_here,
    start_ranks,
    write_backbones,
    write_corpus,
)
from safetensors.torch import load_file

from mer_hf import TASK, CMEConfig, CMEForEmotionClassification, MerProcessor, SpectrogramConfig, pipeline
from mer_hf.corpus_prediction import load_predictions, predict_corpus
from mer_hf.data.feature_shards import FeatureShards
from mer_hf.data.schema import make_row
from mer_hf.hub import save_checkpoint

pytestmark = pytest.mark.long
LOSSES = {"rtol": 1e-4, "atol": 1e-5}
"""How far the losses of some tens of steps may be apart: sums are taken in another order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of 24 clips in `clips`, with the word times in `cache`, and tiny backbones."""
    folder = tmp_path_factory.mktemp("distributed")
    write_corpus(folder, actors=range(1, 13))
    write_backbones(folder)
    return folder


def wait_for(happened, started, seconds=60):
    """Until it happened; fails where the processes ended before."""
    end = time.monotonic() + seconds
    while not happened():
        assert all(process.is_alive() for process in started), "a process ended too early"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


# Training


def loop_arguments(folder, output_dir, *more):
    arguments = [*corpus_arguments(folder), "--protocol", "speakers-5fold", "--model", "cme", "--batch_size", 8]
    arguments += ["--audio", folder / "audio", "--text", folder / "text", "--store", folder / "store"]
    return [*arguments, "--learning_rate", 0.003, "--output_dir", output_dir, *more]


@pytest.fixture(scope="module")
def alone(folder):
    """results.json, and the weights, of one process that nothing interrupts, all eight clips in one batch."""
    assert run_here("train_no_trainer", loop_arguments(folder, folder / "alone", "--epochs", 12)) == 0
    return read_run(folder / "alone")


def read_run(output_dir):
    results = json.loads((output_dir / "results.json").read_text())
    return results, load_file(output_dir / "model" / "model.safetensors")


def assert_same(run, other):
    (results, weights), (expected, expected_weights) = run, other
    assert len(results["losses"]) == len(expected["losses"]) > 20
    np.testing.assert_allclose(results["losses"], expected["losses"], **LOSSES)
    assert results["test"] == expected["test"]
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=1e-3)


def test_torchrun_with_two_processes_goes_the_way_of_one_with_doubled_batch(folder, alone):
    """Four clips in each process, in two pieces; frozen backbones run on 24 clips in all, shared out."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = loop_arguments(folder, folder / "two", "--epochs", 12, "--gradient_accumulation_steps", 2)
    arguments[arguments.index("--store") + 1] = folder / "store-of-two"
    done = subprocess.run(
        [*torchrun, str(ROOT / "scripts" / "train_no_trainer.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(read_run(folder / "two"), alone)
    entries = [FeatureShards(folder / store).entries for store in ("store", "store-of-two")]
    assert entries[0].keys() == entries[1].keys()
    files = {entry.file for entry in entries[1].values() if entry.about["modality"] == "audio"}
    assert len(files) == 2 and sum(entry.about["modality"] == "audio" for entry in entries[1].values()) == 24


def test_two_processes_one_of_which_is_killed_go_on_to_the_same_end(folder, alone):
    arguments = loop_arguments(folder, folder / "killed", "--epochs", 12, "--checkpoint_steps", 1)
    first = start_ranks("train_no_trainer", arguments, folder / "first")
    wait_for(lambda: len(list((folder / "killed" / "checkpoints").glob("checkpoint-0000000[3-9]"))), first)
    os.kill(first[1].pid, signal.SIGKILL)
    codes, printed = finish(first, folder / "first")
    assert codes[1] == -signal.SIGKILL and codes[0] != 0, printed[0][-2000:]
    assert not (folder / "killed" / "results.json").exists()
    codes, printed = finish(start_ranks("train_no_trainer", arguments, folder / "again"), folder / "again")
    assert codes == [0, 0], printed[0][-2000:]
    assert "going on after step " in printed[0] and "epoch 12" in printed[0] and "epoch 1:" not in printed[0]
    assert_same(read_run(folder / "killed"), alone)


def test_processes_share_the_extraction(folder, capsys):
    arguments = [*corpus_arguments(folder), "--audio", folder / "audio", "--batch_seconds", 3]
    shared = [*arguments, "--store", folder / "shared"]
    codes, printed = finish(start_ranks("extract_features", shared, folder / "extract"), folder / "extract")
    assert codes == [0, 0], printed
    report = json.loads(printed[0][printed[0].index("{\n") :])
    assert (report["clips"], report["misses"], report["hits"], report["entries"]) == (24, 24, 0, 24)
    assert report["failed"] == report["stale"] == report["damaged"] == 0 and "{" not in printed[1]
    assert run_here("extract_features", shared) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["hits"], again["misses"], again["hit_rate"]) == (24, 0, 1.0)


# Prediction


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    audio = SpectrogramConfig(hidden_size=8, normalization="utterance")
    labels = dict(enumerate(("angry", "happy", "neutral", "sad")))
    untrained = CMEForEmotionClassification(CMEConfig(audio_config=audio, hidden_size=8, id2label=labels))
    return save_checkpoint(untrained, MerProcessor.default(), tmp_path_factory.mktemp("trained") / "model")


def test_a_killed_process_costs_its_unfinished_shard_and_nothing_else(model, tmp_path):
    (tmp_path / "clips" / "neutral").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(160):
        samples = 0.1 * rng.standard_normal(rng.integers(2_000, 16_000)).clip(-3, 3)
        soundfile.write(tmp_path / "clips" / "neutral" / f"{number:03}.wav", samples, 16_000)
    arguments = ["--model", model, "--corpus", "folder", "--data_dir", tmp_path / "clips"]
    arguments += ["--cache_dir", tmp_path / "cache", "--shard_rows", 2, "--output_dir"]

    first = start_ranks("predict_corpus", [*arguments, tmp_path / "two"], tmp_path / "first")
    wait_for(lambda: len(own_shards(tmp_path / "two", 1)) >= 3, first)
    os.kill(first[1].pid, signal.SIGKILL)
    codes, printed = finish(first, tmp_path / "first")
    assert codes == [0, -signal.SIGKILL], "the other one goes on to its end"
    kept = files_of(tmp_path / "two")
    assert len(own_shards(tmp_path / "two", 0)) == 40 and 3 <= len(own_shards(tmp_path / "two", 1)) < 40
    assert f"{80 - len(kept)} shards are missing yet" in printed[0]

    again = start_ranks("predict_corpus", [*arguments, tmp_path / "two"], tmp_path / "again")
    codes, printed = finish(again, tmp_path / "again")
    assert codes == [0, 0] and "all 160 rows are there" in printed[1], printed[1][-2000:]
    assert sum(text.count(": 2 rows (process") for text in printed) == 80 - len(kept)
    assert kept.items() <= files_of(tmp_path / "two").items()

    assert run_here("predict_corpus", [*arguments, tmp_path / "one"]) == 0
    table = load_predictions(tmp_path / "two")
    assert table.equals(load_predictions(tmp_path / "one"))
    assert len(table) == 160 and table["error"].null_count == 160


STREAMED = """
import os, sys
from huggingface_hub import HfApi
from rank_processes import load_script

folder, output_dir, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
api = HfApi()
api.create_repo("ann/clips", repo_type="dataset")
api.upload_folder(folder_path=folder, repo_id="ann/clips", repo_type="dataset")
predict = load_script("predict_corpus").main
for rank in ("1", "0"):
    os.environ.update(RANK=rank, WORLD_SIZE="2")
    assert predict([*arguments, "--output_dir", output_dir]) == 0
pinned = api.dataset_info("ann/clips").sha
api.delete_file("data/train-1.parquet", "ann/clips", repo_type="dataset")
assert predict([*arguments, "--output_dir", output_dir]) == 1
assert predict([*arguments, "--output_dir", output_dir, "--revision", pinned]) == 0
"""


def test_a_data_set_of_the_hub_is_streamed_at_one_commit(model, tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "repo" / "data").mkdir(parents=True)
    sounds = [0.1 * rng.standard_normal(rng.integers(2_000, 16_000)).clip(-3, 3) for _ in range(11)]
    rows = []
    for number, samples in enumerate(sounds):
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
        rows.append(make_row(id=str(number), corpus="own", audio=str(tmp_path / f"{number}.wav")))
    for part, own in enumerate((rows[:6], rows[6:])):
        media = [{"path": None, "bytes": Path(row["audio"]).read_bytes()} for row in own]
        data = datasets.Dataset.from_dict({"clip": media, "name": [row["id"] for row in own]})
        data.cast_column("clip", datasets.Audio()).to_parquet(tmp_path / "repo" / "data" / f"train-{part}.parquet")
    arguments = ["--model", model, "--dataset", "ann/clips", "--split", "train", "--shard_rows", "2"]
    arguments += ["--columns", "audio=clip", "id=name"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    with LocalHub() as hub:
        of_hub = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_ann_write"}
        done = subprocess.run(
            [sys.executable, "-c", STREAMED, str(tmp_path / "repo"), str(tmp_path / "out"), *map(str, arguments)],
            env=inherited | of_hub | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT / "tests")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "another source" in done.stderr and done.stdout.count("all 11 rows are there") == 2
    predict_corpus(rows, pipeline(TASK, model=str(model)), tmp_path / "here", shard_rows=2)
    here, streamed = load_predictions(tmp_path / "here"), load_predictions(tmp_path / "out")
    assert streamed["id"].to_pylist() == [row["id"] for row in rows] and streamed.equals(here)


def own_shards(folder, rank):
    return [file for file in folder.glob("part-*.parquet") if int(file.stem[5:]) % 2 == rank]


def files_of(folder):
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.glob("part-*")}
