"""IEMOCAP: a tree in the release's layout with all its oddities, damaged ones, the builder, clips of who speaks."""

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from corpus_trees import (
    IemocapTurn,
    disorder,
    label_line,
    text_line,
    wav_bytes,
    write,
    write_iemocap,
    write_split_screen,
)

from mer_hf.data import iemocap, iemocap_tree, scanning
from mer_hf.data.iemocap import COUNTS, Iemocap, check_counts, scan, side_of_speaker
from mer_hf.data.iemocap_tree import SESSIONS
from mer_hf.data.scanning import Skipped
from mer_hf.models.media import load_frames

Turn = IemocapTurn
MISSING = [Skipped(f"Session{number}", iemocap_tree.NO_SESSION) for number in range(1, 6)]
IMPRO, SCRIPT = "Ses01F_impro01", "Ses03M_script02_1"
LABELS, TEXTS, WAVS = "dialog/EmoEvaluation", "dialog/transcriptions", "sentences/wav"


def append(file: Path, *lines: str) -> None:
    with file.open("a", newline="") as opened:
        opened.write("".join(f"{line}\r\n" for line in lines))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "IEMOCAP_full_release"


def test_every_field_of_a_row(root):
    session = write_iemocap(root, IMPRO, Turn("M003", 6.2901, 8.2357, "fru", (2.0, 3.5, 4.0)))
    found = scan(root)
    assert found.incomplete == []
    assert found.skipped == MISSING[1:]
    (row,) = found.rows
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": "Ses01F_impro01_M003",
        "corpus": "iemocap",
        "dialogue_id": "Ses01F_impro01",
        "turn": 0,
        "speaker": "iemocap-Ses01M",  # not the actress, whose letter the dialogue bears
        "gender": "male",
        "session": "Ses01",
        "start": 6.2901,
        "end": 8.2357,
        "audio": str(session / WAVS / IMPRO / "Ses01F_impro01_M003.wav"),
        "text": "Excuse me.",
        "words": [{"word": "excuse", "start": 0.1, "end": 0.4}, {"word": "me", "start": 0.4, "end": 0.6}],
        "label": "frustrated",
        "scripted": False,
        "valence": 2.0,
        "arousal": 3.5,
        "dominance": 4.0,
    }


@pytest.mark.parametrize(
    ("word", "label"),
    {
        "neu": "neutral",
        "hap": "happy",
        "exc": "excited",
        "sad": "sad",
        "ang": "angry",
        "fea": "fearful",
        "dis": "disgusted",
        "sur": "surprised",
        "fru": "frustrated",
        "xxx": None,
        "oth": None,
    }.items(),
)
def test_labels(root, word, label):
    write_iemocap(root, IMPRO, Turn("F000", 0, 1, word))
    assert scan(root).rows[0]["label"] == label


def test_turns_follow_their_starts_however_the_file_lists_them(root):
    write_iemocap(
        root,
        SCRIPT,
        Turn("M002", 10.0, 10.5),  # starts with F001
        Turn("M001", 9.5, 12.0),  # 9.5 before 10.0: as numbers, not as text
        Turn("F001", 10.0, 11.0),
        Turn("M000", 2.0, 8.0),  # F000 overlaps it
        Turn("F000", 5.0, 6.0),
    )
    rows = scan(root).rows
    assert [(row["turn"], row["id"][-4:]) for row in rows] == [
        (0, "M000"),
        (1, "F000"),
        (2, "M001"),
        (3, "F001"),
        (4, "M002"),
    ]
    assert {(row["session"], row["scripted"]) for row in rows} == {("Ses03", True)}
    assert {row["speaker"] for row in rows} == {"iemocap-Ses03M", "iemocap-Ses03F"}


