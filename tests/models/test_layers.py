"""Masks, masked reductions, the standardizer and the recurrence, against literal numbers and torch's own layers."""

import pytest
import torch
from model_helpers import randomize, rnn_steps
from torch import nn

from mer_hf.models.layers import (
    MaskedRNN,
    Standardizer,
    lengths_to_mask,
    masked_max,
    masked_mean,
    masked_softmax,
    zero_masked,
)

NAN = float("nan")
VALUES = torch.tensor(
    [
        [[1.0, -2.0], [3.0, -6.0], [NAN, 100.0]],
        [[NAN, 5.0], [NAN, NAN], [100.0, 100.0]],
    ]
)
MASK = torch.tensor([[True, True, False], [False, False, False]])


def test_lengths_become_masks():
    mask = lengths_to_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False, False, False], [True, True, False], [True, True, True]]


def test_masked_places_become_zero():
    assert zero_masked(VALUES, MASK)[0].tolist() == [[1, -2], [3, -6], [0, 0]]
    assert zero_masked(VALUES, MASK)[1].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(("reduce", "expected"), [(masked_mean, [2.0, -4.0]), (masked_max, [3.0, -2.0])])
def test_reductions_read_real_places_alone(reduce, expected):
    values = VALUES.clone().requires_grad_()
    reduced = reduce(values, MASK)
    assert reduced.tolist() == [expected, [0.0, 0.0]]
    reduced.sum().backward()
    assert values.grad.isfinite().all()
    assert values.grad[~MASK].eq(0).all()
    assert values.grad[0, :2].sum() == 2  # one for each dimension: a mean's shares and a maximum's place


def test_the_maximum_of_negative_values_is_negative():
    values = torch.tensor([[[-7.0], [-3.0], [0.0]]])
    assert masked_max(values, torch.tensor([[True, True, False]])).item() == -3


def test_softmax_over_the_kept_places():
    scores = torch.tensor([[0.0, torch.tensor(3.0).log(), 50.0], [1.0, 2.0, 3.0]], requires_grad=True)
    weights = masked_softmax(scores, MASK)
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]))
    (weights * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-0.1875, 0.1875, 0.0], [0.0, 0.0, 0.0]]))


def test_softmax_survives_scores_beyond_the_exponential():
    weights = masked_softmax(torch.tensor([[1e4, -1e4, 1e4]]), torch.tensor([[True, True, False]]))
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_and_maximum_in_half_precision(dtype):
    scores = torch.zeros(2, 3, dtype=dtype)
    assert masked_softmax(scores, MASK).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert masked_max(VALUES.to(dtype), MASK).tolist() == [[3.0, -2.0], [0.0, 0.0]]


class TestStandardizer:
    def test_starts_as_the_identity(self):
        values = torch.tensor([[[1e3, -1e3]]])
        assert Standardizer(2)(values, torch.ones(1, 1, dtype=torch.bool)).tolist() == values.tolist()

    def test_statistics_of_the_real_frames_of_all_batches(self):
        standardizer = Standardizer(2)
        with standardizer.observing():
            observed = standardizer(VALUES, MASK)  # (1, -2), (3, -6)
            standardizer(torch.tensor([[[5.0, -1.0], [99.0, 99.0]]]), torch.tensor([[True, False]]))
        torch.testing.assert_close(observed, VALUES, equal_nan=True)  # nothing is scaled while observing
        torch.testing.assert_close(standardizer.mean, torch.tensor([3.0, -3.0]))
        torch.testing.assert_close(standardizer.std, torch.tensor([8 / 3, 14 / 3]).sqrt())  # 4+0+4, 1+9+4 over 3

    def test_agrees_with_numpy_over_ragged_batches(self):
        torch.manual_seed(0)
        batches = [(torch.randn(2, 5, 3) * 4 + 7, torch.rand(2, 5) > 0.3) for _ in range(4)]
        standardizer = Standardizer(3)
        with standardizer.observing():
            for values, mask in batches:
                standardizer(values, mask)
        real = torch.cat([values[mask] for values, mask in batches]).double().numpy()
        torch.testing.assert_close(standardizer.mean, torch.from_numpy(real.mean(axis=0)).float())
        torch.testing.assert_close(standardizer.std, torch.from_numpy(real.std(axis=0)).float())

    def test_scales_and_clips(self):
        standardizer = Standardizer(2)
        standardizer.set_statistics(torch.tensor([1.0, 10.0]), torch.tensor([2.0, 0.5]))
        scaled = standardizer(torch.tensor([[[5.0, 9.0], [1.0, 99.0], [-99.0, 10.0]]]), torch.ones(1, 3).bool())
        assert scaled.tolist() == [[[2.0, -2.0], [0.0, 5.0], [-5.0, 0.0]]]

    def test_a_dimension_that_does_not_vary_keeps_its_scale(self):
        standardizer = Standardizer(1)
        mask = torch.ones(1, 1000, dtype=torch.bool)
        with standardizer.observing():
            for _ in range(50):  # the floor of a log-mel bin that stays empty
                standardizer(torch.full((1, 1000, 1), -15.942385), mask)
        assert standardizer.std.item() == 1
        assert standardizer(torch.tensor([[[-15.5]]]), mask[:, :1]).item() == pytest.approx(0.442385, abs=1e-5)

    def test_large_constants_keep_their_scale_too(self):
        standardizer = Standardizer(1)
        with standardizer.observing():
            for _ in range(200):  # squares of 4e9 round at 1e-7: a "deviation" far above 1e-6
                standardizer(torch.full((1, 101, 1), 65_432.7), torch.ones(1, 101, dtype=torch.bool))
        assert standardizer.std.item() == 1

    def test_refuses_to_learn_from_nothing(self):
        standardizer = Standardizer(2)
        with pytest.raises(ValueError, match="no real frames"), standardizer.observing():
            standardizer(VALUES[1:], MASK[1:])
        assert not standardizer.fitted

    def test_an_error_while_observing_leaves_the_statistics_alone(self):
        standardizer = Standardizer(1)
        standardizer.set_statistics(torch.tensor([1.0]), torch.tensor([2.0]))
        with pytest.raises(KeyError), standardizer.observing():
            raise KeyError
        assert standardizer(torch.tensor([[[5.0]]]), torch.ones(1, 1).bool()).item() == 2


