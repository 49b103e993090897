"""The papers' own inputs as small PreTrainedModels, used like any other backbone.

The filterbank follows Kaldi's `compute-fbank-feats` (Povey window, 25/10 ms, pre-emphasis .97, no dither), written
over a batch so that it exports with dynamic lengths; a test holds it against `torchaudio.compliance.kaldi.fbank`.
Each audio front end answers `_get_feat_extract_output_lengths(samples)` as wav2vec2 does.
"""

import math
from collections.abc import Callable
from itertools import chain
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutput

from .configuration_front_ends import (
    SAMPLING_RATE,
    FilterbankConfig,
    FilterbankStatisticsConfig,
    SpectrogramConfig,
    WordTableConfig,
)
from .layers import Standardizer, lengths_to_mask, masked_max, masked_mean, zero_masked
from .spectral_augmentation import mask_at_random, warp_bands

WINDOW, HOP = 400, 160  # samples: 25 ms and 10 ms, both papers


def frame_lengths(samples: Tensor) -> Tensor:
    """Samples of each clip (batch,) -> whole 25 ms frames in it, Kaldi's `snip-edges` rule."""
    return torch.where(samples >= WINDOW, 1 + (samples - WINDOW) // HOP, torch.zeros_like(samples))


class ComputedBuffer(nn.Module):
    """A module whose buffers `fill` computes, in single precision whatever the model's is made or turned into."""

    def fill(self) -> None:
        """Set the buffers: from_pretrained builds on the meta device, where non-persistent ones come back empty."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if any(buffer.dtype != torch.float32 for buffer in self._buffers.values()):
            for name, buffer in self._buffers.items():
                self._buffers[name] = torch.empty_like(buffer, dtype=torch.float32)
            self.fill()
        return self


class PowerSpectrum(ComputedBuffer):
    """Waveform (batch, samples) in [-1, 1] -> power spectrum (batch, frames, fft_size / 2 + 1), as Kaldi computes it.

    In single precision whatever the model's, its window included: the powers reach 1e12, and rounding to fewer digits
    would fill the bands of telephone speech that are empty.
    """

    preemphasis = 0.97
    scale = 32_768.0  # Kaldi reads 16-bit integers

    def __init__(self, fft_size: int):
        super().__init__()
        self.fft_size = fft_size
        self.register_buffer("window", torch.empty(WINDOW, dtype=torch.float32), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Set the window."""
        initialization.copy_(self.window, torch.from_numpy(np.hanning(WINDOW).astype(np.float32) ** 0.85))  # Povey's

    def forward(self, waveform: Tensor) -> Tensor:
        frames = (waveform.float() * self.scale).unfold(-1, WINDOW, HOP)  # (batch, frames, 400)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - self.preemphasis * previous) * self.window
        spectrum = torch.fft.rfft(frames, n=self.fft_size)
        return spectrum.real.square() + spectrum.imag.square()


class LogMel(ComputedBuffer):
    """Waveform (batch, samples) -> Kaldi log-mel filterbank (batch, frames, num_mel_bins), in single precision."""

    fft_size = 512
    floor = torch.finfo(torch.float32).eps  # Kaldi's
    lowest = 20.0  # Hz, Kaldi's default

    def __init__(self, num_mel_bins: int):
        super().__init__()
        self.spectrum = PowerSpectrum(self.fft_size)
        self.register_buffer(
            "filters", torch.empty(self.fft_size // 2 + 1, num_mel_bins, dtype=torch.float32), persistent=False
        )
        self.fill()

    def fill(self) -> None:
        """Set the triangular filters, equally wide on the mel scale from 20 Hz to half the sampling rate."""
        initialization.copy_(self.filters, torch.from_numpy(_mel_filters(self.fft_size, self.filters.shape[1])))

    def forward(self, waveform: Tensor) -> Tensor:
        power = self.spectrum(waveform)
        with torch.autocast(power.device.type, enabled=False):
            return (power @ self.filters).clamp(min=self.floor).log()


def _mel_filters(fft_size: int, num_mel_bins: int) -> np.ndarray:
    # numpy: torch would compute on the meta device when from_pretrained builds the model there
    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hertz / 700.0)

    edges = np.linspace(mel(np.float64(LogMel.lowest)), mel(np.float64(SAMPLING_RATE / 2)), num_mel_bins + 2)
    bins = mel(np.arange(fft_size // 2) * (SAMPLING_RATE / fft_size))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.minimum(rising, falling).clip(min=0)
    # Kaldi leaves the bin at half the sampling rate out.
    return np.concatenate([triangles, np.zeros((1, num_mel_bins))]).astype(np.float32)


def without_silent_ends(frames: Tensor, mask: Tensor, trim_db: float) -> Tensor:
    """mask (batch, frames) less what is quieter than `trim_db` under the clip's loudest frame at either end.

    frames (batch, frames, bins): log-mels, as `LogMel` returns them.
    """
    level = 10 * math.log10(math.e) * frames.logsumexp(dim=-1)  # (batch, frames), decibels
    level = level.masked_fill(~mask, -math.inf)
    loud = (level >= level.amax(dim=-1, keepdim=True) - trim_db) & mask
    begun = loud.long().cumsum(dim=-1) > 0
    continues = loud.long().flip(-1).cumsum(dim=-1).flip(-1) > 0
    return begun & continues


@torch.no_grad()
def loud_part(audio: np.ndarray, trim_db: float, num_mel_bins: int = 40) -> slice:
    """The samples of audio (samples,) at 16 kHz between its silent ends; all of a clip shorter than one frame."""
    waveform = torch.from_numpy(np.asarray(audio, dtype=np.float32))[None]
    if waveform.shape[1] < WINDOW:
        return slice(0, waveform.shape[1])
    frames = LogMel(num_mel_bins)(waveform)
    places = without_silent_ends(frames, torch.ones(frames.shape[:2], dtype=torch.bool), trim_db)[0].nonzero()
    return slice(int(places.min()) * HOP, int(places.max()) * HOP + WINDOW)


class UtteranceNormalization(nn.Module):
    """Mean and variance normalisation of each clip by its own frames, whoever speaks."""

    def forward(self, frames: Tensor, mask: Tensor, speaker: Tensor | None = None) -> Tensor:
        """frames (batch, time, dim), mask (batch, time) -> the same shape."""
        centred = frames - masked_mean(frames, mask).unsqueeze(1)
        variance = masked_mean(centred.square(), mask).unsqueeze(1)
        return centred / (variance + 1e-5).sqrt()


class NoNormalization(nn.Module):
    """Frames as they are."""

    def forward(self, frames: Tensor, mask: Tensor, speaker: Tensor | None = None) -> Tensor:
        return frames


class SideBySide(nn.Module):
    """Several normalisations of the same frames, concatenated."""

    def __init__(self, normalizations: list[nn.Module]):
        super().__init__()
        self.normalizations = nn.ModuleList(normalizations)

    def forward(self, frames: Tensor, mask: Tensor, speaker: Tensor | None = None) -> Tensor:
        """frames (batch, time, dim), mask (batch, time), speaker (batch, 2, dim) for the `Standardizer` among them ->
        (batch, time, dim * normalisations)."""
        return torch.cat([normalization(frames, mask, speaker) for normalization in self.normalizations], dim=-1)


def make_normalization(kind: str, dim: int) -> tuple[nn.Module, int]:
    """The module for a front end's `normalization`, and the width it returns for frames of width `dim`."""
    makers = {"none": NoNormalization, "utterance": UtteranceNormalization, "global": lambda: Standardizer(dim)}
    parts = [makers[name]() for name in kind.split("+")]
    return (parts[0] if len(parts) == 1 else SideBySide(parts)), dim * len(parts)


class FrontEndPreTrainedModel(PreTrainedModel):
    """Initialisation shared by the front ends, and the frame bookkeeping of the audio ones."""

    main_input_name = "input_values"

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters or, where a front end has none, of its window."""
        return next(t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ComputedBuffer):
            module.fill()
        elif isinstance(module, Standardizer):
            initialization.zeros_(module.mean)
            initialization.ones_(module.std)
            initialization.zeros_(module.fitted)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))  # torch's default for both
            bound = module.weight[0].numel() ** -0.5
            initialization.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            initialization.normal_(module.weight, std=0.1)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                initialization.zeros_(module.weight[module.padding_idx])

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        """Samples of each clip (batch,) -> output frames (batch,); 0 for a clip shorter than one 25 ms frame."""
        return frame_lengths(samples)

    @staticmethod
    def _samples(input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
        if attention_mask is None:
            return input_values.new_full(input_values.shape[:1], input_values.shape[-1], dtype=torch.long)
        return attention_mask.long().sum(dim=-1)

    @staticmethod
    def _at_least_one_frame(input_values: Tensor) -> Tensor:
        return nn.functional.pad(input_values, (0, max(0, WINDOW - input_values.shape[-1])))


class FilterbankModel(FrontEndPreTrainedModel):
    """input_values (batch, samples) -> last_hidden_state (batch, frames - 6, 128): Li et al. 2021, released code.

    A clip of one to six frames, on which the released code crashes, is extended by zero frames and gives one output.
    In training clips are changed as far as the configuration says, with torch's own random numbers.
    """

    config_class = FilterbankConfig

    def __init__(self, config: FilterbankConfig):
        super().__init__(config)
        self.log_mel = LogMel(config.num_mel_bins)
        self.normalization, width = make_normalization(config.normalization, config.num_mel_bins)
        widths = [width, *config.conv_dims]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(widths[i], widths[i + 1], kernel, stride)
            for i, (kernel, stride) in enumerate(zip(config.conv_kernels, config.conv_strides, strict=True))
        )
        self.activation = nn.ReLU() if config.nonlinearity else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        frames = frame_lengths(samples)
        stride = math.prod(self.config.conv_strides)
        return torch.where(frames > 0, (frames - self.config.input_reach).clamp(min=0) // stride + 1, frames)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, speaker: Tensor | None = None
    ) -> BaseModelOutput:
        """speaker (batch, 2, bins): see `Standardizer.forward`."""
        samples = self._samples(input_values, attention_mask)
        frames = self.log_mel(self._at_least_one_frame(input_values))  # (batch, frames, bins)
        lengths = frame_lengths(samples)
        mask = lengths_to_mask(lengths, frames.shape[1])
        if self.training:
            frames = self._another_voice(frames)
        hidden = zero_masked(self.normalization(frames, mask, speaker), mask).to(self.dtype)
        if self.training and (self.config.mask_bands or self.config.mask_frames):
            hidden = mask_at_random(hidden, lengths, self.config.mask_bands, self.config.mask_frames)
        hidden = hidden.transpose(1, 2)  # (batch, bins, frames)
        hidden = nn.functional.pad(hidden, (0, max(0, self.config.input_reach - hidden.shape[-1])))
        for index, convolution in enumerate(self.convolutions):
            hidden = convolution(self.activation(hidden) if index else hidden)
        return BaseModelOutput(last_hidden_state=self.dropout(hidden.transpose(1, 2)))

    def _another_voice(self, frames: Tensor) -> Tensor:
        """Log-mels (batch, frames, bins), each clip's warped along the mel axis and made louder or quieter."""
        if self.config.warp:
            factors = (self.config.warp * (2 * torch.rand(len(frames)) - 1)).exp()
            frames = warp_bands(frames, factors.to(frames.device))
        if self.config.loudness:
            frames = frames + (self.config.loudness * torch.randn(len(frames), 1, 1)).to(frames.device)
        return frames


class SpectrogramModel(FrontEndPreTrainedModel):
    """input_values (batch, samples) -> relu(Dense(log power spectrum)) (batch, frames, 512): Xu et al. 2019, code."""

    config_class = SpectrogramConfig

    def __init__(self, config: SpectrogramConfig):
        super().__init__(config)
        bins = config.fft_size // 2 + 1
        self.spectrum = PowerSpectrum(config.fft_size)
        self.normalization, width = make_normalization(config.normalization, bins)
        self.dense = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, speaker: Tensor | None = None
    ) -> BaseModelOutput:
        """speaker (batch, 2, bins): see `Standardizer.forward`."""
        samples = self._samples(input_values, attention_mask)
        # The logarithm is ours: powers span ten decades, and no normalisation by variance survives that.
        frames = self.spectrum(self._at_least_one_frame(input_values)).clamp(min=LogMel.floor).log()
        mask = lengths_to_mask(frame_lengths(samples), frames.shape[1])
        frames = zero_masked(self.normalization(frames, mask, speaker), mask).to(self.dtype)
        if self.config.frames_averaged > 1:
            frames = self._average(frames, mask)
        return BaseModelOutput(last_hidden_state=self.dropout(self.dense(frames).relu()))

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        return -(-frame_lengths(samples) // self.config.frames_averaged)

    def _average(self, frames: Tensor, mask: Tensor) -> Tensor:
        """frames (batch, time, bins), zero where masked -> (batch, time / frames_averaged rounded up, bins)."""
        size = self.config.frames_averaged
        missing = -frames.shape[1] % size
        frames = nn.functional.pad(frames, (0, 0, 0, missing)).unflatten(1, (-1, size))
        counts = nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, size)).sum(dim=-1, keepdim=True)
        return frames.sum(dim=2) / counts.clamp(min=1)


class FilterbankStatisticsModel(FrontEndPreTrainedModel):
    """input_values (batch, samples) -> one vector a clip (batch, 1, 240).

    Mean, standard deviation and maximum over the clip of 40 log-mel bins and their deltas, in this order: a strong,
    parameter-free utterance vector for MMAN, which wants one vector an utterance.
    """

    config_class = FilterbankStatisticsConfig
    delta_reach = 2  # frames to each side, as HTK, Kaldi and torchaudio's compute_deltas

    def __init__(self, config: FilterbankStatisticsConfig):
        super().__init__(config)
        self.log_mel = LogMel(config.num_mel_bins)
        self.post_init()

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        return (frame_lengths(samples) > 0).long()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        lengths = frame_lengths(self._samples(input_values, attention_mask))
        frames = self.log_mel(self._at_least_one_frame(input_values))  # (batch, frames, bins)
        mask = lengths_to_mask(lengths, frames.shape[1])
        if self.config.trim_db is not None:
            mask = without_silent_ends(frames, mask, self.config.trim_db)
        frames = torch.cat([frames, self._deltas(frames, lengths)], dim=-1)
        mean = masked_mean(frames, mask)
        deviation = masked_mean((frames - mean.unsqueeze(1)).square(), mask).sqrt()
        vector = torch.cat([mean, deviation, masked_max(frames, mask)], dim=-1)
        return BaseModelOutput(last_hidden_state=vector.unsqueeze(1))

    def _deltas(self, frames: Tensor, lengths: Tensor) -> Tensor:
        last = (lengths - 1).clamp(min=0).unsqueeze(1)
        place = torch.arange(frames.shape[1], device=frames.device).unsqueeze(0)
        total = torch.zeros_like(frames)
        for n in range(1, self.delta_reach + 1):
            later = torch.minimum(place + n, last).unsqueeze(-1).expand_as(frames)
            earlier = torch.minimum((place - n).clamp(min=0), last).unsqueeze(-1).expand_as(frames)
            total = total + n * (frames.gather(1, later) - frames.gather(1, earlier))
        return total / (2 * sum(n * n for n in range(1, self.delta_reach + 1)))


class WordTableModel(FrontEndPreTrainedModel):
    """input_ids (batch, words) -> [word vector; gate vector] (batch, words, embedding_dim + gate_dim).

    The gate vector is CME's second table E2; emitted beside the word vector, cached embeddings carry both.
    """

    config_class = WordTableConfig
    main_input_name = "input_ids"

    def __init__(self, config: WordTableConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_dim, config.pad_token_id)
        widths = [config.gate_dim] if config.gate_dim else []
        self.gate_embeddings = nn.ModuleList(
            nn.Embedding(config.vocab_size, width, config.pad_token_id) for width in widths
        )
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        tables = [self.word_embeddings, *self.gate_embeddings]
        vectors = torch.cat([table(input_ids) for table in tables], dim=-1)
        return BaseModelOutput(last_hidden_state=self.dropout(vectors))


FRONT_ENDS = {
    model.config_class.model_type: model
    for model in (FilterbankModel, SpectrogramModel, FilterbankStatisticsModel, WordTableModel)
}
"""The front ends by `model_type`."""

for _model in FRONT_ENDS.values():
    AutoModel.register(_model.config_class, _model, exist_ok=True)