@pytest.fixture
def odd_tree(root):
    """Every oddity that the release has, and most that a copy may have."""
    session = write_iemocap(
        root,
        IMPRO,
        Turn("F000", 6.2901, 8.2357, "xxx"),
        Turn("M000", 7.5, 9.0, "oth", words=None),
        Turn("F001", 10.01, 11.3925, "hap", text="[LAUGHTER] That's ++GARBAGE++ it   then.  "),
        Turn("M001", 12.0, 13.0, "sad", text="[BREATHING] [LAUGHTER]", words=((0, 99, "<sil>"),)),
        Turn("F002", 14.0, 15.0, "ang", text=None),
        Turn("M002", 16.0, 17.0, "exc"),
        Turn("F003", 18.0, 19.0, "neu"),
        Turn("M003", 20.0, 21.0, "neu"),
        newline="\r\n",
    )
    labels = session / LABELS / f"{IMPRO}.txt"
    append(
        labels,
        label_line(IMPRO, Turn("F000", 30, 31, "sad")),  # line 43: again
        label_line("Ses01F_impro02", Turn("F000", 30, 31)),
        label_line(IMPRO, Turn("F009", 30, 31, "bored")),
        label_line(IMPRO, Turn("F010", 31, 30)),
        "[40.0000 - 41.0000] nothing else",
        label_line(IMPRO, Turn("M004", 5.0, 6.0, "fea")) + " \t ",  # line 48: good, with trailing blanks
    )
    append(
        session / TEXTS / f"{IMPRO}.txt",
        "M: Yeah.",  # line 8
        text_line(IMPRO, Turn("MXX0", 50, 51)),
        text_line(IMPRO, Turn("F077", 50, 51)),
        text_line(IMPRO, Turn("F000", 50, 51, text="Something else.")),
        "",
        "somebody coughs",
    )
    os.remove(session / WAVS / IMPRO / f"{IMPRO}_M002.wav")
    write(session / WAVS / IMPRO / f"{IMPRO}_F003.wav", b"")
    write(session / WAVS / IMPRO / f"{IMPRO}_M003.wav", wav_bytes()[:-2000])
    write(session / WAVS / IMPRO / f"{IMPRO}_M004.wav", wav_bytes())
    write(session / WAVS / IMPRO / f"{IMPRO}_F099.wav", wav_bytes())
    write(session / WAVS / IMPRO / f"._{IMPRO}_F000.wav", b"Mac OS X")
    write(session / WAVS / "elsewhere" / f"{IMPRO}_F000.wav", wav_bytes())
    write(session / WAVS / IMPRO / "notes.pdf", b"notes")
    write(session / LABELS / f"._{IMPRO}.txt", b"\x00\x05\x16\x07")
    write(session / LABELS / "Ses02F_impro01.txt", "of another session")
    write(session / LABELS / "Categorical" / f"{IMPRO}_e2_cat.txt", f"{IMPRO}_F000 :Anger; ()")
    write(session / LABELS / "Attribute" / f"{IMPRO}_e2_atr.txt", f"{IMPRO}_F000 :val 1; ()")
    write(session / TEXTS / ".DS_Store", b"\x00")
    write(session / "sentences/ForcedAlignment" / IMPRO / f"{IMPRO}_F001.wdseg", "no such table")
    return root


