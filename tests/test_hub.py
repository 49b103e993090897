"""Checkpoints that carry their code: loaded by this package without trust, and without it with trust alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoProcessor,
    BertConfig,
    BertTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    Wav2Vec2Config,
    pipeline,
)

from mer_hf import (
    TASK,
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    FilterbankStatisticsConfig,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    MultimodalEmotionRecognitionPipeline,
    SpectrogramConfig,
    WordTableConfig,
    word_tokenizer,
)
from mer_hf.hub import save_checkpoint

RATE = 16_000
WORDS = [
    {"word": word, "start": 0.12 * i, "end": 0.12 * (i + 1)}
    for i, word in enumerate("kids are talking by the door".split())
]
TEXT = " ".join(word["word"] for word in WORDS)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kid", "##s", "are", "talk", "##ing", "by", "the", "door"]
LAYER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TABLE = {"vocab_size": 8, "embedding_dim": 6}
SHARED_CODE = {
    *("alignment.py", "backbones.py", "batching.py", "configuration_front_ends.py", "configuration_mer.py"),
    *("front_ends.py", "layers.py", "media.py", "media_files.py", "modeling_mer.py", "pipeline_mer.py"),
    *("processing_mer.py", "speakers.py", "spectral_augmentation.py"),
}
OTHER_FILES = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}


def make_models():
    torch.manual_seed(0)
    tables = {"text_config": WordTableConfig(**TABLE)}
    return {
        "cme": CMEForEmotionClassification(
            CMEConfig(
                audio_config=FilterbankConfig(conv_dims=(8, 8, 8)),
                text_config=WordTableConfig(**TABLE, gate_dim=16),
                hidden_size=16,
            )
        ),
        "learned_alignment": LearnedAlignmentForEmotionClassification(
            LearnedAlignmentConfig(audio_config=SpectrogramConfig(hidden_size=8), **tables, hidden_size=4)
        ),
        "mman": MMANForEmotionClassification(
            MMANConfig(
                audio_config=FilterbankStatisticsConfig(num_mel_bins=8),
                **tables,
                hidden_size=8,
                projection_size=6,
                classifier_size=8,
            )
        ),
        "transformers_backbones": CMEForEmotionClassification(
            CMEConfig(
                audio_config=Wav2Vec2Config(
                    **LAYER, conv_dim=(8,) * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2
                ),
                text_config=BertConfig(**LAYER, vocab_size=len(PIECES)),
                vision_config=ViTConfig(**LAYER, image_size=8, patch_size=4),
                hidden_size=8,
                id2label={0: "calm", 1: "surprised"},
            )
        ),
    }


def make_processor(name):
    tokenizer = word_tokenizer([TEXT])
    if name == "transformers_backbones":
        tokenizer = BertTokenizerFast(vocab={piece: index for index, piece in enumerate(PIECES)})
    images = ViTImageProcessor(size={"height": 8, "width": 8})
    return MerProcessor.default(tokenizer=tokenizer, image_processor=images, num_frames=3)


@pytest.fixture(scope="module")
def models():
    return {name: model.eval() for name, model in make_models().items()}


@pytest.fixture(scope="module")
def checkpoints(models, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save_checkpoint(model, make_processor(name), root / name) for name, model in models.items()}


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.wav"
    samples = np.random.default_rng(0).standard_normal(int(0.8 * RATE)) * 3000
    soundfile.write(path, samples.astype(np.int16), RATE)
    return path


LOAD_WITHOUT_THE_PACKAGE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mer_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import soundfile, torch
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoProcessor, pipeline

task, wav, words, folders = json.loads(sys.argv[1])
torch.set_num_threads(1)
found = {}
for name, folder in folders.items():
    trusted = {"trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(folder, **trusted)
    inputs = processor(audio=[soundfile.read(wav, dtype="float32")[0]], words=[words])
    models = [auto.from_pretrained(folder, **trusted).eval() for auto in (AutoModel, AutoModelForAudioClassification)]
    pipe = pipeline(task, model=folder, device="cpu", **trusted)
    found[name] = {
        "config": type(AutoConfig.from_pretrained(folder, **trusted)).__name__,
        "modules": [type(one).__module__.split(".")[0] for one in (*models, processor, pipe)],
        "logits": [model(**inputs).logits.tolist() for model in models],
        "scores": pipe(wav, words=words),
        "num_frames": pipe.processor.num_frames,
    }
print(json.dumps({"found": found, "mer_hf": "mer_hf" in sys.modules}))
"""


