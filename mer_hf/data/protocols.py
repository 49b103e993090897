"""Who is trained on, validated on and tested on: named folds, a check for leaks, a hash that pins a split down.

A split is made of row ids. What must not be on two of its sides is a unit: a value of one column, as a rule the
speaker, whom a model would otherwise recognise instead of the emotion; where speakers recur, the dialogue or session.
Nothing here knows a corpus: published folds stand with the builder of theirs.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

SIDES = ("train", "validation", "test")


class FoldSplit(NamedTuple):
    """Row ids of one round of cross-validation, or of a corpus's only split (fold 1)."""

    name: str
    fold: int
    """The fold that is tested on, counted from 1."""
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """The ids by name of the side: train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def sha256(self) -> str:
        """Hex digest of the sorted ids of each side: the same for the same split, whatever its name and order."""
        return hashlib.sha256(json.dumps([sorted(ids) for ids in self.sides.values()]).encode()).hexdigest()


class FoldReport(NamedTuple):
    """How far the units at hand fill a set of folds."""

    complete: tuple[int, ...]
    absent: tuple[int, ...]
    """Folds without a single unit: they are left out."""
    partial: dict[int, tuple[str, ...]]
    """Fold -> the units it lacks."""


@dataclass(frozen=True)
class Folds:
    """Named folds that share no unit.

        Folds("iemocap-sessions", (("Ses01",), ("Ses02",), ("Ses03",)), unit="session").splits(rows)

    name: goes with every split that is made.
    members: the units of each fold; fold k is entry k - 1.
    unit: the column that the units are values of.

    Raises:
        ValueError: at construction, for an empty fold or a unit that is named twice.
    """

    name: str
    members: Sequence[Collection[str]]
    unit: str = "speaker"

    def __post_init__(self) -> None:
        empty = [k for k, fold in enumerate(self.members, 1) if not fold]
        if empty:
            raise ValueError(f"{self.name}: fold(s) {empty} are empty")
        counts = Counter(unit for fold in self.members for unit in fold)
        repeated = sorted(unit for unit, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(f"{self.name}: {self.unit}(s) {_few(repeated)} are in the folds more than once")

    def report(self, units: Collection[str]) -> FoldReport:
        """Which folds the units at hand fill wholly, not at all, or in part.

        Raises:
            ValueError: for a unit at hand that is in no fold.
        """
        stray = set(units).difference(*self.members)
        if stray:
            raise ValueError(f"{self.unit}(s) {_few(sorted(stray))} are in no fold of {self.name}")
        lacking = {k: tuple(u for u in fold if u not in units) for k, fold in enumerate(self.members, 1)}
        absent = tuple(k for k, lost in lacking.items() if len(lost) == len(self.members[k - 1]))
        return FoldReport(
            complete=tuple(k for k, lost in lacking.items() if not lost),
            absent=absent,
            partial={k: lost for k, lost in lacking.items() if lost and k not in absent},
        )

    def splits(self, rows: Iterable[Mapping[str, Any]], allow_missing: bool = False) -> list[FoldSplit]:
        """One split for every fold that has data: test on it, validate on the next one, train on the others.

        rows: a `Dataset` or a list; only id and the unit's column are read. A split keeps their order.

        "Next" goes round the folds that have data: with fold 6 of 6 absent, fold 5 validates on fold 1. Absent folds
        are left out with a warning in the log.

        Raises:
            ValueError: for an id that occurs twice, a row without a unit or with one that is in no fold; for a partial
                fold, unless allow_missing, since its scores would not compare with published ones; for fewer than
                three folds with data.
        """
        unit_of = _by_id(rows, self.unit)
        order = self._usable(self.report(frozenset(unit_of.values())), allow_missing)
        home = {unit: k for k, fold in enumerate(self.members, 1) for unit in fold}
        fold_of = {row_id: home[unit] for row_id, unit in unit_of.items()}
        return [
            FoldSplit(
                self.name,
                fold=test,
                train=tuple(i for i, fold in fold_of.items() if fold not in (validation, test)),
                validation=tuple(i for i, fold in fold_of.items() if fold == validation),
                test=tuple(i for i, fold in fold_of.items() if fold == test),
            )
            for test, validation in zip(order, order[1:] + order[:1], strict=True)
        ]

    def _usable(self, report: FoldReport, allow_missing: bool) -> list[int]:
        if report.partial and not allow_missing:
            gaps = "; ".join(f"fold {k} lacks {self.unit}(s) {_few(lost)}" for k, lost in report.partial.items())
            raise ValueError(
                f"{self.name}: {gaps}. Scores would not compare with published ones: complete the copy, or choose a "
                "protocol that divides who is there, such as speakers-5fold (in Python, allow_missing=True goes on)"
            )
        usable = sorted({*report.complete, *report.partial})
        if len(usable) < 3:
            raise ValueError(f"{self.name}: train, validation and test need three folds, the rows fill {len(usable)}")
        if report.absent:
            logger.warning("%s: fold(s) %s have no data and are left out", self.name, list(report.absent))
        return usable


def official_split(rows: Iterable[Mapping[str, Any]], name: str, unit: str) -> FoldSplit:
    """The split that a corpus came with, from its rows' `split` column; checked like any other.

    rows: only id, split and the unit's column are read. unit: what the corpus keeps apart, such as "dialogue_id".

    Raises:
        ValueError: for a row whose split is not one of SIDES, a side without a row, and as `check_split`.
    """
    rows = [{column: row[column] for column in ("id", "split", unit)} for row in rows]
    sides: dict[str, list[str]] = {side: [] for side in SIDES}
    for row in rows:
        if row["split"] not in sides:
            raise ValueError(f"row {row['id']!r}: split {row['split']!r} is not one of {', '.join(SIDES)}")
        sides[row["split"]].append(row["id"])
    split = FoldSplit(name, 1, *(tuple(ids) for ids in sides.values()))
    check_split(split, rows, unit)
    empty = [side for side, ids in sides.items() if not ids]
    if empty:
        raise ValueError(
            f"{name}: no row's split is {' or '.join(empty)}; every fold needs {', '.join(SIDES)}, so give some rows "
            "that split, or choose a protocol that divides speakers, such as speakers-5fold"
        )
    return split


def check_split(split: FoldSplit, rows: Iterable[Mapping[str, Any]], unit: str = "speaker") -> None:
    """Refuse a split that leaks: for splits read from a file, and for a second unit beside the folds' own.

    rows: those the split was made of, or more; only id and the unit's column are read.

    Raises:
        ValueError: naming each unit that is on two sides; for an id that occurs twice in the rows or on one side, or
            that is not among the rows; for a row without a unit, which cannot be checked.
    """
    unit_of = _by_id(rows, unit)
    title = f"{split.name} fold {split.fold}"
    units = {}
    for side, ids in split.sides.items():
        unknown = [i for i in ids if i not in unit_of]
        if unknown:
            raise ValueError(f"{title}: {side} id(s) {_few(unknown)} are not among the rows")
        repeated = [i for i, count in Counter(ids).items() if count > 1]
        if repeated:
            raise ValueError(f"{title}: id(s) {_few(repeated)} occur more than once in {side}")
        units[side] = {unit_of[i] for i in ids}
    for one, other in combinations(SIDES, 2):
        shared = sorted(units[one] & units[other])
        if shared:
            raise ValueError(f"{title}: {unit}(s) {_few(shared)} are in both {one} and {other}")


def check_audio(split: FoldSplit, hashes: Mapping[str, str]) -> None:
    """Refuse a split with the same sound on two sides, under whatever names.

    hashes: of each row's sound by id, as `scanning.audio_hashes` makes them; rows without sound have none.

    Raises:
        ValueError: naming the pairs.
    """
    owners = {
        side: {hashes[i]: i for i in reversed(ids) if i in hashes}  # of several on one side the first is named
        for side, ids in split.sides.items()
    }
    for one, other in combinations(SIDES, 2):
        shared = sorted(owners[one].keys() & owners[other].keys(), key=owners[one].__getitem__)
        if shared:
            pairs = [f"{owners[one][sound]} in {one} and {owners[other][sound]} in {other}" for sound in shared]
            raise ValueError(
                f"{split.name} fold {split.fold}: the same sound is on two sides, {_few(pairs)}; remove one of each"
            )


def _by_id(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, str]:
    """Row id -> the row's value in a column."""
    values: dict[str, str] = {}
    for row in rows:
        if row["id"] in values:
            raise ValueError(f"row id {row['id']!r} occurs twice")
        if row[column] is None:
            raise ValueError(f"row {row['id']!r} has no {column}")
        values[row["id"]] = row[column]
    return values


def _few(names: Sequence[str], limit: int = 5) -> str:
    """The names for an error message, the first few of them where there are many."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
