"""The papers' inputs: against torchaudio's Kaldi, numpy, and the convolutions and tables written out."""

import math

import pytest
import torch
import torchaudio
from model_helpers import randomize, speech
from torch import nn
from transformers import AutoModel

from mer_hf import (
    FilterbankConfig,
    FilterbankModel,
    FilterbankStatisticsConfig,
    FilterbankStatisticsModel,
    SpectrogramConfig,
    SpectrogramModel,
    WordTableConfig,
    WordTableModel,
)
from mer_hf.models.front_ends import LogMel, PowerSpectrum, UtteranceNormalization, frame_lengths

SAMPLES = [400, 559, 560, 4000, 7999]


def kaldi_filterbank(waveform, bins):
    return torchaudio.compliance.kaldi.fbank(
        waveform.unsqueeze(0) * 32_768, num_mel_bins=bins, sample_frequency=16_000, dither=0.0
    )


def padded(waveforms):
    batch = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    return batch, torch.arange(batch.shape[1]) < torch.tensor([len(w) for w in waveforms]).unsqueeze(1)


def test_whole_frames_of_a_clip():
    samples = torch.tensor([0, 1, 399, 400, 559, 560, 16_000])
    assert frame_lengths(samples).tolist() == [0, 0, 0, 1, 1, 2, 98]


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("bins", [23, 40])
def test_filterbank_equals_kaldi(samples, bins):
    waveform = speech(samples, samples) * 0.3 + 0.1  # with an offset that Kaldi removes from each frame
    torch.testing.assert_close(
        LogMel(bins)(waveform.unsqueeze(0))[0], kaldi_filterbank(waveform, bins), atol=1e-3, rtol=1e-4
    )


def test_filterbank_of_silence_is_kaldis_floor():
    assert LogMel(40)(torch.zeros(1, 800)).unique().item() == pytest.approx(math.log(torch.finfo(torch.float32).eps))


def test_power_spectrum_equals_the_sum_over_samples():
    waveform = speech(0, 400)
    x = [float(value) * 32_768 for value in waveform]
    mean = sum(x) / 400
    x = [value - mean for value in x]
    x = [value - 0.97 * (x[index - 1] if index else value) for index, value in enumerate(x)]
    window = [(0.5 - 0.5 * math.cos(2 * math.pi * n / 399)) ** 0.85 for n in range(400)]
    for bin in (1, 100, 255):
        turns = [2 * math.pi * bin * n / 512 for n in range(400)]
        terms = [x[n] * window[n] * complex(math.cos(turn), -math.sin(turn)) for n, turn in enumerate(turns)]
        assert PowerSpectrum(512)(waveform.unsqueeze(0))[0, 0, bin].item() == pytest.approx(abs(sum(terms)) ** 2, 1e-3)


