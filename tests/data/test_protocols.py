"""Folds and splits: by hand, refused where they would leak, and pinned by their hash."""

import json
import logging

import pytest
from datasets import Dataset

from mer_hf.data.protocols import Folds, FoldSplit, check_split, official_split

ROWS = [
    {"id": "a1", "speaker": "ann", "dialogue_id": "d1", "split": "train"},
    {"id": "b1", "speaker": "bob", "dialogue_id": "d1", "split": "train"},
    {"id": "c1", "speaker": "cat", "dialogue_id": "d2", "split": "validation"},
    {"id": "a2", "speaker": "ann", "dialogue_id": "d3", "split": "test"},
    {"id": "d1", "speaker": "dan", "dialogue_id": "d3", "split": "test"},
]
FOLDS = Folds("toy", (("ann",), ("bob", "cat"), ("dan",)))


# Folds


def test_splits_by_hand():
    expected = [
        ("toy", 1, ("d1",), ("b1", "c1"), ("a1", "a2")),
        ("toy", 2, ("a1", "a2"), ("d1",), ("b1", "c1")),
        ("toy", 3, ("b1", "c1"), ("a1", "a2"), ("d1",)),
    ]
    assert FOLDS.splits(ROWS) == expected
    assert FOLDS.splits(iter(ROWS)) == expected
    assert FOLDS.splits(Dataset.from_list(ROWS)) == expected


def test_any_column_can_be_the_unit():
    folds = Folds("toy", (("d1",), ("d2",), ("d3",)), unit="dialogue_id")
    assert folds.splits(ROWS)[0] == ("toy", 1, ("a2", "d1"), ("c1",), ("a1", "b1"))


def test_splits_agree_with_a_naive_loop():
    members = [[f"s{k}-{n}" for n in range(1 + k % 3)] for k in range(7)]
    rows = [{"id": f"{unit}:{n}", "speaker": unit} for n in range(4) for fold in members[::-1] for unit in fold]
    splits = Folds("seven", members).splits(rows)
    assert [split.fold for split in splits] == list(range(1, 8))
    for k, split in enumerate(splits):
        test, validation = set(members[k]), set(members[(k + 1) % 7])
        assert list(split.test) == [row["id"] for row in rows if row["speaker"] in test]
        assert list(split.validation) == [row["id"] for row in rows if row["speaker"] in validation]
        assert list(split.train) == [row["id"] for row in rows if row["speaker"] not in test | validation]
        check_split(split, rows)


def test_report_tells_whole_from_partial_from_absent():
    folds = Folds("toy", (("a", "b"), ("c", "d", "e"), ("f",), ("g",)))
    assert folds.report(["a", "b", "d", "g"]) == ((1, 4), (3,), {2: ("c", "e")})
    assert folds.report([]) == ((), (1, 2, 3, 4), {})


def test_absent_folds_are_left_out_with_a_log_line(caplog):
    folds = Folds("toy", (("ann",), ("eve",), ("bob",), ("cat", "dan"), ("fay",)))
    with caplog.at_level(logging.WARNING, logger="mer_hf.data.protocols"):
        splits = folds.splits(ROWS)
    assert [split.fold for split in splits] == [1, 3, 4]
    assert splits[0].validation == ("b1",)  # the next fold that has data
    assert splits[2].validation == ("a1", "a2")
    assert caplog.messages == ["toy: fold(s) [2, 5] have no data and are left out"]


def test_partial_folds_are_refused_unless_asked_for(caplog):
    folds = Folds("toy", (("ann", "eve"), ("bob", "cat"), ("dan",)))
    with pytest.raises(ValueError, match=r"toy: fold 1 lacks speaker\(s\) 'eve'\. .*allow_missing=True"):
        folds.splits(ROWS)
    assert folds.splits(ROWS, allow_missing=True) == FOLDS.splits(ROWS)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ((("ann", "bob"), ("cat", "bob"), ("dan",)), r"toy: speaker\(s\) 'bob' are in the folds more than once"),
        ((("ann",), (), ("dan",)), r"toy: fold\(s\) \[2\] are empty"),
    ],
)
def test_folds_that_cannot_be(members, match):
    with pytest.raises(ValueError, match=match):
        Folds("toy", members)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([*ROWS, ROWS[0]], "row id 'a1' occurs twice"),
        ([*ROWS, {"id": "e1", "speaker": "eve"}], r"speaker\(s\) 'eve' are in no fold of toy"),
        ([*ROWS, {"id": "e1", "speaker": None}], "row 'e1' has no speaker"),
        (ROWS[:3], "toy: train, validation and test need three folds, the rows fill 2"),
        ([], "the rows fill 0"),
        (
            [{"id": str(n), "speaker": f"s{n}"} for n in range(7)],
            r"'s0', 's1', 's2', 's3', 's4' and 2 more are in no fold",
        ),
    ],
)
def test_rows_that_cannot_be_split(rows, match):
    with pytest.raises(ValueError, match=match):
        FOLDS.splits(rows)


