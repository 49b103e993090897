"""There and back: trained, published on the tests' own Hub, and loaded in fresh processes as a stranger would."""

import json
import os
import re
import subprocess
import sys

import pytest
import soundfile
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RevisionNotFoundError
from local_hub import LocalHub
from safetensors.torch import load_file, save_file
from small_run import small_run
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from mer_hf import (
    TASK,
    MerProcessor,
    MMANForEmotionClassification,
    MultimodalEmotionRecognitionPipeline,
    pipeline,
)
from mer_hf.data.collator import ClipDataset, EmotionCollator
from mer_hf.data.ravdess import Ravdess, scan
from mer_hf.hub import download_checkpoint
from mer_hf.publishing import publish_dataset, publish_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own upload does not
]
ANN = "hf_ann_write"


@pytest.fixture(scope="module")
def hub():
    with pytest.MonkeyPatch.context() as patch, LocalHub() as hub:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """small_run's: `clips`, `run/results.json`, `run/audio_vector`."""
    folder = tmp_path_factory.mktemp("here")
    small_run(folder)
    return folder


@pytest.fixture(scope="module")
def commits(hub, folder):
    """ann/voice, published twice: first untrained in its last layer's bias, then as it is; the two commits. Also
    ann/headless, and the data set ann/ravdess."""
    checkpoint, where = folder / "run" / "audio_vector", {"dry_run": False, "token": ANN, "endpoint": hub.url}
    results = [folder / "run" / "results.json"]
    weights = load_file(checkpoint / "model.safetensors")
    last = next(name for name in weights if name.endswith("classifier.bias"))
    shifted = weights | {last: weights[last] + torch.tensor([9.0, 0.0])}
    save_file(shifted, checkpoint / "model.safetensors", metadata={"format": "pt"})
    first = publish_model(checkpoint, "ann/voice", results=results, **where).commit.oid
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    second = publish_model(checkpoint, "ann/voice", results=results, **where).commit.oid

    headless = folder / "headless"  # publish_model refuses it; any other client does not
    api = HfApi(endpoint=hub.url, token=ANN)
    api.snapshot_download("ann/voice", local_dir=headless)
    body = {name: values for name, values in weights.items() if "classifier" not in name}
    save_file(body, headless / "model.safetensors", metadata={"format": "pt"})
    api.create_repo("ann/headless")
    api.upload_folder(repo_id="ann/headless", folder_path=headless)
    corpus = Ravdess(data_dir=str(folder / "clips"), cache_dir=str(folder / "prepared"))
    publish_dataset(corpus, "ann/ravdess", **where)
    return first, second


