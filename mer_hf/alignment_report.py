"""How well an aligner places the words of a corpus: what it completes, how fast, and how near to true times."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import AlignmentError, CTCWordAligner, WordAligner, load_audio
from .data.word_times import SHORTEST_WORD, alignment_quality, boundary_errors
from .evaluation import format_table

SAMPLING_RATE = 16_000
NEAR = 0.05
"""Seconds; a word whose two boundaries are no further off than this counts as placed well."""


def alignment_report(rows: Sequence[Mapping[str, Any]], aligner: WordAligner | CTCWordAligner) -> dict[str, Any]:
    """Figures over the rows with sound and text, ready for JSON; shares are of those clips.

    A clip is complete when every word of its transcript is placed and at least `SHORTEST_WORD` long. Where rows have
    `words` these are the truth that `boundaries` are held against; times of the aligner's own do not count as one.

    Raises:
        ValueError: no row has sound and text.
    """
    clips = [row for row in rows if row["audio"] is not None and row["text"]]
    if not clips:
        raise ValueError("no row has both sound and text: there is nothing to align")
    tries: Counter[int] = Counter()
    refused, errors, cpu = {}, [], 0.0
    aligner.align(load_audio(clips[0]["audio"]), clips[0]["text"])  # loads its model, which is nobody's cost
    for row in clips:
        audio = load_audio(row["audio"])
        begun = time.process_time()
        try:
            found = aligner.align(audio, row["text"])
        except AlignmentError as error:
            refused[row["id"]] = str(error)
            continue
        finally:
            cpu += time.process_time() - begun
        quality = alignment_quality(found.words, len(audio) / SAMPLING_RATE)
        tries[found.attempts] += quality.long_enough == 1.0
        if row["words"]:
            errors.append(boundary_errors(found.words, row["words"]))
    return {
        "clips": len(clips),
        "shortest_word_s": SHORTEST_WORD,
        "complete_at_once": tries[1] / len(clips),
        "complete": sum(tries.values()) / len(clips),
        "refused": refused,
        "cpu_ms_per_clip": 1000 * cpu / len(clips),
        "boundaries": _boundaries(errors, sum(len(row["words"] or ()) for row in clips)),
    }


def _boundaries(errors: Sequence[np.ndarray], words: int) -> dict[str, Any] | None:
    if not errors:
        return None
    off = np.concatenate(errors)
    return {
        "words": words,
        "placed": len(off) / words,
        "median_error_s": float(np.median(off)),
        "p90_error_s": float(np.quantile(off, 0.9)),
        "words_within_50_ms": float((off <= NEAR).all(axis=1).sum() / words),
    }


def results_table(results: Mapping[str, Any]) -> str:
    """Several reports ({"reports": [...]}) as a Markdown table."""
    rows = []
    for report in results["reports"]:
        row = {"corpus": report["corpus"], "aligner": report["aligner"], "clips": report["clips"]}
        row |= {"complete at once": report["complete_at_once"], "complete": report["complete"]}
        row |= {"CPU ms a clip": report["cpu_ms_per_clip"]}
        if report["boundaries"] is not None:
            row |= {
                "median error, ms": 1000 * report["boundaries"]["median_error_s"],
                "90 %, ms": 1000 * report["boundaries"]["p90_error_s"],
                "words within 50 ms": report["boundaries"]["words_within_50_ms"],
            }
        rows.append(row)
    return format_table(rows, list(max(rows, key=len)))
