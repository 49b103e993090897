"""Prediction over recordings of any length, window by window, in the memory that a few windows need.

    for window in predict_windows(classify, "meeting.mp4", seconds=6, at_pauses=True, recognize=False):
        print(window["start"], window["end"], window["scores"])

Sound and pictures are decoded as the windows advance, each once (`streaming`). A window's result is that of the
pipeline on the window cut out by itself.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from .models.media import SILENCE_DB, loudest_db
from .models.media_files import NoStreamError, encoded
from .streaming import RATE, PictureStream, SoundStream

SHORTEST = 0.1
"""Seconds; a window that is shorter is not classified, and such a rest of a recording joins the window before it."""
NEAR = 0.25
"""How far from its place a border may move to a pause, as a share of a window."""
LEVEL, PAUSE = RATE // 100, 5
"""Samples of which loudness is taken, 10 ms, and how many of those a pause is, 50 ms."""
NOTHING_TO_READ = "nothing in it is what this model reads"
"""What the pipeline's error says of a clip without a modality of the model's: no face, no words."""


def predict_windows(
    classify: Callable[..., Any],
    path: str | PathLike | bytes,
    *,
    seconds: float = 6.0,
    hop: float | None = None,
    words: Sequence[Mapping[str, Any]] | None = None,
    silence_db: float = SILENCE_DB,
    at_pauses: bool = False,
    **call: Any,
) -> Iterator[dict[str, Any]]:
    """The emotion of every `seconds` of a recording, in order, decoding as it goes.

    classify: the pipeline. path: an audio or video file, or its bytes. hop: seconds from one window's start to the
    next's, default `seconds`; the last window is shorter. words: [{"word", "start", "end"}] of the whole recording in
    its seconds; a window gets those whose middle is in it, [] = nothing is said, None = as the pipeline does it.
    silence_db: sound of a window in which no 10 ms are louder is left out. at_pauses: end windows not after `seconds`
    but at the quietest 50 ms within a quarter of that. call: arguments of the pipeline (recognize, asr, top_k), and
    `speaker`.

    Yields {"start", "end"} in seconds, "scores" [{"label", "score"}], best first, or None, "modalities" that were
    read, and "reason": None, or why there are no scores: "silence", "too short", "nothing to read" (no face, no
    words), or why its words could not be aligned.

    Raises:
        ValueError: windows or a hop that are not above 0, hop with at_pauses, words without times, a model that reads
            no raw sound or pictures, and what the pipeline refuses.
        MediaError: a file that cannot be read or is truncated; damage that only decoding shows, when it is reached.
    """
    if not seconds >= SHORTEST or not (hop is None or hop > 0):
        raise ValueError(f"seconds must be {SHORTEST} or more and hop above 0, found {seconds} and {hop}")
    if at_pauses and hop is not None:
        raise ValueError(f"hop is {hop} with at_pauses, where each window begins at the end of the one before it")
    for word in words or ():
        if not isinstance(word, Mapping) or word.get("start") is None or word.get("end") is None:
            raise ValueError(f"words: {word} has no start or no end; align the words first (mer_hf.WordAligner)")
    classify._sanitize_parameters(**{name: value for name, value in call.items() if name != "speaker"})
    recording = _Recording.open(classify, path)
    spans = _pause_spans(recording, seconds) if at_pauses else _even_spans(recording, seconds, hop or seconds)
    return _windows(classify, recording, spans, words, silence_db, call)


@dataclass
class _Recording:
    """What of a file the model reads, sound or pictures or both; places are samples at 16 kHz."""

    name: str
    sound: SoundStream | None
    pictures: PictureStream | None

    @classmethod
    def open(cls, classify: Any, path: Any) -> "_Recording":
        config, media = classify.model.config, encoded(path)
        raw = {modality for modality in config.modalities if config.reads_raw(modality)}
        if not raw:
            raise ValueError("this model reads features alone; give each window's *_embeds to the pipeline")
        sound = pictures = problem = None
        try:
            sound = SoundStream(media) if {"audio", "text"} & raw else None
        except NoStreamError as error:
            problem = error
        try:
            pictures = PictureStream(media, classify.processor.num_frames) if "vision" in raw else None
        except NoStreamError as error:
            problem = problem or error
        if sound is None and pictures is None:
            raise problem
        return cls(media.name, sound, pictures)

    def goes_on(self, place: int) -> bool:
        seen = self.pictures is not None and self.pictures.end * RATE > place
        return seen or (self.sound is not None and self.sound.goes_on(place))

    @property
    def end(self) -> int:
        """Where it ends, once it does not go on."""
        heard = 0 if self.sound is None else self.sound.length
        return max(heard, 0 if self.pictures is None else round(self.pictures.end * RATE))


def _even_spans(recording: _Recording, seconds: float, hop: float) -> Iterator[tuple[int, int]]:
    """[start, end) of each window; the first that reaches the recording's end is the last."""
    size, index, start = round(seconds * RATE), 0, 0
    while index == 0 or recording.goes_on(start):
        if not recording.goes_on(start + size + round(SHORTEST * RATE) - 1):
            yield start, recording.end
            return
        yield start, start + size
        index += 1
        start = round(index * hop * RATE)


