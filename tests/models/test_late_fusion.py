"""Late fusion: the rule against plain loops, votes, absence, gradients, saving with and without the package."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from model_helpers import (
    BertConfig,
    ViTConfig,
    assert_same,
    logits_of,
    make_clip,
    make_config,
    make_model,
    odd_clips,
    randomize,
    raw_clip,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoProcessor,
    ViTImageProcessor,
    pipeline,
)

from mer_hf import (
    TASK,
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    LateFusionConfig,
    LateFusionForEmotionClassification,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    SpectrogramConfig,
    WordTableConfig,
    fuse_logits,
    word_tokenizer,
)
from mer_hf.calibration import fit_temperature
from mer_hf.hub import save_checkpoint
from mer_hf.models.batching import pad_dialogues, pad_examples

NAN, INF = float("nan"), float("inf")
READS = {"spoken": ("audio", "text"), "voice": ("audio",), "face": ("vision",)}
TEMPERATURES, WEIGHTS = (2.0, 0.5, 1.0), (1.0, 3.0, 0.5)


def make_branches(**values):
    """CME of sound and words, learned alignment of sound alone, MMAN of the face: features, no backbones."""
    return {
        "spoken": make_model("cme", audio_embed_dim=6, text_embed_dim=5, calibration_temperature=2.0, **values),
        "voice": make_model("learned_alignment", audio_embed_dim=6, calibration_temperature=0.5, **values),
        "face": make_model("mman", vision_embed_dim=4, **values),
    }


def make_fusion(**values):
    values = {"weights": WEIGHTS} | values
    return LateFusionForEmotionClassification.from_branches(make_branches(), **values).eval()


def fused_by_hand(logits, temperatures, weights):
    """One clip: lists of the logits of the branches that have a vote -> the fused ones."""
    fused = [0.0] * len(logits[0])
    for values, temperature, weight in zip(logits, temperatures, weights, strict=True):
        scaled = [value / temperature for value in values]
        normaliser = max(scaled) + math.log(sum(math.exp(value - max(scaled)) for value in scaled))
        fused = [so_far + weight * (s - normaliser) for so_far, s in zip(fused, scaled, strict=True)]
    return [value / sum(weights) for value in fused]


def without(clip, *modalities):
    """The clip without some modalities and, for the face, its times."""
    gone = {f"{m}_embeds" for m in modalities} | ({"vision_times"} if "vision" in modalities else set())
    return {name: value for name, value in clip.items() if name not in gone}


def own(clip, branch):
    """What of a clip a branch reads."""
    return without(clip, *{"audio", "text", "vision"} - set(READS[branch]))


def has(clip, branch):
    return any(f"{modality}_embeds" in clip for modality in READS[branch])


# The rule


def test_two_branches_by_hand():
    """Geometric means: sqrt(.8 * .5) to sqrt(.2 * .5) is 2 to 1."""
    logits = torch.tensor([[[0.8, 0.2]], [[0.5, 0.5]]]).log()
    fused = fuse_logits(logits, [1, 1], [1, 1])
    torch.testing.assert_close(fused.softmax(-1), torch.tensor([[2 / 3, 1 / 3]]))
    weighted = fuse_logits(logits, [1, 1], [3, 1])
    torch.testing.assert_close(weighted.softmax(-1), torch.tensor([[0.8**0.75, 0.2**0.75]]) / (0.8**0.75 + 0.2**0.75))
    cooled = fuse_logits(logits, [0.5, 1], [1, 0])  # squares: 16 to 1
    torch.testing.assert_close(cooled.softmax(-1), torch.tensor([[16 / 17, 1 / 17]]))


def test_independent_branches_are_multiplied():
    """.8 * .5 to .2 * .5 is 4 to 1, and .8 * .8 to .2 * .2 is 16 to 1; alone a branch says what it says."""
    logits = torch.tensor([[[0.8, 0.2]] * 3, [[0.5, 0.5], [0.8, 0.2], [0.3, 0.7]]]).log()
    mask = [[True, True, True], [True, True, False]]
    fused = fuse_logits(logits, [1, 1], [1, 1], mask, independent=True)
    torch.testing.assert_close(fused.softmax(-1), torch.tensor([[0.8, 0.2], [16 / 17, 1 / 17], [0.8, 0.2]]))
    halves = fuse_logits(logits, [1, 1], [0.5, 0.5], mask, independent=True)
    torch.testing.assert_close(halves[:2], fuse_logits(logits, [1, 1], [1, 1], mask)[:2])


def test_independence_is_the_configurations_and_is_saved(tmp_path):
    fusion = make_fusion(independent=True)
    batch = pad_examples([make_clip(seed) for seed in range(3)])
    output = fusion(**batch)
    temperatures, weights = fusion.config.temperatures, fusion.config.weights
    heard = output.branch_logits.transpose(0, 1)
    expected = fuse_logits(heard, temperatures, weights, output.branch_mask.T, independent=True)
    torch.testing.assert_close(output.logits, expected)
    assert (fuse_logits(heard, temperatures, weights, output.branch_mask.T) - expected).abs().max() > 1e-3
    fusion.save_pretrained(tmp_path)
    assert_same(AutoModel.from_pretrained(tmp_path)(**batch).logits, output.logits)


def test_equals_a_loop_over_clips_and_branches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, 4, generator=generator) * 4
    mask = torch.rand(3, 20, generator=generator) > 0.4
    mask[:, 0], mask[:, 1] = False, True
    garbage = torch.where(mask.unsqueeze(-1), logits, NAN)
    fused = fuse_logits(garbage, TEMPERATURES, WEIGHTS, mask)
    for row in range(20):
        heard = [k for k in range(3) if mask[k, row]]
        rows, temperatures, weights = ([of[k] for k in heard] for of in (logits[:, row], TEMPERATURES, WEIGHTS))
        by_hand = fused_by_hand([r.tolist() for r in rows], temperatures, weights) if heard else [0.0] * 4
        torch.testing.assert_close(fused[row], torch.tensor(by_hand), atol=1e-5, rtol=1e-5)
    array = fuse_logits(logits.double().numpy(), np.array(TEMPERATURES), np.array(WEIGHTS), mask.numpy())
    assert array.dtype == torch.float64
    torch.testing.assert_close(array.float(), fused)


def test_a_label_that_one_branch_rules_out_is_ruled_out_and_nothing_is_nan():
    logits = torch.tensor([[[0.0, 1.0, -INF]], [[2.0, 0.0, 5.0]]])
    fused = fuse_logits(logits, [1, 1])
    assert fused[0, 2] == -INF
    assert fused[0, :2].isfinite().all()
    alone = fuse_logits(logits, [1, 1], mask=[[False], [True]])
    torch.testing.assert_close(alone, logits[1].log_softmax(-1))
    torch.testing.assert_close(fuse_logits(logits, [1, 1], [0, 1]), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_where_nobody_votes(dtype):
    logits = torch.zeros(2, 3, 4, dtype=dtype, requires_grad=True)
    fused = fuse_logits(logits, [1, 1], [1, 1], [[True, False, False], [False, False, True]])
    assert fused.dtype == dtype
    fused[:, 0].sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.any(dim=-1).tolist() == [[True, False, False], [False, False, True]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 4), [1, 1, 1], [1, 1, 1]), r"must be \(branches, batch, labels\)"),
        ((torch.zeros(2, 3, 4), [1, 1], [1, 1], torch.ones(3, 2)), r"mask \(3, 2\)"),
        ((torch.zeros(2, 3, 4), [1], [1, 1]), "2 branches, 1 temperatures and 2 weights"),
        ((torch.zeros(2, 3, 4), [1, 1], [1]), "2 branches, 2 temperatures and 1 weights"),
        ((torch.zeros(2, 3, 4), [1, 0], [1, 1]), "temperatures must be above 0"),
        ((torch.zeros(2, 3, 4), [1, 1], [1, -1]), "weights must be 0 or more"),
        ((torch.zeros(2, 3, 4), [1, NAN], [1, 1]), "temperatures must be above 0"),
    ],
)
def test_what_cannot_be_fused_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fuse_logits(*arguments)


# The model


def test_equals_its_branches_alone_fused_by_hand():
    """Every odd clip: each branch is called by itself on what it reads of the clip."""
    fusion, branches = make_fusion(), make_branches()
    clips = odd_clips()
    batch = pad_examples(list(clips.values()))
    with torch.no_grad():
        output = fusion(**batch)
    for row, (name, clip) in enumerate(clips.items()):
        heard = [k for k, branch in enumerate(branches) if has(clip, branch)]
        assert output.branch_mask[row].tolist() == [k in heard for k in range(3)], name
        alone = {k: logits_of(list(branches.values())[k], [own(clip, list(branches)[k])])[0] for k in heard}
        for k in heard:
            torch.testing.assert_close(output.branch_logits[row, k], alone[k], atol=1e-4, rtol=1e-4, msg=name)
        of = [[values[k] for k in heard] for values in (TEMPERATURES, WEIGHTS)]
        by_hand = fused_by_hand([alone[k].tolist() for k in heard], *of)
        torch.testing.assert_close(output.logits[row], torch.tensor(by_hand), atol=1e-4, rtol=1e-4, msg=name)
    stored = fuse_logits(output.branch_logits.transpose(0, 1), TEMPERATURES, WEIGHTS, output.branch_mask.T)
    torch.testing.assert_close(output.logits, stored)


def test_logits_do_not_move_with_batch_mates_padding_or_order():
    fusion, clips = make_fusion(), odd_clips()
    names = list(clips)
    alone = {name: logits_of(fusion, [clip])[0] for name, clip in clips.items()}
    for order in (names, names[::-1], names[3:] + names[:3]):
        batch = logits_of(fusion, [clips[name] for name in order])
        for row, name in enumerate(order):
            torch.testing.assert_close(batch[row], alone[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)
    assert torch.pdist(torch.stack(list(alone.values()))).min() > 1e-4


def test_garbage_in_masked_places_reaches_neither_logits_nor_gradients():
    fusion = make_fusion()
    batch = pad_examples(list(odd_clips().values()))

    def backward(inputs):
        fusion.zero_grad()
        output = fusion(**inputs)
        output.loss.backward()
        return output.logits, {n: p.grad.clone() for n, p in fusion.named_parameters()}

    clean = backward(batch)
    for garbage in (NAN, 1e30):
        dirty = {name: value.clone() for name, value in batch.items()}
        for modality in ("audio", "text", "vision"):
            dirty[f"{modality}_embeds"][~batch[f"{modality}_mask"]] = garbage
        dirty["vision_times"][~batch["vision_mask"]] = garbage
        torch.testing.assert_close(backward(dirty), clean)


def test_a_branch_without_its_modalities_has_no_vote_rather_than_a_vote_of_zeros():
    fusion, clip = make_fusion(), make_clip(0)
    absent = logits_of(fusion, [without(clip, "vision")])
    zeros = clip | {"vision_embeds": torch.zeros(3, 4)}
    assert not torch.allclose(logits_of(fusion, [zeros]), absent, atol=1e-3)
    masked = {"vision_embeds": torch.full((1, 2, 4), NAN), "vision_mask": torch.zeros(1, 2, dtype=torch.bool)}
    torch.testing.assert_close(logits_of(fusion, [without(clip, "vision")], **masked), absent)
    empty = {"vision_embeds": torch.zeros(1, 0, 4)}
    torch.testing.assert_close(logits_of(fusion, [without(clip, "vision")], **empty), absent)


@pytest.mark.parametrize("absent", [(), ("vision",), ("audio", "text"), ("audio",), ("text", "vision")])
def test_every_parameter_takes_part_in_every_step_and_stays_finite(absent):
    """DistributedDataParallel stops at one that does not, here of a branch that nothing in the batch is for."""
    fusion = make_fusion().train()
    output = fusion(**pad_examples([without(make_clip(seed), *absent) for seed in range(2)]))
    output.loss.backward()
    assert output.logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


def test_a_clip_with_nothing_at_all_is_uniform():
    fusion = make_fusion()
    batch = pad_examples([make_clip(0), {"label": 1}])
    output = fusion(**batch)
    assert output.branch_mask.tolist() == [[True] * 3, [False] * 3]
    assert output.logits[1].tolist() == [0.0] * 4
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in fusion.parameters())


def test_the_loss_is_the_fused_scores_and_each_branchs_own():
    fusion, branches = make_fusion(class_weights=[1.0, 2.0, 3.0, 4.0]), make_branches()
    clips = [make_clip(0), without(make_clip(1), "vision"), without(make_clip(2), "audio", "text"), make_clip(3)]
    del clips[3]["label"]
    output = fusion(**pad_examples(clips))
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, -100]), weight=weight)
    for name, branch in branches.items():
        expected = expected + branch(**pad_examples([own(clip, name) for clip in clips if has(clip, name)])).loss
    torch.testing.assert_close(output.loss, expected)
    unlabelled = pad_examples(clips) | {"labels": torch.full((4,), -100)}
    assert fusion(**unlabelled).loss == 0


@pytest.mark.parametrize("reload", [False, True])
def test_frozen_branches_neither_learn_nor_train(reload, tmp_path):
    fusion = make_fusion(freeze_branches=["spoken", "face"])
    if reload:
        fusion.save_pretrained(tmp_path)
        fusion = AutoModel.from_pretrained(tmp_path)
    fusion.train()
    assert {name: branch.training for name, branch in fusion.branches.items()} == {
        "spoken": False,
        "voice": True,
        "face": False,
    }
    assert not fusion.branches["spoken"].rnn.training
    fusion(**pad_examples([make_clip(0)])).loss.backward()
    learning = {name.split(".")[1] for name, parameter in fusion.named_parameters() if parameter.grad is not None}
    assert learning == {"voice"}
    assert all(parameter.requires_grad for parameter in fusion.branches["voice"].parameters())


def test_gradients_reach_embeds_through_frozen_branches():
    fusion = make_fusion(freeze_branches=["spoken", "voice", "face"])
    batch = pad_examples([make_clip(0)])
    batch["audio_embeds"].requires_grad_()
    fusion(**batch).logits[0, 0].backward()
    assert batch["audio_embeds"].grad.any()


def test_a_branch_keeps_its_own_frozen_backbone(tmp_path):
    audio = FilterbankConfig(conv_dims=(6,), conv_kernels=(3,), conv_strides=(1,))
    branch = make_model("learned_alignment", audio_config=audio, freeze_backbones=["audio"])
    fusion = LateFusionForEmotionClassification.from_branches({"voice": branch})
    fusion.save_pretrained(tmp_path)
    for model in (fusion, AutoModel.from_pretrained(tmp_path)):
        assert not any(p.requires_grad for p in model.branches["voice"].audio_model.parameters())
        assert not model.train().branches["voice"].audio_model.training


def test_half_precision():
    fusion, batch = make_fusion(), pad_examples(list(odd_clips().values()))
    expected = fusion(**batch).logits
    output = fusion.to(torch.bfloat16)(**batch)
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float(), expected, atol=0.25, rtol=0.25)


def test_saved_and_reloaded_alike(tmp_path):
    fusion = make_fusion(calibration_temperature=0.7, freeze_branches=["face"])
    batch = pad_examples(list(odd_clips().values()))
    fusion.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForAudioClassification):
        again = auto.from_pretrained(tmp_path)
        assert type(again) is LateFusionForEmotionClassification
        assert again.untrained_keys == ()
        assert not again.training
        assert_same(again(**batch).logits, fusion(**batch).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.to_dict() | {"_name_or_path": ""} == fusion.config.to_dict() | {"_name_or_path": ""}
    assert (config.calibration_temperature, config.temperatures, list(config.weights)) == (
        0.7,
        TEMPERATURES,
        list(WEIGHTS),
    )
    assert config.branch_names == ["spoken", "voice", "face"]
    assert [type(branch) for branch in config.branches] == [CMEConfig, LearnedAlignmentConfig, MMANConfig]
    assert config.modalities == ("audio", "text", "vision")
    assert config.uses_context and config.uses_word_times


def test_from_folders_as_from_models(tmp_path):
    branches = make_branches()
    for name, branch in branches.items():
        branch.save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in branches}
    fusion = LateFusionForEmotionClassification.from_branches(folders, weights=WEIGHTS).eval()
    clips = list(odd_clips().values())
    torch.testing.assert_close(logits_of(fusion, clips), logits_of(make_fusion(), clips))


def test_a_branch_without_its_head_is_refused(tmp_path):
    make_branches()["voice"].save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    headless = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"branch 'voice': 2 weights \(classifier\.bias, \.\.\.\)"):
        LateFusionForEmotionClassification.from_branches({"voice": tmp_path})


def test_standardizers_of_branches_are_fitted_by_their_own_inputs():
    branches = {
        "voice": make_model("learned_alignment", audio_embed_dim=6, standardize=["audio"]),
        "face": make_model("mman", vision_embed_dim=4, standardize=["vision"]),
        "frozen": make_model("mman", audio_embed_dim=6, standardize=["audio"]),
    }
    fusion = LateFusionForEmotionClassification.from_branches(branches, freeze_branches=["frozen"])
    clips = [without(make_clip(seed, frames=20 + seed), "text") for seed in range(4)]
    fusion.fit_standardizers(lambda: iter([pad_examples(clips[:2]), pad_dialogues([clips[2:]])]))
    for name, modality in (("voice", "audio"), ("face", "vision")):
        frames = torch.cat([clip[f"{modality}_embeds"] for clip in clips])
        torch.testing.assert_close(branches[name].standardizers[modality].mean, frames.mean(0))
    assert not branches["frozen"].standardizers["audio"].fitted


def test_calibrated_scores_are_those_of_the_temperatures_that_were_fitted():
    """End to end: temperatures fitted to each branch's stored logits change the fused ones as the function says."""
    branches, clips = make_branches(), [make_clip(seed) for seed in range(12)]
    labels = np.array([clip["label"] for clip in clips])
    for name, branch in branches.items():
        branch.config.calibration_temperature = fit_temperature(
            logits_of(branch, [own(clip, name) for clip in clips]), labels
        )
    fusion = LateFusionForEmotionClassification.from_branches(branches).eval()
    stored = torch.stack([logits_of(branch, [own(clip, n) for clip in clips]) for n, branch in branches.items()])
    expected = fuse_logits(stored, [branch.config.calibration_temperature for branch in branches.values()], [1, 1, 1])
    torch.testing.assert_close(logits_of(fusion, clips), expected, atol=1e-4, rtol=1e-4)
    assert fusion.config.temperatures != (1.0, 1.0, 1.0)


