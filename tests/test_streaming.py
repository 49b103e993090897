"""Sound and pictures piece by piece against the whole file decoded at once."""

from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from mer_hf import streaming
from mer_hf.models.media import MediaError, NoStreamError, load_audio, load_frames
from mer_hf.models.media_files import encoded
from mer_hf.streaming import PictureStream, SoundStream

RATE = 16_000


def noise(samples, channels=1, seed=0, level=0.3):
    return (np.random.default_rng(seed).uniform(-level, level, (samples, channels))).astype(np.float32)


def write_media(path, pictures=0, sound=0, fps=25, rate=48_000, codecs=("mpeg4", "aac"), first=0, options=None):
    """A container with `pictures` frames, picture i of grey level 8 * i and noise, and `sound` samples of noise."""
    random = np.random.default_rng(1)
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codecs[0], rate=fps, width=32, height=24, pix_fmt="yuv420p") if pictures else None
        audio = container.add_stream(codecs[1], rate=rate, layout="mono") if sound else None
        for index in range(pictures):
            grey = (np.full((24, 32, 3), 8 * index % 250, np.uint8) + random.integers(0, 5, (24, 32, 3))).clip(0, 255)
            frame = av.VideoFrame.from_ndarray(grey.astype(np.uint8), format="rgb24")
            frame.pts = first + index
            container.mux(video.encode(frame))
        if pictures:
            container.mux(video.encode(None))
        samples = noise(sound)[:, 0]
        for start in range(0, sound, 960):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(frame))
        if sound:
            container.mux(audio.encode(None))
    return path


def read_in_pieces(path, piece):
    """All of a recording's sound in pieces, of which the last is shorter."""
    stream, pieces, start = SoundStream(encoded(path)), [], 0
    while stream.goes_on(start):
        stream.drop(start)
        pieces.append(stream.read(start, start + piece))
        start += piece
    assert stream.length == sum(map(len, pieces))
    return np.concatenate(pieces)


# Sound


@pytest.mark.parametrize(
    ("rate", "block"),
    [(44_101, 0.2), *((rate, 0.06) for rate in (8_000, 11_025, 16_000, 44_100, 48_000, 96_000)), (22_050, 5.0)],
)
def test_a_wav_in_blocks_is_what_load_audio_makes_of_it(tmp_path, monkeypatch, rate, block):
    monkeypatch.setattr(streaming, "BLOCK_SECONDS", block)
    soundfile.write(tmp_path / "a.wav", noise(int(0.6 * rate) + 7, 2, level=0.99), rate, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav")
    found = read_in_pieces(tmp_path / "a.wav", 2_001)
    assert found.dtype == np.float32 and found.shape == whole.shape
    np.testing.assert_allclose(found, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".m4a", ".webm", ".mp4"])
