"""The metric as users of `evaluate` have it: as a class, as a script, in batches, in several processes."""

import json
import subprocess
import sys

import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from mer_hf import emotion_metric
from mer_hf.emotion_metric import EmotionRecognition


@pytest.fixture(params=["class", "script"])
def metric(request, tmp_path, monkeypatch):
    if request.param == "class":
        return EmotionRecognition(cache_dir=str(tmp_path))
    for module in (evaluate.config, evaluate.loading.config):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return evaluate.load(emotion_metric.PATH, cache_dir=str(tmp_path))


def expected(references, predictions):
    labels = np.union1d(references, predictions)
    present = np.unique(references)
    return {
        "wa": accuracy_score(references, predictions),
        "ua": recall_score(references, predictions, labels=present, average="macro"),
        "macro_f1": f1_score(references, predictions, labels=labels, average="macro"),
        "weighted_f1": f1_score(references, predictions, labels=labels, average="weighted"),
    }


def random_ids(seed, references, predictions, n=60):
    random = np.random.default_rng(seed)
    return random.choice(references, n), random.choice(predictions, n)


@pytest.mark.parametrize(
    ("references", "predictions"),
    [([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 1], [0, 1, 2, 3]), ([1, 3], [0, 3]), ([2], [2]), ([0, 4], [1, 2])],
    ids=["all", "not all in the references", "gaps", "one class", "nothing right"],
)
def test_equals_scikit_learn(metric, references, predictions):
    for seed in range(3):
        truth, guess = random_ids(seed, references, predictions)
        assert metric.compute(predictions=guess, references=truth) == pytest.approx(expected(truth, guess))


def test_batches_and_single_clips_add_up(metric):
    truth, guess = random_ids(0, range(4), range(4))
    metric.add_batch(predictions=guess[:25], references=truth[:25])
    for one, other in zip(guess[25:30], truth[25:30], strict=True):
        metric.add(prediction=int(one), reference=int(other))
    metric.add_batch(predictions=guess[30:].tolist(), references=truth[30:].tolist())
    assert len(metric) == 60
    assert metric.compute() == pytest.approx(expected(truth, guess))
    assert metric.compute(predictions=[1], references=[1])["wa"] == 1  # nothing is left of the batches before


def test_recall_by_class(metric):
    """Literal: sad has 2 of 3, calm none of 1, happy no reference."""
    result = metric.compute(predictions=[0, 0, 1, 1], references=[0, 0, 0, 2], labels=["sad", "happy", "calm"])
    assert result["recall"] == {"sad": pytest.approx(2 / 3), "happy": None, "calm": 0.0}
    assert result["wa"] == 0.5
    assert result["ua"] == pytest.approx(1 / 3)
    json.dumps(result)


def test_padding_does_not_count(metric):
    result = metric.compute(predictions=[0, 1, 9], references=[0, 0, -100])
    assert result == metric.compute(predictions=[0, 1], references=[0, 0])


def test_unweighted_accuracy_is_balanced_accuracy(tmp_path):
    truth, guess = random_ids(3, range(5), range(5))
    found = EmotionRecognition(cache_dir=str(tmp_path)).compute(predictions=guess, references=truth)["ua"]
    assert found == pytest.approx(balanced_accuracy_score(truth, guess))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"predictions": [0, 1], "references": [-100, -100]}, "no labelled item"),
        ({"predictions": [0, -1], "references": [0, 1]}, "predictions hold -1"),
        ({"predictions": [0, 1], "references": [0, 1], "labels": ["sad"]}, r"hold 1, which is not in \[0, 1\)"),
        ({"predictions": [0], "references": [0], "labels": ["sad", "sad"]}, "different names"),
        ({"predictions": [0], "references": [0], "labels": "sad"}, "different names"),
        ({"predictions": [[0.1, 0.9]], "references": [1]}, "don't match the expected format"),
        ({"predictions": [0, 1], "references": [1]}, "Mismatch in the number of predictions"),
        ({}, "cache file doesn't exist"),
    ],
)
def test_what_has_no_score_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        EmotionRecognition(cache_dir=str(tmp_path)).compute(**values)


def test_combined_with_itself_as_a_module_of_evaluate(tmp_path):
    modules = {name: EmotionRecognition(cache_dir=str(tmp_path), experiment_id=name) for name in ("first", "second")}
    combined = evaluate.combine(modules)
    found = combined.compute(predictions=[0, 1, 1], references=[0, 1, 0])
    assert found["first_wa"] == found["second_wa"] == pytest.approx(2 / 3)


PROCESS = """
import json, sys
import numpy as np
from mer_hf.emotion_metric import EmotionRecognition

cache, number, ids = json.loads(sys.argv[1])
metric = EmotionRecognition(num_process=2, process_id=number, experiment_id="two", cache_dir=cache)
metric.add_batch(**ids)
print(json.dumps(metric.compute()))
"""


@pytest.mark.long
def test_two_processes_give_one_score(tmp_path):
    truth, guess = random_ids(1, range(4), range(4), n=31)
    parts = [
        {"references": truth[side].tolist(), "predictions": guess[side].tolist()}
        for side in (slice(0, 20), slice(20, None))
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps([str(tmp_path), number, ids])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, ids in enumerate(parts)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [errors[-2000:] for _, errors in answers]
    first, second = (json.loads(output.strip().splitlines()[-1]) for output, _ in answers)
    assert first == pytest.approx(expected(truth, guess))
    assert second is None
