"""What is wrong with a clip, said so that whoever recorded it knows what to do. Nothing here knows a model.

What stops a prediction is a `ClipProblem`; what only weakens it becomes a note beside the result. Length, samples and
picture size are read from the packets before anything is decoded, so that a small file of many hours costs nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_hf import AlignmentError, MediaError, NoStreamError, WordAligner, WordAlignment
from mer_hf.models.media_files import encoded, open_container, stream_of

MAX_SECONDS = 600
MAX_MEGABYTES = 100
MAX_SAMPLES = 120_000_000  # over all channels; 10 minutes of stereo at 96 kHz
MAX_PIXELS = 4096 * 2304
MAX_CHARACTERS, UTTERANCE_CHARACTERS = 10_000, 1000
SPEECH_SCORE, SPEECH_WORDS = -2.0, 2
"""What is recognised in clear speech fits it better than this many nats a frame, and is at least this many words."""
RATE = 16_000


class ClipProblem(ValueError):
    """Why a clip cannot be used, in a sentence for whoever gave it."""


@dataclass(frozen=True)
class Media:
    """A file that passed `examine`."""

    path: str
    seconds: float
    has_sound: bool
    has_picture: bool


def examine(path: str) -> Media:
    """What a file holds and how long it is, from its packets.

    Raises:
        ClipProblem: no bytes, too many, too long, neither sound nor picture, too large a picture, or no media at all.
    """
    if not Path(path).is_file():
        raise ClipProblem(
            "The recording is not here any more; recordings are deleted after half an hour. Give it again."
        )
    size = Path(path).stat().st_size
    if not size:
        raise ClipProblem("The file is empty (0 bytes). It was not recorded or copied completely; try it again.")
    if size > MAX_MEGABYTES * 1_000_000:
        raise ClipProblem(f"The file has {size / 1e6:.0f} MB; this demo takes up to {MAX_MEGABYTES} MB. Cut it first.")
    try:
        seconds, streams = _seconds_and_streams(path)
    except MediaError as error:
        raise ClipProblem(readable(error, path)) from error
    if not streams:
        raise ClipProblem("The file holds neither sound nor video. Choose a recording, such as wav, mp3, mp4 or webm.")
    if seconds > MAX_SECONDS:
        raise ClipProblem(
            f"The recording is {clock(seconds)} long; this demo takes up to {clock(MAX_SECONDS)} (minutes:seconds). "
            "Cut out the part that matters."
        )
    return Media(path, seconds, "audio" in streams, "video" in streams)


def _seconds_and_streams(path: str) -> tuple[float, set[str]]:
    """The length from the first packet to the end of the last, and which of sound and picture there are."""
    media, streams = encoded(path), {}
    with open_container(media) as container:
        for kind in ("audio", "video"):
            try:
                streams[kind] = stream_of(container, kind, media.name)
            except NoStreamError:
                continue
        if not streams:
            return 0.0, set()
        if "video" in streams and (streams["video"].width or 0) * (streams["video"].height or 0) > MAX_PIXELS:
            size = f"{streams['video'].width} x {streams['video'].height}"
            raise ClipProblem(f"The picture is {size}; this demo takes up to 4096 x 2304. Export it smaller.")
        first, last = float("inf"), 0.0
        for packet in container.demux(list(streams.values())):
            if packet.pts is not None:
                first = min(first, float(packet.pts * packet.time_base))
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        seconds = max(0.0, last - first)
        sound = streams.get("audio")
        if sound is not None and sound.rate * sound.channels * min(seconds, MAX_SECONDS) > MAX_SAMPLES:
            raise ClipProblem(
                f"{clock(seconds)} of sound at {sound.rate} Hz with {sound.channels} channels is too much for this "
                "demo. Export it as mono or stereo at 48 kHz or less."
            )
        return seconds, set(streams)


def readable(error: Exception, path: str | None = None) -> str:
    """A message of the library as a sentence, without the server's own path of the file."""
    text = str(error)
    if path:
        text = text.replace(f"{path}: ", "").replace(path, Path(path).name)
    text = text.rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def clock(seconds: float) -> str:
    """Minutes and seconds, 75 -> 1:15."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def sounds_like_speech(aligner: WordAligner, audio: np.ndarray, words: list[str]) -> bool:
    """Whether what was recognised in audio (samples,) at 16 kHz fits it as words fit clear speech.

    No detector of music: a recogniser hears words in anything that changes like a voice, but they fit badly.
    """
    if len(words) < SPEECH_WORDS:
        return False
    placed = place(aligner, audio, words)
    return placed is not None and placed.score >= SPEECH_SCORE


def place(aligner: WordAligner, audio: np.ndarray, words: list[str]) -> WordAlignment | None:
    """The words with their times in audio (samples,) at 16 kHz, or None where they do not fit it."""
    try:
        return aligner.align(audio, words)
    except AlignmentError:
        return None


def count_faces(frames: np.ndarray) -> list[int]:
    """How many faces of about the size of the largest there are in each of frames uint8 (n, height, width, 3), RGB.

    By the same cascade that cuts the largest out for the model; stricter, since here a false face misleads.
    """
    import cv2

    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    counts = []
    for frame in frames:
        longest = max(frame.shape[:2])
        scale = min(1.0, 640 / longest)
        grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale)
        smallest = max(24, round(longest * scale / 16))
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=6, minSize=(smallest, smallest))
        widths = sorted((width for _, _, width, _ in found), reverse=True)
        counts.append(sum(bool(width > widths[0] / 2) for width in widths))
    return counts
