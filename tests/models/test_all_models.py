"""What every model keeps to: batches, masks, absence, gradients, saving, backbones, freezing, refusals."""

import copy
import json

import pytest
import torch
from model_helpers import (
    AUDIO_CONFIGS,
    CLASSES,
    TEXT_CONFIGS,
    VARIANTS,
    VISION_CONFIGS,
    WIDTH_FIELDS,
    WIDTHS,
    assert_same,
    logits_of,
    make_clip,
    make_config,
    make_model,
    make_variant,
    odd_clips,
    quiet_build,
    randomize,
    raw_clip,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    BertConfig,
    ViTConfig,
)

from mer_hf import (
    CMEConfig,
    FilterbankConfig,
    FilterbankStatisticsConfig,
    LearnedAlignmentConfig,
    MMANConfig,
    SpectrogramConfig,
    WordTableConfig,
)
from mer_hf.models.backbones import encode_audio, encode_text, encode_vision
from mer_hf.models.batching import pad_dialogues, pad_examples

# Raised by WavLM's attention in transformers 5.23 with torch 2.14 (November 2026) whenever it gets a mask.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")

NAN = float("nan")
SUBSETS = [("audio",), ("text",), ("vision",), ("audio", "text"), ("audio", "vision"), ("text", "vision")]
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_model = pytest.mark.parametrize("model_type", CLASSES)
no_dropout = {"dropout": 0.0}


