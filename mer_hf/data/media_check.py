"""Which streams a sound or video file holds, and whether it is whole, before anybody trains on it.

What `load_audio` and `load_frames` would refuse for being cut short is refused here, without decoding the file.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import soundfile

from ..models.media import (
    SAMPLES_TOLERANCE,
    Encoded,
    MediaError,
    NoStreamError,
    check_complete,
    encoded,
    ends_inside_ogg_page,
    open_container,
    scan,
    seconds_missing_from_wav,
    stream_of,
)
from .scanning import TRUNCATED, pointer, unreadable

AUDIO_TYPES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff"})
VIDEO_TYPES = frozenset({".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})

# Reasons a file is of no use, beside those of `scanning`.
CORRUPT = "not readable as sound or video"
NO_SOUND = "holds no sound"
NO_PICTURES = "holds no pictures"


class BadMedia(ValueError):
    """The reason why a file is of no use."""


class Media(NamedTuple):
    """The files of one clip, absolute, and its length where it is known."""

    audio: str | None
    video: str | None
    seconds: float | None


def check_clip(paths: Mapping[str, str], open_files: bool = True) -> Media:
    """The media of a clip whose files are `{"audio": path, "video": path}`, or one of them.

    A video file is both video and, where it has a sound track and the clip has no other sound, audio, whichever of
    the two it is given as. open_files: look inside; otherwise a file's type tells what it holds.

    Raises:
        BadMedia: for a file that is not there, broken, cut short, or without what it was given for.
    """
    audio, video, seconds = None, None, None
    for given_as, path in paths.items():
        reason = unreadable(Path(path))
        if reason is not None:
            raise BadMedia(reason)
        is_video = given_as == "video" or Path(path).suffix.lower() in VIDEO_TYPES
        streams = _streams(path) if open_files else _Streams(True, is_video, None)
        if given_as == "video" and not streams.pictures:
            raise BadMedia(NO_PICTURES)
        if not streams.sound and not (is_video and streams.pictures):
            raise BadMedia(NO_SOUND)
        if streams.sound and audio is None:
            audio = path
        if streams.pictures and is_video:
            video = path
        seconds = streams.seconds if seconds is None else seconds
    return Media(audio, video, seconds)


class _Streams(NamedTuple):
    sound: bool
    pictures: bool
    seconds: float | None


def _streams(path: str) -> _Streams:
    """What a file holds, from its headers, its packets and the first frame of each stream."""
    try:
        state = os.stat(path)
        return _read_streams(path, state.st_size, state.st_mtime_ns)
    except MediaError as error:
        truncated = str(error).removeprefix(f"{path}: ").startswith("truncated")
        raise BadMedia(TRUNCATED if truncated else CORRUPT) from error
    except OSError as error:
        raise BadMedia(f"not readable: {error.strerror}") from error


@lru_cache(maxsize=2**17)  # a builder scans more than once; size and time tell a file that has changed since
def _read_streams(path: str, size: int, modified: int) -> _Streams:
    reason = pointer(Path(path))
    if reason is not None:
        raise BadMedia(reason)
    media = encoded(path)
    if media.head().startswith((b"RIFF", b"RF64", b"FORM", b"OggS")):
        try:
            return _Streams(True, False, _seconds_of_sound(media))
        except soundfile.SoundFileError:
            pass  # a video in a RIFF or Ogg file, or a codec that libsndfile lacks
    return _read_container(media)


def _seconds_of_sound(media: Encoded) -> float:
    with soundfile.SoundFile(media.open()) as file:
        seconds = file.frames / file.samplerate
    check_complete(media.name, seconds, seconds + seconds_missing_from_wav(media), SAMPLES_TOLERANCE)
    if ends_inside_ogg_page(media):
        raise MediaError(f"{media.name}: truncated")
    if not seconds:
        raise BadMedia(NO_SOUND)
    return seconds


def _read_container(media: Encoded) -> _Streams:
    found = [kind for kind in ("audio", "video") if _decodes(media, kind)]
    if not found:
        raise BadMedia(CORRUPT)
    scan(media, found[-1])  # follows every stream to its end
    with open_container(media) as container:
        seconds = container.duration / 1e6 if container.duration else None
    return _Streams("audio" in found, "video" in found, seconds)


def _decodes(media: Encoded, kind: str) -> bool:
    """Whether there is a stream of this kind; a MediaError where not even its first frame can be decoded."""
    with open_container(media) as container:
        try:
            stream = stream_of(container, kind, media.name)
        except NoStreamError:
            return False
        if next(container.decode(stream), None) is None:
            raise MediaError(f"{media.name}: its {kind} decodes to nothing")
        return True