# Dialogues


def test_a_dialogue_is_read_together_by_the_branches_that_have_context():
    fusion, branches = make_fusion(), make_branches()
    dialogues = [[make_clip(0), without(make_clip(1), "vision"), make_clip(2, frames=60)], [make_clip(3)]]
    batch = pad_dialogues(dialogues)
    with torch.no_grad():
        output = fusion(**batch)
    assert output.logits.shape == (2, 3, 4)
    assert output.branch_logits.shape == (2, 3, 3, 4)
    assert output.branch_mask.tolist() == [
        [[True] * 3, [True, True, False], [True] * 3],
        [[True] * 3, *[[False] * 3] * 2],
    ]
    assert output.logits[1, 1:].eq(0).all()
    faces = logits_of_dialogues(branches["face"], [[own(turn, "face") for turn in turns] for turns in dialogues])
    for row, turns in enumerate(dialogues):
        for turn, clip in enumerate(turns):
            spoken, voice = (logits_of(branches[name], [own(clip, name)])[0] for name in ("spoken", "voice"))
            heard = [spoken, voice, faces[row, turn]][: 3 if has(clip, "face") else 2]
            by_hand = fused_by_hand(
                [values.tolist() for values in heard], TEMPERATURES[: len(heard)], WEIGHTS[: len(heard)]
            )
            torch.testing.assert_close(output.logits[row, turn], torch.tensor(by_hand), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(output.logits[0, 2], logits_of(fusion, [dialogues[0][2]])[0], atol=1e-4)  # context
    output = fusion(**batch)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in fusion.parameters())