def backward(model, batch):
    """The output and a copy of every gradient there is."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@each_variant
class TestBatches:
    def test_logits_do_not_move_with_batch_mates_padding_or_order(self, variant):
        model = make_variant(variant)
        clips = odd_clips()
        names = list(clips)
        alone = {name: logits_of(model, [clip])[0] for name, clip in clips.items()}
        for order in (names, names[::-1], names[3:] + names[:3]):
            batch = logits_of(model, [clips[name] for name in order])
            for row, name in enumerate(order):
                torch.testing.assert_close(batch[row], alone[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)
        spread = torch.stack(list(alone.values()))
        assert torch.pdist(spread).min() > 1e-4  # the clips are told apart, or this test would say nothing

    def test_garbage_in_masked_places_reaches_neither_logits_nor_gradients(self, variant):
        model = make_variant(variant)
        batch = pad_examples(list(odd_clips().values()))
        clean, clean_grads = backward(model, batch)
        for garbage in (NAN, 1e30):
            dirty = {name: value.clone() for name, value in batch.items()}
            for modality in WIDTHS:
                dirty[f"{modality}_embeds"][~batch[f"{modality}_mask"]] = garbage
            dirty["vision_times"][~batch["vision_mask"]] = garbage
            output, grads = backward(model, dirty)
            torch.testing.assert_close(output.logits, clean.logits)
            torch.testing.assert_close(grads, clean_grads)

    def test_everything_stays_finite_with_every_odd_clip_alone(self, variant):
        model = make_variant(variant).train()
        for name, clip in odd_clips().items():
            output, grads = backward(model, pad_examples([clip]))
            assert output.logits.isfinite().all(), name
            assert output.loss.isfinite(), name
            assert all(grad.isfinite().all() for grad in grads.values()), name

    def test_every_parameter_takes_part_in_every_step(self, variant):
        """DistributedDataParallel stops at one that does not."""
        model = make_variant(variant).train()
        wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert wanted
        for name, clip in odd_clips().items():
            assert set(backward(model, pad_examples([clip]))[1]) == wanted, name

    def test_no_label_at_all(self, variant):
        model = make_variant(variant)
        batch = pad_examples([make_clip(0), make_clip(1)]) | {"labels": torch.tensor([-100, -100])}
        output, grads = backward(model, batch)
        assert output.loss.item() == 0
        assert all(grad.eq(0).all() for grad in grads.values())

    def test_unlabelled_clips_count_for_nothing(self, variant):
        model = make_variant(variant)
        clips = [make_clip(0), make_clip(1)]
        loss = model(**pad_examples(clips)).loss
        torch.testing.assert_close(model(**pad_examples([*clips, make_clip(2, drop=("label",))])).loss, loss)

    def test_an_absent_modality_is_not_a_vector_of_zeros(self, variant):
        if variant in ("early_fusion", "cme_no_excitement"):
            return  # they concatenate, with neither gate nor weight that could tell, and have but zeros for the gap
        model = make_variant(variant)
        for modality in WIDTHS:
            drop = (f"{modality}_embeds", f"{modality}_times")
            absent = make_clip(0, drop=drop)
            zeros = absent | {f"{modality}_embeds": torch.zeros(4, WIDTHS[modality])}
            zeros |= {"vision_times": torch.linspace(0, 0.4, 4)} if modality == "vision" else {}
            assert not torch.allclose(logits_of(model, [absent]), logits_of(model, [zeros]), atol=1e-4), modality

    def test_a_modality_no_clip_of_the_batch_has(self, variant):
        """Left out, or there with a mask that is False everywhere, or with no place at all: all the same."""
        model = make_variant(variant)
        clips = [make_clip(0, drop=("audio_embeds",)), make_clip(1, drop=("audio_embeds",))]
        absent = logits_of(model, clips)
        masked = {"audio_embeds": torch.full((2, 7, 6), NAN), "audio_mask": torch.zeros(2, 7, dtype=torch.bool)}
        torch.testing.assert_close(logits_of(model, clips, **masked), absent)
        torch.testing.assert_close(logits_of(model, clips, audio_embeds=torch.zeros(2, 0, 6)), absent)

    def test_masks_may_be_numbers(self, variant):
        model = make_variant(variant)
        batch = pad_examples([make_clip(0), make_clip(1, frames=50, words=6, faces=5)])
        numbers = {name: value.long() if value.dtype == torch.bool else value for name, value in batch.items()}
        assert torch.equal(model(**numbers).logits, model(**batch).logits)

    def test_outputs_as_a_tuple(self, variant):
        model = make_variant(variant)
        output = model(**pad_examples([make_clip(0)]))
        assert torch.equal(output.to_tuple()[0], output.loss)
        assert torch.equal(output[1], output.logits)

    def test_bfloat16(self, variant):
        model = make_variant(variant)
        clips = list(odd_clips().values())
        expected = model(**pad_examples(clips)).logits
        output = model.to(torch.bfloat16)(**pad_examples(clips))
        assert output.logits.dtype == torch.bfloat16
        assert output.logits.isfinite().all()
        assert output.loss.isfinite()
        torch.testing.assert_close(output.logits.float(), expected, atol=0.15, rtol=0.15)

    def test_saved_and_reloaded_alike(self, variant, tmp_path):
        model = make_variant(variant, id2label={0: "calm", 1: "wild"}, class_weights=[0.5, 2.0])
        batch = pad_examples(list(odd_clips().values()))
        batch["labels"] = batch["labels"] % 2
        model.save_pretrained(tmp_path)
        for auto in (AutoModel, AutoModelForAudioClassification):
            again = auto.from_pretrained(tmp_path)
            assert type(again) is type(model)
            assert not again.training
            assert again.untrained_keys == ()
            assert_same(again(**batch).logits, model(**batch).logits)
            assert_same(again(**batch).loss, model(**batch).loss)
        config = AutoConfig.from_pretrained(tmp_path)
        found, expected = config.to_dict(), model.config.to_dict()
        assert found | {"_name_or_path": ""} == expected | {"_name_or_path": ""}
        assert config.id2label == {0: "calm", 1: "wild"}
        assert config.label2id == {"calm": 0, "wild": 1}


@each_model
def test_weights_in_pickles_are_not_read(model_type, tmp_path):
    model = make_model(model_type, **WIDTH_FIELDS)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModel.from_pretrained(tmp_path)


@each_model
@pytest.mark.parametrize("modalities", SUBSETS, ids="+".join)
def test_any_subset_of_the_modalities(model_type, modalities):
    model = make_model(model_type, **{f"{m}_embed_dim": WIDTHS[m] for m in modalities})
    if model_type == "mman" and len(modalities) == 1:
        assert make_model("mman", **{f"{modalities[0]}_embed_dim": 3}, network="unimodal").config.num_labels == 4
    drop = tuple(f"{m}_embeds" for m in WIDTHS if m not in modalities)
    clips = [make_clip(seed, frames=20 + seed, drop=drop) for seed in range(3)]
    output, grads = backward(model, pad_examples(clips))
    assert output.logits.isfinite().all()
    assert len(grads) == len(list(model.parameters()))
    torch.testing.assert_close(logits_of(model, clips[:1])[0], output.logits[0], atol=1e-5, rtol=1e-5)


@each_model
def test_default_labels_are_those_of_the_papers(model_type):
    config = make_config(model_type, audio_embed_dim=6)
    assert config.id2label == {0: "angry", 1: "happy", 2: "neutral", 3: "sad"}
    assert make_config(model_type, audio_embed_dim=6, num_labels=7).num_labels == 7


@each_model
@pytest.mark.parametrize("weights", [None, (1, 2, 3, 4), (0.5, 2.0, 1.0, 0.1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs(model_type, weights, smoothing):
    values = {"network": "clstm_mma"} if model_type == "mman" else {}
    model = make_model(model_type, **WIDTH_FIELDS, **values, class_weights=weights, label_smoothing=smoothing)
    output = model(**pad_examples([make_clip(seed) for seed in range(3)] + [make_clip(3, drop=("label",))]))
    expected = nn.functional.cross_entropy(
        output.logits,
        torch.tensor([0, 1, 2, -100]),
        weight=None if weights is None else torch.tensor(weights).float(),
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(output.loss, expected)


@each_model
class TestStandardize:
    def test_learns_scales_and_travels(self, model_type, tmp_path):
        model = make_model(model_type, **WIDTH_FIELDS, standardize=["audio"])
        plain = make_model(model_type, **WIDTH_FIELDS)
        clips = [make_clip(seed, frames=20 + seed) for seed in range(3)]
        loud = [clip | {"audio_embeds": clip["audio_embeds"] * 50 + 7} for clip in clips]
        assert torch.equal(logits_of(model, loud), logits_of(plain, loud))
        with model.standardizers["audio"].observing():
            logits_of(model, loud)
        frames = torch.cat([clip["audio_embeds"] for clip in loud])
        mean, std = frames.mean(0), frames.std(0, unbiased=False)
        scaled = [clip | {"audio_embeds": ((clip["audio_embeds"] - mean) / std).clamp(-5, 5)} for clip in loud]
        torch.testing.assert_close(logits_of(model, loud), logits_of(plain, scaled), atol=1e-4, rtol=1e-4)
        model.save_pretrained(tmp_path)
        assert_same(logits_of(AutoModel.from_pretrained(tmp_path), loud), logits_of(model, loud))

    def test_is_fitted_after_the_front_end_it_stands_on(self, model_type):
        audio = FilterbankConfig(conv_dims=(), conv_kernels=(), conv_strides=(), normalization="global")
        model = raw_model(model_type, **{"audio_config": audio, "standardize": ["audio", "text"]}).train()
        batches = [pad_examples([raw_clip(seed, samples=4000 + seed) for seed in pair]) for pair in ((0, 1), (2, 3))]
        model.fit_standardizers(lambda: iter(batches))
        assert model.training
        inner, outer = model.audio_model.normalization, model.standardizers["audio"]
        assert inner.mean.abs().max() > 1  # log energies
        torch.testing.assert_close(outer.mean, torch.zeros(40), atol=1e-2, rtol=0)  # of what has been scaled already
        torch.testing.assert_close(outer.std, torch.ones(40), atol=0.05, rtol=0)
        assert model.standardizers["text"].fitted

    def test_what_is_masked_stays_zero(self, model_type):
        model = make_model(model_type, **WIDTH_FIELDS, standardize=list(WIDTHS))
        for modality, width in WIDTHS.items():
            model.standardizers[modality].set_statistics(torch.full((width,), 3.0), torch.full((width,), 0.5))
        clips = odd_clips()
        batch = pad_examples(list(clips.values()))
        inputs = {name: value for name, value in batch.items() if name.endswith(("_embeds", "_mask"))}
        for embeds, mask in model.encode(**inputs).values():
            assert embeds[~mask].eq(0).all()
            assert embeds[mask].ne(0).any()
        logits = model(**batch).logits
        for row, clip in enumerate(clips.values()):
            torch.testing.assert_close(logits[row], logits_of(model, [clip])[0], atol=1e-5, rtol=1e-5)


RAW_CLIPS = [
    raw_clip(0),
    raw_clip(1, samples=5000, tokens=8, faces=1),
    raw_clip(2, drop=("input_values",)),
    raw_clip(3, drop=("input_ids", "word_ids", "word_times")),
    raw_clip(4, drop=("pixel_values", "vision_times")),
    raw_clip(5, samples=300),  # shorter than 25 ms
    raw_clip(6, samples=450, tokens=2, faces=1),  # one frame, one word
]
BACKBONES = [
    ("wav2vec2_group", "bert", "vit"),
    ("wav2vec2_layer", "roberta", "dinov2"),
    ("hubert", "bert", "resnet"),
    ("wavlm_layer", "mer_word_table", "vit"),
    ("mer_filterbank", "mer_word_table", "resnet"),
    ("mer_spectrogram", "bert", "vit"),
]
each_backbones = pytest.mark.parametrize("names", BACKBONES, ids="+".join)


def backbone_configs(names):
    audio, text, vision = names
    return {
        "audio_config": AUDIO_CONFIGS[audio](),
        "text_config": TEXT_CONFIGS[text](),
        "vision_config": VISION_CONFIGS[vision](),
    }


def raw_model(model_type, names=BACKBONES[0], **values):
    """Backbones as transformers initialises them under a head of large weights."""
    torch.manual_seed(0)
    config = make_config(model_type, **backbone_configs(names) | values)
    model = quiet_build(CLASSES[model_type], config).eval()
    for name, child in model.named_children():
        if not name.endswith("_model"):
            randomize(child)
    return model


@each_model
@each_backbones
class TestBackbones:
    def test_logits_do_not_move_with_batch_mates(self, model_type, names):
        model = raw_model(model_type, names)
        batch = logits_of(model, RAW_CLIPS)
        for row, clip in enumerate(RAW_CLIPS):
            torch.testing.assert_close(batch[row], logits_of(model, [clip])[0], atol=1e-4, rtol=1e-4)

    def test_raw_input_equals_precomputed_embeds(self, model_type, names):
        model = raw_model(model_type, names)
        head = {name: value for name, value in model.state_dict().items() if "_model." not in name}
        widths = {f"{m}_embed_dim": model.config.width(m) for m in WIDTHS}
        widths |= {"audio_frame_stride": model.config.audio_frame_seconds}
        widths |= {"audio_frame_reach": model.config.audio_reach}
        cached = CLASSES[model_type](make_config(model_type, **widths)).eval()
        cached.load_state_dict(head)  # strict: the very same keys
        batch = pad_examples(RAW_CLIPS)
        sequences = {
            "audio": encode_audio(model.audio_model, batch["input_values"], batch["input_values_mask"]),
            "text": encode_text(
                model.text_model,
                batch["input_ids"],
                batch["attention_mask"],
                batch["word_ids"],
                batch["word_times"].shape[1],
            ),
            "vision": encode_vision(model.vision_model, batch["pixel_values"], batch["pixel_values_mask"]),
        }
        embeds = {f"{m}_embeds": sequence.embeds for m, sequence in sequences.items()}
        embeds |= {f"{m}_mask": sequence.mask for m, sequence in sequences.items()}
        times = {name: batch[name] for name in ("word_times", "vision_times")}
        expected = model(**batch).logits
        torch.testing.assert_close(cached(**embeds, **times).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**embeds, **times).logits, expected, atol=1e-5, rtol=1e-5)

    def test_saved_reloaded_and_restored_as_trainer_does(self, model_type, names, tmp_path):
        model = raw_model(model_type, names)
        logits = logits_of(model, RAW_CLIPS)
        model.save_pretrained(tmp_path)
        again = quiet_build(AutoModelForAudioClassification.from_pretrained, tmp_path)
        assert again.untrained_keys == ()
        assert_same(logits_of(again, RAW_CLIPS), logits)
        assert type(again.config.audio_config) is type(model.config.audio_config)

        saved = load_file(tmp_path / "model.safetensors")
        assert saved.keys() == model.state_dict().keys()
        fresh = quiet_build(CLASSES[model_type], copy.deepcopy(model.config)).eval()
        assert (logits_of(fresh, RAW_CLIPS) - logits).abs().max() > 1e-3
        fresh.load_state_dict(saved)
        assert_same(logits_of(fresh, RAW_CLIPS), logits)

    def test_training_reaches_every_backbone_and_stays_finite(self, model_type, names):
        model = raw_model(model_type, names).train()
        _, grads = backward(model, pad_examples(RAW_CLIPS))
        assert all(grad.isfinite().all() for grad in grads.values())
        for modality in WIDTHS:
            assert any(name.startswith(f"{modality}_model") and grad.any() for name, grad in grads.items())
        for clip in RAW_CLIPS:
            _, grads = backward(model, pad_examples([clip] * 2))  # two: batch normalisation wants more than one value
            assert all(grad.isfinite().all() for grad in grads.values())

    def test_from_saved_backbones(self, model_type, names, tmp_path):
        sources, loaded = {}, {}
        for modality, config in backbone_configs(names).items():
            modality = modality.removesuffix("_config")
            loaded[modality] = quiet_build(AutoModel.from_config, config)
            sources[modality] = tmp_path / modality
            loaded[modality].save_pretrained(sources[modality])
        cls = CLASSES[model_type]
        values = {"id2label": dict(enumerate("abcdefg")), "hidden_size": 8, "freeze_backbones": ["text"]}
        model = quiet_build(cls.from_backbones, **sources, **values)
        assert model.training
        assert not model.text_model.training
        assert model.config.num_labels == 7
        for modality, backbone in loaded.items():
            expected = {n: v for n, v in backbone.state_dict().items() if not n.startswith("pooler")}
            found = getattr(model, f"{modality}_model").state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())
        model.save_pretrained(tmp_path / "whole")
        again = quiet_build(cls.from_pretrained, tmp_path / "whole")
        assert_same(logits_of(again, RAW_CLIPS), logits_of(model.eval(), RAW_CLIPS))


@each_model
class TestFreezing:
    @pytest.mark.parametrize("reload", [False, True])
    def test_frozen_backbones_neither_learn_nor_train(self, model_type, reload, tmp_path):
        model = raw_model(model_type, freeze_backbones=["audio", "vision"])
        if reload:
            model.save_pretrained(tmp_path)
            model = quiet_build(AutoModel.from_pretrained, tmp_path)
        model.train()
        training = {m: getattr(model, f"{m}_model").training for m in WIDTHS}
        assert training == {"audio": False, "text": True, "vision": False}
        assert not any(p.requires_grad for m in ("audio", "vision") for p in getattr(model, f"{m}_model").parameters())
        _, grads = backward(model, pad_examples(RAW_CLIPS))
        assert {name.split("_model")[0] for name in grads if "_model" in name} == {"text"}
        assert all(parameter.requires_grad for parameter in model.text_model.parameters())
        model.eval().train()
        assert not model.audio_model.training

    def test_a_frozen_backbone_gives_the_same_logits(self, model_type):
        frozen = raw_model(model_type, freeze_backbones=["audio", "text", "vision"])
        free = raw_model(model_type)
        torch.testing.assert_close(logits_of(frozen, RAW_CLIPS), logits_of(free, RAW_CLIPS))

    def test_gradients_still_reach_precomputed_embeds(self, model_type):
        """Explanations ask for them. (MMAN's fusion reads its branches without a gradient; its parts have one.)"""
        values = {"network": "clstm_mma"} if model_type == "mman" else {}
        model = raw_model(model_type, freeze_backbones=["audio"], **values)
        embeds = torch.randn(1, 5, model.config.width("audio"), requires_grad=True)
        model(audio_embeds=embeds).logits.sum().backward()
        assert embeds.grad.any()


@each_model
@pytest.mark.parametrize("names", [BACKBONES[1], BACKBONES[0]], ids="+".join)
def test_gradient_checkpointing_gives_the_same_gradients(model_type, names):
    model = raw_model(model_type, names)
    batch = pad_examples([raw_clip(seed) for seed in range(2)])
    plain = backward(model, batch)
    quiet_build(model.gradient_checkpointing_enable)  # an alias since 5.23, the only name before
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert layers
    rates = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    for module in rates:
        module.p = 0.0
    for config in (model.audio_model.config, model.text_model.config, model.vision_model.config):
        config.apply_spec_augment, config.layerdrop = False, 0.0
    model.train()  # checkpointing works in training only; nothing in it is random now
    for module in model.modules():
        if isinstance(module, nn.Module) and hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0
        if hasattr(module, "dropout_prob") and isinstance(module.dropout_prob, float):
            module.dropout_prob = 0.0
    again = backward(model, batch)
    torch.testing.assert_close(again[0].logits, plain[0].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again[1], plain[1], atol=1e-4, rtol=1e-3)


@each_model
def test_loaded_backbones_are_taken_as_they_are(model_type):
    bert = AutoModel.from_config(BertConfig(**TINY_TEXT))
    model = CLASSES[model_type].from_backbones(text=bert, audio_embed_dim=6, dtype=torch.bfloat16)
    assert model.text_model is bert
    assert model.dtype == torch.bfloat16
    assert model.config.modalities == ("audio", "text")
    assert not any("pooler" in name for name, _ in model.named_parameters())
    batch = {"input_ids": torch.tensor([[3, 4]]), "audio_embeds": torch.zeros(1, 5, 6)}
    batch["word_times"] = torch.tensor([[[0.0, 0.02], [0.02, 0.04]]])
    assert model(**batch).logits.isfinite().all()


TINY_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 30,
}

