"""Files, bytes and arrays in; 16 kHz mono audio, video frames and face crops out.

soundfile decodes wav, flac and ogg; PyAV, which carries its own FFmpeg, decodes everything else; OpenCV finds
faces. All three are imported on first use. Whatever cannot be read as asked raises `MediaError`, whose one line names
the source, what was found and what to do. A shorter clip is never returned in place of a broken one.
"""

import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from .media_files import (  # noqa: F401 - NoStreamError is imported from here
    SAMPLES_TOLERANCE,
    Encoded,
    MediaError,
    NoStreamError,
    check_complete,
    encoded,
    ends_inside_ogg_page,
    import_av,
    open_container,
    scan,
    seconds_missing_from_wav,
    stream_of,
)

RATES = (1_000, 400_000)  # Hz; outside, rate and array were confused or the header is broken
LOUDEST = 2.0  # float samples of decoded mp3 overshoot 1 a little; above this they are not on the scale [-1, 1]
MAX_CHANNELS = 16
SILENCE_DB = -60.0
"""Decibels below full scale. The quietest of 400 clips of RAVDESS, calm speech included, reaches -53."""

# Not mp3: libsndfile 1.2 takes a wrong guess of the length for the length, and so cuts variable-rate files short.
SOUNDFILE_MAGIC = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS")


# -- Audio ------------------------------------------------------------------------------------------------------------


def load_audio(source: Any, sampling_rate: int = 16_000) -> np.ndarray:
    """Mono audio at `sampling_rate`: float32 (samples,) in [-1, 1].

    `source` is one of
        a path, or the bytes of a file: any format soundfile or PyAV reads, the sound track of a video included;
        `(array, rate)` or `{"array", "sampling_rate"}`: numpy or torch, (samples,) or two axes, of which the shorter
            is taken for the channels; float in [-1, 1], or int16, int32 or uint8, which are scaled;
        `{"path", "bytes"}`: what `datasets` yields with `decode=False`.
    Channels are averaged, and the result is clipped to [-1, 1]: resampling overshoots loud audio a little.

    Raises:
        NoStreamError: a file without a sound track.
        MediaError: missing, empty, broken or truncated files; samples that are NaN, infinite or on another scale.
        ImportError: naming the package to install.
    """
    if _is_array(source) or isinstance(source, (tuple, list)) or (isinstance(source, Mapping) and "array" in source):
        name, (samples, rate) = "array", _array_and_rate(source)
    else:
        media = encoded(source)
        name, (samples, rate) = media.name, _decode_audio(media)
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"{name}: {rate} Hz is no audio rate; expected {RATES[0]} to {RATES[1]} Hz")
    if samples.size == 0:
        raise MediaError(f"{name}: holds no samples; leave the audio out, or record it again")
    if not np.isfinite(samples).all():
        raise MediaError(
            f"{name}: {int((~np.isfinite(samples)).sum())} samples are NaN or infinite; repair them first"
        )
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise MediaError(f"{name}: float samples reach {peak:g}, expected [-1, 1]; divide 16-bit values by 32768")
    mono = samples.mean(axis=1, dtype=np.float32)
    return np.clip(resample(mono, rate, sampling_rate), -1.0, 1.0)


