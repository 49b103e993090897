"""The emotions that all branches of the default checkpoint share, and how each forgets how frequent they were.

A branch's probabilities rest on how often each emotion occurs in the corpus that it was trained on, and the corpora
differ: half of MELD is neutral, a sixtieth of FER2013 disgusted. Branches that are fused must agree, so each gives up
its own frequencies and answers as if all emotions were equally likely.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

LABELS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")


def label_ids(labels: Iterable[str]) -> list[int]:
    """Places of words in LABELS."""
    return [LABELS.index(label) for label in labels]


@torch.no_grad()
def assume_equal_frequencies(classifier: nn.Linear, counts: Sequence[int], temperature: float) -> Tensor:
    """Take the labels' frequencies in training, given as counts, out of the bias of a calibrated classifier.

    softmax(z / T) is p(y | x) under the frequencies pi that were trained on; softmax(z / T - log pi) is under equal
    ones (A. K. Menon et al.: Long-Tail Learning via Logit Adjustment, ICLR 2021, https://arxiv.org/abs/2007.07314,
    section 4.1). So the bias loses T log pi, less its mean, which no softmax sees.

    Returns what was taken, (labels,): added to the new logits it gives the old ones.

    Raises:
        ValueError: counts that are not one above 0 a label.
    """
    if len(counts) != classifier.out_features or min(counts) <= 0:
        raise ValueError(
            f"counts must be {classifier.out_features} numbers above 0, one a label, found {list(counts)}"
        )
    taken = frequency_logits(counts, temperature).to(classifier.bias)
    classifier.bias -= taken
    return taken


def frequency_logits(counts: Sequence[int], temperature: float) -> Tensor:
    """T log pi, less its mean, (labels,), of counts above 0."""
    logs = torch.tensor(counts, dtype=torch.float64).log()
    return (temperature * (logs - logs.mean())).float()
