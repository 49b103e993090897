"""Prediction over a corpus: the pipeline's own scores, each row once, whoever is killed and however many work."""

from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from rank_processes import run_here

from mer_hf import (
    TASK,
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankStatisticsConfig,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    SpectrogramConfig,
    pipeline,
)
from mer_hf.corpus_prediction import PART, Limits, load_predictions, predict_corpus
from mer_hf.data.hub_rows import data_set_version, fetch_media, stream_rows
from mer_hf.data.schema import make_row

LABELS = dict(enumerate(("angry", "happy", "neutral", "sad")))
ROWS = 23


def make_classify(seed=0):
    torch.manual_seed(seed)
    audio = SpectrogramConfig(hidden_size=8, normalization="utterance")
    model = CMEForEmotionClassification(CMEConfig(audio_config=audio, hidden_size=8, id2label=LABELS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)  # or all clips have nearly the same scores
    return pipeline(TASK, model=model, processor=MerProcessor.default())


def make_dialogue_classify():
    torch.manual_seed(0)
    audio = FilterbankStatisticsConfig()
    sizes = {"projection_size": 8, "hidden_size": 8, "classifier_size": 8}
    config = MMANConfig(audio_config=audio, network="clstm_mma", id2label=LABELS, **sizes)
    return pipeline(TASK, model=MMANForEmotionClassification(config), processor=MerProcessor.default())


def write_rows(folder, count=ROWS):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        file = folder / f"clip{index:02}.wav"
        pitch = 2 * np.pi * rng.uniform(100, 3_000) * np.arange(rng.integers(4_000, 16_000)) / 16_000
        soundfile.write(file, 0.5 * np.sin(pitch) + 0.05 * rng.standard_normal(len(pitch)), 16_000)
        rows.append(make_row(id=file.stem, corpus="own", audio=str(file), label=LABELS[index % 4]))
    return rows


@pytest.fixture(scope="module")
def classify():
    return make_classify()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def expected(rows, classify, tmp_path_factory):
    """What one process that nothing interrupts gives."""
    folder = tmp_path_factory.mktemp("expected")
    predict_corpus(rows, classify, folder, shard_rows=4)
    return load_predictions(folder)


def scores_of(table):
    return np.array([list(scores.values()) for scores in table["scores"].to_pylist()])


def files_of(folder):
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.glob("part-*")}


# Scores


def test_scores_are_the_pipelines_own(rows, classify, expected):
    assert expected["row"].to_pylist() == list(range(ROWS))
    assert expected["id"].to_pylist() == [row["id"] for row in rows]
    assert expected["reference"].to_pylist() == [row["label"] for row in rows]
    assert expected["error"].null_count == ROWS
    singly = [{item["label"]: item["score"] for item in classify(row["audio"], recognize=False)} for row in rows]
    alone = np.array([[scores[label] for label in LABELS.values()] for scores in singly])
    assert alone.std(0).min() > 0.01, "the clips hardly differ"
    np.testing.assert_allclose(scores_of(expected), alone, atol=1e-5)
    best = alone.argmax(1)
    assert expected["label"].to_pylist() == [LABELS[index] for index in best]
    np.testing.assert_allclose(expected["score"].to_numpy(), alone.max(1), atol=1e-5)


