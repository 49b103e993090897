"""Publishing on the tests' own Hub: what goes where, in one commit; what is refused; what a cut connection leaves."""

import hashlib
import io
import json
import re
import runpy
import shutil
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from huggingface_hub import HfApi, RepoCard, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from local_hub import LocalHub
from safetensors.torch import load_file, save_file
from small_run import small_corpus, small_run
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel, BertTokenizerFast

from mer_hf import CMEForEmotionClassification, MerProcessor, word_tokenizer
from mer_hf.card_results import read_results
from mer_hf.cards import render_model_card
from mer_hf.checkpoints import evaluate_checkpoint
from mer_hf.data.controlled import ControlledCorpus
from mer_hf.data.folder import Folder
from mer_hf.data.meld import COLUMNS, TABLES, Meld
from mer_hf.data.ravdess import Ravdess
from mer_hf.hub import save_checkpoint
from mer_hf.publishing import publish_dataset, publish_model, publish_space
from mer_hf.uploads import write_parquet

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own upload does not
ANN = "hf_ann_write"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def push(hub):
    """Arguments by which the hub is really written to."""
    return {"dry_run": False, "token": ANN, "endpoint": hub.url}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def checkpoint(run, tmp_path):
    """A copy of the trained checkpoint, to be changed."""
    return Path(shutil.copytree(run / "audio_vector", tmp_path / "audio_vector"))


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs scripts/push_to_hub.py with arguments -> exit status, what it printed, what it complained."""
    main = runpy.run_path(str(ROOT / "scripts" / "push_to_hub.py"))["main"]

    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def files_of(hub, repo_id, kind="models"):
    return {path: blob.data for path, blob in hub.repos[kind, repo_id].at("main").files.items()}


def titles(hub, repo_id, kind="models"):
    return [commit.title for commit in hub.repos[kind, repo_id].commits]


# Checkpoints


def test_a_dry_run_says_what_would_go_where_and_asks_nobody(hub, run):
    results = [run / "results.json"]
    plan = publish_model(run / "audio_vector", "ann/voice", results=results, token=ANN, endpoint=hub.url)
    assert hub.requests == [] and hub.repos == {} and plan.commit is None
    text = str(plan)
    assert text.startswith(f"public model ann/voice at {hub.url}: {len(plan.files)} files")
    size = (run / "audio_vector" / "model.safetensors").stat().st_size
    assert plan.files["model.safetensors"] == size
    assert re.search(rf"^  model\.safetensors +{size / 1e6:.1f} MB$", text, re.MULTILINE)
    assert text.endswith("dry run: nothing was sent") and plan.files["README.md"] == len(plan.card.encode())


def test_everything_goes_in_one_commit(hub, run, push):
    folder = run / "audio_vector"
    plan = publish_model(folder, "ann/voice", results=[run / "results.json"], private=True, **push)
    assert titles(hub, "ann/voice") == ["initial commit", "Publish model, processor, code and card"]
    assert hub.repos["models", "ann/voice"].private
    sent = files_of(hub, "ann/voice")
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sent == own | {name: sent[name] for name in ("README.md", "confusion.png", "results/ravdess-emobox.json")}
    assert {"modeling_mman.py", "processing_mer.py", "pipeline_mer.py", "trained_on.json"} <= set(sent)
    assert sent["confusion.png"].startswith(b"\x89PNG") and plan.card.encode() == sent["README.md"]
    results = json.loads((run / "results.json").read_text())
    published = json.loads(sent["results/ravdess-emobox.json"])
    assert list(published["models"]) == ["audio_vector"]
    assert published["models"]["audio_vector"] == results["models"]["audio_vector"]
    temperature = json.loads(sent["config.json"])["calibration_temperature"]
    assert temperature == results["models"]["audio_vector"]["folds"][-1]["temperature"] != 1
    commit = hub.repos["models", "ann/voice"].commits[-1].sha
    assert str(plan).endswith(f"\ncommit {commit}\n{hub.url}/ann/voice")
    assert not [path for path, data in sent.items() if str(run.parent).encode() in data]
    again = publish_model(folder, "ann/voice", results=[run / "results.json"], private=True, **push)
    assert again.commit.oid == plan.commit.oid and len(titles(hub, "ann/voice")) == 2
    assert f"nothing new since commit {commit}" in str(again)
    assert len(hub.asked("PUT", "/large/")) == 2  # weights and picture, once


def test_a_cut_connection_is_taken_up_again(hub, run, push, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    arguments = {"checkpoint": run / "audio_vector", "repo_id": "ann/voice", "results": [run / "results.json"], **push}
    weights = hashlib.sha256((run / "audio_vector" / "model.safetensors").read_bytes()).hexdigest()
    hub.fail("PUT", weights, "cut", times=6)  # the client gives up after five more tries
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'") as lost:
        publish_model(**arguments)
    assert "what has arrived is not sent twice" in lost.value.__notes__[0]
    assert titles(hub, "ann/voice") == ["initial commit"]  # all or nothing
    arrived = len(hub.large)
    hub.fail("POST", "/commit/", "cut")
    with pytest.raises(ConnectionError, match=f"{hub.url} cannot be reached, or broke off"):
        publish_model(**arguments)
    assert len(hub.large) == 2 and titles(hub, "ann/voice") == ["initial commit"]
    sent = len(hub.asked("PUT", "/large/"))
    publish_model(**arguments)
    assert len(hub.asked("PUT", "/large/")) == sent and arrived <= 1
    assert titles(hub, "ann/voice") == ["initial commit", "Publish model, processor, code and card"]
    with pytest.raises(ConnectionError, match="cannot be reached"):
        publish_model(**arguments | {"endpoint": "http://127.0.0.1:9"})


def test_the_hubs_refusals_are_told(hub, run, push):
    arguments = {"checkpoint": run / "audio_vector", "results": [run / "results.json"], **push}
    for token, message, remedy in (
        ("hf_bob_write", "403", "in a namespace of yours, with a token that may write"),
        ("hf_ann_read", "403", "with a token that may write"),
        ("hf_wrong", "401", "`hf auth login`, or set HF_TOKEN"),
        (False, "401", "`hf auth login`, or set HF_TOKEN"),
    ):
        with pytest.raises(HfHubHTTPError, match=message) as refused:
            publish_model(repo_id="ann/voice", **arguments | {"token": token})
        assert remedy in refused.value.__notes__[0]
    assert hub.repos == {}
    publish_model(repo_id="ann/voice", **arguments)
    with pytest.raises(ValueError, match="private: ann/voice is there already and public"):
        publish_model(repo_id="ann/voice", private=True, **arguments)
    for name in ("voice", "a/b/c", "ann/"):
        with pytest.raises(ValueError, match="repo_id must be namespace/name"):
            publish_model(repo_id=name, **arguments | {"dry_run": True})


def test_what_is_no_part_of_a_checkpoint_stays_here(checkpoint, run):
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "notes.csv", "train.py", "LICENSE"):
        (checkpoint / name).write_text("{}")
    (checkpoint / "checkpoint-7").mkdir()
    shutil.copy(checkpoint / "config.json", checkpoint / "checkpoint-7")
    (checkpoint / "checkpoint-7" / "trainer_state.json").write_text("{}")
    shutil.copytree(run / "audio_vector", checkpoint / "words")
    (checkpoint / "words" / "optimizer.pt").write_text("")
    plan = publish_model(checkpoint, "ann/voice", license="cc-by-4.0")
    assert plan.left_out == {
        "optimizer.pt": "may run code when it is read",
        "training_args.bin": "may run code when it is read",
        "trainer_state.json": "no part of a checkpoint",
        "notes.csv": "no part of a checkpoint",
        "train.py": "not the checkpoint's code",
        "checkpoint-7/": "a folder that is no checkpoint, or one of training",
        "words/optimizer.pt": "may run code when it is read",
    }
    assert {"LICENSE", "words/config.json", "words/model.safetensors"} <= set(plan.files)
    assert not set(plan.left_out) & set(plan.files)
    assert "left out\n  checkpoint-7/" in str(plan)


def test_paths_of_this_machine_do_not_go(hub, push, tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "door"]
    encoder = tmp_path / "secret-project" / "bert"
    BertModel(BertConfig(**sizes, vocab_size=len(pieces))).save_pretrained(encoder)
    BertTokenizerFast(vocab={piece: index for index, piece in enumerate(pieces)}).save_pretrained(encoder)
    model = CMEForEmotionClassification.from_backbones(text=str(encoder), id2label={0: "sad", 1: "angry"})
    processor = MerProcessor.default(tokenizer=BertTokenizerFast.from_pretrained(encoder))
    folder = save_checkpoint(model, processor, tmp_path / "mine")
    assert "secret-project" in (folder / "config.json").read_text()
    plan = publish_model(folder, "ann/mine", license="mit", **push)
    sent = files_of(hub, "ann/mine")
    assert "local_files_only" in (folder / "tokenizer_config.json").read_text()
    for path, data in sent.items():
        assert b"secret-project" not in data and not (path.endswith(".json") and b"local_files_only" in data), path
    assert "base_model" not in plan.card and json.loads(sent["config.json"])["text_config"]["hidden_size"] == 8


def test_code_is_added_where_a_folder_has_none(hub, push, run, tmp_path):
    AutoModel.from_pretrained(run / "audio_vector").save_pretrained(tmp_path / "plain")
    AutoProcessor.from_pretrained(run / "audio_vector").save_pretrained(tmp_path / "plain")
    weights = (tmp_path / "plain" / "model.safetensors").read_bytes()
    publish_model(tmp_path / "plain", "ann/plain", license="cc-by-nc-sa-4.0", **push)
    sent = files_of(hub, "ann/plain")
    assert sent["model.safetensors"] == weights
    with_code = {path.name: path.read_bytes() for path in (run / "audio_vector").iterdir()}
    assert {name for name in sent if name.endswith(".py")} == {name for name in with_code if name.endswith(".py")}
    for name in ("config.json", "processor_config.json"):
        assert json.loads(sent[name])["auto_map"] == json.loads(with_code[name])["auto_map"]


def test_a_folders_own_card_and_licence_go_as_they_are(hub, push, checkpoint, run):
    card = "---\nlicense: apache-2.0\n---\n# Mine\n"
    (checkpoint / "README.md").write_text(card)
    (checkpoint / "LICENSE").write_text("Free for all.")
    publish_model(checkpoint, "ann/mine", **push)
    sent = files_of(hub, "ann/mine")
    assert (sent["README.md"], sent["LICENSE"]) == (card.encode(), b"Free for all.")
    assert "confusion.png" not in sent
    with pytest.raises(ValueError, match=r"license, datasets: .* has a card of its own; change it there"):
        publish_model(checkpoint, "ann/mine", license="mit")
    again = publish_model(checkpoint, "ann/mine", results=[run / "results.json"])
    assert "# mine" in again.card and again.left_out == {"README.md of the folder": "one is made from the results"}
    (checkpoint / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match=r"license: .*README\.md states none"):
        publish_model(checkpoint, "ann/mine")


def test_what_could_not_be_used_is_refused(checkpoint, run, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    body = {name: values for name, values in weights.items() if "classifier" not in name}
    save_file(body, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights \(.*classifier.*, \.\.\.\), which would be random"):
        publish_model(checkpoint, "ann/voice")
    torch.save(weights, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks safetensors or processor_config\.json; save model and processor"):
        publish_model(checkpoint, "ann/voice")
    shutil.copy(run / "audio_vector" / "model.safetensors", checkpoint)
    (checkpoint / "modeling_mman.py").unlink()
    with pytest.raises(ValueError, match=r"lacks modeling_mman\.py, which its config\.json names"):
        publish_model(checkpoint, "ann/voice")
    with pytest.raises(ValueError, match=r"holds no config\.json; name one of .*audio_vector"):
        publish_model(tmp_path, "ann/voice")
    with pytest.raises(ValueError, match=r"holds no config\.json; name a folder that save_checkpoint wrote"):
        publish_model(tmp_path / "absent", "ann/voice")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, vocab_size=6)).save_pretrained(tmp_path / "bert")
    MerProcessor.default(tokenizer=word_tokenizer(["a"])).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a BertModel, none of this package's models"):
        publish_model(tmp_path / "bert", "ann/bert")


# Results of one checkpoint


def test_a_report_on_the_kept_fold_makes_a_card(run, tmp_path):
    folder = run / "audio_vector"
    report = evaluate_checkpoint(small_corpus(run.parent), folder)
    (tmp_path / "report.json").write_text(json.dumps(report))
    card = render_model_card(folder, "ann/voice", [run / "results.json", tmp_path / "report.json"])
    text = card.text
    assert f"This checkpoint on the test side of fold 3, {report['n']} clips." in text
    low, high = report["intervals"]["wa"]
    assert f"| WA | {report['wa']:.3f} | {report['wa']:.3f} | {low:.3f} to {high:.3f} | not measured | not" in text
    configs = {one.dataset_config for one in card.data.eval_results}
    assert configs == {"ravdess-emobox", "ravdess-emobox-fold3"}
    measured = read_results(tmp_path / "report.json", folder, "audio_vector")
    assert str(run) not in json.dumps(measured.published)  # the path it was tested at
    for change, message in (
        ({"sha256": "0" * 64, "corpus": "ravdess"}, "another fold of ravdess"),
        ({"sha256": "0" * 64}, "does not say what corpus"),
        ({"calibration": report["calibration"] | {"temperature": 9.0}}, "a checkpoint of temperature 9.0"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(report | {"corpus": None} | change))
        with pytest.raises(ValueError, match=message):
            read_results(tmp_path / "other.json", folder, "audio_vector")


# Data sets


def test_an_open_corpus_goes_with_its_sound(hub, push, run, tmp_path):
    def builder():
        return Ravdess(data_dir=str(run.parent / "clips"), cache_dir=str(tmp_path / "cache"))

    first = publish_dataset(builder(), "ann/ravdess", **push)
    sent = files_of(hub, "ann/ravdess", "datasets")
    assert set(sent) == {"README.md", "data/train-00000-of-00001.parquet"} == set(first.files)
    parquet = sent["data/train-00000-of-00001.parquet"]
    assert parquet.count(b"RIFF") == 48 and str(run.parent).encode() not in parquet
    metadata = RepoCard(sent["README.md"].decode()).data.to_dict()
    assert metadata["license"] == "cc-by-nc-sa-4.0"
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert publish_dataset(builder(), "ann/ravdess", **push).commit.oid == first.commit.oid
    assert len(hub.asked("PUT", "/large/")) == 1
    without = publish_dataset(builder(), "ann/labels", share_media=False, **push)
    assert "are not inside" in without.card and "| train | 48 | 0 | 0 | 48 | 0 |" in without.card
    parquet = files_of(hub, "ann/labels", "datasets")["data/train-00000-of-00001.parquet"]
    assert b"RIFF" not in parquet and str(run.parent).encode() not in parquet
    rows = pq.read_table(io.BytesIO(parquet))
    assert rows["audio"].null_count == 48 and set(rows["label"].to_pylist()) == {"neutral", "angry"}
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=ANN).model_info("ann/ravdess")


def test_files_of_an_earlier_publication_are_not_read_along(hub, push, run, tmp_path, monkeypatch):
    builder = Ravdess(data_dir=str(run.parent / "clips"), cache_dir=str(tmp_path / "cache"))
    with monkeypatch.context() as small:
        small.setattr("mer_hf.uploads.ROWS_AT_ONCE", 10)
        small.setattr("mer_hf.uploads.LARGEST_FILE", 300_000)
        first = publish_dataset(builder, "ann/ravdess", **push)
    parts = [path for path in first.files if path.startswith("data/")]
    HfApi(endpoint=hub.url, token=ANN).upload_file(
        path_or_fileobj=b"mine", path_in_repo="data/notes.txt", repo_id="ann/ravdess", repo_type="dataset"
    )
    second = publish_dataset(builder, "ann/ravdess", **push)
    assert second.removed == parts and len(parts) > 1 and f"removed\n  {parts[0]}\n" in str(second)
    sent = files_of(hub, "ann/ravdess", "datasets")
    assert set(sent) == {"README.md", "data/notes.txt", "data/train-00000-of-00001.parquet"}
    assert not publish_dataset(builder, "ann/ravdess", **push).changed


def write_meld(root):
    values = ("1", "gone", "Ann", "joy", "positive", "0", "0", "8", "21", "00:16:16,059", "00:16:21,731")
    for table in TABLES.values():
        (root / table).parent.mkdir(parents=True, exist_ok=True)
        lines = [",".join(COLUMNS), ",".join(f'"{value}"' for value in values)]
        (root / table).write_text("\r\n".join(lines) + "\r\n")
    return str(root)


def test_of_meld_only_the_annotations_go(tmp_path):
    def builder():
        return Meld(data_dir=write_meld(tmp_path / "meld"), cache_dir=str(tmp_path / "cache"))

    plan = publish_dataset(builder(), "ann/meld")
    assert "license: gpl-3.0" in plan.card and "are not inside" in plan.card
    assert len([path for path in plan.files if path.startswith("data/")]) == 3
    with pytest.raises(ValueError, match=r"share_media: its licence \(GPL-3\.0 \(annotations\)\) does not let"):
        publish_dataset(builder(), "ann/meld", share_media=True)


def manifest(folder, corpus):
    folder.mkdir()
    soundfile.write(folder / "1.wav", torch.zeros(800).numpy(), 16_000)
    (folder / "clips.csv").write_text("path,emotion,speaker,text\n1.wav,sad,ann,hello\n")
    return Folder(data_dir=str(folder / "clips.csv"), corpus=corpus, cache_dir=str(folder.parent / "cache"))


def test_a_restricted_corpus_does_not_go(script, tmp_path):
    status, _, complaint = script("dataset", "iemocap", tmp_path, "ann/iemocap", "--license", "other", "--push")
    assert status == 1 and "IEMOCAP may not be passed on, not even its labels; publish what reads it" in complaint
    with pytest.raises(ValueError, match="IEMOCAP may not be passed on, not even its labels"):
        publish_dataset(manifest(tmp_path / "i", "iemocap"), "ann/iemocap", license="other", share_media=False)


def test_of_ones_own_clips_rights_and_licence_must_be_said(tmp_path):
    builder = manifest(tmp_path / "own", "friends")
    with pytest.raises(ValueError, match="share_media: nothing is known of the rights in friends; say True"):
        publish_dataset(builder, "ann/friends", license="cc-by-4.0")
    with pytest.raises(ValueError, match="license: friends has none that the Hub knows; name one"):
        publish_dataset(builder, "ann/friends", share_media=True)
    with_sound = publish_dataset(builder, "ann/friends", license="cc-by-4.0", share_media=True)
    without = publish_dataset(builder, "ann/friends", license="cc-by-4.0", share_media=False)
    assert "| train | 1 | 1 | 0 | 1 | 0 |" in with_sound.card and "| train | 1 | 0 | 0 | 1 | 0 |" in without.card


def test_generated_clips_go_with_their_corpus(tmp_path):
    rows = tmp_path / "controlled"
    rows.mkdir()
    (rows / "corpus.json").write_text("{}")
    soundfile.write(rows / "1.wav", torch.zeros(800).numpy(), 16_000)
    row = {"id": "1", "corpus": "controlled", "split": "train", "audio": "1.wav", "video": "1.wav", "label": "sad"}
    (rows / "rows.jsonl").write_text(json.dumps(row) + "\n")
    builder = ControlledCorpus(data_dir=str(rows), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="they go with it"):
        publish_dataset(builder, "ann/controlled", license="cc0-1.0", share_media=False)
    plan = publish_dataset(builder, "ann/controlled", license="cc0-1.0")
    assert "no claim about people" in plan.card and "| train | 1 | 1 | 1 | 0 | 0 |" in plan.card


def test_large_splits_are_cut_into_files(run, tmp_path, monkeypatch):
    builder = Ravdess(data_dir=str(run.parent / "clips"), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    part = builder.as_dataset(split="train")
    monkeypatch.setattr("mer_hf.uploads.ROWS_AT_ONCE", 10)
    monkeypatch.setattr("mer_hf.uploads.LARGEST_FILE", 300_000)
    files = write_parquet(part, "train", tmp_path, True)
    assert [file.name for file in files] == [f"train-{k:05}-of-{len(files):05}.parquet" for k in range(len(files))]
    assert len(files) > 1
    assert [i for file in files for i in pq.read_table(file)["id"].to_pylist()] == part["id"][:]
    assert len(write_parquet(part.select([]), "test", tmp_path, True)) == 1


# A Space, and the script


@pytest.fixture
def space(tmp_path):
    folder = tmp_path / "space"
    (folder / "pages").mkdir(parents=True)
    (folder / "README.md").write_text("---\ntitle: Emotion\nsdk: gradio\nlicense: apache-2.0\n---\n")
    (folder / "requirements.txt").write_text("numpy>=2\nmer_hf[video,words]>=0.1  # this package\n--find-links .\n")
    (folder / "app.py").write_text("import mer_hf\n")
    (folder / "pages" / "help.md").write_text("# Help\n")
    (folder / ".env").write_text("SECRET=1")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "app.pyc").write_bytes(b"0")
    return folder


def write_wheel(folder, version="0.1.0"):
    wheel = folder / f"mer_hf-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("mer_hf/__init__.py", "")
    return wheel


def test_a_space_goes_with_the_wheel_it_installs(hub, push, space, tmp_path):
    wheel = write_wheel(space)
    plan = publish_space(space, "ann/demo", **push)
    assert hub.repos["spaces", "ann/demo"].sdk == "gradio"
    sent = files_of(hub, "ann/demo", "spaces")
    assert set(sent) == {"README.md", "requirements.txt", "app.py", "pages/help.md", wheel.name}
    assert set(plan.left_out) == {".env", "__pycache__/app.pyc"}
    address = f"{hub.url}/spaces/ann/demo/resolve/main/{wheel.name}"
    assert sent["requirements.txt"].decode() == f"numpy>=2\nmer-hf[video,words] @ {address}\n"
    got = HfApi(endpoint=hub.url, token=False).hf_hub_download(
        "ann/demo", wheel.name, repo_type="space", cache_dir=tmp_path / "cache"
    )
    assert Path(got).read_bytes() == wheel.read_bytes()
    again = publish_space(space, "ann/demo", wheel, **push)
    assert again.commit.oid == plan.commit.oid and not again.changed and plan.changed
    other = publish_space(space, "ann/demo", write_wheel(tmp_path, "0.2.0"), **push)
    assert other.left_out[wheel.name] == "another wheel" and other.removed == [wheel.name]
    assert {path for path in files_of(hub, "ann/demo", "spaces") if path.endswith(".whl")} == {
        "mer_hf-0.2.0-py3-none-any.whl"
    }


def test_what_is_private_already_stays_so_and_a_space_must_not_be(hub, push, run, space):
    api = HfApi(endpoint=hub.url, token=ANN)
    api.create_repo("ann/voice", private=True)
    plan = publish_model(run / "audio_vector", "ann/voice", license="cc-by-nc-sa-4.0", **push)
    assert str(plan).startswith("private model ann/voice") and hub.repos["models", "ann/voice"].private
    api.create_repo("ann/demo", repo_type="space", space_sdk="gradio", private=True)
    write_wheel(space)
    with pytest.raises(ValueError, match=r"ann/demo is private, .* could not fetch the wheel; make it public"):
        publish_space(space, "ann/demo", **push)
    assert titles(hub, "ann/demo", "spaces") == ["initial commit"]


def test_the_demo_of_this_repository_is_a_space(tmp_path):
    plan = publish_space(ROOT / "spaces" / "emotion_demo", "ann/demo", write_wheel(tmp_path))
    assert {"app.py", "README.md", "requirements.txt", "mer_hf-0.1.0-py3-none-any.whl"} <= set(plan.files)
    assert RepoCard(plan.card).data.to_dict()["app_file"] in plan.files


def test_a_space_that_could_not_start_is_refused(space, tmp_path):
    with pytest.raises(ValueError, match="must hold one wheel of this package, found none; make it with `pip wheel"):
        publish_space(space, "ann/demo")
    (tmp_path / "mer_hf-0.1.0-py3-none-any.whl").write_bytes(b"half of it")
    for name in ("mer_hf-0.1.0-py3-none-any.whl", "absent.whl"):
        with pytest.raises(ValueError, match=rf"{name} is no wheel of this package; make it with"):
            publish_space(space, "ann/demo", tmp_path / name)
    write_wheel(space)
    (space / "requirements.txt").write_text("numpy\nmer-hf-plugins\n")
    with pytest.raises(ValueError, match="has no line for mer-hf, so the Space would lack it"):
        publish_space(space, "ann/demo")
    write_wheel(space, "0.2.0")
    with pytest.raises(ValueError, match=r"found mer_hf-0\.1\.0.*, mer_hf-0\.2\.0"):
        publish_space(space, "ann/demo")
    (space / "README.md").write_text("---\ntitle: Emotion\n---\n")
    with pytest.raises(ValueError, match="states no sdk"):
        publish_space(space, "ann/demo")
    (space / "requirements.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks README\.md or requirements\.txt"):
        publish_space(space, "ann/demo")


def test_the_script_shows_first_and_pushes_when_told(hub, script, run, space, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", ANN)
    model = ["model", run / "audio_vector", "ann/voice", "--results", run / "results.json"]
    status, printed, _ = script(*model, "--show_card", "--datasets", "ann/ravdess")
    assert status == 0 and printed.endswith("dry run: nothing was sent\nsend it with --push\n")
    assert "## What it is for" in printed and "datasets:\n- ann/ravdess\n" in printed
    assert hub.repos == {}
    status, printed, _ = script(*model, "--push", "--private")
    assert status == 0 and f"private model ann/voice at {hub.url}" in printed
    assert len(titles(hub, "ann/voice")) == 2 and hub.repos["models", "ann/voice"].private
    data = ["dataset", "ravdess", run.parent / "clips", "ann/ravdess", "--cache_dir", tmp_path, "--share_media", "no"]
    assert script(*data, "--push")[0] == 0 and len(titles(hub, "ann/ravdess", "datasets")) == 2
    status, printed, complaint = script("model", run / "audio_vector", "bob/voice", "--push")
    assert (status, printed) == (1, "") and re.fullmatch(r"error: 403 .*\nPublish in .*\n", complaint)
    status, _, complaint = script("space", tmp_path, "ann/demo")
    assert status == 1 and complaint.startswith("error: folder: ")
    write_wheel(space)
    assert script("space", space, "ann/demo", "--push")[0] == 0
    assert titles(hub, "ann/demo", "spaces") == ["initial commit", "Publish the Space with its package"]