ROWS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)


class TestMaskedRNN:
    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    @pytest.mark.parametrize("bidirectional", [True, False])
    @pytest.mark.parametrize("layers", [1, 2])
    def test_equals_torch_on_each_unpadded_row(self, cell, bidirectional, layers):
        torch.manual_seed(0)
        rnn = MaskedRNN(3, 4, layers, bidirectional, cell=cell)
        reference = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](3, 4, layers, batch_first=True, bidirectional=bidirectional)
        names = [name.removesuffix("_l0") for name, _ in rnn.forward_layers[0].named_parameters()]
        weights = dict(reference.named_parameters())
        with torch.no_grad():
            for index in range(layers):
                for name in names:
                    rnn.forward_layers[index].get_parameter(f"{name}_l0").copy_(weights[f"{name}_l{index}"])
                    if bidirectional:
                        reverse = weights[f"{name}_l{index}_reverse"]
                        rnn.backward_layers[index].get_parameter(f"{name}_l0").copy_(reverse)
            values = torch.randn(5, 4, 3).masked_fill(~ROWS.unsqueeze(-1), NAN)
            output = rnn(values, ROWS)
            for row, mask in enumerate(ROWS):
                assert output[row][~mask].eq(0).all()
                if mask.any():
                    torch.testing.assert_close(output[row][mask], reference(values[row][mask].unsqueeze(0))[0][0])

    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_equals_the_equations_step_by_step(self, cell):
        rnn = randomize(MaskedRNN(3, 4, 2, cell=cell))
        values = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1))
        expected = torch.stack(rnn_steps(rnn, list(values[0, :4])))
        torch.testing.assert_close(rnn(values, torch.arange(5).unsqueeze(0) < 4)[0, :4], expected)

    def test_gradients_are_finite_and_ignore_padding(self):
        rnn = MaskedRNN(2, 3, 2)
        values = torch.randn(5, 4, 2).masked_fill(~ROWS.unsqueeze(-1), NAN).requires_grad_()
        rnn(values, ROWS).square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in rnn.parameters())
        assert values.grad[~ROWS].eq(0).all()
        assert values.grad[ROWS].ne(0).all()

    def test_rows_without_anything_give_zeros(self):
        assert MaskedRNN(2, 3)(torch.full((2, 3, 2), NAN), torch.zeros(2, 3, dtype=torch.bool)).eq(0).all()

    def test_dropout_between_layers_only(self):
        values, mask = torch.ones(1, 3, 2), torch.ones(1, 3, dtype=torch.bool)
        one, two = MaskedRNN(2, 3, 1, dropout=1.0), MaskedRNN(2, 3, 2, dropout=1.0)
        assert torch.equal(one.train()(values, mask), one.eval()(values, mask))
        trained = two.train()(values, mask)
        assert torch.equal(trained, two(values * 7, mask))  # everything between the layers is dropped
        assert not torch.equal(trained, two.eval()(values, mask))

    def test_an_unknown_cell_is_refused(self):
        with pytest.raises(ValueError, match="rnn must be one of lstm, gru, found 'tanh'"):
            MaskedRNN(2, 3, cell="tanh")