def test_utterance_normalization_uses_the_clips_own_frames():
    frames = torch.tensor([[[1.0], [3.0], [1e6]], [[2.0], [4.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    normalized = UtteranceNormalization()(frames, mask)
    torch.testing.assert_close(normalized[0, :2, 0], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(normalized[1, :, 0], (frames[1, :, 0] - 5) / math.sqrt(26 / 3))


class TestFilterbankModel:
    @pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 3)])
    @pytest.mark.parametrize("nonlinearity", [False, True])
    def test_equals_convolutions_over_kaldis_filterbank(self, nonlinearity, strides):
        config = FilterbankConfig(conv_dims=(6, 5, 4), conv_strides=strides, nonlinearity=nonlinearity)
        model = randomize(FilterbankModel(config).eval())
        waveforms = [speech(samples, samples) for samples in (4000, 7999, 2000)]
        with torch.no_grad():
            states = model(*padded(waveforms)).last_hidden_state
            for row, waveform in enumerate(waveforms):
                hidden = kaldi_filterbank(waveform, 40)  # (frames, 40)
                for index, convolution in enumerate(model.convolutions):
                    reach, stride = convolution.kernel_size[0], strides[index]
                    hidden = hidden.relu() if nonlinearity and index else hidden
                    hidden = torch.stack(
                        [
                            convolution.bias + sum(convolution.weight[:, :, k] @ hidden[t + k] for k in range(reach))
                            for t in range(0, len(hidden) - reach + 1, stride)
                        ]
                    )
                torch.testing.assert_close(states[row, : len(hidden)], hidden, atol=2e-3, rtol=1e-3)
                assert model._get_feat_extract_output_lengths(torch.tensor([len(waveform)])).item() == len(hidden)

    @pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 3, 2)])
    def test_a_filterbank_frame_reaches_at_most_so_many_states(self, strides):
        config = FilterbankConfig(conv_dims=(3, 3, 3), conv_strides=strides)
        frames = torch.eye(60).unsqueeze(1)  # row i: a filterbank of one bin that is 1 at frame i
        for kernel, stride in zip(config.conv_kernels, strides, strict=True):
            frames = nn.functional.conv1d(frames, torch.ones(1, 1, kernel), stride=stride)
        assert frames[20:30].gt(0).sum(dim=-1).max() == config.frame_reach
        assert config.inputs_to_logits_ratio == 160 * strides[0] * strides[1] * strides[2]

    def test_sizes_of_the_released_code(self):
        config = FilterbankConfig()
        with torch.device("meta"):
            counts = [sum(p.numel() for p in conv.parameters()) for conv in FilterbankModel(config).convolutions]
        assert counts == [12_864, 16_512, 32_896]
        assert config.frame_reach == 7
        assert config.hidden_size == 128

    @pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (1360, 1), (1519, 1), (1520, 2)])
    def test_output_frames(self, samples, frames):
        model = FilterbankModel(FilterbankConfig(conv_dims=(2, 2, 2)))
        assert model._get_feat_extract_output_lengths(torch.tensor([samples])).item() == frames
        assert model(torch.zeros(1, samples)).last_hidden_state.shape == (1, max(frames, 1), 2)

    def test_short_clips_do_not_depend_on_padding(self):
        model = randomize(FilterbankModel(FilterbankConfig(conv_dims=(3, 3, 3), normalization="utterance")).eval())
        waveform = speech(0, 700)  # two frames, fewer than the convolutions see
        alone = model(waveform.unsqueeze(0)).last_hidden_state
        batch = model(*padded([waveform, speech(1, 4000)])).last_hidden_state
        assert alone.shape == (1, 1, 3)
        torch.testing.assert_close(batch[0, :1], alone[0], atol=1e-5, rtol=1e-5)

    def test_global_normalization_learns_and_travels(self, tmp_path):
        model = FilterbankModel(
            FilterbankConfig(conv_dims=(), conv_kernels=(), conv_strides=(), normalization="global")
        ).eval()
        waveforms = [speech(samples, samples) * scale for samples, scale in [(4000, 0.1), (7999, 0.5)]]
        with model.normalization.observing():
            model(*padded(waveforms))
        frames = torch.cat([kaldi_filterbank(waveform, 40) for waveform in waveforms])
        torch.testing.assert_close(model.normalization.mean, frames.mean(0), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(model.normalization.std, frames.std(0, unbiased=False), atol=1e-3, rtol=1e-3)
        model.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path)
        expected = ((kaldi_filterbank(waveforms[0], 40) - frames.mean(0)) / frames.std(0, unbiased=False)).clamp(-5, 5)
        states = again(waveforms[0].unsqueeze(0)).last_hidden_state[0]
        torch.testing.assert_close(states, expected, atol=1e-2, rtol=1e-3)


class TestSpectrogramModel:
    def test_equals_the_equation(self):
        model = randomize(SpectrogramModel(SpectrogramConfig(hidden_size=6)).eval())
        waveforms = [speech(0, 3000), speech(1, 5000)]
        states = model(*padded(waveforms)).last_hidden_state
        for row, waveform in enumerate(waveforms):
            frames = PowerSpectrum(512)(waveform.unsqueeze(0))[0].log()
            frames = (frames - frames.mean(0)) / (frames.var(0, unbiased=False) + 1e-5).sqrt()
            expected = (frames @ model.dense.weight.T + model.dense.bias).relu()
            torch.testing.assert_close(states[row, : len(expected)], expected, atol=1e-3, rtol=1e-3)

    def test_sizes_of_the_released_code(self):
        with torch.device("meta"):
            model = SpectrogramModel(SpectrogramConfig())
        assert model.dense.weight.shape == (512, 257)