@pytest.fixture(scope="module")
def without_the_package(checkpoints, wav, tmp_path_factory):
    """What a process finds in which `mer_hf` cannot be imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    arguments = json.dumps([TASK, str(wav), WORDS, {name: str(path) for name, path in checkpoints.items()}])
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", LOAD_WITHOUT_THE_PACKAGE, arguments],
        cwd=folder,
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["mer_hf"] is False
    return answer["found"]


NAMES = ("cme", "learned_alignment", "mman", "transformers_backbones")


@pytest.mark.parametrize("name", NAMES)
def test_code_of_the_checkpoint_gives_the_same_scores_without_the_package(
    models, checkpoints, without_the_package, wav, name
):
    found = without_the_package[name]
    assert found["modules"] == ["transformers_modules"] * 4
    assert found["config"] == type(models[name].config).__name__
    assert found["num_frames"] == 3
    inputs = make_processor(name)(audio=[soundfile.read(wav, dtype="float32")[0]], words=[WORDS])
    with torch.no_grad():
        expected = models[name](**inputs).logits
    for logits in found["logits"]:
        assert torch.allclose(torch.tensor(logits), expected, atol=1e-6)
    probabilities = dict(zip(models[name].config.id2label.values(), expected[0].softmax(-1).tolist(), strict=True))
    assert {item["label"]: item["score"] for item in found["scores"]} == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_package_needs_no_trust(models, checkpoints, without_the_package, wav, name):
    folder = str(checkpoints[name])
    assert type(AutoConfig.from_pretrained(folder)) is type(models[name].config)
    for trust in (False, True):  # the installed class either way: isinstance must hold
        for auto in (AutoModel, AutoModelForAudioClassification):
            assert type(auto.from_pretrained(folder, trust_remote_code=trust)) is type(models[name])
        assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=trust)) is MerProcessor
    pipe = pipeline(TASK, model=folder, device="cpu")
    assert type(pipe) is MultimodalEmotionRecognitionPipeline
    for one, other in zip(pipe(wav, words=WORDS), without_the_package[name]["scores"], strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)


def test_only_the_code_that_is_needed_is_copied(checkpoints):
    papers = dict.fromkeys(NAMES[:3]) | {"transformers_backbones": "cme"}
    for name, paper in papers.items():
        own = {f"configuration_{paper or name}.py", f"modeling_{paper or name}.py"}
        assert {file.name for file in checkpoints[name].iterdir()} == SHARED_CODE | OTHER_FILES | own


def test_saving_with_code_leaves_no_trace_in_memory(models, checkpoints, tmp_path):
    for model in models.values():
        assert not {"auto_map", "custom_pipelines"} & set(model.config.to_dict())
    models["cme"].save_pretrained(tmp_path)
    make_processor("cme").save_pretrained(tmp_path)
    assert_no_code(tmp_path)


def test_no_trace_is_left_when_saving_fails(models, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(models["mman"]), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(models["mman"], make_processor("mman"), tmp_path)
    assert not {"auto_map", "custom_pipelines"} & set(models["mman"].config.to_dict())


def test_what_was_loaded_from_a_checkpoint_with_code_is_saved_plainly(checkpoints, tmp_path):
    """Its configuration must not name code that lies in another folder."""
    AutoModel.from_pretrained(checkpoints["cme"]).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(checkpoints["cme"]).save_pretrained(tmp_path)
    assert_no_code(tmp_path)


def assert_no_code(folder):
    assert {file.name for file in folder.iterdir()} == OTHER_FILES
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert not {"auto_map", "custom_pipelines"} & set(json.loads((folder / name).read_text()))


def test_a_checkpoint_is_saved_again_with_its_code(checkpoints, tmp_path):
    model = AutoModel.from_pretrained(checkpoints["mman"])
    again = save_checkpoint(model, AutoProcessor.from_pretrained(checkpoints["mman"]), tmp_path / "a" / "b")
    assert {file.name for file in again.iterdir()} == {file.name for file in checkpoints["mman"].iterdir()}
    for name in ("processor_config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (checkpoints["mman"] / name).read_bytes(), name
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (checkpoints["mman"], again))
    assert [first[key] for key in ("auto_map", "custom_pipelines")] == [
        second[key] for key in ("auto_map", "custom_pipelines")
    ]


def test_untrained_weights_and_files_in_the_way_are_refused(models, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        save_checkpoint(models["cme"], make_processor("cme"), in_the_way)
    headless = make_models()["cme"]
    headless.untrained_keys = ("classifier.bias", "classifier.weight")
    with pytest.raises(ValueError, match=r"2 weights \(classifier\.bias, \.\.\.\) were never trained"):
        save_checkpoint(headless, make_processor("cme"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
