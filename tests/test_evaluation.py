"""Scores against scikit-learn and against answers worked out by hand; intervals against what they promise."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as sk

from mer_hf.evaluation import (
    compute_metrics,
    confusion_matrix,
    emotion_metrics,
    evaluation_report,
    expected_calibration_error,
    format_table,
    metric_intervals,
    unweighted_accuracy,
    weighted_accuracy,
)
from mer_hf.intervals import Interval, bootstrap_interval, format_gap, paired_difference, paired_gap

# 4 of class 0 (3 right, 1 called 1), 2 of class 1 (1 right, 1 called 2), none of class 2.
LABELS = [0, 0, 0, 0, 1, 1]
PREDICTIONS = [0, 0, 0, 1, 1, 2]


def test_scores_worked_out_by_hand():
    scores = emotion_metrics(LABELS, PREDICTIONS, 3)
    assert scores["wa"] == pytest.approx(4 / 6)
    assert scores["ua"] == pytest.approx(
        (3 / 4 + 1 / 2) / 2
    )  # class 2 is absent from the references: not a recall of 0
    # F1: 2*3/(4+3) = 6/7, 2*1/(2+2) = 1/2, and 0 for class 2, which was predicted
    assert scores["macro_f1"] == pytest.approx((6 / 7 + 1 / 2 + 0) / 3)
    assert scores["weighted_f1"] == pytest.approx((4 * 6 / 7 + 2 * 1 / 2) / 6)


def test_confusion_rows_are_references():
    assert confusion_matrix(LABELS, PREDICTIONS, 3).tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.filterwarnings(
    "ignore:y_pred contains classes not in y_true:UserWarning"
)  # scikit-learn's on the same data
@pytest.mark.parametrize("seed", range(20))
def test_scores_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    classes, size = int(rng.integers(2, 9)), int(rng.integers(1, 60))  # small sizes leave classes out
    labels, predictions = rng.integers(classes, size=(2, size))
    scores = emotion_metrics(labels, predictions, classes)
    assert scores["wa"] == pytest.approx(sk.accuracy_score(labels, predictions))
    present = sk.recall_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0)
    assert scores["ua"] == pytest.approx(present)
    if len(np.unique(labels)) > 1:
        assert scores["ua"] == pytest.approx(sk.balanced_accuracy_score(labels, predictions))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="macro"))
    assert scores["weighted_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="weighted"))
    expected = sk.confusion_matrix(labels, predictions, labels=range(classes))
    assert (confusion_matrix(labels, predictions, classes) == expected).all()


def test_padding_is_ignored_whatever_was_predicted_there():
    padded = emotion_metrics([[0, 0, 0], [0, 1, 1], [-100, -100, -100]], [[0, 0, 0], [1, 1, 2], [7, -100, 0]], 3)
    assert padded == emotion_metrics(LABELS, PREDICTIONS, 3)


@pytest.mark.parametrize(
    ("labels", "predictions", "match"),
    [
        ([0, 1], [0], "shape"),
        ([], [], "no labelled item"),
        ([-100, -100], [0, 1], "no labelled item"),
        ([0, 3], [0, 0], r"labels hold 3, which is not in \[0, 3\)"),
        ([0, -1], [0, 0], "labels hold -1"),
        ([0, 1], [0, 3], "predictions hold 3"),
        ([0, 1], [0.0, 1.0], "predictions must be integer"),
    ],
)
def test_bad_ids_are_refused(labels, predictions, match):
    with pytest.raises(ValueError, match=match):
        emotion_metrics(labels, predictions, 3)


# compute_metrics


def one_hot(ids, classes=3):
    return np.eye(classes)[np.array(ids)]


def trainer_output(predictions, label_ids):
    return SimpleNamespace(predictions=predictions, label_ids=label_ids)


def test_compute_metrics_of_utterances_and_of_output_tuples():
    expected = emotion_metrics(LABELS, PREDICTIONS, 3)
    assert compute_metrics(trainer_output(one_hot(PREDICTIONS), np.array(LABELS))) == expected
    assert compute_metrics(trainer_output((one_hot(PREDICTIONS), np.zeros(6)), np.array(LABELS))) == expected


def test_compute_metrics_of_dialogues_that_trainer_padded():
    logits = np.full((2, 4, 3), -100.0)  # Trainer pads logits with -100 as well
    logits[0], logits[1, :2] = one_hot([0, 0, 0, 1]), one_hot([1, 2])
    labels = np.array([[0, 0, 0, 0], [1, 1, -100, -100]])
    assert compute_metrics(trainer_output(logits, labels)) == emotion_metrics(LABELS, PREDICTIONS, 3)


def test_compute_metrics_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="NaN"):
        compute_metrics(trainer_output(np.full((2, 3), np.nan), np.array([0, 1])))
    with pytest.raises(ValueError, match=r"\(2, 3\) do not fit labels of shape \(3,\)"):
        compute_metrics(trainer_output(np.zeros((2, 3)), np.array([0, 1, 2])))
    with pytest.raises(ValueError, match="label_ids"):
        compute_metrics(trainer_output(np.zeros((2, 3)), None))


# Intervals


def test_bootstrap_of_two_groups_takes_the_three_possible_values():
    """Group a: 1 of 1 right, group b: 0 of 3. Resamples are aa (WA 1), ab (1/4), bb (0): quarters and a half."""
    interval = metric_intervals([0, 0, 0, 0], [0, 1, 1, 1], ["a", "b", "b", "b"], 2, level=0.9)["wa"]
    assert interval == Interval(estimate=0.25, low=0.0, high=1.0)
    narrow = metric_intervals([0, 0, 0, 0], [0, 1, 1, 1], ["a", "b", "b", "b"], 2, level=0.3)["wa"]
    assert narrow == Interval(0.25, 0.25, 0.25)  # the middle 30 % lie inside the half that is ab


def naive_bootstrap(labels, predictions, groups, score, resamples, seed):
    """The same draws, with the items of each resample written out and scored by scikit-learn."""
    names = list(dict.fromkeys(groups))
    draws = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=resamples)
    items = {name: np.flatnonzero(groups == name) for name in names}
    values = []
    for draw in draws:
        chosen = np.concatenate([np.tile(items[n], k) for n, k in zip(names, draw, strict=True)]).astype(int)
        values.append(score(labels[chosen], predictions[chosen]))
    return np.quantile(values, [0.025, 0.975])


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")  # scikit-learn's, in resamples
def test_bootstrap_equals_scoring_the_resampled_items_one_by_one():
    rng = np.random.default_rng(3)
    labels, groups = rng.integers(4, size=120), rng.permutation(np.repeat([f"s{k}" for k in range(8)], 15))
    predictions = np.where(rng.random(120) < 0.6, labels, rng.integers(4, size=120))
    found = metric_intervals(labels, predictions, groups, 4, resamples=100, seed=5)
    scores = {"wa": sk.accuracy_score, "ua": sk.balanced_accuracy_score}
    for name, score in scores.items():
        expected = naive_bootstrap(labels, predictions, groups, score, 100, 5)
        assert [found[name].low, found[name].high] == pytest.approx(expected)
        assert found[name].estimate == pytest.approx(score(labels, predictions))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """24 speakers whose own accuracies vary about 0.6: 95 % intervals hold 0.6 in 88 to 99 of 100 worlds."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        ability = rng.normal(0.6, 0.1, size=24)
        hits = rng.binomial(60, ability)
        counts = np.stack([hits, np.full(24, 60)], axis=1)
        interval = bootstrap_interval(lambda sums: sums[:, 0] / sums[:, 1], counts, resamples=400)
        covered += interval.low <= 0.6 <= interval.high
    assert 176 <= covered <= 198


