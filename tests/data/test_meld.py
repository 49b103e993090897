"""MELD: copies as people have them, with every kind of damage; the builder; the published tables if they are there."""

import codecs
import csv
import json
import logging
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest

from mer_hf.data import meld, scanning
from mer_hf.data.damaged_text import decode, repair
from mer_hf.data.meld import COLUMNS, TABLES, Meld, scan, seconds, speaker_id
from mer_hf.data.protocols import official_split
from mer_hf.data.scanning import Skipped

FIRST = ("1", "It’s gone…", "Phoebe Sr.", "joy", "positive", "0", "0", "8", "21", "00:16:16,059", "00:16:21,731")


def line(**changes):
    """A line of a table: FIRST, with changes by a column's name in lower case, blanks and dots gone."""
    names = [column.lower().replace(" ", "_").rstrip(".") for column in COLUMNS]
    assert set(changes) <= set(names)
    return [str(changes.get(name, value)) for name, value in zip(names, FIRST, strict=True)]


def table(*lines):
    written = [",".join(COLUMNS)]
    written += [",".join('"' + value.replace('"', '""') + '"' for value in values) for values in lines]
    return "\r\n".join(written) + "\r\n"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The bytes of a tiny film."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path.read_bytes()


@pytest.fixture
def copy(tmp_path):
    """Write tables (text or bytes) and other files of a copy; a table that is not named has one line."""

    def make(files=(), root="meld", **tables):
        root = tmp_path / root
        contents = {TABLES[split]: tables.get(split, table(line())) for split in TABLES} | dict(files)
        for name, content in contents.items():
            if content is not None:
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return make


def gaps(found):
    """What is incomplete, but for the tables' lengths: those of tests are not the published ones."""
    return [tuple(item) for item in found.incomplete if item.reason != meld.OTHER_COUNT]


# Rows


def test_every_field_of_a_row(copy):
    text = 'He said, "no", — and\nleft.'
    root = copy(train=table(line(utterance=text, dialogue_id=7, utterance_id=3)))
    found = scan(root)
    assert found.skipped == []
    assert {name: value for name, value in found.rows[0].items() if value is not None} == {
        "id": "meld-train-7-3",
        "corpus": "meld",
        "dialogue_id": "meld-train-7",
        "turn": 3,
        "speaker": "meld-Phoebe-Sr",
        "session": "S08E21",
        "split": "train",
        "start": 976.059,
        "end": 981.731,
        "text": text,
        "label": "happy",
        "scripted": True,
    }


@pytest.mark.parametrize(
    ("emotion", "label"),
    [
        ("neutral", "neutral"),
        ("joy", "happy"),
        ("sadness", "sad"),
        ("anger", "angry"),
        ("fear", "fearful"),
        ("disgust", "disgusted"),
        ("surprise", "surprised"),
    ],
)
def test_emotions(copy, emotion, label):
    assert scan(copy(test=table(line(emotion=emotion)))).rows[2]["label"] == label


def test_dialogues_of_one_number_in_three_tables_are_three(copy):
    rows = scan(copy()).rows
    assert [(row["dialogue_id"], row["split"]) for row in rows] == [
        ("meld-train-0", "train"),
        ("meld-validation-0", "validation"),
        ("meld-test-0", "test"),
    ]
    assert official_split(rows, "meld-official", "dialogue_id").sides == {
        "train": ("meld-train-0-0",),
        "validation": ("meld-validation-0-0",),
        "test": ("meld-test-0-0",),
    }


def test_turns_are_ordered_as_numbers_whatever_the_table_does(copy):
    lines = [line(dialogue_id=d, utterance_id=t) for d, t in ((10, 0), (2, 10), (2, 9), (2, 0))]
    rows = scan(copy(train=table(*lines))).rows
    assert [row["id"] for row in rows[:4]] == [
        "meld-train-2-0",
        "meld-train-2-9",
        "meld-train-2-10",
        "meld-train-10-0",
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Phoebe Sr", "meld-Phoebe-Sr"),
        ("Phoebe Sr.", "meld-Phoebe-Sr"),
        (" Joey  and Ross ", "meld-Joey-and-Ross"),
        ("Joey's Hand Twin", "meld-Joeys-Hand-Twin"),
        ("Richard’s Date", "meld-Richards-Date"),
        ("Joey/Drake", "meld-Joey-Drake"),
        ("Nurse #1", "meld-Nurse-1"),
        ("an", "meld-an"),
        ("?", None),
    ],
)
def test_speakers(name, found):
    assert speaker_id(name) == found


