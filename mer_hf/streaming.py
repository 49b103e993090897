"""Sound and pictures of a recording of any length, piece by piece and in order, decoded once, held only as needed.

The samples are those that `load_audio` makes of the whole file, and a stretch's frames those that `load_frames` would
take of it, so what is right for clips is right for a stretch of an hour.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .models.media import LOUDEST, RATES, SOUNDFILE_MAGIC, MediaError, midpoints, resample, upright
from .models.media_files import (
    SAMPLES_TOLERANCE,
    Encoded,
    check_complete,
    ends_inside_ogg_page,
    import_av,
    open_container,
    scan,
    seconds_missing_from_wav,
    stream_of,
)

RATE = 16_000
BLOCK_SECONDS = 5.0
"""Of sound resampled at a time."""
ROUNDING = 1e-6
"""Seconds by which a picture that is shown just at a border may seem to come before it."""
FILTER_REACH = 70
"""Periods of the lower rate that `resample` looks to each side: 64 / 0.947, rounded up."""


class SoundStream:
    """The sound of a recording, 16 kHz and mono. Reading goes forward; `drop` frees what is behind.

    Raises:
        NoStreamError, MediaError: as `load_audio`, at the door where it can be known there, else when it is reached.
    """

    def __init__(self, media: Encoded):
        self._blocks = _resampled(_checked(media.name, _decoded(media)))
        self._held, self._begin, self._ended = np.zeros(0, np.float32), 0, False
        self._read_until(1)
        if not len(self._held):
            raise MediaError(f"{media.name}: holds no samples; leave the audio out, or record it again")

    def read(self, start: int, end: int) -> np.ndarray:
        """Samples [start, end), fewer where the recording ends before; what was dropped is not there any more."""
        self._read_until(end)
        return self._held[start - self._begin : max(end - self._begin, 0)]

    def goes_on(self, place: int) -> bool:
        """Whether there is a sample at `place`."""
        self._read_until(place + 1)
        return self._begin + len(self._held) > place

    @property
    def length(self) -> int:
        """Samples read so far: all, once the recording does not go on."""
        return self._begin + len(self._held)

    def drop(self, before: int) -> None:
        gone = min(max(before - self._begin, 0), len(self._held))
        self._held, self._begin = self._held[gone:].copy(), self._begin + gone

    def _read_until(self, end: int) -> None:
        blocks = [self._held]
        while not self._ended and self._begin + sum(map(len, blocks)) < end:
            block = next(self._blocks, None)
            self._ended = block is None
            blocks += [] if block is None else [block]
        if len(blocks) > 1:
            self._held = np.concatenate(blocks)


def _decoded(media: Encoded) -> Iterator[tuple[np.ndarray, int]]:
    """(samples, channels) float32 and the rate, block by block; the decoder is chosen as `load_audio` does."""
    if not media.head().startswith(SOUNDFILE_MAGIC):
        return _decoded_track(media)
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("reading wav, flac and ogg needs soundfile: pip install soundfile") from error
    try:
        file = soundfile.SoundFile(media.open())
    except soundfile.SoundFileError:
        return _decoded_track(media)
    there = file.frames / file.samplerate
    check_complete(media.name, there, there + seconds_missing_from_wav(media), SAMPLES_TOLERANCE)
    if ends_inside_ogg_page(media):
        raise MediaError(f"{media.name}: truncated, {there:.2f} s are left; copy or download it again")
    return _decoded_file(media.name, file, soundfile.SoundFileError)


def _decoded_file(name: str, file: Any, problem: type[Exception]) -> Iterator[tuple[np.ndarray, int]]:
    found, rate = 0, file.samplerate
    with file:
        try:
            for block in file.blocks(int(BLOCK_SECONDS * rate), dtype="float32", always_2d=True):
                found += len(block)
                yield block, rate
        except problem as error:
            raise MediaError(
                f"{name}: broken after {found / rate:.2f} s ({error}); copy or download it again"
            ) from error
        check_complete(name, found / rate, file.frames / rate, SAMPLES_TOLERANCE)


def _decoded_track(media: Encoded) -> Iterator[tuple[np.ndarray, int]]:
    scan(media, "audio")
    return _decoded_frames(media)


def _decoded_frames(media: Encoded) -> Iterator[tuple[np.ndarray, int]]:
    with open_container(media) as container:
        to_planar_float = import_av().AudioResampler(format="fltp")  # changes the sample type, not rate or layout
        for frame in container.decode(stream_of(container, "audio", media.name)):
            for block in to_planar_float.resample(frame):
                yield block.to_ndarray().T, frame.sample_rate


def _checked(name: str, blocks: Iterator[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """Mono blocks; refuses what `load_audio` refuses."""
    for samples, rate in blocks:
        if not RATES[0] <= rate <= RATES[1]:
            raise MediaError(f"{name}: {rate} Hz is no audio rate; expected {RATES[0]} to {RATES[1]} Hz")
        if not np.isfinite(samples).all():
            raise MediaError(f"{name}: holds samples that are NaN or infinite; repair them first")
        if (peak := float(np.abs(samples).max(initial=0.0))) > LOUDEST:
            raise MediaError(f"{name}: float samples reach {peak:g}, expected [-1, 1]; divide 16-bit values by 32768")
        yield samples.mean(axis=1, dtype=np.float32), rate


def _resampled(blocks: Iterator[tuple[np.ndarray, int]]) -> Iterator[np.ndarray]:
    """Mono blocks at 16 kHz, as if all had been resampled at once.

    The filter repeats every `step` samples, so a block that starts at a multiple of it, with as much sound on either
    side as the filter looks, has the very same sums.
    """
    gathered, left, rate = [], 0, RATE  # left: samples at the front that are out already, and only heard by the filter
    for block, rate in blocks:
        if rate == RATE:
            yield np.clip(block, -1.0, 1.0)
            continue
        gathered.append(block)
        step, made, reach = _filter_grid(rate)
        total = sum(map(len, gathered))
        ready = (total - reach) // step * step
        if ready - left >= BLOCK_SECONDS * rate:
            sound = np.concatenate(gathered)
            yield _outputs(sound[: ready + reach], rate, left // step * made, ready // step * made)
            behind = max(ready - reach, 0)
            gathered, left = [sound[behind:]], ready - behind
    if gathered:
        step, made, _ = _filter_grid(rate)
        yield _outputs(np.concatenate(gathered), rate, left // step * made, None)


def _filter_grid(rate: int) -> tuple[int, int, int]:
    """Samples in and out of one repetition of the filter, and how far it looks in samples, whole repetitions."""
    ratio = Fraction(RATE, rate).limit_denominator(4000)  # as `resample`
    reach = math.ceil(FILTER_REACH * max(1.0, 1 / ratio))
    return ratio.denominator, ratio.numerator, -(-reach // ratio.denominator) * ratio.denominator


def _outputs(sound: np.ndarray, rate: int, start: int, end: int | None) -> np.ndarray:
    return np.clip(resample(sound, rate, RATE)[start:end], -1.0, 1.0)


class PictureStream:
    """The pictures of a recording. Stretches are read in order; each picture is decoded once.

    Raises:
        NoStreamError, MediaError: as `load_frames`.
    """

    def __init__(self, media: Encoded, num_frames: int):
        self._media, self._num_frames = media, num_frames
        shown_at, origin = scan(media, "video")
        if not shown_at:
            raise MediaError(f"{media.name}: its video decodes to nothing; export the file again")
        with open_container(media) as container:
            unit = stream_of(container, "video", media.name).time_base
        self._shown_at = np.array(shown_at)
        self._times = np.maximum(self._shown_at * float(unit) - origin, 0.0)
        shown_for = float(np.median(np.diff(self._times))) if len(shown_at) > 1 else 0.0
        self.end = float(self._times[-1]) + shown_for  # seconds
        self._decoded = self._decode()
        self._ahead = next(self._decoded, None)
        self._kept: dict[int, np.ndarray] = {}
        self._passed = -math.inf

    def read(self, spans: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
        """The sampled frames of spans[0], (start, end) in seconds: uint8 (frames, height, width, 3), and their times
        (frames,) from its start on. The other spans begin before its end: what they need is kept on the way."""
        mine, end = self._wanted(*spans[0]), self._places(*spans[0])[1]
        if not mine:
            return np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.float32)
        last = self._shown_at[end - 1]
        self._decode_until(last, {place for span in spans for place in self._wanted(*span)})
        # Where a packet gave no picture the next one of the stretch stands in, and never one twice.
        chosen = sorted({min((k for k in self._kept if place <= k <= last), default=-1) for place in mine} - {-1})
        frames = [self._kept[place] for place in chosen]
        times = np.maximum(self._times[np.searchsorted(self._shown_at, chosen)] - spans[0][0], 0.0)
        begins = [self._shown_at[self._places(*span)[0]] for span in spans[1:] if self._wanted(*span)]
        self._kept = {k: frame for k, frame in self._kept.items() if begins and k >= min(begins)}
        return (np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)), times.astype(np.float32)

    def _decode_until(self, last: int, places: set[int]) -> None:
        """Decode the pictures shown at `last` and before it; keep those at `places`, or the first behind one."""
        wanted = sorted(place for place in places if place > self._passed)
        while self._ahead is not None and self._ahead.pts <= last:
            self._passed = self._ahead.pts
            if wanted and wanted[0] <= self._passed:
                self._kept[self._passed] = upright(self._ahead, self._size)
                wanted = [place for place in wanted if place > self._passed]
            self._ahead = next(self._decoded, None)

    def _decode(self) -> Iterator[Any]:
        self._size = None
        with open_container(self._media) as container:
            for frame in container.decode(stream_of(container, "video", self._media.name)):
                if self._size is None:
                    upright = frame.rotation % 180 == 0
                    self._size = (frame.height, frame.width) if upright else (frame.width, frame.height)
                if frame.pts is not None:
                    yield frame

    def _places(self, start: float, end: float) -> tuple[int, int]:
        first, last = np.searchsorted(self._times, [start - ROUNDING, end - ROUNDING])
        return int(first), int(last)

    def _wanted(self, start: float, end: float) -> list[int]:
        """When the frames that `load_frames` would take of a stretch are shown, in the stream's units."""
        first, last = self._places(start, end)
        return [int(self._shown_at[first + place]) for place in midpoints(last - first, self._num_frames)]
