"""One's own clips as rows and as a data set: ids, repeats, times, speakers, the builder."""

import json
import logging
import random

import pytest
from own_clips import ids, values, write_records, write_sound, write_text

from mer_hf.data import class_folders, folder_rows, manifests, scanning
from mer_hf.data.folder import Folder, scan
from mer_hf.data.scanning import Skipped


@pytest.fixture
def clips(tmp_path):
    """The folder of the clips; tests put files and a manifest into it."""
    path = tmp_path / "clips"
    path.mkdir()
    return path


FULL_CSV = (
    "File Name,Emotion,Speaker_ID,Transcript,Partition,Start,End,Dialogue,Utterance_ID,Sex,Session,Valence,Arousal,"
    "Dominance,Scripted,Words,Note\r\n"
    'b/2.wav,JOY,bert,"Well, ""yes"".",dev,1.5,2.0,d1,3.0,M,s1,"0,5",-1,n/a,yes,'
    '"[{""word"": ""well"", ""start"": 0.1, ""end"": 0.2, ""score"": 1}]",loud\r\n'
    "a/1.wav,ang,anna,,TRAIN,,,,,female,,,,,no,,\r\n"
)


def test_every_field_of_a_csv(clips):
    for name in ("b/2.wav", "a/1.wav"):
        write_sound(clips / name)
    found = scan(write_text(clips / "metadata.csv", FULL_CSV, "utf-8-sig"))
    assert [values(row) for row in found.rows] == [
        {
            "id": "a/1",
            "corpus": "folder",
            "speaker": "anna",
            "gender": "female",
            "split": "train",
            "audio": str(clips / "a/1.wav"),
            "label": "angry",
            "scripted": False,
        },
        {
            "id": "b/2",
            "corpus": "folder",
            "dialogue_id": "d1",
            "turn": 3,
            "speaker": "bert",
            "gender": "male",
            "session": "s1",
            "split": "validation",
            "start": 1.5,
            "end": 2.0,
            "audio": str(clips / "b/2.wav"),
            "text": 'Well, "yes".',
            "words": [{"word": "well", "start": 0.1, "end": 0.2}],
            "label": "happy",
            "scripted": True,
            "valence": 0.5,
            "arousal": -1.0,
        },
    ]
    assert found.skipped == []
    assert found.incomplete == [Skipped("metadata.csv: column 'Note'", manifests.UNUSED_COLUMN)]


def test_paths_are_relative_to_the_manifest_or_to_media_dir(clips, tmp_path):
    files = [write_sound(tmp_path / name) for name in ("media/x/1.wav", "media/2.wav", "media/3.wav", "other/4.wav")]
    manifest = write_text(
        clips / "m.csv", f"path,label\nx\\1.wav,sad\n./x/../2.wav,sad\n{files[2]},sad\n../other/4.wav,sad\n"
    )
    found = scan(manifest, media_dir=tmp_path / "media")
    assert found.skipped == []
    assert sorted((row["id"], row["audio"]) for row in found.rows) == sorted(
        zip(["x/1", "2", "3", "../other/4"], map(str, files), strict=True)
    )
    write_text(manifest, "path,label\na.wav,sad\nb.wav,sad\nc.wav,weird\n")
    with pytest.raises(
        ValueError, match=r"none of its 3 clips can be used \(3 skipped: 2 the file is.* media_dir= says"
    ):
        scan(manifest)
    with pytest.raises(ValueError, match=r"media_dir .*nowhere' is not a directory"):
        scan(manifest, media_dir=tmp_path / "nowhere")


def test_ids_are_unique_and_given_ones_kept(clips):
    for name in ("a/1.wav", "a/1.flac", "b/1.wav", "c.wav"):
        write_sound(clips / name)
    lines = ["path,id", "a/1.wav,", "a/1.flac,", "b/1.wav,mine", "c.wav,mine", "./b/../b/1.wav,again"]
    found = scan(write_text(clips / "m.csv", "\n".join(lines)))
    assert ids(found) == ["a/1.flac", "a/1.wav", "mine"]
    assert found.rows[2]["audio"] == str(clips / "b/1.wav")
    assert found.skipped == [
        Skipped("m.csv:5", folder_rows.REPEATED_ID),
        Skipped("m.csv:6", folder_rows.REPEATED_FILE),
    ]


def test_a_column_can_name_the_corpus(clips):
    manifest = write_text(clips / "m.csv", "id,text,source\na,Hi.,radio\nb,Hi.,\n")
    found = scan(manifest, columns={"corpus": "source"}, corpus="mine")
    assert [row["corpus"] for row in found.rows] == ["radio", "mine"]


