"""Media in every form a user may hand over, and every broken form that must not pass for a shorter clip."""

import io
import os
import struct
import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch

from mer_hf.models.media import (
    MediaError,
    NoStreamError,
    crop_face,
    is_silent,
    load_audio,
    load_frames,
    loudest_db,
    resample,
)

RATE = 16_000


def tone(seconds=2.0, rate=RATE, hertz=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def loudest_hertz(audio, rate=RATE):
    return np.abs(np.fft.rfft(audio)).argmax() * rate / len(audio)


def encode_audio(container, stream, samples, rate=RATE):
    codec = stream.codec_context
    to_codec = av.AudioResampler(codec.format.name, "mono", codec.rate, frame_size=codec.frame_size or 576)
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    for block in [*to_codec.resample(frame), *to_codec.resample(None), None]:
        container.mux(stream.encode(block))


def grey_frames(count, height=48, width=64):
    """Frame i is grey of level 5 * i."""
    return [np.full((height, width, 3), 5 * i, np.uint8) for i in range(count)]


def write_media(path, frames=(), samples=None, video="libx264", audio="aac", fps=25, first_pts=0, options=None):
    """A container with a video of `frames` and a sound track of `samples` at 16 kHz, either of which may be absent."""
    with av.open(str(path), "w", options=options or {}) as container:
        pictures = sound = None
        if len(frames):
            pictures = container.add_stream(video, rate=fps)
            pictures.height, pictures.width = frames[0].shape[:2]
            pictures.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
        if samples is not None:
            sound = container.add_stream(audio, rate=48_000 if audio == "libopus" else RATE, layout="mono")
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = first_pts + index
            container.mux(pictures.encode(frame))
        if pictures:
            container.mux(pictures.encode(None))
        if sound:
            encode_audio(container, sound, samples)
    return path


def write_sound(path, samples):
    """A sound file of any kind, by its suffix."""
    codecs = {".mp3": "libmp3lame", ".m4a": "aac", ".webm": "libopus", ".mkv": "aac"}
    if path.suffix in codecs:
        return write_media(path, samples=samples, audio=codecs[path.suffix])
    soundfile.write(path, samples, RATE)
    return path


def cut(path, share=0.6):
    """A copy of a file that ends early."""
    data = path.read_bytes()
    shorter = path.with_name("cut_" + path.name)
    shorter.write_bytes(data[: int(len(data) * share)])
    return shorter


# -- Audio: what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".m4a", ".webm", ".mkv"])
def test_every_format_gives_the_sound_that_went_in(tmp_path, suffix):
    audio = load_audio(write_sound(tmp_path / f"clip{suffix}", tone()))
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert len(audio) / RATE == pytest.approx(2.0, abs=0.15)  # AAC pads
    assert loudest_hertz(audio) == pytest.approx(440, abs=2)
    assert np.abs(audio[RATE // 2 : RATE]).max() == pytest.approx(0.5, abs=0.05)


def test_wav_samples_come_back_unchanged(tmp_path):
    samples = np.array([0.0, 0.25, -0.5, 0.75, -1.0], np.float32)
    soundfile.write(tmp_path / "clip.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "clip.wav"), samples)


def test_the_sound_track_of_a_video(tmp_path):
    audio = load_audio(write_media(tmp_path / "clip.mp4", grey_frames(50), tone()))
    assert loudest_hertz(audio) == pytest.approx(440, abs=2)


def test_path_string_bytes_and_datasets_dicts_are_one_source(tmp_path):
    path = write_sound(tmp_path / "clip.wav", tone(0.1))
    data = path.read_bytes()
    sources = [
        str(path),
        data,
        bytearray(data),
        {"path": str(path), "bytes": None},
        {"path": "gone.wav", "bytes": data},
    ]
    for source in sources:
        np.testing.assert_array_equal(load_audio(source), load_audio(path))


@pytest.mark.parametrize("suffix", [".mp3", ".webm"])
def test_bytes_need_no_name_to_tell_their_format(tmp_path, suffix):
    path = write_sound(tmp_path / f"clip{suffix}", tone(0.5))
    np.testing.assert_array_equal(load_audio(path.read_bytes()), load_audio(path))
    misnamed = tmp_path / "clip.wav"
    misnamed.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(load_audio(misnamed), load_audio(path))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0.5, -0.25, 0.0]), [0.5, -0.25, 0.0]),
        (np.array([16384, -32768, 0], np.int16), [0.5, -1.0, 0.0]),
        (np.array([2**30, -(2**31), 0], np.int32), [0.5, -1.0, 0.0]),
        (np.array([192, 0, 128], np.uint8), [0.5, -1.0, 0.0]),
        (np.array([[0.5, 0.1, 0.2], [-0.1, 0.3, 0.2]]), [0.2, 0.2, 0.2]),
        (np.array([[0.5, -0.1], [0.1, 0.3], [0.2, 0.2]]), [0.2, 0.2, 0.2]),
        (torch.tensor([0.5, -0.25], requires_grad=True), [0.5, -0.25]),
        (torch.tensor([0.5, -0.25], dtype=torch.bfloat16), [0.5, -0.25]),
        (torch.tensor([16384, 0], dtype=torch.int16), [0.5, 0.0]),
        (np.array([1.5, -1.25, 0.5]), [1.0, -1.0, 0.5]),  # decoded mp3 overshoots
    ],
)
def test_arrays(array, expected):
    for source in ((array, RATE), {"array": array, "sampling_rate": RATE}, (array, float(RATE))):
        audio = load_audio(source)
        assert audio.dtype == np.float32
        np.testing.assert_allclose(audio, expected, atol=1e-7)


