"""Pictures of what a model attended to. They read in black and white."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np


def plot_alignment(
    weights: np.ndarray,
    frame_times: np.ndarray,
    words: Sequence[Mapping[str, Any]],
    path: str | PathLike,
    title: str = "",
) -> Path:
    """Write a picture of a word x frame attention; where words have times, their true spans are framed.

    weights (words, frames), each row summing to 1; frame_times (frames,) in seconds; words [{"word"}] with or
    without "start" and "end".

    Raises:
        ImportError: matplotlib is missing, naming the extra.
        ValueError: weights that do not match words and frames.
    """
    pyplot, rectangle = _matplotlib()
    weights, frame_times = np.asarray(weights, dtype=float), np.asarray(frame_times, dtype=float)
    if weights.shape != (len(words), len(frame_times)) or not weights.size:
        raise ValueError(f"weights {weights.shape} are not ({len(words)} words, {len(frame_times)} frames), 1 or more")
    step = frame_times[1] - frame_times[0] if len(frame_times) > 1 else 0.01
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.4 * len(words)), layout="constrained")
    extent = (frame_times[0], frame_times[-1] + step, len(words) - 0.5, -0.5)
    image = axes.imshow(weights, aspect="auto", cmap="Greys", extent=extent, interpolation="nearest", vmin=0)
    for row, word in enumerate(words):
        if "start" in word:
            corner = (word["start"], row - 0.5)
            span = rectangle(corner, word["end"] - word["start"], 1, fill=False, linestyle="--", linewidth=1.2)
            axes.add_patch(span)
    axes.set_yticks(range(len(words)), [word["word"] for word in words])
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, label="attention")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def plot_scores(scores: Sequence[Mapping[str, Any]], path: str | PathLike, title: str = "") -> Path:
    """Write a bar chart of a clip's scores, [{"label", "score"}], best first.

    Raises:
        ImportError: matplotlib is missing, naming the extra.
    """
    pyplot, _ = _matplotlib()
    figure, axes = pyplot.subplots(figsize=(6, 0.8 + 0.35 * len(scores)), layout="constrained")
    bars = axes.barh([item["label"] for item in scores], [item["score"] for item in scores], color="0.4")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_title(title, fontsize="medium")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def check_plotting() -> None:
    """Raise ImportError, naming the extra, where no picture can be drawn."""
    _matplotlib()


def plotting_installed() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "mer-hf[plot]"') from error
    matplotlib.use("Agg")  # files only; a machine without a screen has no other back end
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    return pyplot, Rectangle
