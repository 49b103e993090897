"""Cached backbone states: the head answers on them as it does on the raw input they came from."""

import pytest
import torch
from transformers import BertConfig, ViTConfig

from mer_hf import (
    CMEConfig,
    CMEForEmotionClassification,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MMANConfig,
    MMANForEmotionClassification,
    SpectrogramConfig,
)
from mer_hf.data.collator import ExampleDataset
from mer_hf.data.features import cache_embeds, take_head, without_backbones
from mer_hf.models.batching import pad_examples

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODALITIES = ("audio", "text", "vision")
HEADS = {
    "cme": (CMEForEmotionClassification, CMEConfig),
    "learned_alignment": (LearnedAlignmentForEmotionClassification, LearnedAlignmentConfig),
    "mman": (MMANForEmotionClassification, MMANConfig),
}


def make_model(name, **values):
    model_class, config_class = HEADS[name]
    torch.manual_seed(0)
    backbones = {
        "audio_config": SpectrogramConfig(hidden_size=8, normalization="utterance"),
        "text_config": BertConfig(**SIZES, vocab_size=30, max_position_embeddings=20),
        "vision_config": ViTConfig(**SIZES, image_size=8, patch_size=4),
        "hidden_size": 8,
    }
    model = model_class(config_class(**backbones | values))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)  # or different clips have nearly the same logits
    return model


def make_clip(seed, samples=6_000, words=3, frames=2, drop=()):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.linspace(0.02, samples / 16_000, words + 1)
    pieces = torch.arange(words).repeat_interleave(2)  # two tokens a word, [CLS] and [SEP] around them
    clip = {
        "input_values": torch.randn(samples, generator=generator) * 0.1,
        "input_ids": torch.randint(3, 30, (2 * words + 2,), generator=generator),
        "word_ids": torch.cat([torch.tensor([-1]), pieces, torch.tensor([-1])]),
        "word_times": torch.stack([edges[:-1], edges[1:]], dim=-1),
        "pixel_values": torch.randn(frames, 3, 8, 8, generator=generator),
        "vision_times": torch.linspace(0, 0.3, frames),
        "label": seed % 4,
    }
    return {name: value for name, value in clip.items() if name not in drop}


CLIPS = [
    make_clip(0),
    make_clip(1, samples=9_000, words=5, frames=4),
    make_clip(2, drop=("input_values",)),
    make_clip(3, drop=("input_ids", "word_ids", "word_times")),
    make_clip(4, drop=("pixel_values", "vision_times")),
    make_clip(5, drop=("word_times", "input_values", "pixel_values", "vision_times")),
]
RAW = {"audio": ["input_values"], "text": ["input_ids", "word_ids"], "vision": ["pixel_values"]}


@torch.no_grad()
def logits_of(model, clips):
    return model.eval()(**pad_examples(clips)).logits


@pytest.mark.parametrize("modalities", [("audio",), ("text",), ("vision",), MODALITIES])
@pytest.mark.parametrize("name", HEADS)
def test_logits_are_those_of_raw_input(name, modalities):
    model = make_model(name)
    cached = cache_embeds(model, CLIPS, modalities, batch_size=4)
    expected = logits_of(model, CLIPS)
    assert expected.std(0).min() > 1e-3, "the clips do not differ, so equality would say nothing"
    torch.testing.assert_close(logits_of(model, cached), expected, rtol=1e-4, atol=1e-5)
    for clip, own in zip(CLIPS, cached, strict=True):
        gone = {field for modality in modalities for field in RAW[modality] if field in clip}
        made = {f"{modality}_embeds" for modality in modalities if RAW[modality][0] in clip}
        assert set(own) == set(clip) - gone | made


def test_states_are_the_backbones_own_without_padding():
    model = make_model("cme").eval()
    cached = cache_embeds(model, CLIPS[:2], MODALITIES)
    with torch.no_grad():
        for clip, own in zip(CLIPS, cached, strict=False):
            audio = model.run_backbone("audio", clip["input_values"][None])
            text = model.run_backbone("text", clip["input_ids"][None], None, clip["word_ids"][None])
            for name, (states, _) in (("audio", audio), ("text", text)):
                torch.testing.assert_close(own[f"{name}_embeds"], states[0], rtol=1e-4, atol=1e-5)
            assert len(own["text_embeds"]) == len(clip["word_times"])
            assert len(own["vision_embeds"]) == len(clip["vision_times"])
            assert not own["audio_embeds"].requires_grad and own["audio_embeds"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "count"),
    [("cme", 2), ("cme", 1), ("learned_alignment", 1), ("mman", 1)],
)
def test_words_beyond_the_tokenizers_limit_change_nothing(name, count):
    long = make_clip(6, words=5)
    long |= {"input_ids": long["input_ids"][:6], "word_ids": long["word_ids"][:6]}  # tokens of words 0 to 2 of 5
    clips = [long, CLIPS[1]][:count]
    model = make_model(name)
    cached = cache_embeds(model, clips, ("text",))
    assert len(cached[0]["text_embeds"]) == len(cached[0]["word_times"]) == 3
    torch.testing.assert_close(logits_of(model, cached), logits_of(model, clips), rtol=1e-4, atol=1e-5)


def test_sound_without_a_frame_is_no_sound():
    short = make_clip(0) | {"input_values": torch.zeros(30)}
    cached = cache_embeds(make_model("mman"), [short], ("audio",))[0]
    assert "audio_embeds" not in cached and "input_values" not in cached


def test_the_clips_and_the_models_mode_stay():
    model = make_model("cme").train()
    before = dict(CLIPS[0])
    cached = cache_embeds(model, ExampleDataset(CLIPS[:1]), MODALITIES)
    assert model.training and CLIPS[0].keys() == before.keys()
    again = cache_embeds(model.eval(), CLIPS[:1], MODALITIES)
    assert torch.equal(cached[0]["text_embeds"], again[0]["text_embeds"]), "dropout was on"
    assert not model.training


def test_a_missing_backbone_is_named():
    model = make_model("cme", text_config=None, text_embed_dim=4, vision_config=None)
    with pytest.raises(ValueError, match="no text or vision backbone"):
        cache_embeds(model, CLIPS, MODALITIES)


@pytest.mark.parametrize("modalities", [("audio",), ("text", "vision"), MODALITIES])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_without_its_backbones_answers_the_same(name, modalities):
    model = make_model(name)
    cached = cache_embeds(model, CLIPS, modalities)
    head = without_backbones(model, modalities)
    assert all((getattr(head, f"{m}_model") is None) == (m in modalities) for m in MODALITIES)
    torch.testing.assert_close(logits_of(head, cached), logits_of(model, CLIPS), rtol=1e-4, atol=1e-5)
    assert head.num_parameters() < model.num_parameters()


def test_a_trained_head_goes_back_to_its_backbones():
    model = make_model("cme")
    head = without_backbones(model, MODALITIES)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1)
    cached = cache_embeds(model, CLIPS, MODALITIES)
    before = logits_of(model, CLIPS)
    take_head(model, head)
    torch.testing.assert_close(logits_of(model, CLIPS), logits_of(head, cached), rtol=1e-4, atol=1e-5)
    assert (logits_of(model, CLIPS) - before).abs().max() > 1e-2
