"""Clips in folders named by emotion."""

import os

import pytest
from own_clips import ids, values, write_sound, write_text, write_video

from mer_hf.data import class_folders, folder_rows, scanning
from mer_hf.data.folder import scan
from mer_hf.data.scanning import Skipped


@pytest.fixture
def clips(tmp_path):
    """The folder of the clips; tests put files and a manifest into it."""
    path = tmp_path / "clips"
    path.mkdir()
    return path


def test_class_folders(clips):
    for name in ("happy/001.wav", "Anger/x/y.WAV", "joy/001.wav", "weird/1.wav", "loose.wav", "happy/.1.wav"):
        write_sound(clips / name)
    write_video(clips / "joy/001.mp4"), write_video(clips / "sad/2.mp4"), write_video(clips / "weird/1.mp4")
    write_text(clips / "happy/notes.txt", "x"), write_text(clips / "README.md", "x")
    found = scan(clips)
    assert [values(row) for row in found.rows] == [
        {"id": "Anger/x/y", "corpus": "folder", "audio": str(clips / "Anger/x/y.WAV"), "label": "angry"},
        {"id": "happy/001", "corpus": "folder", "audio": str(clips / "happy/001.wav"), "label": "happy"},
        {
            "id": "joy/001",
            "corpus": "folder",
            "audio": str(clips / "joy/001.wav"),
            "video": str(clips / "joy/001.mp4"),
            "label": "happy",
        },
        {
            "id": "sad/2",
            "corpus": "folder",
            "audio": str(clips / "sad/2.mp4"),
            "video": str(clips / "sad/2.mp4"),
            "label": "sad",
        },
    ]
    assert found.skipped == [
        Skipped("README.md", class_folders.NOT_MEDIA),
        Skipped("happy/.1.wav", class_folders.HIDDEN),
        Skipped("happy/notes.txt", class_folders.NOT_MEDIA),
        Skipped("loose.wav", class_folders.NO_CLASS),
        Skipped("weird/1.wav", "label 'weird' is not known"),
    ]


def test_class_folders_by_split(clips):
    for name in ("train/happy/1.wav", "dev/sad/1.wav", "Test/joy/deep/1.wav", "angry/1.wav", "train/1.wav"):
        write_sound(clips / name)
    found = scan(clips)
    assert [(row["id"], row["split"], row["label"]) for row in found.rows] == [
        ("Test/joy/deep/1", "test", "happy"),
        ("dev/sad/1", "validation", "sad"),
        ("train/happy/1", "train", "happy"),
    ]
    assert found.skipped == [
        Skipped("angry/1.wav", folder_rows.NO_SPLIT),
        Skipped("train/1.wav", class_folders.NO_CLASS),
    ]


def test_order_does_not_depend_on_the_file_system(clips, monkeypatch):
    for name in ("sad/b/1.wav", "sad/a/2.wav", "happy/3.wav", "happy/3.flac", "angry/1.txt"):
        write_sound(clips / name) if name[-3:] != "txt" else (clips / "angry").mkdir()
    straight = scan(clips)
    walk = os.walk
    monkeypatch.setattr(
        scanning.os, "walk", lambda *args, **kw: [(d, f, n[::-1]) for d, f, n in reversed(list(walk(*args, **kw)))]
    )
    assert scan(clips) == straight
    assert ids(straight) == ["happy/3.flac", "happy/3.wav", "sad/a/2", "sad/b/1"]


def test_names_that_are_not_utf8_are_told(clips):
    """Old archives unpack so; neither Arrow nor JSON can store such a name."""
    write_sound(clips / "sad/1.wav")
    os.rename(os.fsencode(clips / "sad/1.wav"), os.fsencode(clips / "sad") + b"/\xe9.wav")
    write_sound(clips / "sad/2.wav")
    found = scan(clips)
    assert ids(found) == ["sad/2"]
    assert found.skipped == [Skipped("sad/\\udce9.wav", class_folders.BAD_NAME)]
    found.write_report(clips / "report.json")


def test_a_sound_and_a_video_of_one_name_are_one_clip_and_no_others(clips):
    for name in ("sad/1.wav", "sad/2.wav", "sad/2.flac", "sad/x/1.wav"):
        write_sound(clips / name)
    for name in ("sad/1.mp4", "sad/2.mp4", "happy/1.mp4"):
        write_video(clips / name, sound=name == "sad/2.mp4")
    found = scan(clips)
    assert [(row["id"], row["audio"], row["video"]) for row in found.rows] == [
        ("happy/1", None, str(clips / "happy/1.mp4")),
        ("sad/1", str(clips / "sad/1.wav"), str(clips / "sad/1.mp4")),
        ("sad/2.flac", str(clips / "sad/2.flac"), None),
        ("sad/2.mp4", str(clips / "sad/2.mp4"), str(clips / "sad/2.mp4")),
        ("sad/2.wav", str(clips / "sad/2.wav"), None),
        ("sad/x/1", str(clips / "sad/x/1.wav"), None),
    ]