def test_a_turn_that_the_mask_leaves_out_has_no_vote_whatever_stands_in_it():
    fusion, clips = make_fusion(), [make_clip(0), make_clip(1)]
    batch = pad_dialogues([clips]) | {"turn_mask": torch.tensor([[True, False]])}
    with torch.no_grad():
        output = fusion(**batch)
    assert output.branch_mask.tolist() == [[[True] * 3, [False] * 3]]
    assert output.logits[0, 1].eq(0).all()
    torch.testing.assert_close(output.logits[0, 0], logits_of(fusion, clips[:1])[0], atol=1e-5, rtol=1e-5)


def logits_of_dialogues(model, dialogues):
    with torch.no_grad():
        return model(**pad_dialogues(dialogues)).logits


def test_branches_without_context_take_dialogues_turn_by_turn():
    branches = {name: branch for name, branch in make_branches().items() if name != "face"}
    fusion = LateFusionForEmotionClassification.from_branches(branches).eval()
    assert not fusion.config.uses_context
    clips = [without(make_clip(seed, frames=30 + seed), "vision") for seed in range(3)]
    dialogues = logits_of_dialogues(fusion, [clips])
    torch.testing.assert_close(dialogues[0], logits_of(fusion, clips), atol=1e-5, rtol=1e-5)