def _pause_spans(recording: _Recording, seconds: float) -> Iterator[tuple[int, int]]:
    """[start, end) of windows that end where it is quiet; a rest that is hardly longer than a window is one."""
    start, size, near = 0, round(seconds * RATE), round(NEAR * seconds * RATE)
    while recording.goes_on(start + size + near):
        end = start + size
        if recording.sound is not None:
            around = recording.sound.read(end - near, end + near)
            end += _quietest(around) - near if len(around) == 2 * near else 0
        yield start, end
        start = end
    yield start, recording.end


def _quietest(sound: np.ndarray) -> int:
    """The middle of the quietest 50 ms; of several the one nearest to the middle of it all."""
    energy = np.convolve(_energies(sound), np.ones(PAUSE), "valid").round(12)  # what differs by rounding is alike
    middles = (np.arange(len(energy)) + PAUSE / 2) * LEVEL
    order = np.lexsort((np.abs(middles - len(sound) / 2), energy))
    return int(middles[order[0]])


def _energies(sound: np.ndarray) -> np.ndarray:
    """Mean square of every 10 ms, the rest at the end left out."""
    return np.square(sound[: len(sound) // LEVEL * LEVEL].astype(np.float64)).reshape(-1, LEVEL).mean(axis=1)


def _windows(
    classify: Any,
    recording: _Recording,
    spans: Iterator[tuple[int, int]],
    words: Sequence[Mapping[str, Any]] | None,
    silence_db: float,
    call: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    for (start, end), following in _with_following(spans):
        clip: dict[str, Any] = {}
        if recording.sound is not None:
            recording.sound.drop(start)
            sound = recording.sound.read(start, end)
            clip = {"audio": (sound, RATE)} if loudest_db(sound) >= silence_db else {}
        silent = recording.sound is not None and not clip
        if words is not None:
            said = _words_within(words, start / RATE, end / RATE)
            clip |= {"words": said} if said or clip else {}
        if recording.pictures is not None:
            frames, times = recording.pictures.read([(a / RATE, b / RATE) for a, b in [(start, end), *following]])
            clip |= {"video": {"frames": frames, "times": times}} if len(frames) else {}
        found = {"start": start / RATE, "end": end / RATE, "scores": None, "modalities": [], "reason": None}
        if end - start < round(SHORTEST * RATE):
            yield found | {"reason": "too short"}
        else:
            yield found | _classified(classify, clip, silent, call)
    late = [word for word in words or () if (word["start"] + word["end"]) / 2 >= end / RATE]
    if late:
        warnings.warn(
            f"{recording.name}: ends at {end / RATE:.2f} s and {len(late)} words are later, {late[0]} the first; "
            "are their times those of this recording?",
            stacklevel=2,
        )


def _with_following(spans: Iterator[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Each span with those after it that begin before it ends."""
    ahead: deque[tuple[int, int]] = deque()
    while True:
        while not ahead or ahead[-1][0] < ahead[0][1]:
            span = next(spans, None)
            if span is None:
                break
            ahead.append(span)
        if not ahead:
            return
        current = ahead.popleft()
        yield current, [span for span in ahead if span[0] < current[1]]


def _words_within(words: Sequence[Mapping[str, Any]], start: float, end: float) -> list[dict[str, Any]]:
    """The words whose middle is in the window, in its own seconds and cut at its borders."""
    return [
        {**word, "start": max(word["start"] - start, 0.0), "end": min(word["end"], end) - start}
        for word in words
        if start <= (word["start"] + word["end"]) / 2 < end
    ]


def _classified(classify: Any, clip: dict[str, Any], silent: bool, call: Mapping[str, Any]) -> dict[str, Any]:
    """Scores and modalities, or the reason why what is in a window gives none; other mistakes are raised."""
    nothing = "silence" if silent else "nothing to read"
    if not clip:
        return {"reason": nothing}
    try:
        details = classify(clip, **{**call, "return_details": True})
    except ValueError as error:
        # By name: a checkpoint with its own code raises its own copy of the class.
        if type(error).__name__ == "AlignmentError":
            return {"reason": str(error)}
        if NOTHING_TO_READ in str(error):
            return {"reason": nothing}
        raise
    return {"scores": details["scores"], "modalities": details["modalities"]}
