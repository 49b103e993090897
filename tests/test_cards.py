"""Cards: every number in them was measured, every licence is somebody's, and what is not known is said to be not."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from card_numbers import measured_in, numbers, section
from datasets import Dataset, DatasetInfo
from huggingface_hub import DatasetCard, ModelCard
from transformers import BertConfig

from mer_hf import (
    MODEL_CLASSES,
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    LateFusionForEmotionClassification,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    WordTableConfig,
    word_tokenizer,
)
from mer_hf.card_results import read_results
from mer_hf.cards import TEMPLATES, base_models, render_dataset_card, render_model_card
from mer_hf.data.schema import FEATURES, make_row, rows_to_table
from mer_hf.hub import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "hub_cards" / "results"
RAVDESS = RESULTS / "ravdess-emobox.json"
FOLD = 5


def tiny(name, labels, temperature):
    """A model of the kind that a results file calls `name`, with the right labels and temperature."""
    torch.manual_seed(0)
    common = {"id2label": dict(enumerate(labels)), "calibration_temperature": temperature}
    words = {"text_config": WordTableConfig(vocab_size=8, embedding_dim=4)}
    sound = {"audio_config": FilterbankConfig(conv_dims=(4, 4, 4))}
    if name == "cme":
        return CMEForEmotionClassification(CMEConfig(**sound, **words, vision_embed_dim=7, hidden_size=8, **common))
    if name == "learned_alignment":
        return LearnedAlignmentForEmotionClassification(
            LearnedAlignmentConfig(**sound, **words, hidden_size=4, **common)
        )
    if name == "mman":
        sizes = {"hidden_size": 4, "projection_size": 4, "classifier_size": 4}
        return MMANForEmotionClassification(MMANConfig(audio_embed_dim=6, vision_embed_dim=21, **sizes, **common))
    branches = {"voice": tiny("cme", labels, 0.5), "words": tiny("learned_alignment", labels, 1.5)}
    model = LateFusionForEmotionClassification.from_branches(branches)
    model.config.calibration_temperature = temperature
    return model


@pytest.fixture(scope="module")
def results():
    return json.loads(RAVDESS.read_text())


@pytest.fixture(scope="module")
def checkpoints(results, tmp_path_factory):
    """By name a checkpoint that says it is that of RAVDESS's fold 5, with the temperature measured there."""
    root = tmp_path_factory.mktemp("checkpoints")
    fold = next(fold for fold in results["protocol"]["folds"] if fold["fold"] == FOLD)
    trained = {"corpus": "ravdess", "protocol": "ravdess-emobox", "fold": FOLD, "sha256": fold["sha256"]}
    folders = {}
    for name in ("cme", "learned_alignment", "mman", "late_fusion"):
        own = [one for one in results["models"][name]["folds"] if one["fold"] == FOLD]
        model = tiny(name, results["corpus"]["labels"], own[0]["temperature"])
        processor = MerProcessor.default(tokenizer=word_tokenizer(["kids are talking"]))
        folders[name] = save_checkpoint(model, processor, root / name)
        (folders[name] / "trained_on.json").write_text(json.dumps(trained))
    return folders


def counted(model, results):
    """What the card counts itself, from lists of the file."""
    counts = [len(results["protocol"]["folds"]), len(model["seeds"]), len(model["by"]["speaker"])]
    return {str(count) for count in counts} | {"95", "15"}  # level and bins


@pytest.mark.parametrize("name", ["cme", "learned_alignment", "mman", "late_fusion"])
def test_every_number_of_the_results_was_measured(checkpoints, results, name):
    card = render_model_card(checkpoints[name], f"ann/{name}", [RAVDESS], picture=True)
    model = results["models"][name]
    text = section(card.text, "Results")
    assert numbers(text) <= measured_in(results["protocol"]) | measured_in(model) | counted(model, results)
    low, high = model["pooled"]["intervals"]["ua"]
    mean, pooled, deviation, over_seeds = (
        model[kind]["ua"] for kind in ("mean", "pooled", "deviation", "seed_deviation")
    )
    row = f"| UA | {mean:.3f} | {pooled:.3f} | {low:.3f} to {high:.3f} | {deviation:.3f} | {over_seeds:.3f} |"
    assert row in text
    for fold in results["protocol"]["folds"]:
        assert f"{fold['fold']} `{fold['sha256']}`" in text
    own = next(one for one in model["folds"] if one["fold"] == FOLD)
    assert f"fold {FOLD} and seed 0: WA {own['wa']:.3f}, UA {own['ua']:.3f}" in text
    for label, counts in zip(results["corpus"]["labels"], model["pooled"]["confusion"], strict=True):
        assert f"| {label} | {' | '.join(map(str, counts))} | {model['pooled']['recall'][label]:.3f} |" in text
    female = model["by"]["gender"]["female"]
    assert f"| gender female | {female['n']:,} | {female['wa']:.3f} | {female['ua']:.3f} |" in text
    assert "![" in text and "(confusion.png)" in text