def resample(audio: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling of float32 (samples,); aliases and images stay below -90 dB.

    Rates that share no large factor, such as 44101 and 16000 Hz, would take gigabytes of filters: their ratio is
    rounded to a fraction of at most 4000, a drift of at most 8 ms a minute.

    Raises:
        ImportError: where torchaudio is missing.
    """
    if rate == new_rate:
        return audio
    try:
        from torchaudio.functional import resample as torchaudio_resample
    except ImportError as error:
        raise ImportError("resampling needs torchaudio: pip install torchaudio") from error
    ratio = Fraction(new_rate, rate).limit_denominator(4000)
    # The four constants are the widely used "kaiser_best" filter; torchaudio's default leaks -45 dB at 10 kHz.
    resampled = torchaudio_resample(
        torch.from_numpy(audio),
        ratio.denominator,
        ratio.numerator,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    return resampled.numpy()


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _array_and_rate(source: Any) -> tuple[np.ndarray, int]:
    if isinstance(source, Mapping):
        array, rate = source["array"], source.get("sampling_rate")
    elif isinstance(source, (tuple, list)) and len(source) == 2 and _is_array(source[0]):
        array, rate = source
    elif isinstance(source, (tuple, list)) and len(source) == 2 and _is_array(source[1]):
        raise MediaError("array: found (rate, array); pass (array, rate)")
    else:
        raise MediaError(f"array: found a bare {type(source).__name__} without a rate; pass (array, rate)")
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or rate != rate or rate != int(rate):
        raise MediaError(f"array: the rate is {rate!r}; pass (array, rate) with the rate a whole number of Hz")
    return _channels_last(_to_float(array)), int(rate)


def _to_float(array: Any) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    array = np.asarray(array)
    if array.dtype in (np.int16, np.int32):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype == np.uint8:  # 8-bit wav is unsigned, silence at 128
        return (array.astype(np.float32) - 128.0) / 128.0
    if not np.issubdtype(array.dtype, np.floating):
        raise MediaError(f"array: dtype {array.dtype}; pass float in [-1, 1], int16, int32 or uint8")
    return array.astype(np.float32)


def loudest_db(audio: np.ndarray, sampling_rate: int = 16_000) -> float:
    """The level of the loudest 10 ms of audio (samples,) in [-1, 1], in decibels of full scale; -200 for none."""
    block = sampling_rate // 100
    blocks = np.pad(audio.astype(np.float64), (0, -len(audio) % block)).reshape(-1, block)
    return float(10 * np.log10(max(np.square(blocks).mean(axis=1).max(initial=0.0), 1e-20)))


def is_silent(audio: np.ndarray, sampling_rate: int = 16_000) -> bool:
    """Whether no 10 ms of audio (samples,) reach `SILENCE_DB`; also of no samples."""
    return loudest_db(audio, sampling_rate) < SILENCE_DB


def _channels_last(array: np.ndarray) -> np.ndarray:
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2 or min(array.shape) > MAX_CHANNELS:
        raise MediaError(f"array: shape {array.shape}; pass (samples,), (channels, samples) or (samples, channels)")
    return array.T if array.shape[0] <= array.shape[1] else array


def _decode_audio(media: Encoded) -> tuple[np.ndarray, int]:
    """(samples, channels) float32 and the rate; the first bytes, not the file's name, choose the decoder."""
    if not media.head().startswith(SOUNDFILE_MAGIC):
        return _decode_audio_track(media)
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("reading wav, flac and ogg needs soundfile: pip install soundfile") from error
    try:
        with soundfile.SoundFile(media.open()) as file:
            samples = file.read(dtype="float32", always_2d=True)
            missing, rate = (file.frames - len(samples)) / file.samplerate, file.samplerate
    except soundfile.SoundFileError:
        return _decode_audio_track(media)
    found = len(samples) / rate
    check_complete(media.name, found, found + max(missing, seconds_missing_from_wav(media)), SAMPLES_TOLERANCE)
    if ends_inside_ogg_page(media):
        raise MediaError(f"{media.name}: truncated, {found:.2f} s are left; copy or download it again")
    return samples, rate


def _decode_audio_track(media: Encoded) -> tuple[np.ndarray, int]:
    scan(media, "audio")
    with open_container(media) as container:
        to_planar_float = import_av().AudioResampler(format="fltp")  # changes the sample type, not rate or layout
        blocks, rate = [], 0
        for frame in container.decode(stream_of(container, "audio", media.name)):
            rate = frame.sample_rate
            blocks += [block.to_ndarray() for block in to_planar_float.resample(frame)]
    if not blocks:
        raise MediaError(f"{media.name}: its sound track decodes to nothing; export the file again")
    return np.concatenate(blocks, axis=1).T, rate


# -- Video ------------------------------------------------------------------------------------------------------------


def load_frames(
    source: Any, num_frames: int = 8, size: int | tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frames spread evenly over a video, and when each is shown.

    The frames are those at the midpoints of `num_frames` equal parts; a video with fewer frames yields all it has.
    `size` is one side or (height, width); frames are stretched to it, not cropped. Time 0 is the start of the sound
    track where there is one, so that frames and word times share a clock, else the start of the video.
    `source` is a path, the bytes of a file, `{"path", "bytes"}`, or frames already decoded: `{"frames", "times"}` or
    `{"frames", "fps"}` with frames uint8 (n, height, width, 3), RGB.

    Returns:
        frames uint8 (n, height, width, 3), RGB, upright; times float32 (n,), seconds.

    Raises:
        NoStreamError: a file without video (the cover picture of a song is not video).
        MediaError: missing, empty, broken or truncated files; arrays of another shape or type.
        ImportError: naming the package to install.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; ask for at least one")
    height_width = (size, size) if isinstance(size, int) else size
    if _is_array(source) or (isinstance(source, Mapping) and "frames" in source):
        frames, times = _frames_and_times(source)
        chosen = midpoints(len(frames), num_frames)
        return np.stack([_resize(frames[i], height_width) for i in chosen]), times[chosen]
    media = encoded(source)
    shown = list(_shown_frames(media, num_frames, height_width))
    if not shown:
        raise MediaError(f"{media.name}: its video decodes to nothing; export the file again")
    times, frames = zip(*shown, strict=True)
    return np.stack(frames), np.array(times, dtype=np.float32)


def midpoints(count: int, parts: int) -> list[int]:
    parts = min(count, parts)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def _frames_and_times(source: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(source, Mapping):
        raise MediaError('array: found bare frames without times; pass {"frames", "fps"} or {"frames", "times"}')
    frames = np.asarray(source["frames"])
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        found = f"{frames.dtype} {frames.shape}"
        raise MediaError(f"array: frames are {found}; pass uint8 (n, height, width, 3) with n at least 1")
    if source.get("times") is not None:
        times = np.asarray(source["times"], dtype=np.float32)
    elif (source.get("fps") or 0) > 0:
        times = (np.arange(len(frames)) / source["fps"]).astype(np.float32)
    else:
        raise MediaError('array: frames come without "times" and without a positive "fps"; pass one of them')
    if times.shape != (len(frames),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise MediaError(f"array: times of shape {times.shape} do not give {len(frames)} frames one rising time each")
    return frames, times


def _resize(frame: np.ndarray, height_width: tuple[int, int] | None) -> np.ndarray:
    if height_width is None:
        return frame
    height, width = height_width
    picture = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return picture.to_ndarray(format="rgb24", width=width, height=height)


def _shown_frames(
    media: Encoded, num_frames: int, height_width: tuple[int, int] | None
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, picture) of the sampled frames. Holds one decoded frame at a time, whatever the video's length."""
    shown_at, origin = scan(media, "video")
    wanted = [shown_at[i] for i in midpoints(len(shown_at), num_frames)]
    with open_container(media) as container:
        for frame in container.decode(stream_of(container, "video", media.name)):
            if not wanted:
                return
            if height_width is None:  # a stream that changes its size half-way keeps the first frame's
                height_width = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
            if frame.pts is None or frame.pts < wanted[0]:
                continue
            # A packet that yields no picture leaves a gap: the next frame stands in, and never one frame twice.
            wanted = [pts for pts in wanted if pts > frame.pts]
            yield max(0.0, float(frame.pts * frame.time_base) - origin), upright(frame, height_width)


def upright(frame: Any, height_width: tuple[int, int]) -> np.ndarray:
    """RGB (height, width, 3) of a decoded frame; telephones store pictures sideways with a note to turn them."""
    quarters = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 counts
    height, width = height_width[::-1] if quarters % 2 else height_width
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), quarters))


# -- Faces ------------------------------------------------------------------------------------------------------------


def crop_face(frames: np.ndarray, size: int = 224, margin: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """The largest face of each frame, as a square crop.

    frames uint8 (n, height, width, 3), RGB -> crops uint8 (n, size, size, 3), found bool (n,). The square found by
    OpenCV's frontal-face cascade is widened by `margin` of its side on each side and kept inside the picture. A frame
    in which no face is found gives a black crop and found = False.

    Raises:
        ImportError: without OpenCV 4 (OpenCV 5 has dropped the cascades, and its detectors need a download).
        ValueError: frames of another shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; pass uint8 (n, height, width, 3)")
    cv2, cascade = _face_cascade()
    crops = np.zeros((len(frames), size, size, 3), dtype=np.uint8)
    found = np.zeros(len(frames), dtype=bool)
    for index, frame in enumerate(frames):
        if (square := _largest_face(cv2, cascade, frame, margin)) is not None:
            left, top, side = square
            face = frame[top : top + side, left : left + side]
            crops[index] = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)
            found[index] = True
    return crops, found


def _face_cascade() -> tuple[Any, Any]:
    try:
        import cv2

        cascade = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, "haarcascade_frontalface_alt2.xml"))
    except (ImportError, AttributeError) as error:
        remedy = "pip install 'opencv-python-headless>=4.11,<5'"
        raise ImportError(f"finding faces needs the Haar cascades of OpenCV 4: {remedy}") from error
    return cv2, cascade


def _largest_face(cv2: Any, cascade: Any, frame: np.ndarray, margin: float) -> tuple[int, int, int] | None:
    """(left, top, side) in pixels of the widened square, or None."""
    longest = max(frame.shape[:2])
    scale = min(1.0, 640 / longest)  # faces are found as well at 640 pixels as at full size, several times faster
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    smallest = max(24, round(longest * scale / 16))
    faces = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest))
    if not len(faces):
        return None
    x, y, width, height = max(faces, key=lambda face: face[2] * face[3]) / scale
    side = min(round(max(width, height) * (1 + 2 * margin)), *frame.shape[:2])
    left = int(np.clip(round(x + width / 2 - side / 2), 0, frame.shape[1] - side))
    top = int(np.clip(round(y + height / 2 - side / 2), 0, frame.shape[0] - side))
    return left, top, side
