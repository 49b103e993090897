"""Measure the package's speed and memory: python scripts/benchmark.py [--quick] [--ravdess RAVDESS]

Prints a line for every figure: "ok" or "short" beside its bar, or "not measured" and why. With --quick, in 1.5
minutes on two cores, on smaller inputs. Writes benchmark.json, benchmark.md and, where matplotlib is installed,
benchmark.png to --output_dir. The exit status is 1 where a figure is short of its bar.

That a training under torchrun equals one in a single process is no figure: tests/test_distributed.py and the tests of
scripts/train_no_trainer.py compare the two.

On a GPU, where there is one, the group "gpu" measures the same with the card's own clock. That path was written
without a GPU at hand and has not been run.
"""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Read when the libraries load: threads make CPU time depend on what else the machine does.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("MPLBACKEND", "Agg")

from transformers.utils import logging

from mer_hf import benchmark


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer repetitions")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help=f"of {', '.join(benchmark.groups())}")
    parser.add_argument("--ravdess", type=Path, help="your copy of RAVDESS, for figures that need real clips")
    parser.add_argument("--folds", type=int, nargs="+", help="folds of RAVDESS to train and test, default all")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/cache"), help="where word times are kept")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--json", type=Path, help="the JSON file, default benchmark.json in --output_dir")
    parser.add_argument("--keep", action="store_true", help="keep figures of other groups that the JSON file has")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    file = arguments.json or arguments.output_dir / "benchmark.json"
    before = json.loads(file.read_text(encoding="utf-8")) if arguments.keep and file.is_file() else None
    folds = None if arguments.folds is None else tuple(arguments.folds)
    options = benchmark.Options(arguments.quick, arguments.ravdess, arguments.cache_dir, folds)

    found = benchmark.run(options, arguments.only, progress=lambda line: print(line, flush=True))
    values = benchmark.results(found, options, before)
    benchmark.write_json(file, values)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "benchmark.md").write_text(benchmark.results_table(values) + "\n", encoding="utf-8")
    if find_spec("matplotlib"):
        benchmark.plot(values, arguments.output_dir / "benchmark.png")
    return int(any(figure.verdict == "short" for figures in found.values() for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
