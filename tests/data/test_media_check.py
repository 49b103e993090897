"""Sound and video files, good and broken, as the folder corpus takes them."""

import random

import av
import pytest
from own_clips import cut, ids, write_records, write_sound, write_text, write_video

from mer_hf.data import folder_rows, media_check, scanning
from mer_hf.data.folder import scan
from mer_hf.data.scanning import Skipped


@pytest.fixture
def clips(tmp_path):
    """The folder of the clips; tests put files and a manifest into it."""
    path = tmp_path / "clips"
    path.mkdir()
    return path


def test_a_video_is_both_or_what_it_holds(clips):
    write_video(clips / "both.mp4"), write_video(clips / "silent.MKV", sound=False)
    write_video(clips / "sound.webm", pictures=False), write_sound(clips / "wav.wav", 1.0)
    lines = ["audio,video,label", "both.mp4,,sad", "silent.MKV,,sad", "sound.webm,,sad", "wav.wav,silent.MKV,sad"]
    lines += [",both.mp4,sad", "wav.wav,sound.webm,sad"]
    found = scan(write_text(clips / "m.csv", "\n".join(lines)))
    assert [(row["audio"], row["video"]) for row in found.rows] == [
        (str(clips / "both.mp4"), str(clips / "both.mp4")),
        (None, str(clips / "silent.MKV")),
        (str(clips / "sound.webm"), None),
        (str(clips / "wav.wav"), str(clips / "silent.MKV")),
    ]
    assert found.skipped == [
        Skipped("m.csv:6", folder_rows.REPEATED_FILE),
        Skipped("m.csv:7", media_check.NO_PICTURES),
    ]
    unchecked = scan(clips, check_media=False)
    assert (unchecked.rows[1]["audio"], unchecked.rows[1]["video"]) == (str(clips / "silent.MKV"),) * 2


def test_other_sound_files(clips):
    names = ["a.flac", "b.ogg", "c.mp3", "d.aiff"]
    for name in names:
        write_sound(clips / name)
    found = scan(write_text(clips / "m.csv", "\n".join(["path", *names])))
    assert [row["audio"] for row in found.rows] == [str(clips / name) for name in names]


def test_files_that_cannot_be_used_are_placed_and_counted(clips, tmp_path):
    write_sound(clips / "good.wav")
    (clips / "empty.wav").touch()
    (clips / "link.wav").symlink_to(tmp_path / "gone.wav")
    (clips / "folder.wav").mkdir()
    write_sound(clips / "none.wav", seconds=0)
    for name in ("garbage.wav", "garbage.mp3", "garbage.mp4"):
        (clips / name).write_bytes(random.Random(0).randbytes(5000))
    (clips / "lfs.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for name in ("cut.wav", "cut.flac", "cut.ogg"):
        cut(write_sound(clips / name, 20.0), 0.5)
    for name in ("cut.mp4", "cut.webm"):
        cut(write_video(clips / name, seconds=3.0), 0.6)
    expected = {
        "gone.wav": scanning.NO_FILE,
        "folder.wav": scanning.NO_FILE,
        "link.wav": scanning.BROKEN_LINK,
        "empty.wav": scanning.EMPTY,
        "none.wav": media_check.NO_SOUND,
        "garbage.wav": media_check.CORRUPT,
        "garbage.mp3": media_check.CORRUPT,
        "garbage.mp4": media_check.CORRUPT,
        "lfs.wav": scanning.LFS_POINTER,
        "cut.wav": scanning.TRUNCATED,
        "cut.flac": scanning.TRUNCATED,
        "cut.ogg": scanning.TRUNCATED,
        "cut.mp4": media_check.CORRUPT,  # its table of contents stood at the end
        "cut.webm": scanning.TRUNCATED,
        "with\0null.wav": scanning.NO_FILE,
    }
    records = [{"path": name, "label": "sad"} for name in ["good.wav", *expected]]
    found = scan(write_records(clips / "m.jsonl", records))
    assert ids(found) == ["good"]
    lines = range(3, 3 + 2 * len(expected), 2)
    placed = [Skipped(f"m.jsonl:{n}", why) for n, why in zip(lines, expected.values(), strict=True)]
    assert found.skipped == placed
    assert found.report()["skipped"][scanning.TRUNCATED] == 4
    usable = [str(clips / n) for n, why in expected.items() if why not in (scanning.NO_FILE, scanning.BROKEN_LINK)]
    unchecked = scan(clips, check_media=False)
    assert {row["audio"] for row in unchecked.rows} == {str(clips / "good.wav"), *usable} - {str(clips / "empty.wav")}


def spoil(path, kind):
    """Overwrite every packet of a stream; the file stays as long as its header says."""
    data = bytearray(path.read_bytes())
    with av.open(path) as container:
        for packet in container.demux():
            if packet.stream.type == kind and packet.size:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_stream_that_cannot_be_decoded_is_found(clips, kind):
    spoil(write_video(clips / "sad/1.mp4"), kind)
    write_video(clips / "sad/2.mp4")
    found = scan(clips)
    assert (ids(found), found.skipped) == (["sad/2"], [Skipped("sad/1.mp4", media_check.CORRUPT)])


def test_a_sound_track_that_holds_nothing_is_found(clips):
    """Its pictures are whole; it is `load_audio` that would fail."""
    write_video(clips / "sad/2.webm")
    with av.open(clips / "sad/1.webm", "w") as container:
        video = container.add_stream("libvpx", rate=10, width=64, height=48, pix_fmt="yuv420p")
        container.add_stream("libopus", rate=48_000, layout="mono")
        container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode())
    found = scan(clips)
    assert (ids(found), found.skipped) == (["sad/2"], [Skipped("sad/1.webm", media_check.CORRUPT)])


def test_a_file_that_was_repaired_is_read_again(clips):
    manifest = write_text(clips / "m.csv", "path,text\na.wav,Hi.\nb.wav,Hi.\n")
    write_sound(clips / "b.wav")
    cut(write_sound(clips / "a.wav"), 0.5)
    assert ids(scan(manifest)) == ["b"]
    write_sound(clips / "a.wav")
    assert ids(scan(manifest)) == ["a", "b"]
    cut(clips / "a.wav", 0.5)
    assert ids(scan(manifest)) == ["b"]


def test_real_clips_are_all_opened(real_data, ravdess_dir, tmp_path):
    files = sorted(path for path in ravdess_dir.rglob("Actor_*/*.*") if path.suffix in (".wav", ".mp4"))
    codes = dict(zip(("01", "02", "03", "05"), ("neutral", "calm", "happy", "angry"), strict=True))
    records = [{"path": str(path), "label": path.name.split("-")[2]} for path in files]
    manifest = write_records(tmp_path / "m.jsonl", records)
    found = scan(manifest, labels=codes, media_dir=ravdess_dir, speaker_from=r"-(\d\d)\.\w+$")
    assert len(found.rows) == sum(record["label"] in codes for record in records)
    assert set(found.skip_counts) == {f"label '{code}' is not known" for code in ("04", "06", "07", "08")}
    assert {row["speaker"] for row in found.rows} == {path.parent.name[-2:] for path in files}
