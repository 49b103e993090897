"""Word times that come with a corpus, as the schema's `words`; and how good word times are.

IEMOCAP's `.wdseg` files (made by CMU Sphinx) and Praat's `.TextGrid` files, which the Montreal Forced Aligner, ELAN
and most annotators write. Times are seconds from the start of the clip the file belongs to, `end` exclusive.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

SILENCES = frozenset({"", "sp", "sil", "spn", "<eps>", "<sil>", "<s>", "</s>", "#", "<p:>"})
"""What aligners write for silence and noise in an interval, in lower case; a `TextGrid` has no mark of its own."""

SHORTEST_WORD = 0.03
"""Seconds; what is shorter cannot hold the three states of a phone, and was most likely not placed but squeezed in."""

_FRAMES_PER_SECOND = 100  # of Sphinx
_ROUNDING = 1e-6  # seconds by which times that were meant to be equal may differ
_HEADER = ["SFrm", "EFrm", "SegAScr", "Word"]
_NO_WORD = ("<", "[", "++")  # <s>, </s>, <sil>, [NOISE], ++LAUGHTER++


class Word(TypedDict):
    """One row of the `words` column: times in seconds from the clip's start, `end` exclusive."""

    word: str
    start: float
    end: float


# -- IEMOCAP ----------------------------------------------------------------------------------------------------------


def read_wdseg(path: str | os.PathLike) -> list[Word]:
    """The words of a Sphinx word segmentation, in lower case and without the number of the pronunciation.

        SFrm  EFrm    SegAScr Word
           0    51   -1023456 <s>
          52    88    -912345 WHAT(2)
          89   120    -512345 </s>
     Total score:    -2448146

    Frames are 10 ms, the last of a word inclusive. Silences and noises (`<sil>`, `++LAUGHTER++`) are left out.

    Raises:
        ValueError: naming file and line, for another layout, frames that run backwards or a file that was cut off.
    """
    lines = [(number, line.split()) for number, line in enumerate(_text(path).splitlines(), start=1) if line.strip()]
    if not lines or lines[0][1] != _HEADER:
        line = lines[0][0] if lines else 1
        raise ValueError(f"{os.fspath(path)}, line {line}: no word segmentation; expected {' '.join(_HEADER)!r}")
    total = lines[-1][1][:2] == ["Total", "score:"]
    words, previous, label = [], -1, ""
    for number, fields in lines[1 : len(lines) - total]:
        first, last, label = _segment(f"{os.fspath(path)}, line {number}", fields, previous)
        previous = last
        if not label.startswith(_NO_WORD):
            word = re.sub(r"\(\d+\)$", "", label).lower()
            words.append(Word(word=word, start=first / _FRAMES_PER_SECOND, end=(last + 1) / _FRAMES_PER_SECOND))
    if not total and label != "</s>":
        raise ValueError(
            f"{os.fspath(path)}, line {lines[-1][0]}: cut off, neither </s> nor 'Total score:' ends it; copy it again"
        )
    return words


def _segment(where: str, fields: list[str], previous: int) -> tuple[int, int, str]:
    if len(fields) != 4 or not (fields[0].isdecimal() and fields[1].isdecimal()):
        raise ValueError(f"{where}: {' '.join(fields)!r} is not {' '.join(_HEADER)!r}")
    first, last = int(fields[0]), int(fields[1])
    if not previous < first <= last:
        raise ValueError(f"{where}: frames {first} to {last} after frame {previous}; expected rising ones")
    return first, last, fields[3]


# -- Praat ------------------------------------------------------------------------------------------------------------


def read_textgrid(path: str | os.PathLike, tier: str = "words") -> list[Word]:
    """The words of an interval tier of a Praat TextGrid, as they are written there.

    Long or short text format, in UTF-8, or UTF-16 with a byte order mark. Intervals that are empty or hold one of
    `SILENCES` in any case are left out. Times count from the start of the grid, which is 0 but for extracted parts.
    tier: its name; upper and lower case count only where two tiers differ in nothing else.

    Raises:
        ValueError: naming the file and, within it, the line: for another format (binary too), another layout, times
            that run backwards, or a tier that is not there, is there twice or holds points.
    """
    reader = _Reader(path)
    origin = reader.header()
    tiers = [_read_tier(reader, origin) for _ in range(reader.count())]
    if rest := next(reader.tokens, None):
        raise ValueError(f"{reader.name}, line {rest.line}: {rest.value!r} after the last tier")
    found = [item for item in tiers if item.name == tier] or [
        item for item in tiers if item.name.lower() == tier.lower()
    ]
    if len(found) != 1:
        names = ", ".join(repr(item.name) for item in tiers) or "none"
        raise ValueError(f"{reader.name}: {len(found)} tiers are named {tier!r}; its tiers: {names}")
    if found[0].words is None:
        raise ValueError(f"{reader.name}: tier {found[0].name!r} holds points, which have no length; name another")
    return found[0].words


class _Token(NamedTuple):
    value: str | float
    line: int


class _Tier(NamedTuple):
    name: str
    words: list[Word] | None  # None: a tier of points