def test_every_format_in_blocks_is_what_load_audio_makes_of_it(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(streaming, "BLOCK_SECONDS", 0.3)
    path = tmp_path / f"a{suffix}"
    if suffix in (".flac", ".ogg"):
        soundfile.write(path, noise(40_000), 22_050)
    else:
        codec = {".mp3": "libmp3lame", ".webm": "libopus"}.get(suffix, "aac")
        write_media(path, 30 if suffix == ".mp4" else 0, 60_000, codecs=("mpeg4", codec))
    whole = load_audio(path)
    np.testing.assert_allclose(read_in_pieces(path, 7_777), whole, atol=1e-6, rtol=0)
    np.testing.assert_allclose(read_in_pieces(path.read_bytes(), 7_777), whole, atol=1e-6, rtol=0)


def test_stretches_may_overlap_until_they_are_dropped(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(40_000), RATE, subtype="FLOAT")
    whole, stream = load_audio(tmp_path / "a.wav"), SoundStream(encoded(tmp_path / "a.wav"))
    for start, end in ((0, 9_000), (4_000, 13_000), (8_000, 39_000), (30_000, 50_000)):
        stream.drop(start)
        np.testing.assert_array_equal(stream.read(start, end), whole[start:end])
    assert not stream.goes_on(40_000) and stream.goes_on(39_999) and stream.length == 40_000
    assert len(stream.read(50_000, 60_000)) == 0


def test_only_what_is_needed_is_decoded(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(RATE * 30), RATE)
    stream = SoundStream(encoded(tmp_path / "a.wav"))
    stream.read(0, RATE)
    assert stream.length == 5 * RATE
    stream.read(0, 6 * RATE)
    assert stream.length == 10 * RATE


def test_truncated_files_are_refused_at_the_door(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(RATE * 3), RATE)
    soundfile.write(tmp_path / "a.ogg", noise(RATE * 3), RATE)
    write_media(tmp_path / "a.mkv", sound=96_000)
    for name in ("a.wav", "a.ogg", "a.mkv"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(MediaError, match=rf"{name}: truncated"):
            SoundStream(encoded(tmp_path / name))


def test_damage_further_on_is_found_when_it_is_reached(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(RATE * 30), RATE)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(MediaError):
        load_audio(tmp_path / "a.flac")
    stream = SoundStream(encoded(tmp_path / "a.flac"))
    assert len(stream.read(0, RATE)) == RATE
    with pytest.raises(MediaError, match=r"a\.flac: (truncated|broken)"):
        stream.read(0, 30 * RATE)


@pytest.mark.parametrize(("bad", "problem"), [(np.nan, "NaN"), (9.0, "reach 9")])
def test_samples_that_load_audio_refuses_are_refused(tmp_path, bad, problem):
    samples = noise(RATE * 12)
    samples[-3] = bad
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    stream = SoundStream(encoded(tmp_path / "a.wav"))
    with pytest.raises(MediaError, match=rf"a\.wav: .*{problem}"):
        stream.read(0, 12 * RATE)


def test_no_samples_no_sound_and_no_media_are_named(tmp_path):
    soundfile.write(tmp_path / "empty.wav", noise(0), RATE)
    with pytest.raises(MediaError, match=r"empty\.wav: holds no samples"):
        SoundStream(encoded(tmp_path / "empty.wav"))
    with pytest.raises(NoStreamError, match=r"mute\.mp4: no audio stream"):
        SoundStream(encoded(write_media(tmp_path / "mute.mp4", 5)))
    (tmp_path / "text.mp4").write_bytes(b"this is no film" * 50)
    with pytest.raises(MediaError, match=r"text\.mp4: not a readable media file"):
        SoundStream(encoded(tmp_path / "text.mp4"))


# Pictures


def expected_pictures(path, start, end, number):
    """What `load_frames` takes of the frames shown in a stretch; times count from its start."""
    frames, times = load_frames(path, 10**6)
    inside = (times >= start - 1e-5) & (times < end - 1e-5)
    if not inside.any():
        return frames[:0], times[:0]
    return load_frames({"frames": frames[inside], "times": times[inside] - start}, number)


@pytest.mark.parametrize(
    ("suffix", "codec", "hop"),
    [(".mp4", "libx264", 0.2), (".mp4", "libx264", 0.5), (".webm", "libvpx", 0.2), (".avi", "mpeg4", 0.7)],
)
def test_pictures_of_a_stretch_are_what_load_frames_takes_of_it(tmp_path, suffix, codec, hop):
    sound = {"sound": 0} if suffix == ".avi" else {"sound": 100_000}
    codecs = (codec, "libopus" if suffix == ".webm" else "aac")
    path = write_media(tmp_path / f"a{suffix}", 47, codecs=codecs, **sound)
    stream = PictureStream(encoded(path), 3)
    assert stream.end == pytest.approx(47 / 25, abs=0.045)
    spans = [(index * hop, index * hop + 0.5) for index in range(int(stream.end / hop) + 1)]
    some = 0
    for index, span in enumerate(spans):
        frames, times = stream.read([span, *(s for s in spans[index + 1 :] if s[0] < span[1])])
        expected, shown = expected_pictures(path, *span, 3)
        assert len(frames) == len(expected) and len(stream._kept) <= 3 * 3
        if len(frames):
            np.testing.assert_array_equal(frames, expected)
            np.testing.assert_allclose(times, shown, atol=1e-5)
        some += len(frames)
    assert some > 8


def test_each_picture_is_decoded_once(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", 50)
    made = []
    real = streaming.upright
    monkeypatch.setattr(streaming, "upright", lambda frame, size: made.append(frame.pts) or real(frame, size))
    stream = PictureStream(encoded(path), 2)
    decoded = []
    frames = stream._decoded
    stream._decoded = (decoded.append(frame.pts) or frame for frame in frames)
    spans = [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]
    for index, span in enumerate(spans):
        stream.read([span, *(s for s in spans[index + 1 :] if s[0] < span[1])])
    assert len(decoded) == len(set(decoded)) == 49  # and the one that opened the stream
    assert len(made) == len(set(made)) <= 6


def test_the_next_picture_stands_in_for_one_that_is_not_decoded(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", 20)
    whole, times = load_frames(path, 100)
    stream = PictureStream(encoded(path), 4)  # of the first ten: the second, fourth, seventh and ninth
    lost = [stream._shown_at[place] for place in (3, 8, 9)]
    frames = stream._decoded
    stream._decoded = (frame for frame in frames if frame.pts not in lost)
    found, shown = stream.read([(0.0, 0.4)])
    np.testing.assert_allclose(shown, times[[1, 4, 6]], atol=1e-6)
    np.testing.assert_array_equal(found, whole[[1, 4, 6]])
    found, shown = stream.read([(0.4, 0.8)])
    np.testing.assert_array_equal(found, whole[[11, 13, 16, 18]])


def test_a_late_or_truncated_video(tmp_path):
    path = write_media(tmp_path / "late.mkv", 10, 48_000, first=25)
    stream = PictureStream(encoded(path), 2)
    assert len(stream.read([(0.0, 0.9)])[0]) == 0
    frames, times = stream.read([(0.9, 1.5)])
    expected, shown = expected_pictures(path, 0.9, 1.5, 2)
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_allclose(times, shown, atol=1e-5)
    data = write_media(tmp_path / "cut.mkv", 100).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.mkv: truncated"):
        PictureStream(encoded(tmp_path / "cut.mkv"), 2)
    soundfile.write(tmp_path / "a.wav", noise(1000), RATE)
    with pytest.raises(NoStreamError, match="no video"):
        PictureStream(encoded(tmp_path / "a.wav"), 2)