def test_another_measurement_gives_another_card(checkpoints, results, tmp_path):
    changed = json.loads(json.dumps(results))
    model = changed["models"]["cme"]
    model["mean"]["wa"], model["pooled"]["intervals"]["wa"] = 0.123, [0.111, 0.134]
    model["pooled"]["recall"]["sad"] = None
    model["by"] = {}
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    card = render_model_card(checkpoints["cme"], "ann/cme", [tmp_path / "changed.json"])
    text = section(card.text, "Results")
    assert f"| WA | 0.123 | {model['pooled']['wa']:.3f} | 0.111 to 0.134 |" in text
    assert re.search(r"\| sad \|.*\| not measured \|", text) and "By group of people: not measured." in text
    assert card.data.eval_results[0].metric_value == 0.123 and "confusion.png" not in card.text


def test_without_results_nothing_is_claimed(checkpoints):
    card = render_model_card(checkpoints["cme"], "ann/cme")
    assert section(card.text, "Results").strip().startswith("Not measured") and not numbers(
        section(card.text, "Results")
    )
    assert card.data.eval_results is None and "model-index" not in str(card)


def test_metadata_are_those_the_hub_reads(checkpoints, results, tmp_path):
    render_model_card(checkpoints["cme"], "ann/cme-ravdess", [RAVDESS]).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"]) == ("cc-by-nc-sa-4.0", "transformers")
    assert (data["pipeline_tag"], data["datasets"], data["language"]) == ("audio-classification", ["ravdess"], "en")
    found = {one.metric_name: one for one in card.data.eval_results}
    model = results["models"]["cme"]
    assert {name: one.metric_value for name, one in found.items()} == {
        "WA": model["mean"]["wa"],
        "UA": model["mean"]["ua"],
        "macro F1": model["mean"]["macro_f1"],
        "weighted F1": model["mean"]["weighted_f1"],
    }
    assert found["WA"].metric_args == {"interval": model["pooled"]["intervals"]["wa"], "level": 0.95}
    assert found["UA"].dataset_args["protocol"] == "ravdess-emobox"
    assert found["UA"].dataset_args["sha256"]["fold 5"] == results["protocol"]["folds"][4]["sha256"]
    assert data["model-index"][0]["name"] == "cme-ravdess"
    call = 'pipeline("multimodal-emotion-recognition", model="ann/cme-ravdess", trust_remote_code=True)'
    assert call in section(card.text, "How to load it") and "vision_embeds` (time, 7)" in card.text
    assert "decisions about people" in card.text and "impressions" in card.text


def test_each_model_has_its_template_and_its_own_words(checkpoints):
    assert {f"{name}.md" for name in MODEL_CLASSES} <= {file.name for file in TEMPLATES.iterdir()}
    texts = {name: render_model_card(folder, "ann/a").text for name, folder in checkpoints.items()}
    papers = {
        "cme": "2010.12733",
        "learned_alignment": "1909.05645",
        "mman": "2009.04107",
        "late_fusion": "1706.04599",
    }
    for name, paper in papers.items():
        assert [other for other, text in texts.items() if f"arxiv.org/abs/{paper}" in text] == [name]
    assert "| voice | cme | audio, text, vision | 1.000 | 0.500 |" in texts["late_fusion"]
    assert "pocketsphinx" in texts["cme"] and "pocketsphinx" not in texts["mman"]
    assert "classify(audio_embeds=audio_embeds, vision_embeds=vision_embeds)" in texts["mman"]


