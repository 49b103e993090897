"""Emotions of all rows of a corpus in Parquet, by any number of processes that may be killed and started again.

    rows = read_rows("ravdess", "RAVDESS", "runs/cache").rows        # or stream_rows("ann/clips", "train")
    predict_corpus(rows, classify, "runs/predicted", rank=0, world=1)
    table = load_predictions("runs/predicted")

Rows are cut into shards by their place in the source alone. A shard is one file, which appears when it is whole; a
process takes those of its number that are not there. So each row is in exactly one file, whoever wrote it when, and
nothing need be agreed on between processes: one that dies leaves its shards to the next start. The price is that every
process reads the whole source; what it skips it does not decode.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .data.feature_keys import backbone_hash, sha256_of
from .data.hub_rows import CLIP_FIELDS, fetch_media
from .data.length_grouping import LengthBatchSampler, row_seconds
from .data.whole_files import check_same_run, write_whole

RUN = "run.json"
"""Beside the shards: what they were made with."""
COMPLETE = "complete.json"
"""Beside the shards when all are there: how many rows and shards."""
PART = "part-{:05}.parquet"

Row = Mapping[str, Any]
Unit = list[tuple[int, Row]]
"""What is classified at once: one row and its place in the source, or the turns of a dialogue."""


class Limits(NamedTuple):
    """Of a batch: clips (or dialogues), and seconds of sound with padding."""

    clips: int = 32
    seconds: float = 120.0


LIMITS = Limits()


class Summary(NamedTuple):
    """What one process did, and what of the source is still to do by others."""

    rows: int
    """Of the whole source."""
    computed: list[int]
    """Shards that this process wrote."""
    missing: list[int]
    """Shards that were not there when it ended."""


def predict_corpus(
    rows: Iterable[Row],
    classify: Any,
    output_dir: str | PathLike,
    source: Any = None,
    shard_rows: int = 512,
    limits: Limits = LIMITS,
    rank: int = 0,
    world: int = 1,
    recognize: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Classify rows into `output_dir/part-<shard>.parquet`; go on where an earlier start stopped.

    rows: of the schema, in the same order at every start and in every process; only `audio`, `video`, `text`,
    `words`, `id`, `label` and `dialogue_id` are read, and any may be missing. classify: the pipeline. source: what the
    rows are, ready for JSON, None = a hash of the rows themselves where they are a list. shard_rows: rows a shard; for
    a model with context, whole dialogues (rows of one `dialogue_id`, one after another) until there are so many.
    rank, world: this process takes the shards rank, rank + world, ... recognize: guess the words of rows without text,
    as the pipeline does. progress: called with (shard, its rows) when one is written.

    Columns: `row` (its place in the source), `id`, `label` (the answer), `score` (its probability), `scores` (all, by
    label), `reference` (the row's own label) and `error`: why a row has no answer, else null.

    Scores do not depend on world, and on shard_rows and limits by rounding only.

    Raises:
        ValueError: output_dir holds predictions of another model, source or shard size; shard_rows below 1.
    """
    if shard_rows < 1 or not 0 <= rank < world:
        raise ValueError(f"shard_rows is {shard_rows}, rank {rank} of {world}; give 1 or more, and a rank below world")
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if source is None and isinstance(rows, Sequence):
        source = sha256_of([[row.get(name) for name in ("id", *CLIP_FIELDS)] for row in rows])
    by_dialogue = bool(classify.model.config.uses_context)
    made_with = {
        "model": backbone_hash(classify.model),
        "source": source,
        "shard_rows": shard_rows,
        "dialogues": by_dialogue,
        "recognize": recognize,
    }
    check_same_run(output_dir / RUN, made_with)
    seen, shards, computed = 0, 0, []
    for shard, units in enumerate(_shards(_units(rows, by_dialogue), shard_rows)):
        seen, shards = seen + sum(map(len, units)), shard + 1
        file = output_dir / PART.format(shard)
        if shard % world == rank and not file.exists():
            table = predict_units(units, classify, limits, recognize)
            write_whole(file, partial(pq.write_table, table))
            computed.append(shard)
            if progress is not None:
                progress(shard, len(table))
    missing = [shard for shard in range(shards) if not (output_dir / PART.format(shard)).exists()]
    if not missing:
        whole = json.dumps({"rows": seen, "shards": shards})
        write_whole(output_dir / COMPLETE, lambda unfinished: unfinished.write_text(whole + "\n"))
    return Summary(seen, computed, missing)