@pytest.mark.parametrize(
    ("time", "value"),
    [
        ("00:16:16,059", 976.059),
        ("0:16:16,059", 976.059),
        ("01:00:00.5", 3600.5),
        ("00:06:47,28", 407.28),  # the last zero is lost in three published times
        ("00:06:47", None),
        ("00:60:00,000", None),
        ("-00:00:01,000", None),
        ("", None),
    ],
)
def test_times(time, value):
    assert seconds(time) == value


def test_times_that_cannot_be_are_null_and_long_ones_are_named(copy):
    times = [("00:00:05,000", "00:00:05,000"), ("00:00:05,000", "00:00:04,000"), ("x", "00:00:04,000")]
    times += [("00:00:05,000", "00:01:05,000"), ("00:00:05,000", "00:01:05,001")]
    lines = [line(utterance_id=i, starttime=start, endtime=end) for i, (start, end) in enumerate(times)]
    found = scan(copy(train=table(*lines)))
    assert [(row["start"], row["end"]) for row in found.rows[:5]] == [(None, None)] * 3 + [(5.0, 65.0), (5.0, 65.001)]
    name = TABLES["train"]
    assert gaps(found) == [(f"{name}:{n}", meld.BAD_TIMES) for n in (2, 3, 4)] + [(f"{name}:6", meld.LONG)]


def test_lines_that_give_no_row_are_named(copy):
    lines = [
        line(),
        line(utterance_id=1, emotion="boredom"),
        line(utterance_id="two"),
        line(utterance_id=3)[:-1],
        line(utterance_id=4, utterance=" "),
        line(utterance="Again"),
        line(utterance_id=5, season=""),
        [],
        line(utterance_id=6, emotion=" Joy "),
    ]
    found = scan(copy(test=table(*lines)))
    assert [row["id"] for row in found.rows if row["split"] == "test"] == ["meld-test-0-0", "meld-test-0-6"]
    assert found.rows[2]["text"] == "It’s gone…"
    assert found.skipped == [
        Skipped(f"{TABLES['test']}:{number}", reason)
        for number, reason in (
            (3, meld.BAD_LABEL),
            (4, meld.BAD_NUMBER),
            (5, meld.BAD_FIELDS),
            (6, meld.NOTHING),
            (7, meld.REPEATED_TURN),
            (8, meld.BAD_NUMBER),
            (9, meld.BAD_FIELDS),
        )
    ]


def test_columns_may_be_in_any_order(copy):
    text = table(line())
    header, values = [next(csv.reader([part])) for part in text.splitlines()]
    turned = "\n".join(",".join(f'"{value}"' for value in part[::-1]) for part in (header, values))
    assert scan(copy(train=turned)).rows == scan(copy()).rows


# Damage


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        (
            "it\x92s \x93so\x94 \x96 or \x97 so\x85",
            "it’s “so” – or — so…",
        ),  # Windows-1252 as Latin-1
        ("itâ€™s â€œsoâ€\x9d â€“ or â€” soâ€¦", "it’s “so” – or — so…"),  # UTF-8 as Windows-1252
        ("itâ\x80\x99s â\x80¦", "it’s …"),  # UTF-8 as Latin-1
        ("itÃ¢â‚¬â„¢s", "it’s"),  # twice
        ("cafÃ©, fiancÃ©e, Ã³", "café, fiancée, ó"),
        ("I?ve, he?s, we?ll, they?re, I?d, don?t, I?m", "I’ve, he’s, we’ll, they’re, I’d, don’t, I’m"),
        ("What? so? No?s", "What? so? No’s"),
        ("It’s “so” – or — so… café", "It’s “so” – or — so… café"),  # nothing is wrong
        ("é’… Ã Â â", "é’… Ã Â â"),  # bytes of what was never UTF-8 twice
        ("Oh?my, who?she \x81 \ufffd", "Oh?my, who?she \x81 \ufffd"),
    ],
)
def test_damage_is_repaired_exactly(damaged, whole):
    assert repair(damaged) == whole
    assert repair(whole) == whole


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("it’s café".encode(), "it’s café"),
        (codecs.BOM_UTF8 + "it’s".encode(), "it’s"),
        ("it’s café…".encode("cp1252"), "it’s café…"),
        ("it’s ".encode() + b"it\x92s \x81", "it’s it’s \x81"),  # both in one file
    ],
)
def test_tables_of_either_encoding(data, text):
    assert decode(data) == text


