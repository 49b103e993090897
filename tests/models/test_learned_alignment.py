"""Learned alignment against its equations, written here with loops over words and frames."""

import math

import pytest
import torch
from model_helpers import WIDTH_FIELDS, logits_of, make_clip, make_model, randomize, rnn_steps

from mer_hf import LearnedAlignmentConfig, LearnedAlignmentForEmotionClassification
from mer_hf.models.batching import pad_examples
from mer_hf.models.modeling_learned_alignment import (
    AdditiveAlignment,
    AttentionPooling,
    MultiHeadAlignment,
    alignment_loss,
)

FRAME_MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])


def softmax(scores):
    top = max(float(score) for score in scores)
    exponentials = [math.exp(float(score) - top) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def additive_naively(module, word, frames):
    """score_i = v . tanh(W_1 s_i + W_2 h + b); sum_i softmax_i s_i."""
    scores = []
    for frame in frames:
        key = module.frame_projection.weight @ frame + module.frame_projection.bias
        scores.append(module.score.weight[0] @ (key + module.word_projection.weight @ word).tanh())
    weights = softmax(scores)
    return sum(weight * frame for weight, frame in zip(weights, frames, strict=True)), weights


def multihead_naively(module, word, frames):
    """softmax(q k / sqrt(d)) v head by head, concatenated and projected."""
    query = module.query.weight @ word + module.query.bias
    keys = [module.key.weight @ frame + module.key.bias for frame in frames]
    values = [module.value.weight @ frame + module.value.bias for frame in frames]
    width = len(query) // module.num_heads
    heads, weights = [], []
    for head in range(module.num_heads):
        part = slice(head * width, (head + 1) * width)
        weights.append(softmax([query[part] @ key[part] / math.sqrt(width) for key in keys]))
        heads.append(sum(weight * value[part] for weight, value in zip(weights[-1], values, strict=True)))
    mean = [sum(column) / len(weights) for column in zip(*weights, strict=True)]
    return module.output.weight @ torch.cat(heads) + module.output.bias, mean


ALIGNMENTS = [(AdditiveAlignment, additive_naively), (MultiHeadAlignment, multihead_naively)]


@pytest.mark.parametrize(("module", "naive"), ALIGNMENTS)
@torch.no_grad()
def test_alignments_equal_their_equations(module, naive):
    alignment = randomize(module(8, 4))
    generator = torch.Generator().manual_seed(0)
    words, frames = torch.randn(3, 2, 8, generator=generator), torch.randn(3, 4, 8, generator=generator)
    aligned, weights = alignment(words, frames, FRAME_MASK, torch.ones(3, dtype=torch.bool))
    for row in range(2):
        real = int(FRAME_MASK[row].sum())
        for word in range(2):
            expected, expected_weights = naive(alignment, words[row, word], list(frames[row, :real]))
            torch.testing.assert_close(aligned[row, word], expected)
            assert weights[row, word].tolist() == pytest.approx(expected_weights + [0.0] * (4 - real), abs=1e-6)
    assert aligned[2].eq(0).all()  # a clip without frames
    assert weights[2].eq(0).all()


@pytest.mark.parametrize(("module", "naive"), ALIGNMENTS)
@torch.no_grad()
def test_who_has_no_words_attends_to_all_frames_alike(module, naive):
    alignment = randomize(module(8, 4))
    frames = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    _, weights = alignment(torch.zeros(3, 1, 8), frames, FRAME_MASK, torch.tensor([False, True, False]))
    torch.testing.assert_close(weights[0, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))


def attention_pooling_naively(module, values):
    """u_j = tanh(G_j W + b) . c, z = sum_j softmax_j(u) G_j."""
    projection = module.projection
    scores = [module.context.weight[0] @ (projection.weight @ v + projection.bias).tanh() for v in values]
    return sum(weight * value for weight, value in zip(softmax(scores), values, strict=True))


@torch.no_grad()
def test_attention_pooling_equals_its_equation():
    pooling = randomize(AttentionPooling(5))
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    pooled = pooling(values, FRAME_MASK)
    for row in range(2):
        expected = attention_pooling_naively(pooling, list(values[row][FRAME_MASK[row]]))
        torch.testing.assert_close(pooled[row], expected)
    assert pooled[2].eq(0).all()


@pytest.mark.parametrize("rnn", ["lstm", "gru"])
@pytest.mark.parametrize("alignment", ["additive", "multihead"])
@pytest.mark.parametrize("pooling", ["max", "attention"])
@torch.no_grad()
def test_whole_forward_equals_the_equations(rnn, alignment, pooling):
    model = make_model("learned_alignment", **WIDTH_FIELDS, rnn=rnn, alignment=alignment, pooling=pooling)
    naive = {"additive": additive_naively, "multihead": multihead_naively}[alignment]
    clips = [make_clip(seed, 6 + 3 * seed, 2 + seed, 2 + seed) for seed in range(2)]
    output = model(**pad_examples(clips), output_attentions=True)
    for row, clip in enumerate(clips):
        states = {m: rnn_steps(model.encoders[m], list(clip[f"{m}_embeds"])) for m in ("audio", "text", "vision")}
        pairs = []
        for index, word in enumerate(states["text"]):
            sides = []
            for modality, found in (("audio", output.audio_alignment), ("vision", output.vision_alignment)):
                aligned, weights = naive(model.fusion.alignments[modality], word, states[modality])
                assert found[row, index, : len(weights)].tolist() == pytest.approx(weights, abs=1e-5)
                sides.append(aligned)
            pairs.append(torch.cat([*sides, word]))
        hidden = rnn_steps(model.fusion.rnn, pairs)
        top = torch.stack(hidden).max(dim=0).values
        pooled = top if pooling == "max" else attention_pooling_naively(model.fusion.pooling, hidden)
        expected = model.classifier.weight @ pooled + model.classifier.bias
        torch.testing.assert_close(output.logits[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_alignment_each_side_is_pooled_alone():
    model = make_model("learned_alignment", **WIDTH_FIELDS, alignment="none")
    clip = make_clip(0)
    sides = []
    for modality in ("audio", "text", "vision"):
        states = rnn_steps(model.encoders[modality], list(clip[f"{modality}_embeds"]))
        sides.append(torch.stack(states).max(dim=0).values)
    expected = model.classifier.weight @ torch.cat(sides) + model.classifier.bias
    torch.testing.assert_close(logits_of(model, [clip])[0], expected, atol=1e-5, rtol=1e-5)
    output = model(**pad_examples([clip]), output_attentions=True)
    assert output.audio_alignment is None


def test_alignments_are_given_when_asked_for():
    model = make_model("learned_alignment", **WIDTH_FIELDS)
    batch = pad_examples([make_clip(0, frames=9, words=3), make_clip(1, drop=("audio_embeds",))])
    assert model(**batch).audio_alignment is None
    weights = model(**batch, output_attentions=True).audio_alignment
    assert weights.shape == (2, 4, 9)
    torch.testing.assert_close(weights[0, :3].sum(-1), torch.ones(3))
    assert weights[1].eq(0).all()


def test_the_alignment_loss_of_weights_written_out():
    """L = mean_j -log sum_{i in word j} alpha_{j,i}; a word without a frame does not count."""
    weights = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]]])
    inside = torch.tensor([[[True, False, False], [False, True, True], [False, False, False]]])
    assert alignment_loss(weights, inside).item() == pytest.approx((-math.log(0.5) - math.log(0.9)) / 2, rel=1e-6)
    assert alignment_loss(weights, torch.zeros_like(inside)).item() == 0.0