def load_predictions(output_dir: str | PathLike) -> pa.Table:
    """All shards as one table, in the order of the source.

    Raises:
        ValueError: shards are missing, or hold other rows than the source's, each once.
    """
    output_dir = Path(output_dir)
    if not (output_dir / COMPLETE).is_file():
        raise ValueError(f"output_dir {str(output_dir)!r} is not complete: start the prediction again to go on")
    whole = json.loads((output_dir / COMPLETE).read_text(encoding="utf-8"))
    files = [output_dir / PART.format(shard) for shard in range(whole["shards"])]
    table = pa.concat_tables([pq.read_table(file) for file in files]).sort_by("row")
    if table["row"].to_pylist() != list(range(whole["rows"])):
        raise ValueError(f"output_dir {str(output_dir)!r} holds {len(table)} rows for {whole['rows']} of the source")
    return table


def _units(rows: Iterable[Row], by_dialogue: bool) -> Iterator[Unit]:
    numbered = enumerate(rows)
    if not by_dialogue:
        yield from ([item] for item in numbered)
        return

    def dialogue(item: tuple[int, Row]) -> tuple[Any, ...]:
        found = item[1].get("dialogue_id")
        return ("clip", item[0]) if found is None else ("dialogue", found)

    for _, turns in groupby(numbered, key=dialogue):
        yield list(turns)


def _shards(units: Iterator[Unit], shard_rows: int) -> Iterator[list[Unit]]:
    shard: list[Unit] = []
    for unit in units:
        shard.append(unit)
        if sum(map(len, shard)) >= shard_rows:
            yield shard
            shard = []
    if shard:
        yield shard


# One shard


def predict_units(units: Sequence[Unit], classify: Any, limits: Limits = LIMITS, recognize: bool = False) -> pa.Table:
    """The rows of a shard as they are stored, in the order of the source. Units of like length are run together."""
    errors: dict[int, str] = {}
    answers: dict[int, Answer] = {}
    fetched = [[(place, fetch_media(row)) for place, row in unit] for unit in units]
    seconds = [[row_seconds(row) for _, row in unit] for unit in fetched]
    lengths = [(len(unit), max(unit)) for unit in seconds]
    for batch in LengthBatchSampler(lengths, limits.clips, limits.seconds, shuffle=False):
        ready = [_prepare(fetched[index], classify, recognize, errors) for index in batch]
        answers |= _answers([unit for unit in ready if unit is not None], classify)
    rows = [_row(place, row, answers, errors) for place, row in chain.from_iterable(units)]
    labels = [classify.model.config.id2label[index] for index in range(classify.model.config.num_labels)]
    return pa.Table.from_pylist(rows, _schema(labels))


class _Ready(NamedTuple):
    places: list[int]
    prepared: Any


def _prepare(unit: Unit, classify: Any, recognize: bool, errors: dict[int, str]) -> _Ready | None:
    """A unit as the pipeline prepares it, less the turns that it refuses."""
    places, prepared = [], []
    reads_text = "text" in classify.model.config.modalities
    for place, row in unit:
        clip = {name: row[name] for name in CLIP_FIELDS if row.get(name) is not None and len(row[name])}
        if not reads_text and len(clip) > 1:
            clip.pop("text", None)  # or there would be a warning a clip; `modalities` says of each what was read
        try:
            prepared.append(classify.preprocess(clip, recognize=recognize))
            places.append(place)
        except (ValueError, OSError) as error:
            errors[place] = str(error)
    if not prepared:
        return None
    turns = [turn for clip in prepared for turn in clip.turns]
    return _Ready(places, replace(prepared[0], turns=turns, is_dialogue=True))


class Answer(NamedTuple):
    scores: dict[str, float]
    modalities: list[str]
    """What of the clip was read"""


def _answers(ready: list[_Ready], classify: Any) -> dict[int, Answer]:
    """Of each row."""
    if not ready:
        return {}
    outputs = classify.forward([unit.prepared for unit in ready])
    return {
        place: Answer({item["label"]: item["score"] for item in found["scores"]}, list(found["modalities"]))
        for unit, output in zip(ready, outputs, strict=True)
        for place, found in zip(unit.places, classify.postprocess(output, return_details=True), strict=True)
    }


def _row(place: int, row: Row, answers: Mapping[int, Answer], errors: Mapping[int, str]) -> dict[str, Any]:
    scores, modalities = answers.get(place, (None, None))
    label = None if scores is None else max(scores, key=scores.__getitem__)
    return {
        "row": place,
        "id": str(place) if row.get("id") is None else str(row["id"]),
        "label": label,
        "score": None if scores is None else scores[label],
        "scores": scores,
        "modalities": modalities,
        "reference": row.get("label"),
        "error": errors.get(place),
    }


def _schema(labels: Sequence[str]) -> pa.Schema:
    return pa.schema(
        {
            "row": pa.int64(),
            "id": pa.string(),
            "label": pa.string(),
            "score": pa.float32(),
            "scores": pa.struct({label: pa.float32() for label in labels}),
            "modalities": pa.list_(pa.string()),
            "reference": pa.string(),
            "error": pa.string(),
        }
    )