ODD_SKIPS = [
    Skipped(f"Session1/{LABELS}/._{IMPRO}.txt", iemocap_tree.MAC_FILE),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:43", iemocap_tree.REPEATED_LABEL),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:44", iemocap_tree.OTHER_DIALOGUE),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:45", iemocap_tree.OTHER_WORD),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:46", iemocap_tree.NO_DURATION),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:47", iemocap_tree.BAD_LABEL_LINE),
    Skipped(f"Session1/{LABELS}/Ses02F_impro01.txt", iemocap_tree.BAD_NAME),
    Skipped(f"Session1/{TEXTS}/.DS_Store", iemocap_tree.MAC_FILE),
    Skipped(f"Session1/{TEXTS}/{IMPRO}.txt:8", iemocap_tree.NO_TURN_NAMED),
    Skipped(f"Session1/{TEXTS}/{IMPRO}.txt:9", iemocap_tree.NOT_CUT_OUT),
    Skipped(f"Session1/{TEXTS}/{IMPRO}.txt:10", iemocap_tree.TEXT_ONLY),
    Skipped(f"Session1/{TEXTS}/{IMPRO}.txt:11", iemocap_tree.REPEATED_TEXT),
    Skipped(f"Session1/{TEXTS}/{IMPRO}.txt:13", iemocap_tree.BAD_TEXT_LINE),
    Skipped(f"Session1/{WAVS}/{IMPRO}/._{IMPRO}_F000.wav", iemocap_tree.MAC_FILE),
    Skipped(f"Session1/{WAVS}/{IMPRO}/{IMPRO}_F003.wav", scanning.EMPTY),
    Skipped(f"Session1/{WAVS}/{IMPRO}/{IMPRO}_F099.wav", iemocap_tree.SOUND_ONLY),
    Skipped(f"Session1/{WAVS}/{IMPRO}/{IMPRO}_M002.wav", scanning.NO_FILE),
    Skipped(f"Session1/{WAVS}/{IMPRO}/{IMPRO}_M003.wav", scanning.TRUNCATED),
    Skipped(f"Session1/{WAVS}/{IMPRO}/notes.pdf", iemocap_tree.OTHER_FILE),
    Skipped(f"Session1/{WAVS}/elsewhere/{IMPRO}_F000.wav", iemocap_tree.SOUND_ONLY),
    *MISSING[1:],
]
ALIGNED = f"Session1/sentences/ForcedAlignment/{IMPRO}"
ODD_GAPS = [
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:3", iemocap_tree.NO_AGREEMENT),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:8", iemocap_tree.OTHER_EMOTION),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:23", iemocap_tree.NO_TEXT),
    Skipped(f"Session1/{LABELS}/{IMPRO}.txt:48", iemocap_tree.NO_TEXT),
    Skipped(f"Session1/{TEXTS}/{IMPRO}.txt:4", iemocap_tree.ONLY_MARKS),
    Skipped(f"{ALIGNED}/{IMPRO}_F001.wdseg", iemocap_tree.BAD_WORDS),
    Skipped(f"{ALIGNED}/{IMPRO}_M000.wdseg", iemocap_tree.NO_WORDS),
    Skipped(f"{ALIGNED}/{IMPRO}_M001.wdseg", iemocap_tree.NO_SPOKEN_WORD),
    Skipped(f"{ALIGNED}/{IMPRO}_M004.wdseg", iemocap_tree.NO_WORDS),
]


def test_an_odd_tree_gives_these_rows_and_no_others(odd_tree):
    seen = [
        (row["turn"], row["id"][-4:], row["label"], row["text"], len(row["words"] or ()))
        for row in scan(odd_tree).rows
    ]
    assert seen == [
        (0, "M004", "fearful", None, 0),
        (1, "F000", None, "Excuse me.", 2),
        (2, "M000", None, "Excuse me.", 0),
        (3, "F001", "happy", "That's it then.", 0),
        (4, "M001", "sad", None, 0),
        (5, "F002", "angry", None, 2),  # turns 6, 7 and 8 have no sound that can be used
    ]


def test_everything_else_in_an_odd_tree_is_named_with_its_line(odd_tree):
    found = scan(odd_tree)
    assert found.skipped == ODD_SKIPS
    assert found.incomplete == ODD_GAPS


def test_line_endings_change_nothing(odd_tree, root):
    before = scan(odd_tree)
    for file in (root / "Session1/dialog").rglob("Ses01*.txt"):
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    assert scan(odd_tree) == before


def test_letters_beyond_ascii_survive_in_either_encoding(root):
    session = write_iemocap(root, IMPRO, Turn("F000", 0, 1, text="Señor."))
    assert scan(root).rows[0]["text"] == "Señor."
    file = session / TEXTS / f"{IMPRO}.txt"
    file.write_bytes(file.read_text("utf-8").encode("latin-1"))
    assert scan(root).rows[0]["text"] == "Señor."


def test_order_does_not_depend_on_the_file_system(odd_tree, root, monkeypatch):
    write_iemocap(root, SCRIPT, Turn("F000", 3, 4), Turn("M000", 1, 2))
    write_iemocap(root, "Ses01M_impro01", Turn("F000", 3, 4))
    straight = scan(root)
    assert [row["dialogue_id"] for row in straight.rows] == [IMPRO] * 6 + ["Ses01M_impro01"] + [SCRIPT] * 2
    disorder(monkeypatch)
    assert scan(root) == straight


