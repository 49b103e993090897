"""WA, UA and F1 as a metric of the `evaluate` library.

    from mer_hf import emotion_metric

    metric = emotion_metric.EmotionRecognition()      # the class, or
    metric = evaluate.load(emotion_metric.PATH)       # this very file, as a script; needs no network
    metric.add_batch(predictions=ids, references=ids)
    metric.compute()  # {"wa": ..., "ua": ..., "macro_f1": ..., "weighted_f1": ...}

`evaluate.load` copies the file elsewhere before it runs it: imports are absolute here, each on one line, and no class
of `evaluate` is imported by its own name, or it would be taken for the metric.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from mer_hf.evaluation import IGNORED_LABEL, confusion_matrix, emotion_metrics

PATH = __file__
"""What `evaluate.load` takes."""

DESCRIPTION = """
Weighted accuracy (accuracy over utterances), unweighted accuracy (mean recall over the classes that the references
hold), macro F1 and weighted F1, as the field of speech emotion recognition reports them.
"""
INPUTS = """
Args:
    predictions, references: class ids from 0 on; positions whose reference is -100 are ignored.
    labels (optional, of `compute`): the classes' names in the order of their ids; adds each one's recall.
Returns:
    wa, ua, macro_f1, weighted_f1: fractions, as `mer_hf.evaluation.emotion_metrics` gives them.
    recall (with labels): {name: fraction}, None for a class that the references lack.
Raises:
    ValueError: nothing labelled, an id below 0 or without a name in labels, a name given twice.
"""
CITATION = """
B. Schuller, S. Steidl, A. Batliner: The INTERSPEECH 2009 Emotion Challenge, Interspeech 2009 (UA and WA).
"""


class EmotionRecognition(evaluate.Metric):
    """WA, UA, macro F1, weighted F1 and, on request, recall by class; see the module's docstring."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], labels: Sequence[str] | None = None
    ) -> dict[str, Any]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        if labels is None:
            counted = references != IGNORED_LABEL
            num_labels = 1 + int(max(predictions[counted].max(initial=0), references[counted].max(initial=0)))
            return emotion_metrics(references, predictions, num_labels)
        if isinstance(labels, str) or len(set(labels)) < len(labels):
            raise ValueError(f"labels must be a list of different names, found {labels!r}")
        confusion = confusion_matrix(references, predictions, len(labels))
        support = confusion.sum(axis=1)
        recall = {
            name: float(confusion[index, index] / support[index]) if support[index] else None
            for index, name in enumerate(labels)
        }
        return emotion_metrics(references, predictions, len(labels)) | {"recall": recall}