# Raw input, one processor, the pipeline

TRANSCRIPT = "kids are talking by the door"
WORDS = [{"word": word, "start": 0.12 * i, "end": 0.12 * (i + 1)} for i, word in enumerate(TRANSCRIPT.split())]
TABLE = {"vocab_size": 8, "embedding_dim": 6}
VIT = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}


def raw_branches():
    """Two branches with other front ends of their own for the same sound and words, and one of the face."""
    torch.manual_seed(0)
    branches = {
        "spoken": CMEForEmotionClassification(
            CMEConfig(
                audio_config=FilterbankConfig(conv_dims=(8, 8, 8)),
                text_config=WordTableConfig(**TABLE, gate_dim=16),
                hidden_size=16,
                calibration_temperature=1.5,
            )
        ),
        "aligned": LearnedAlignmentForEmotionClassification(
            LearnedAlignmentConfig(
                audio_config=SpectrogramConfig(hidden_size=8), text_config=WordTableConfig(**TABLE), hidden_size=4
            )
        ),
        "face": MMANForEmotionClassification(
            MMANConfig(vision_config=ViTConfig(**VIT, num_attention_heads=2), hidden_size=8, classifier_size=8)
        ),
    }
    return {name: randomize(branch, seed).eval() for seed, (name, branch) in enumerate(branches.items())}


