"""Pictures of what a model answered and why. They read in black and white."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

WORDS_A_ROW = 10
KINDS = {
    "text": {"label": "its text", "color": "0.25"},
    "audio": {"label": "its sound", "color": "white", "hatch": "/////"},
    "both": {"label": "both", "color": "0.8"},
}
"""How the bars of a masked word are drawn."""
SIGNS = {True: {"color": "0.25"}, False: {"color": "white", "hatch": "/////"}}
"""How the bars of what speaks for a label and of what speaks against it are drawn."""


def draw_confusion(axes: Any, confusion: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> None:
    """A confusion matrix on a matplotlib `Axes`: per cent of each true emotion's clips, row by row."""
    counts = np.array(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="answered", ylabel="true", title=title)


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
    pyplot, rectangle, patheffects = _matplotlib()
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
            axes.add_patch(span).set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
    axes.set_yticks(range(len(words)), [word["word"] for word in words])
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, label="attention")
    return _save(pyplot, figure, path)


def plot_scores(scores: Sequence[Mapping[str, Any]], path: str | PathLike, title: str = "") -> Path:
    """Write a bar chart of a clip's scores, [{"label", "score"}], best first.

    Raises:
        ImportError: matplotlib is missing, naming the extra.
    """
    pyplot, *_ = _matplotlib()
    figure, axes = pyplot.subplots(figsize=(6, 0.8 + 0.35 * len(scores)), layout="constrained")
    bars = axes.barh([item["label"] for item in scores], [item["score"] for item in scores], color="0.4")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_title(title, fontsize="medium")
    return _save(pyplot, figure, path)


def plot_modalities(explanation: Any, path: str | PathLike, title: str = "") -> Path:
    """Write how each modality's value leads from the baseline to the total of an `explanation.Explanation`.

    Dark bars speak for the label, hatched ones against it; each begins where the one above it ends.

    Raises:
        ImportError: matplotlib is missing, naming the extra.
    """
    pyplot, *_ = _matplotlib()
    names, values = list(explanation.modalities), np.array(list(explanation.modalities.values()))
    edges = explanation.baseline + np.concatenate([[0.0], np.cumsum(values)])
    reach = np.array([*edges, 0.0])
    margin = 0.16 * max(np.ptp(reach), 1e-3)

    figure, axes = pyplot.subplots(figsize=(7, 1.9 + 0.45 * len(names)), layout="constrained")
    axes.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    for row, (start, value) in enumerate(zip(edges[:-1], values, strict=True), start=1):
        axes.barh(row, value, left=start, height=0.6, edgecolor="black", **SIGNS[bool(value >= 0)])
        axes.text(max(start, start + value) + margin / 8, row, f"{value:+.2f}", va="center")
    for row, edge in enumerate(edges):  # what each row hands to the next
        axes.plot([edge, edge], [row + 0.3 * (row > 0), row + 1 - 0.3 * (row < len(names))], "k:", linewidth=1)
    for row, value in ((0, explanation.baseline), (len(names) + 1, explanation.total)):
        axes.plot(value, row, "kD", markersize=6)
        axes.text(value + margin / 6, row, f"{value:+.2f}", va="center")
    axes.set_yticks(range(len(names) + 2), ["given nothing", *names, "given all"])
    axes.set_ylim(len(names) + 1.5, -0.5)
    axes.set_xlim(reach.min() - margin / 2, reach.max() + margin)
    axes.set_xlabel(f"logit of {explanation.label!r} over the mean of all labels")
    axes.set_title(title, fontsize="medium")
    return _save(pyplot, figure, path)


def plot_words(explanation: Any, path: str | PathLike, title: str = "") -> Path:
    """Write the words of an `explanation.Explanation` in their order, each with bars of what its text, its sound and
    both did for the label: up for it, down against it.

    Raises:
        ImportError: matplotlib is missing, naming the extra.
        ValueError: no word of it was masked.
    """
    pyplot, *_ = _matplotlib()
    words = explanation.words or []
    kinds = [kind for kind in KINDS if any(kind in word for word in words)]
    if not kinds:
        raise ValueError("the explanation has no words that were masked; explain a clip with text, with words=True")
    rows = -(-len(words) // WORDS_A_ROW)
    values = [word[kind] for word in words for kind in kinds if kind in word]
    low, high = min(*values, 0.0, -1e-3), max(*values, 0.0, 1e-3)
    columns = min(len(words), WORDS_A_ROW)

    longest = max(len(word["word"]) for word in words)
    size = (max(5.0, 1.2 + max(0.85, 0.1 * longest) * columns), 1.0 + 1.9 * rows)
    figure, grid = pyplot.subplots(rows, 1, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for row, axes in enumerate(grid[:, 0]):
        _draw_words(axes, words[row * WORDS_A_ROW : (row + 1) * WORDS_A_ROW], kinds, columns)
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    figure.supylabel(f"adds to {explanation.label!r} (logits)", fontsize="medium")
    grid[0, 0].set_title(title, fontsize="medium")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds), frameon=False)
    return _save(pyplot, figure, path)


def _draw_words(axes: Any, words: Sequence[Mapping[str, Any]], kinds: Sequence[str], columns: int) -> None:
    width = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        at = [index - 0.4 + width * (place + 0.5) for index, word in enumerate(words) if kind in word]
        axes.bar(at, [word[kind] for word in words if kind in word], width, edgecolor="black", **KINDS[kind])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(words)), [word["word"] for word in words])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, columns - 0.4)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def check_plotting() -> None:
    """Raise ImportError, naming the extra, where no picture can be drawn."""
    _matplotlib()


def plotting_installed() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def _matplotlib() -> tuple[Any, Any, Any]:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "mer-hf[plot]"') from error
    matplotlib.use("Agg")  # files only; a machine without a screen has no other back end
    from matplotlib import patheffects, pyplot
    from matplotlib.patches import Rectangle

    return pyplot, Rectangle, patheffects


def _save(pyplot: Any, figure: Any, path: str | PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