def test_wrong_folders_say_what_was_expected(root, tmp_path):
    with pytest.raises(ValueError, match=r"data_dir .*nowhere.* is not a directory.*Session1/dialog/EmoEvaluation/"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data_dir None is not a directory"):
        Iemocap(cache_dir=str(tmp_path / "cache"))
    write(root / "Session1/dialog/transcriptions/notes.doc", b"x")
    with pytest.raises(ValueError, match=r"holds no turn \(5 skipped: 1 of another type.*, 4 the session is not in"):
        scan(root)
    with pytest.raises(ValueError, match="video must be one of none, full, speaker, got 'left'"):
        scan(root, "left")


# The counts


def complete_rows():
    """Rows with the counts of the release: the four classes by session and kind, and turns without a label."""
    labels = [label for label in ("angry", "neutral", "sad") for _ in range(COUNTS[label])]
    labels += ["happy"] * 595 + ["excited"] * 1041
    sessions = [session for session in SESSIONS for _ in range(COUNTS[session])]
    scripted = [True] * COUNTS["scripted"] + [False] * COUNTS["improvised"]
    rows = [
        {"label": label, "session": session, "scripted": kind}
        for label, session, kind in zip(labels, sessions, scripted, strict=True)
    ]
    return rows + [{"label": None, "session": "Ses01", "scripted": True}] * (10039 - 5531)


def test_counts_add_up():
    assert sum(COUNTS[session] for session in SESSIONS) == COUNTS["of four classes"] == 5531
    assert sum(COUNTS[name] for name in ("angry", "happy or excited", "neutral", "sad")) == 5531
    assert COUNTS["improvised"] + COUNTS["scripted"] == 5531
    check_counts(complete_rows())


def test_a_copy_with_other_counts_is_refused_with_both_numbers():
    rows = complete_rows()
    rows[0] = rows[0] | {"label": "frustrated"}
    with pytest.raises(
        ValueError,
        match=r"\(of four classes: 5531 expected, 5530 found; angry: 1103 expected, 1102 found; "
        r"scripted: 2588 expected, 2587 found; Ses01: 1085 expected, 1084 found\)",
    ):
        check_counts(rows)
    with pytest.raises(ValueError, match=r"\(turns: 10039 expected, 10038 found\)"):
        check_counts(complete_rows()[:-1])


def test_a_copy_that_lacks_a_session_is_not_compared():
    check_counts([row for row in complete_rows() if row["session"] != "Ses04"])


@pytest.fixture
def five_sessions(root):
    for number in range(1, 6):
        write_iemocap(root, f"Ses0{number}F_impro01", Turn("F000", 0, 1))
    return root


# The builder


def build(root, tmp_path, **options):
    builder = Iemocap(data_dir=str(root), cache_dir=str(tmp_path / "cache"), **options)
    builder.download_and_prepare()
    return builder


def test_counts_are_a_warning_or_an_error(five_sessions, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        build(five_sessions, tmp_path)
    assert len(caplog.messages) == 1
    assert "turns: 10039 expected, 5 found" in caplog.messages[0]
    with pytest.raises(ValueError, match="turns: 10039 expected, 5 found"):
        build(five_sessions, tmp_path, strict=True)


def test_prepared_and_streamed_rows_are_the_scanned_ones(odd_tree, tmp_path):
    scanned = scan(odd_tree).rows
    builder = build(odd_tree, tmp_path)
    prepared = builder.as_dataset(split="train").to_list()
    assert prepared == list(builder.as_streaming_dataset(split="train"))
    assert prepared == [row | {"audio": {"bytes": None, "path": row["audio"]}} for row in scanned]
    assert scan(odd_tree).rows == scanned  # building a data set patches this module's os.path, Path and open
    assert not builder.MEDIA_MAY_BE_SHARED


def test_the_report_counts_what_has_no_label_by_its_word(odd_tree, tmp_path):
    builder = build(odd_tree, tmp_path)
    report = json.loads(Path(builder.cache_dir, "report.json").read_text())
    assert report["rows"] == 6
    assert report["labels"] == {"angry": 1, "fearful": 1, "happy": 1, "null": 2, "sad": 1}
    assert report["incomplete"] == {
        iemocap_tree.NO_AGREEMENT: 1,
        iemocap_tree.OTHER_EMOTION: 1,
        iemocap_tree.NO_TEXT: 2,
        iemocap_tree.ONLY_MARKS: 1,
        iemocap_tree.BAD_WORDS: 1,
        iemocap_tree.NO_WORDS: 2,
        iemocap_tree.NO_SPOKEN_WORD: 1,
    }
    assert report["gaps"] == [item._asdict() for item in ODD_GAPS]
    assert report["skips"] == [item._asdict() for item in ODD_SKIPS]
    assert report["skipped"][iemocap_tree.NO_TURN_NAMED] == 1


def test_damage_is_warned_of_and_what_complete_copies_have_is_not(odd_tree, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        build(odd_tree, tmp_path)
    (message,) = caplog.messages
    assert message.startswith("Iemocap: 6 rows (18 skipped: 1 the turn has a label on an earlier line")
    assert "(9 incomplete: 1 no label: the raters do not agree (xxx)" in message
    for reason in iemocap.HARMLESS:
        assert reason not in message


def test_a_changed_label_never_gives_stale_rows(root, tmp_path):
    session = write_iemocap(root, IMPRO, Turn("F000", 0, 1, "neu"))
    before = build(root, tmp_path)
    assert build(root, tmp_path).config_id == before.config_id
    file = session / LABELS / f"{IMPRO}.txt"
    file.write_text(file.read_text().replace("\tneu\t", "\tsad\t"))
    assert build(root, tmp_path).as_dataset(split="train")[0]["label"] == "sad"


# Clips of turns


@pytest.mark.parametrize(
    ("turn", "side"),
    [
        ("Ses01F_impro01_F000", "left"),
        ("Ses01F_impro01_M000", "right"),
        ("Ses05M_script01_1b_M012", "left"),
        ("Ses05M_script01_1b_F012", "right"),
    ],
)
def test_the_actor_with_the_markers_is_on_the_left(turn, side):
    assert side_of_speaker(turn) == side


@pytest.fixture
def filmed(root):
    """Two dialogues, each with a film of 6 s in which the left half is red, the right blue."""
    for dialogue in (IMPRO, SCRIPT):
        session = write_iemocap(
            root,
            dialogue,
            Turn("F000", 1.0, 3.0),
            Turn("M000", 2.0, 4.4),  # while F000 still speaks
            Turn("F001", 4.9, 9.0),  # longer than the film
            Turn("M001", 7.0, 8.0),
        )
        write_split_screen(session / "dialog/avi/DivX" / f"{dialogue}.avi", 6.0)
    return root


def clips_of(builder):
    """Row id -> its clip's path, of the rows that have one."""
    rows = builder.as_dataset(split="train").to_list()
    return {row["id"]: row["video"]["path"] for row in rows if row["video"] is not None}


def test_each_speaker_gets_his_half_at_the_right_time(filmed, tmp_path):
    clips = clips_of(build(filmed, tmp_path, video="speaker"))
    colours = {  # the actress wears the markers in the first dialogue, the actor in the second
        "Ses01F_impro01_F000": "red",
        "Ses01F_impro01_M000": "blue",
        "Ses03M_script02_1_F000": "blue",
        "Ses03M_script02_1_M000": "red",
    }
    assert set(clips) == set(colours)
    for turn, colour in colours.items():
        frames, times = load_frames(clips[turn], num_frames=1000)
        start, end = {"F000": (1.0, 3.0), "M000": (2.0, 4.4)}[turn[-4:]]
        assert frames.shape == (len(times), 32, 32, 3)
        assert start + times == pytest.approx(
            [first / 5 for first in range(round(5 * start), round(5 * end))], abs=0.01
        )
        green = frames[:, 8:24, 4:28, 1].mean(axis=(1, 2)) - 40 * (start + times)
        assert abs(np.median(green)) < 4  # a frame earlier or later makes it 8
        shown, hidden = (0, 2) if colour == "red" else (2, 0)
        assert frames[..., shown].min() > 200 > 60 > frames[..., hidden].max()


def test_the_whole_picture_can_be_had(filmed, tmp_path):
    clips = clips_of(build(filmed, tmp_path, video="full"))
    frames, _ = load_frames(clips["Ses01F_impro01_M000"], num_frames=3)
    assert frames.shape == (3, 32, 64, 3)
    left, right = frames[:, 8:24, 4:28].mean(axis=(0, 1, 2)), frames[:, 8:24, 36:60].mean(axis=(0, 1, 2))
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]


def test_half_and_whole_are_different_data_sets(filmed, tmp_path):
    builders = [build(filmed, tmp_path, video=video) for video in ("none", "full", "speaker")]
    assert len({builder.config_id for builder in builders}) == 3
    assert clips_of(builders[0]) == {}
    assert not set(clips_of(builders[1]).values()) & set(clips_of(builders[2]).values())


def test_turns_that_the_film_does_not_reach_have_no_video_and_are_counted(filmed, tmp_path):
    builder = build(filmed, tmp_path, video="speaker")
    report = json.loads(Path(builder.cache_dir, "report.json").read_text())
    assert report["incomplete"] == {iemocap.VIDEO_ENDS: 4}
    assert report["gaps"][0]["path"] == "Session1/dialog/avi/DivX/Ses01F_impro01.avi/Ses01F_impro01_F001"
    list(builder.as_streaming_dataset(split="train"))
    assert len(builder.found.incomplete) == 4


def test_clips_are_cut_once_and_again_when_the_film_or_the_label_changes(filmed, tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    build(filmed, tmp_path, video="speaker", clips_dir=str(folder))
    made = sorted(folder.rglob("*"))
    assert [path.name[:19] for path in made if path.is_file()][:2] == ["Ses01F_impro01_F000", "Ses01F_impro01_M000"]
    assert len([path for path in made if path.is_file()]) == 4  # and nothing half-written
    asked = []
    real = iemocap.cut_clips
    monkeypatch.setattr(iemocap, "cut_clips", lambda video, clips: asked.append(len(clips)) or real(video, clips))
    other = Iemocap(data_dir=str(filmed), cache_dir=str(tmp_path / "b"), video="speaker", clips_dir=str(folder))
    streamed = list(other.as_streaming_dataset(split="train"))
    assert sum(row["video"] is not None for row in streamed) == 4
    assert asked == [2, 2]  # the turns beyond the film's end, and no others
    write_split_screen(filmed / f"Session1/dialog/avi/DivX/{IMPRO}.avi", 9.5)
    list(
        Iemocap(
            data_dir=str(filmed), cache_dir=str(tmp_path / "c"), video="speaker", clips_dir=str(folder)
        ).as_streaming_dataset(split="train")
    )
    assert asked == [2, 2, 4, 2]


def test_missing_and_broken_films_cost_the_video_alone(filmed, tmp_path, caplog):
    os.remove(filmed / f"Session1/dialog/avi/DivX/{IMPRO}.avi")
    write(filmed / f"Session3/dialog/avi/DivX/{SCRIPT}.avi", b"RIFF no film at all" * 100)
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        builder = build(filmed, tmp_path, video="speaker")
    assert builder.as_dataset(split="train").num_rows == 8
    assert clips_of(builder) == {}
    report = json.loads(Path(builder.cache_dir, "report.json").read_text())
    assert report["incomplete"] == {iemocap_tree.NO_VIDEO: 1, iemocap.BROKEN_VIDEO: 4}
    assert any("Ses03M_script02_1.avi: not a readable media file" in message for message in caplog.messages)


def test_without_pyav_the_error_names_the_package(filmed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="needs PyAV: pip install av"):
        build(filmed, tmp_path, video="speaker")
    assert build(filmed, tmp_path).as_dataset(split="train").num_rows == 8


# The real copy


def test_a_real_copy_has_the_counts_of_the_release(real_data):
    found = scan(real_data("iemocap"))
    assert {row["session"] for row in found.rows} == set(SESSIONS)
    check_counts(found.rows)
    assert len({row["speaker"] for row in found.rows}) == 10
    assert len({row["dialogue_id"] for row in found.rows}) == 151
    assert sum(row["words"] is None for row in found.rows) < 20
    assert set(found.skip_counts) <= iemocap.HARMLESS
    for row in found.rows:
        assert 1 <= row["valence"] <= 5 and 1 <= row["arousal"] <= 5, row["id"]
