"""Raw input to masked sequences: literal words and spans, and tiny random encoders of every kind."""

import pytest
import torch
from model_helpers import AUDIO_CONFIGS, TEXT_CONFIGS, VISION_CONFIGS, quiet_build, randomize, speech
from torch import nn
from transformers import BertConfig, PreTrainedConfig, ResNetConfig, Wav2Vec2BertConfig, Wav2Vec2Config, WhisperConfig

from mer_hf import CMEConfig, CMEForEmotionClassification
from mer_hf.models import backbones
from mer_hf.models.backbones import (
    encode_audio,
    encode_text,
    encode_vision,
    frames_per_word,
    make_backbone,
    pool_tokens,
)
from mer_hf.models.configuration_mer import backbone_width

# Raised by WavLM's attention in transformers 5.23 with torch 2.14 (November 2026) whenever it gets a mask.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")

NAN = float("nan")


def build(config: PreTrainedConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return quiet_build(make_backbone, config).eval()


def padded(waveforms, size=0):
    size = max(size, *map(len, waveforms))
    batch = torch.stack([nn.functional.pad(waveform, (0, size - len(waveform))) for waveform in waveforms])
    return batch, torch.arange(size) < torch.tensor([len(waveform) for waveform in waveforms]).unsqueeze(1)


class TestFramesPerWord:
    def test_times_are_rounded_and_cut_at_the_clips_end(self):
        times = torch.tensor([[[0.0, 2.4], [2.6, 5.0], [5.0, 5.0], [9.0, 99.0], [50.0, 60.0]]])
        spans = frames_per_word(times, torch.tensor([12]))
        assert spans.tolist() == [[[0, 2], [3, 5], [5, 5], [9, 12], [12, 12]]]
        assert spans.dtype == torch.int64

    def test_ten_millisecond_times_hit_their_frame(self):
        """0.29 / 0.01 is 28.999...: truncation would be off by one."""
        times = torch.arange(300.0).div(100).view(1, -1, 1).expand(-1, -1, 2)
        spans = frames_per_word(times / 0.01, torch.tensor([1000]))
        assert spans[0, :, 0].tolist() == list(range(300))

    def test_a_frame_belongs_to_every_word_it_sees(self):
        times = torch.tensor([[[0.0, 3.0], [3.0, 10.0], [10.0, 20.0]]])
        spans = frames_per_word(times, torch.tensor([14]), reach=7)
        for (start, end), (first, stop) in zip(times[0].tolist(), spans[0].tolist(), strict=True):
            seen = [t for t in range(14) if any(start <= frame < end for frame in range(t, t + 7))]
            assert list(range(first, stop)) == seen

    def test_an_end_before_the_start_covers_nothing(self):
        assert frames_per_word(torch.tensor([[[5.0, 2.0]]]), torch.tensor([9])).tolist() == [[[5, 5]]]


class TestPoolTokens:
    EMBEDS = torch.tensor([[[1.0], [2.0], [4.0], [100.0]], [[5.0], [7.0], [9.0], [11.0]]])
    MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])

    def test_mean_of_each_words_tokens(self):
        word_ids = torch.tensor([[-1, 0, 0, 1], [2, 0, 2, -1]])
        embeds, mask = pool_tokens(self.EMBEDS, self.MASK, word_ids)
        assert embeds.tolist() == [[[3.0], [0.0], [0.0]], [[7.0], [0.0], [7.0]]]
        assert mask.tolist() == [[True, False, False], [True, False, True]]

    def test_as_many_words_as_word_times_has(self):
        embeds, mask = pool_tokens(self.EMBEDS, self.MASK, torch.zeros(2, 4, dtype=torch.long), num_words=2)
        torch.testing.assert_close(embeds, torch.tensor([[[7 / 3], [0.0]], [[8.0], [0.0]]]))
        assert mask.tolist() == [[True, False]] * 2

    def test_no_word_at_all(self):
        embeds, mask = pool_tokens(self.EMBEDS, self.MASK, torch.full((2, 4), -1))
        assert embeds.tolist() == [[[0.0]], [[0.0]]]
        assert not mask.any()

    def test_words_beyond_word_times_are_refused(self):
        with pytest.raises(ValueError, match="word_ids names 3 words but word_times has 2"):
            pool_tokens(self.EMBEDS, self.MASK, torch.tensor([[0, 1, 2, -1]] * 2), num_words=2)


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
class TestEveryAudioEncoder:
    def test_states_do_not_depend_on_the_batch(self, name):
        """Group-norm encoders fail this wherever a clip is padded."""
        model = build(AUDIO_CONFIGS[name]())
        waveforms = [speech(seed, samples) for seed, samples in enumerate([8000, 3000, 8000, 100, 450, 6100])]
        with torch.no_grad():
            batch = encode_audio(model, *padded(waveforms, size=9000))
            for row, waveform in enumerate(waveforms):
                alone = encode_audio(model, waveform.unsqueeze(0), None)
                frames = int(alone.mask.sum())
                assert batch.mask[row].tolist() == [True] * frames + [False] * (batch.mask.shape[1] - frames)
                if frames:
                    torch.testing.assert_close(batch.embeds[row, :frames], alone.embeds[0], atol=1e-4, rtol=1e-5)
        assert batch.embeds.shape[-1] == backbone_width(model.config)
        assert batch.mask[3].sum() == 0  # 100 samples make no frame
        assert batch.mask[4].sum() == 1

    def test_the_frames_are_the_encoders_own(self, name):
        model = build(AUDIO_CONFIGS[name]())
        waveform = speech(0, 5000).unsqueeze(0)
        with torch.no_grad():
            embeds, mask = encode_audio(model, waveform, None)
            torch.testing.assert_close(embeds, model(waveform).last_hidden_state, atol=1e-5, rtol=1e-5)
        assert mask.all()
        seconds_per_frame = model.config.inputs_to_logits_ratio / 16_000
        missing = 5000 / 16_000 - embeds.shape[1] * seconds_per_frame
        assert 0 < missing < 0.025 + getattr(model.config, "frame_reach", 1) * seconds_per_frame

    def test_garbage_behind_a_clip_is_not_heard(self, name):
        model = build(AUDIO_CONFIGS[name]())
        values, mask = padded([speech(0, 5000), speech(1, 3000)])
        with torch.no_grad():
            clean = encode_audio(model, values, mask)
            dirty = encode_audio(model, values.masked_fill(~mask, NAN), mask)
        frames = int(clean.mask[1].sum())
        assert torch.equal(clean.embeds[1, :frames], dirty.embeds[1, :frames])

    def test_no_clip_with_a_frame(self, name):
        embeds, mask = encode_audio(build(AUDIO_CONFIGS[name]()), torch.zeros(2, 300), None)
        assert embeds.shape[:2] == mask.shape == (2, 1)
        assert not mask.any()

    def test_short_clips_can_be_trained_on(self, name):
        """transformers masks spans of ten frames in training and raises where there are fewer."""
        model = build(AUDIO_CONFIGS[name]()).train()
        for waveforms in ([speech(0, 1600)], [speech(0, 450), speech(1, 2000)]):
            embeds, mask = encode_audio(model, *padded(waveforms))
            frames = model._get_feat_extract_output_lengths(torch.tensor([len(w) for w in waveforms])).tolist()
            assert mask.sum(dim=-1).tolist() == frames
            assert embeds.shape[1] == max(frames)
            assert embeds.isfinite().all()


