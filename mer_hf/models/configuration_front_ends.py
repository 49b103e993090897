"""Configurations of the papers' own front ends, and their registration with AutoConfig.

They are backbones like any other to a model's configuration: `audio_config={"model_type": "mer_filterbank"}`.
"""

import math
from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig

SAMPLING_RATE = 16_000
"""Hertz; every audio input of the package."""

FRAME_SHIFT = 160
"""Samples, 10 ms: from one frame to the next in both papers."""
NORMALIZATIONS = ("none", "utterance", "global", "global+utterance")


class _FrameConfig(PreTrainedConfig):
    """Shared by the audio front ends: 25 ms frames every 10 ms, the frame grid of both papers."""

    inputs_to_logits_ratio: ClassVar[int] = FRAME_SHIFT
    """Samples from one frame to the next, under the name wav2vec2's configuration uses."""
    normalization: str = "none"
    """"none" (CME), "utterance" (mean and variance of the clip itself), "global" (of the training data) or
    "global+utterance" (both, side by side: how loud the clip is, and how loud this frame is in it)."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, found {self.normalization!r}")


class FilterbankConfig(_FrameConfig):
    """Kaldi log-mel filterbank, then the convolutions of the CME code (stride 1, no padding, no non-linearity)."""

    model_type = "mer_filterbank"

    num_mel_bins: int = 40  # released CME code
    conv_dims: list[int] | tuple[int, ...] = (64, 128, 128)  # released CME code
    conv_kernels: list[int] | tuple[int, ...] = (5, 2, 2)  # released CME code
    conv_strides: list[int] | tuple[int, ...] = (1, 1, 1)  # released CME code; more makes the heads cheaper
    nonlinearity: bool = False  # released CME code has none; True puts a ReLU after each convolution but the last
    dropout: float = 0.0

    # What training alone changes of a clip, at every look anew; none of it is in the released code.
    warp: float = 0.0
    """The mel axis is stretched by up to exp(warp) either way (vocal tract length perturbation)."""
    loudness: float = 0.0
    """Standard deviation of a constant added to all log-mels, natural logarithm of power: 0.7 = 3 dB."""
    mask_bands: int = 0
    """Neighbouring bands of the normalised frames that are set to 0, at most (SpecAugment); of "global+utterance" in
    one of its two halves, or where they meet."""
    mask_frames: int = 0
    """Frames in a row that are set to 0, at most, and never more than a third of the clip (SpecAugment)."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("warp", "loudness", "mask_bands", "mask_frames"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} says how far a clip is changed at most, 0 or more; found {value}")
        if self.normalization == "none" and (self.mask_bands or self.mask_frames):
            raise ValueError(
                "mask_bands and mask_frames put normalised frames at 0, their mean; give a normalization other than "
                f"'none', found {self.normalization!r}"
            )
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides):
            raise ValueError(
                "conv_dims, conv_kernels and conv_strides need the same length, found "
                f"{self.conv_dims}, {self.conv_kernels} and {self.conv_strides}"
            )

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from one output frame to the next."""
        return FRAME_SHIFT * math.prod(self.conv_strides)

    @property
    def input_reach(self) -> int:
        """Filterbank frames one output frame sees."""
        reach, stride = 1, 1
        for kernel, step in zip(self.conv_kernels, self.conv_strides, strict=True):
            reach += (kernel - 1) * stride
            stride *= step
        return reach

    @property
    def frame_reach(self) -> int:
        """The same in output frames: how many of them see one filterbank frame, at most."""
        return 1 + (self.input_reach - 1) // math.prod(self.conv_strides)

    @property
    def hidden_size(self) -> int:
        return self.conv_dims[-1] if len(self.conv_dims) else self.num_mel_bins * len(self.normalization.split("+"))


class SpectrogramConfig(_FrameConfig):
    """Power spectrum and one dense layer: the speech input of the learned-alignment code."""

    model_type = "mer_spectrogram"

    normalization: str = "utterance"  # released code: CMVN
    hidden_size: int = 512  # released code
    fft_size: int = 512  # 257 bins, released code
    dropout: float = 0.5  # released code
    frames_averaged: int = 1  # released code; more makes the recurrences over frames as many times cheaper
    frame_reach: ClassVar[int] = 1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.frames_averaged < 1:
            raise ValueError(f"frames_averaged must be at least 1, found {self.frames_averaged}")

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from one output frame to the next."""
        return FRAME_SHIFT * self.frames_averaged


class FilterbankStatisticsConfig(_FrameConfig):
    """One vector a clip: mean, standard deviation and maximum of the log-mel filterbank and of its deltas."""

    model_type = "mer_filterbank_statistics"

    num_mel_bins: int = 40
    trim_db: float | None = None
    """Leave out what comes before the first and after the last frame this close to the loudest; None = nothing."""
    frame_reach: ClassVar[int] = 1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.trim_db is not None and self.trim_db <= 0:
            raise ValueError(f"trim_db is a distance from the loudest frame, above 0, or None; found {self.trim_db}")

    @property
    def hidden_size(self) -> int:
        return 3 * 2 * self.num_mel_bins


class WordTableConfig(PreTrainedConfig):
    """A trainable table of word vectors; optionally, beside each, the gate vector CME looks up for the same word."""

    model_type = "mer_word_table"

    vocab_size: int = 3431  # rows, padding and unknown included; the released CME code's
    embedding_dim: int = 300  # all three papers (GloVe or word2vec)
    gate_dim: int = 0  # CME's second table; 0 = none
    pad_token_id: int | None = 0
    dropout: float = 0.0

    @property
    def hidden_size(self) -> int:
        return self.embedding_dim + self.gate_dim


for _config in (FilterbankConfig, SpectrogramConfig, FilterbankStatisticsConfig, WordTableConfig):
    # exist_ok: the installed package and a checkpoint's remote copy may both be imported in one process.
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
