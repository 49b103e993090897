"""CREMA-D: trees as people have them, damaged ones included; what raters perceived; the builder."""

import json
import logging
from pathlib import Path

import pytest
from corpus_trees import disorder, wav_bytes, write, write_crema_d, write_summary, write_tabulated

from mer_hf.data import crema_d, scanning
from mer_hf.data.crema_d import COUNTS, KNOWN_BROKEN, SENTENCES, CremaD, check_counts, scan
from mer_hf.data.scanning import Skipped

ANGRY, HAPPY, SAD = "1001_DFA_ANG_XX", "1001_IEO_HAP_LO", "1002_WSI_SAD_XX"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "CREMA-D"


def labels(found):
    return {row["id"]: row["label"] for row in found.rows}


def test_every_field_of_a_row(root):
    write_crema_d(root, SAD)
    write_tabulated(root, {(107442, SAD): (0, 1, 0, 0, 4, 5), (307442, SAD): (0, 0, 0, 0, 2, 9)})
    found = scan(root)
    assert (found.incomplete, [item.reason for item in found.skipped]) == ([], [crema_d.NOT_MEDIA] * 3)
    (row,) = found.rows
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": "1002_WSI_SAD_XX",
        "corpus": "crema_d",
        "speaker": "crema_d-1002",
        "gender": "female",
        "audio": str(root / "AudioWAV" / "1002_WSI_SAD_XX.wav"),
        "video": str(root / "VideoFlash" / "1002_WSI_SAD_XX.flv"),
        "text": "We'll stop in a couple of minutes.",
        "label": "sad",
        "scripted": True,
        "sentence": "WSI",
        "voice_votes": {"angry": 0, "disgusted": 1, "fearful": 0, "happy": 0, "neutral": 4, "sad": 5},
        "multimodal_votes": {"angry": 0, "disgusted": 0, "fearful": 0, "happy": 0, "neutral": 2, "sad": 9},
    }
    assert row["face_votes"] is None


