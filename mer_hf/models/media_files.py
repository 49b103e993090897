"""Files and bytes of files: what holds them, their containers and streams, and whether they end before their time.

PyAV is imported on first use. Errors that a reader of clips may raise are here as well.
"""

import io
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# What a file may lack of its declared length, in seconds. Sample counts are exact, but encoders round the last block.
# Containers declare the longest stream: AAC and Opus pad it by less than 0.13 s, the last video frame by 0.1 s.
SAMPLES_TOLERANCE = 0.05
CONTAINER_TOLERANCE = 0.25

_DECLARES_DURATION = {"matroska", "mov", "avi", "asf", "flac"}  # FFmpeg guesses the duration of the others
_UNKNOWN_SIZE = 0x7FFF0000  # recorders that write to a pipe put a size at or above this into the wav header


class MediaError(ValueError):
    """A source that cannot be read as asked; one line naming it, what was found and the remedy."""


class NoStreamError(MediaError):
    """The source is readable, but has no audio (or no video): a caller may treat the modality as absent."""


@dataclass(frozen=True)
class Encoded:
    """A file on disk, or the bytes of one; `name` is what messages call it."""

    name: str
    path: str | None
    data: bytes | None
    size: int

    def open(self) -> str | io.BytesIO:
        return self.path if self.data is None else io.BytesIO(self.data)

    def file(self) -> BinaryIO:
        return Path(self.path).open("rb") if self.data is None else io.BytesIO(self.data)

    def head(self) -> bytes:
        with self.file() as file:
            return file.read(16)


def encoded(source: Any) -> Encoded:
    """A path, bytes or `{"path", "bytes"}` as the file it stands for; a MediaError where there is none."""
    if isinstance(source, Mapping) and {"path", "bytes"} & source.keys():
        path, data = source.get("path"), source.get("bytes")
    elif isinstance(source, (bytes, bytearray, memoryview)):
        path, data = None, source
    else:
        path, data = source, None
    if data is not None:
        name = str(path) if path else "bytes"
        if not len(data):
            raise MediaError(f"{name}: holds no bytes; it was never written or never downloaded")
        return Encoded(name, None, bytes(data), len(data))
    if not isinstance(path, (str, os.PathLike)):
        found = f"found a {type(source).__name__}" + (" without path and bytes" if isinstance(source, Mapping) else "")
        raise MediaError(f"source: {found}; pass a path, bytes, an array with its rate or fps, or {{path, bytes}}")
    name = os.fspath(path)
    if not os.path.exists(name):
        raise MediaError(f"{name}: no such file; check the path (addresses must be downloaded first)")
    if os.path.isdir(name):
        raise MediaError(f"{name}: is a directory; pass one file")
    if not (size := os.path.getsize(name)):
        raise MediaError(f"{name}: holds no bytes; it was never written or never downloaded")
    return Encoded(name, name, None, size)


def check_complete(name: str, found: float, declared: float, tolerance: float) -> None:
    """Decoders return what is left of a truncated file without a word."""
    if declared - found > tolerance:
        raise MediaError(f"{name}: truncated, {found:.2f} s of {declared:.2f} s; copy or download it again")


def import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading mp3, mp4, webm and other video needs PyAV: pip install av") from error
    return av


@contextmanager
def open_container(media: Encoded) -> Iterator[Any]:
    """The file opened with PyAV; what FFmpeg raises inside the block comes out as a MediaError."""
    av = import_av()
    try:
        # A playlist posing as a clip must not make FFmpeg fetch addresses.
        with av.open(media.open(), options={"protocol_whitelist": "file"}) as container:
            yield container
    except av.FFmpegError as error:
        problem = f"not a readable media file, or broken or truncated ({error.strerror})"
        raise MediaError(f"{media.name}: {problem}; try to play it, then copy or download it again") from error


def stream_of(container: Any, kind: str, name: str) -> Any:
    """The first stream of a kind ("audio" or "video")."""
    cover = import_av().stream.Disposition.attached_pic
    streams = [s for s in container.streams if s.type == kind and not s.disposition & cover]
    if not streams:
        found = ", ".join(s.type for s in container.streams) or "nothing"
        raise NoStreamError(f"{name}: no {kind} stream (found: {found}); pass another file or leave the {kind} out")
    return streams[0]


def scan(media: Encoded, kind: str) -> tuple[list[int], float]:
    """When the packets of a stream are shown (its own units, rising) and the clip's start in seconds; decodes nothing.

    Containers need not say how many frames they hold, and decoders do not say that a file ends early: both are
    learnt from the packets.
    """
    shown_at, ends = [], {}
    with open_container(media) as container:
        stream = stream_of(container, kind, media.name)
        for packet in container.demux():
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, end))
                if packet.stream.index == stream.index and not packet.is_discard:
                    shown_at.append(packet.pts)
        if _declares_duration(container.format.name, media):
            # FFmpeg lowers the duration of a truncated avi to what it finds; the header's count is left as it was.
            units = stream.frames if container.format.name == "avi" else stream.duration
            own = float((units or 0) * stream.time_base)
            check_complete(media.name, ends.get(stream.index, 0.0), own, CONTAINER_TOLERANCE)
            longest = (container.duration or 0) / 1e6  # microseconds
            check_complete(media.name, max(ends.values(), default=0.0), longest, CONTAINER_TOLERANCE)
        clock = next((s for s in container.streams if s.type == "audio"), stream)
        return sorted(shown_at), float((clock.start_time or 0) * clock.time_base)


def _declares_duration(container_format: str, media: Encoded) -> bool:
    """Whether the duration was written by who made the file; FFmpeg guesses one for formats that carry none."""
    if container_format != "mp3":
        return bool(_DECLARES_DURATION & set(container_format.split(",")))
    with media.file() as file:  # an mp3 declares it in the first frame, which may follow a tag of known length
        tag = file.read(10)
        length = sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
        file.seek(10 + length if tag.startswith(b"ID3") else 0)
        first_frame = file.read(256)
    return b"Xing" in first_frame or b"Info" in first_frame


def seconds_missing_from_wav(media: Encoded) -> float:
    """What the header of a wav file promises beyond the file's end."""
    with media.file() as file:
        if file.read(4) != b"RIFF" or file.seek(8) != 8 or file.read(4) != b"WAVE":
            return 0.0
        bytes_per_second = 0
        while len(header := file.read(8)) == 8:
            size = struct.unpack("<I", header[4:])[0]
            if header[:4] == b"data":
                unknown = size >= _UNKNOWN_SIZE or not bytes_per_second
                return 0.0 if unknown else (size - (media.size - file.tell())) / bytes_per_second
            chunk_end = file.tell() + size + size % 2
            if header[:4] == b"fmt ":
                bytes_per_second = struct.unpack("<8xI", file.read(12))[0]
            file.seek(chunk_end)
    return 0.0


def ends_inside_ogg_page(media: Encoded) -> bool:
    with media.file() as file:
        file.seek(max(0, media.size - 2 * 65_307))  # the longest page, twice: the last header is within
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    return page.startswith(b"OggS") and (len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]))