@pytest.fixture(scope="module")
def raw_fusion():
    values = {"weights": [2.0, 1.0, 1.0], "calibration_temperature": 0.8}
    return LateFusionForEmotionClassification.from_branches(raw_branches(), **values).eval()


@pytest.fixture(scope="module")
def processor():
    images = ViTImageProcessor(size={"height": 8, "width": 8})
    return MerProcessor.default(tokenizer=word_tokenizer([TRANSCRIPT]), image_processor=images, num_frames=3)


@pytest.fixture(scope="module")
def checkpoint(raw_fusion, processor, tmp_path_factory):
    return save_checkpoint(raw_fusion, processor, tmp_path_factory.mktemp("checkpoints") / "fusion")


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.wav"
    samples = np.random.default_rng(0).standard_normal(12_800) * 3000
    soundfile.write(path, samples.astype(np.int16), 16_000)
    return path


def raw_words(clip):
    """Two tokens a word are the tiny WordPiece's; a word table has one, and eight rows."""
    if "input_ids" not in clip:
        return clip
    words = len(clip["word_times"])
    return clip | {"input_ids": clip["input_ids"][:words] % 8, "word_ids": torch.arange(words)}


def test_raw_clips_do_not_move_with_batch_mates(raw_fusion):
    clips = [
        raw_words(clip)
        for clip in (
            raw_clip(0),
            raw_clip(1, samples=5000, tokens=8, faces=1),
            raw_clip(2, drop=("input_values",)),
            raw_clip(3, drop=("input_ids", "word_ids", "word_times")),
            raw_clip(4, drop=("pixel_values", "vision_times")),
        )
    ]
    batch = logits_of(raw_fusion, clips)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(batch[row], logits_of(raw_fusion, [clip])[0], atol=1e-4, rtol=1e-4)
    assert torch.pdist(batch).min() > 1e-3


