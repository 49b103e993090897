"""From a file and what was typed to what the page shows: scores, words, shares and, for long recordings, a timeline.

Everything is a plain dict of numbers, strings and lists, the very answer of the API; nothing is kept between calls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from checks import (
    MAX_CHARACTERS,
    RATE,
    UTTERANCE_CHARACTERS,
    ClipProblem,
    Media,
    clock,
    count_faces,
    examine,
    place,
    readable,
    sounds_like_speech,
)

from mer_hf import MediaError, load_audio, load_frames, split_words
from mer_hf.explanation import Explanation, explain
from mer_hf.long_recordings import NOTHING_TO_READ, predict_windows
from mer_hf.models.alignment import written_words
from mer_hf.models.media import is_silent

NAMES = {"audio": "voice", "text": "words", "vision": "face"}
"""The model's modalities as the page calls them."""
ONE_UTTERANCE = 15.0
"""Seconds; what is longer is read window by window."""
WINDOW = 6.0
RECOGNISED_SECONDS = 60.0
"""The recogniser takes about half as long as the recording."""
EXPLAINED_SECONDS = 120.0
"""Of longer recordings the words are not masked one by one: that would take minutes."""
NOTHING_GIVEN = "There is nothing to read yet. Record or choose a clip, or type what is said."


def analyse(
    classify: Any, path: str | None, transcript: str, use: Sequence[str], windows: bool = False
) -> dict[str, Any]:
    """What a model makes of a clip.

    classify: the pipeline. path: an audio or video file, or None for words alone. transcript: what is said; if it is
    blank it is recognised. use: those of `NAMES`' values that are not ignored. windows: window by window even if it is
    short.

    Returns:
        label; scores {label: probability}, best first; shares and support {voice, words, face}; words; transcript;
        recognised: whether that is a guess; seconds; faces: pictures looked at, with a face, with several; ignored;
        notes: what weakens the result; moments: one for an utterance, else one a window; alignment: of an utterance,
        where the model has one.

    Raises:
        ClipProblem: why nothing can be said.
    """
    reads = [name for modality, name in NAMES.items() if modality in classify.model.config.modalities]
    unknown = sorted(set(use) - set(NAMES.values()))
    if unknown:
        raise ClipProblem(f"use has {', '.join(unknown)}; it takes {', '.join(NAMES.values())}.")
    use = [name for name in reads if name in use]
    if not use:
        raise ClipProblem(f"All that this model reads is switched off; switch on one of {', '.join(reads)}.")
    if not path and not split_words(transcript):
        raise ClipProblem(NOTHING_GIVEN)
    if windows and not path:
        raise ClipProblem("A timeline is of a recording; give a file.")
    clip = _Clip(classify, path, transcript, use, windows)
    try:
        moments = clip.moments()
    except MediaError as error:
        raise ClipProblem(readable(error, path)) from error
    return clip.result(moments)


def _checked(transcript: str, is_long: bool) -> str:
    limit = MAX_CHARACTERS if is_long else UTTERANCE_CHARACTERS
    if len(transcript) > limit:
        kind = "a recording" if is_long else "a sentence or two"
        raise ClipProblem(
            f"The transcript has {len(transcript)} characters; for {kind} this demo takes up to {limit}."
        )
    return transcript


