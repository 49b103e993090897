"""Named protocols: who counts, who is apart, and leaks planted to see each caught."""

import os
import random

import numpy as np
import pytest
import soundfile

from mer_hf.data import named_protocols, ravdess
from mer_hf.data.named_protocols import (
    DEFAULT_PROTOCOLS,
    PROTOCOLS,
    choose_protocol,
    grouped_speakers,
    paper_split,
)
from mer_hf.data.protocols import FoldSplit, check_audio, check_split
from mer_hf.data.scanning import audio_hashes
from mer_hf.data.schema import EMOTIONS, make_row


def iemocap_rows(label_of=lambda number: ("neutral", "happy", "excited", "sad", "angry", "frustrated", None)[number]):
    return [
        make_row(
            id=f"Ses0{session}{letter}_{number}",
            corpus="iemocap",
            speaker=f"Ses0{session}{letter}",
            session=f"Ses0{session}",
            dialogue_id=f"Ses0{session}",
            text="so",
            label=label_of(number),
        )
        for session in range(1, 6)
        for letter in "FM"
        for number in range(7)
    ]


def own_rows(speakers=6, clips=2, **values):
    return [
        make_row(
            id=f"{speaker}-{clip}", corpus="folder", text="so", label="sad", **{"speaker": f"s{speaker}"} | values
        )
        for speaker in range(speakers)
        for clip in range(clips)
    ]


@pytest.mark.parametrize(
    ("name", "labels", "left_out"),
    [
        ("iemocap-4class-loso", {"neutral": 10, "happy": 20, "sad": 10, "angry": 10}, {"frustrated": 10, "null": 10}),
        (
            "iemocap-4class-loso-noexc",
            {"neutral": 10, "happy": 10, "sad": 10, "angry": 10},
            {"excited": 10, "frustrated": 10, "null": 10},
        ),
    ],
)
def test_iemocap_sessions_and_labels(name, labels, left_out):
    rows, splits, dropped = PROTOCOLS[name].apply(iemocap_rows())
    assert {label: sum(row["label"] == label for row in rows) for label in labels} == labels
    assert len(rows) == sum(labels.values()) and dropped == left_out
    session = {row["id"]: row["session"] for row in rows}
    sides = [[sorted({session[i] for i in ids}) for ids in split.sides.values()] for split in splits]
    assert sides[0] == [["Ses03", "Ses04", "Ses05"], ["Ses02"], ["Ses01"]]
    assert sides[4] == [["Ses02", "Ses03", "Ses04"], ["Ses01"], ["Ses05"]]
    assert {split.name for split in splits} == {name}


def test_merging_leaves_the_corpus_as_it_was():
    rows = iemocap_rows()
    PROTOCOLS["iemocap-4class-loso"].apply(rows)
    assert sum(row["label"] == "excited" for row in rows) == 10


def test_iemocap_dialogues_keep_session_five_for_the_test():
    rows, (split,), dropped = PROTOCOLS["iemocap-6class-dialogue"].apply(iemocap_rows())
    assert len(rows) == 60 and dropped == {"null": 10}
    assert {i[:5] for i in split.train} == {"Ses01", "Ses02", "Ses03"}
    assert {i[:5] for i in split.validation} == {"Ses04"} and {i[:5] for i in split.test} == {"Ses05"}
    with pytest.raises(ValueError, match="no rows of Ses04"):
        PROTOCOLS["iemocap-6class-dialogue"].apply([row for row in rows if row["session"] != "Ses04"])


def test_speakers_are_dealt_out_whole_and_the_same_whatever_the_order_of_the_rows():
    rows = own_rows(speakers=7)
    first = grouped_speakers(rows)
    assert [len({i[0] for i in split.test}) for split in first] == [2, 2, 1, 1, 1]
    for split in first:
        check_split(split, rows, "speaker")
    shuffled = random.Random(0).sample(rows, len(rows))
    assert [split.sha256 for split in grouped_speakers(shuffled)] == [split.sha256 for split in first]
    assert sorted(i for split in first for i in split.test) == sorted(row["id"] for row in rows)
    assert len(grouped_speakers(own_rows(speakers=3))) == 3
    with pytest.raises(ValueError, match="need three folds, the rows fill 2"):
        grouped_speakers(own_rows(speakers=2))


def test_leave_one_speaker_out_tests_each_once():
    splits = PROTOCOLS["leave-one-speaker-out"].apply(own_rows(speakers=4)).splits
    assert [{i[0] for i in split.test} for split in splits] == [{"0"}, {"1"}, {"2"}, {"3"}]
    assert [{i[0] for i in split.validation} for split in splits] == [{"1"}, {"2"}, {"3"}, {"0"}]


def test_the_split_that_rows_come_with():
    sides = {"s0": "train", "s1": "train", "s2": "validation", "s3": "test"}
    rows = [{**row, "split": sides[row["speaker"]]} for row in own_rows(speakers=4)]
    assert choose_protocol(None, "folder", rows).name == "official"
    split = PROTOCOLS["official"].apply(rows).splits[0]
    assert [len(ids) for ids in split.sides.values()] == [4, 2, 2]
    assert choose_protocol(None, "folder", own_rows()).name == "speakers-5fold"


