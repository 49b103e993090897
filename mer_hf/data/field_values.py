"""What single values of people's tables mean: their words for emotions and splits, their numbers, their nulls."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .schema import EMOTIONS

LABEL_WORDS = {
    "neutral": ("neutral", "neu", "neutrality"),
    "calm": ("calm", "calmness"),
    "happy": ("happy", "happiness", "hap", "joy", "joyful", "joyous"),
    "excited": ("excited", "excitement", "exc"),
    "sad": ("sad", "sadness"),
    "angry": ("angry", "anger", "ang"),
    "fearful": ("fearful", "fear", "fea", "afraid", "scared"),
    "disgusted": ("disgusted", "disgust", "dis"),
    "surprised": ("surprised", "surprise", "sur"),
    "frustrated": ("frustrated", "frustration", "fru"),
}
"""The words that are known for each label, in any case."""
_SIDE_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development"),
    "test": ("test", "testing"),
}
SIDE_OF = {word: side for side, words in _SIDE_WORDS.items() for word in words}
"""A word in lower case -> the split."""
_GENDER_OF = {"m": "male", "male": "male", "man": "male", "f": "female", "female": "female", "woman": "female"}
_NULLS = frozenset({"nan", "na", "n/a", "none", "null"})  # of columns that hold no free text
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

EMBEDDED = "media as bytes inside the table; write them into files and name those"


class NoRow(ValueError):
    """The reason why a clip gives no row."""


def is_null(value: Any, by_word: bool = False) -> bool:
    """by_word: words such as n/a are null as well; in free text they are words."""
    if isinstance(value, str):
        return not value.strip() or (by_word and value.strip().lower() in _NULLS)
    return value is None or (isinstance(value, float) and math.isnan(value))


def string(value: Any) -> str:
    """Tables give numbers where names are meant; a column with gaps gives 3.0 for 3."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# -- Labels -----------------------------------------------------------------------------------------------------------


_FIXED_SET = (
    f"the labels are fixed: {', '.join(EMOTIONS)}. Classes that none of these stands for cannot be used: leave their "
    "rows out"
)


def label_words(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Known word, as `label_key` makes it, -> label; the user's before the usual ones.

    Raises:
        ValueError: `labels` maps to what is none of EMOTIONS.
    """
    wrong = sorted({str(label) for label in (labels or {}).values() if label not in EMOTIONS})
    if wrong:
        raise ValueError(f"labels maps to {', '.join(map(repr, wrong))}; {_FIXED_SET}")
    usual = {word: label for label, words in LABEL_WORDS.items() for word in words}
    return usual | {label_key(word): label for word, label in (labels or {}).items()}


def label_key(word: Any) -> str:
    """Pleasant_Surprise, pleasant-surprise and "pleasant  surprise" are one word."""
    return re.sub(r"[\s_-]+", " ", string(word).strip()).casefold()


def refuse_unknown_labels(data_dir: Any, values: Iterable[Any], label_of: Mapping[str, str]) -> None:
    """Raise ValueError where there are labels, but not one that `label_of` knows."""
    words = Counter(string(value) for value in values if not is_null(value))
    if words and not any(label_key(word) in label_of for word in words):
        most = [f"{word!r} ({count})" for word, count in words.most_common(20)]
        more = f" and {len(words) - 20} more" if len(words) > 20 else ""
        raise ValueError(
            f"data_dir {str(data_dir)!r}: none of its label words is known: {', '.join(most)}{more}. Map them with "
            f"labels={{{words.most_common(1)[0][0]!r}: ...}} (--labels word=label); {_FIXED_SET}"
        )


# -- All fields -------------------------------------------------------------------------------------------------------


def parse_values(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The user's values as the schema has them, null where there is none; and which had to be left out.

    Raises:
        NoRow: for a value that a clip is of no use without.
    """
    parsed: dict[str, Any] = {}
    gaps = []
    for field, value in values.items():
        parser, problem = _PARSERS.get(field, (_plain, None))
        try:
            parsed[field] = None if is_null(value, by_word=problem is not None) else parser(value)
        except NoRow:
            raise
        except (ValueError, TypeError, KeyError):
            if problem is None:
                raise NoRow(f"{field} is no plain value") from None
            parsed[field] = None
            gaps.append(f"{field} is {problem}")
    return parsed, gaps


def _media_name(value: Any) -> str | None:
    """A path, or the struct in which `datasets` stores media."""
    if not isinstance(value, Mapping):
        return _plain(value)
    if value.get("bytes") is not None:
        raise NoRow(EMBEDDED)
    return None if is_null(value.get("path")) else _plain(value["path"])


def _plain(value: Any) -> str:
    if isinstance(value, (Mapping, list, bytes)):
        raise ValueError
    return string(value).strip()


def _number(value: Any) -> float:
    """Spreadsheets of half the world write 1,5."""
    number = float(str(value).strip().replace(",", "."))
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number) or abs(number) >= 2**31:
        raise ValueError
    return int(number)


def _side(value: Any) -> str:
    word = str(value).strip()
    if word.lower() not in SIDE_OF:
        raise NoRow(f"split {word!r} is none of {', '.join(_SIDE_WORDS)}")
    return SIDE_OF[word.lower()]


def _gender(value: Any) -> str:
    word = _plain(value)
    return _GENDER_OF.get(word.lower(), word)


def _flag(value: Any) -> bool:
    return _FLAGS[_plain(value).lower()]


def _words(value: Any) -> list[dict[str, Any]]:
    """[{word, start, end}], as JSON text or nested."""
    words = json.loads(value) if isinstance(value, str) else list(value)
    if not isinstance(words, list):
        raise ValueError
    parsed = [{"word": _plain(w["word"]), "start": _number(w["start"]), "end": _number(w["end"])} for w in words]
    if not all(0 <= word["start"] <= word["end"] for word in parsed):
        raise ValueError
    return parsed


_PARSERS: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    **dict.fromkeys(("audio", "video"), (_media_name, None)),
    **dict.fromkeys(("start", "end"), (_number, "no number of seconds")),
    **dict.fromkeys(("valence", "arousal", "dominance"), (_number, "no number")),
    "turn": (_whole, "no whole number"),
    "split": (_side, "no word"),
    "gender": (_gender, "no word"),
    "scripted": (_flag, "not true or false"),
    "words": (_words, "no list of {word, start, end} with 0 <= start <= end in seconds"),
}
"""Field -> parser, and what a value that it refuses is, where that leaves a gap; None = then there is no row."""