class _Clip:
    """One clip on its way through the model, and what was noticed about it."""

    def __init__(self, classify: Any, path: str | None, transcript: str, use: Sequence[str], windows: bool):
        self.classify, self.use, self.notes = classify, use, []
        self.media = examine(path) if path else Media("", 0.0, False, False)
        self.audio = self._sound()
        self.is_long = windows or self.media.seconds > ONE_UTTERANCE
        self.transcript, self.recognised = _checked(transcript.strip(), self.is_long), False
        self.words = self._spoken() if "words" in use else []
        self.faces: dict[str, int] | None = None

    def _sound(self) -> np.ndarray | None:
        """Samples (n,) at 16 kHz; None where nothing can be heard."""
        if not self.media.has_sound:
            if self.media.path and {"voice", "words"} & set(self.use):
                self.notes.append("The video has no sound track, so there is no voice to read.")
            return None
        try:
            audio = load_audio(self.media.path, RATE)
        except MediaError as error:
            raise ClipProblem(readable(error, self.media.path)) from error
        if is_silent(audio):
            self.notes.append("The recording is silent, so there is no voice to read. Is the microphone muted?")
            return None
        return audio

    def _spoken(self) -> list[dict[str, Any]]:
        """The words, with times where there is a sound they fit."""
        words = split_words(self.transcript)
        if self.audio is None:
            return [{"word": word} for word in words]
        return self._placed(words) if words else self._recognise()

    def _recognise(self) -> list[dict[str, Any]]:
        if self.media.seconds > RECOGNISED_SECONDS:
            self.notes.append(
                f"Recordings of more than {clock(RECOGNISED_SECONDS)} are not recognised; without a transcript their "
                "words are left out."
            )
            return []
        aligner = self.classify.aligner
        heard = [dict(word) for word in aligner.recognize(self.audio)]
        words = [word["word"] for word in heard]
        self.transcript, self.recognised = " ".join(words), bool(words)
        if not words:
            self.notes.append(
                "No speech was recognised. If this is music or noise, the result means nothing; if somebody speaks, "
                "type what is said."
            )
        elif not sounds_like_speech(aligner, self.audio, words):
            self.notes.append(
                "The recogniser is unsure of what it heard. The voice may be strained; but if this is music, noise or "
                "several voices, the result means nothing."
            )
        return heard

    def _placed(self, words: list[str]) -> list[dict[str, Any]]:
        placed = place(self.classify.aligner, self.audio, words)
        if placed is not None:
            return [dict(word) for word in placed.words]
        needs_times = self.is_long or self.classify.model.config.uses_word_times
        left_out = " It was left out, because it is not known when each word is said." if needs_times else ""
        self.notes.append(f"The transcript does not fit the sound; check that it is what is said.{left_out}")
        return [] if needs_times else [{"word": word} for word in words]

    # -- What the model makes of it

    def moments(self) -> list[dict[str, Any]]:
        """One of the whole utterance, or one a window."""
        return self._windows() if self.is_long else [self._utterance()]

    def _utterance(self) -> dict[str, Any]:
        clip: dict[str, Any] = {"text": self.transcript if self.words else ""}
        if self.words:
            clip["words"] = self.words
        if "voice" in self.use and self.audio is not None:
            clip["audio"] = (self.audio, RATE)
        if "face" in self.use and self.media.has_picture:
            clip |= self._pictures()
        if clip == {"text": ""}:
            raise ClipProblem(self._nothing_left())
        explained = explain(self.classify, clip, recognize=False)
        return _moment(0.0, self.media.seconds, explained)

    def _pictures(self) -> dict[str, Any]:
        try:
            frames, times = load_frames(self.media.path, self.classify.processor.num_frames)
        except MediaError as error:
            raise ClipProblem(readable(error, self.media.path)) from error
        counts = count_faces(frames)
        self._look_for_faces(counts)
        return {"video": {"frames": frames, "times": times}} if any(counts) else {}

    def _look_for_faces(self, counts: list[int]) -> None:
        """Note what is wrong with the faces; counts: how many there are in each picture."""
        if not counts:
            return
        self.faces = {
            "pictures": len(counts),
            "with_face": sum(c > 0 for c in counts),
            "several": sum(c > 1 for c in counts),
        }
        looked = f"{len(counts)} pictures looked at"
        if not self.faces["with_face"]:
            self.notes.append(
                f"No face was found in the {looked}, so none is read. Face the camera, in good light, all of the face "
                "in the picture."
            )
        elif self.faces["several"] > len(counts) / 2:
            self.notes.append(
                f"More than one face is in {self.faces['several']} of the {looked}. The largest is read, and it need "
                "not be the one that speaks."
            )

    def _nothing_left(self) -> str:
        ignored = [name for name in NAMES.values() if name not in self.use]
        reason = " ".join(self.notes) or "The clip has nothing of what is switched on."
        return reason + (f" Ignored: {', '.join(ignored)}." if ignored else "")

    def _windows(self) -> list[dict[str, Any]]:
        reader = _WindowReader(self.classify, self.use, self.media.seconds <= EXPLAINED_SECONDS)
        call = {"seconds": WINDOW, "at_pauses": True, "words": self._written_words(), "recognize": False}
        moments = []
        for window in predict_windows(reader, self.media.path, **call):
            explained, reader.explained = reader.explained, None
            if window["scores"] is None or explained is None:
                moments.append(_unread(window))
            else:
                moments.append(_moment(window["start"], window["end"], explained))
        self._look_for_faces(reader.faces)
        if self.media.seconds > EXPLAINED_SECONDS and self.words:
            self.notes.append(f"Words are coloured in recordings of up to {clock(EXPLAINED_SECONDS)} only.")
        return moments

    def _written_words(self) -> list[dict[str, Any]]:
        """The words with times, and as they were typed where the model reads case and punctuation."""
        timed = [word for word in self.words if "start" in word]
        typed = written_words(self.transcript)
        if not self.classify.processor.keep_punctuation or len(typed) != len(timed):
            return timed
        return [word | {"written": own["written"]} for word, own in zip(timed, typed, strict=True)]

    def result(self, moments: list[dict[str, Any]]) -> dict[str, Any]:
        """The answer as a whole: an utterance's own, or the average over the windows, each counting by its length."""
        heard = [moment for moment in moments if moment["scores"]]
        if not heard:
            raise ClipProblem(self._nothing_left())
        lengths = [max(moment["end"] - moment["start"], 1e-3) for moment in heard]
        scores = _average([moment["scores"] for moment in heard], lengths)
        alone = heard[0] if len(moments) == 1 else {}
        return {
            "label": next(iter(scores)),
            "scores": scores,
            "shares": _average([moment["shares"] for moment in heard], lengths),
            "support": alone.get("support"),
            "words": [word for moment in heard for word in moment["words"]],
            "transcript": self.transcript,
            "recognised": self.recognised,
            "seconds": round(self.media.seconds, 2),
            "faces": self.faces,
            "ignored": [name for name in NAMES.values() if name not in self.use],
            "notes": self.notes,
            "moments": [{k: v for k, v in moment.items() if k != "alignment"} for moment in moments],
            "alignment": alone.get("alignment"),
        }


