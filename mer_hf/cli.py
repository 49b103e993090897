"""`mer-hf predict | train | evaluate | align | demo | doctor`: the package's main calls from a shell.

A mistake of the user's ends in one line on standard error and exit status 1 (2 for a wrong command line).
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli_corpora import add_evaluate_options, add_train_options
from .cli_predict import add_predict_options, quiet_transformers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = make_parser().parse_args(arguments)
    warnings.showwarning = _print_warning
    try:
        return options.run(options) or 0
    except (ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"mer-hf {options.command}: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mer-hf {options.command}: interrupted", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="mer-hf", description="Emotion from speech, words and face.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_predict_options(commands.add_parser("predict", help="the emotion of one clip"))
    add_train_options(commands.add_parser("train", help="train and test models fold by fold on a corpus"))
    add_evaluate_options(commands.add_parser("evaluate", help="cross-validate models, or test a saved one"))
    _add_align(commands.add_parser("align", help="when each word of a transcript is said"))
    _add_demo(commands.add_parser("demo", help="generate a corpus, train everything, print the table"))
    doctor = commands.add_parser("doctor", help="what is installed and what works here")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)
    return parser


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        print(f"mer-hf: warning: {' '.join(str(message).split())}", file=sys.stderr)


# align, demo, doctor


def _add_align(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", help="an audio or video file")
    parser.add_argument("--text", required=True, help="what is said")
    parser.add_argument("--json", action="store_true", help="a list of {word, start, end} that predict --words takes")
    parser.set_defaults(run=_align)


def _align(options: argparse.Namespace) -> None:
    from . import WordAligner, load_audio

    found = WordAligner().align(load_audio(options.clip), options.text)
    if options.json:
        print(json.dumps([dict(word) for word in found.words], indent=1))
    else:
        for word in found.words:
            print(f"{word['start']:8.2f} {word['end']:8.2f}  {word['word']}")
    if found.fallback_words:
        print(f"pronounced by spelling, not in the dictionary: {', '.join(found.fallback_words)}", file=sys.stderr)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each a corpus with other speakers")
    parser.add_argument("--threads", type=int, help="torch threads; default at most 2")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    quiet_transformers()
    from .demo import run_demo

    run_demo(options.output_dir, options.seeds, options.threads)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import run_doctor

    return run_doctor(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