def test_repairs_and_what_cannot_be_repaired_are_reported(copy):
    lines = ["It\x92s", "It's", "Oh?my", "gone \ufffd", "I?ve \x8f"]
    found = scan(copy(train=table(*(line(utterance_id=i, utterance=text) for i, text in enumerate(lines)))))
    assert [row["text"] for row in found.rows[:5]] == ["It’s", "It's", "Oh?my", "gone \ufffd", "I’ve \x8f"]
    name = TABLES["train"]
    assert gaps(found) == [
        (f"{name}:2", meld.REPAIRED),
        (f"{name}:4", meld.UNREPAIRED),
        (f"{name}:5", meld.UNREPAIRED),
        (f"{name}:6", meld.UNREPAIRED),
        (f"{name}:6", meld.REPAIRED),
    ]


def test_a_damaged_speaker_is_the_same_speaker(copy):
    rows = scan(
        copy(train=table(line(speaker="Richard\x92s Date")), test=table(line(speaker="Richardâ€™s Date")))
    ).rows
    assert rows[0]["speaker"] == rows[2]["speaker"] == "meld-Richards-Date"


# Clips

TWO_TURNS = table(line(), line(utterance_id=1))


def test_clips_are_found_in_the_folders_of_the_release(copy, clip):
    names = [
        "MELD.Raw/train/train_splits/dia0_utt0.mp4",
        "dev/dev_splits_complete/more/dia0_utt0.MP4",
        "output_repeated_splits_test/dia0_utt0.mp4",
    ]
    root = copy(dict.fromkeys(names, clip))
    found = scan(root, check_media=True)
    assert [row["audio"] for row in found.rows] == [str(root / name) for name in names]
    assert [row["video"] for row in found.rows] == [row["audio"] for row in found.rows]
    assert found.skipped == [] and gaps(found) == []


def test_files_that_are_no_clip_are_named(copy, clip):
    names = [
        "train_splits/dia0_utt0.mp4",
        "train_splits/._dia0_utt0.mp4",  # what macOS leaves in archives
        "train_splits/dia9_utt0.mp4",
        "zz/train_splits/dia0_utt0.mp4",
        "output_repeated_splits_test/final_videos_testdia0_utt0.mp4",
        "elsewhere/dia0_utt1.mp4",
        "notes.txt",
        "zz/test_sent_emo.csv",
    ]
    found = scan(copy(dict.fromkeys(names, clip)))
    assert found.rows[0]["video"].endswith("meld/train_splits/dia0_utt0.mp4")
    assert found.rows[2]["video"] is None
    assert found.skipped == [
        Skipped("elsewhere/dia0_utt1.mp4", meld.NO_SPLIT),
        Skipped("notes.txt", meld.NOT_MEDIA),
        Skipped("output_repeated_splits_test/final_videos_testdia0_utt0.mp4", meld.NOT_MEDIA),
        Skipped("train_splits/._dia0_utt0.mp4", meld.NOT_MEDIA),
        Skipped("train_splits/dia9_utt0.mp4", meld.NO_ROW),
        Skipped("zz/test_sent_emo.csv", scanning.REPEATED),
        Skipped("zz/train_splits/dia0_utt0.mp4", scanning.REPEATED),
    ]
    assert gaps(found) == []  # no clip of the test split: none is missing


