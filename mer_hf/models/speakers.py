"""Speaker profiles: how one speaker's clips, without labels, lie in the space that a model standardizes.

Where a model z-scores audio or face by the statistics of its training data, a clip of an enrolled speaker is z-scored
by the speaker's own. A profile holds sums alone: no sound, no picture, no order, so that profiles of the same speaker
add up. What a person sounds and looks like can be personal data all the same: keep a profile as you would the clips.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backbones import fingerprint
from .batching import pad_examples
from .layers import Moments, Standardizer, varies

RAW_NAMES = {"audio": "input_values", "vision": "pixel_values"}
"""What a speaker is enrolled in, and its raw input. Words are not the speaker's own as a voice and a face are."""

PRIOR_CLIPS = 5.0
"""Clips of an average speaker that are counted in with the speaker's own: few clips say as much of the emotion in
them as of the speaker. Chosen on RAVDESS's validation folds among 0, 1, 2, 5 and 10 with 1, 2, 4, 8 and 20 clips: 2
and 5 are best and within a point of each other, and only from 5 on did a single clip never cost more than it gained.
With 0, enrolment from one or two clips costs more than 10 points."""

FORMAT = "mer_hf speaker profile 1"


class SpeakerReference(NamedTuple):
    """What a model standardizes one modality by where the speaker is not enrolled."""

    space: str
    """What is standardized, `MerPreTrainedModel.feature_space`"""
    fitted: bool
    mean: Tensor
    """(dim,), of the training data"""
    std: Tensor


@dataclass(frozen=True, eq=False)
class SpeakerStream:
    """One modality of a profile."""

    clips: int
    moments: Moments
    """Of all frames of the clips; where a clip is one vector, of those."""
    space: str
    """What the frames are, `MerPreTrainedModel.feature_space`."""

    def __add__(self, other: "SpeakerStream") -> "SpeakerStream":
        if self.space != other.space:
            raise ValueError(f"profiles of different features cannot be added: {self.space!r} and {other.space!r}")
        return SpeakerStream(self.clips + other.clips, self.moments + other.moments, self.space)

    def blended(self, mean: Tensor, std: Tensor, prior_clips: float = PRIOR_CLIPS) -> Tensor:
        """The statistics to standardize the speaker's clips by, (2, dim): mean and standard deviation.

        mean and std (dim,) of the training data weigh as much as `prior_clips` clips:
        (clips * own + prior_clips * mean) / (clips + prior_clips), and the same for the variances around either mean.
        How far the speaker is from the average does not add to the variance: that offset is what enrolment removes.
        (Adding it gave scores within a point on RAVDESS.) A dimension that then does not vary keeps std.

        Raises:
            ValueError: prior_clips below 0.
        """
        if not prior_clips >= 0:
            raise ValueError(f"prior_clips must be 0 or more, found {prior_clips}")
        own = self.moments
        share = self.clips / (self.clips + prior_clips)
        blended_mean = share * own.mean + (1 - share) * mean
        blended_std = (share * own.variance + (1 - share) * std.square()).sqrt()
        blended_std = torch.where(varies(blended_mean, blended_std), blended_std, std)
        return torch.stack([blended_mean, blended_std]).float()


