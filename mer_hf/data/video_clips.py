"""Stretches of a long video as files of their own, and one half of the picture where two people share it."""

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from ..models.media import MediaError, encoded, import_av, open_container, stream_of


class Clip(NamedTuple):
    """A stretch of a video, in seconds, and the file for it; side None = all of the picture."""

    file: Path
    start: float
    end: float
    side: str | None


def cut_clips(video: str | os.PathLike, clips: Sequence[Clip]) -> str | None:
    """Write stretches of one video to mp4 files, without sound, in one pass; they may overlap.

    A clip holds the frames shown from start up to end. One that the video does not reach the end of is not written
    (the last frame may be 0.25 s early). Returns what broke the video off, None = nothing.

    Raises:
        ImportError: where PyAV is missing, naming the package.
    """
    waiting = sorted(clips, key=lambda clip: clip.start)
    open_clips: list[_ClipWriter] = []
    last, broken = 0.0, None
    try:
        for seconds, rate, frame in _frames(video):
            last = seconds
            while waiting and waiting[0].start <= seconds:
                open_clips.append(_ClipWriter(waiting.pop(0), rate))
            for writer in [writer for writer in open_clips if writer.clip.end <= seconds]:
                open_clips.remove(writer)
                writer.close(complete=True)
            picture = frame.to_ndarray(format="rgb24") if open_clips else None
            for writer in open_clips:
                writer.add(seconds, picture)
            if not waiting and not open_clips:
                break
    except MediaError as error:
        broken = str(error)
    finally:
        for writer in open_clips:
            writer.close(complete=writer.clip.end - last <= 0.25)
    return broken


def _frames(video: str | os.PathLike) -> Iterator[tuple[float, Fraction, Any]]:
    """(seconds, frames a second, frame) of every frame. Time 0 is the first frame: old avi files count from 0 or 1."""
    media = encoded(video)
    with open_container(media) as container:
        stream = stream_of(container, "video", media.name)
        first = None
        for frame in container.decode(stream):
            if frame.pts is not None:
                first = frame.pts if first is None else first
                yield float((frame.pts - first) * stream.time_base), stream.average_rate, frame


class _ClipWriter:
    """Encodes one clip into a file beside its own, which takes its name when it is complete."""

    def __init__(self, clip: Clip, rate: Fraction) -> None:
        self.clip = clip
        self.part = clip.file.with_name(f"{clip.file.name}.{os.getpid()}.part")
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.container = import_av().open(str(self.part), "w", format="mp4")
        self.stream = self.container.add_stream(
            "libx264", rate=rate, options={"crf": "18", "bf": "0", "preset": "veryfast"}
        )
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, 90_000)
        self.frames = 0

    def add(self, seconds: float, picture: Any) -> None:
        half = picture.shape[1] // 2
        columns = {None: slice(None), "left": slice(half), "right": slice(half, None)}[self.clip.side]
        picture = picture[:, columns]
        picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]  # yuv420p wants even sides
        frame = import_av().VideoFrame.from_ndarray(picture.copy(), format="rgb24")
        frame.pts, frame.time_base = round((seconds - self.clip.start) * 90_000), Fraction(1, 90_000)
        if not self.frames:
            self.stream.height, self.stream.width = picture.shape[:2]
        self.container.mux(self.stream.encode(frame))
        self.frames += 1

    def close(self, complete: bool) -> None:
        if self.frames:
            self.container.mux(self.stream.encode())
        self.container.close()
        if complete and self.frames:
            os.replace(self.part, self.clip.file)
        else:
            os.remove(self.part)