def test_order_of_the_manifest_does_not_matter(clips):
    records = [{"path": f"{n}.wav", "text": f"t{n}", "label": "sad"} for n in range(12)]
    records += [{"path": "", "text": text, "label": "joy"} for text in ("Yes.", "No.", "No.", "Well.")]
    for n in range(12):
        write_sound(clips / f"{n}.wav", 0.1)
    straight = scan(write_records(clips / "m.jsonl", records))
    assert len(straight.rows) == len(set(ids(straight))) == 16
    assert ids(straight) == sorted(ids(straight))
    random.Random(1).shuffle(records)
    assert scan(write_records(clips / "m.jsonl", records)).rows == straight.rows


def test_parts_of_a_recording_are_refused_with_the_remedy(clips):
    write_sound(clips / "talk.wav", 5.0)
    text = "path,label,start,end\ntalk.wav,sad,0,2\n./talk.wav,joy,2,4.5\n"
    with pytest.raises(ValueError, match=r"m\.csv:3: 'talk\.wav' is a recording .*-i talk\.wav -ss 2 -to 4\.5 part"):
        scan(write_text(clips / "m.csv", text), check_media=False)


def test_a_file_twice_of_which_no_parts_are_named_is_a_repeat(clips):
    """A table's n/a is no time."""
    write_sound(clips / "a.wav")
    found = scan(write_text(clips / "m.csv", "path,start,end\na.wav,n/a,NA\na.wav,0,0.5\na.wav,nan,none\n"))
    assert (ids(found), found.incomplete) == (["a"], [])
    assert found.skipped == [Skipped(f"m.csv:{line}", folder_rows.REPEATED_FILE) for line in (3, 4)]


def test_start_and_end_place_a_clip_that_was_cut(clips):
    """A recording that only one row takes a part of is told by its length."""
    write_sound(clips / "cut.wav", 2.0), write_sound(clips / "early.wav", 2.5), write_sound(clips / "whole.wav", 9.0)
    write_sound(clips / "long.wav", 4.0)
    text = "path,label,start,end\ncut.wav,sad,60,62\nlong.wav,sad,70,71\nearly.wav,sad,0.2,2.2\nwhole.wav,sad,2,4\n"
    found = scan(write_text(clips / "m.csv", text))
    assert [(row["id"], row["start"], row["end"]) for row in found.rows] == [
        ("cut", 60, 62),
        ("early", 0.2, 2.2),
        ("long", 70, 71),
    ]
    assert found.skipped == [Skipped("m.csv:5", folder_rows.NOT_CUT)]


def test_words_are_relative_to_the_clip(clips):
    write_sound(clips / "1.wav", 1.0)
    record = {"path": "1.wav", "label": "sad", "words": [{"word": "no", "start": 61.0, "end": 61.5}]}
    found = scan(write_records(clips / "m.jsonl", [record]))
    assert found.rows[0]["words"] is None
    assert found.incomplete == [Skipped("m.jsonl:1", folder_rows.WORDS_BEYOND)]


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