class TestRowsOfABatch:
    def test_only_rows_with_audio_are_run_and_equal_lengths_together(self, monkeypatch):
        monkeypatch.setattr(backbones, "ROWS_AT_ONCE", 2)
        model = build(AUDIO_CONFIGS["wav2vec2_group"]())
        seen = []
        model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
        values, mask = padded([speech(seed, n) for seed, n in enumerate([3000, 0, 5000, 3000, 3000, 200])])
        encode_audio(model, values, mask)
        assert seen == [(1, 5000), (2, 3000), (1, 3000)]

    def test_other_encoders_run_on_neighbouring_lengths(self, monkeypatch):
        monkeypatch.setattr(backbones, "ROWS_AT_ONCE", 2)
        model = build(AUDIO_CONFIGS["mer_filterbank"]())
        seen = []
        model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
        values, mask = padded([speech(seed, n) for seed, n in enumerate([3000, 0, 5000, 4000])])
        encode_audio(model, values, mask)
        assert seen == [(2, 5000), (1, 3000)]

    def test_a_mask_with_padding_first_is_refused(self):
        mask = torch.tensor([[False, True] * 400])
        with pytest.raises(ValueError, match="input_values_mask must have the real samples first"):
            encode_audio(build(AUDIO_CONFIGS["mer_filterbank"]()), torch.zeros(1, 800), mask)