def test_sound_shorter_than_a_frame_and_text_without_a_word_have_no_vote(raw_fusion):
    short = raw_clip(0, samples=300, drop=("input_ids", "word_ids", "word_times"))
    unsaid = {"input_ids": torch.tensor([2, 3]), "word_ids": torch.tensor([-1, -1])}
    said = raw_words(raw_clip(1, drop=("input_values", "pixel_values", "vision_times")))
    with torch.no_grad():
        output = raw_fusion(**pad_examples([short, unsaid, said]))
    assert output.branch_mask.tolist() == [[False, False, True], [False, False, False], [True, True, False]]
    assert output.logits[1].eq(0).all()


def test_only_the_code_that_is_needed_is_copied(checkpoint):
    code = {file.name for file in checkpoint.glob("*.py")}
    papers = {"cme", "learned_alignment", "mman", "late_fusion"}
    assert {f"{kind}_{paper}.py" for paper in papers for kind in ("configuration", "modeling")} <= code
    saved = json.loads((checkpoint / "config.json").read_text())
    assert saved["auto_map"]["AutoModel"] == "modeling_late_fusion.LateFusionForEmotionClassification"
    assert not any({"auto_map", "custom_pipelines"} & set(branch) for branch in saved["branches"])


def test_the_checkpoint_gives_the_same_scores_without_the_package(raw_fusion, processor, checkpoint, wav, tmp_path):
    from test_hub import LOAD_WITHOUT_THE_PACKAGE

    arguments = json.dumps([TASK, str(wav), WORDS, {"fusion": str(checkpoint)}])
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", LOAD_WITHOUT_THE_PACKAGE, arguments],
        cwd=tmp_path,
        env=os.environ
        | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["mer_hf"] is False
    found = answer["found"]["fusion"]
    assert found["modules"] == ["transformers_modules"] * 4
    assert found["config"] == "LateFusionConfig"
    inputs = processor(audio=[soundfile.read(wav, dtype="float32")[0]], words=[WORDS])
    with torch.no_grad():
        expected = raw_fusion(**inputs).logits
    for logits in found["logits"]:
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=1e-5)
    probabilities = (expected[0] / 0.8).softmax(-1).tolist()
    scores = {item["label"]: item["score"] for item in found["scores"]}
    assert scores == pytest.approx(
        dict(zip(raw_fusion.config.id2label.values(), probabilities, strict=True)), abs=1e-5
    )


