"""From records to results: means over seeds, calibration, breakdowns, pairs; each against a plain recount."""

import json

import numpy as np
import pytest

from mer_hf.corpora import Corpus
from mer_hf.data.named_protocols import PROTOCOLS, Protocol
from mer_hf.data.protocols import FoldSplit
from mer_hf.data.schema import make_row
from mer_hf.evaluation import expected_calibration_error
from mer_hf.intervals import paired_difference
from mer_hf.models.modeling_late_fusion import fuse_logits
from mer_hf.reporting import OPTIMISTIC, logits_of, plot_results, report_text, results_table, summarize

LABELS = ["neutral", "angry"]
SPEAKERS = "abcd"


@pytest.fixture(scope="module")
def corpus():
    rows = [
        make_row(
            id=f"{speaker}{clip}",
            corpus="own",
            speaker=speaker,
            gender="female" if speaker in "ab" else "male",
            text="so",
            label=LABELS[clip % 2],
        )
        for speaker in SPEAKERS
        for clip in range(6)
    ]
    ids = {speaker: tuple(row["id"] for row in rows if row["speaker"] == speaker) for speaker in SPEAKERS}
    splits = [
        FoldSplit("own", fold, ids[train], ids[validation], ids[one] + ids[other])
        for fold, (train, validation, one, other) in enumerate(["cdab", "abcd"], 1)
    ]
    return Corpus("own", rows, splits, LABELS, protocol=PROTOCOLS["speakers-5fold"])


def make_record(corpus, model, seed, fold, accuracy, chosen_on="validation", scale=1.0):
    rng = np.random.default_rng([seed, fold, len(model), int(100 * accuracy)])
    test = corpus.splits[fold - 1].test
    labels = np.array([corpus.label2id[corpus.by_id[i]["label"]] for i in test])
    predictions = np.where(rng.random(len(test)) < accuracy, labels, 1 - labels)
    logits = scale * (np.eye(2)[predictions] + rng.random((len(test), 2)) / 10)
    hits = labels == predictions
    recalls = [hits[labels == k].mean() for k in (0, 1)]
    return {
        "origin": {
            "model": model,
            "seed": seed,
            "fold": fold,
            "chosen_on": chosen_on,
            "parameters": None,
            "settings": None,
            "config": {},
        },
        "chosen": {"validation_wa": accuracy},
        "scores": {"wa": hits.mean(), "ua": np.mean(recalls), "macro_f1": 0.5, "weighted_f1": 0.5},
        "temperature": 0.5 * scale,
        "labels": labels.tolist(),
        "predictions": predictions.tolist(),
        "groups": [corpus.by_id[i]["speaker"] for i in test],
        "logits": logits.tolist(),
        "validation": {"labels": [0], "logits": [[1.0, None]]},
        "seconds": 1.0,
        "cpu_seconds": 2.0,
        "processes": 1,
    }


@pytest.fixture(scope="module")
def records(corpus):
    places = [(seed, fold) for seed in (0, 1, 2) for fold in (1, 2)]
    good = [make_record(corpus, "good", *place, 0.9) for place in places]
    poor = [make_record(corpus, "poor", *place, 0.5, scale=3.0) for place in places]
    best = [make_record(corpus, "good", *place, 1.0, "test") for place in places]
    return good + poor + best


@pytest.fixture(scope="module")
def results(corpus, records):
    return json.loads(json.dumps(summarize(corpus, corpus.splits, records)))


def of(records, model, chosen_on="validation"):
    return [r for r in records if (r["origin"]["model"], r["origin"]["chosen_on"]) == (model, chosen_on)]


def test_means_are_over_seeds_of_means_over_folds(results, records):
    own = of(records, "good")
    by_seed = [np.mean([r["scores"]["wa"] for r in own if r["origin"]["seed"] == seed]) for seed in range(3)]
    model = results["models"]["good"]
    assert model["mean"]["wa"] == pytest.approx(np.mean(by_seed))
    assert [model["seeds"][str(seed)]["wa"] for seed in range(3)] == pytest.approx(by_seed)
    assert model["seed_deviation"]["wa"] == pytest.approx(np.std(by_seed, ddof=1))


def test_pairs_are_of_the_same_clips(results, records):
    def hits(model):
        return np.concatenate([np.equal(r["labels"], r["predictions"]) for r in of(records, model)])

    groups = np.concatenate([r["groups"] for r in of(records, "good")])
    expected = paired_difference(hits("good"), hits("poor"), groups)._asdict()
    assert results["models"]["good"]["wa_minus"] == {"poor": pytest.approx(expected)}
    assert expected["low"] > 0, "the planted difference is beyond chance"
    assert results["models"]["poor"]["wa_minus"]["good"]["estimate"] == pytest.approx(-expected["estimate"])