PAPERS = {
    "cme": lambda: CMEConfig.paper(
        vocab_size=30,
        hidden_size=16,
        audio_config=FilterbankConfig(conv_dims=(8, 8, 8)),
        text_config=WordTableConfig(vocab_size=30, embedding_dim=8, gate_dim=16),
    ),
    "learned_alignment": lambda: LearnedAlignmentConfig.paper(
        hidden_size=8,
        audio_config=SpectrogramConfig(hidden_size=8),
        text_config=WordTableConfig(vocab_size=30, embedding_dim=8, dropout=0.5),
    ),
    "mman": lambda: MMANConfig.paper(
        hidden_size=8,
        audio_embed_dim=None,
        audio_config=FilterbankStatisticsConfig(),
        text_embed_dim=None,
        text_config=WordTableConfig(vocab_size=30, embedding_dim=8),
        standardize=["audio"],
        vision_embed_dim=4,
    ),
}


@each_model
class TestPapersFrontEnds:
    def model(self, model_type):
        return randomize(CLASSES[model_type](PAPERS[model_type]()).eval())

    def clips(self):
        clips = [raw_clip(seed, samples=8000 - 1000 * seed, drop=("pixel_values", "word_ids")) for seed in range(3)]
        clips = [clip | {"input_ids": clip["input_ids"][: len(clip["word_times"])]} for clip in clips]
        return [*clips, clips[0] | {"input_values": None}, clips[1] | {"input_ids": None}]

    def test_saved_and_reloaded_alike(self, model_type, tmp_path):
        model = self.model(model_type)
        if "audio" in model.standardizers:
            with model.standardizers["audio"].observing():
                logits_of(model, self.clips())
        logits = logits_of(model, self.clips())
        model.save_pretrained(tmp_path)
        again = AutoModelForAudioClassification.from_pretrained(tmp_path)
        assert_same(logits_of(again, self.clips()), logits)
        assert torch.pdist(logits).min() > 1e-4

    def test_logits_do_not_move_with_batch_mates(self, model_type):
        model = self.model(model_type)
        batch = logits_of(model, self.clips())
        for row, clip in enumerate(self.clips()):
            torch.testing.assert_close(batch[row], logits_of(model, [clip])[0], atol=1e-4, rtol=1e-4)

    def test_bfloat16_and_autocast_are_finite(self, model_type):
        model = self.model(model_type).train()
        batch = pad_examples(self.clips())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, grads = backward(model, batch)
        assert output.loss.isfinite()
        assert all(grad.isfinite().all() for grad in grads.values())
        assert model.to(torch.bfloat16)(**batch).logits.isfinite().all()


