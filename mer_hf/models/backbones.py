"""Raw input -> (embeds, mask), one function per modality, over any transformers AutoModel or our own front ends.

A backbone runs only on the rows that have the modality, in groups of rows of like length; a row without it comes back
as zeros with an all-False mask. Many encoders give other states when a row is padded, mask or no mask (wav2vec2-base
does, by its group norm), so outside training only those that are known not to (`PADDED_ALIKE`) see padding.
"""

import hashlib
import json
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .front_ends import FRONT_ENDS
from .layers import lengths_to_mask

PADDED_ALIKE = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "sew", "sew-d", *FRONT_ENDS)
"""Audio encoders whose states of a clip do not depend on its padding, unless `_sees_padding` says otherwise."""
CLASS_TOKENS = ("cls_token", "class_embedding")
"""Names that a vision encoder's class token has among its parameters."""
TEXT_SEES_PADDING = ("convbert", "fnet")
"""Text encoders whose states do; those of attention and recurrence over masked tokens do not."""
ROWS_AT_ONCE = 32
"""Rows a backbone sees in one call: bounds the memory of a long dialogue or many face frames."""


class ModalitySequence(NamedTuple):
    """What every head sees of a modality."""

    embeds: Tensor
    """(batch, time, dim)"""
    mask: Tensor
    """(batch, time), bool, True = real"""


def make_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """The untrained backbone of a configuration, without a pooler.

    Raises:
        ValueError: transformers knows no AutoModel for it.
    """
    # Front ends by name: of a checkpoint loaded with its own code, transformers imports configuration and model apart,
    # and AutoModel would not recognise the one's classes in the other.
    if config.model_type in FRONT_ENDS:
        return FRONT_ENDS[config.model_type](config)
    # In the precision that the whole model is made in, whatever a file says its weights once had.
    return without_pooler(AutoModel.from_config(config, dtype=torch.get_default_dtype()))


def without_pooler(backbone: PreTrainedModel) -> PreTrainedModel:
    """Drop a trainable pooler (BERT, ViT): no head reads it, and unused parameters stop DistributedDataParallel."""
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        backbone.pooler = None
    return backbone


def fingerprint(backbone: PreTrainedModel) -> str:
    """What tells a backbone's states from another's, in eight hexadecimal digits; the same in any precision.

    Of each parameter the signs of its first values: they survive rounding, and no training leaves all of them alone.
    Of a backbone without parameters its own configuration.
    """
    signs = [parameter.detach().flatten()[:64].signbit() for parameter in backbone.parameters()]
    if signs:
        return hashlib.sha256(torch.cat(signs).cpu().numpy().tobytes()).hexdigest()[:8]
    own = {f.name for f in fields(backbone.config)} - {f.name for f in fields(PreTrainedConfig)}
    values = {name: getattr(backbone.config, name) for name in sorted(own)}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def check_audio_backbone(backbone: PreTrainedModel) -> None:
    """Raise ValueError for a backbone that does not read a waveform."""
    ratio = getattr(backbone.config, "inputs_to_logits_ratio", None)
    if ratio is None or backbone.main_input_name != "input_values":
        raise ValueError(
            f"audio backbone {backbone.config.model_type!r} does not read a waveform; use wav2vec2, HuBERT, WavLM or "
            "another model whose configuration has conv_stride, or precomputed audio_embeds"
        )


def frames_per_word(word_times: Tensor, frames: Tensor, reach: int = 1) -> Tensor:
    """The encoder frames each word covers, (batch, words, 2) int64, [start, end).

    word_times (batch, words, 2) in units of frames, frames (batch,) real frames of each row. An output frame that sees
    `reach` input frames belongs to a word when any of them does. Times are rounded to the nearest frame (truncation,
    as in the released CME code, is off by one for one word in twenty).
    """
    grid = word_times.round().long()
    limit = frames.view(-1, 1)
    start = torch.minimum((grid[..., 0] - (reach - 1)).clamp(min=0), limit)
    end = torch.minimum(grid[..., 1], limit)
    return torch.stack([start, torch.maximum(end, start)], dim=-1)


def encode_audio(
    backbone: PreTrainedModel, input_values: Tensor, mask: Tensor | None, speaker: Tensor | None = None
) -> ModalitySequence:
    """input_values (batch, samples) at 16 kHz, mask (batch, samples), real samples first -> (batch, frames, dim).

    speaker (batch, 2, bins): statistics of enrolled speakers, for our own front ends alone.

    Raises:
        ValueError: padding before real samples.
    """
    if mask is None:
        mask = torch.ones_like(input_values, dtype=torch.bool)
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("input_values_mask must have the real samples first, found padding before some")
    samples = mask.sum(dim=-1)
    frames = backbone._get_feat_extract_output_lengths(samples).clamp(min=0)
    exact = _sees_padding(backbone.config) and not backbone.training
    clean = input_values.masked_fill(~mask, 0.0)

    def run(rows: Tensor) -> Tensor:
        size = int(samples[rows].max())
        if exact:
            return backbone(clean[rows, :size]).last_hidden_state
        missing = (0, max(0, _fewest_samples(backbone) - size))
        values, padding = nn.functional.pad(clean[rows, :size], missing), nn.functional.pad(mask[rows, :size], missing)
        own = {} if speaker is None else {"speaker": speaker[rows]}
        return backbone(values, attention_mask=padding.long(), **own).last_hidden_state

    return _run_rows(run, samples * (frames > 0), frames, exact)


def _sees_padding(config: PreTrainedConfig) -> bool:
    """Whether a clip's states depend on what it is padded with."""
    group_norm = getattr(config, "feat_extract_norm", None) == "group"
    batch_norm = getattr(config, "conv_pos_batch_norm", False)
    return config.model_type not in PADDED_ALIKE or group_norm or batch_norm