def test_silence_is_what_nothing_stands_out_of():
    hiss = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert is_silent(np.zeros(RATE)) and is_silent(np.zeros(0)) and is_silent(10 ** (-70 / 20) * hiss)
    assert not is_silent(10 ** (-50 / 20) * hiss)
    click = np.zeros(RATE)
    click[5000:5200] = 0.1  # 12 ms
    assert not is_silent(click)
    assert loudest_db(np.full(2 * RATE, 0.1), 2 * RATE) == pytest.approx(-20)
    assert loudest_db(np.concatenate([np.zeros(800), np.full(80, 0.1)])) == pytest.approx(
        -23, abs=0.02
    )  # a rest counts


def test_stereo_file_is_averaged(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.array([[0.5, -0.1]] * 100), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "clip.wav"), np.full(100, 0.2), atol=1e-6)


# -- Resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 44_101, 48_000])
def test_resampling_keeps_what_the_new_rate_can_hold(rate):
    audio = load_audio((tone(2.0, rate, 1000), rate))
    ideal = tone(2.0, RATE, 1000)
    assert abs(len(audio) - len(ideal)) <= 1
    inner = slice(1000, len(ideal) - 1000)
    np.testing.assert_allclose(audio[inner], ideal[inner], atol=2e-3)  # 44101 Hz drifts by under 1 ppm


def test_resampling_folds_nothing_back():
    audio = resample(tone(1.0, 48_000, 10_000), 48_000, RATE)
    assert np.abs(audio[500:-500]).max() < 1e-4


def test_another_rate_can_be_asked_for():
    audio = load_audio((tone(1.0), RATE), sampling_rate=8_000)
    assert len(audio) == 8_000 and loudest_hertz(audio, 8_000) == pytest.approx(440, abs=2)


def test_resampling_does_not_leave_the_range():
    square = np.sign(tone(1.0, 48_000, 300)).astype(np.float32)
    assert np.abs(resample(square, 48_000, RATE)).max() > 1.01  # the ringing that load_audio clips
    assert np.abs(load_audio((square, 48_000))).max() == 1.0


