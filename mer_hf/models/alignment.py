"""When each word of a transcript is spoken: PocketSphinx forced alignment with the English model inside its wheel.

The same family of aligner made IEMOCAP's own word files. It places words it is told; whether they were said it can
only guess, from whether a path through the audio exists and how well that path sounds. Most transcripts of another
sentence are refused on those grounds, not all.
"""

import itertools
import math
import re
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypedDict

import numpy as np

from .media import resample

SAMPLING_RATE = 16_000
FRAMES_PER_SECOND = 100

# (keep the lattice's best path, factor by which the audio is slowed), tried in this order. Each later one places words
# that the ones before it cannot, in hurried or shouted speech above all, a little less precisely.
ATTEMPTS = ((True, 1.0), (False, 1.0), (False, 1.15), (False, 1.3))

# Where a path scores lower, the words are taken to be wrong. Set on 1200 acted clips of RAVDESS, on which it refuses
# 0.2 % of the right transcripts; of six everyday sentences that were not said 63 % are refused, 15 % without it.
LOWEST_SCORE = -4.0


class Word(TypedDict):
    """One row of the `words` column: times in seconds from the clip's start, `end` exclusive."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class WordAlignment:
    """Every word of the transcript, in order, with its times.

    attempts: how many of `ATTEMPTS` it took (1 = at once).
    score: how well the words sound, in nats a frame under the best sound for each frame; 0 is perfect, -1.5 usual.
    fallback_words: words outside the dictionary, pronounced by rule; their times deserve less trust.
    word_scores: the same measure as `score`, for each of `words`.
    """

    words: tuple[Word, ...]
    attempts: int
    score: float
    fallback_words: tuple[str, ...]
    word_scores: tuple[float, ...] = ()


class AlignmentError(ValueError):
    """Words that cannot be placed in the audio; one line saying why."""


def split_words(text: str) -> list[str]:
    """The words of a transcript as models and aligner see them.

    Lower case; punctuation goes except apostrophes inside words, typographic ones made plain; hyphens part words;
    numbers stay numbers, without thousands separators: "Well-known: “it’s 1,250.5!”" -> well known it's 1250.5.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub("[\u2018\u2019\u201b\u02bc\x91\x92`\u00b4]", "'", text)  # \x91, \x92: quotes of mis-decoded cp1252
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = "".join(char if char in "'." or unicodedata.category(char)[0] in "LMN" else " " for char in text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|''+|(?<!\S)'|'(?!\S)", " ", text)
    return [word for piece in text.split() if (word := piece.strip("'"))]


def written_words(text: str) -> list[dict[str, str]]:
    """[{"word", "written"}]: the words as `split_words` makes them, each with its stretch of the transcript.

    A stretch holds the word as it is written, the punctuation that belongs to it and the space after it, so that all
    of them, one after the other, are the transcript. "Oh -- no!" -> oh "Oh -- ", no "no!".
    """
    found: list[dict[str, str]] = []
    before = ""  # what stands before the first word
    for piece in re.findall(r"\s*\S+\s*", text):
        words = split_words(piece)
        if not words and found:
            found[-1]["written"] += piece
        elif not words:
            before += piece
        else:
            stretches = _stretches(piece, words)
            stretches[0] = before + stretches[0]
            before = ""
            found += [{"word": word, "written": own} for word, own in zip(words, stretches, strict=True)]
    return found


def _stretches(piece: str, words: list[str]) -> list[str]:
    """A piece of text cut before each of its words but the first, where they stand in it as they are spelled."""
    starts, lowered = [0], piece.lower()
    for previous, word in pairwise(words):
        place = lowered.find(word, starts[-1] + len(previous))
        if place < 0 or len(lowered) != len(piece):  # spelled otherwise, such as a ligature: the first word has it all
            return [piece, *[""] * (len(words) - 1)]
        starts.append(place)
    return [piece[start:end] for start, end in pairwise([*starts, len(piece)])]


class WordAligner:
    """Words to times. Results depend on the audio and the words alone, never on what was aligned before.

    Calls from several threads take turns. The decoder (0.2 s) is made on first use and left behind by
    pickling.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._aligner = None
        self._recognizer = None
        self._taught: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()

    def align(self, audio: np.ndarray, words: str | Sequence[str]) -> WordAlignment:
        """Place every word of a transcript.

        audio float (samples,) in [-1, 1] at 16 kHz, as `load_audio` returns it; another rate cannot be noticed.
        `words` is a transcript, or its words as `split_words` makes them.

        Raises:
            AlignmentError: no words, or one that is no single word or cannot be pronounced; audio of another type,
                shape or scale, empty, silent or too short; no attempt places every word, or they fit badly.
            ImportError: where PocketSphinx is missing.
        """
        words = checked_words(words)
        seconds = check_audio(audio)
        if not audio.any():
            raise AlignmentError("audio is silent: every sample is zero; leave the alignment out")
        with self._lock:
            if self._aligner is None:
                self._aligner = _make_decoder(lm=None)
            fallback_words = self._teach(words)
            _check_long_enough(self._aligner, words, seconds)
            for attempt, (best_path, slowing) in enumerate(ATTEMPTS, start=1):
                self._aligner.config["bestpath"] = best_path
                self._aligner.set_align_text(" ".join(words))
                slowed = resample(audio.astype(np.float32), SAMPLING_RATE, round(SAMPLING_RATE * slowing))
                spoken = _decode(self._aligner, slowed)
                placed = [_as_word(segment, slowing, seconds) for segment in spoken]
                if _is_complete(placed, words):
                    score, word_scores = _checked_scores(spoken, best_path)
                    return WordAlignment(tuple(placed), attempt, score, fallback_words, word_scores)
        raise AlignmentError(
            f"no path through {seconds:.2f} s of audio fits the {len(words)} words {' '.join(words)[:80]!r}; "
            "check that they are what is said, and that the audio is 16 kHz"
        )

    def recognize(self, audio: np.ndarray) -> list[Word]:
        """Words and times without a transcript, for want of anything better: on acted speech most words are wrong.

        audio as for `align`; silence gives an empty list. Filled pauses and noises are left out.

        Raises:
            AlignmentError: audio of another type, shape or scale, or empty.
            ImportError: where PocketSphinx is missing.
        """
        seconds = check_audio(audio)
        if not audio.any():  # the decoder hears words in digital silence
            return []
        with self._lock:
            if self._recognizer is None:  # apart from the aligner, whose added words it must not know
                self._recognizer = _make_decoder()
            return [_as_word(segment, 1.0, seconds) for segment in _decode(self._recognizer, audio)]

    def _teach(self, words: list[str]) -> tuple[str, ...]:
        """Give the decoder every word its dictionary lacks; which of `words` those are, each once."""
        for word in words:
            if self._aligner.lookup_word(word) is None:
                self._aligner.add_word(word, _pronounce(self._aligner, word), True)
                self._taught.add(word)
        return tuple(word for word in dict.fromkeys(words) if word in self._taught)


# -- The decoder ------------------------------------------------------------------------------------------------------


def _make_decoder(**options: Any) -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise ImportError("word alignment needs PocketSphinx: pip install pocketsphinx") from error
    return Decoder(samprate=SAMPLING_RATE, loglevel="FATAL", **options)


class _Spoken(NamedTuple):
    label: str
    first_frame: int
    last_frame: int  # inclusive
    log_score: float


def _decode(decoder: Any, audio: np.ndarray) -> list[_Spoken]:
    """The words spoken, without silences and noises; [] where the decoder finds no path."""
    decoder.reinit_feat()  # forgets the noise and cepstral means of earlier clips, which move boundaries; takes 0.1 ms
    decoder.start_utt()
    try:
        decoder.process_raw((np.clip(audio, -1.0, 1.0) * 32767).astype(np.int16).tobytes(), full_utt=True)
    finally:
        decoder.end_utt()  # without it, every later start_utt fails
    return [
        _Spoken(segment.word, segment.start_frame, segment.end_frame, math.log(max(segment.ascore, 1e-300)))
        for segment in decoder.seg() or ()
        if segment.word[0] not in "<["
    ]


def _as_word(spoken: _Spoken, slowing: float, seconds: float) -> Word:
    """Labels carry the number of the pronunciation, as in are(2)."""
    frames_per_second = FRAMES_PER_SECOND * slowing
    end = min((spoken.last_frame + 1) / frames_per_second, seconds)
    return Word(
        word=spoken.label.split("(")[0], start=round(spoken.first_frame / frames_per_second, 4), end=round(end, 4)
    )


def _checked_scores(spoken: list[_Spoken], best_path: bool) -> tuple[float, tuple[float, ...]]:
    """The score of all words and those of each."""
    scale = 1 if best_path else 1024  # the decoder shifts scores by 10 bits, but only along a lattice's best path
    frames = [word.last_frame + 1 - word.first_frame for word in spoken]
    totals = [scale * word.log_score for word in spoken]
    score = sum(totals) / sum(frames)
    if score < LOWEST_SCORE:
        raise AlignmentError(
            f"the {len(spoken)} words fit the audio badly: score {score:.1f}, expected {LOWEST_SCORE} or more; "
            "check that they are what is said, and that the audio is 16 kHz"
        )
    return score, tuple(total / count for total, count in zip(totals, frames, strict=True))


def _is_complete(placed: list[Word], words: list[str]) -> bool:
    if [word["word"] for word in placed] != words:
        return False
    edges = [edge for word in placed for edge in (word["start"], word["end"])]
    rising = all(early <= late for early, late in itertools.pairwise(edges))
    return rising and all(word["start"] < word["end"] for word in placed)


# -- Checks -----------------------------------------------------------------------------------------------------------


def checked_words(words: str | Sequence[str]) -> list[str]:
    """The words of a transcript, or words that `split_words` leaves as single words.

    Raises:
        AlignmentError: for no words at all, or for one that is none or several.
    """
    if isinstance(words, str):
        checked = split_words(words)
    else:
        checked = [split_words(word) for word in words]
        for word, parts in zip(words, checked, strict=True):
            if len(parts) != 1:
                raise AlignmentError(
                    f"{word!r} is {len(parts)} words; pass the transcript, or split_words(transcript)"
                )
        checked = [parts[0] for parts in checked]
    if not checked:
        raise AlignmentError("the transcript has no words; leave the alignment out")
    return checked


def check_audio(audio: np.ndarray) -> float:
    """The length in seconds of audio that keeps the contract of `WordAligner.align`.

    Raises:
        AlignmentError: for another type, shape or scale, or no samples.
    """
    if not isinstance(audio, np.ndarray) or audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        found = f"{audio.dtype} {audio.shape}" if isinstance(audio, np.ndarray) else type(audio).__name__
        raise AlignmentError(f"audio is {found}; pass float (samples,) at 16 kHz, as load_audio returns it")
    if not audio.size:
        raise AlignmentError("audio is empty; leave the alignment out")
    peak = float(np.abs(audio).max())
    if not peak <= 1.0:
        raise AlignmentError(f"audio reaches {peak:g}, expected [-1, 1]; pass what load_audio returns")
    return len(audio) / SAMPLING_RATE


def _check_long_enough(decoder: Any, words: list[str], seconds: float) -> None:
    phones = sum(len(decoder.lookup_word(word).split()) for word in words)
    if 3 * phones / FRAMES_PER_SECOND > seconds * ATTEMPTS[-1][1]:  # a phone is three states of at least a frame each
        raise AlignmentError(
            f"{seconds:.2f} s of audio is too short for {len(words)} words of {phones} phones; check both"
        )


# -- Words outside the dictionary -------------------------------------------------------------------------------------

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

_AFTER_APOSTROPHE = {"s": "Z", "t": "T", "d": "D", "ll": "AH L", "re": "ER", "ve": "V", "m": "M"}

# The commonest sound of each spelling, longest spelling first; a rough pronunciation is enough to place a word.
_SPELLINGS = {
    **{"tion": "SH AH N", "tch": "CH", "igh": "AY", "sch": "SH", "dge": "JH"},
    **{"ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "wh": "W", "ck": "K", "ng": "NG", "qu": "K W", "kn": "N"},
    **{"ee": "IY", "ea": "IY", "oo": "UW", "ou": "AW", "ow": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY"},
    **{"au": "AO", "aw": "AO", "ie": "IY", "ei": "EY", "ey": "IY", "ew": "UW", "oa": "OW", "ar": "AA R", "or": "AO R"},
    **{"er": "ER", "ir": "ER", "ur": "ER", "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G"},
    **{"h": "HH", "i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K"},
    **{"r": "R", "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W", "x": "K S", "y": "IY", "z": "Z"},
    **{"æ": "AE", "ø": "ER", "ß": "S", "ð": "DH", "þ": "TH", "ł": "W", "đ": "D", "œ": "ER"},
}
_SPELLING = re.compile("|".join(sorted(_SPELLINGS, key=len, reverse=True)))


def _pronounce(decoder: Any, word: str) -> str:
    """Phones of a word that the dictionary lacks, from the parts it has, else from the spelling."""
    stem, *tails = word.split("'")
    phones = [_pronounce_part(decoder, part) for part in re.findall(r"\d+|\.|[^\d.]+", stem)]
    phones += [_AFTER_APOSTROPHE.get(tail) or _pronounce_part(decoder, tail) for tail in tails]
    return " ".join(phones)


def _pronounce_part(decoder: Any, part: str) -> str:
    if part == "." or part.isdecimal():
        return " ".join(decoder.lookup_word(word) for word in (number_words(part) if part != "." else ["point"]))
    letters = "".join(char for char in unicodedata.normalize("NFKD", part) if not unicodedata.combining(char))
    if known := decoder.lookup_word(letters):
        return known
    letters = re.sub(r"([^aeiou])\1", r"\1", letters)
    if _SPELLING.sub("", letters):
        raise AlignmentError(f"{part!r} has letters without an English sound; only English can be aligned")
    return " ".join(_SPELLINGS[spelling] for spelling in _SPELLING.findall(letters))


def number_words(digits: str) -> list[str]:
    """Cardinals below a million; longer numbers and those with a leading zero digit by digit."""
    number = int(digits)
    if len(digits) > 6 or (digits[0] == "0" and len(digits) > 1):
        return [_ONES[int(digit)] for digit in digits]
    if number < 20:
        return [_ONES[number]]
    if number < 100:
        return [_TENS[number // 10 - 2], *(number_words(str(number % 10)) if number % 10 else [])]
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    return [*number_words(str(number // size)), name, *(number_words(str(number % size)) if number % size else [])]
