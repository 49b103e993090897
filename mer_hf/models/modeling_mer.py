"""What all fusion models share: raw input or precomputed embeds of each modality -> masked sequences.

Heads never learn where a sequence came from. An absent modality, of a sample or of a whole batch, arrives as one
masked place, so that every parameter takes part in every step (DistributedDataParallel needs that).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from typing import Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from .backbones import (
    ModalitySequence,
    check_audio_backbone,
    encode_audio,
    encode_text,
    encode_vision,
    frames_per_word,
    make_backbone,
    without_pooler,
)
from .configuration_mer import MODALITIES, MerConfig
from .front_ends import FRONT_ENDS
from .layers import Standardizer, zero_masked
from .speakers import EnrolmentMixin, standardizers_of

RAW_NAMES = {"audio": "input_values", "text": "input_ids", "vision": "pixel_values"}
RAW_MASK_NAMES = {"audio": "input_values_mask", "text": "attention_mask", "vision": "pixel_values_mask"}
RAW_SHAPES = {
    "audio": ("batch", "samples"),
    "text": ("batch", "tokens"),
    "vision": ("batch", "frames", "channels", "height", "width"),
}


@dataclass
class EmotionOutput(ModelOutput):
    """loss (), when labels are given; logits (batch, labels), or (batch, turns, labels) for a dialogue."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class MerPreTrainedModel(EnrolmentMixin, PreTrainedModel):
    """Backbones, their freezing, `encode`, the loss. A paper's class adds its head and `forward`."""

    config_class = MerConfig
    base_model_prefix = "mer"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    # forward takes no **kwargs, and Trainer must not rescale a mean loss by accumulation steps or world size.
    accepts_loss_kwargs = False
    untrained_keys: tuple[str, ...] = ()
    """Weights that the checkpoint did not have, until they are trained: see `from_pretrained`."""

    def __init__(self, config: MerConfig):
        super().__init__(config)
        for modality in MODALITIES:
            backbone = getattr(config, f"{modality}_config")
            setattr(self, f"{modality}_model", None if backbone is None else make_backbone(backbone))
        if self.audio_model is not None:
            check_audio_backbone(self.audio_model)
        self.standardizers = nn.ModuleDict({m: Standardizer(config.width(m)) for m in sorted(config.standardize)})

    def post_init(self) -> None:
        super().post_init()
        self._freeze()

    @property
    def device(self) -> torch.device:
        return next(self._tensors()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(tensor.dtype for tensor in self._tensors() if tensor.is_floating_point())

    def _tensors(self) -> Iterator[Tensor]:
        """The parameters, those too of a replica that `nn.DataParallel` made, which keeps them elsewhere."""
        for module in self.modules():
            own = [*module._parameters.values(), *getattr(module, "_former_parameters", {}).values()]
            yield from (tensor for tensor in own if tensor is not None)

    @classmethod
    def from_backbones(
        cls,
        audio: str | PathLike | PreTrainedModel | None = None,
        text: str | PathLike | PreTrainedModel | None = None,
        vision: str | PathLike | PreTrainedModel | None = None,
        dtype: torch.dtype | None = None,
        **config_values,
    ) -> Self:
        """A model with a new head over pretrained backbones.

        Each of audio, text and vision is a Hub id, a folder or a loaded model; dtype is that of the whole, None =
        float32; the rest are fields of the configuration (`id2label=`, `freeze_backbones=("audio",)`,
        `text_embed_dim=...`).

        Raises:
            ValueError: no backbone and no width, or an audio backbone that does not read a waveform.
        """
        sources = {"audio": audio, "text": text, "vision": vision}
        loaded = {
            modality: source
            if isinstance(source, PreTrainedModel)
            else AutoModel.from_pretrained(source, dtype=dtype or torch.float32)
            for modality, source in sources.items()
            if source is not None
        }
        configs = {f"{modality}_config": backbone.config for modality, backbone in loaded.items()}
        model = cls(cls.config_class(**configs, **config_values))
        for modality, backbone in loaded.items():
            setattr(model, f"{modality}_model", without_pooler(backbone))
        model._freeze()
        return model.to(dtype or torch.float32)  # one precision, also where a loaded backbone came in another

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, use_safetensors: bool = True, **kwargs):
        """As in transformers; `untrained_keys` of the model lists weights its checkpoint did not have.

        transformers only prints those. Inference refuses them: a head at random answers as readily as a trained one.
        A step of training, whoever takes it, empties the list.
        Weights in pickles, which may run code, are not read unless use_safetensors is False.
        """
        model, info = super().from_pretrained(
            *args, output_loading_info=True, use_safetensors=use_safetensors, **kwargs
        )
        mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
        model.untrained_keys = tuple(sorted(set(info["missing_keys"]) | mismatched))
        model._freeze()  # loading makes new parameters, and those want gradients
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | PathLike, save_original_format: bool = False, **kwargs) -> None:
        """As in transformers, but keys are written as the model has them.

        The legacy names a ViT is saved under otherwise are not restored by Trainer's resume and
        `load_best_model_at_end` (transformers issue 43701).
        """
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    @torch.no_grad()
    def fit_standardizers(self, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> None:
        """Take the statistics of every Standardizer, of front ends first, from batches of the training data.

        `batches` is called for each pass and yields inputs of `forward`. Without any Standardizer nothing is done; a
        frozen backbone keeps the statistics it came with.
        """
        trained = [m for m in MODALITIES if m not in self.config.freeze_backbones]
        inner = [module for m in trained for module in standardizers_of(getattr(self, f"{m}_model"))]
        was_training = self.training
        self.eval()
        for group in (inner, list(self.standardizers.values())):
            if group:
                with ExitStack() as stack:
                    for standardizer in group:
                        stack.enter_context(standardizer.observing())
                    for batch in batches():
                        self(**{name: value for name, value in batch.items() if name != "labels"})
        self.train(was_training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for modality in self.config.freeze_backbones:
            backbone = getattr(self, f"{modality}_model")
            if backbone is not None:
                backbone.eval()
        return self

    def _freeze(self) -> None:
        """Take the gradients from what the configuration says is not trained, and put it in evaluation mode."""
        for modality in self.config.freeze_backbones:
            backbone = getattr(self, f"{modality}_model")
            if backbone is not None:
                backbone.requires_grad_(False)
        self.train(self.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Standardizer):
            initialization.zeros_(module.mean)
            initialization.ones_(module.std)
            initialization.zeros_(module.fitted)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5  # torch's default, for weight and bias alike
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LSTM, nn.GRU)):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                initialization.uniform_(parameter, -bound, bound)

    def get_input_embeddings(self) -> nn.Module | None:
        return None if self.text_model is None else self.text_model.get_input_embeddings()

    def encode(
        self,
        *,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        audio_embeds: Tensor | None = None,
        audio_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        word_ids: Tensor | None = None,
        num_words: int | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_mask: Tensor | None = None,
        vision_embeds: Tensor | None = None,
        vision_mask: Tensor | None = None,
        audio_speaker: Tensor | None = None,
        vision_speaker: Tensor | None = None,
    ) -> dict[str, ModalitySequence]:
        """Each modality the model is built for -> its masked sequence (batch, time, width).

        For each, raw input, precomputed embeds or neither (absent). Shapes: `MerProcessor` and the table in README.
        *_speaker (batch, 2, dim): mean and standard deviation of each sample's speaker, see `speaker_statistics`;
        a sample with zeros there is standardized by the statistics of the checkpoint.

        Raises:
            ValueError: naming the argument: both raw and precomputed, raw without a backbone, a modality the model
                does not have, a shape, width or batch size that does not fit, nothing at all; a speaker's statistics
                for what is not standardized, or is so already.
        """
        raw = {"audio": input_values, "text": input_ids, "vision": pixel_values}
        embeds = {"audio": audio_embeds, "text": text_embeds, "vision": vision_embeds}
        masks = {"audio": audio_mask, "text": text_mask, "vision": vision_mask}
        raw_masks = {"audio": input_values_mask, "text": attention_mask, "vision": pixel_values_mask}
        batch = self._check_inputs(raw, embeds)
        inside, behind = self.place_speakers({"audio": audio_speaker, "vision": vision_speaker}, embeds, batch)

        if self.untrained_keys and self.training and torch.is_grad_enabled():
            self.untrained_keys = ()  # they are being trained now
        sequences = {}
        for modality in self.config.modalities:
            with torch.set_grad_enabled(torch.is_grad_enabled() and modality not in self.config.freeze_backbones):
                if raw[modality] is not None and raw[modality].shape[1]:
                    raw_mask = None if raw_masks[modality] is None else raw_masks[modality].bool()
                    sequence = self.run_backbone(
                        modality, raw[modality], raw_mask, word_ids, num_words, inside.get(modality)
                    )
                else:
                    sequence = self._precomputed(modality, embeds[modality], masks[modality], batch)
            sequences[modality] = self._finish(modality, sequence, behind.get(modality))
        return sequences

    def run_backbone(
        self,
        modality: str,
        values: Tensor,
        mask: Tensor | None = None,
        word_ids: Tensor | None = None,
        num_words: int | None = None,
        speaker: Tensor | None = None,
    ) -> ModalitySequence:
        """What `<modality>_embeds` are: the backbone's states for raw input, before any standardisation of them.

        speaker (batch, 2, bins): statistics of enrolled speakers for an audio front end that standardizes inside.
        """
        self._check_mask(RAW_MASK_NAMES[modality], mask, RAW_NAMES[modality], values)
        if modality == "audio":
            # Our own front ends compute powers in single precision, which a waveform in half would spoil.
            values = values if self.config.audio_config.model_type in FRONT_ENDS else values.to(self.dtype)
            return encode_audio(self.audio_model, values, mask, speaker)
        if modality == "text":
            self._check_mask("word_ids", word_ids, "input_ids", values)
            return encode_text(self.text_model, values, mask, word_ids, num_words)
        return encode_vision(self.vision_model, values.to(self.dtype), mask)

    def _precomputed(self, modality: str, embeds: Tensor | None, mask: Tensor | None, batch: int) -> ModalitySequence:
        if embeds is None or embeds.shape[1] == 0:  # absent: one masked place
            embeds = torch.zeros(batch, 1, self.config.width(modality), dtype=self.dtype, device=self.device)
            mask = torch.zeros(batch, 1, dtype=torch.bool, device=self.device)
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        self._check_mask(f"{modality}_mask", mask, f"{modality}_embeds", embeds)
        return ModalitySequence(embeds, mask.bool())

    @staticmethod
    def _check_mask(name: str, mask: Tensor | None, of: str, values: Tensor) -> None:
        if mask is not None and mask.shape != values.shape[:2]:
            raise ValueError(
                f"{name} is {tuple(mask.shape)} but {of} is {tuple(values.shape)}; they need the same batch and time"
            )

    def _finish(self, modality: str, sequence: ModalitySequence, speaker: Tensor | None) -> ModalitySequence:
        embeds, mask = sequence
        if embeds.shape[-1] == 0:  # a backbone that no row needed cannot tell its width
            embeds = embeds.new_zeros(*embeds.shape[:2], self.config.width(modality))
        whole = not torch.compiler.is_compiling() and bool(mask.all())  # then there is nothing to hide by a copy
        embeds = (embeds if whole else zero_masked(embeds, mask)).to(self.dtype)
        if modality in self.standardizers:
            embeds = zero_masked(self.standardizers[modality](embeds, mask, speaker), mask)
        return ModalitySequence(embeds, mask)

    def _check_inputs(self, raw: dict[str, Tensor | None], embeds: dict[str, Tensor | None]) -> int:
        sizes = {}
        for modality in MODALITIES:
            names = {RAW_NAMES[modality]: raw[modality], f"{modality}_embeds": embeds[modality]}
            given = {name: value for name, value in names.items() if value is not None}
            if len(given) == 2:
                raise ValueError(f"give {' or '.join(names)}, not both")
            if given and modality not in self.config.modalities:
                raise ValueError(f"{next(iter(given))} given, but this model uses only {self.config.modalities}")
            if raw[modality] is not None and getattr(self, f"{modality}_model") is None:
                raise ValueError(f"{RAW_NAMES[modality]} given, but there is no {modality} backbone to run on it")
            if raw[modality] is not None and raw[modality].dim() != len(RAW_SHAPES[modality]):
                shape, found = ", ".join(RAW_SHAPES[modality]), tuple(raw[modality].shape)
                raise ValueError(f"{RAW_NAMES[modality]} must be ({shape}), found {found}")
            if embeds[modality] is not None:
                self._check_embeds(modality, embeds[modality])
            sizes |= {name: value.shape[0] for name, value in given.items()}
        if not sizes:
            raise ValueError(f"nothing to classify: give raw input or embeds of one of {self.config.modalities}")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"batch sizes differ: {sizes}")
        return next(iter(sizes.values()))

    def _check_embeds(self, modality: str, embeds: Tensor) -> None:
        width = self.config.width(modality)
        if embeds.dim() != 3 or embeds.shape[-1] != width:
            raise ValueError(f"{modality}_embeds must be (batch, time, {width}), found {tuple(embeds.shape)}")

    def audio_word_spans(self, word_times: Tensor, mask: Tensor) -> Tensor:
        """word_times (batch, words, 2) in seconds, mask (batch, frames) -> (batch, words, 2) frames, [start, end)."""
        frames = word_times / self.config.audio_frame_seconds
        return frames_per_word(frames, mask.sum(dim=-1), self.config.audio_reach)

    def vision_word_spans(self, word_times: Tensor, vision_times: Tensor, mask: Tensor) -> Tensor:
        """The face frames a word is seen in, (batch, words, 2) int64, [start, end).

        word_times (batch, words, 2), vision_times (batch, frames) ascending, both seconds; mask (batch, frames), real
        frames first. A frame stands for the time up to half way to its neighbours, so with a few sampled frames a
        word still has its nearest one.
        """
        times = vision_times.masked_fill(~mask, math.inf)
        boundaries = ((times[:, :-1] + times[:, 1:]) / 2).contiguous()  # (batch, frames - 1)
        start = torch.searchsorted(boundaries, word_times[..., 0].to(boundaries.dtype).contiguous(), right=True)
        end = torch.searchsorted(boundaries, word_times[..., 1].to(boundaries.dtype).contiguous()) + 1
        limit = mask.sum(dim=-1, keepdim=True)
        start = torch.minimum(start, limit)
        return torch.stack([start, torch.maximum(torch.minimum(end, limit), start)], dim=-1)

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of logits (..., labels) against labels (...); -100 counts for nothing.

        With class weights and label smoothing from the configuration.
        """
        logits, labels = logits.flatten(0, -2).float(), labels.flatten()
        weights = self.config.class_weights
        weights = None if weights is None else torch.tensor(weights, dtype=logits.dtype, device=logits.device)
        counts = labels != -100
        if not (counts if weights is None else counts & (weights[labels.clamp(min=0)] > 0)).any():
            return logits.sum() * 0.0  # torch's mean over nothing that counts is NaN
        smoothing = self.config.label_smoothing
        return nn.functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