# -- Audio: what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(10), r"bare ndarray without a rate; pass \(array, rate\)"),
        (torch.zeros(10), "bare Tensor without a rate"),
        ([0.0, 0.1], "bare list without a rate"),
        ((RATE, np.zeros(10)), r"found \(rate, array\); pass \(array, rate\)"),
        ({"array": np.zeros(10)}, "the rate is None"),
        ((np.zeros(10), 16_000.5), "the rate is 16000.5"),
        ((np.zeros(10), 16), "16 Hz is no audio rate"),
        ((np.zeros(10), 16_000_000), "16000000 Hz is no audio rate"),
        ((np.zeros(10, np.int64), RATE), "dtype int64"),
        ((np.zeros((2, 2, 2)), RATE), r"shape \(2, 2, 2\)"),
        ((np.zeros((40, 50)), RATE), r"shape \(40, 50\)"),
        ((np.zeros(0), RATE), "holds no samples"),
        ((np.array([0.0, np.nan, np.inf]), RATE), "2 samples are NaN or infinite"),
        ((np.array([0.0, 12_000.0]), RATE), "reach 12000, .* divide 16-bit values by 32768"),
        (b"", "bytes: holds no bytes"),
        (b"no sound here, only words" * 50, "bytes: not a readable media file"),
        (None, "found a NoneType"),
        ({"path": None, "bytes": None}, "without path and bytes"),
        ("gone.wav", "gone.wav: no such file"),
        ("https://example.org/clip.wav", "no such file.*downloaded"),
    ],
)
def test_what_is_no_audio_is_refused_in_one_line(source, message):
    with pytest.raises(MediaError, match=message) as caught:
        load_audio(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_audio, load_frames])
def test_files_that_hold_no_media_are_named(tmp_path, load):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("speech is silver\n" * 100)
    (tmp_path / "list.wav").write_text("#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1/clip.wav\n#EXT-X-ENDLIST\n")
    for name, message in [
        ("empty.wav", "holds no bytes"),
        ("text.wav", "not a readable"),
        ("list.wav", "not a readable"),
    ]:
        with pytest.raises(MediaError, match=f"{name}: {message}"):
            load(tmp_path / name)
    with pytest.raises(MediaError, match="is a directory"):
        load(tmp_path)


