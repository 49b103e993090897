"""CPU time of two sides in turn, and peak memory of a process of its own."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""For glibc: what is freed goes back to the system at once, and so does not hide what is asked for after it."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Threads of processes that are measured."""


def cpu_seconds(function: Callable[[], Any], times: int = 1) -> float:
    """CPU seconds of this process that a call takes, the mean of so many."""
    began = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - began) / times


def ratio(first: Callable[[], Any], second: Callable[[], Any], rounds: int, warm: bool = True) -> float:
    """How many times as long the first takes as the second, the median of rounds in which each was called once."""
    if warm:
        first(), second()
    return statistics.median(cpu_seconds(first) / cpu_seconds(second) for _ in range(rounds))


def in_process(module: str, function: str, *arguments: Any) -> Any:
    """What a function of this package gives when a new process calls it; arguments and result as JSON has them."""
    code = f"import json, sys; from {module} import {function}; "
    code += f"print(json.dumps({function}(*json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=os.environ | ENVIRONMENT | GIVE_BACK,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{module}.{function}{arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child_cpu_seconds(command: list[str]) -> float:
    """CPU seconds that a command takes, all of its processes and threads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=os.environ | ENVIRONMENT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_growth(function: Callable[[], Any]) -> int:
    """Bytes by which a call raises this process's peak above what it holds before; to be called in a new process."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak starts again from what is held now
    before = peak_bytes()
    function()
    return peak_bytes() - before


def peak_bytes() -> int:
    """The most memory that this process has held, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