def test_the_table_holds_models_against_regressions_or_the_first(corpus, records, results):
    lines = results_table(results).splitlines()
    assert "wa - good" in lines[0] and "wa - poor" not in lines[0]
    gap = results["models"]["poor"]["wa_minus"]["good"]
    assert f"{gap['estimate']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})" in lines[3]
    floor = [make_record(corpus, "lr_audio", seed, fold, 0.7) for seed in (0, 1, 2) for fold in (1, 2)]
    header = results_table(summarize(corpus, corpus.splits, records + floor)).splitlines()[0]
    assert "wa - lr_audio" in header and "wa - good" not in header and "wa - lr_both" not in header


def test_models_that_ran_elsewhere_are_not_compared(corpus, records):
    shorter = [r for r in records if r["origin"]["model"] == "good" or r["origin"]["seed"] == 0]
    assert summarize(corpus, corpus.splits, shorter)["models"]["good"]["wa_minus"] == {}


def test_each_record_is_calibrated_by_its_own_temperature(results, records):
    own = of(records, "poor")
    labels = np.concatenate([r["labels"] for r in own])

    def ece(temperature_of):
        scaled = np.concatenate([np.array(r["logits"]) / temperature_of(r) for r in own])
        shares = np.exp(scaled - scaled.max(1, keepdims=True))
        return expected_calibration_error(shares / shares.sum(1, keepdims=True), labels)

    found = results["models"]["poor"]["calibration"]
    assert found["before"]["ece"] == pytest.approx(ece(lambda r: 1.0))
    assert found["after"]["ece"] == pytest.approx(ece(lambda r: r["temperature"]))
    assert found["before"]["ece"] != found["after"]["ece"]


def test_groups_are_scored_apart(results, records):
    own = of(records, "good")
    hits = np.concatenate([np.equal(r["labels"], r["predictions"]) for r in own])
    speakers = np.concatenate([r["groups"] for r in own])
    by = results["models"]["good"]["by"]
    assert by["gender"]["female"]["wa"] == pytest.approx(hits[np.isin(speakers, ["a", "b"])].mean())
    assert by["gender"]["male"]["n"] == 36 and set(by) == {"gender", "speaker"}
    assert by["speaker"]["c"]["wa"] == pytest.approx(hits[speakers == "c"].mean())


def test_what_was_chosen_on_the_test_stands_beside_and_goes_into_nothing(corpus, results, records):
    honest = summarize(corpus, corpus.splits, [r for r in records if r["origin"]["chosen_on"] == "validation"])
    with_paper = results["models"]["good"]
    assert with_paper[OPTIMISTIC]["mean"]["wa"] == 1.0 > with_paper["mean"]["wa"]
    for model in with_paper, results["models"]["poor"]:
        model = {name: value for name, value in model.items() if name != OPTIMISTIC}
        assert model in json.loads(json.dumps(list(honest["models"].values())))
    assert "wa chosen on test" in results_table(results) and "wa chosen on test" not in results_table(honest)
    assert "is not a result" in report_text(results) and "is not a result" not in report_text(honest)


def test_the_report_says_how_it_was_evaluated(results):
    text = report_text(results)
    assert "Apart on the sides of every fold: speaker." in text and "6/6/12, 6/6/12" in text
    assert results["protocol"]["folds"][0]["sha256"][:12] in text
    assert "| gender female | 36 |" in text and "| lowest speaker | – |" in text
    assert "bootstrap over speakers" in text


def test_the_picture_is_drawn(results, tmp_path):
    plot_results(results, tmp_path / "new" / "results.png")
    assert (tmp_path / "new" / "results.png").read_bytes()[:4] == b"\x89PNG"


def test_impossible_classes_survive_the_file():
    assert logits_of({"logits": [[0.5, None]]}).tolist() == [[0.5, -np.inf]]


def test_intervals_resample_what_the_protocol_keeps_apart(corpus):
    def cluster(protocol, **values):
        rows = [row | values for row in corpus.rows]
        return Corpus("own", rows, corpus.splits, LABELS, protocol=protocol).cluster

    recurring = Protocol("own", "dialogue_id", lambda rows: [], "")
    assert cluster(recurring) == "dialogue_id"
    assert cluster(PROTOCOLS["iemocap-4class-loso"]) == "speaker"  # a session has two
    assert cluster(PROTOCOLS["official-rows"], speaker=None) == "id"
    assert cluster(None) == "speaker"


def test_fusion_weighs_a_branch_by_its_temperature():
    unsure, sure = np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])
    fused = fuse_logits(np.stack([unsure, sure]), [100.0, 0.5]).numpy()
    assert fused.argmax(-1).tolist() == [1] and fuse_logits(np.stack([unsure, sure]), [1.0, 1.0]).argmax(-1) == 0