@each_model
class TestUntrainedKeys:
    def test_a_checkpoint_without_its_head_is_known_for_it(self, model_type, tmp_path):
        make_model(model_type, **WIDTH_FIELDS).save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        weights = load_file(path)
        gone = sorted(name for name in weights if "classifier." in name or "fusion.weight" in name)
        assert gone
        save_file({n: v for n, v in weights.items() if n not in gone}, path, metadata={"format": "pt"})
        model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert list(model.untrained_keys) == gone
        assert info["missing_keys"]

    def test_a_bare_encoder_leaves_the_head_untrained(self, model_type, tmp_path):
        model = raw_model(model_type)
        model.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        backbones = {n: v for n, v in load_file(path).items() if "_model." in n}
        save_file(backbones, path, metadata={"format": "pt"})
        again = quiet_build(AutoModel.from_pretrained, tmp_path)
        assert set(again.untrained_keys) == set(model.state_dict()) - set(backbones)


@each_model
class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "no modality: give a backbone"),
            (
                {"audio_config": FilterbankConfig(), "audio_embed_dim": 40},
                "audio_embed_dim is 40 but the backbone mer_filterbank gives 128",
            ),
            ({"audio_embed_dim": 6, "standardize": ["text"]}, r"standardize names \['text'\]"),
            ({"audio_embed_dim": 6, "freeze_backbones": ["sound"]}, r"freeze_backbones names \['sound'\]"),
            ({"audio_embed_dim": 6, "class_weights": [1.0]}, "class_weights has 1 values for 4 labels"),
        ],
    )
    def test_by_the_configuration(self, model_type, values, message):
        with pytest.raises(ValueError, match=message):
            make_config(model_type, **values)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "nothing to classify"),
            ({"audio_mask": torch.ones(1, 3)}, "nothing to classify"),
            ({"audio_embeds": torch.zeros(1, 3, 6), "input_values": torch.zeros(1, 800)}, "input_values or audio_emb"),
            ({"input_ids": torch.ones(1, 2).long()}, "input_ids given, but there is no text backbone"),
            ({"vision_embeds": torch.zeros(1, 3, 4)}, "vision_embeds given, but this model uses only"),
            ({"text_embeds": torch.zeros(1, 3, 9)}, r"text_embeds must be \(batch, time, 5\), found \(1, 3, 9\)"),
            (
                {"text_embeds": torch.zeros(1, 3, 5), "text_mask": torch.ones(1, 2)},
                r"text_mask is \(1, 2\) but text_embeds is \(1, 3, 5\)",
            ),
            (
                {"input_values": torch.zeros(1, 800), "input_values_mask": torch.ones(1, 700)},
                r"input_values_mask is \(1, 700\) but input_values is \(1, 800\)",
            ),
            (
                {"input_values": torch.zeros(2, 800), "text_embeds": torch.zeros(3, 1, 5)},
                "batch sizes differ: .*input_values.*text_embeds",
            ),
        ],
    )
    def test_by_the_model(self, model_type, inputs, message):
        config = make_config(model_type, audio_config=FilterbankConfig(conv_dims=(6, 6, 6)), text_embed_dim=5)
        with pytest.raises(ValueError, match=message):
            CLASSES[model_type](config)(**inputs)

    @pytest.mark.parametrize(
        ("inputs", "name"),
        [
            ({"input_values": torch.zeros(800)}, "input_values"),
            ({"input_ids": torch.ones(2).long()}, "input_ids"),
            ({"pixel_values": torch.zeros(1, 3, 8, 8)}, "pixel_values"),
            ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)}, "attention_mask"),
            ({"input_ids": torch.ones(1, 3).long(), "word_ids": torch.zeros(1, 2).long()}, "word_ids"),
            ({"pixel_values": torch.zeros(1, 2, 3, 8, 8), "pixel_values_mask": torch.ones(1, 3)}, "pixel_values_mask"),
        ],
    )
    def test_shapes_of_raw_input(self, model_type, inputs, name):
        with pytest.raises(ValueError, match=name):
            raw_model(model_type, ("mer_filterbank", "mer_word_table", "resnet"))(**inputs)