class _Reader:
    """The free-standing strings, numbers and flags of a Praat text file, in order.

    That is how Praat itself reads: all else (`xmin =`, `intervals [1]:`) is there for people, so that both text
    formats hold the same tokens.
    """

    _TOKEN = re.compile(r'"(?P<string>(?:[^"]|"")*)"|(?P<open>")|(?<!\S)!.*|(?P<flag><\w+>)|(?P<bare>[^\s"]+)')
    _NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

    def __init__(self, path: str | os.PathLike) -> None:
        self.name = os.fspath(path)
        self.text = _text(path)
        self.tokens = self._split()
        self.line = 1

    def _split(self) -> Iterator[_Token]:
        line, position = 1, 0
        for match in self._TOKEN.finditer(self.text):
            line += self.text.count("\n", position, match.start())
            position = match.start()
            if match["open"]:
                raise ValueError(f"{self.name}, line {line}: a quotation mark is never closed")
            if match["string"] is not None:
                yield _Token(match["string"].replace('""', '"'), line)
            elif match["flag"]:
                yield _Token(match["flag"], line)
            elif match["bare"] and self._NUMBER.fullmatch(match["bare"]):
                yield _Token(float(match["bare"]), line)

    def next(self, kind: type, what: str) -> Any:
        token = next(self.tokens, None)
        if token is None:
            raise ValueError(f"{self.name}, line {self.line}: ends where {what} is expected; copy it again")
        self.line = token.line
        if not isinstance(token.value, kind):
            raise ValueError(f"{self.name}, line {token.line}: expected {what}, found {token.value!r}")
        return token.value

    def count(self) -> int:
        number = self.next(float, "a count")
        if number < 0 or number != int(number):
            raise ValueError(f"{self.name}, line {self.line}: expected a count, found {number!r}")
        return int(number)

    def header(self) -> float:
        """The start of the grid in seconds; the number of tiers comes next."""
        file_type, kind = next(self.tokens, _Token("", 1)), next(self.tokens, _Token("", 1))
        if not str(file_type.value).startswith("ooTextFile") or kind.value != "TextGrid":
            raise ValueError(f"{self.name}, line 1: no TextGrid in a text format; save it in Praat as a text file")
        origin = self.next(float, "the start of the grid")
        self.next(float, "the end of the grid")
        if self.next(str, "<exists>") != "<exists>":
            raise ValueError(f"{self.name}, line {self.line}: the grid has no tiers")
        return origin


def _read_tier(reader: _Reader, origin: float) -> _Tier:
    kind = reader.next(str, "the class of a tier")
    if kind not in ("IntervalTier", "TextTier"):
        raise ValueError(f"{reader.name}, line {reader.line}: {kind!r} is not IntervalTier or TextTier")
    name = reader.next(str, "the name of a tier")
    reader.next(float, "the start of a tier")
    reader.next(float, "the end of a tier")
    if kind == "TextTier":
        for _ in range(reader.count()):
            reader.next(float, "the time of a point")
            reader.next(str, "the mark of a point")
        return _Tier(name, None)
    words, previous = [], 0.0
    for _ in range(reader.count()):
        start = reader.next(float, "the start of an interval") - origin
        end = reader.next(float, "the end of an interval") - origin
        text = reader.next(str, "the text of an interval").strip()
        if not previous - _ROUNDING <= start < end:
            raise ValueError(
                f"{reader.name}, line {reader.line}: {text!r} runs from {start:g} to {end:g} s, after {previous:g} s; "
                "expected rising times from the grid's start on"
            )
        previous = end
        if text.lower() not in SILENCES:
            words.append(Word(word=text, start=max(start, 0.0), end=end))
    return _Tier(name, words)


def _text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8 or, with a byte order mark, UTF-16; the mark itself goes."""
    data = Path(path).read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{os.fspath(path)}, line {line}: not text in {encoding} ({error.reason}); save it again as text in UTF-8"
        ) from error


# -- Quality ----------------------------------------------------------------------------------------------------------


class AlignmentQuality(NamedTuple):
    """What word times show of their own quality, without a truth to hold them against.

    count: words with times. shortest: seconds, None without words. long_enough: share of words of `SHORTEST_WORD` or
    more. in_order: share that start no earlier than the word before them ends and lie within the clip. covered: share
    of the clip's time inside words. Shares are None without words.
    """

    count: int
    shortest: float | None
    long_enough: float | None
    in_order: float | None
    covered: float | None


def alignment_quality(words: Sequence[Mapping[str, Any]] | None, seconds: float) -> AlignmentQuality:
    """Figures for the `words` of one clip of `seconds`.

    Raises:
        ValueError: for a clip without length.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}, expected the length of the clip")
    if not words:
        return AlignmentQuality(0, None, None, None, None)
    starts, ends = _times(words).T
    lengths = ends - starts
    after = np.concatenate([[0.0], ends[:-1]])
    in_order = (starts >= after - _ROUNDING) & (lengths >= 0) & (ends <= seconds + _ROUNDING)
    return AlignmentQuality(
        count=len(words),
        shortest=float(lengths.min()),
        long_enough=float((lengths >= SHORTEST_WORD - _ROUNDING).mean()),
        in_order=float(in_order.mean()),
        covered=float(lengths.sum() / seconds),
    )


def boundary_errors(found: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How far starts and ends are off, in seconds: (matched, 2), absolute.

    The words that both have in the same order, upper or lower case, are matched; the others have no row, so that
    `len(result) / len(truth)` says how many were found.
    """
    ours, theirs = ([word["word"].lower() for word in words] for words in (found, truth))
    pairs = [
        (block.a + index, block.b + index)
        for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
        for index in range(block.size)
    ]
    if not pairs:
        return np.zeros((0, 2))
    a, b = np.array(pairs).T
    return np.abs(_times(found)[a] - _times(truth)[b])


def _times(words: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([(word["start"], word["end"]) for word in words], dtype=float)
