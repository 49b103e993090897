"""MMAN, its parts and baselines against their equations; dialogues; the two stages of training."""

import copy
import math

import pytest
import torch
from model_helpers import WIDTH_FIELDS, logits_of, make_clip, make_config, make_model, randomize, rnn_steps
from torch import nn

from mer_hf import MMANConfig, MMANForEmotionClassification
from mer_hf.models.batching import pad_dialogues, pad_examples
from mer_hf.models.modeling_mman import LateLinear

NAMES = ("audio", "text", "vision")
NETWORKS = ["mman", "clstm_mma", "early_fusion", "late_fusion"]


def linear(module, value):
    return module.weight @ value + module.bias


def vectors_of(turn):
    """One vector a modality: the mean of the clip's frames."""
    return {m: turn[f"{m}_embeds"].mean(dim=0) for m in NAMES if f"{m}_embeds" in turn}


def attention_naively(module, vectors, score, skip):
    """y_m = x_m + sum_n softmax_n(cos(q_m, k_n)) v_n over the modalities that are there, and alpha."""
    x = {m: linear(module.projections[m], v).relu() for m, v in vectors.items()}
    outputs, weights = [], torch.zeros(3, 3)
    for row, m in enumerate(NAMES):
        if m not in x:
            outputs.append(torch.zeros(len(next(iter(x.values()))) * (1 if skip == "add" else 2)))
            continue
        scores = []
        for n in x:
            q, k = linear(module.queries[m], x[m]), linear(module.keys[n], x[n])
            scale = q.norm() * k.norm() if score == "cosine" else math.sqrt(len(q))
            scores.append(math.exp(float(q @ k / scale)))
        attended = torch.zeros_like(x[m])
        for n, value in zip(x, scores, strict=True):
            weights[row, NAMES.index(n)] = value / sum(scores)
            attended = attended + value / sum(scores) * linear(module.values[n], x[n])
        outputs.append(x[m] + attended if skip == "add" else torch.cat([x[m], attended]))
    return torch.cat(outputs), weights


def clstm_naively(module, steps):
    """Linear(ReLU(Linear(ReLU(LSTM)))) for each step."""
    return [linear(module.classifier, linear(module.hidden, h.relu()).relu()) for h in rnn_steps(module.rnn, steps)]


def network_naively(name, network, turns, score="cosine", skip="add"):
    """Logits of every turn of a dialogue."""
    vectors = [vectors_of(turn) for turn in turns]
    if name == "clstm_mma":
        steps = [attention_naively(network.attention, v, score, skip)[0] for v in vectors]
        return clstm_naively(network.clstm, steps)
    if name == "early_fusion":
        return clstm_naively(network.clstm, [torch.cat([v[m] for m in NAMES]) for v in vectors])
    alone = []
    for m in NAMES:
        have = [index for index, v in enumerate(vectors) if m in v]
        logits = clstm_naively(network.unimodal[m].clstm, [vectors[index][m] for index in have])
        alone.append(dict(zip(have, logits, strict=True)))
    labels = 4
    if name == "late_fusion":
        steps = [torch.cat([one.get(t, torch.zeros(labels)) for one in alone]) for t in range(len(turns))]
        return clstm_naively(network.clstm, steps)
    early = network_naively("clstm_mma", network.clstm_mma, turns, score, skip)
    results = []
    for t in range(len(turns)):
        branches = [early[t], *(one.get(t) for one in alone)]
        total = torch.zeros(labels)
        for index, logits in enumerate(branches):
            if logits is not None:
                total = total + network.fusion.weight[:, index * labels : (index + 1) * labels] @ logits
        results.append(total * 4 / sum(logits is not None for logits in branches) + network.fusion.bias)
    return results


def dialogue(seed, turns, drop=None):
    """Turns with their own lengths; drop {turn: names of fields}."""
    drop = drop or {}
    return [
        make_clip(seed + t, 5 + t, 2 + t % 2, 2, drop=(*drop.get(t, ()), "word_times", "vision_times"))
        for t in range(turns)
    ]


DIALOGUES = [
    dialogue(0, 3),
    dialogue(10, 5, {1: ("audio_embeds",), 2: ("text_embeds", "vision_embeds"), 4: ("vision_embeds",)}),
    dialogue(20, 1),
]


