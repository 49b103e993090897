"""What the configurations of all fusion models share: three optional modalities, each a backbone or a bare width."""

import math
from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # transformers 5.17 has no such thing
    SubConfigSpec = None

from .configuration_front_ends import SAMPLING_RATE, FilterbankConfig

MODALITIES = ("audio", "text", "vision")
DEFAULT_BACKBONES = {"audio_config": FilterbankConfig.model_type, "text_config": "bert", "vision_config": "vit"}
"""What a backbone's configuration is of that does not say."""
IEMOCAP_LABELS = ("angry", "happy", "neutral", "sad")
"""The four classes all three papers report on; what a configuration without `id2label` gets."""


class MerConfig(PreTrainedConfig):
    """Which modalities a model is built for and where their sequences come from.

    A modality is present when it has a backbone (`audio_config`, any AutoModel or front end) or, for precomputed
    features only, a width (`audio_embed_dim`). Head and checkpoint keys are the same either way.

    Raises:
        ValueError: no modality at all; a width that contradicts the backbone's; an unknown modality named in
            `standardize` or `freeze_backbones`; class weights that do not match the labels; a temperature that is
            not above 0.
    """

    pipeline_is_registered: ClassVar[bool] = False
    """Set by the installed package: its own pipeline is used, so a checkpoint's copy needs no `trust_remote_code`."""
    has_no_defaults_at_init: ClassVar[bool] = True  # a configuration without any modality is refused
    uses_context: ClassVar[bool] = False
    """Whether the model reads the turns of a dialogue together, (batch, turns, ...)."""
    has_attentions: ClassVar[bool] = False
    """Whether `forward` takes `output_attentions`."""
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "hidden_states",
        "word_mask",
        "attentions",
        "branch_logits",
        "audio_alignment",
        "vision_alignment",
    ]
    """Outputs Trainer must not gather: their shapes change from batch to batch."""
    if SubConfigSpec is None:
        sub_configs: ClassVar = dict.fromkeys(DEFAULT_BACKBONES, AutoConfig)
    else:
        sub_configs_defaults: ClassVar = {
            name: SubConfigSpec(config_class=AutoConfig, model_type=model_type, optional=True)
            for name, model_type in DEFAULT_BACKBONES.items()
        }

    audio_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    vision_config: PreTrainedConfig | dict | None = None
    audio_embed_dim: int | None = None
    text_embed_dim: int | None = None
    vision_embed_dim: int | None = None
    audio_frame_stride: float = 0.01
    """Seconds between precomputed `audio_embeds` when there is no audio backbone to know it from."""
    audio_frame_reach: int = 1
    """Strides each of those `audio_embeds` covers: 7 for states of the CME filterbank."""
    standardize: list[str] | tuple[str, ...] = ()
    """Modalities whose `*_embeds` are z-scored by training statistics kept in the checkpoint."""
    freeze_backbones: list[str] | tuple[str, ...] = ()
    """Modalities whose backbone is not trained and stays in evaluation mode."""
    class_weights: list[float] | tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    calibration_temperature: float = 1.0
    """What the pipeline divides logits by before the softmax (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", section 4.2, https://arxiv.org/abs/1706.04599); fitted on validation clips by `mer_hf.calibration`.
    `forward` does not: its logits stay those that the loss sees. (`temperature` alone is a parameter of generation to
    transformers, which moves it out of a model's configuration.)"""

    def __post_init__(self, **kwargs):
        if self.id2label is None and self.label2id is not None:
            self.id2label = {index: label for label, index in self.label2id.items()}
        if self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(IEMOCAP_LABELS))
        if self.class_weights is not None:
            self.class_weights = [float(weight) for weight in self.class_weights]  # arrays cannot be saved
        if self.pipeline_is_registered:
            kwargs.pop("custom_pipelines", None)
            kwargs.pop("auto_map", None)  # or a later save_pretrained would name code that it does not copy
        for name, model_type in DEFAULT_BACKBONES.items():
            values = getattr(self, name)
            if isinstance(values, dict):  # as a file has it
                setattr(self, name, AutoConfig.for_model(**{"model_type": model_type} | values))
        super().__post_init__(**kwargs)
        if self.label2id is None:
            self.label2id = {label: index for index, label in self.id2label.items()}
        if not self.modalities:
            raise ValueError("no modality: give a backbone (audio_config=...) or a width (audio_embed_dim=...)")
        for modality in MODALITIES:
            self._check_width(modality)
        for field in ("standardize", "freeze_backbones"):
            unknown = set(getattr(self, field)) - set(self.modalities)
            if unknown:
                raise ValueError(f"{field} names {sorted(unknown)}; this model has {list(self.modalities)}")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(f"class_weights has {len(self.class_weights)} values for {self.num_labels} labels")
        if not 0 < self.calibration_temperature < math.inf:
            raise ValueError(
                f"calibration_temperature must be above 0 and finite, found {self.calibration_temperature}"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities the model is built for, in the order audio, text, vision."""
        return tuple(
            m
            for m in MODALITIES
            if getattr(self, f"{m}_config") is not None or getattr(self, f"{m}_embed_dim") is not None
        )

    @property
    def uses_word_times(self) -> bool:
        """Whether words and frames together need `word_times`."""
        return False

    @property
    def audio_frame_seconds(self) -> float:
        """Seconds from one frame of `audio_embeds` to the next."""
        if self.audio_config is None:
            return self.audio_frame_stride
        samples = self.audio_config.inputs_to_logits_ratio
        if getattr(self.audio_config, "add_adapter", False):
            samples *= self.audio_config.adapter_stride**self.audio_config.num_adapter_layers
        return samples / SAMPLING_RATE

    @property
    def audio_reach(self) -> int:
        """Strides each of the `audio_embeds` covers, from its own on."""
        if self.audio_config is None:
            return self.audio_frame_reach
        return getattr(self.audio_config, "frame_reach", 1)

    @property
    def audio_frame_middle(self) -> float:
        """Seconds from the start of such a frame's place to the middle of what the frame sees."""
        reach = getattr(self.audio_config, "input_reach", None)
        return 0.5 * (self.audio_frame_seconds if reach is None else 0.025 + 0.01 * (reach - 1))

    def reads_raw(self, modality: str) -> bool:
        """Whether the model has a backbone for a modality's raw input."""
        return getattr(self, f"{modality}_config") is not None

    def width(self, modality: str) -> int:
        """Width of `<modality>_embeds`."""
        backbone = getattr(self, f"{modality}_config")
        return getattr(self, f"{modality}_embed_dim") if backbone is None else backbone_width(backbone)

    def _check_width(self, modality: str) -> None:
        backbone, declared = getattr(self, f"{modality}_config"), getattr(self, f"{modality}_embed_dim")
        if backbone is not None and declared is not None and declared != backbone_width(backbone):
            raise ValueError(
                f"{modality}_embed_dim is {declared} but the backbone {backbone.model_type} gives "
                f"{backbone_width(backbone)}; leave {modality}_embed_dim out"
            )


def backbone_width(config: PreTrainedConfig) -> int:
    """Width of the states a backbone returns: `hidden_size`, the last of `hidden_sizes` (ResNet), or that of a
    wav2vec2's adapter.

    Raises:
        ValueError: the configuration states neither.
    """
    if getattr(config, "add_adapter", False):
        return config.output_hidden_size
    sizes = getattr(config, "hidden_sizes", None)
    width = sizes[-1] if sizes else getattr(config, "hidden_size", None)
    if width is None:
        raise ValueError(f"backbone {config.model_type!r} states neither hidden_size nor hidden_sizes")
    return width
