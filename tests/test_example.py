"""README's example of fine-tuning: what it shows is the file, and the file runs."""

import csv
import re
import warnings
from pathlib import Path

import pytest
import torch
from example_fine_tuning import main
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast, Wav2Vec2Config, Wav2Vec2Model
from transformers import Wav2Vec2FeatureExtractor as FeatureExtractor

ROOT = Path(__file__).resolve().parents[1]
STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
EMOTIONS = {"01": "neutral", "05": "angry"}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"kids are talk ##ing by the door dogs sitt".split()]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_readme_shows_the_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- example -->\n```python\n(.*?)```\n<!-- /example -->", readme, re.DOTALL)
    assert blocks == [(ROOT / "tests" / "example_fine_tuning.py").read_text(encoding="utf-8")]


def test_the_file_is_short_enough_to_be_read():
    assert len((ROOT / "tests" / "example_fine_tuning.py").read_text().splitlines()) <= 45


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Folders of a wav2vec2 and of a BERT, tiny and untrained."""
    torch.manual_seed(0)
    audio, text = tmp_path_factory.mktemp("wav2vec2"), tmp_path_factory.mktemp("bert")
    convolutions = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on building a wav2vec2
        Wav2Vec2Model(Wav2Vec2Config(**TINY, **convolutions)).save_pretrained(audio)
    FeatureExtractor().save_pretrained(audio)
    BertModel(BertConfig(**TINY, vocab_size=len(PIECES))).save_pretrained(text)
    BertTokenizerFast(vocab={piece: i for i, piece in enumerate(PIECES)}).save_pretrained(text)
    return audio, text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # the stock arguments, without a GPU
def test_the_file_runs_on_real_clips(backbones, ravdess_dir, tmp_path, capsys):
    clips = [
        (ravdess_dir / f"Actor_{actor:02}" / f"03-01-{emotion}-01-{statement}-01-{actor:02}.wav", statement, emotion)
        for actor in (1, 2, 3)
        for emotion in EMOTIONS
        for statement in STATEMENTS
    ]
    with open(tmp_path / "clips.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "text", "label", "split"])
        for index, (path, statement, emotion) in enumerate(clips):
            text = "" if index == 1 else STATEMENTS[statement]  # one clip without a transcript
            table.writerow([path, text, EMOTIONS[emotion], "train" if index < 8 else "validation"])
    audio, text = map(str, backbones)
    output = tmp_path / "run"
    found = main(tmp_path / "clips.csv", str(output), audio, text, epochs=1)
    assert {item["label"] for item in found} == {"neutral", "angry"}
    assert sum(item["score"] for item in found) == pytest.approx(1)

    model = AutoModel.from_pretrained(output / "model")
    assert model.config.id2label == {0: "angry", 1: "neutral"} and model.untrained_keys == ()
    start = Wav2Vec2Model.from_pretrained(audio).state_dict()
    moved = {name for name, value in model.audio_model.state_dict().items() if not torch.equal(value, start[name])}
    assert moved, "the backbone was not trained"
    assert "'eval_wa'" in capsys.readouterr().out, "validation was not scored"