class _WindowReader:
    """What `predict_windows` takes for the pipeline: it leaves out what is ignored, and explains each window."""

    def __init__(self, classify: Any, use: Sequence[str], words: bool):
        self.classify, self.use, self.words = classify, use, words
        self.model, self.processor, self._sanitize_parameters = (
            classify.model,
            classify.processor,
            classify._sanitize_parameters,
        )
        self.explained: Explanation | None = None
        self.faces: list[int] = []

    def __call__(self, clip: Mapping[str, Any], **call: Any) -> dict[str, Any]:
        sources = {"audio": "voice", "words": "words", "video": "face"}
        used = {key: value for key, value in clip.items() if sources[key] in self.use}
        if "video" in used:
            counts = count_faces(used["video"]["frames"])
            self.faces += counts
            if not any(counts):
                del used["video"]
        if not used.get("words"):
            used.pop("words", None)
        if not used:
            raise ValueError(NOTHING_TO_READ)
        used.setdefault("words", [])
        self.explained = explain(self.classify, used, words=self.words, **call)
        return {"scores": self.explained.scores, "modalities": list(self.explained.modalities)}


def _unread(window: Mapping[str, Any]) -> dict[str, Any]:
    """A window without scores, with the reason why."""
    found = {"start": round(window["start"], 2), "end": round(window["end"], 2), "reason": window["reason"]}
    return found | {"label": None, "scores": None, "shares": {}, "support": {}, "words": [], "alignment": None}


def _moment(start: float, end: float, explained: Explanation) -> dict[str, Any]:
    """One utterance or window; its words are in the whole recording's seconds."""
    words = [
        {name: round(value + start, 3) if name in ("start", "end") else value for name, value in word.items()}
        for word in explained.words or ()
    ]
    alignment = explained.to_dict()["alignment"] if explained.alignment else None
    return {
        "start": round(start, 2),
        "end": round(end, 2),
        "label": explained.label,
        "scores": {item["label"]: item["score"] for item in explained.scores},
        "shares": {NAMES[modality]: share for modality, share in explained.shares.items()},
        "support": {NAMES[modality]: value for modality, value in explained.modalities.items()},
        "words": words,
        "reason": None,
        "alignment": alignment,
    }


def _average(rows: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """The weighted mean of each key's values, largest first; a key that a row lacks counts as 0 there."""
    if len(rows) == 1:
        return dict(rows[0])
    names = dict.fromkeys(name for row in rows for name in row)
    total = sum(weights)
    means = {n: sum(row.get(n, 0.0) * w for row, w in zip(rows, weights, strict=True)) / total for n in names}
    return dict(sorted(means.items(), key=lambda item: -item[1]))