@torch.no_grad()
def test_the_alignment_loss_is_added_in_training_alone_and_needs_word_times():
    model = make_model("learned_alignment", **WIDTH_FIELDS, alignment_loss_weight=0.3, dropout=0.0)
    batch = pad_examples(
        [make_clip(0, frames=9, words=3), make_clip(1, words=5), make_clip(2, drop=("audio_embeds",))]
    )
    plain = model.eval()(**batch)
    model.train()
    trained = model(**batch, output_attentions=True)
    # frames of 10 ms, each standing for its middle
    middles = torch.arange(trained.audio_alignment.shape[-1]) * 0.01 + 0.005
    terms = []
    for row in range(2):
        for word in range(int(batch["text_mask"][row].sum())):
            start, end = batch["word_times"][row, word]
            inside = (middles >= start) & (middles < end) & batch["audio_mask"][row]
            if inside.any():
                terms.append(-math.log(max(float(trained.audio_alignment[row, word][inside].sum()), 1e-6)))
    assert terms
    assert trained.loss.item() == pytest.approx(plain.loss.item() + 0.3 * sum(terms) / len(terms), rel=1e-4)
    del batch["word_times"]
    with pytest.raises(ValueError, match="training needs word_times of every word"):
        model(**batch)
    assert model.eval()(**batch).loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        ({"rnn": "gru", "alignment": "multihead", "pooling": "attention"}, 2_015_900),
        # additive has 2 W + b + v = 80,400 for the 160,800 of four projections, max nothing for the 40,400 of pooling
        ({"rnn": "gru"}, 2_015_900 - 160_800 + 80_400 - 40_400),
    ],
)
def test_parameters_of_the_released_form(values, parameters):
    with torch.device("meta"):
        model = LearnedAlignmentForEmotionClassification(LearnedAlignmentConfig.paper(vocab_size=2570, **values))
    assert model.num_parameters() == parameters
    assert model.text_model.num_parameters() == 771_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alignment": "dtw"}, "alignment must be one of additive, multihead, none, found 'dtw'"),
        (
            {"alignment": "none", "alignment_loss_weight": 1.0},
            "alignment_loss_weight needs audio, text and an alignment",
        ),
        ({"pooling": "mean"}, "pooling must be one of max, attention, found 'mean'"),
        ({"alignment": "multihead", "num_attention_heads": 7}, "7 heads do not divide 2 \\* hidden_size = 200"),
    ],
)
def test_configurations_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        LearnedAlignmentConfig(**WIDTH_FIELDS, **values)


def test_an_unknown_recurrence_is_refused():
    with pytest.raises(ValueError, match="rnn must be one of lstm, gru, found 'tanh'"):
        make_model("learned_alignment", **WIDTH_FIELDS, rnn="tanh")
