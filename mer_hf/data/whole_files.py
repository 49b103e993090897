"""Files that are there in whole or not at all, whatever is killed while they are written."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
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


def check_same_run(file: Path, made_with: Mapping[str, Any]) -> None:
    """Say in `file` what its folder is made with; a run that goes on there must be made with the same.

    Raises:
        ValueError: it was made otherwise, naming in what.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda unfinished: unfinished.write_text(json.dumps(made_with, indent=1) + "\n"))
    known, wanted = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(made_with))
    differing = sorted(name for name in wanted if known.get(name) != wanted[name])
    if differing:
        raise ValueError(
            f"output_dir: {file.parent} was made with another {', '.join(differing)} ({file.name} tells); name "
            "another folder, or delete this one"
        )