# Leaks


def split_of(train=(), validation=(), test=()):
    return FoldSplit("toy", 2, train, validation, test)


def test_a_unit_on_one_side_passes():
    check_split(split_of(train=("a1", "a2"), validation=("c1",), test=("d1",)), ROWS)
    check_split(split_of(train=("a1", "b1"), validation=("c1",)), ROWS, unit="dialogue_id")


@pytest.mark.parametrize(
    ("split", "unit", "match"),
    [
        (split_of(("a1",), ("c1",), ("a2",)), "speaker", r"toy fold 2: speaker\(s\) 'ann' are in both train and test"),
        (split_of(("a1",), ("a2",), ("d1",)), "speaker", "'ann' are in both train and validation"),
        (split_of(("b1",), ("a2",), ("a1",)), "speaker", "'ann' are in both validation and test"),
        (split_of(("a1",), ("c1",), ("b1",)), "dialogue_id", r"dialogue_id\(s\) 'd1' are in both train and test"),
        (split_of(("c1",), ("b1",), ("c1",)), "speaker", "'cat' are in both train and test"),  # the very same row
        (split_of(("c1", "c1")), "speaker", r"toy fold 2: id\(s\) 'c1' occur more than once in train"),
        (split_of(("c1",), ("zz",)), "speaker", r"toy fold 2: validation id\(s\) 'zz' are not among the rows"),
    ],
)
def test_leaks_are_refused_by_name(split, unit, match):
    with pytest.raises(ValueError, match=match):
        check_split(split, ROWS, unit)


def test_rows_that_cannot_be_checked_are_refused():
    with pytest.raises(ValueError, match="row id 'a1' occurs twice"):
        check_split(split_of(("a1",)), [*ROWS, ROWS[0]])
    with pytest.raises(ValueError, match="row 'x' has no session"):
        check_split(split_of(("x",)), [{"id": "x", "session": None}], unit="session")


# The split a corpus came with


def test_official_split():
    split = official_split(ROWS, "toy-official", unit="dialogue_id")
    assert split == ("toy-official", 1, ("a1", "b1"), ("c1",), ("a2", "d1"))
    assert official_split(iter(ROWS), "toy-official", unit="dialogue_id") == split


@pytest.mark.parametrize(
    ("rows", "unit", "match"),
    [
        (ROWS, "speaker", r"official fold 1: speaker\(s\) 'ann' are in both train and test"),
        ([ROWS[0] | {"split": "dev"}], "speaker", "row 'a1': split 'dev' is not one of train, validation, test"),
        ([ROWS[0] | {"split": None}], "speaker", "row 'a1': split None"),
        ([ROWS[0], ROWS[0]], "speaker", "row id 'a1' occurs twice"),
    ],
)
def test_official_splits_that_cannot_be_used(rows, unit, match):
    with pytest.raises(ValueError, match=match):
        official_split(rows, "official", unit)


# The hash


def test_hash_is_of_the_sorted_ids_of_each_side():
    split = FoldSplit("toy", 1, ("b", "a"), ("c",), ("é", '","'))
    # printf '%s' '[["a", "b"], ["c"], ["\",\"", "\u00e9"]]' | sha256sum
    assert split.sha256 == "6e3ce21ec82b5cee0debf3c87ab00828c5985db9887019113c67cc98c4b89722"
    assert FoldSplit("other", 3, ("a", "b"), ("c",), ('","', "é")).sha256 == split.sha256


def test_hash_tells_splits_apart():
    splits = [
        split_of(("a", "b"), ("c",), ("d",)),
        split_of(("a", "b"), ("d",), ("c",)),  # sides matter
        split_of(("a",), ("b", "c"), ("d",)),
        split_of(("a", "b"), (), ("c", "d")),
        split_of(("ab",), ("c",), ("d",)),
        split_of(('a", "b',), ("c",), ("d",)),
    ]
    assert len({split.sha256 for split in splits}) == len(splits)


def test_hash_survives_json():
    split = FOLDS.splits(ROWS)[0]
    name, fold, *sides = json.loads(json.dumps(split))
    assert FoldSplit(name, fold, *map(tuple, sides)) == split
    assert FoldSplit(name, fold, *sides).sha256 == split.sha256


@pytest.mark.parametrize("side", ["train", "validation", "test"])
def test_an_official_split_needs_every_side(side):
    others = [other for other in ("train", "validation", "test") if other != side]
    rows = [{"id": str(n), "split": other, "speaker": other} for n, other in enumerate(others * 2)]
    with pytest.raises(ValueError, match=f"no row's split is {side}; .* such as speakers-5fold"):
        official_split(rows, "official-rows", "speaker")
