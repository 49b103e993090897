"""Training on log-mels that were computed once, changed anew at every look: what twelve to twenty voices cannot show.

A front end's log-mels depend on nothing that is trained, so they are kept, and what comes after them (normalisation,
convolutions, head) is trained as it stands: `front_end_states` is `FilterbankModel.forward` from there on, and the
model gets its states as `audio_embeds`. A changed clip is

    stretched in time            Ko et al. 2015, "Audio augmentation for speech recognition", Interspeech
    and along the mel axis,
    masked in time and bands     see `spectral_augmentation`
    louder or quieter            a constant added to all log-mels

The result is the same for the same seed on one thread of one kind of CPU.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.augmentation import SpeakerSwap
from ..models.front_ends import FilterbankModel, LogMel
from ..models.layers import Standardizer, lengths_to_mask, zero_masked
from ..models.modeling_learned_alignment import LearnedAlignmentForEmotionClassification
from ..models.modeling_mer import MerPreTrainedModel
from ..models.spectral_augmentation import mask_at_random, warp_bands
from ..training import TrainingSettings, parameter_groups

BATCH = 64
"""Clips answered at once."""


@dataclass(frozen=True)
class LogMelChanges:
    """How far a clip is changed at most, or, of loudness, on average. All were set once and not searched."""

    stretch: float = 0.2
    """Of its length, in logarithms: 0.2 = from 0.82 to 1.22 times as long."""
    warp: float = 0.08
    """Of the mel axis, in logarithms."""
    loudness: float = 0.7
    """Standard deviation of the constant, natural logarithm of power: 0.7 = 3 dB."""
    bands: int = 6
    """Neighbouring normalised bands that are masked."""
    frames: int = 20
    """Frames of 10 ms that are masked, and never more than a third of a clip."""


def log_mels(waveforms: Mapping[str, Tensor], bins: int) -> dict[str, Tensor]:
    """Waveforms (samples,) at 16 kHz of at least one frame, by id -> (frames, bins)."""
    front_end = LogMel(bins)
    with torch.no_grad():
        return {i: front_end(waveform[None])[0] for i, waveform in waveforms.items()}


def change(clip: Tensor, changes: LogMelChanges, generator: torch.Generator) -> Tensor:
    """clip (frames, bins) -> (other frames, bins): stretched, warped, louder or quieter, each drawn anew."""
    time, mel = (2 * torch.rand(2, generator=generator) - 1).tolist()
    size = max(1, round(len(clip) * math.exp(changes.stretch * time)))
    clip = nn.functional.interpolate(clip.T[None], size=size, mode="linear")[0].T
    clip = warp_bands(clip[None], torch.tensor([math.exp(changes.warp * mel)]))[0]
    return clip + changes.loudness * torch.randn((), generator=generator)


def front_end_states(
    front_end: FilterbankModel,
    clips: Sequence[Tensor],
    changes: LogMelChanges | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-mels (frames, bins) of clips -> states (batch, time, dim) and mask (batch, time), as from the waveforms.

    changes: whose masks are laid over the normalised frames; None = none.
    """
    lengths = torch.tensor([len(clip) for clip in clips])
    frames = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    mask = lengths_to_mask(lengths, frames.shape[1])
    hidden = zero_masked(front_end.normalization(frames, mask), mask)
    if changes is not None:
        hidden = mask_at_random(hidden, lengths, changes.bands, changes.frames, generator)
    hidden = hidden.transpose(1, 2)
    hidden = nn.functional.pad(hidden, (0, max(0, front_end.config.input_reach - hidden.shape[-1])))
    for index, convolution in enumerate(front_end.convolutions):
        hidden = convolution(front_end.activation(hidden) if index else hidden)
    stride = math.prod(front_end.config.conv_strides)
    states = (lengths - front_end.config.input_reach).clamp(min=0) // stride + 1
    return front_end.dropout(hidden.transpose(1, 2)), lengths_to_mask(states, hidden.shape[-1])


def fit_frames(
    model: LearnedAlignmentForEmotionClassification,
    clips: Sequence[Tensor],
    labels: Sequence[int],
    settings: TrainingSettings,
    changes: LogMelChanges,
) -> None:
    """Train a model over the filterbank on log-mels (frames, bins) of clips, for all epochs; the last one is kept."""
    frames = torch.cat(list(clips))
    for module in model.audio_model.modules():
        if isinstance(module, Standardizer):
            module.set_statistics(frames.mean(0), frames.std(0))
    generator = torch.Generator().manual_seed(settings.seed)
    targets = torch.tensor(labels)

    def loss(chosen: list[int]) -> Tensor:
        changed = [change(clips[index], changes, generator) for index in chosen]
        states, mask = front_end_states(model.audio_model, changed, changes, generator)
        return model(audio_embeds=states, audio_mask=mask, labels=targets[chosen]).loss

    _descend(model, loss, len(clips), settings)


def fit_vectors(
    model: MerPreTrainedModel,
    vectors: Sequence[Tensor],
    labels: Sequence[int],
    speakers: Sequence[str],
    loud: Sequence[int],
    settings: TrainingSettings,
) -> None:
    """Train a model on fixed vectors (1, width), moved at every look by `SpeakerSwap`; the last epoch is kept."""
    known = torch.cat(list(vectors))
    model.standardizers["audio"].set_statistics(known.mean(0), known.std(0))
    moved = SpeakerSwap([{"audio_embeds": vector} for vector in vectors], speakers, loud, loudness=1.0)
    targets = torch.tensor(labels)

    def loss(chosen: list[int]) -> Tensor:
        embeds = torch.stack([moved[index]["audio_embeds"] for index in chosen])
        return model(audio_embeds=embeds, labels=targets[chosen]).loss

    _descend(model, loss, len(vectors), settings)


def _descend(model: MerPreTrainedModel, loss, size: int, settings: TrainingSettings) -> None:
    """AdamW as in `training`, learning rate up and down linearly. loss: of a list of indices below `size`."""
    optimizer = torch.optim.AdamW(parameter_groups(model, settings))
    steps = settings.epochs * math.ceil(size / settings.batch_size)
    rising = settings.warmup * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / (steps - rising))
    )
    model.train()
    for _ in range(settings.epochs):
        for chosen in torch.randperm(size).split(settings.batch_size):
            optimizer.zero_grad()
            loss(chosen.tolist()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            schedule.step()
    model.eval()
    model.untrained_keys = ()


@torch.inference_mode()
def frame_logits(model: MerPreTrainedModel, clips: Sequence[Tensor]) -> NDArray:
    """Logits (clips, labels) of a model over the filterbank, from log-mels."""
    found = []
    for batch in _batches(clips):
        states, mask = front_end_states(model.audio_model, batch)
        found.append(model(audio_embeds=states, audio_mask=mask).logits)
    return torch.cat(found).numpy()


@torch.inference_mode()
def vector_logits(model: MerPreTrainedModel, vectors: Sequence[Tensor]) -> NDArray:
    """Logits (clips, labels) of a model on fixed vectors (1, width)."""
    return torch.cat([model(audio_embeds=torch.stack(list(batch))).logits for batch in _batches(vectors)]).numpy()


def _batches(items: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