def test_a_planted_speaker_is_caught():
    rows = [{**row, "split": side} for row, side in zip(own_rows(3), ["train", "train", "test"] * 2, strict=True)]
    rows[-2] = {**rows[-2], "split": "validation"}
    with pytest.raises(ValueError, match=r"speaker\(s\) 's1' are in both train and test"):
        PROTOCOLS["official"].apply(rows)
    assert PROTOCOLS["official-rows"].apply(rows).splits


def test_rows_without_a_speaker_are_not_split_by_chance():
    with pytest.raises(ValueError, match=r"12 of 12 rows have no speaker, such as '0-0'.*protocol official-rows"):
        PROTOCOLS["speakers-5fold"].apply(own_rows(speaker=None))


@pytest.fixture
def ravdess_tree(tmp_path):
    """A clip an actor of EmoBox's folds 1 to 3; every clip has its own noise."""
    generator = np.random.default_rng(0)
    for number, actor in enumerate(actor for fold in ravdess.RAVDESS_FOLDS["emobox"][:3] for actor in fold):
        noise = generator.integers(-99, 99, 400, dtype=np.int16)
        folder = tmp_path / "tree" / f"Actor_{actor:02}"
        folder.mkdir(parents=True)
        soundfile.write(folder / f"03-01-0{number % 8 + 1}-01-01-01-{actor:02}.wav", noise, 16_000)
    return tmp_path / "tree"


def test_a_planted_duplicate_is_caught_though_its_file_differs(ravdess_tree):
    rows = ravdess.scan(ravdess_tree).rows
    PROTOCOLS["ravdess-emobox"].apply(rows, audio_hashes(rows))
    source = next(row for row in rows if row["speaker"] == "ravdess-01")
    target = next(row for row in rows if row["speaker"] == "ravdess-04")
    samples, rate = soundfile.read(source["audio"], dtype="int16")
    with soundfile.SoundFile(target["audio"], "w", rate, 1, "PCM_16") as file:
        file.title = "another header"
        file.write(samples)
    with open(source["audio"], "rb") as one, open(target["audio"], "rb") as other:
        assert one.read() != other.read()
    found = rf"the same sound is on two sides, '{source['id']} in \w+ and {target['id']} in \w+'|'{target['id']} in"
    with pytest.raises(ValueError, match=found):
        PROTOCOLS["ravdess-emobox"].apply(rows, audio_hashes(rows))
    PROTOCOLS["ravdess-emobox"].apply(rows)  # nobody looked


def test_the_same_sound_twice_on_one_side_is_no_leak():
    split = FoldSplit("own", 1, ("a", "b"), ("c",), ("d",))
    check_audio(split, {"a": "x", "b": "x", "c": "y"})
    with pytest.raises(ValueError, match=r"own fold 1: .*'a in train and d in test'; remove one of each"):
        check_audio(split, {"a": "x", "b": "x", "d": "x"})


def test_a_shuffled_file_system_changes_nothing(ravdess_tree, monkeypatch):
    rows = ravdess.scan(ravdess_tree).rows
    straight = [split.sha256 for split in PROTOCOLS["speakers-5fold"].apply(rows).splits]
    shuffle, listdir, scandir, walk = random.Random(1).sample, os.listdir, os.scandir, os.walk
    calls = []

    def shuffled(*args, **options):
        calls.append(args)
        found = list(walk(*args, **options))
        return [(d, shuffle(f, len(f)), shuffle(n, len(n))) for d, f, n in shuffle(found, len(found))]

    monkeypatch.setattr(os, "walk", shuffled)
    monkeypatch.setattr(os, "listdir", lambda *args: shuffle(listdir(*args), len(listdir(*args))))
    again = ravdess.scan(ravdess_tree).rows
    assert calls and os.scandir is scandir
    assert again == rows
    assert [split.sha256 for split in PROTOCOLS["speakers-5fold"].apply(again).splits] == straight


def test_a_protocol_belongs_to_its_corpus():
    with pytest.raises(ValueError, match="protocol ravdess-emobox is for ravdess, the corpus is iemocap"):
        choose_protocol("ravdess-emobox", "iemocap", [])
    with pytest.raises(ValueError, match=r"protocol must be one of iemocap-4class-loso.*; found 'mine'"):
        choose_protocol("mine", "folder", [])
    for corpus, name in DEFAULT_PROTOCOLS.items():
        assert choose_protocol(None, corpus, []).corpus in (None, corpus)
        assert choose_protocol(None, corpus, []).name == name


def test_rows_without_a_label_that_counts():
    with pytest.raises(ValueError, match="none of the 70 rows has one of the labels neutral, happy, sad, angry"):
        PROTOCOLS["iemocap-4class-loso-noexc"].apply(iemocap_rows(lambda _: "fearful"))
    assert set(named_protocols.ALL_LABELS) == set(EMOTIONS)


def test_rows_of_which_none_has_a_label_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"none of the 12 rows has a label; .* --columns label=mood"):
        PROTOCOLS["speakers-5fold"].apply([row | {"label": None} for row in own_rows()])


def test_the_papers_way_selects_on_the_test_and_no_check_lets_it_through():
    split = FoldSplit("own", 2, ("a",), ("b",), ("c",))
    optimistic = paper_split(split)
    assert optimistic == FoldSplit("own-paper", 2, ("a", "b"), ("c",), ("c",))
    rows = [make_row(id=i, corpus="own", text="so", speaker=i) for i in "abc"]
    with pytest.raises(ValueError, match="in both validation and test"):
        check_split(optimistic, rows, "speaker")
