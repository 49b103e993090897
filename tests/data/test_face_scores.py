"""Face tracks: read by hand-made files, damaged ones included, and from the published file where there is one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mer_hf.data.face_scores import FACE_EMOTIONS, load_face_scores


def write_scores(path, rows, drop=()):
    """rows: (clip, frame, emotion that gets 0.4 - the others get 0.1 each)."""
    columns = {"clip": [clip for clip, _, _ in rows], "frame": pa.array([frame for _, frame, _ in rows], pa.int16())}
    for name in ("neutral", "surprised", "angry", "disgust", "fearful", "happy", "sad"):  # not the order we read in
        scores = [top if isinstance(top, float) else 0.4 if top == name else 0.1 for _, _, top in rows]
        columns[name] = pa.array(scores, pa.float32())
    pq.write_table(pa.table({name: column for name, column in columns.items() if name not in drop}), path)
    return path


def test_face_scores_by_hand(tmp_path):
    path = write_scores(
        tmp_path / "s.parquet",
        [
            ("01-01-01-01-01-01-01", 26, "disgust"),
            ("01-01-01-01-01-01-01", 30, "neutral"),
            ("01-01-02-01-01-01-01", 60, "sad"),
        ],
    )
    faces = load_face_scores(path)
    track = faces.get("01-01-01-01-01-01")
    assert [FACE_EMOTIONS[i] for i in track.scores.argmax(1)] == ["disgusted", "neutral"]
    assert track.scores.shape == (2, 7)
    assert track.times == pytest.approx([26 * 1001 / 30000, 30 * 1001 / 30000])  # the gap stays a gap
    assert (track.scores.dtype, track.times.dtype) == (np.float32, np.float32)
    assert faces.dropped == {}
    ids = ["01-01-01-01-01-01", "01-03-01-01-01-01"]
    assert faces.get(ids[1]) is None
    assert faces.missing(ids) == [ids[1]]
    assert faces.unused(ids) == ["01-02-01-01-01-01"]


def test_damaged_face_scores_are_dropped_and_counted(tmp_path):
    clip, lost = "01-01-01-01-01-01-01", "01-01-02-01-01-01-01"
    path = write_scores(
        tmp_path / "s.parquet",
        [
            (clip, 28, "sad"),
            (clip, 26, "happy"),
            (clip, 26, "angry"),  # the first one of a frame stays
            (clip, 27, float("nan")),
            (clip, 29, 1.5),
            (clip, -1, "sad"),
            (clip, None, "sad"),
            (lost, 26, float("nan")),
            ("02-01-01-01-01-01-01", 26, "sad"),  # the silent video
            ("holiday", 26, "sad"),
            ("01-01-01-01-01-01-01-x", 26, "sad"),
            (None, 26, "sad"),
        ],
    )
    faces = load_face_scores(path)
    assert [FACE_EMOTIONS[i] for i in faces.get(clip[3:]).scores.argmax(1)] == ["happy", "sad"]
    assert faces.get(clip[3:]).times * 30000 / 1001 == pytest.approx([26, 28])
    assert faces.get(lost[3:]) is None  # nothing is left: absent, not zeros
    assert faces.dropped == {
        "rows of a clip that is not a full RAVDESS video": 4,
        "rows with a negative or null frame": 2,
        "rows with a score outside [0, 1]": 3,
        "rows that repeat a frame": 1,
        "clips with frames out of order (sorted)": 1,
    }


def test_face_scores_without_a_column_are_refused(tmp_path):
    path = write_scores(tmp_path / "s.parquet", [("01-01-01-01-01-01-01", 26, "sad")], drop=("disgust",))
    with pytest.raises(ValueError, match=r"lack the column\(s\) disgust; found clip, frame"):
        load_face_scores(path)


def test_real_face_scores_join_every_clip(ravdess_dir):
    path = ravdess_dir / "face_scores.parquet"
    if not path.is_file():
        pytest.skip("no face_scores.parquet beside the clips")
    faces = load_face_scores(path)
    wavs = {path.stem.removeprefix("03-"): path for path in ravdess_dir.rglob("03-01-*.wav")}
    assert (faces.dropped, faces.missing(wavs), faces.unused(wavs)) == ({}, [], [])
    for clip_id, track in faces.tracks.items():
        assert track.scores.sum(1) == pytest.approx(1, abs=1e-5), clip_id
        assert (np.diff(track.times) > 0).all(), clip_id
    lengths = {clip_id: soundfile.info(path).duration for clip_id, path in wavs.items()}
    # The scorer left out the first 26 frames and about as many at the end.
    assert all(0.4 < lengths[i] - track.times[-1] < 1.3 for i, track in faces.tracks.items())


def test_what_is_no_parquet_is_refused_by_its_name(tmp_path):
    file = tmp_path / "faces.csv"
    file.write_text("clip,frame\n")
    with pytest.raises(ValueError, match=r"face_scores .*faces.csv' is no Parquet file"):
        load_face_scores(file)