@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("skip", ["add", "concat"])
@torch.no_grad()
def test_attention_and_its_weights_equal_the_equations(score, skip):
    model = make_model("mman", **WIDTH_FIELDS, network="clstm_mma", score=score, skip=skip)
    output = model(**pad_dialogues(DIALOGUES), output_attentions=True)
    for row, turns in enumerate(DIALOGUES):
        expected = network_naively("clstm_mma", model.network, turns, score, skip)
        torch.testing.assert_close(output.logits[row, : len(turns)], torch.stack(expected), atol=1e-5, rtol=1e-5)
        for index, turn in enumerate(turns):
            _, weights = attention_naively(model.network.attention, vectors_of(turn), score, skip)
            torch.testing.assert_close(output.attentions[row, index], weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", ["mman", "late_fusion"])
@torch.no_grad()
def test_networks_of_branches_equal_the_equations(network):
    model = make_model("mman", **WIDTH_FIELDS, network=network)
    logits = model(**pad_dialogues(DIALOGUES)).logits
    for row, turns in enumerate(DIALOGUES):
        expected = torch.stack(network_naively(network, model.network, turns))
        torch.testing.assert_close(logits[row, : len(turns)], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_early_fusion_equals_the_equations():
    model = make_model("mman", **WIDTH_FIELDS, network="early_fusion")
    turns = DIALOGUES[0]
    expected = torch.stack(network_naively("early_fusion", model.network, turns))
    torch.testing.assert_close(model(**pad_dialogues([turns])).logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", NAMES)
@torch.no_grad()
def test_unimodal_network_equals_the_equations(modality):
    field = f"{modality}_embed_dim"
    model = make_model("mman", **{field: WIDTH_FIELDS[field]}, network="unimodal")
    turns = [{f"{modality}_embeds": turn[f"{modality}_embeds"]} for turn in DIALOGUES[0]]
    expected = clstm_naively(model.network.clstm, [turn[f"{modality}_embeds"].mean(0) for turn in turns])
    logits = model(**pad_dialogues([turns])).logits[0]
    torch.testing.assert_close(logits, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", NAMES)
@torch.no_grad()
def test_linear_baseline_equals_the_equation_for_every_turn_by_itself(modality):
    field = f"{modality}_embed_dim"
    model = make_model("mman", **{field: WIDTH_FIELDS[field]}, network="linear")
    turns = [{f"{modality}_embeds": turn[f"{modality}_embeds"]} for turn in DIALOGUES[0]]
    expected = [linear(model.network.classifier, turn[f"{modality}_embeds"].mean(0)) for turn in turns]
    logits = model(**pad_dialogues([turns])).logits[0]
    torch.testing.assert_close(logits, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_parameters_of_the_circulating_code():
    def count(**values):
        with torch.device("meta"):
            return MMANForEmotionClassification(MMANConfig.paper(**values))

    def size(module):
        return sum(parameter.numel() for parameter in module.parameters())

    mman = count()
    assert mman.num_parameters() == 5_566_384
    assert {m: size(branch) for m, branch in mman.network.unimodal.items()} == {
        "audio": 1_265_804,
        "text": 1_265_804,
        "vision": 1_760_204,
    }
    assert size(mman.network.clstm_mma) == count(network="clstm_mma").num_parameters() == 1_274_504
    attention = mman.network.clstm_mma.attention
    assert size(attention) - size(attention.projections) == 203_850
    assert count(network="early_fusion").num_parameters() == 4_715_500
    assert count(network="unimodal", text_embed_dim=None, vision_embed_dim=None).num_parameters() == 1_265_804


@pytest.mark.parametrize("network", NETWORKS)
class TestDialogues:
    def test_a_clip_is_a_dialogue_of_one_turn(self, network):
        model = make_model("mman", **WIDTH_FIELDS, network=network)
        clips = [make_clip(0), make_clip(1, frames=9), make_clip(2, drop=("text_embeds",))]
        with torch.no_grad():
            alone = model(**pad_examples(clips), output_attentions=True)
            turns = model(**pad_dialogues([[clip] for clip in clips]), output_attentions=True)
        assert alone.logits.shape == (3, 4)
        assert turns.logits.shape == (3, 1, 4)
        for name, value in turns.items():
            torch.testing.assert_close(value.squeeze(1) if name != "loss" else value, alone[name])

    def test_neither_padded_turns_nor_other_dialogues_matter(self, network):
        model = make_model("mman", **WIDTH_FIELDS, network=network)
        batch = logits_of_dialogues(model, DIALOGUES)
        for row, turns in enumerate(DIALOGUES):
            alone = logits_of_dialogues(model, [turns])[0]
            torch.testing.assert_close(batch[row, : len(turns)], alone, atol=1e-5, rtol=1e-5)

    def test_later_turns_do_not_change_earlier_logits(self, network):
        model = make_model("mman", **WIDTH_FIELDS, network=network)
        turns = dialogue(3, 4)
        logits = logits_of_dialogues(model, [turns])[0]
        changed = logits_of_dialogues(model, [[*turns[:2], *dialogue(50, 3)]])[0]
        torch.testing.assert_close(changed[:2], logits[:2], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(changed[2:4], logits[2:4], atol=1e-3)

    def test_earlier_turns_do_change_later_logits(self, network):
        model = make_model("mman", **WIDTH_FIELDS, network=network)
        turns = dialogue(3, 3)
        changed = logits_of_dialogues(model, [[*dialogue(50, 1), *turns[1:]]])[0]
        assert not torch.allclose(changed[2], logits_of_dialogues(model, [turns])[0, 2], atol=1e-4)

    def test_what_turn_mask_hides_reaches_neither_logits_nor_gradients(self, network):
        """The hidden turn is full of NaN, and its own masks call it real."""
        model = make_model("mman", **WIDTH_FIELDS, network=network)
        batch = pad_dialogues([dialogue(0, 3), dialogue(5, 2)])
        dirty = {name: value.clone() for name, value in batch.items()}
        for modality in NAMES:
            dirty[f"{modality}_embeds"][1, 2] = float("nan")
            dirty[f"{modality}_mask"][1, 2] = True
        results = []
        for inputs in (batch, dirty):
            model.zero_grad()
            output = model(**inputs)
            output.loss.backward()
            results.append((output, [p.grad.clone() for p in model.parameters()]))
        (clean, clean_grads), (other, other_grads) = results
        torch.testing.assert_close(other.logits[0], clean.logits[0])
        torch.testing.assert_close(other.logits[1, :2], clean.logits[1, :2])
        torch.testing.assert_close(other.loss, clean.loss)
        torch.testing.assert_close(other_grads, clean_grads)

    def test_padded_turns_do_not_count_in_the_loss(self, network):
        model = make_model("mman", **WIDTH_FIELDS, network=network)
        turns = dialogue(0, 2)
        with torch.no_grad():
            alone = model(**pad_dialogues([turns])).loss
            unlabelled = [{name: value for name, value in turn.items() if name != "label"} for turn in dialogue(9, 4)]
            padded = model(**pad_dialogues([turns, unlabelled])).loss
        torch.testing.assert_close(alone, padded)


def logits_of_dialogues(model, dialogues):
    with torch.no_grad():
        return model(**pad_dialogues(dialogues)).logits


def test_a_turn_without_a_modality_is_no_step_of_its_lstm():
    model = make_model("mman", audio_embed_dim=6, network="unimodal")
    turns = [{"audio_embeds": turn["audio_embeds"]} for turn in dialogue(0, 3)]
    with_gap = [turns[0], {}, *turns[1:]]
    logits = logits_of_dialogues(model, [with_gap])[0]
    torch.testing.assert_close(logits[[0, 2, 3]], logits_of_dialogues(model, [turns])[0])


class TestLateLinear:
    LOGITS = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [float("nan"), 7.0], [5.0, 1.0]]])

    def late(self):
        late = LateLinear(4, 2)
        late.start_as_mean()
        return late

    def test_starts_as_the_mean(self):
        logits = self.LOGITS.nan_to_num(3.0)
        assert self.late()(logits, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[3.0, 4.0]]

    def test_branches_that_are_there_weigh_more(self):
        present = torch.tensor([[True, True, False, True]])
        torch.testing.assert_close(self.late()(self.LOGITS, present), torch.tensor([[3.0, 3.0]]))

    def test_none_there_leaves_the_bias(self):
        late = self.late()
        nn.init.constant_(late.bias, 0.5)
        assert late(self.LOGITS, torch.zeros(1, 4, dtype=torch.bool)).tolist() == [[0.5, 0.5]]

    def test_the_bias_is_not_scaled(self):
        late = self.late()
        nn.init.constant_(late.bias, 0.5)
        torch.testing.assert_close(
            late(self.LOGITS, torch.tensor([[True, False, False, False]])), torch.tensor([[1.5, 2.5]])
        )


class TestTwoStages:
    def model(self, **values):
        torch.manual_seed(0)
        return MMANForEmotionClassification(make_config("mman", **WIDTH_FIELDS, **values))

    def batch(self):
        return pad_dialogues(DIALOGUES)

    @pytest.mark.parametrize("reload", [False, True])
    def test_a_new_fusion_is_the_mean_of_its_branches(self, reload, tmp_path):
        model = self.model().eval()
        if reload:
            model.save_pretrained(tmp_path)
            model = MMANForEmotionClassification.from_pretrained(tmp_path)
        output = model(**pad_dialogues(DIALOGUES[:1]))
        torch.testing.assert_close(output.logits, output.branch_logits.mean(dim=-2))

    def test_before_it_the_fusions_gradient_stays_with_the_fusion(self):
        model = randomize(self.model().eval())
        output = model(**self.batch())
        nn.functional.cross_entropy(output.logits.flatten(0, 1), self.batch()["labels"].flatten()).backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None}
        assert moved == {"network.fusion.weight", "network.fusion.bias"}

    def test_the_loss_is_that_of_the_fusion_and_of_each_branch_present(self):
        model = randomize(self.model().eval())
        output = model(**self.batch())
        losses = [[] for _ in range(5)]
        for row, turns in enumerate(DIALOGUES):
            for index, turn in enumerate(turns):
                label = torch.tensor([turn["label"]])
                have = [True, *(f"{m}_embeds" in turn for m in NAMES)]
                logits = [output.logits[row, index], *output.branch_logits[row, index]]
                for place, (one, there) in enumerate(zip(logits, [True, *have], strict=True)):
                    if there:
                        losses[place].append(nn.functional.cross_entropy(one.unsqueeze(0), label))
        expected = sum(sum(branch) / len(branch) for branch in losses)
        torch.testing.assert_close(output.loss, expected)

    def test_an_absent_branch_learns_nothing(self):
        model = randomize(self.model().eval())
        turns = [{name: v for name, v in turn.items() if "vision" not in name} for turn in DIALOGUES[0]]
        model(**pad_dialogues([turns])).loss.backward()
        for modality, branch in model.network.unimodal.items():
            zero = all(p.grad.eq(0).all() for p in branch.parameters())
            assert zero == (modality == "vision")

    @pytest.mark.parametrize("reload", [False, True])
    def test_frozen_branches_neither_learn_nor_drop(self, reload, tmp_path):
        model = self.model().train()
        model.freeze_branches()
        if reload:
            model.save_pretrained(tmp_path)
            model = MMANForEmotionClassification.from_pretrained(tmp_path)
        model.train()
        assert model.training
        assert not any(module.training for name, module in model.named_modules() if name)
        assert [n for n, p in model.named_parameters() if p.requires_grad] == [
            "network.fusion.weight",
            "network.fusion.bias",
        ]
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
        first = model(**self.batch())
        torch.testing.assert_close(first.logits, model(**self.batch()).logits)  # no dropout
        first.loss.backward()
        optimizer.step()
        assert model(**self.batch()).loss < first.loss
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {"network.fusion.weight", "network.fusion.bias"}

    def test_the_second_stages_loss_is_the_fusions_alone(self):
        model = randomize(self.model(freeze_branches=True))
        output = model(**self.batch())
        expected = nn.functional.cross_entropy(output.logits.flatten(0, 1), self.batch()["labels"].flatten())
        torch.testing.assert_close(output.loss, expected)

    def test_freezing_keeps_a_trained_fusion(self):
        model = randomize(self.model().eval())
        logits = model(**self.batch()).logits
        model.freeze_branches()
        assert torch.equal(model(**self.batch()).logits, logits)

    def test_other_networks_have_no_branches(self):
        with pytest.raises(ValueError, match="network 'clstm_mma' has no branches to freeze"):
            self.model(network="clstm_mma", freeze_branches=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "lstm"}, "network must be one of mman, .* found 'lstm'"),
        ({"score": "euclid"}, "score must be cosine or dot, found 'euclid'"),
        ({"skip": "none"}, "skip must be add or concat, found 'none'"),
        ({"network": "unimodal"}, r"uni-modal network takes one modality, found \['audio', 'text', 'vision'\]"),
        ({"network": "linear"}, r"uni-modal network takes one modality, found \['audio', 'text', 'vision'\]"),
    ],
)
def test_configurations_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        MMANConfig.paper(**values)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"audio_embeds": torch.zeros(2, 3, 1, 6), "text_embeds": torch.zeros(2, 1, 5)},
            r"turns axis .*found \{'audio_embeds': \(2, 3, 1, 6\)\}",
        ),
        (
            {"audio_embeds": torch.zeros(2, 3, 1, 6), "text_embeds": torch.zeros(3, 2, 1, 5)},
            r"same batch and turns; found .*'text_embeds': \(3, 2\)",
        ),
        ({"audio_embeds": torch.zeros(2, 6)}, r"audio_embeds.*\(2, 6\)"),
        (
            {"audio_embeds": torch.zeros(2, 3, 1, 6), "turn_mask": torch.ones(1, 3)},
            r"turn_mask must be \(2, 3\), found \(1, 3\)",
        ),
        (
            {"audio_embeds": torch.zeros(2, 3, 1, 6), "labels": torch.zeros(2, dtype=torch.long)},
            r"labels must be \(2, 3\), found \(2,\)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model("mman", **WIDTH_FIELDS)(**inputs)


def test_logits_do_not_depend_on_the_labels_layout():
    model = make_model("mman", **WIDTH_FIELDS)
    batch = pad_dialogues(DIALOGUES)
    transposed = batch | {"labels": batch["labels"].T.contiguous().T}
    torch.testing.assert_close(model(**transposed).loss, model(**batch).loss)


def test_clips_can_be_scored_without_labels():
    assert logits_of(make_model("mman", **WIDTH_FIELDS), [make_clip(0)]).shape == (1, 4)