@each_model
@pytest.mark.parametrize("name", ["input_values", "input_ids", "pixel_values"])
def test_raw_input_without_a_place_is_absent(model_type, name):
    model = raw_model(model_type, ("mer_filterbank", "mer_word_table", "resnet"))
    clips = [raw_clip(0, drop=(name, "word_ids"))]
    clips[0]["word_times"] = torch.tensor([[0.0, 0.1]] * 4)
    shapes = {"input_values": (1, 0), "input_ids": (1, 0), "pixel_values": (1, 0, 3, 8, 8)}
    empty = torch.zeros(shapes[name], dtype=torch.long if name == "input_ids" else torch.float)
    torch.testing.assert_close(logits_of(model, clips, **{name: empty}), logits_of(model, clips))


def test_a_vit_is_saved_under_the_names_it_is_restored_by(tmp_path):
    """transformers' default writes legacy names, which Trainer's resume does not find (issue 43701)."""
    model = raw_model("cme")
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    assert any(name.startswith("vision_model.") for name in model.state_dict())


@each_model
def test_optional_backbones_survive_in_the_configuration(model_type, tmp_path):
    config = make_config(model_type, vision_config=ViTConfig(hidden_size=24, num_attention_heads=2), audio_embed_dim=6)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again.vision_config) is ViTConfig
    assert again.vision_config.hidden_size == 24
    assert again.audio_config is None
    assert again.text_config is None
    assert again.modalities == ("audio", "vision")
    assert json.loads((tmp_path / "config.json").read_text())["audio_embed_dim"] == 6
    from_dict = make_config(model_type, vision_config={"model_type": "vit", "hidden_size": 24}, audio_embed_dim=6)
    assert type(from_dict.vision_config) is ViTConfig


def test_dialogues_of_raw_input():
    """Turns on a leading axis; the encoders see them as clips."""
    model = raw_model("mman")
    batch = pad_dialogues([RAW_CLIPS[:3], RAW_CLIPS[3:5]])
    with torch.no_grad():
        dialogues = model(**batch).logits
        alone = model(**pad_dialogues([RAW_CLIPS[3:5]])).logits
    assert dialogues.shape == (2, 3, 4)
    torch.testing.assert_close(dialogues[1, :2], alone[0], atol=1e-4, rtol=1e-4)