def test_results_of_something_else_are_refused(checkpoints, results, tmp_path):
    cme = checkpoints["cme"]
    with pytest.raises(ValueError, match=r"has no model 'voice', only majority, .*cme.*model_name="):
        read_results(RAVDESS, cme, "voice")
    with pytest.raises(ValueError, match=r"no training of fold 5 .* has the checkpoint's temperature"):
        read_results(RAVDESS, cme, "mman")
    with pytest.raises(ValueError, match=r"trained for fold 5 \(\w{12}\) of ravdess-emobox, which is not among"):
        changed = json.loads(json.dumps(results))
        changed["protocol"]["folds"][4]["sha256"] = "0" * 64
        (tmp_path / "other.json").write_text(json.dumps(changed))
        read_results(tmp_path / "other.json", cme, "cme")
    with pytest.raises(ValueError, match=r"nothing \(trained_on\.json\) beside the checkpoint says"):
        (tmp_path / "config.json").write_text((cme / "config.json").read_text())
        read_results(RAVDESS, tmp_path, "cme")
    for other in ("alignment", "controlled-foundation", "ravdess-emobox-enrolled"):
        with pytest.raises(ValueError, match="neither a results file of"):
            read_results(RESULTS / f"{other}.json", cme, "cme")
    with pytest.raises(ValueError, match=r"broken\.json cannot be read as JSON"):
        (tmp_path / "broken.json").write_text("{")
        read_results(tmp_path / "broken.json", cme, "cme")
    changed = json.loads(json.dumps(results))
    changed["corpus"]["labels"].reverse()
    (tmp_path / "labels.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"about the labels \['surprised', .*\], the checkpoint's are \['neutral'"):
        read_results(tmp_path / "labels.json", cme, "cme")


def test_no_licence_is_assumed(tmp_path):
    model = tiny("cme", ["sad", "angry"], 1.0)
    folder = save_checkpoint(model, MerProcessor.default(tokenizer=word_tokenizer(["a"])), tmp_path / "own")
    with pytest.raises(ValueError, match="license: nothing says what the checkpoint was made from; name one"):
        render_model_card(folder, "ann/own")
    card = render_model_card(folder, "ann/own", license="cc-by-4.0", datasets=["ann/clips"])
    assert (card.data.license, card.data.datasets, card.data.language) == ("cc-by-4.0", ["ann/clips"], None)
    assert "| trained on | not stated |" in card.text and "| calibration | none |" in card.text
    trained = {"corpus": "iemocap", "protocol": "iemocap-4class-loso", "fold": 1, "sha256": "0" * 64}
    (folder / "trained_on.json").write_text(json.dumps(trained))
    with pytest.raises(ValueError, match="license: iemocap has none that the Hub knows; name one"):
        render_model_card(folder, "ann/own")


def test_base_models_are_repositories_and_not_folders_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    names = ["facebook/wav2vec2-base", str(tmp_path / "bert"), "models/mine", "bert-base-uncased", "", "./x"]
    texts = [BertConfig(_name_or_path=name).to_dict() for name in names]
    found = [base_models({"audio_config": None, "text_config": text}) for text in texts]
    assert found == [["facebook/wav2vec2-base"], [], [], ["bert-base-uncased"], [], []]
    branches = [{"text_config": texts[0]}, {"vision_config": texts[3], "text_config": texts[0]}]
    assert base_models({"branches": branches}) == ["facebook/wav2vec2-base", "bert-base-uncased"]


def test_a_data_sets_card_counts_what_is_in_it():
    rows = [make_row(id=str(i), corpus="meld", text="hi", speaker=f"s{i % 2}", label="sad") for i in range(3)]
    rows.append(make_row(id="3", corpus="meld", text="ho", video="clip.mp4"))
    part = Dataset(rows_to_table(rows).cast(FEATURES.arrow_schema))
    info = DatasetInfo(description="Dialogues", license="GPL-3.0 (annotations)", citation="Poria et al.")
    parts, skipped = {"train": part, "test": part}, {"zero bytes": 2}
    card = render_dataset_card(parts, info, "ann/meld", with_media=True, skipped=skipped)
    again = DatasetCard(str(card))
    assert again.data.to_dict()["license"] == "gpl-3.0" and again.data.size_categories == "n<1K"
    assert again.data.configs[0]["data_files"][1] == {"split": "test", "path": "data/test-*.parquet"}
    assert "| test | 4 | 0 | 1 | 4 | 0 |" in card.text and "2 speakers" in card.text
    assert "None 2, sad 6." in card.text and "2 zero bytes." in card.text
    without = render_dataset_card(parts, info, "ann/meld")
    assert "are not inside" in without.text and "| test | 4 | 0 | 0 | 4 | 0 |" in without.text
    assert "Sound and pictures are inside" in card.text and 'load_dataset("ann/meld", split="train"' in card.text
    with pytest.raises(ValueError, match="license: nothing says"):
        mixed = [row | {"corpus": corpus} for row, corpus in zip(rows, ("a", "b", "a", "b"), strict=True)]
        render_dataset_card({"train": Dataset(rows_to_table(mixed))}, info, "ann/mixed")


def test_the_templates_are_in_the_wheel_and_found_there(tmp_path):
    tree, unpacked = tmp_path / "tree", tmp_path / "unpacked"
    for name in ("mer_hf", "hub_cards"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", tmp_path, tree], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("mer_hf-*.whl"))) as wheel:
        held = set(wheel.namelist())
        wheel.extractall(unpacked)
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mer_hf").rglob("*.py")}
    templates = {f"mer_hf/hub_cards/{path.name}" for path in (ROOT / "hub_cards").glob("*.md")}
    assert code | templates <= held
    shutil.rmtree(tree)
    spec = importlib.util.spec_from_file_location("mer_hf.cards_in_the_wheel", unpacked / "mer_hf" / "cards.py")
    cards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cards)
    assert cards.TEMPLATES == unpacked / "mer_hf" / "hub_cards"
    part = Dataset(rows_to_table([make_row(id="1", corpus="meld", text="hi", label="sad")]))
    assert "# MELD" in cards.render_dataset_card({"train": part}, DatasetInfo(), "ann/meld").text