def run(script, arguments, hub, home, **environment):
    """What a fresh process prints last, as JSON; its caches are in `home`."""
    settings = {
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
        **{"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)],
        cwd=home.parent,
        env=inherited | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


WITHOUT_THE_PACKAGE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mer_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import re
import soundfile, torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForAudioClassification, AutoProcessor, pipeline

torch.set_num_threads(1)
task, first = json.loads(sys.argv[1])
trusted = {"trust_remote_code": True}
found = {}
"""
STRANGER = (
    WITHOUT_THE_PACKAGE
    + """
card = ModelCard.load("ann/voice")
exec(re.search(r"```python\\n(.*?)```", card.text, re.DOTALL)[1])  # as the card says; it makes `classify`
found["scores"] = classify("clip.wav")
found["card"] = {one.metric_name: one.metric_value for one in card.data.eval_results}
found["pinned"] = pipeline(task, model="ann/voice", revision=first, **trusted)("clip.wav")
processor = AutoProcessor.from_pretrained("ann/voice", **trusted)
inputs = processor(audio=[soundfile.read("clip.wav", dtype="float32")[0]])
autos = (AutoModel, AutoModelForAudioClassification)
models = [auto.from_pretrained("ann/voice", **trusted).eval() for auto in autos]
found["logits"] = [model(**inputs).logits.flatten().tolist() for model in models]
found["modules"] = [type(one).__module__.split(".")[0] for one in (*models, processor, classify)]
try:
    found["headless"] = pipeline(task, model="ann/headless", **trusted)("clip.wav")
except ValueError as error:
    found["headless"] = str(error)
try:
    pipeline(task, model="ann/voice", trust_remote_code=False)
except ValueError as error:
    found["without trust"] = str(error)

import io
from datasets import load_dataset

rows = list(load_dataset("ann/ravdess", split="train", streaming=True))
found["clips"] = [[row["id"], row["label"], row["audio"]["path"]] for row in rows]
found["samples"] = soundfile.read(io.BytesIO(rows[0]["audio"]["bytes"]), dtype="int16")[0].tolist()
found["mer_hf"] = "mer_hf" in sys.modules
print(json.dumps(found))
"""
)
OFFLINE = (
    WITHOUT_THE_PACKAGE
    + """
found["scores"] = pipeline(task, model="ann/voice", **trusted)("clip.wav")
found["pinned"] = pipeline(task, model="ann/voice", revision=first, **trusted)("clip.wav")
try:
    AutoModel.from_pretrained("ann/other", **trusted)
except OSError as error:
    found["other"] = str(error)
print(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def home(folder, tmp_path_factory):
    """A stranger's home, with a clip beside it."""
    away = tmp_path_factory.mktemp("away")
    clip = next((folder / "clips").glob("03-01-05*.wav"))
    (away / "clip.wav").write_bytes(clip.read_bytes())
    return away / "home"


@pytest.fixture(scope="module")
def stranger(hub, commits, home):
    return run(STRANGER, [TASK, commits[0]], hub, home)


def as_scores(found):
    return {item["label"]: pytest.approx(item["score"], abs=1e-6) for item in found}


def test_a_stranger_gets_the_same_scores_from_the_repository_alone(folder, home, stranger):
    classify = pipeline(TASK, model=str(folder / "run" / "audio_vector"), device="cpu")
    here = classify(str(home.parent / "clip.wav"))
    assert as_scores(here) == {item["label"]: item["score"] for item in stranger["scores"]}
    assert stranger["modules"] == ["transformers_modules"] * 4 and stranger["mer_hf"] is False
    temperature = classify.model.config.calibration_temperature
    for logits in stranger["logits"]:
        scores = (torch.tensor(logits) / temperature).softmax(-1).tolist()
        assert dict(zip(["neutral", "angry"], scores, strict=True)) == as_scores(here)


def test_the_card_holds_the_results(folder, stranger):
    results = json.loads((folder / "run" / "results.json").read_text())
    mean = results["models"]["audio_vector"]["mean"]
    assert stranger["card"]["WA"] == mean["wa"] and stranger["card"]["UA"] == mean["ua"]


def test_a_pinned_revision_stays_what_it_was(stranger):
    """The first publication answered neutral, whatever it heard."""
    scores = {item["label"]: item["score"] for item in stranger["pinned"]}
    assert scores["neutral"] > 0.99 > {i["label"]: i["score"] for i in stranger["scores"]}["neutral"]


def test_a_checkpoint_without_its_head_and_code_without_trust_are_refused(stranger):
    assert re.search(r"weights of this model .*classifier.* are not in its checkpoint", stranger["headless"])
    assert "trust_remote_code" in stranger["without trust"]


def test_the_data_set_streams_back_with_its_sound(folder, stranger):
    clips = sorted((folder / "clips").glob("*.wav"))
    names = {"01": "neutral", "05": "angry"}
    assert sorted(stranger["clips"]) == sorted([path.stem[3:], names[path.name[6:8]], path.name] for path in clips)
    first = stranger["clips"][0][2]
    assert stranger["samples"] == soundfile.read(folder / "clips" / first, dtype="int16")[0].tolist()


def test_offline_it_loads_from_the_cache(hub, commits, home, stranger):
    asked = len(hub.requests)
    found = run(OFFLINE, [TASK, commits[0]], hub, home, HF_HUB_OFFLINE="1")
    assert found["scores"] == stranger["scores"] and found["pinned"] == stranger["pinned"]
    assert "couldn't find them in the cached files" in found["other"] and len(hub.requests) == asked


@pytest.fixture
def the_hub(hub, commits, tmp_path, monkeypatch):
    """The hub as the one that clients in this process ask when nothing else is said, with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=hub.url, token=ANN))
    return hub


def test_with_the_package_installed_no_trust_is_needed(the_hub, home, stranger):
    for trust in ({}, {"trust_remote_code": True}):
        assert type(AutoModel.from_pretrained("ann/voice", **trust)) is MMANForEmotionClassification
        assert type(AutoProcessor.from_pretrained("ann/voice", **trust)) is MerProcessor
    classify = pipeline(TASK, model="ann/voice", device="cpu")
    assert type(classify) is MultimodalEmotionRecognitionPipeline
    assert as_scores(classify(str(home.parent / "clip.wav"))) == {i["label"]: i["score"] for i in stranger["scores"]}


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_trainer_pushes_model_and_processor(the_hub, folder, tmp_path):
    processor, model = AutoProcessor.from_pretrained("ann/voice"), AutoModel.from_pretrained("ann/voice")
    arguments = TrainingArguments(
        str(tmp_path / "tuned"),
        max_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        push_to_hub=True,
        hub_model_id="ann/tuned",
        disable_tqdm=True,
    )
    clips = ClipDataset(scan(folder / "clips").rows[:4], processor, model.config.label2id, ("audio",))
    trainer = Trainer(model, arguments, EmotionCollator(), clips, processing_class=processor)
    trainer.train()
    trainer.push_to_hub()
    wanted = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    assert wanted <= set(HfApi(endpoint=the_hub.url).list_repo_files("ann/tuned"))
    again = AutoModel.from_pretrained("ann/tuned")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert type(AutoProcessor.from_pretrained("ann/tuned")) is MerProcessor


def test_a_damaged_download_is_found_by_its_hash_and_fetched_again(hub, commits, tmp_path):
    where = {"cache_dir": tmp_path, "endpoint": hub.url}
    hub.fail("GET", r"model\.safetensors", "corrupt")
    hub.fail("GET", r"config\.json", "corrupt")
    with pytest.raises(OSError, match=r"^config\.json, model\.safetensors of ann/voice arrived damaged.* once more$"):
        download_checkpoint("ann/voice", revision=commits[0], **where)
    folder = download_checkpoint("ann/voice", revision=commits[0], **where)
    assert folder.name == commits[0]
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == hub.repos["models", "ann/voice"].at(commits[0]).files[name].data
    before = len(hub.asked("GET", r"/resolve/"))
    assert download_checkpoint("ann/voice", revision=commits[0], **where) == folder
    assert len(hub.asked("GET", r"/resolve/")) == before  # from the cache, and checked again
    with pytest.raises(RevisionNotFoundError):
        download_checkpoint("ann/voice", revision="f" * 40, **where)
    api = HfApi(endpoint=hub.url, token=ANN)
    api.create_repo("ann/pickle")
    api.upload_file(path_or_fileobj=b"cos\nsystem", path_in_repo="pytorch_model.bin", repo_id="ann/pickle")
    with pytest.raises(ValueError, match="ann/pickle holds no safetensors; weights in other formats are not read"):
        download_checkpoint("ann/pickle", **where)
    assert not list(tmp_path.rglob("*.bin"))
