"""Clips said faster, by somebody else, from nearer or farther: what twelve training speakers cannot show.

`SpeakerSwap` is for one fixed vector a clip, `SpeedChange` for waveforms; what can be changed once a model has made
log-mels of them is its front end's (`FilterbankConfig.warp` and the like).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

EMBEDS = ("audio_embeds", "vision_embeds")


class SpeakerSwap(Dataset):
    """Examples with one vector (1, width) a modality, moved at every look towards another speaker.

    x + u (m' - m): m and m' are the means of the clip's own speaker and of one drawn from all speakers of the set, u
    is drawn from [0, 1], for each modality anew. Then `loudness` g, g from a standard normal distribution, is added
    to the `loud` entries of the audio vector: those that a louder voice shifts alike, such as means of log-mels.

    speakers: of each example. The set's own examples, unmoved, are `clean`: statistics are taken from them.

    Raises:
        ValueError: another number of speakers than of examples.
    """

    def __init__(
        self,
        examples: Sequence[Mapping[str, Any]],
        speakers: Sequence[str],
        loud: Sequence[int] = (),
        loudness: float = 0.0,
    ):
        if len(examples) != len(speakers):
            raise ValueError(f"{len(examples)} examples and {len(speakers)} speakers; give each its own")
        self.clean, self.speakers = examples, speakers
        self.loud, self.loudness = torch.as_tensor(loud, dtype=torch.long), loudness
        self.means = {name: _speaker_means(examples, speakers, name) for name in EMBEDS}

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = dict(self.clean[index])
        for name, means in self.means.items():
            if name in example:
                other = list(means.values())[int(torch.randint(len(means), ()))]
                example[name] = example[name] + torch.rand(()) * (other - means[self.speakers[index]])
        if self.loudness and "audio_embeds" in example:
            moved = example["audio_embeds"].clone()
            moved[:, self.loud] += self.loudness * torch.randn(())
            example["audio_embeds"] = moved
        return example


def _speaker_means(examples: Sequence[Mapping[str, Any]], speakers: Sequence[str], name: str) -> dict[str, Tensor]:
    """Mean vector (1, width) of each speaker who has any."""
    vectors: dict[str, list[Tensor]] = {}
    for example, speaker in zip(examples, speakers, strict=True):
        if name in example:
            vectors.setdefault(speaker, []).append(example[name])
    return {speaker: torch.cat(own).mean(0, keepdim=True) for speaker, own in vectors.items()}


class SpeedChange(Dataset):
    """Examples with `input_values`, at every look faster or slower, and as much higher or lower in pitch.

    Speed perturbation, Ko et al. 2015, "Audio augmentation for speech recognition", Interspeech: the waveform is
    resampled by a factor drawn between exp(-most) and exp(most), uniformly in logarithms. The times of words and
    pictures move along. 0.1 is about what the source uses (0.9 to 1.1).

    The examples themselves, unchanged, are `clean`.

    Raises:
        ValueError: `most` below 0.
    """

    def __init__(self, examples: Dataset | Sequence[Mapping[str, Any]], most: float):
        if most < 0:
            raise ValueError(f"most says how far the speed may change, 0 or more; found {most}")
        self.clean, self.most = examples, most

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = dict(self.clean[index])
        if "input_values" in example:
            waveform = example["input_values"]
            size = max(1, round(len(waveform) * math.exp(self.most * (2 * float(torch.rand(())) - 1))))
            slower = torch.nn.functional.interpolate(waveform[None, None], size=size, mode="linear")
            example["input_values"] = slower[0, 0]
            for name in ("word_times", "vision_times"):
                if name in example:
                    example[name] = example[name] * (size / len(waveform))
        return example