@pytest.mark.parametrize(("shard_rows", "limits"), [(100, Limits(5, 3.0)), (7, Limits(1, 100.0))])
def test_scores_do_not_depend_on_shards_and_batches(rows, classify, expected, tmp_path, shard_rows, limits):
    predict_corpus(rows, classify, tmp_path, shard_rows=shard_rows, limits=limits)
    found = load_predictions(tmp_path)
    assert len(files_of(tmp_path)) == -(-ROWS // shard_rows)
    np.testing.assert_allclose(scores_of(found), scores_of(expected), atol=1e-5)


def test_what_cannot_be_read_is_a_row_with_the_reason(rows, classify, expected, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    mixed = [*rows[:3], rows[3] | {"audio": str(broken)}, rows[4] | {"audio": str(tmp_path / "gone.wav")}]
    mixed += [rows[5] | {"audio": None, "text": "the model hears only"}, *rows[6:]]
    predict_corpus(mixed, classify, tmp_path / "out", shard_rows=8)
    found = load_predictions(tmp_path / "out").to_pylist()
    bad = [row for row in found if row["error"] is not None]
    assert [row["row"] for row in bad] == [3, 4, 5]
    assert all(row["label"] is row["scores"] is row["score"] is None and row["reference"] for row in bad)
    assert "broken.wav" in bad[0]["error"] and "no such file" in bad[1]["error"] and "audio=" in bad[2]["error"]
    good = [row for row in found if row["error"] is None]
    assert all(row["modalities"] == ["audio"] for row in good) and all(row["modalities"] is None for row in bad)
    assert [row["label"] for row in good] == [
        label for n, label in enumerate(expected["label"].to_pylist()) if not 3 <= n <= 5
    ]


def test_turns_of_a_dialogue_stay_together(rows, tmp_path):
    classify = make_dialogue_classify()
    names = ["a"] * 5 + ["b"] * 3 + [None] * 2 + ["c"] * (ROWS - 10)
    turns = [row | {"dialogue_id": name} for row, name in zip(rows, names, strict=True)]
    predict_corpus(turns, classify, tmp_path, shard_rows=4)
    sizes = [pq.read_metadata(tmp_path / PART.format(shard)).num_rows for shard in range(3)]
    assert sizes == [5, 4, ROWS - 9], "a; b and a clip alone; another clip alone and c"
    found = scores_of(load_predictions(tmp_path))
    dialogue = classify(dialogue=[row["audio"] for row in rows[:5]], recognize=False)
    whole = np.array([[{i["label"]: i["score"] for i in turn}[name] for name in LABELS.values()] for turn in dialogue])
    np.testing.assert_allclose(found[:5], whole, atol=1e-5)
    alone = classify(rows[1]["audio"], recognize=False)
    assert abs({i["label"]: i["score"] for i in alone}["sad"] - whole[1, 3]) > 1e-4, "context says nothing"


# Each row once


@pytest.mark.parametrize("world", [2, 3, 10])
def test_several_processes_write_what_one_does(rows, classify, expected, tmp_path, world):
    done = [predict_corpus(rows, classify, tmp_path, shard_rows=4, rank=rank, world=world) for rank in range(world)]
    assert sorted(shard for one in done for shard in one.computed) == list(range(6))
    assert [bool(one.missing) for one in done] == [True] * min(world - 1, 5) + [False] * (world - min(world - 1, 5))
    assert {one.rows for one in done} == {ROWS}
    assert load_predictions(tmp_path).equals(expected)


def test_an_interrupted_run_goes_on_with_any_number_of_processes(rows, classify, expected, tmp_path):
    def interrupt(shard, count):
        if shard == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_corpus(rows, classify, tmp_path, shard_rows=4, progress=interrupt)
    kept = files_of(tmp_path)
    assert sorted(kept) == [PART.format(shard) for shard in range(3)]
    (tmp_path / f".{PART.format(3)}.1.unfinished").write_bytes(b"half a shard")
    with pytest.raises(ValueError, match="is not complete"):
        load_predictions(tmp_path)
    done = [predict_corpus(rows, classify, tmp_path, shard_rows=4, rank=rank, world=2) for rank in range(2)]
    assert [one.computed for one in done] == [[4], [3, 5]]
    assert kept.items() <= files_of(tmp_path).items()
    assert load_predictions(tmp_path).equals(expected)


def test_predictions_of_something_else_are_not_mixed_in(rows, classify, tmp_path):
    predict_corpus(rows[:4], classify, tmp_path, shard_rows=4)
    for values, reason in (
        ({"rows": rows[1:5]}, "source"),
        ({"shard_rows": 5}, "shard_rows"),
        ({"classify": make_classify(1)}, "model"),
        ({"recognize": True}, "recognize"),
    ):
        arguments = {"rows": rows[:4], "classify": classify, "shard_rows": 4} | values
        with pytest.raises(ValueError, match=f"another {reason} .* name another folder"):
            predict_corpus(output_dir=tmp_path, **arguments)
    for wrong in ({"rank": 2, "world": 2}, {"shard_rows": 0}):
        with pytest.raises(ValueError, match="give 1 or more, and a rank below world"):
            predict_corpus(rows, classify, tmp_path, **wrong)


# Data sets


@pytest.fixture
def parquet(rows, tmp_path):
    """Two files as the Hub has them: bytes inside, class labels as numbers, a column under another name."""
    features = datasets.Features(
        {
            "clip": datasets.Audio(decode=False),
            "name": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(LABELS.values())),
        }
    )
    numbers = {name: index for index, name in LABELS.items()}
    for part, own in enumerate((rows[:9], rows[9:])):
        media = [{"path": "a.wav", "bytes": Path(row["audio"]).read_bytes()} for row in own]
        columns = {"clip": media, "name": [row["id"] for row in own], "label": [numbers[row["label"]] for row in own]}
        table = pa.table(columns, schema=features.arrow_schema)
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"train-{part}.parquet")
    return tmp_path / "data"