def test_resampling_speakers_is_wider_than_resampling_items_when_speakers_differ():
    labels = np.zeros(400, int)
    predictions = np.repeat([0, 1] * 5, 40)  # ten speakers, each wholly right or wholly wrong
    by_speaker = metric_intervals(labels, predictions, np.repeat(np.arange(10), 40), 2)["wa"]
    by_item = metric_intervals(labels, predictions, np.arange(400), 2)["wa"]
    assert by_speaker.high - by_speaker.low > 3 * (by_item.high - by_item.low)


def test_2000_resamples_of_2000_items_are_no_loop():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(8, size=(2, 2000))
    counts = np.zeros((2000, 8, 8))
    counts[np.arange(2000), labels, predictions] = 1  # the worst case: every item its own group
    start = time.process_time()
    for score in (weighted_accuracy, unweighted_accuracy):
        bootstrap_interval(score, counts)
    assert time.process_time() - start < 2  # 0.8 s when measured; a loop that scores each resample takes several


def test_interval_depends_on_the_seed_alone():
    rng = np.random.default_rng(1)
    data = (*rng.integers(4, size=(2, 200)), np.repeat(np.arange(20), 10), 4)
    assert metric_intervals(*data, seed=1) == metric_intervals(*data, seed=1)
    assert metric_intervals(*data, seed=1) != metric_intervals(*data, seed=2)