def test_a_turn_whose_clip_is_missing_or_broken_keeps_its_text(copy, clip):
    lines = [line(utterance_id=turn) for turn in range(4)]
    files = {
        "train_splits/dia0_utt0.mp4": clip,
        "train_splits/dia0_utt1.mp4": b"",
        "train_splits/dia0_utt2.mp4": clip[: len(clip) // 10],  # the index, at its end, is lost
        "b/train_splits/dia0_utt3.mp4": clip,
        "a/train_splits/dia0_utt3.mp4": b"",  # an empty file does not hide a good one
    }
    root = copy(files, train=table(*lines))
    empty = [Skipped(f"{name}.mp4", scanning.EMPTY) for name in ("a/train_splits/dia0_utt3", "train_splits/dia0_utt1")]
    quick = scan(root)
    assert [row["audio"] is not None for row in quick.rows[:4]] == [True, False, True, True]
    assert quick.skipped == empty
    assert gaps(quick) == [(f"{TABLES['train']}:3", meld.NO_CLIP)]
    checked = scan(root, check_media=True)
    assert [row["audio"] is not None for row in checked.rows[:4]] == [True, False, False, True]
    assert checked.skipped == [*empty, Skipped("train_splits/dia0_utt2.mp4", meld.BROKEN)]
    assert gaps(checked) == [(f"{TABLES['train']}:{number}", meld.NO_CLIP) for number in (3, 4)]
    assert {row["text"] for row in checked.rows} == {"It’s gone…"}


def test_clips_broken_in_the_release_are_opened_in_any_case(copy, clip):
    turns = [line(dialogue_id=125, utterance_id=turn) for turn in (2, 3)]
    files = {f"train_splits/dia125_utt{turn}.mp4": b"not a film" for turn in (2, 3)}
    files["dev_splits_complete/dia110_utt7.mp4"] = clip  # a repaired copy
    found = scan(copy(files, train=table(*turns), validation=table(line(dialogue_id=110, utterance_id=7))))
    assert found.skipped == [Skipped("train_splits/dia125_utt3.mp4", meld.BROKEN)]
    assert [row["video"] is not None for row in found.rows] == [True, False, True, False]


def test_a_turn_without_words_may_have_a_clip(copy, clip):
    wordless = table(line(utterance=""))
    assert len(scan(copy(train=wordless)).rows) == 2
    found = scan(copy({"train_splits/dia0_utt0.mp4": clip}, train=wordless))
    assert (found.rows[0]["text"], found.rows[0]["audio"] is not None) == (None, True)


# Tables


def test_a_missing_or_short_table_is_named(copy):
    found = scan(copy(validation=None, test=b"", train=TWO_TURNS))
    assert [row["id"] for row in found.rows] == ["meld-train-0-0", "meld-train-0-1"]
    assert found.skipped == [
        Skipped("dev_sent_emo.csv", scanning.NO_FILE),
        Skipped("test_sent_emo.csv", scanning.EMPTY),
    ]
    assert found.incomplete == [Skipped("train_sent_emo.csv (2 of 9989)", meld.OTHER_COUNT)]


def test_wrong_folders_and_tables_say_what_was_expected(copy, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.* is not a directory.*train_sent_emo\.csv, dev_sent_emo\.csv"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds none of train_sent_emo.csv.*unpacked clips"):
        scan(copy({"MELD.Raw.tar.gz": "packed"}, root="packed", train=None, validation=None, test=None))
    with pytest.raises(ValueError, match=r"test_sent_emo\.csv: column\(s\) Emotion, Sentiment are missing"):
        scan(copy(test=table(line()).replace("Emotion,Sentiment", "a,b"), root="other"))
    with pytest.raises(ValueError, match=r"train_sent_emo\.csv:3: not CSV as published"):
        scan(copy(train=table(line()) + '"never closed', root="cut"))


# The builder


def build(root, tmp_path, **options):
    builder = Meld(data_dir=str(root), cache_dir=str(tmp_path / "cache"), **options)
    builder.download_and_prepare()
    return builder


def test_prepared_and_streamed_rows_are_the_scanned_ones(copy, clip, tmp_path):
    root = copy({"train_splits/dia0_utt0.mp4": clip}, train=TWO_TURNS)
    rows = scan(root).rows
    builder = build(root, tmp_path)
    for split in TABLES:
        prepared = builder.as_dataset(split=split).to_list()
        assert prepared == list(builder.as_streaming_dataset(split=split))
        assert [row["id"] for row in prepared] == [row["id"] for row in rows if row["split"] == split]
    first = builder.as_dataset(split="train")[0]
    media = {"bytes": None, "path": str(root / "train_splits" / "dia0_utt0.mp4")}
    assert first == rows[0] | {"audio": media, "video": media}
    report = json.loads(Path(builder.cache_dir, "report.json").read_text(encoding="utf-8"))
    assert (report["rows"], report["splits"]) == (4, {"test": 1, "train": 2, "validation": 1})
    assert {"path": "train_sent_emo.csv:3", "reason": meld.NO_CLIP} in report["gaps"]


def test_checking_and_new_clips_give_new_rows(copy, clip, tmp_path):
    root = copy({"train_splits/dia0_utt0.mp4": b"not a film"})
    assert build(root, tmp_path).as_dataset(split="train")[0]["audio"] is not None
    assert build(root, tmp_path, check_media=True).as_dataset(split="train")[0]["audio"] is None
    copy({"train_splits/dia0_utt0.mp4": clip})
    assert build(root, tmp_path, check_media=True).as_dataset(split="train")[0]["audio"] is not None


def test_repairs_are_no_warning_and_lost_rows_are(copy, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(meld, "PUBLISHED_ROWS", {"train": 1, "validation": 1, "test": 1})
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        build(copy(train=table(line(utterance="It\x92s"))), tmp_path)
        assert caplog.messages == []
        build(copy(test=table(line(), line(utterance_id=1, emotion="?"))), tmp_path)
    assert caplog.messages == [f"Meld: 3 rows (1 skipped: 1 {meld.BAD_LABEL})"]


def test_clips_of_a_television_series_are_not_shared():
    assert not Meld.MEDIA_MAY_BE_SHARED


# The published tables


@pytest.fixture(scope="module")
def real_dir(real_data):
    return real_data("meld")


@pytest.fixture(scope="module")
def published(real_dir):
    return scan(real_dir)


def test_published_labels(published):
    counts = defaultdict(Counter)
    for row in published.rows:
        counts[row["split"]][row["label"]] += 1
    labels = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
    assert {split: tuple(counts[split][label] for label in labels) for split in TABLES} == {
        "train": (1109, 271, 268, 1743, 4710, 683, 1205),
        "validation": (153, 22, 40, 163, 470, 111, 150),
        "test": (345, 68, 50, 402, 1256, 208, 281),
    }
    dialogues = Counter(split for split, _ in {(row["split"], row["dialogue_id"]) for row in published.rows})
    assert dialogues == {"train": 1038, "validation": 114, "test": 280}


def test_published_tables_lose_nothing(published):
    assert published.skipped == []
    assert Counter(reason for _, reason in published.incomplete) == {
        meld.REPAIRED: 12,
        meld.UNREPAIRED: 1,
        meld.BAD_TIMES: 1,
        meld.LONG: 2,
    }
    by_id = {row["id"]: row for row in published.rows}
    assert by_id["meld-train-980-6"]["text"].startswith("Well, that’s the part where")
    assert by_id["meld-train-980-6"]["text"].endswith("I’ll be in Cuba.")
    assert by_id["meld-train-816-1"]["text"] == "Oh?my Gawd, I-I understand."
    assert by_id["meld-test-155-3"]["start"] is None
    assert by_id["meld-test-187-2"]["end"] == 311.82
    strange = {char for row in published.rows for char in row["text"] if not " " <= char <= "~"}
    assert strange == set("‘’“”–—…éó")


@pytest.mark.parametrize(
    ("damage", "repaired"), [("C1", 3814), ("Windows-1252", 12), ("twice", 3818), ("three times", 3818)]
)
def test_every_circulating_form_of_the_published_tables_is_the_same_corpus(
    published, real_dir, tmp_path, damage, repaired
):
    for name in TABLES.values():
        path = shutil.copyfile(next(real_dir.rglob(name)), tmp_path / name)
        text = path.read_bytes().decode("utf-8")
        if damage in ("C1", "Windows-1252"):
            data = text.encode("cp1252")
            path.write_bytes(data.decode("latin-1").encode() if damage == "C1" else data)
        else:
            for _ in range(2 if damage == "three times" else 1):
                text = "".join(meld._windows(byte) if byte > 127 else chr(byte) for byte in text.encode())
            path.write_bytes(text.encode())
    found = scan(tmp_path)
    assert found.rows == published.rows
    assert Counter(reason for _, reason in found.incomplete)[meld.REPAIRED] == repaired


def test_published_split_and_the_scenes_on_two_sides_of_it(published):
    split = official_split(published.rows, "meld-official", "dialogue_id")
    assert split.sha256 == "ab154a28979252a25d5946a1046daf863f73a7d3d125b399074e0aa8d99ab579"
    speakers = {side: {row["speaker"] for row in published.rows if row["split"] == side} for side in TABLES}
    assert len(speakers["test"] & speakers["train"]) > 60
    said = {row["id"]: row["text"].replace("—", "-").lower() for row in published.rows}
    assert said["meld-test-84-2"] == said["meld-train-12-6"]
    assert said["meld-test-85-0"] == said["meld-train-12-7"]
    assert said["meld-test-85-5"] in said["meld-train-12-11"]
