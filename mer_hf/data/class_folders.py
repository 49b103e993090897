"""Clips in folders named by emotion, `happy/001.wav` or `train/happy/a/001.wav`: what a manifest would say of them."""

from collections.abc import Sequence
from pathlib import Path

from .field_values import SIDE_OF
from .manifests import Entry, Listed
from .media_check import AUDIO_TYPES, VIDEO_TYPES
from .scanning import Skipped, files_below

# Reasons a file is no clip.
NOT_MEDIA = "neither a sound nor a video file, by its type"
HIDDEN = "a hidden file"
BAD_NAME = "a file name that is not UTF-8; rename it"
NO_CLASS = "not inside a folder that is named by an emotion"


def list_class_folders(root: Path) -> Listed:
    """Each file below a class folder; files that are of none, or no sound and no video, as skipped."""
    skipped = []
    clips: dict[str, list[Path]] = {}
    for path in files_below(root):
        place = path.relative_to(root)
        reason = _refusal(place)
        if reason is None:
            clips.setdefault(place.with_suffix("").as_posix(), []).append(place)
        else:
            skipped.append(Skipped(_printable(place), reason))
    return Listed([entry for files in clips.values() for entry in _entries_of_one_name(files)], skipped, [])


def _printable(place: Path) -> str:
    return place.as_posix().encode("utf-8", "backslashreplace").decode()


def _refusal(place: Path) -> str | None:
    """Why a file gives no row, or None, by its name."""
    if any(part.startswith(".") for part in place.parts):
        return HIDDEN
    if _printable(place) != place.as_posix():
        return BAD_NAME
    if place.suffix.lower() not in AUDIO_TYPES | VIDEO_TYPES:
        return NOT_MEDIA
    return None if len(_class_path(place)[1]) > 1 else NO_CLASS


def _class_path(place: Path) -> tuple[str | None, tuple[str, ...]]:
    """The split, and the parts of the path from the class on."""
    side = SIDE_OF.get(place.parts[0].lower())
    return side, place.parts[1:] if side else place.parts


def _entries_of_one_name(files: Sequence[Path]) -> list[Entry]:
    """A sound and a video are one clip; other files are a clip each."""
    side, parts = _class_path(files[0])
    described = {"label": parts[0], "split": side}
    sounds, videos = (
        [f.as_posix() for f in files if f.suffix.lower() in types] for types in (AUDIO_TYPES, VIDEO_TYPES)
    )
    if len(sounds) == len(videos) == 1:
        return [Entry(sounds[0], described | {"audio": sounds[0], "video": videos[0]})]
    return [Entry(name, described | {"audio": name}) for name in sounds + videos]
