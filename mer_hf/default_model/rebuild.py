"""The default checkpoint from its three corpora: train, measure, assemble, describe."""

import logging
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from .assembly import assemble
from .card import write_card
from .face_results import write_face_branch
from .loading import DEFAULT_CHECKPOINT
from .speech_results import train_speech
from .words_results import write_words

logger = logging.getLogger(__name__)


def rebuild(
    ravdess: str | PathLike,
    fer2013: str | PathLike,
    meld: str | PathLike,
    work_dir: str | PathLike,
    results_dir: str | PathLike,
    face_scores: str | PathLike | None = None,
    folder: str | PathLike = DEFAULT_CHECKPOINT,
    progress: Callable[[str], None] = logger.info,
) -> Path:
    """Train every branch, measure it, and write the checkpoint with its card; returns its folder.

    ravdess, fer2013, meld: your copies of the corpora. work_dir: where trainings are kept; a second run goes on where
    the first was interrupted. results_dir: where default-{speech,face,words}.json go, from which the card is
    made. face_scores: a file of RAVDESS's faces' published scores, to measure voice and face together too. folder:
    made anew.

    Everything is seeded. The same machine gives the same files; another CPU or another number of threads rounds
    otherwise.

    Raises:
        ValueError: what the corpora's builders refuse. ImportError: MiniLM is not installed (`mer-hf[words]`).
    """
    work_dir, results_dir = Path(work_dir), Path(results_dir)
    for made in (work_dir, results_dir):
        made.mkdir(parents=True, exist_ok=True)
    speech = train_speech(
        ravdess, work_dir / "speech", results_dir / "default-speech.json", face_scores, progress=progress
    )
    progress("speech: done")
    write_words(meld, work_dir / "words", results_dir / "default-words.json", work_dir / "seeds", progress=progress)
    progress("words: done")
    checkpoint = work_dir / "face-training.pt"
    write_face_branch(fer2013, work_dir / "face", results_dir / "default-face.json", checkpoint=checkpoint)
    progress("face: done")
    made = assemble(folder, speech, work_dir / "face", work_dir / "words")
    write_card(made, results_dir)
    progress(f"the checkpoint is in {made}")
    return made
