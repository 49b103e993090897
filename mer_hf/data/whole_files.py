"""Files that are there in whole or not at all, whatever is killed while they are written."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"
"""How the name of a file ends that is being written; one that stays was left by a killed process."""


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside this one, and give it this name when its bytes are on the disk.

    Several processes may write one file at a time: the last one's stays.
    """
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}{UNFINISHED}")
    write(unfinished)
    with unfinished.open("rb+") as written:
        os.fsync(written.fileno())  # else a crash of the machine may leave the name without the bytes
    unfinished.replace(file)
