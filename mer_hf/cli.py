"""`mer-hf predict | train | evaluate | align | demo | doctor`: the package's main calls from a shell.

A mistake of the user's ends in one line on standard error and exit status 1 (2 for a wrong command line).
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    _add_predict(commands.add_parser("predict", help="the emotion of one clip"))
    add_train_options(commands.add_parser("train", help="train and test models fold by fold on a corpus"))
    _add_evaluate(commands.add_parser("evaluate", help="test a checkpoint on one fold of a corpus"))
    _add_align(commands.add_parser("align", help="when each word of a transcript is said"))
    _add_demo(commands.add_parser("demo", help="generate a corpus, train everything, print the table"))
    doctor = commands.add_parser("doctor", help="what is installed and what works here")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)
    return parser


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        print(f"mer-hf: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


# predict


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", help="an audio or video file")
    parser.add_argument("--model", required=True, help="a folder or Hub id of a trained checkpoint")
    parser.add_argument("--text", help="what is said; '' = nothing; left out = recognised, poorly, with a warning")
    parser.add_argument("--words", type=Path, help="JSON file of [{word, start, end}] in seconds instead of --text")
    parser.add_argument("--no_recognize", action="store_true", help="without --text, leave the words out")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--top_k", type=int, help="print only the best")
    parser.add_argument("--json", action="store_true", help="scores, words, modalities and alignment as JSON")
    parser.add_argument(
        "--plot", type=Path, help="write a picture: the alignment where the model has one, else scores"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="use the code that came with the checkpoint")
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> None:
    if options.text is not None and options.words is not None:
        raise ValueError("--text and --words both say what is said; give one")
    if options.plot is not None:
        from .explanation import check_plotting

        check_plotting()
    _quiet_transformers()
    from . import TASK, pipeline

    clip: dict[str, Any] = {"path": options.clip}
    if options.text is not None:
        clip["text"] = options.text
    if options.words is not None:
        clip["words"] = _read_words(options.words)
    _check_folder(options.model)
    _check_device(options.device)
    remote = {"trust_remote_code": True} if options.trust_remote_code else {}
    with _readable_weights(options.model):
        classify = pipeline(TASK, model=options.model, device=options.device, **remote)
    found = classify(clip, return_details=True, recognize=not options.no_recognize, top_k=options.top_k)
    if options.json:
        print(json.dumps(found, default=lambda value: value.tolist(), indent=1))
    else:
        for item in found["scores"]:
            print(f"{item['label']:<12} {item['score']:.3f}")
        print(f"from {', '.join(found['modalities'])}")
    if options.plot is not None:
        _plot(found, options.plot, options.clip)


def _check_folder(model: str) -> None:
    # Otherwise the Hub's client complains about the form of a repository's name.
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).is_dir():
        raise ValueError(f"--model {model}: no such folder; name one that a checkpoint was saved to, or a Hub id")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a name or a machine without one
        raise ValueError(f"--device {device}: {error}") from error


@contextmanager
def _readable_weights(model: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:  # neither a ValueError nor an OSError
        raise ValueError(f"--model {model}: its weights cannot be read ({error})") from error


def _read_words(path: Path) -> list[dict[str, Any]]:
    words = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(words, list) or not all(isinstance(word, dict) and "word" in word for word in words):
        raise ValueError(f"--words {path} must hold a list of {{word, start, end}}")
    return words


def _plot(found: dict[str, Any], path: Path, clip: str) -> None:
    from .explanation import plot_alignment, plot_scores

    title = f"{Path(clip).name}: {found['scores'][0]['label']} {found['scores'][0]['score']:.2f}"
    alignment = found.get("alignment")
    if alignment is not None and alignment["weights"].size and found["words"]:
        plot_alignment(alignment["weights"], alignment["frame_times"], found["words"], path, title)
    else:
        plot_scores(found["scores"], path, title)


# train, evaluate


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Options of `mer-hf train` and `scripts/train.py`."""
    _add_corpus_options(parser)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument(
        "--models",
        type=_names,
        default=["lr", "mman", "text", "cme", "learned_alignment"],
        help="comma-separated: cme, learned_alignment, mman, clstm_mma, text, lr (every logistic regression)",
    )
    parser.add_argument("--test_folds", type=int, nargs="+", help="only these folds, counted from 1; default all")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0")
    parser.add_argument("--epochs", type=int, help="instead of the recipes' own, for a try")
    parser.add_argument("--save_fold", type=int, help="fold whose checkpoint is kept; default the last")
    parser.set_defaults(run=train)


def _add_corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", required=True, choices=["ravdess", "controlled"])
    parser.add_argument("--data_dir", required=True, type=Path, help="your copy of the corpus")
    parser.add_argument("--face_scores", type=Path, help="RAVDESS: Parquet file of emotion scores of the face frames")
    parser.add_argument("--folds", default="emobox", choices=["emobox", "lunajimenez"], help="RAVDESS: whose folds")
    parser.add_argument("--cache_dir", type=Path, help="where word times are kept; default beside the results")


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _load_corpus(options: argparse.Namespace, beside: Path) -> Any:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _quiet_transformers()
    from .corpora import load_corpus

    cache_dir = options.cache_dir or beside / "cache"
    return load_corpus(options.corpus, options.data_dir, cache_dir, options.folds, options.face_scores)


def train(options: argparse.Namespace) -> None:
    """Train and test by recipes; prints one line a finished job, then the table."""
    corpus = _load_corpus(options, options.output_dir)
    from .experiment import results_table, run_experiment
    from .training import process_state

    results = run_experiment(
        corpus,
        options.models,
        options.output_dir,
        seeds=range(options.seeds),
        folds=options.test_folds,
        epochs=options.epochs,
        save_fold=options.save_fold,
        progress=lambda line: print(line, flush=True),
    )
    if process_state().is_main_process:
        print(results_table(results))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_corpus_options(parser)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a trained checkpoint")
    parser.add_argument("--fold", required=True, type=int, help="the fold whose test side is read, counted from 1")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file too")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    _check_folder(options.model)
    corpus = _load_corpus(options, options.output.parent if options.output else Path("runs"))
    from .experiment import evaluate_checkpoint

    with _readable_weights(options.model):
        report = evaluate_checkpoint(corpus, options.model, options.fold)
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


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
    _quiet_transformers()
    from .demo import run_demo

    run_demo(options.output_dir, options.seeds, options.threads)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import run_doctor

    return run_doctor(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