class TestStatistics:
    def test_equals_numpy_over_torchaudios_deltas(self):
        model = FilterbankStatisticsModel(FilterbankStatisticsConfig())
        waveforms = [speech(samples, samples) for samples in (700, 3000, 5000)]
        vectors = model(*padded(waveforms)).last_hidden_state
        assert vectors.shape == (3, 1, 240)
        for vector, waveform in zip(vectors, waveforms, strict=True):
            static = kaldi_filterbank(waveform, 40)
            deltas = torchaudio.functional.compute_deltas(static.T.unsqueeze(0), win_length=5)[0].T
            frames = torch.cat([static, deltas], dim=-1).double().numpy()
            expected = [*frames.mean(axis=0), *frames.std(axis=0), *frames.max(axis=0)]
            torch.testing.assert_close(vector[0].double(), torch.tensor(expected), atol=2e-3, rtol=1e-3)

    def test_silent_ends_are_left_out(self):
        """100 ms of noise between quieter noises: what is more than 30 dB below the loudest frame does not count."""
        parts = [
            speech(0, 3200) * 1e-3,
            speech(1, 1600),
            speech(2, 800) * 1e-3,
            speech(3, 1600),
            speech(4, 3200) * 1e-3,
        ]
        waveform = torch.cat(parts)
        vector = FilterbankStatisticsModel(FilterbankStatisticsConfig(trim_db=30.0))(waveform.unsqueeze(0))
        frames = kaldi_filterbank(waveform, 40)
        level = 10 * torch.log10(frames.exp().sum(dim=-1))
        loud = (level >= level.max() - 30).nonzero().flatten()
        kept = frames[loud[0] : loud[-1] + 1]  # the quiet stretch in the middle stays
        assert 20 <= len(kept) <= 30
        assert len(loud) < len(kept)
        torch.testing.assert_close(vector.last_hidden_state[0, 0, :40], kept.mean(dim=0), atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize(("samples", "vectors"), [(0, 0), (399, 0), (400, 1), (16_000, 1)])
    def test_one_vector_a_clip(self, samples, vectors):
        model = FilterbankStatisticsModel(FilterbankStatisticsConfig())
        assert model._get_feat_extract_output_lengths(torch.tensor([samples])).item() == vectors

    def test_a_single_frame_does_not_vary(self):
        vector = FilterbankStatisticsModel(FilterbankStatisticsConfig(num_mel_bins=23))(speech(0, 450).unsqueeze(0))
        mean, deviation, maximum = vector.last_hidden_state[0, 0].split(46)
        assert torch.equal(mean, maximum)
        assert deviation.eq(0).all()
        assert mean[23:].eq(0).all()  # deltas


class TestWordTable:
    def test_word_and_gate_vectors_side_by_side(self):
        model = randomize(WordTableModel(WordTableConfig(vocab_size=5, embedding_dim=3, gate_dim=2)))
        vectors = model(torch.tensor([[4, 1]])).last_hidden_state
        words, gates = model.word_embeddings.weight, model.gate_embeddings[0].weight
        expected = torch.stack([torch.cat([words[4], gates[4]]), torch.cat([words[1], gates[1]])])
        assert torch.equal(vectors[0], expected)
        assert model.config.hidden_size == 5

    @pytest.mark.parametrize("pad", [0, 2])
    def test_padding_is_zero_and_words_are_not(self, pad):
        model = WordTableModel(WordTableConfig(vocab_size=5, embedding_dim=3, gate_dim=2, pad_token_id=pad))
        zero = [row for row, vector in enumerate(model(torch.arange(5)).last_hidden_state) if vector.eq(0).all()]
        assert zero == [pad]

    def test_pretrained_words_survive_a_save(self, tmp_path):
        model = randomize(WordTableModel(WordTableConfig(vocab_size=5, embedding_dim=3, gate_dim=2)))
        model.save_pretrained(tmp_path)
        ids = torch.arange(5)
        again = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize("config", [FilterbankConfig(), SpectrogramConfig()], ids=lambda config: config.model_type)
def test_weights_of_dense_and_convolution_start_at_torchs_scale(config):
    torch.manual_seed(0)
    for module in AutoModel.from_config(config).modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            bound = module.weight[0].numel() ** -0.5
            for parameter in (module.weight, module.bias):
                assert 0.9 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize(
    "config",
    [FilterbankConfig(conv_dims=(3, 3, 3)), SpectrogramConfig(hidden_size=4), FilterbankStatisticsConfig()],
    ids=lambda config: config.model_type,
)
class TestEveryAudioFrontEnd:
    def test_saved_and_reloaded_alike(self, config, tmp_path):
        """The window and the filters are no parameters: from_pretrained must make them anew.

        What has no parameter at all writes no weights; test_all_models saves it inside a model.
        """
        if isinstance(config, FilterbankStatisticsConfig):
            return
        model = AutoModel.from_config(config).eval()
        model.save_pretrained(tmp_path)
        waveform = speech(0, 3000).unsqueeze(0)
        again = AutoModel.from_pretrained(tmp_path)(waveform).last_hidden_state
        assert torch.equal(again, model(waveform).last_hidden_state)

    def test_does_not_depend_on_the_padding(self, config):
        model = AutoModel.from_config(config).eval()
        waveforms = [speech(samples, samples) for samples in (399, 400, 1100, 8000)]
        batch = model(*padded(waveforms)).last_hidden_state
        for row, waveform in enumerate(waveforms):
            frames = model._get_feat_extract_output_lengths(torch.tensor([len(waveform)])).item()
            alone = model(waveform.unsqueeze(0)).last_hidden_state[0, :frames]
            torch.testing.assert_close(batch[row, :frames], alone, atol=1e-4, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_near_single(self, config, dtype):
        model = AutoModel.from_config(config).eval()
        waveform = speech(0, 3000).unsqueeze(0)
        expected = model(waveform).last_hidden_state
        with torch.autocast("cpu", dtype=dtype):  # 32768^2 times a window's energy is beyond half precision
            mixed = model(waveform).last_hidden_state.float()
        torch.testing.assert_close(mixed, expected, atol=0.1, rtol=0.05)
        half = model.to(dtype)(waveform.to(dtype)).last_hidden_state.float()
        torch.testing.assert_close(half, expected, atol=0.25, rtol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FilterbankStatisticsConfig(trim_db=0.0), "trim_db is a distance .* found 0.0"),
        (lambda: FilterbankConfig(normalization="cmvn"), "normalization must be .* found 'cmvn'"),
        (lambda: FilterbankConfig(conv_dims=(1, 2)), "conv_dims, conv_kernels and conv_strides need the same length"),
    ],
)
def test_configurations_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()