0
1
<exists>
1
"IntervalTier"
"words"
0
1
2
0
0.25
""
0.25
1
"hello"
"""


def test_words_from_files(clips):
    write_text(clips / "1.TextGrid", TEXTGRID)
    write_text(clips / "2.wdseg", "SFrm EFrm SegAScr Word\n0 9 -1 <s>\n10 29 -1 WHAT(2)\n30 40 -1 </s>\n")
    write_text(clips / "3.TextGrid", "no")
    names = ["1.TextGrid", "2.wdseg", "3.TextGrid", "4.TextGrid", ""]
    lines = [f"{n},Hi.,{name}" for n, name in enumerate(names, 1)]
    found = scan(write_text(clips / "m.csv", "\n".join(["id,text,TextGrid", *lines])))
    assert [row["words"] for row in found.rows] == [
        [{"word": "hello", "start": 0.25, "end": 1.0}],
        [{"word": "what", "start": 0.1, "end": 0.3}],
        None,
        None,
        None,
    ]
    assert found.incomplete == [Skipped(f"m.csv:{n}", folder_rows.BAD_WORD_TIMES) for n in (4, 5)]
    manifest = write_text(clips / "m.csv", "text,words,textgrid\nHi.,,1.TextGrid\n")
    with pytest.raises(ValueError, match="words and word_times both give words"):
        scan(manifest)
    assert scan(manifest, columns={"words": ""}).rows[0]["words"][0]["word"] == "hello"


def test_speakers_from_paths(clips):
    for name in ("happy/anna_01.wav", "sad/bert_02.wav", "sad/003.wav"):
        write_sound(clips / name)
    assert {row["speaker"] for row in scan(clips).rows} == {None}
    found = scan(clips, speaker_from=r"/([a-z]+)_\d+")
    assert {row["id"]: row["speaker"] for row in found.rows} == {
        "happy/anna_01": "anna",
        "sad/003": None,
        "sad/bert_02": "bert",
    }
    assert found.incomplete == [Skipped("sad/003.wav", folder_rows.NO_SPEAKER)]
    assert scan(clips, speaker_from=r"/([a-z]*)_?\d").rows == found.rows  # nobody is called ""
    assert {row["speaker"] for row in scan(clips, speaker_from=r"^([a-z]+)/").rows} == {"happy", "sad"}
    with pytest.raises(ValueError, match=r"speaker_from '\(' is no regular expression"):
        scan(clips, speaker_from="(")
    with pytest.raises(ValueError, match="has no group"):
        scan(clips, speaker_from="a+")
    manifest = write_text(clips / "m.csv", "path,speaker,label\nhappy/anna_01.wav,x,joy\n,y,joy\n")
    with pytest.raises(ValueError, match="both name the speaker"):
        scan(manifest, speaker_from="(a+)")
    found = scan(manifest, columns={"speaker": ""}, speaker_from=r"([a-z]+)_\d+")
    assert [row["speaker"] for row in found.rows] == ["anna"]
    assert found.skipped == [Skipped("m.csv:3", folder_rows.NOTHING)]


def test_wrong_folders_say_what_was_expected(clips, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' is neither a folder nor a file. Expected a manifest .*happy/001"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="data_dir None is neither"):
        Folder(cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"holds no clip\. Expected"):
        scan(clips)
    write_sound(clips / "mad/1.wav"), write_sound(clips / "glad/1.wav")
    with pytest.raises(ValueError, match=r"'glad' \(1\), 'mad' \(1\)\. Map them"):
        scan(clips)
    for name, value in (("columns", {"audio": "path"}), ("media_dir", str(clips))):
        with pytest.raises(ValueError, match=f"{name} belongs to a manifest, but data_dir"):
            scan(clips, **{name: value})


def build(data_dir, tmp_path, **options):
    builder = Folder(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"), **options)
    builder.download_and_prepare()
    return builder


def test_prepared_and_streamed_rows_are_the_scanned_ones(clips, tmp_path):
    for name in ("b/2.wav", "a/1.wav"):
        write_sound(clips / name)
    write_text(clips / "metadata.csv", FULL_CSV.replace("Emotion", "mood"))
    options = {"columns": {"label": "mood"}, "labels": {"joy": "excited"}, "corpus": "mine"}
    scanned = scan(clips, **options).rows
    builder = build(clips, tmp_path, **options)
    for side, row in zip(("train", "validation"), scanned, strict=True):
        prepared = builder.as_dataset(split=side).to_list()
        assert prepared == list(builder.as_streaming_dataset(split=side))
        assert prepared == [row | {"audio": {"bytes": None, "path": row["audio"]}}]
    assert (scanned[1]["label"], scanned[1]["corpus"]) == ("excited", "mine")
    assert scan(clips, **options).rows == scanned  # building a data set patches this module's os.path, Path and open


def test_class_folders_as_a_data_set(clips, tmp_path, caplog):
    write_sound(clips / "happy/1.wav"), write_sound(clips / "sad/2.wav"), write_text(clips / "sad/2.txt", "x")
    with caplog.at_level(logging.WARNING, logger=scanning.__name__):
        builder = build(clips, tmp_path, speaker_from=r"(\d)\.")
        assert caplog.messages == []
        (clips / "sad/3.wav").touch()
        write_sound(clips / "sad/x.wav")
        changed = build(clips, tmp_path, speaker_from=r"(\d)\.")
    assert caplog.messages == [
        "Folder: 3 rows (1 skipped: 1 zero bytes) (1 incomplete: 1 speaker_from finds no speaker in the path)"
    ]
    assert builder.as_dataset(split="train")["speaker"][:] == ["1", "2"]
    assert changed.as_dataset(split="train")["speaker"][:] == ["1", "2", None]
    report = json.loads(next((tmp_path / "cache").rglob("report.json")).read_text())
    assert {"path": "sad/2.txt", "reason": class_folders.NOT_MEDIA} in report["skips"]


def test_options_reach_the_cache(clips, tmp_path):
    manifest = write_text(clips / "m.csv", "text,label\nHi.,mad\nNo.,sad\n")
    assert build(manifest, tmp_path).as_dataset(split="train")["label"][:] == ["sad"]
    mapped = build(manifest, tmp_path, labels={"mad": "angry"})
    assert sorted(mapped.as_dataset(split="train")["label"]) == ["angry", "sad"]
