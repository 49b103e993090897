"""RAVDESS: trees as people have them, damaged ones included; the builder; folds; the real copy if there is one."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mer_hf.data import ravdess, scanning
from mer_hf.data.protocols import check_split
from mer_hf.data.ravdess import (
    ACTORS,
    RAVDESS_FOLDS,
    Ravdess,
    ravdess_splits,
    scan,
)
from mer_hf.data.scanning import Skipped


@pytest.fixture(scope="module")
def wav_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("wav") / "silence.wav"
    soundfile.write(path, np.zeros(160), 16000, subtype="PCM_16")
    return path.read_bytes()


@pytest.fixture
def make_tree(tmp_path, wav_bytes):
    """Write files, named relative to the tree; .mp4 ones are placeholders, since `scan` opens none."""

    def make(*names, root="ravdess"):
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wav_bytes if name.lower().endswith(".wav") else b"not empty")
        return tmp_path / root

    return make


def test_every_field_of_a_row(make_tree):
    root = make_tree("Actor_12/03-01-06-01-02-01-12.wav")
    rows, skipped = scan(root)
    assert skipped == []
    assert {name: value for name, value in rows[0].items() if value is not None} == {
        "id": "01-06-01-02-01-12",
        "corpus": "ravdess",
        "speaker": "ravdess-12",
        "gender": "female",
        "audio": str(root / "Actor_12" / "03-01-06-01-02-01-12.wav"),
        "text": "dogs are sitting by the door",
        "label": "fearful",
        "scripted": True,
        "sentence": "02",
    }


@pytest.mark.parametrize(
    ("code", "label"),
    list(enumerate(["neutral", "calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised"], 1)),
)
def test_emotion_codes(make_tree, code, label):
    assert scan(make_tree(f"03-01-{code:02}-01-01-01-01.wav")).rows[0]["label"] == label


def test_gender_and_statement_follow_the_name(make_tree):
    rows = scan(make_tree("03-01-01-01-01-01-23.wav", "03-01-01-01-02-01-24.wav")).rows
    assert [(row["gender"], row["sentence"], row["text"][:4]) for row in rows] == [
        ("male", "01", "kids"),
        ("female", "02", "dogs"),
    ]


def test_wav_and_videos_of_a_clip_are_one_row(make_tree):
    root = make_tree(
        "Video_Speech_Actor_01/Actor_01/01-01-03-01-01-01-01.mp4",
        "Video_Speech_Actor_01/Actor_01/02-01-03-01-01-01-01.mp4",
        "Audio_Speech_Actors_01-24/Actor_01/03-01-03-01-01-01-01.wav",
        "flat/01-01-04-01-01-01-01.mp4",
        "flat/02-01-05-01-01-01-01.mp4",
    )
    rows = scan(root).rows
    names = [tuple(row[column] and row[column].rsplit("/", 1)[1] for column in ("audio", "video")) for row in rows]
    assert names == [
        ("03-01-03-01-01-01-01.wav", "01-01-03-01-01-01-01.mp4"),  # the wav, and the full video before the silent one
        ("01-01-04-01-01-01-01.mp4", "01-01-04-01-01-01-01.mp4"),  # the video's own sound
        (None, "02-01-05-01-01-01-01.mp4"),  # a silent video has none
    ]


def test_files_that_give_no_row_are_named_with_a_reason(make_tree, tmp_path):
    root = make_tree(
        "Actor_01/03-01-01-01-01-01-01.WAV",  # good: upper case
        "Actor_01/._03-01-01-01-01-01-01.wav",  # what macOS leaves in archives
        "Actor_01/03-01-09-01-01-01-01.wav",  # there is no emotion 09
        "Actor_01/03-01-01-01-01-01-25.wav",  # nor an actor 25
        "Actor_01/03-01-01-01-01-01-01 (1).wav",
        "Actor_01/01-01-01-01-01-01-01.wav",  # a video's name on a wav
        "Actor_01/03-02-01-01-01-01-01.wav",  # song
        "notes.txt",
        "zz/03-01-01-01-01-01-01.wav",  # a copy: the Kaggle archive holds every clip twice
    )
    (root / "Actor_01" / "03-01-02-01-01-01-01.wav").touch()
    (root / "Actor_01" / "03-01-03-01-01-01-01.wav").symlink_to(tmp_path / "gone.wav")
    result = scan(root)
    assert [row["id"] for row in result.rows] == ["01-01-01-01-01-01"]
    assert result.rows[0]["audio"].endswith("Actor_01/03-01-01-01-01-01-01.WAV")
    assert result.skipped == [
        Skipped("Actor_01/._03-01-01-01-01-01-01.wav", ravdess.BAD_NAME),
        Skipped("Actor_01/01-01-01-01-01-01-01.wav", ravdess.WRONG_TYPE),
        Skipped("Actor_01/03-01-01-01-01-01-01 (1).wav", ravdess.BAD_NAME),
        Skipped("Actor_01/03-01-01-01-01-01-25.wav", ravdess.BAD_NAME),
        Skipped("Actor_01/03-01-02-01-01-01-01.wav", scanning.EMPTY),
        Skipped("Actor_01/03-01-03-01-01-01-01.wav", scanning.BROKEN_LINK),
        Skipped("Actor_01/03-01-09-01-01-01-01.wav", ravdess.BAD_NAME),
        Skipped("Actor_01/03-02-01-01-01-01-01.wav", ravdess.OTHER_CHANNEL),
        Skipped("notes.txt", ravdess.NOT_MEDIA),
        Skipped("zz/03-01-01-01-01-01-01.wav", scanning.REPEATED),
    ]
    assert result.skip_counts[ravdess.BAD_NAME] == 4


def test_an_empty_file_does_not_hide_a_good_copy(make_tree):
    root = make_tree("b/03-01-01-01-01-01-01.wav")
    (root / "a").mkdir()
    (root / "a" / "03-01-01-01-01-01-01.wav").touch()
    assert scan(root).rows[0]["audio"].endswith("b/03-01-01-01-01-01-01.wav")


@pytest.mark.parametrize(("channel", "count"), [("speech", 1), ("song", 2), ("both", 3)])
def test_channels(make_tree, channel, count):
    root = make_tree("03-01-01-01-01-01-01.wav", "03-02-01-01-01-01-01.wav", "03-02-02-01-01-01-01.wav")
    assert len(scan(root, channel).rows) == count


def test_order_does_not_depend_on_the_file_system(make_tree, monkeypatch):
    names = [f"{folder}/03-01-0{e}-01-01-01-0{a}.wav" for folder in "ab" for e in (1, 2) for a in (1, 2)]
    root = make_tree(*names)
    straight = scan(root)
    walk = scanning.os.walk
    monkeypatch.setattr(
        scanning.os, "walk", lambda *args, **kw: [(d, f, n[::-1]) for d, f, n in reversed(list(walk(*args, **kw)))]
    )
    assert scan(root) == straight
    assert [row["id"] for row in straight.rows] == sorted(row["id"] for row in straight.rows)


def test_linked_folders_are_followed(make_tree, tmp_path):
    make_tree("03-01-01-01-01-01-01.wav", root="elsewhere")
    root = make_tree("Actor_02/03-01-01-01-01-01-02.wav")
    (root / "Actor_01").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [row["speaker"] for row in scan(root).rows] == ["ravdess-01", "ravdess-02"]


def test_wrong_folders_say_what_was_expected(make_tree, tmp_path):
    with pytest.raises(
        ValueError, match=r"data_dir .*nowhere.* is not a directory.*Actor_01/03-01-01-01-01-01-01\.wav"
    ):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data_dir None is not a directory"):
        Ravdess(cache_dir=str(tmp_path / "cache"))
    packed = make_tree("Audio_Speech_Actors_01-24.zip", root="packed")
    with pytest.raises(ValueError, match=r"no speech clip \(1 skipped: 1 not a .wav.*unpacked archives"):
        scan(packed)
    with pytest.raises(ValueError, match="channel must be one of speech, song, both, got 'sung'"):
        scan(packed, "sung")


# The builder


def build(root, tmp_path, **options):
    builder = Ravdess(data_dir=str(root), cache_dir=str(tmp_path / "cache"), **options)
    builder.download_and_prepare()
    return builder


@pytest.fixture
def small_tree(make_tree):
    return make_tree(
        "03-01-01-01-01-01-01.wav", "03-01-02-01-01-01-02.wav", "02-01-02-01-01-01-02.mp4", "03-02-02-01-01-01-02.wav"
    )


def test_prepared_and_streamed_rows_are_the_scanned_ones(small_tree, tmp_path):
    scanned = scan(small_tree).rows
    builder = build(small_tree, tmp_path)
    prepared = builder.as_dataset(split="train").to_list()
    streamed = list(builder.as_streaming_dataset(split="train"))
    assert prepared == streamed
    assert (
        [row["id"] for row in prepared] == [row["id"] for row in scanned] == ["01-01-01-01-01-01", "01-02-01-01-01-02"]
    )
    assert prepared[0] == scanned[0] | {"audio": {"bytes": None, "path": scanned[0]["audio"]}}
    assert prepared[0]["video"] is None
    assert prepared[1]["video"]["path"] == scanned[1]["video"]
    assert scan(small_tree).rows == scanned  # building a data set patches this module's os.path, Path and open
    assert builder.skipped == [Skipped("03-02-02-01-01-01-02.wav", ravdess.OTHER_CHANNEL)]


def test_channel_reaches_the_rows_and_the_cache(small_tree, tmp_path):
    speech, both = build(small_tree, tmp_path), build(small_tree, tmp_path, channel="both")
    assert (speech.as_dataset(split="train").num_rows, both.as_dataset(split="train").num_rows) == (2, 3)


def test_a_changed_copy_never_gives_stale_rows(small_tree, make_tree, tmp_path):
    before = build(small_tree, tmp_path)
    assert build(small_tree, tmp_path).config_id == before.config_id
    make_tree("03-01-03-01-01-01-01.wav")
    after = build(small_tree, tmp_path)
    assert after.as_dataset(split="train").num_rows == before.as_dataset(split="train").num_rows + 1
    with (small_tree / "03-01-03-01-01-01-01.wav").open("ab") as file:
        file.write(b"longer")
    assert build(small_tree, tmp_path).config_id != after.config_id


def test_the_same_relative_path_elsewhere_is_another_data_set(small_tree, tmp_path, monkeypatch):
    shutil.copytree(small_tree, tmp_path / "other" / small_tree.name)
    found = []
    for parent in (small_tree.parent, tmp_path / "other"):
        monkeypatch.chdir(parent)
        path = build(small_tree.name, tmp_path).as_dataset(split="train")[0]["audio"]["path"]
        found.append(path == str(parent / small_tree.name / "03-01-01-01-01-01-01.wav"))
    assert found == [True, True]


def test_damage_is_warned_of_and_other_files_are_not(small_tree, make_tree, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        make_tree("notes.txt")
        build(small_tree, tmp_path)
        assert caplog.messages == []
        (small_tree / "03-01-04-01-01-01-01.wav").touch()
        make_tree("03-01-03-01-01-01-01.wav")
        build(small_tree, tmp_path)
    assert caplog.messages == ["Ravdess: 3 rows (1 skipped: 1 zero bytes)"]


# Folds


@pytest.mark.parametrize("name", RAVDESS_FOLDS)
def test_folds_hold_every_actor_once(name):
    assert sorted(actor for fold in RAVDESS_FOLDS[name] for actor in fold) == list(ACTORS)


def test_folds_as_published():
    assert RAVDESS_FOLDS["emobox"][0] == (1, 11, 20, 21)
    assert RAVDESS_FOLDS["emobox"][5] == (6, 13, 17, 22)
    assert [len(fold) for fold in RAVDESS_FOLDS["emobox"]] == [4] * 6
    assert RAVDESS_FOLDS["lunajimenez"][4] == (1, 4, 9, 22)
    assert [len(fold) for fold in RAVDESS_FOLDS["lunajimenez"]] == [5, 5, 5, 5, 4]


def rows_of(actors):
    return [{"id": f"clip-{a}-{n}", "speaker": f"ravdess-{a:02}"} for n in (1, 2) for a in actors]


def speakers_of(ids):
    """Clips come in twos: the actors of ids like clip-3-1, each of whom must have both."""
    actors = Counter(int(i.split("-")[1]) for i in ids)
    assert set(actors.values()) == {2}
    return tuple(sorted(actors))


def test_published_folds_become_splits():
    splits = ravdess_splits(rows_of(ACTORS))
    assert [(split.name, split.fold) for split in splits] == [("ravdess-emobox", k) for k in range(1, 7)]
    assert [speakers_of(split.test) for split in splits] == list(RAVDESS_FOLDS["emobox"])
    assert [speakers_of(split.validation) for split in splits] == [
        speakers_of(s.test) for s in splits[1:] + splits[:1]
    ]
    assert all(len(speakers_of(split.train)) == 16 for split in splits)
    assert [speakers_of(s.test) for s in ravdess_splits(rows_of(ACTORS), "lunajimenez")] == list(
        RAVDESS_FOLDS["lunajimenez"]
    )


def test_splits_of_own_folds_by_hand():
    assert ravdess_splits(rows_of((1, 2, 3)), folds=[(1,), (2,), (3,)])[0] == (
        "ravdess-custom",
        1,
        ("clip-3-1", "clip-3-2"),
        ("clip-2-1", "clip-2-2"),
        ("clip-1-1", "clip-1-2"),
    )


def test_without_one_fold_the_others_close_the_circle(caplog):
    """Actors 6, 13, 17 and 22, the sixth fold of EmoBox, are what the copy most at hand lacks."""
    with caplog.at_level(logging.WARNING):
        splits = ravdess_splits(rows_of([actor for actor in ACTORS if actor not in (6, 13, 17, 22)]))
    assert [split.fold for split in splits] == [1, 2, 3, 4, 5]
    assert speakers_of(splits[4].validation) == (1, 11, 20, 21)
    assert speakers_of(splits[4].train) == (3, 4, 5, 7, 8, 9, 10, 12, 14, 19, 23, 24)
    assert caplog.messages == ["ravdess-emobox: fold(s) [6] have no data and are left out"]


def test_a_fold_that_lacks_an_actor_is_refused_unless_asked_for():
    rows = rows_of([actor for actor in ACTORS if actor != 24])
    with pytest.raises(ValueError, match=r"ravdess-emobox: fold 4 lacks speaker\(s\) 'ravdess-24'\. .*allow_missing"):
        ravdess_splits(rows)
    assert speakers_of(ravdess_splits(rows, allow_missing=True)[3].test) == (3, 5, 7)


@pytest.mark.parametrize(
    ("rows", "folds", "match"),
    [
        (rows_of(ACTORS), "emo", "folds must be one of emobox, lunajimenez or lists of actors, got 'emo'"),
        (rows_of(ACTORS), [(1, 2), (2, 3), (4,)], "'ravdess-02' are in the folds more than once"),
        ([{"id": "a", "speaker": "Ses01F"}], "emobox", "'Ses01F' are in no fold of ravdess-emobox"),
        ([{"id": "a", "speaker": None}], "emobox", "row 'a' has no speaker"),
    ],
)
def test_rows_and_folds_that_cannot_be_used(rows, folds, match):
    with pytest.raises(ValueError, match=match):
        ravdess_splits(rows, folds)


# The real copy


@pytest.fixture(scope="module")
def real_scan(ravdess_dir):
    return scan(ravdess_dir)


def test_real_copy_is_balanced(real_scan):
    """60 clips an actor: 4 neutral and 8 of each other emotion, each sentence equally often with each."""
    speakers = Counter(row["speaker"] for row in real_scan.rows)
    assert set(speakers.values()) == {60}
    labels = Counter(row["label"] for row in real_scan.rows)
    assert labels.pop("neutral") == 4 * len(speakers)
    assert set(labels.values()) == {8 * len(speakers)}
    assert len(labels) == 7
    texts = Counter((row["label"], row["sentence"]) for row in real_scan.rows)
    assert all(texts[label, "01"] == texts[label, "02"] for label in (*labels, "neutral"))
    assert {row["gender"] for row in real_scan.rows if row["speaker"] in ("ravdess-01", "ravdess-23")} == {"male"}


def test_real_copy_loses_no_clip(real_scan, ravdess_dir):
    wavs = {path.name[3:-4] for path in ravdess_dir.rglob("03-01-*.wav")}
    assert {row["id"] for row in real_scan.rows if row["audio"].endswith(".wav")} == wavs
    assert set(real_scan.skip_counts) <= ravdess.HARMLESS


def test_real_folds_share_no_speaker_and_test_every_clip_once(real_scan):
    splits = ravdess_splits(real_scan.rows)
    for split in splits:
        check_split(split, real_scan.rows, unit="speaker")
        assert sum(len(ids) for ids in split.sides.values()) == len(real_scan.rows)
    assert sorted(i for split in splits for i in split.test) == [row["id"] for row in real_scan.rows]


def test_the_report_stands_beside_the_prepared_rows(small_tree, tmp_path):
    (small_tree / "03-01-04-01-01-01-01.wav").touch()
    builder = build(small_tree, tmp_path)
    report = json.loads(Path(builder.cache_dir, "report.json").read_text())
    assert report["rows"] == builder.as_dataset(split="train").num_rows == sum(report["labels"].values())
    assert report["skipped"] == {ravdess.OTHER_CHANNEL: 1, scanning.EMPTY: 1}
    assert {"path": "03-01-04-01-01-01-01.wav", "reason": scanning.EMPTY} in report["skips"]
