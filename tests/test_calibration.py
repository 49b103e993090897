"""Temperature scaling: the minimum it claims, what a small or perfect validation set does to it, and its report."""

import json

import numpy as np
import pytest

from mer_hf.calibration import TEMPERATURES, calibration_report, fit_temperature

INF = float("inf")


def drawn(n, classes, temperature, seed=0, scale=3.0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)) * scale
    probabilities = np.exp(logits / temperature)
    probabilities /= probabilities.sum(-1, keepdims=True)
    return logits, (probabilities.cumsum(-1) > random.random((n, 1))).argmax(-1)


def smoothed_nll(logits, labels, temperature):
    """The objective written out: n clips and one more, spread over clips and over the labels that can be answered."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        answerable = [value / temperature for value in row if value > -INF]
        normaliser = np.log(sum(np.exp(value - max(answerable)) for value in answerable)) + max(answerable)
        own = row[label] / temperature - normaliser
        spread = sum(value - normaliser for value in answerable) / len(answerable)
        total -= (len(labels) * own + spread) / (len(labels) + 1)
    return total


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 8.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    logits, labels = drawn(20_000, 5, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [3, 40])
def test_no_other_temperature_does_better(seed, n):
    logits, labels = drawn(n, 4, 2.0, seed)
    logits[::3, 3] = -INF
    labels = np.where(labels == 3, 0, labels)
    found = fit_temperature(logits, labels)
    best = smoothed_nll(logits, labels, found)
    for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        if TEMPERATURES[0] < found < TEMPERATURES[1]:
            assert best <= smoothed_nll(logits, labels, found * factor)


def test_no_decision_changes_and_the_fit_improves():
    logits, labels = drawn(2000, 6, 3.0)
    temperature = fit_temperature(logits, labels)
    report = calibration_report(logits, labels, temperature)
    assert ((logits / temperature).argmax(-1) == logits.argmax(-1)).all()
    assert report["after"]["nll"] < report["before"]["nll"] - 0.1
    assert report["after"]["ece"] < 0.05 < report["before"]["ece"]


@pytest.mark.parametrize(("n", "ceiling"), [(4, 0.86), (20, 0.97), (500, 0.999)])
@pytest.mark.parametrize("margin", [0.5, 5.0, 80.0])
def test_a_validation_set_without_a_mistake_gives_no_certainty(n, ceiling, margin):
    """n clips cannot show that an error is rarer than one in n + 1."""
    labels = np.arange(n) % 4
    logits = np.eye(4)[labels] * margin
    temperature = fit_temperature(logits, labels)
    confidence = np.exp(margin / temperature) / (np.exp(margin / temperature) + 3)
    assert temperature > TEMPERATURES[0]
    assert 1 - 1 / n - 1e-6 < confidence < ceiling


def test_bounds():
    wrong = np.eye(4)[[1, 2, 3, 0]]
    assert fit_temperature(wrong, np.arange(4)) == pytest.approx(TEMPERATURES[1], rel=1e-9)
    tiny = np.eye(4) * 1e-6
    assert fit_temperature(tiny, np.arange(4)) == pytest.approx(TEMPERATURES[0], rel=1e-9)


def test_logits_all_alike_keep_the_temperature_they_have():
    assert fit_temperature(np.zeros((5, 3)), np.zeros(5, int)) == 1.0
    assert fit_temperature([[2.0, -INF], [7.0, -INF]], [0, 0]) == 1.0


def test_a_constant_added_to_a_clips_logits_changes_nothing():
    logits, labels = drawn(50, 4, 2.0)
    shifted = logits + np.linspace(-400, 900, 50)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


def test_padding_of_dialogues_does_not_count():
    logits, labels = drawn(30, 4, 2.0)
    padded = np.full((2, 20, 4), np.nan)
    padded[:, :15] = logits.reshape(2, 15, 4)
    ids = np.full((2, 20), -100)
    ids[:, :15] = labels.reshape(2, 15)
    temperature = fit_temperature(padded, ids)
    assert temperature == pytest.approx(fit_temperature(logits, labels))
    assert calibration_report(padded, ids, temperature) == calibration_report(logits, labels, temperature)


def test_classes_that_the_model_cannot_answer():
    """As a logistic regression whose training side lacked the class: -inf in its column."""
    logits, labels = drawn(60, 4, 2.0)
    answerable = labels != 3
    logits[:, 3] = -INF
    narrow = fit_temperature(logits[answerable][:, :3], labels[answerable])
    assert fit_temperature(logits, labels) == pytest.approx(narrow)
    report = calibration_report(logits, labels, narrow)
    assert (report["n"], report["impossible"]) == (60, int((~answerable).sum()))
    assert 0 < report["after"]["nll"] < 10
    assert calibration_report(logits[~answerable], labels[~answerable], 1.0)["after"]["nll"] is None


def test_report_by_hand():
    """Two clips at 0.8 of which one is right, and at T = 2 both at 2 / 3."""
    logits = np.log([[0.8, 0.2], [0.2, 0.8]])
    report = calibration_report(logits, [0, 0], 2)
    assert report == {
        "n": 2,
        "impossible": 0,
        "temperature": 2.0,
        "before": {"ece": pytest.approx(0.3), "nll": pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)},
        "after": {"ece": pytest.approx(1 / 6), "nll": pytest.approx(-(np.log(2 / 3) + np.log(1 / 3)) / 2)},
    }
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], r"logits \(3, 2\) do not fit labels \(2,\)"),
        (np.zeros(3), 0, "do not fit"),
        (np.zeros((2, 2)), [-100, -100], "no labelled clip"),
        (np.zeros((0, 2)), np.zeros(0, int), "no labelled clip"),
        (np.zeros((2, 2)), [0, 2], r"ids in \[0, 2\), found \[0, 2\]"),
        (np.zeros((2, 2)), [0.0, 1.0], "must be ids"),
        ([[0.0, np.nan]], [0], "NaN or"),
        ([[0.0, INF]], [0], "NaN or"),
        ([[-INF, -INF]], [0], "-inf for every class"),
        ([[-INF, 0.0]], [0], "every clip's own class"),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("temperature", [0, -1.0, INF, np.nan])
def test_a_report_of_no_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        calibration_report(np.eye(2), [0, 1], temperature)