@pytest.mark.parametrize(
    ("groups", "options", "match"),
    [
        (["a", "a"], {}, "at least 2 groups"),
        (["a"], {}, "groups have shape"),
        (["a", None], {}, "None"),
        (["a", "b"], {"level": 1.0}, "level"),
        (["a", "b"], {"resamples": 0}, "resamples"),
    ],
)
def test_intervals_refuse_what_they_cannot_resample(groups, options, match):
    with pytest.raises(ValueError, match=match):
        metric_intervals([0, 1], [0, 1], groups, 2, **options)


def test_paired_difference_worked_out_by_hand():
    """Speaker a: A right twice, B once; speaker b: the same. Every resample has a difference of 2/4."""
    assert paired_difference([1, 1, 1, 1], [1, 0, 0, 1], ["a", "a", "b", "b"]) == Interval(0.5, 0.5, 0.5)


def test_paired_difference_has_a_sign_and_sees_pairs():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(20), 30)
    easy = rng.random(600) < np.repeat(rng.uniform(0.1, 0.9, 20), 30)  # speakers differ far more than the models
    better = easy | (rng.random(600) < 0.08)
    gain = paired_difference(better, easy, speakers)
    assert gain.estimate == pytest.approx(better.mean() - easy.mean())
    assert 0 < gain.low < gain.estimate < gain.high < 0.1
    loss = paired_difference(easy, better, speakers)
    assert (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low))


@pytest.mark.parametrize(
    ("a", "b", "groups", "match"),
    [
        ([1, 0], [1], ["x", "y"], "of one length"),
        ([1, 0], [1, 0], ["x"], "of one length"),
        ([1, 0], [1, 2], ["x", "y"], "True and False"),
        ([1, 0], [1, 0], ["x", "x"], "at least 2 groups"),
        ([], [], [], "at least 2 groups"),
    ],
)
def test_paired_difference_refuses_misaligned_models(a, b, groups, match):
    with pytest.raises(ValueError, match=match):
        paired_difference(a, b, groups)


# Calibration


def test_calibration_error_worked_out_by_hand():
    """Bins of width 1/2. (0.5, 1]: confidences .9 .7 .8, two of three right: |2 - 2.4|. (0, 0.5]: .5, right: 0.5."""
    probabilities = [[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.2, 0.0, 0.8], [0.5, 0.3, 0.2]]
    assert expected_calibration_error(probabilities, [0, 1, 0, 0], bins=2) == pytest.approx((0.4 + 0.5) / 4)