def test_codes(root):
    expected = {"ANG": "angry", "DIS": "disgusted", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
    write_crema_d(root, *(f"1001_IEO_{code}_XX" for code in expected), video=False)
    assert [row["label"] for row in scan(root).rows] == list(expected.values())
    assert len(SENTENCES) == len(set(SENTENCES.values())) == 12


def test_the_label_may_be_what_was_perceived(root):
    write_crema_d(root, ANGRY, HAPPY, SAD)
    write_summary(root, {ANGRY: ("A", "D", "F"), HAPPY: ("N:H", "H", "H")})
    assert labels(scan(root)) == {ANGRY: "angry", HAPPY: "happy", SAD: "sad"}
    found = scan(root, "voice")
    assert labels(found) == {ANGRY: "angry", HAPPY: None, SAD: None}
    assert found.incomplete == [Skipped(HAPPY, crema_d.TIED), Skipped(SAD, crema_d.NO_VOTES)]
    found = scan(root, "face")
    assert labels(found) == {ANGRY: "disgusted", HAPPY: "happy", SAD: None}
    assert found.incomplete == [Skipped(SAD, crema_d.NO_VOTES)]
    assert labels(scan(root, "multimodal")) == {ANGRY: "fearful", HAPPY: "happy", SAD: None}


def test_without_the_summary_the_tabulated_votes_tell(root):
    write_crema_d(root, ANGRY, HAPPY, SAD)
    write_tabulated(
        root,
        {
            (100001, ANGRY): (5, 5, 0, 0, 1, 1),
            (107443, "ANG_HI_practice"): (9, 0, 0, 0, 0, 0),
            (200001, ANGRY): (2, 6, 0, 0, 1, 0),
            (207442, SAD): (0, 0, 0, 0, 1, 0),
            (300001, ANGRY): (0, 0, 0, 0, 7, 1),
        },
    )
    assert labels(scan(root, "voice")) == {ANGRY: None, HAPPY: None, SAD: None}
    assert labels(scan(root, "face")) == {ANGRY: "disgusted", HAPPY: None, SAD: "neutral"}
    found = scan(root, "multimodal")
    assert labels(found) == {ANGRY: "neutral", HAPPY: None, SAD: None}
    assert found.incomplete == [Skipped(HAPPY, crema_d.NO_VOTES), Skipped(SAD, crema_d.NO_VOTES)]
    assert found.rows[0]["voice_votes"]["disgusted"] == 5


def test_tables_that_are_not_there_or_not_as_published(root):
    write_crema_d(root, ANGRY)
    with pytest.raises(ValueError, match=r"label 'face' needs what raters perceived, .*neither processedResults/summ"):
        scan(root, "face")
    table = write(root / "processedResults" / "summaryTable.csv", "FileName,Vote\nx,A\n")
    with pytest.raises(ValueError, match=r"summaryTable.csv: no column FaceVote \(found: FileName, Vote\)"):
        scan(root, "face")
    table.unlink()
    (root / "VideoDemographics.csv").unlink()
    found = scan(root)
    assert found.rows[0]["gender"] is None
    assert found.incomplete == [Skipped(ANGRY, crema_d.NO_GENDER)]


@pytest.fixture
def odd_tree(root):
    write_crema_d(root, ANGRY, HAPPY, SAD, *KNOWN_BROKEN)
    write(root / "AudioWAV" / "1001_DFA_DIS_XX.wav", wav_bytes(0))  # a header and nothing else
    write(root / "AudioWAV" / "1001_DFA_FEA_XX.wav", b"")
    write(root / "AudioWAV" / "1001_DFA_HAP_XX.wav", POINTER)
    write(root / "AudioWAV" / "1001_DFA_NEU_XX.wav", b"<html>not found</html>")
    write(root / "AudioWAV" / "1001_DFA_SAD_XX.wav", wav_bytes()[:-2000])
    write(root / "AudioWAV" / "1040_ITH_SAD_X.wav", wav_bytes())  # a name that was published once
    write(root / "AudioWAV" / "1001_DFA_CAL_XX.wav", wav_bytes())
    write(root / "AudioWAV" / f"._{ANGRY}.wav", b"Mac OS X")
    write(root / "AudioWAV" / f"{SAD}.wav", POINTER)  # its film is good
    write(root / "VideoFlash" / f"{HAPPY}.flv", POINTER)  # its sound is good
    write(root / "VideoFlash" / "1001_TIE_NEU_XX.flv", b"FLV alone")
    write(root / "copy" / f"{ANGRY}.wav", wav_bytes())
    write(root / "AudioMP3" / f"{ANGRY}.mp3", b"ID3")
    write(root / ".git" / "lfs" / f"{HAPPY}.wav", wav_bytes())
    names = "\n".join([ANGRY, SAD, "1001_DFA_FEA_XX", "1091_WSI_DIS_XX", *KNOWN_BROKEN])
    write(root / "SentenceFilenames.csv", f"Filename\n{names}\n")
    return root


ODD_SKIPS = [
    Skipped("1091_WSI_DIS_XX", crema_d.NOT_IN_COPY),
    Skipped(f"AudioMP3/{ANGRY}.mp3", crema_d.NOT_MEDIA),
    Skipped(f"AudioWAV/._{ANGRY}.wav", crema_d.BAD_NAME),
    Skipped("AudioWAV/1001_DFA_CAL_XX.wav", crema_d.BAD_NAME),
    Skipped("AudioWAV/1001_DFA_DIS_XX.wav", scanning.NO_SAMPLES),
    Skipped("AudioWAV/1001_DFA_FEA_XX.wav", scanning.EMPTY),
    Skipped("AudioWAV/1001_DFA_HAP_XX.wav", scanning.LFS_POINTER),
    Skipped("AudioWAV/1001_DFA_NEU_XX.wav", scanning.NOT_WAV),
    Skipped("AudioWAV/1001_DFA_SAD_XX.wav", scanning.TRUNCATED),
    Skipped(f"AudioWAV/{SAD}.wav", scanning.LFS_POINTER),
    Skipped("AudioWAV/1040_ITH_SAD_X.wav", crema_d.BAD_NAME),
    *(Skipped(f"AudioWAV/{clip}.wav", reason) for clip, reason in KNOWN_BROKEN.items()),
    Skipped("SentenceFilenames.csv", crema_d.NOT_MEDIA),
    Skipped("VideoDemographics.csv", crema_d.NOT_MEDIA),
    Skipped(f"VideoFlash/{HAPPY}.flv", scanning.LFS_POINTER),
    *(Skipped(f"VideoFlash/{clip}.flv", reason) for clip, reason in KNOWN_BROKEN.items()),
    Skipped(f"copy/{ANGRY}.wav", scanning.REPEATED),
]


def test_an_odd_tree_gives_these_rows_and_names_everything_else(odd_tree):
    found = scan(odd_tree)
    assert found.skipped == ODD_SKIPS
    files = {
        row["id"]: [row[kind] and Path(row[kind]).relative_to(odd_tree).as_posix() for kind in ("audio", "video")]
        for row in found.rows
    }
    assert files == {
        ANGRY: [f"AudioWAV/{ANGRY}.wav", f"VideoFlash/{ANGRY}.flv"],
        HAPPY: [f"AudioWAV/{HAPPY}.wav", None],
        "1001_TIE_NEU_XX": ["VideoFlash/1001_TIE_NEU_XX.flv", "VideoFlash/1001_TIE_NEU_XX.flv"],
        SAD: [None, f"VideoFlash/{SAD}.flv"],  # not the film's sound in the damaged wav's place
    }


def test_broken_clips_can_be_had(root):
    write_crema_d(root, *KNOWN_BROKEN)
    with pytest.raises(ValueError, match=r"holds no clip \(10 skipped: 2 known to be broken: a minute"):
        scan(root)
    assert sorted(labels(scan(root, known_broken=True))) == sorted(KNOWN_BROKEN)


def test_order_does_not_depend_on_the_file_system(odd_tree, monkeypatch):
    straight = scan(odd_tree)
    assert [row["id"] for row in straight.rows] == sorted(row["id"] for row in straight.rows)
    disorder(monkeypatch)
    assert scan(odd_tree) == straight


def test_wrong_folders_say_what_was_expected(root, tmp_path):
    with pytest.raises(ValueError, match=r"data_dir .*nowhere.* is not a directory.*AudioWAV/1001_DFA_ANG_XX.wav"):
        scan(tmp_path / "nowhere")
    write(root / "AudioWAV" / f"{ANGRY}.wav", POINTER)
    with pytest.raises(ValueError, match=r"holds no clip \(1 skipped: 1 a pointer of Git LFS.*`git lfs pull` fetches"):
        scan(root)
    with pytest.raises(ValueError, match="label must be one of intended, voice, face, multimodal, got 'heard'"):
        scan(root, "heard")


# The counts


def complete_rows():
    """91 actors, each with 12 neutral clips or fewer and 14 of each other emotion or fewer, as many as published."""
    rows = []
    for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
        broken = [clip for clip in KNOWN_BROKEN if f"_{code}_" in clip]
        ids = broken + [
            f"{actor}_{sentence}_{code}_{level}"
            for level in ("XX", "HI")
            for sentence in SENTENCES
            for actor in range(1001, 1092)
            if f"{actor}_{sentence}_{code}_{level}" not in broken
        ]
        rows += [{"id": clip} for clip in ids[: COUNTS[code]]]
    return rows


def test_counts_add_up_with_or_without_the_broken_clips():
    assert COUNTS["clips"] == 7442 == sum(COUNTS.values()) - 7442
    rows = complete_rows()
    check_counts(rows)
    check_counts([row for row in rows if row["id"] not in KNOWN_BROKEN])


def test_a_copy_of_all_actors_that_lacks_a_clip_is_refused_with_both_numbers():
    rows = [row for row in complete_rows() if row["id"] != "1042_IEO_HAP_XX"]
    with pytest.raises(ValueError, match=r"\(clips: 7442 expected, 7441 found; HAP: 1271 expected, 1270 found\)"):
        check_counts(rows)
    check_counts([row for row in rows if not row["id"].startswith("1091")])  # not all actors: not compared


# The builder


def build(root, tmp_path, **options):
    builder = CremaD(data_dir=str(root), cache_dir=str(tmp_path / "cache"), **options)
    builder.download_and_prepare()
    return builder


def test_prepared_and_streamed_rows_are_the_scanned_ones(odd_tree, tmp_path):
    write_tabulated(odd_tree, {(100001, ANGRY): (5, 4, 0, 0, 1, 1)})
    scanned = scan(odd_tree).rows
    builder = build(odd_tree, tmp_path)
    prepared = builder.as_dataset(split="train").to_list()
    assert prepared == list(builder.as_streaming_dataset(split="train"))
    media = [
        {kind: row[kind] and {"bytes": None, "path": row[kind]} for kind in ("audio", "video")} for row in scanned
    ]
    assert prepared == [row | files for row, files in zip(scanned, media, strict=True)]
    assert prepared[0]["voice_votes"]["angry"] == 5
    assert prepared[1]["voice_votes"] is None
    assert scan(odd_tree).rows == scanned  # building a data set patches this module's os.path, Path and open
    assert builder.MEDIA_MAY_BE_SHARED


def test_labels_reach_the_rows_and_the_cache(root, tmp_path):
    write_crema_d(root, ANGRY)
    write_summary(root, {ANGRY: ("N", "D", "A:D")})
    found = {
        label: build(root, tmp_path, label=label).as_dataset(split="train")[0]["label"] for label in crema_d.LABELS
    }
    assert found == {"intended": "angry", "voice": "neutral", "face": "disgusted", "multimodal": None}
    write_summary(root, {ANGRY: ("S", "D", "A:D")})
    assert build(root, tmp_path, label="voice").as_dataset(split="train")[0]["label"] == "sad"


def test_the_report_and_the_warning_tell_damage_and_ties(odd_tree, tmp_path, caplog):
    write_summary(odd_tree, {ANGRY: ("A:D", "A", "A"), HAPPY: ("N", "H", "H"), SAD: ("S", "S", "S")})
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        builder = build(odd_tree, tmp_path, label="voice")
    (message,) = caplog.messages
    assert message.startswith(
        "CremaD: 4 rows (12 skipped: 1 a clip of SentenceFilenames.csv that is not in the copy, "
    )
    assert message.endswith(f"(2 incomplete: 1 {crema_d.TIED}, 1 {crema_d.NO_VOTES})")
    assert "known to be broken" not in message
    report = json.loads(Path(builder.cache_dir, "report.json").read_text())
    assert report["labels"] == {"neutral": 1, "null": 2, "sad": 1}
    assert report["incomplete"] == {crema_d.TIED: 1, crema_d.NO_VOTES: 1}
    assert {"path": ANGRY, "reason": crema_d.TIED} in report["gaps"]
    assert {"path": f"AudioWAV/{SAD}.wav", "reason": scanning.LFS_POINTER} in report["skips"]


def test_counts_are_a_warning_or_an_error(root, tmp_path, caplog):
    write_crema_d(root, *(f"{actor}_IEO_HAP_HI" for actor in range(1001, 1092)), video=False)
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        build(root, tmp_path)
    assert any("clips: 7442 expected, 95 found" in message for message in caplog.messages)
    with pytest.raises(ValueError, match="ANG: 1271 expected, 0 found"):
        build(root, tmp_path, strict=True)


# The real copy


def test_a_real_copy_has_the_counts_of_the_release(real_data):
    found = scan(real_data("crema_d"))
    assert len({row["speaker"] for row in found.rows}) == crema_d.ACTORS
    check_counts(found.rows)
    assert set(found.skip_counts) <= crema_d.HARMLESS