@dataclass(frozen=True, eq=False)
class SpeakerProfile:
    """What `enrol` of a model or pipeline returns; `a + b` is the profile of the clips of both.

    streams: by modality, those that the clips and the model have.
    """

    streams: Mapping[str, SpeakerStream] = field(default_factory=dict)

    @property
    def clips(self) -> dict[str, int]:
        """Number of clips by modality."""
        return {modality: stream.clips for modality, stream in self.streams.items()}

    def __add__(self, other: "SpeakerProfile") -> "SpeakerProfile":
        shared = {m: stream + other.streams[m] for m, stream in self.streams.items() if m in other.streams}
        streams = {**self.streams, **other.streams, **shared}
        return SpeakerProfile({m: streams[m] for m in RAW_NAMES if m in streams})

    def statistics(
        self, references: Mapping[str, SpeakerReference], prior_clips: float = PRIOR_CLIPS
    ) -> dict[str, Tensor]:
        """What `forward` of a model takes: `audio_speaker` and `vision_speaker` (2, dim), as far as the profile goes.

        references: the model's `speaker_references()`; prior_clips: see `SpeakerStream.blended`.

        Raises:
            ValueError: a profile of other features than the model's, a model whose statistics were never fitted.
        """
        statistics = {}
        for modality, stream in self.streams.items():
            reference = references.get(modality)
            if reference is None or stream.space != reference.space:
                found = "not standardized" if reference is None else reference.space
                raise ValueError(
                    f"speaker profile: its {modality} is of {stream.space}, this model's is {found}; enrol the "
                    "speaker with this model"
                )
            if not reference.fitted:
                raise ValueError(f"the statistics of {modality} were never fitted; call fit_standardizers or train")
            statistics[f"{modality}_speaker"] = stream.blended(reference.mean, reference.std, prior_clips)
        return statistics

    def save(self, path: str | PathLike) -> None:
        """Write the profile as one JSON file."""
        streams = {
            modality: {
                "space": stream.space,
                "clips": stream.clips,
                "frames": stream.moments.count,
                "total": stream.moments.total.tolist(),
                "squares": stream.moments.squares.tolist(),
            }
            for modality, stream in self.streams.items()
        }
        Path(path).write_text(json.dumps({"format": FORMAT, "streams": streams}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike) -> "SpeakerProfile":
        """Read what `save` wrote, to the last bit.

        Raises:
            ValueError: no such file, or no profile in it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            found = content["format"]
            streams = {modality: _read_stream(stream) for modality, stream in content["streams"].items()}
        except OSError as error:
            raise ValueError(f"speaker profile {str(path)!r} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} is no speaker profile: {error!r}; enrol the speaker again") from error
        if found != FORMAT or not set(streams) <= set(RAW_NAMES):
            raise ValueError(f"{str(path)!r} is no {FORMAT}: found {found!r} of {', '.join(streams)}")
        return cls(streams)


def _read_stream(stream: Mapping[str, Any]) -> SpeakerStream:
    total, squares = (torch.tensor(stream[name], dtype=torch.float64) for name in ("total", "squares"))
    clips, frames = stream["clips"], stream["frames"]
    if total.dim() != 1 or total.shape != squares.shape or not (total + squares).isfinite().all():
        raise ValueError("total and squares must be lists of finite numbers, equally long")
    if not (isinstance(clips, int) and isinstance(frames, int) and 1 <= clips <= frames):
        raise ValueError(f"clips {clips!r} and frames {frames!r} must be counts, a frame a clip at least")
    return SpeakerStream(clips, Moments(frames, total, squares), str(stream["space"]))


class EnrolmentMixin:
    """Enrolment for `MerPreTrainedModel`: profiles from clips, and from profiles what `forward` takes."""

    @property
    def enrollable(self) -> tuple[str, ...]:
        """Modalities that are standardized, so that a speaker's own statistics can be used for them."""
        return tuple(m for m in RAW_NAMES if self._speaker_standardizer(m) is not None)

    def enrol(self, examples: Iterable[Mapping[str, Any]]) -> SpeakerProfile:
        """The profile of a speaker from any number of his or her clips, without labels, in any order.

        examples: one a clip, as `MerProcessor.example` or a data set makes them. Each goes through the model's
        backbones alone, so neither order nor padding shows in the profile.

        Raises:
            ValueError: a model without a standardized modality; no clip that has one; states that were computed
                beforehand where the front end itself standardizes; values that are not finite.
        """
        profile = sum(self.clip_profiles(examples), SpeakerProfile())
        if not profile.streams:
            raise ValueError(f"no clip with {' or '.join(self.enrollable)} to enrol a speaker from")
        return profile

    @torch.no_grad()
    def clip_profiles(self, examples: Iterable[Mapping[str, Any]]) -> list[SpeakerProfile]:
        """As `enrol`, a profile a clip, to be added up; that of a clip with nothing to enrol from is empty."""
        if not self.enrollable:
            raise ValueError(
                "this model standardizes neither audio nor vision, so no speaker can be enrolled; configure "
                "standardize=('audio', 'vision') or a front end with normalization='global', and train it"
            )
        spaces = {modality: self.feature_space(modality) for modality in self.enrollable}
        was_training = self.training
        self.eval()
        try:
            return [self._clip_profile(example, spaces) for example in examples]
        finally:
            self.train(was_training)

    def _clip_profile(self, example: Mapping[str, Any], spaces: Mapping[str, str]) -> SpeakerProfile:
        streams = {}
        for modality, space in spaces.items():
            given = {name: example.get(name) for name in (RAW_NAMES[modality], f"{modality}_embeds")}
            if all(value is None for value in given.values()):
                continue
            if given[f"{modality}_embeds"] is not None and self._standardizes_inside(modality):
                raise ValueError(f"{modality}_embeds are standardized already; enrol from {RAW_NAMES[modality]}")
            batch = {name: value.to(self.device) for name, value in pad_examples([given]).items()}
            with self._speaker_standardizer(modality).collecting() as seen:
                self.encode(**batch)
            if not seen or not seen[0].count:  # shorter than one frame
                continue
            moments = Moments(seen[0].count, seen[0].total.cpu(), seen[0].squares.cpu())
            if not moments.squares.isfinite().all():
                raise ValueError(f"{modality} of a clip to enrol from holds values that are not finite")
            streams[modality] = SpeakerStream(1, moments, space)
        return SpeakerProfile(streams)

    def speaker_statistics(self, profile: SpeakerProfile, prior_clips: float = PRIOR_CLIPS) -> dict[str, Tensor]:
        """A profile -> `audio_speaker` and `vision_speaker` (2, dim), as far as it goes, to add to an example.

        Raises:
            ValueError: as `SpeakerProfile.statistics`.
        """
        return profile.statistics(self.speaker_references(), prior_clips) if profile.streams else {}

    def speaker_references(self) -> dict[str, SpeakerReference]:
        """What the model standardizes each modality by where the speaker is not enrolled, as it is now."""
        references = {}
        for modality in self.enrollable:
            standardizer = self._speaker_standardizer(modality)
            mean, std = standardizer.mean.double().cpu(), standardizer.std.double().cpu()
            references[modality] = SpeakerReference(
                self.feature_space(modality), bool(standardizer.fitted), mean.clone(), std.clone()
            )
        return references

    def feature_space(self, modality: str) -> str:
        """What the vectors are that `modality` is standardized in: models that say the same can share profiles.

        Of precomputed features without a backbone only the width is known.
        """
        backbone, width = getattr(self, f"{modality}_model"), len(self._speaker_standardizer(modality).mean)
        if backbone is None:
            return f"{modality}_embeds of width {width}"
        if self._standardizes_inside(modality):
            return f"{backbone.config.model_type} frames of width {width}"
        return f"{backbone.config.model_type} states of width {width} ({fingerprint(backbone)})"

    def place_speakers(
        self, given: Mapping[str, Tensor | None], embeds: Mapping[str, Tensor | None], batch: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`*_speaker` (batch, 2, dim) by modality -> those for inside the front ends, those for behind them.

        Raises:
            ValueError: a modality that is not standardized, another shape, or states (`embeds`) that the front end
                has standardized already.
        """
        inside, behind = {}, {}
        for modality, speaker in given.items():
            if speaker is None:
                continue
            name, standardizer = f"{modality}_speaker", self._speaker_standardizer(modality)
            if standardizer is None:
                raise ValueError(f"{name} given, but this model does not standardize {modality}; leave it out")
            expected = (batch, 2, len(standardizer.mean))
            if speaker.shape != expected:
                raise ValueError(f"{name} must be {expected}, found {tuple(speaker.shape)}")
            if not self._standardizes_inside(modality):
                behind[modality] = speaker
            elif embeds[modality] is None or not speaker.any():
                inside[modality] = speaker
            else:
                raise ValueError(
                    f"{name} belongs inside the {modality} backbone, and {modality}_embeds are what comes out of it; "
                    f"give {RAW_NAMES[modality]}, or leave {name} out"
                )
        return inside, behind

    def _speaker_standardizer(self, modality: str) -> Standardizer | None:
        """Where a speaker's statistics replace the training data's: inside the front end, else on its states."""
        inside = standardizers_of(getattr(self, f"{modality}_model"))
        return inside[0] if inside else dict(self.standardizers.items()).get(modality)

    def _standardizes_inside(self, modality: str) -> bool:
        return bool(standardizers_of(getattr(self, f"{modality}_model")))


def earlier_turns(profiles: Sequence[SpeakerProfile], speakers: Sequence[str | None]) -> list[SpeakerProfile]:
    """What is known of the speaker of each turn of a dialogue before the turn: the sum of his or her earlier turns.

    profiles: one a turn, in order; speakers: who speaks, None = unknown, for whom nothing is collected.
    """
    known: dict[str, SpeakerProfile] = {}
    before = []
    for profile, speaker in zip(profiles, speakers, strict=True):
        before.append(known.get(speaker, SpeakerProfile()))
        if speaker is not None:
            known[speaker] = before[-1] + profile
    return before


def standardizers_of(module: nn.Module | None) -> list[Standardizer]:
    """Every Standardizer in a backbone, none where there is no backbone."""
    return [] if module is None else [part for part in module.modules() if isinstance(part, Standardizer)]
