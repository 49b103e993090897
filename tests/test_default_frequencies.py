"""Branches give up the frequencies of the corpora that they were trained on."""

import pytest
import torch
from torch import nn

from mer_hf.default_model.frequencies import LABELS, assume_equal_frequencies, frequency_logits
from mer_hf.default_model.sentences import SENTENCES

COUNTS = (2, 1, 1)


@pytest.fixture
def classifier():
    layer = nn.Linear(4, 3)
    layer.bias.data = torch.tensor([1.0, 2.0, 3.0])
    return layer


def test_labels_are_those_of_the_sentences():
    assert tuple(SENTENCES) == LABELS


def test_bias_by_hand(classifier):
    """T = 2 and counts 2, 1, 1: twice log 2, log 1, log 1, less their mean, 2/3 log 2."""
    taken = assume_equal_frequencies(classifier, COUNTS, 2.0)
    torch.testing.assert_close(taken, torch.tensor([0.9241962, -0.4620981, -0.4620981]))
    torch.testing.assert_close(classifier.bias.data, torch.tensor([0.0758038, 2.4620981, 3.4620981]))
    torch.testing.assert_close(frequency_logits((5, 5, 5), 2.0), torch.zeros(3))


def test_calibrated_probabilities_lose_their_frequencies_at_the_temperature(classifier):
    values = torch.randn(5, 4)
    divided = (classifier(values) / 1.7).softmax(-1) / torch.tensor(COUNTS)
    assume_equal_frequencies(classifier, COUNTS, 1.7)
    torch.testing.assert_close((classifier(values) / 1.7).softmax(-1), divided / divided.sum(-1, keepdim=True))


@pytest.mark.parametrize("counts", [(2, 1), (2, 0, 1)])
def test_impossible_counts_are_refused(classifier, counts):
    with pytest.raises(ValueError, match="counts must be 3 numbers above 0, one a label"):
        assume_equal_frequencies(classifier, counts, 1.0)
