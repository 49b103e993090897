"""Masks, masked reductions and the recurrent layer that more than one of the papers' models needs.

A mask is a bool tensor, True = real. The rule for what is not there, fixed here once: an empty row gives zeros and
finite gradients, and whatever stands in a masked place (padding, NaN) cannot reach the result.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """lengths (batch,) -> bool mask (batch, size), True for the first `lengths` places of each row."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)


def zero_masked(values: Tensor, mask: Tensor) -> Tensor:
    """values (..., time, dim) with the places where mask (..., time) is False set to zero, NaN included."""
    return torch.where(mask.unsqueeze(-1), values, values.new_zeros(()))


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension of the places mask keeps; a row without any gives zeros, not NaN.

    scores (..., n), mask broadcastable to it -> weights (..., n).
    """
    mask = mask.expand_as(scores)
    # The lowest finite number, not -inf: exp(-inf - -inf) of an empty row is NaN, and so is its gradient.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).masked_fill(~mask, 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """values (batch, time, dim), mask (batch, time) -> mean over real places (batch, dim); none: zeros."""
    count = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return zero_masked(values, mask).sum(dim=-2) / count


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """values (batch, time, dim), mask (batch, time) -> maximum over real places (batch, dim); none: zeros."""
    lowest = values.masked_fill(~mask.unsqueeze(-1), torch.finfo(values.dtype).min).amax(dim=-2)
    return torch.where(mask.any(dim=-1, keepdim=True), lowest, lowest.new_zeros(()))


@dataclass(frozen=True)
class Moments:
    """What mean and deviation follow from, for vectors seen in any number of parts."""

    count: int
    total: Tensor
    """Sum of the vectors, (dim,), double"""
    squares: Tensor
    """Sum of their squares, (dim,), double"""

    @classmethod
    def of(cls, vectors: Tensor) -> "Moments":
        """vectors (n, dim)"""
        vectors = vectors.double()
        return cls(len(vectors), vectors.sum(dim=0), vectors.square().sum(dim=0))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp(min=0)


def varies(mean: Tensor, std: Tensor) -> Tensor:
    """Which dimensions vary, (dim,) bool: below the floor lie the rounding errors of a constant."""
    return std > 1e-6 * mean.abs().clamp(min=1)


class Standardizer(nn.Module):
    """(x - mean) / std per dimension, clipped; the statistics are buffers and travel with the checkpoint.

    Starts as the identity. `observing` collects the statistics of everything that passes through, so they come from
    the training data alone:

        with standardizer.observing():
            for batch in training_batches:
                model(**batch)

    A sample of an enrolled speaker is standardized by that speaker's statistics instead (see `SpeakerProfile`).
    """

    limit = 5.0
    """Clip, in standard deviations: one broken clip must not drive a network that never saw such values."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._seen: list[Moments] | None = None

    def forward(self, values: Tensor, mask: Tensor, speaker: Tensor | None = None) -> Tensor:
        """values (..., time, dim), mask (..., time) -> the same shape.

        speaker (batch, 2, dim): mean and standard deviation for each row of values (batch, time, dim); where the
        deviation is 0 the row gets the statistics of the checkpoint.
        """
        if self._seen is not None:
            self._seen.append(Moments.of(values[mask]))
        mean, std = self.mean, self.std
        if speaker is not None:
            own_mean, own_std = speaker.to(mean).unsqueeze(2).unbind(dim=1)  # (batch, 1, dim) each
            mean, std = torch.where(own_std > 0, own_mean, mean), torch.where(own_std > 0, own_std, std)
        standardized = ((values - mean) / std).clamp(-self.limit, self.limit)
        return torch.where(self.fitted, standardized, values)

    def observing(self) -> "_Observation":
        """A context in which values are collected; the statistics are set when it ends without an error."""
        return _Observation(self)

    def collecting(self) -> "_Collection":
        """A context that gives a list, to which every call of `forward` adds the Moments of what it was given.

        Nothing else changes: values are standardized as ever, by the statistics there are.
        """
        return _Collection(self)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Use these statistics, mean (dim,) and std (dim,); a dimension that does not vary keeps its scale."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(varies(mean, std), std, torch.ones_like(std)))
        self.fitted.fill_(True)