@pytest.mark.parametrize("name", TEXT_CONFIGS)
class TestEveryTextEncoder:
    IDS = torch.tensor([[5, 6, 7, 8, 0, 0], [9, 10, 0, 0, 0, 0], [0] * 6])
    MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6]).bool()

    def test_tokens_do_not_depend_on_the_batch(self, name):
        model = build(TEXT_CONFIGS[name]())
        with torch.no_grad():
            embeds, mask = encode_text(model, self.IDS, self.MASK, None)
            for row, length in enumerate([4, 2]):
                expected = model(input_ids=self.IDS[row : row + 1, :length]).last_hidden_state[0]
                torch.testing.assert_close(embeds[row, :length], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(mask, self.MASK)  # the places of the input, so that they meet those of word_times
        assert embeds.shape == (3, 6, backbone_width(model.config))

    def test_tokens_become_words(self, name):
        model = build(TEXT_CONFIGS[name]())
        word_ids = torch.tensor([[-1, 0, 0, 1, 1, 1], [0, 1, -1, -1, -1, -1], [-1] * 6])
        with torch.no_grad():
            tokens = encode_text(model, self.IDS, self.MASK, None).embeds
            words, mask = encode_text(model, self.IDS, self.MASK, word_ids, num_words=3)
        torch.testing.assert_close(words[0, 0], (tokens[0, 1] + tokens[0, 2]) / 2)
        torch.testing.assert_close(words[0, 1], tokens[0, 3])
        torch.testing.assert_close(words[1, :2], tokens[1, :2])
        assert mask.tolist() == [[True, True, False], [True, True, False], [False] * 3]

    def test_no_row_with_text(self, name):
        embeds, mask = encode_text(build(TEXT_CONFIGS[name]()), self.IDS, torch.zeros_like(self.MASK), None)
        assert embeds.shape[:2] == mask.shape
        assert not mask.any()


def test_tokens_padded_on_the_left_are_kept():
    model = randomize(build(TEXT_CONFIGS["mer_word_table"]()))
    ids, mask = torch.tensor([[0, 0, 5, 6]]), torch.tensor([[False, False, True, True]])
    embeds, found = encode_text(model, ids, mask, None)
    assert torch.equal(found, mask)
    assert torch.equal(embeds[0, 2:], model.word_embeddings.weight[5:7])


@pytest.mark.parametrize("name", VISION_CONFIGS)
class TestEveryVisionEncoder:
    def test_one_vector_a_frame(self, name, monkeypatch):
        monkeypatch.setattr(backbones, "ROWS_AT_ONCE", 2)
        model = build(VISION_CONFIGS[name]())
        images = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[True, True, True], [True, False, False]])
        images[~mask] = NAN
        with torch.no_grad():
            embeds, found = encode_vision(model, images, mask)
            for row, frame in mask.nonzero().tolist():
                states = model(pixel_values=images[row, frame].unsqueeze(0)).last_hidden_state[0]
                expected = states.flatten(1).mean(-1) if name == "resnet" else states[0]
                torch.testing.assert_close(embeds[row, frame], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(found, mask)
        assert embeds[~mask].eq(0).all()
        assert embeds.shape == (2, 3, backbone_width(model.config))

    def test_no_face_at_all(self, name):
        images, mask = torch.full((2, 3, 3, 8, 8), NAN), torch.zeros(2, 3, dtype=torch.bool)
        embeds, found = encode_vision(build(VISION_CONFIGS[name]()), images, mask)
        assert embeds.shape[:2] == (2, 3)
        assert not found.any()


@pytest.mark.parametrize("config", [TEXT_CONFIGS["bert"], TEXT_CONFIGS["roberta"], VISION_CONFIGS["vit"]])
def test_poolers_with_parameters_are_dropped(config):
    assert not [name for name, _ in build(config()).named_parameters() if "pooler" in name]


def test_widths():
    assert backbone_width(BertConfig(hidden_size=48)) == 48
    assert backbone_width(ResNetConfig(hidden_sizes=[8, 24], depths=[1, 1])) == 24
    with pytest.raises(ValueError, match="states neither hidden_size nor hidden_sizes"):
        backbone_width(PreTrainedConfig())


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**TINY),
        Wav2Vec2BertConfig(**TINY, feature_projection_input_dim=160),  # reads filterbanks, and states a ratio
        WhisperConfig(d_model=12, encoder_layers=1, decoder_layers=1, vocab_size=60_000),
    ],
    ids=lambda config: config.model_type,
)
def test_backbones_that_do_not_read_a_waveform_are_refused(config):
    with pytest.raises(ValueError, match=f"audio backbone '{config.model_type}' does not read a waveform"):
        quiet_build(CMEForEmotionClassification, CMEConfig(audio_config=config))


def test_frozen_encoders_do_not_mask_spans_in_training():
    """`freeze_backbones` keeps them in evaluation mode; this is what that saves."""
    model = build(Wav2Vec2Config(**{**AUDIO_CONFIGS["wav2vec2_layer"]().to_diff_dict(), "mask_time_prob": 0.9}))
    waveform = speech(0, 16_000).unsqueeze(0)
    calm = encode_audio(model, waveform, None).embeds
    assert torch.equal(calm, encode_audio(model, waveform, None).embeds)
    assert not torch.equal(calm, encode_audio(model.train(), waveform, None).embeds)
