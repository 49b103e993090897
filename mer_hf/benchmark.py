"""How fast and how small the package is, figure by figure beside its bar; `scripts/benchmark.py` runs it.

A figure is a ratio of two measurements taken in one process, one side after the other in turn, or a peak of memory of
a process of its own: what else the machine does then counts for little. Time is CPU time of one thread. A measurement
that cannot be taken gives a figure without a value that says why.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .evaluation import format_table


@dataclass(frozen=True)
class Figure:
    """One thing measured. `at_least` and `at_most` are its bars; a figure without either stands for itself."""

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    """What it was measured on, or why it was not."""

    @property
    def verdict(self) -> str:
        """ok, short, "not measured", or nothing where there is no bar."""
        if self.value is None:
            return "not measured"
        if self.at_least is None and self.at_most is None:
            return ""
        met = (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )
        return "ok" if met else "short"

    @property
    def bar(self) -> str:
        """The bar in words."""
        parts = [(">=", self.at_least), ("<=", self.at_most)]
        return " ".join(f"{sign} {limit:g}" for sign, limit in parts if limit is not None)

    def __str__(self) -> str:
        value = "" if self.value is None else f"{self.value:.4g} {self.unit}".strip()
        bar = f" (bar {self.bar})" if self.bar else ""
        note = f" [{self.note}]" if self.note else ""
        return f"{self.verdict or '-':12s} {self.name}: {value}{bar}{note}"


@dataclass(frozen=True)
class Options:
    """quick: smaller inputs and fewer repetitions; ravdess: the user's copy of RAVDESS, for the figures that need real
    clips; cache_dir: where its word times are kept; folds: those that are trained and tested, None = all."""

    quick: bool = False
    ravdess: Path | None = None
    cache_dir: Path = Path("runs/cache")
    folds: tuple[int, ...] | None = None


Group = Callable[[Options], Iterator[Figure]]
ALONE = ("cme",)
"""Groups whose figures another process beside them spoils: both sides wait for memory, and not alike."""
LONG = ("clip", "cache")
"""Groups that take longest."""


def groups() -> dict[str, Group]:
    """What can be measured, by name, in the order in which it is."""
    from . import (
        benchmark_cache,
        benchmark_clip,
        benchmark_cme,
        benchmark_gpu,
        benchmark_memory,
        benchmark_precision,
        benchmark_start,
    )

    return {
        "start": benchmark_start.figures,
        "cme": benchmark_cme.figures,
        "clip": benchmark_clip.figures,
        "cache": benchmark_cache.figures,
        "memory": benchmark_memory.figures,
        "precision": benchmark_precision.figures,
        "gpu": benchmark_gpu.figures,
    }


def run(
    options: Options, only: Sequence[str] | None = None, progress: Callable[[str], None] = print
) -> dict[str, list[Figure]]:
    """The figures of every group, or of those named; `progress` is called with a line for each.

    torch computes with one thread while they are measured. The quick run measures two groups at a time, in processes
    of their own, but for `ALONE`.

    Raises:
        ValueError: a group that does not exist.
    """
    every = groups()
    unknown = sorted(set(only or ()) - set(every))
    if unknown:
        raise ValueError(f"only: there is no {', '.join(unknown)}; choose from {', '.join(every)}")
    names = [name for name in every if only is None or name in only]
    if not options.quick or len(names) == 1:
        return {name: measure(name, options, progress) for name in names}
    found = {name: measure(name, options, progress) for name in names if name in ALONE}
    found |= _two_at_a_time([name for name in names if name not in ALONE], options, progress)
    return {name: found[name] for name in names}


def measure(name: str, options: Options, progress: Callable[[str], None] | None = None) -> list[Figure]:
    """The figures of one group."""
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for figure in groups()[name](options):
            found.append(figure)
            if progress is not None:
                progress(str(figure))
    finally:
        torch.set_num_threads(threads)
    return found


def _two_at_a_time(names: Sequence[str], options: Options, progress: Callable[[str], None]) -> dict[str, list[Figure]]:
    found = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        longest_first = sorted(names, key=lambda name: name not in LONG)
        tasks = {pool.submit(measure, name, options): name for name in longest_first}
        for task in as_completed(tasks):
            found[tasks[task]] = task.result()
            for figure in task.result():
                progress(str(figure))
    return {name: found[name] for name in names}


def setting(options: Options) -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("torch", "transformers", "numpy", "onnxruntime")
    return {
        "quick": options.quick,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def results(
    found: dict[str, list[Figure]], options: Options, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is written to the JSON file. before: an earlier one, whose other groups are kept.

    Raises:
        ValueError: the earlier one is of another setting.
    """
    where = setting(options)
    kept = {} if before is None else before["figures"]
    if before is not None and before["setting"] != where:
        differing = sorted(name for name in where if before["setting"].get(name) != where[name])
        raise ValueError(f"the earlier results are of another {', '.join(differing)}; measure everything anew")
    measured = {
        name: [asdict(figure) | {"verdict": figure.verdict} for figure in figures] for name, figures in found.items()
    }
    return {
        "setting": where,
        "figures": {name: (kept | measured)[name] for name in groups() if name in kept | measured},
    }


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Values with four digits are enough, and make a file that can be read."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {name: short(inner) for name, inner in value.items()}
        return [short(inner) for inner in value] if isinstance(value, list | tuple) else value

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(short(values), indent=1) + "\n", encoding="utf-8")


def results_table(values: dict[str, Any]) -> str:
    """Markdown of the JSON file's figures."""
    rows = []
    for group, figures in values["figures"].items():
        for entry in figures:
            verdict = entry["verdict"]
            figure = Figure(**{name: value for name, value in entry.items() if name != "verdict"})
            value = "–" if figure.value is None else f"{figure.value:.4g} {figure.unit}".strip()
            rows.append(
                {"group": group, "figure": figure.name, "measured": value, "bar": figure.bar, "": verdict}
                | {"on": figure.note}
            )
    return format_table(rows, ["group", "figure", "measured", "bar", "", "on"])


def plot(values: dict[str, Any], file: Path) -> None:
    """Every figure with a bar as a multiple of it: to the right of the line is better than the bar asks for."""
    from matplotlib import pyplot

    shown = [
        entry for figures in values["figures"].values() for entry in figures if entry["verdict"] in ("ok", "short")
    ]
    margins = [_margin(entry) for entry in shown]
    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(shown) + 1.2), layout="constrained")
    colours = ["0.35" if entry["verdict"] == "ok" else "white" for entry in shown]
    axes.barh(range(len(shown)), [m - 1 for m in margins], left=1, color=colours, edgecolor="black", height=0.6)
    axes.set_yticks(range(len(shown)), [entry["name"] for entry in shown], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("times better than the bar (white: short of it)")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _margin(entry: dict[str, Any]) -> float:
    tiny = sys.float_info.min
    if entry["at_least"] is not None:
        return max(entry["value"], tiny) / entry["at_least"]
    return min(entry["at_most"] / max(entry["value"], tiny), 1e3)