def test_a_streamed_data_set_gives_the_same(parquet, classify, expected, tmp_path):
    columns = {"audio": "clip", "id": "name"}
    for rank in range(2):
        streamed = stream_rows(str(parquet), columns=columns)
        predict_corpus(streamed, classify, tmp_path / "out", source="clips", shard_rows=4, rank=rank, world=2)
    assert load_predictions(tmp_path / "out").equals(expected)


def test_columns_that_are_not_there_are_named(parquet):
    with pytest.raises(ValueError, match="audio, video or text not among them"):
        next(stream_rows(str(parquet)))
    with pytest.raises(ValueError, match=r"\['voice'\] not among them"):
        next(stream_rows(str(parquet), columns={"audio": "voice"}))


def test_a_data_set_that_changed_is_another(parquet, classify, tmp_path):
    before = data_set_version(str(parquet))
    assert before == data_set_version(str(parquet)) and [entry[0] for entry in before] == [
        "train-0.parquet",
        "train-1.parquet",
    ]
    one = parquet / "train-1.parquet"
    assert data_set_version(str(one)) == before[1:]
    predict_corpus(stream_rows(str(one), columns={"audio": "clip"}), classify, tmp_path / "out", source=before[1:])
    pq.write_table(pq.read_table(one).slice(1), one)
    with pytest.raises(ValueError, match=r"another source \(run.json tells\); name another folder, or delete"):
        changed = data_set_version(str(one))
        predict_corpus(stream_rows(str(one), columns={"audio": "clip"}), classify, tmp_path / "out", source=changed)


def test_what_is_no_data_set_is_told(tmp_path):
    with pytest.raises(ValueError, match="has no Parquet files"):
        data_set_version(str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no .*gone.parquet on this machine, and on the Hub: "):
        data_set_version(str(tmp_path / "gone.parquet"))


def test_media_at_an_address_are_fetched(rows):
    data = Path(rows[0]["audio"]).read_bytes()
    with fsspec.open("memory://far/clip.wav", "wb") as file:
        file.write(data)
    there = {"audio": {"path": "memory://far/clip.wav", "bytes": None}, "video": "/a/file.mp4"}
    assert fetch_media(there) == {"audio": {"path": "memory://far/clip.wav", "bytes": data}, "video": "/a/file.mp4"}
    gone = {"audio": {"path": "memory://far/gone.wav", "bytes": None}}
    assert fetch_media(gone) == gone


def test_splits_of_a_folder_are_kept_apart(tmp_path):
    names = ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "dev/part", "validation/part"]
    for name in names:
        file = tmp_path / f"{name}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": [name]}), file)

    def texts(path, split=None):
        return [row["text"] for row in stream_rows(str(path), split)]

    assert texts(tmp_path, "train") == names[:2] and texts(tmp_path, "test") == names[2:3]
    assert texts(tmp_path, "validation") == names[4:]
    with pytest.raises(ValueError, match=r"split: .* has test, train, validation; name one"):
        texts(tmp_path)
    with pytest.raises(ValueError, match=r"no file of 'tset'.*found test, train, validation"):
        texts(tmp_path, "tset")
    assert texts(tmp_path / "train-00001-of-00002.parquet") == names[1:2]
    assert texts(tmp_path / "dev") == names[3:4]
    with pytest.raises(ValueError, match="files that name no split: leave split out"):
        texts(tmp_path / "dev", "test")


def test_a_split_that_no_row_has_is_refused(tmp_path, capsys):
    manifest = tmp_path / "clips.csv"
    manifest.write_text("text,emotion,speaker,split\nyes,happy,a,train\nno,sad,b,test\n")
    command = ["--corpus", "folder", "--data_dir", manifest, "--split", "tset", "--output_dir", tmp_path / "out"]
    assert run_here("predict_corpus", command) == 1
    assert "--split tset: no row is of it; the rows have test, train" in capsys.readouterr().err
