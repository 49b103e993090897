"""The columns every corpus yields, and the words it may use for an emotion.

One row is one utterance. A column a corpus does not have is null, never a made-up value. Times are seconds; `words`
are relative to the start of the row's own clip, `start` and `end` place the clip in the recording it was cut from.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from datasets import Audio, Features, Value, Video

EMOTIONS = (
    "neutral",
    "calm",
    "happy",
    "excited",
    "sad",
    "angry",
    "fearful",
    "disgusted",
    "surprised",
    "frustrated",
)
"""The shared label set. Merges (excited -> happy, calm -> neutral) belong to a protocol, not to a builder."""

FEATURES = Features(
    {
        "id": Value("string"),
        "corpus": Value("string"),
        "dialogue_id": Value("string"),
        "turn": Value("int32"),
        "speaker": Value("string"),
        "gender": Value("string"),
        "session": Value("string"),
        "split": Value("string"),
        "start": Value("float64"),
        "end": Value("float64"),
        # decode=False: decoding in `datasets` needs torchcodec and a system FFmpeg; mer_hf.models.media needs neither.
        "audio": Audio(decode=False),
        "video": Video(decode=False),
        "text": Value("string"),
        "words": [{"word": Value("string"), "start": Value("float64"), "end": Value("float64")}],
        "label": Value("string"),
        "scripted": Value("bool"),
        "sentence": Value("string"),
        "valence": Value("float32"),
        "arousal": Value("float32"),
        "dominance": Value("float32"),
    }
)


def make_row(**values: Any) -> dict[str, Any]:
    """A schema row with every column the caller does not name set to null.

    Raises:
        ValueError: for a column the schema does not have, or a row that `validate_row` refuses.
    """
    unknown = sorted(set(values) - set(FEATURES))
    if unknown:
        raise ValueError(f"unknown column(s) {', '.join(unknown)}; the schema has {', '.join(FEATURES)}")
    row = {name: values.get(name) for name in FEATURES}
    validate_row(row)
    return row


def validate_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the row and the column, when a row breaks the schema's rules."""
    for problem in _problems(row):
        raise ValueError(f"row {row.get('id')!r}: {problem}")


def rows_to_table(rows: Iterable[Mapping[str, Any]], features: Features = FEATURES) -> pa.Table:
    """Rows as the Arrow table that an `ArrowBasedBuilder` yields, their audio and video stored by path.

    rows: with media as paths (str) or null, as `make_row` returns them; a column that a row lacks is null.
    features: the columns of the table; a corpus with more than the schema's gives {**FEATURES, ...}.

    `GeneratorBasedBuilder` and `Dataset.from_list` would not do: they encode each example, and in datasets 5
    `Audio.encode_example` imports torchcodec, hence a system FFmpeg, even where all it has to store is a path.

    Raises:
        ValueError: for a row with a column that `features` does not have; Arrow would drop it without a word.
    """
    media = [name for name, feature in features.items() if isinstance(feature, Audio | Video)]
    stored = []
    for row in rows:
        unknown = [name for name in row if name not in features]
        if unknown:
            raise ValueError(f"row {row.get('id')!r}: column(s) {', '.join(unknown)} are not among the features")
        stored.append({**row, **{name: {"path": row[name]} for name in media if row.get(name) is not None}})
    return pa.Table.from_pylist(stored, features.arrow_schema)


def _problems(row: Mapping[str, Any]) -> Iterator[str]:
    if not row.get("id"):
        yield "column 'id' is empty"
    if not row.get("corpus"):
        yield "column 'corpus' is empty"
    if row.get("label") is not None and row["label"] not in EMOTIONS:
        yield f"label {row['label']!r} is not one of {', '.join(EMOTIONS)}"
    if row.get("audio") is None and row.get("video") is None and not row.get("text"):
        yield "no audio, no video and no text: nothing to recognise an emotion from"
    start, end = row.get("start"), row.get("end")
    if start is not None and end is not None and not 0 <= start < end:
        yield f"start {start} and end {end} are not 0 <= start < end"
    for index, word in enumerate(row.get("words") or ()):
        if not 0 <= word["start"] <= word["end"]:
            yield f"words[{index}] ({word['word']!r}) runs from {word['start']} to {word['end']} s"