def test_the_installed_package_needs_no_trust(raw_fusion, checkpoint, wav):
    assert type(AutoProcessor.from_pretrained(checkpoint)) is MerProcessor
    assert type(AutoModel.from_pretrained(checkpoint)) is LateFusionForEmotionClassification
    pipe = pipeline(TASK, model=str(checkpoint), device="cpu")
    clips = [
        {"audio": str(wav), "words": WORDS},
        {"text": "kids door"},
        {"video": {"frames": np.full((2, 8, 8, 3), 90, np.uint8), "times": np.array([0.1, 0.5])}, "text": ""},
    ]
    results = [pipe(clip, return_details=True) for clip in clips]
    assert [result["modalities"] for result in results] == [["audio", "text"], ["text"], ["vision"]]
    for one, other in zip(pipe(clips, batch_size=3), results, strict=True):
        first, second = ({item["label"]: item["score"] for item in scores} for scores in (one, other["scores"]))
        assert first == pytest.approx(second, abs=1e-5)
    assert results[0]["scores"] != results[1]["scores"]
    assert len(pipe(dialogue=clips)) == 3
    with pytest.raises(ValueError, match=r"give audio=, text= or words=, video="):
        pipe(text="?!")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.ones(1, 3).long(), "word_ids": torch.zeros(1, 2).long()}, "branch 'spoken': word_ids is"),
        (
            {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)},
            "branch 'spoken': attention_mask",
        ),
        ({"pixel_values": torch.zeros(1, 3, 8, 8)}, "inputs must all have a turns axis"),
        (
            {"input_ids": torch.ones(1, 3).long(), "text_embeds": torch.zeros(1, 3, 6)},
            "text_embeds: the branches want",
        ),
    ],
)
def test_raw_input_that_does_not_fit(raw_fusion, inputs, message):
    with pytest.raises(ValueError, match=message):
        raw_fusion(**inputs)


def test_features_serve_branches_with_the_same_backbone_and_those_with_none():
    audio = FilterbankConfig(conv_dims=(6,), conv_kernels=(3,), conv_strides=(1,))
    branches = {
        "raw": make_model("learned_alignment", audio_config=audio),
        "again": make_model("mman", audio_config=audio),
        "cached": make_model("learned_alignment", audio_embed_dim=6),
    }
    fusion = LateFusionForEmotionClassification.from_branches(branches).eval()
    assert not fusion.config.reads_raw("audio")
    assert fusion(audio_embeds=make_clip(0)["audio_embeds"][None]).branch_mask.all()


# Refusals


def text_branch(vocab_size):
    return make_config("mman", text_config=WordTableConfig(vocab_size=vocab_size, embedding_dim=4), network="unimodal")


