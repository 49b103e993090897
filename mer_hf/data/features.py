"""Run frozen backbones once per clip: a head trains hundreds of times faster on their states, which `FeatureStore`
keeps on disk for all that use them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..models.batching import pad_examples

RAW_FIELDS = {
    "audio": ("input_values", "input_values_mask"),
    "text": ("input_ids", "attention_mask"),
    "vision": ("pixel_values", "pixel_values_mask"),
}


@torch.inference_mode()
def cache_embeds(
    model: Any, clips: Dataset | Sequence[dict[str, Any]], modalities: Sequence[str], batch_size: int = 32
) -> list[dict[str, Any]]:
    """Examples in which raw input of these modalities is replaced by the model's own backbone states.

    model: anything with `run_backbone` (MerPreTrainedModel); its head accepts the result in place of the raw input and
    gives the same logits. Only right for backbones that are not trained.

    Raises:
        ValueError: the model has no backbone for one of the modalities.
    """
    missing = [modality for modality in modalities if getattr(model, f"{modality}_model") is None]
    if missing:
        raise ValueError(f"there is no {' or '.join(missing)} backbone to take states from")
    was_training = model.training
    model.eval()
    cached: list[dict[str, Any]] = []
    for start in range(0, len(clips), batch_size):
        examples = [dict(clips[index]) for index in range(start, min(start + batch_size, len(clips)))]
        for modality in modalities:
            _replace(model, examples, modality)
        cached += examples
    model.train(was_training)
    return cached


def _replace(model: Any, examples: list[dict[str, Any]], modality: str) -> None:
    name, mask_name = RAW_FIELDS[modality]
    having = [example for example in examples if example.get(name) is not None]
    if not having:
        return
    names = (name, "word_ids", "word_times") if modality == "text" else (name,)
    batch = pad_examples([{field: example.get(field) for field in names} for example in having])
    batch = {field: value.to(model.device) for field, value in batch.items()}
    num_words = batch["word_times"].shape[1] if "word_times" in batch else None
    states, mask = model.run_backbone(modality, batch[name], batch[mask_name], batch.get("word_ids"), num_words)
    for example, row, real in zip(having, states.float().cpu(), mask.cpu(), strict=True):
        del example[name]
        example.pop("word_ids" if modality == "text" else "", None)
        if real.any():
            example[f"{modality}_embeds"] = _real(row, real)
            if modality == "text" and example.get("word_times") is not None:
                # Words beyond the tokenizer's limit are not read, so their times go too.
                example["word_times"] = example["word_times"][: len(example["text_embeds"])]


def _real(states: Tensor, mask: Tensor) -> Tensor:
    """Up to the last real place: what is padding alone goes, a masked place between real ones stays."""
    return states[: int(mask.nonzero().max()) + 1].clone()


def without_backbones(model: Any, modalities: Sequence[str]) -> Any:
    """The same head over states: a model that reads `<modality>_embeds` of these modalities in place of raw input.

    Small to train, to send between processes and to keep; `take_head` puts it back. model: a MerPreTrainedModel; it
    stays as it is, and what it has besides these backbones is copied.
    """
    config = copy.deepcopy(model.config)
    for modality in modalities:
        setattr(config, f"{modality}_config", None)
        setattr(config, f"{modality}_embed_dim", model.config.width(modality))
    config.freeze_backbones = tuple(modality for modality in config.freeze_backbones if modality not in modalities)
    # Which frame of the states a second falls on is known from the backbone, as long as there is one.
    config.audio_frame_stride, config.audio_frame_reach = model.config.audio_frame_seconds, model.config.audio_reach
    head = type(model)(config).to(device=model.device, dtype=model.dtype)
    take_head(head, model)
    return head.train(model.training)


def take_head(model: Any, other: Any) -> None:
    """Give a model the weights of another that differs from it in backbones alone; backbones that both have, too."""
    theirs, own = other.state_dict(), model.state_dict()
    model.load_state_dict({name: theirs[name] for name in own.keys() & theirs.keys()}, strict=False)