def test_nan_in_a_file_is_refused(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.array([0.0, np.nan], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"clip.wav: 1 samples are NaN"):
        load_audio(tmp_path / "clip.wav")


def test_a_wav_without_samples_is_refused(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.zeros(0), RATE)
    with pytest.raises(MediaError, match=r"clip.wav: holds no samples"):
        load_audio(tmp_path / "clip.wav")


def test_absent_streams_can_be_told_from_broken_files(tmp_path):
    silent = write_media(tmp_path / "silent.mp4", grey_frames(5))
    with pytest.raises(NoStreamError, match=r"silent.mp4: no audio stream \(found: video\)"):
        load_audio(silent)
    for name in ("clip.wav", "clip.m4a"):
        with pytest.raises(NoStreamError, match=rf"{name}: no video stream \(found: audio\)"):
            load_frames(write_sound(tmp_path / name, tone(0.5)))


def test_a_cover_picture_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp3"), "w") as container:
        sound, cover = (
            container.add_stream("libmp3lame", rate=RATE, layout="mono"),
            container.add_stream("mjpeg", rate=1),
        )
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(grey_frames(1)[0], format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        encode_audio(container, sound, tone(1.0))
    with pytest.raises(NoStreamError):
        load_frames(tmp_path / "song.mp3")
    assert len(load_audio(tmp_path / "song.mp3")) == RATE


# -- Truncated files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".m4a", ".webm", ".mkv"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_sound_is_not_a_shorter_clip(tmp_path, suffix, share):
    samples = (0.1 * np.random.default_rng(0).standard_normal(8 * RATE)).astype(np.float32)  # fills many ogg pages
    whole = write_sound(tmp_path / f"clip{suffix}", samples)
    assert len(load_audio(whole)) == pytest.approx(8 * RATE, abs=0.15 * RATE)
    for source in (cut(whole, share), cut(whole, share).read_bytes()):
        with pytest.raises(MediaError, match="truncated"):
            load_audio(source)


@pytest.mark.parametrize(
    ("name", "video", "audio", "options"),
    [
        ("clip.mp4", "libx264", "aac", {}),
        ("fast.mp4", "libx264", "aac", {"movflags": "faststart"}),
        ("clip.webm", "libvpx", "libopus", {}),
        ("clip.avi", "mpeg4", "pcm_s16le", {}),
    ],
)
def test_truncated_video_is_not_a_shorter_clip(tmp_path, name, video, audio, options):
    whole = write_media(tmp_path / name, grey_frames(50), tone(), video, audio, options=options)
    assert len(load_frames(whole, 100)[0]) == 50
    with pytest.raises(MediaError, match="truncated"):
        load_frames(cut(whole))
    with pytest.raises(MediaError, match="truncated"):
        load_audio(cut(whole))


def test_a_wav_recorded_to_a_pipe_declares_no_length(tmp_path):
    path = write_sound(tmp_path / "clip.wav", tone(1.0))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert len(load_audio(bytes(data))) == RATE


def test_chunks_before_and_after_the_samples_of_a_wav_are_passed_over(tmp_path):
    data = write_sound(tmp_path / "clip.wav", tone(1.0)).read_bytes()
    note = b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\0"  # odd sizes are padded
    at = data.index(b"data")
    noted = data[:at] + note + data[at:] + note
    assert len(load_audio(noted)) == RATE
    with pytest.raises(MediaError, match=r"truncated, 0.\d\d s of 1.00 s"):
        load_audio(noted[: len(noted) // 2])


def test_a_variable_rate_mp3_without_a_length_is_read_to_its_end(tmp_path):
    """libsndfile 1.2 guesses its length from the first frames and stops there: 4 s of these 20."""
    samples = tone(20.0)
    samples[10 * RATE :] = 0.2 * np.random.default_rng(0).standard_normal(10 * RATE)
    path = tmp_path / "clip.mp3"
    with av.open(str(path), "w", options={"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        stream.codec_context.qscale = True
        stream.codec_context.global_quality = 4 * 118
        encode_audio(container, stream, samples)
    assert len(soundfile.read(io.BytesIO(path.read_bytes()))[0]) < 10 * RATE  # still so; else soundfile would do
    assert len(load_audio(path)) == pytest.approx(20 * RATE, abs=0.15 * RATE)


# -- Frames -----------------------------------------------------------------------------------------------------------


def levels(frames):
    """Which of `grey_frames` these are."""
    return np.round(frames.mean(axis=(1, 2, 3)) / 5).astype(int).tolist()


@pytest.mark.parametrize(("name", "video"), [("clip.mp4", "libx264"), ("clip.webm", "libvpx"), ("clip.avi", "mpeg4")])
def test_frames_are_the_midpoints_of_equal_parts(tmp_path, name, video):
    path = write_media(tmp_path / name, grey_frames(40), video=video)
    for source in (path, path.read_bytes(), {"path": None, "bytes": path.read_bytes()}):
        frames, times = load_frames(source, 4)
        assert frames.shape == (4, 48, 64, 3) and frames.dtype == np.uint8 and times.dtype == np.float32
        assert levels(frames) == [5, 15, 25, 35]
        np.testing.assert_allclose(times, [0.2, 0.6, 1.0, 1.4], atol=1e-3)


def test_a_short_video_yields_all_its_frames_once(tmp_path):
    frames, times = load_frames(write_media(tmp_path / "clip.mp4", grey_frames(5)), 8)
    assert levels(frames) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(times, np.arange(5) / 25, atol=1e-3)


@pytest.mark.parametrize(("size", "shape"), [(32, (2, 32, 32, 3)), ((24, 40), (2, 24, 40, 3))])
def test_frames_are_resized(tmp_path, size, shape):
    frames, _ = load_frames(write_media(tmp_path / "clip.mp4", grey_frames(20)), 2, size)
    assert frames.shape == shape and levels(frames) == [5, 15]
    frames, _ = load_frames({"frames": np.stack(grey_frames(20)), "fps": 25}, 2, size)
    assert frames.shape == shape and levels(frames) == [5, 15]


def test_colours_stay_in_their_order(tmp_path):
    red = [np.full((48, 64, 3), (200, 30, 30), np.uint8)] * 3
    for source in (write_media(tmp_path / "clip.mp4", red), {"frames": np.stack(red), "fps": 25}):
        frames, _ = load_frames(source, 1, 16)
        np.testing.assert_allclose(frames.mean(axis=(0, 1, 2)), (200, 30, 30), atol=8)


def test_time_starts_with_the_clip(tmp_path):
    path = write_media(tmp_path / "late.mkv", grey_frames(10), first_pts=50)
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time == 2000  # ms: the case is what it claims to be
    assert load_frames(path, 1)[1] == pytest.approx([0.2], abs=1e-3)


def test_time_starts_with_the_sound_where_there_is_one(tmp_path):
    path = write_media(tmp_path / "late.mkv", grey_frames(10), tone(3.0), audio="pcm_s16le", first_pts=50)
    assert load_frames(path, 1)[1] == pytest.approx([2.2], abs=2e-2)


def test_pictures_stored_sideways_are_turned_upright(tmp_path):
    """A telephone held upright stores landscape pictures and the matrix of a quarter turn clockwise."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = 255  # the left half: after the turn the upper one
    data = bytearray(write_media(tmp_path / "clip.mp4", [picture] * 5).read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 0x10000
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 0x40000000)
    frames, _ = load_frames(bytes(data), 1)
    assert frames.shape == (1, 64, 48, 3)
    assert frames[0, :28].mean() > 240 and frames[0, -28:].mean() < 15
    assert load_frames(bytes(data), 1, (20, 10))[0].shape == (1, 20, 10, 3)


def test_arrays_of_frames():
    frames = np.stack(grey_frames(40))
    sampled, times = load_frames({"frames": frames, "fps": 10}, 4)
    assert levels(sampled) == [5, 15, 25, 35]
    np.testing.assert_allclose(times, [0.5, 1.5, 2.5, 3.5])
    sampled, times = load_frames({"frames": torch.from_numpy(frames[:2]), "times": [0.25, 0.75]}, 8)
    assert levels(sampled) == [0, 1]
    np.testing.assert_allclose(times, [0.25, 0.75])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), "bare frames without times"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8)}, "pass one of them"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "fps": 0}, "positive"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "times": [0.0]}, r"times of shape \(1,\)"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "times": [1.0, 0.0]}, "rising"),
        ({"frames": np.zeros((2, 4, 4, 3)), "fps": 25}, "frames are float64"),
        ({"frames": np.zeros((2, 3, 4, 4), np.uint8), "fps": 25}, r"\(2, 3, 4, 4\)"),
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8), "fps": 25}, "n at least 1"),
    ],
)
def test_frames_of_another_kind_are_refused(source, message):
    with pytest.raises(MediaError, match=message):
        load_frames(source)


def test_asking_for_no_frames_is_refused():
    with pytest.raises(ValueError, match="num_frames is 0"):
        load_frames({"frames": np.zeros((2, 4, 4, 3), np.uint8), "fps": 25}, 0)


# -- Faces ------------------------------------------------------------------------------------------------------------


def pretend_faces(monkeypatch, *faces):
    """OpenCV with a cascade that finds these (x, y, width, height) in every picture."""
    cv2 = pytest.importorskip("cv2")
    finder = SimpleNamespace(detectMultiScale=lambda *_, **__: np.array(faces).reshape(-1, 4) if faces else ())
    monkeypatch.setattr(cv2, "CascadeClassifier", lambda _: finder, raising=False)


def test_the_largest_face_is_cropped_with_its_margin(monkeypatch):
    pretend_faces(monkeypatch, (5, 5, 10, 10), (40, 30, 20, 20))
    picture = np.zeros((1, 100, 120, 3), np.uint8)
    picture[0, 26:54, 36:64] = 255  # the larger face, widened by 20 % on each side
    crops, found = crop_face(picture, size=28, margin=0.2)
    assert crops.shape == (1, 28, 28, 3) and found.tolist() == [True]
    assert crops.min() == 255
    assert crop_face(picture, size=28, margin=0.3)[0].min() == 0


@pytest.mark.parametrize(("x", "y"), [(0, 0), (100, 80)])
def test_a_face_at_the_edge_is_cropped_within_the_picture(monkeypatch, x, y):
    pretend_faces(monkeypatch, (x, y, 20, 20))
    picture = np.zeros((1, 100, 120, 3), np.uint8)
    picture[0, y : y + 20, x : x + 20] = 255
    crops, _ = crop_face(picture, size=28, margin=0.2)
    assert (crops == 255).mean() == pytest.approx(20 * 20 / (28 * 28), abs=0.01)


def test_boxes_of_a_large_picture_are_scaled_back(monkeypatch):
    pretend_faces(monkeypatch, (160, 80, 40, 40))  # in the 640 x 360 picture that is searched
    picture = np.zeros((1, 720, 1280, 3), np.uint8)
    picture[0, 160:240, 320:400] = 255
    assert crop_face(picture, size=16, margin=0.0)[0].min() == 255


def test_a_frame_without_a_face_is_told():
    pytest.importorskip("cv2")
    crops, found = crop_face(np.full((2, 80, 100, 3), 90, np.uint8), size=24)
    assert crops.shape == (2, 24, 24, 3) and not crops.any() and found.tolist() == [False, False]


@pytest.mark.parametrize("frames", [np.zeros((80, 100, 3), np.uint8), np.zeros((1, 80, 100, 3))])
def test_face_frames_of_another_kind_are_refused(frames):
    with pytest.raises(ValueError, match="pass uint8"):
        crop_face(frames)


def test_an_opencv_without_cascades_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(data=SimpleNamespace(haarcascades="")))
    with pytest.raises(ImportError, match=r"opencv-python-headless>=4\.11,<5"):
        crop_face(np.zeros((1, 80, 100, 3), np.uint8))


@pytest.mark.parametrize(
    ("package", "name"), [("soundfile", "clip.wav"), ("av", "clip.mp3"), ("torchaudio", "clip.flac")]
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, name):
    path = write_sound(tmp_path / name, tone(0.1))
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        load_audio(path, sampling_rate=8_000)


# -- Real clips -------------------------------------------------------------------------------------------------------


def test_a_real_video(ravdess_dir):
    video = ravdess_dir / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    frames, times = load_frames(video, 8)
    assert frames.shape == (8, 720, 1280, 3)
    np.testing.assert_allclose(np.diff(times), 3.27 / 8, atol=0.04)
    assert 0 < times[0] < 0.4 and times[-1] < 3.3
    # Of its 99 packets one is marked to be discarded: asking for as many frames as are shown must find them all.
    np.testing.assert_allclose(load_frames(video, 98, 16)[1], np.arange(98) * 1001 / 30_000, atol=1e-4)
    pytest.importorskip("cv2")
    crops, found = crop_face(frames)
    assert found.all()
    # The studio's wall is white and the actor's face fills the crop: its middle is darker than the picture's corner.
    assert crops[:, 80:144, 80:144].mean() < 200 < frames[:, :100, :100].mean()


def test_the_sound_of_a_real_video_is_that_of_its_wav(ravdess_dir):
    folder = ravdess_dir / "Actor_01"
    track, wav = (load_audio(folder / name) for name in ("01-01-01-01-01-01-01.mp4", "03-01-01-01-01-01-01.wav"))
    length = min(len(track), len(wav))
    lags = np.fft.irfft(np.fft.rfft(track[:length], 2 * length) * np.fft.rfft(wav[:length], 2 * length).conj())
    assert min(lags.argmax(), 2 * length - lags.argmax()) < 0.05 * RATE


def test_files_are_not_left_open(tmp_path):
    path = write_media(tmp_path / "clip.mp4", grey_frames(5), tone(0.5))
    wav = write_sound(tmp_path / "clip.wav", tone(0.5))
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files are counted in /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        load_audio(path), load_audio(wav), load_frames(path, 2)
        with pytest.raises(NoStreamError):
            load_frames(wav)
    assert len(os.listdir("/proc/self/fd")) == before