def _fewest_samples(backbone: PreTrainedModel) -> int:
    """In training wav2vec2 masks spans of frames (SpecAugment) and raises where a batch is shorter than one span."""
    config = backbone.config
    if not (backbone.training and getattr(config, "apply_spec_augment", False) and config.mask_time_prob > 0):
        return 0
    return (config.mask_time_length + 1) * config.inputs_to_logits_ratio


def encode_text(
    backbone: PreTrainedModel,
    input_ids: Tensor,
    mask: Tensor | None,
    word_ids: Tensor | None,
    num_words: int | None = None,
) -> ModalitySequence:
    """input_ids (batch, tokens), mask (batch, tokens) -> one vector a word, or a token where word_ids is None.

    word_ids (batch, tokens) int64, -1 = belongs to no word ([CLS], padding).
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
    last_real = mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = last_real.amax(dim=-1)  # some tokenizers pad on the left: keep up to the last real token

    def run(rows: Tensor) -> Tensor:
        size = int(lengths[rows].max())
        return backbone(input_ids=input_ids[rows, :size], attention_mask=mask[rows, :size].long()).last_hidden_state

    exact = backbone.config.model_type in TEXT_SEES_PADDING and not backbone.training
    embeds = _run_rows(run, lengths, lengths, exact).embeds
    embeds = nn.functional.pad(embeds, (0, 0, 0, mask.shape[1] - embeds.shape[1]))
    if word_ids is None:
        return ModalitySequence(embeds, mask)
    return pool_tokens(embeds, mask, word_ids, num_words)


def pool_tokens(embeds: Tensor, mask: Tensor, word_ids: Tensor, num_words: int | None = None) -> ModalitySequence:
    """Mean of each word's sub-word tokens.

    embeds (batch, tokens, dim), mask and word_ids (batch, tokens) -> (batch, words, dim); a word without a token (cut
    off by the tokenizer's limit) is masked.

    Raises:
        ValueError: a token names a word beyond num_words.
    """
    found = int(word_ids.max()) + 1 if word_ids.numel() else 0
    if num_words is not None and found > num_words:
        raise ValueError(f"word_ids names {found} words but word_times has {num_words}; they must describe one text")
    size = max(found if num_words is None else num_words, 1)
    slot = torch.where(mask, word_ids, -1) + 1  # (batch, tokens); slot 0 collects what belongs to no word
    sums = embeds.new_zeros(embeds.shape[0], size + 1, embeds.shape[-1])
    sums = sums.scatter_add(1, slot.unsqueeze(-1).expand_as(embeds), embeds)[:, 1:]
    counts = slot.new_zeros(embeds.shape[0], size + 1).scatter_add(1, slot, torch.ones_like(slot))[:, 1:]
    return ModalitySequence(sums / counts.clamp(min=1).unsqueeze(-1), counts > 0)


def encode_vision(backbone: PreTrainedModel, pixel_values: Tensor, mask: Tensor | None) -> ModalitySequence:
    """pixel_values (batch, frames, c, h, w), mask (batch, frames) -> one vector a frame.

    See `picture_vector`.
    """
    batch, frames = pixel_values.shape[:2]
    if mask is None:
        mask = pixel_values.new_ones(batch, frames, dtype=torch.bool)
    images = pixel_values.flatten(0, 1)

    def run(rows: Tensor) -> Tensor:
        return picture_vector(backbone, backbone(pixel_values=images[rows]).last_hidden_state).unsqueeze(1)

    present = mask.flatten().long()
    if not present.any():
        return ModalitySequence(pixel_values.new_zeros(batch, frames, 0), mask)
    encoded = _run_rows(run, present, present, exact=False)
    return ModalitySequence(encoded.embeds.unflatten(0, (batch, frames)).squeeze(2), mask)


def picture_vector(backbone: PreTrainedModel, states: Tensor) -> Tensor:
    """last_hidden_state (pictures, patches, dim) or (pictures, dim, height, width) -> (pictures, dim).

    The class token of a ViT or DINOv2; the mean of a ResNet's last map, and of the patches of what has no class token
    (Swin, SigLIP).
    """
    if states.dim() == 4:
        return states.mean(dim=(-2, -1))
    names = (name.rpartition(".")[2] for name, _ in backbone.named_parameters())
    return states[:, 0] if any(name in CLASS_TOKENS for name in names) else states.mean(dim=1)


def _run_rows(run, lengths: Tensor, output_lengths: Tensor, exact: bool) -> ModalitySequence:
    """Call `run(rows)` on groups of rows and put the states in their places; rows of length 0 stay zeros.

    With no row at all the width is unknown and the embeds have width 0; the caller puts the right one.
    """
    size = max(int(output_lengths.max()), 1)
    embeds = None
    for rows in _groups(lengths, exact):
        states = run(rows)
        if embeds is None:
            embeds = states.new_zeros(len(lengths), size, states.shape[-1])
        embeds[rows, : states.shape[1]] = states[:, :size]
    if embeds is None:
        embeds = torch.zeros(len(lengths), size, 0, device=lengths.device)
    return ModalitySequence(embeds, lengths_to_mask(output_lengths, size))


def _groups(lengths: Tensor, exact: bool) -> list[Tensor]:
    order = lengths.argsort(descending=True, stable=True)
    order = order[lengths[order] > 0]
    if not exact:
        return list(order.split(ROWS_AT_ONCE)) if len(order) else []
    counts = torch.unique_consecutive(lengths[order], return_counts=True)[1].tolist()
    return [part for group in order.split(counts) for part in group.split(ROWS_AT_ONCE)] if counts else []
