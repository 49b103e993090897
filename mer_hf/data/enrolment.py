"""Speakers enrolled by their own unlabelled clips: which clips those are, and their statistics beside each example.

    model.fit_standardizers(training_batches)   # what a speaker is blended with
    train = EnrolledClips(model, train, speakers, sizes=(1, 4, 8, 20, None), unenrolled=0.2, seed=0)

`model` is anything with `clip_profiles` and `speaker_references` (MerPreTrainedModel).
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from ..models.speakers import PRIOR_CLIPS, SpeakerProfile, SpeakerReference, earlier_turns

Example = Mapping[str, Any]


def enrolment_subsets(speakers: Mapping[str, str], size: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Clips to enrol each speaker from, drawn at random: {speaker: ids}. What is drawn must not be scored.

    speakers: who speaks, by clip id. Nested: with one seed the clips for size 1 are among those for 8, and these
    among those for 20, so leave the largest subset out of all scores that are compared. A speaker's clips depend on
    the seed and the speaker's own ids alone, in whatever order and company they come.

    Raises:
        ValueError: size below 1, or a speaker who would have no clip left to score.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 clip, found {size}")
    clips: dict[str, list[str]] = {}
    for clip, speaker in speakers.items():
        clips.setdefault(speaker, []).append(clip)
    few = sorted(speaker for speaker, ids in clips.items() if len(ids) <= size)
    if few:
        raise ValueError(f"speakers {few} have {size} clips or fewer: none would be left to score")

    def draw(clip: str) -> str:
        return hashlib.sha256(f"{seed} {clip}".encode()).hexdigest()

    return {speaker: tuple(sorted(ids, key=draw)[:size]) for speaker, ids in clips.items()}


def enrol_examples(
    model: Any,
    examples: Sequence[Example],
    speakers: Sequence[str | None],
    enrolment: Mapping[str, Sequence[Example]] | None = None,
    leave_out: bool = False,
    prior_clips: float = PRIOR_CLIPS,
) -> list[dict[str, Any]]:
    """The examples, each with the statistics of its speaker beside it; of whom nothing is known, without.

    speakers: of each example, None = unknown. enrolment: examples to enrol each speaker from; None = all of the
    speaker's among `examples`, with leave_out all but the one that gets the statistics.

    Raises:
        ValueError: speakers that do not match the examples, leave_out with enrolment examples of their own, and what
            `clip_profiles` of the model and `SpeakerProfile.statistics` refuse.
    """
    _check_speakers(examples, speakers)
    if enrolment is not None:
        if leave_out:
            raise ValueError("leave_out is for enrolment from the examples themselves; keep `enrolment` apart of them")
        known = {name: sum(model.clip_profiles(clips), SpeakerProfile()) for name, clips in enrolment.items()}
        profiles = [known.get(speaker, SpeakerProfile()) for speaker in speakers]
    else:
        profiles = _own_profiles(model.clip_profiles(examples), speakers, leave_out)
    return _beside(examples, profiles, model.speaker_references(), prior_clips)


def enrol_earlier_turns(
    model: Any,
    dialogues: Sequence[Sequence[Example]],
    speakers: Sequence[Sequence[str | None]],
    prior_clips: float = PRIOR_CLIPS,
) -> list[list[dict[str, Any]]]:
    """Dialogues whose turns have the statistics of the earlier turns of the same speaker in the same dialogue.

    speakers: of each turn of each dialogue. No turn's statistics hold the turn itself or a later one; the first of a
    speaker has none.

    Raises:
        ValueError: as `enrol_examples`.
    """
    if len(dialogues) != len(speakers):
        raise ValueError(f"{len(dialogues)} dialogues but speakers of {len(speakers)}")
    references, enrolled = model.speaker_references(), []
    for turns, names in zip(dialogues, speakers, strict=True):
        _check_speakers(turns, names)
        profiles = earlier_turns(model.clip_profiles(turns), names)
        enrolled.append(_beside(turns, profiles, references, prior_clips))
    return enrolled


class EnrolledClips(Dataset):
    """Training examples, each enrolled anew at every look from clips of its speaker drawn at random.

    A model that was only trained on well-known speakers does not know what few clips look like, nor none.

    speakers: of each example. sizes: of which one is drawn, each as likely as another; so many of the speaker's other
    clips are drawn then (all where there are fewer), None = all the speaker's clips, this one with them. unenrolled:
    share of looks without enrolment. The draws follow from the seed and the order of the looks.

    Raises:
        ValueError: speakers that do not match the examples, no size or one below 1, a share outside [0, 1].
    """

    def __init__(
        self,
        model: Any,
        examples: Dataset | Sequence[Example],
        speakers: Sequence[str],
        sizes: Sequence[int | None] = (None,),
        unenrolled: float = 0.0,
        prior_clips: float = PRIOR_CLIPS,
        seed: int = 0,
    ):
        _check_speakers(examples, speakers)
        if not sizes or any(size is not None and size < 1 for size in sizes):
            raise ValueError(f"sizes must be numbers of clips, at least 1, or None for all; found {list(sizes)}")
        if not 0 <= unenrolled <= 1:
            raise ValueError(f"unenrolled is a share of the looks, 0 to 1; found {unenrolled}")
        self.examples, self.speakers, self.references = examples, speakers, model.speaker_references()
        self.sizes, self.unenrolled, self.prior_clips = sizes, unenrolled, prior_clips
        self.profiles = model.clip_profiles(examples[index] for index in range(len(examples)))
        self.clips: dict[str, list[int]] = {}
        for index, speaker in enumerate(speakers):
            self.clips.setdefault(speaker, []).append(index)
        self.everything = {
            speaker: sum((self.profiles[index] for index in clips), SpeakerProfile())
            for speaker, clips in self.clips.items()
        }
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = dict(self.examples[index])
        if torch.rand((), generator=self.generator) < self.unenrolled:
            return example
        return example | self._draw(index).statistics(self.references, self.prior_clips)

    def _draw(self, index: int) -> SpeakerProfile:
        size = self.sizes[int(torch.randint(len(self.sizes), (), generator=self.generator))]
        if size is None:
            return self.everything[self.speakers[index]]
        others = [clip for clip in self.clips[self.speakers[index]] if clip != index]
        chosen = torch.randperm(len(others), generator=self.generator)[:size].tolist()
        return sum((self.profiles[others[place]] for place in chosen), SpeakerProfile())


def _beside(
    examples: Sequence[Example],
    profiles: Sequence[SpeakerProfile],
    references: Mapping[str, SpeakerReference],
    prior_clips: float,
) -> list[dict[str, Any]]:
    pairs = zip(examples, profiles, strict=True)
    return [dict(example) | profile.statistics(references, prior_clips) for example, profile in pairs]


def _own_profiles(
    profiles: Sequence[SpeakerProfile], speakers: Sequence[str | None], leave_out: bool
) -> list[SpeakerProfile]:
    """Of each clip the sum over the clips of its speaker, with it or without."""
    clips: dict[str, list[int]] = {}
    for index, speaker in enumerate(speakers):
        clips.setdefault(speaker, []).append(index)
    clips.pop(None, None)
    summed = [SpeakerProfile()] * len(profiles)
    for own in clips.values():
        everything = sum((profiles[index] for index in own), SpeakerProfile())
        for index in own:
            others = (profiles[other] for other in own if other != index)
            summed[index] = sum(others, SpeakerProfile()) if leave_out else everything
    return summed


def _check_speakers(examples: Sequence[Example], speakers: Sequence[str | None]) -> None:
    if len(examples) != len(speakers):
        raise ValueError(f"{len(examples)} examples but {len(speakers)} speakers; give one for each")