def bert_branch(vocab_size):
    config = BertConfig(vocab_size=vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    return make_config("learned_alignment", text_config=config)


def face_branch(image_size):
    config = ViTConfig(**VIT | {"image_size": image_size}, num_attention_heads=2)
    return make_config("learned_alignment", vision_config=config)


@pytest.mark.parametrize(
    ("branches", "values", "message"),
    [
        ({}, {}, "0 branches, 0 branch_names"),
        ({"a": make_config("cme", audio_embed_dim=6)}, {"branch_names": []}, "1 branches, 0 branch_names"),
        ({"two words": make_config("cme", audio_embed_dim=6)}, {}, "different identifiers"),
        ({"a": BertConfig()}, {}, "branch 'a' is a 'bert'; a branch is one of cme, learned_alignment, mman"),
        ({"a": {"hidden_size": 8}}, {}, "branch 'a' is a None"),
        (
            {"a": text_branch(30), "b": make_config("cme", audio_embed_dim=6, id2label={0: "angry", 1: "sad"})},
            {},
            r"branch 'b' has the labels \['angry', 'sad'\], the fusion \['angry', 'happy', 'neutral', 'sad'\]",
        ),
        (
            {"a": make_config("cme", audio_embed_dim=6)},
            {"id2label": {0: "sad", 1: "happy", 2: "neutral", 3: "angry"}},
            "branch 'a' has the labels",
        ),
        (
            {"table": text_branch(30), "pieces": bert_branch(99)},
            {},
            r"text: .*vocab_size, .*'table': 30, 'pieces': 99",
        ),
        ({"small": face_branch(8), "large": face_branch(16)}, {}, r"vision: .*image_size, .*'small': 8, 'large': 16"),
        (
            {"raw": make_config("cme", audio_config=FilterbankConfig()), "b": make_config("mman", audio_embed_dim=88)},
            {},
            r"audio: branches want different features, of widths {'raw': 128, 'b': 88}, and b cannot read it raw",
        ),
        ({"a": text_branch(30)}, {"weights": [1.0, 2.0]}, "weights must be 1 numbers above 0"),
        ({"a": text_branch(30)}, {"weights": [0.0]}, "leave a branch out"),
        (
            {"a": text_branch(30)},
            {"freeze_branches": ["b"]},
            r"freeze_branches names \['b'\]; the branches are \['a'\]",
        ),
        ({"a": text_branch(30)}, {"audio_config": FilterbankConfig()}, "audio_config belongs to the branches"),
        ({"a": text_branch(30)}, {"standardize": ["text"]}, "standardize belongs to the branches"),
        ({"a": text_branch(30)}, {"text_embed_dim": 9}, "text_embed_dim is 9 but the branches want"),
        ({"a": text_branch(30)}, {"calibration_temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_by_the_configuration(branches, values, message):
    with pytest.raises(ValueError, match=message):
        LateFusionConfig(**{"branches": list(branches.values()), "branch_names": list(branches)} | values)


def test_a_name_that_torch_has_taken():
    config = LateFusionConfig(branches=[make_config("cme", audio_embed_dim=6)], branch_names=["keys"])
    with pytest.raises(ValueError, match=r"branch_names \['keys'\] cannot name parts"):
        LateFusionForEmotionClassification(config)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "nothing to classify"),
        ({"audio_mask": torch.ones(1, 3)}, "nothing to classify"),
        ({"input_values": torch.zeros(1, 800)}, "input_values given, but not every branch with audio has a backbone"),
        ({"audio_embeds": torch.zeros(1, 3, 9)}, r"audio_embeds must be \(batch, \[turns,\] time, 6\)"),
        ({"audio_embeds": torch.zeros(2, 3, 6), "vision_embeds": torch.zeros(3, 1, 4)}, "batch sizes differ"),
        (
            {"audio_embeds": torch.zeros(1, 3, 6), "labels": torch.zeros(2).long()},
            r"labels must be \(1,\), found \(2,\)",
        ),
        (
            {"audio_embeds": torch.zeros(1, 2, 3, 6), "turn_mask": torch.ones(1, 3)},
            r"turn_mask must be \(1, 2\), found \(1, 3\)",
        ),
        (
            {"audio_embeds": torch.zeros(1, 2, 3, 6), "word_times": torch.zeros(1, 1, 2)},
            r"word_times is \(1, 1, 2\): inputs must all have a turns axis",
        ),
        (
            {"audio_embeds": torch.zeros(1, 3, 6), "text_embeds": torch.zeros(1, 2, 5)},
            "branch 'spoken': words and audio without word_times",
        ),
    ],
)
def test_by_the_model(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_fusion()(**inputs)


def test_features_of_branches_that_differ_can_only_be_given_raw(raw_fusion):
    assert raw_fusion.config.reads_raw("audio")
    with pytest.raises(ValueError, match=r"audio_embeds: the branches want different features, .*give raw input"):
        raw_fusion(audio_embeds=torch.zeros(1, 3, 8))  # the width of both
    fusion = LateFusionForEmotionClassification.from_branches({"voice": make_branches()["voice"]})
    with pytest.raises(ValueError, match=r"vision_embeds given, but the branches use only \('audio',\)"):
        fusion(audio_embeds=torch.zeros(1, 3, 6), vision_embeds=torch.zeros(1, 3, 4))
