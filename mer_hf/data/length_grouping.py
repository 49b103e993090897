"""Batches of clips, or of dialogues, that are about equally long: little of what a backbone computes is padding.

    sampler = LengthBatchSampler(dataset_lengths(dataset), seconds=60, together=accelerator.num_processes)
    loader = accelerator.prepare(DataLoader(dataset, batch_sampler=sampler, collate_fn=EmotionCollator()))

transformers' `train_sampling_strategy="group_by_length"` pads about as little at a fixed batch size. But it takes
lengths from a column of a `datasets.Dataset` and from nothing else without decoding every clip, and it knows no budget
of seconds, no dialogues and no evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import BatchSampler, Dataset

from ..models.media import encoded, load_audio, open_container
from .collator import ClipDataset, DialogueDataset

SAMPLING_RATE = 16_000
SECONDS_PER_WORD = 0.3
"""What a word counts for where a clip has no sound."""
LENGTH_NOISE = 0.05
"""Lengths are taken up to 5 % longer or shorter, anew each epoch, so that a clip meets others than last time."""
FRAME_FIELDS = ("audio_embeds", "text_embeds", "vision_embeds", "input_ids", "pixel_values")


class LengthBatchSampler(BatchSampler):
    """Batches of indices by length: every index once an epoch, none dropped, none repeated.

    lengths: (items,), in seconds or any other unit; or (items, 2) for dialogues, turns and their longest. A batch is
    computed at its number of items times its longest in each column, which is the size that `seconds` bounds.
    batch_size: items a batch at most. seconds: size of a batch at most; an item that alone is longer is a batch of its
    own. At least one of the two. together: batches that one optimizer step takes, processes times accumulation steps:
    those that come one after another are about equally long, and the number of all is a multiple of it. shuffle: in
    another order each epoch, see `set_epoch`, the longest batches first, so that too little memory shows at once;
    without it the batches are the same each epoch, longest first.

    Every process makes the same batches. Accelerate's `BatchSamplerShard`, which `accelerator.prepare` puts around
    this sampler, gives process r the batches r, r + processes, ...: as many to each. With a batch_size alone, the
    items of a step depend on batch_size * together only: two processes with batches of 8 and one with 16 see the same,
    unless this makes steps of fewer items than `together`.

    Raises:
        ValueError: neither batch_size nor seconds, or one that is not above 0; lengths of another shape, negative or
            not finite; fewer items than `together`.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        batch_size: int | None = None,
        seconds: float | None = None,
        together: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        noise: float = LENGTH_NOISE,
    ):
        sizes = np.asarray(lengths, dtype=np.float64)
        sizes = sizes[:, None] if sizes.ndim == 1 else sizes
        if sizes.ndim != 2 or not np.isfinite(sizes).all() or (sizes < 0).any():
            raise ValueError(f"lengths are (items,) or (items, 2), finite and not negative; found {sizes.shape}")
        if (batch_size is None and seconds is None) or not all(v is None or v > 0 for v in (batch_size, seconds)):
            raise ValueError(f"give a batch_size or seconds above 0, found {batch_size} and {seconds}")
        if not 1 <= together <= len(sizes):
            raise ValueError(f"together is {together}, of {len(sizes)} items; use fewer processes or more clips")
        self.sizes, self.items_at_most, self.seconds = sizes, batch_size, seconds
        self.together, self.shuffle, self.seed, self.noise = together, shuffle, seed, noise
        self.epoch = 0
        self.batch_size = None  # what Accelerate takes for batches of varying size, which it then leaves as they are
        self.drop_last = False

    @property
    def sampler(self) -> "LengthBatchSampler":
        """Where Accelerate looks for `set_epoch`, inside its shard."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order comes next; Accelerate's loaders and Trainer call it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(map(len, self.steps()))

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            yield from step

    def steps(self) -> list[list[list[int]]]:
        """The epoch's optimizer steps, each `together` batches of indices."""
        random = np.random.default_rng([self.seed, self.epoch])
        order = self._order(random)
        steps = self._even_steps(order) if self.seconds is None else self._steps_within_seconds(order)
        if not self.shuffle:
            return steps
        shuffled = [steps[i] for i in random.permutation(len(steps))]
        longest = max(range(len(shuffled)), key=lambda i: max(map(self._padded, shuffled[i])))
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
        return shuffled

    def _order(self, random: np.random.Generator) -> NDArray[np.intp]:
        """Longest first; equal lengths, such as drawn from one noise, in a random order where shuffled."""
        area = self.sizes.prod(axis=1)
        if not self.shuffle:
            return np.argsort(-area, kind="stable")
        mixed = random.permutation(len(area))
        factor = 1 + random.uniform(-self.noise, self.noise, len(area))
        return mixed[np.argsort(-(area * factor)[mixed], kind="stable")]

    def _even_steps(self, order: NDArray[np.intp]) -> list[list[list[int]]]:
        """As many steps as batch_size asks for, their items and those of their batches within one of each other."""
        count = -(-len(order) // (self.items_at_most * self.together))
        count = min(count, len(order) // self.together)  # one item a batch at least, if need be with one too many
        steps = np.array_split(order, count)
        return [[batch.tolist() for batch in np.array_split(step, self.together)] for step in steps]

    def _steps_within_seconds(self, order: NDArray[np.intp]) -> list[list[list[int]]]:
        batches: list[list[int]] = []
        longest = np.zeros(self.sizes.shape[1])
        for item in order.tolist():
            grown = np.maximum(longest, self.sizes[item])
            full = not batches or len(batches[-1]) == self.items_at_most
            if full or (len(batches[-1]) + 1) * grown.prod() > self.seconds:
                batches.append([])
                grown = self.sizes[item]
            batches[-1].append(item)
            longest = grown
        self._fill_last_step(batches)
        return [batches[start : start + self.together] for start in range(0, len(batches), self.together)]

    def _fill_last_step(self, batches: list[list[int]]) -> None:
        """Make the number of batches a multiple of `together`: halve those with the most items, within any bound.

        Where items fill a batch each, and a few are too many, these join the other batches of the shortest.
        """
        missing, over = -len(batches) % self.together, len(batches) % self.together
        if missing <= len(self.sizes) - len(batches):
            for _ in range(missing):
                largest = max(range(len(batches)), key=lambda i: len(batches[i]))
                middle = -(-len(batches[largest]) // 2)
                batches[largest : largest + 1] = [batches[largest][:middle], batches[largest][middle:]]
            return
        left = [batches.pop() for _ in range(over)]
        for number, batch in enumerate(left):
            batches[-1 - number % len(batches)].extend(batch)

    def _padded(self, batch: Sequence[int]) -> float:
        return float(len(batch) * self.sizes[batch].max(axis=0).prod())


def padding_ratio(lengths: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """What is computed over what is real: each batch at its longest. lengths (items,) of the indices in `batches`."""
    lengths = np.asarray(lengths, dtype=np.float64)
    padded = sum(len(batch) * lengths[list(batch)].max() for batch in batches)
    return float(padded / sum(lengths[list(batch)].sum() for batch in batches))


def iemocap_like_seconds(clips: int, seed: int = 0) -> NDArray[np.float64]:
    """Lengths as IEMOCAP's are spread, log-normal: median 3.58 s, mean 4.55, 95 % below 11.1, at most 34.1."""
    median, mean, longest, shortest = 3.58, 4.55, 34.1, 0.58
    deviation = np.sqrt(2 * np.log(mean / median))
    drawn = np.random.default_rng(seed).normal(np.log(median), deviation, clips)
    return np.exp(drawn).clip(shortest, longest)


# Lengths


@runtime_checkable
class Measured(Protocol):
    """A data set that knows how long its items are."""

    @property
    def lengths(self) -> NDArray[np.float64]: ...


def dataset_lengths(dataset: Dataset) -> NDArray[np.float64]:
    """What `LengthBatchSampler` wants to know of a data set: (items,), of dialogues (items, 2).

    Of a ClipDataset the seconds that its files declare, without decoding them; of dialogues turns and their longest;
    of a data set with `lengths`, such as a store's clips, these; of any other, whose examples are at hand, the longest
    sequence of each (`example_length`).
    """
    if isinstance(dataset, DialogueDataset):
        clips = dataset_lengths(dataset.clips)
        return np.array([(len(turns), clips[turns].max()) for turns in dataset.dialogues])
    if isinstance(dataset, Measured):
        return dataset.lengths
    if isinstance(dataset, ClipDataset):
        return np.array([row_seconds(row) for row in dataset.rows])
    return np.array([example_length(dataset[index]) for index in range(len(dataset))])


def example_length(example: Mapping[str, Any]) -> float:
    """Seconds of sound, or places of the longest other sequence; 0 where there is none."""
    if example.get("input_values") is not None:
        return len(example["input_values"]) / SAMPLING_RATE
    return float(max([0, *(len(example[name]) for name in FRAME_FIELDS if example.get(name) is not None)]))


def row_seconds(row: Mapping[str, Any]) -> float:
    """Seconds of a schema row's sound, as its file declares them; without sound, `SECONDS_PER_WORD` a word.

    A file that cannot be read counts 0: whoever decodes it says what is wrong.
    """
    if row.get("audio") is None:
        words = row.get("words") or (row.get("text") or "").split()
        return len(words) * SECONDS_PER_WORD
    try:
        return seconds_of(row["audio"])
    except (ValueError, OSError):
        return 0.0


def seconds_of(source: Any) -> float:
    """Seconds of sound from the header, or from the container's where soundfile does not know the file.

    source: as of `load_audio`; arrays and files that declare no duration are decoded.

    Raises:
        ValueError: as `load_audio`.
    """
    decoded = "array" in source if isinstance(source, Mapping) else isinstance(source, tuple | list)
    if not decoded:
        media = encoded(source)
        try:
            found = soundfile.info(media.open())
            return found.frames / found.samplerate
        except soundfile.SoundFileError:
            pass
        with open_container(media) as container:
            if container.duration:
                return container.duration / 1e6  # microseconds
    return len(load_audio(source, SAMPLING_RATE)) / SAMPLING_RATE