class _Collection:
    def __init__(self, standardizer: Standardizer):
        self.standardizer = standardizer

    def __enter__(self) -> list[Moments]:
        self.standardizer._seen = []
        return self.standardizer._seen

    def __exit__(self, *_: object) -> None:
        self.standardizer._seen = None


class _Observation:
    def __init__(self, standardizer: Standardizer):
        self.standardizer = standardizer

    def __enter__(self) -> Standardizer:
        self.standardizer._seen = []
        self.was_fitted = self.standardizer.fitted.clone()
        self.standardizer.fitted.fill_(False)
        return self.standardizer

    def __exit__(self, error_type: type | None, *_: object) -> None:
        seen, self.standardizer._seen = self.standardizer._seen, None
        self.standardizer.fitted.copy_(self.was_fitted)
        if error_type is not None:
            return
        moments = reduce(add, seen) if seen else None
        if moments is None or moments.count < 2:
            raise ValueError("no real frames were observed: there is nothing to take a mean and deviation of")
        self.standardizer.set_statistics(moments.mean, moments.variance.sqrt())


class MaskedRNN(nn.Module):
    """LSTM or GRU over the real places of each row; the result does not depend on padding.

    The real places of a row are moved to its front (they need not be contiguous), the backward direction runs over the
    row reversed within its own length, and both are moved back. Nothing is computed beyond the longest row.

    `pack_padded_sequence` would leave out the ends of shorter rows too, but can be neither exported nor given a row of
    length zero, and takes torch's slower kernel: with a third of the places padding it still took longer (32 rows of
    20 places, 512 -> 2 x 256: 24 ms against 19, in training 69 against 56).

    Parameters are those of `nn.LSTM` or `nn.GRU`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        cell: str = "lstm",
    ):
        super().__init__()
        cells = {"lstm": nn.LSTM, "gru": nn.GRU}
        if cell not in cells:
            raise ValueError(f"rnn must be one of {', '.join(cells)}, found {cell!r}")
        self.output_size = hidden_size * (2 if bidirectional else 1)
        widths = [input_size] + [self.output_size] * (num_layers - 1)
        self.forward_layers = nn.ModuleList(cells[cell](width, hidden_size, batch_first=True) for width in widths)
        self.backward_layers = nn.ModuleList(
            cells[cell](width, hidden_size, batch_first=True) for width in widths if bidirectional
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """values (batch, time, input_size), mask (batch, time) -> (batch, time, output_size), zeros where masked."""
        lengths = mask.sum(dim=-1, keepdim=True)
        front = torch.where(mask, mask.long().cumsum(dim=-1), lengths + (~mask).long().cumsum(dim=-1)) - 1
        place = torch.arange(mask.shape[-1], device=mask.device).expand_as(front)
        order = torch.zeros_like(front).scatter(-1, front, place)  # (batch, time): real places first
        size = mask.shape[-1] if torch.compiler.is_exporting() else max(int(lengths.max()), 1)
        reverse = torch.where(place < lengths, lengths - 1 - place, place)[:, :size]

        hidden = _take(zero_masked(values, mask), order[:, :size])
        for index, layer in enumerate(self.forward_layers):
            hidden = self.dropout(hidden) if index else hidden
            outputs = [layer(hidden)[0]]
            if len(self.backward_layers):
                outputs.append(_take(self.backward_layers[index](_take(hidden, reverse))[0], reverse))
            hidden = torch.cat(outputs, dim=-1)
        return zero_masked(_take(hidden, front.clamp(max=size - 1)), mask)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values (batch, time, dim) -> those at index (batch, time'), place by place of each row."""
    rows = values.shape[1] * torch.arange(values.shape[0], device=values.device).unsqueeze(-1)
    taken = values.flatten(0, 1).index_select(0, (index + rows).flatten())  # whole vectors: a `gather` is far slower
    return taken.view(*index.shape, values.shape[-1])