def test_calibration_error_of_calibrated_and_of_overconfident_models():
    assert expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 1]) == pytest.approx(0)
    assert expected_calibration_error([[1.0, 0.0]] * 4, [0, 0, 1, 1]) == pytest.approx(0.5)


def test_calibration_error_ignores_padding_and_refuses_logits():
    assert expected_calibration_error([[0.8, 0.2], [np.nan, np.nan]], [0, -100]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="softmax"):
        expected_calibration_error([[3.0, -1.0]], [0])
    with pytest.raises(ValueError, match="bins"):
        expected_calibration_error([[0.5, 0.5]], [0], bins=0)


# Reports


def test_report_states_everything_and_survives_json():
    report = evaluation_report(LABELS, PREDICTIONS, ["a", "a", "b", "b", "a", "b"], {0: "sad", 1: "happy", 2: "calm"})
    report = json.loads(json.dumps(report, allow_nan=False))
    scores = emotion_metrics(LABELS, PREDICTIONS, 3)
    assert {name: report[name] for name in scores} == scores
    assert (report["n"], report["speakers"], report["labels"]) == (6, 2, ["sad", "happy", "calm"])
    assert report["majority_wa"] == pytest.approx(4 / 6)
    assert report["recall"] == {"sad": 0.75, "happy": 0.5, "calm": None}
    assert report["support"] == {"sad": 4, "happy": 2, "calm": 0}
    assert report["confusion"] == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    # Speaker a: 3 of 3, b: 1 of 3.
    assert report["intervals"]["wa"] == pytest.approx([1 / 3, 1])
    assert report["intervals"]["level"] == 0.95


def test_report_takes_logits_and_keys_that_json_made_strings():
    id2label = {"1": "happy", "0": "sad", "2": "calm"}
    from_logits = evaluation_report(LABELS, one_hot(PREDICTIONS), None, id2label)
    assert from_logits == evaluation_report(LABELS, PREDICTIONS, None, id2label)
    assert from_logits["recall"]["sad"] == 0.75


@pytest.mark.parametrize(("speakers", "count"), [(None, None), (["a"] * 6, 1)])
def test_report_gives_no_interval_without_speakers_to_resample(speakers, count):
    report = evaluation_report(LABELS, PREDICTIONS, speakers, {0: "sad", 1: "happy", 2: "calm"})
    assert report["speakers"] == count
    assert report["intervals"]["wa"] is None
    assert report["intervals"]["ua"] is None


@pytest.mark.parametrize(
    ("id2label", "match"),
    [
        ({0: "sad", 2: "calm"}, "keys 0"),
        ({}, "keys 0"),
        ({0: "sad", 1: "sad", 2: "calm"}, "twice"),
        ({0: "sad", 1: "calm"}, "3 classes, id2label 2"),
    ],
)
def test_report_refuses_labels_that_do_not_fit(id2label, match):
    with pytest.raises(ValueError, match=match):
        evaluation_report(LABELS, one_hot(PREDICTIONS), None, id2label)


def test_table():
    rows = [{"model": "a|b", "wa": 0.51249, "n": 10}, {"model": "c", "wa": None, "n": 2}]
    assert format_table(rows, ["model", "wa", "n"]).splitlines() == [
        "| model | wa | n |",
        "| --- | ---: | ---: |",
        "| a\\|b | 0.512 | 10 |",
        "| c | – | 2 |",
    ]


def test_a_gap_needs_more_than_one_group():
    hits, others, groups = [1, 1, 0, 1], [0, 1, 0, 0], ["a", "a", "b", "b"]
    gap = paired_gap(hits, others, groups)
    assert gap == paired_difference(hits, others, groups)._asdict() and gap["estimate"] == 0.5
    assert format_gap(gap) == f"+0.500 ({gap['low']:+.3f} to {gap['high']:+.3f})"
    assert paired_gap(hits, others, ["a"] * 4) is None and format_gap(None) is None
