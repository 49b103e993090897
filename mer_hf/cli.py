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
        from .plots import check_plotting

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
    from .plots import plot_alignment, plot_scores

    title = f"{Path(clip).name}: {found['scores'][0]['label']} {found['scores'][0]['score']:.2f}"
    alignment = found.get("alignment")
    if alignment is not None and alignment["weights"].size and found["words"]:
        plot_alignment(alignment["weights"], alignment["frame_times"], found["words"], path, title)
    else:
        plot_scores(found["scores"], path, title)


# train, evaluate

MODELS = "audio, face, text, cme, cme_<ablation>, learned_alignment, clstm_mma, mman, late_fusion, majority, lr"


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Options of `mer-hf train` and `scripts/train.py`."""
    _add_corpus_options(parser)
    _add_experiment_options(parser)
    parser.set_defaults(run=train)


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Options of `mer-hf evaluate` and `scripts/cross_validate.py`."""
    _add_corpus_options(parser)
    _add_experiment_options(parser)
    parser.add_argument(
        "--enrol",
        type=int,
        nargs="+",
        metavar="CLIPS",
        help="rows for speakers known from so many unlabelled clips each, with --models lr_both,mman",
    )
    parser.add_argument("--model", help="test this saved model (a folder or Hub id) instead of training")
    parser.add_argument("--fold", type=int, help="with --model: the fold to test on; default the one it was kept for")
    parser.add_argument("--output", type=Path, help="with --model: write the report to this JSON file too")
    parser.set_defaults(run=evaluate)


def _add_corpus_options(parser: argparse.ArgumentParser) -> None:
    corpora = ["ravdess", "iemocap", "meld", "crema_d", "folder", "controlled"]
    parser.add_argument("--corpus", required=True, choices=corpora, help="folder = your own clips")
    parser.add_argument(
        "--data_dir", required=True, type=Path, help="your copy; of folder a manifest or class folders"
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        metavar="NAME",
        help="which clips are trained on, validated on and tested on, such as ravdess-emobox, iemocap-4class-loso, "
        "speakers-5fold, leave-one-speaker-out; `paper` beside it adds scores chosen on the test side, as the papers' "
        "released codes do, labelled so",
    )
    parser.add_argument("--channel", choices=["speech", "song", "both"], help="RAVDESS: which of it")
    parser.add_argument("--face_scores", type=Path, help="RAVDESS: Parquet file of emotion scores of the face frames")
    parser.add_argument("--columns", nargs="+", metavar="NAME=COLUMN", help="folder: your names of the columns")
    parser.add_argument("--labels", nargs="+", metavar="WORD=EMOTION", help="folder: your words for emotions")
    parser.add_argument("--speaker_from", metavar="REGEX", help="folder: its first group in a path is the speaker")
    parser.add_argument("--ctc_model", help="place words with this CTC checkpoint instead of PocketSphinx")
    parser.add_argument(
        "--cache_dir", type=Path, help="where word times and vectors are kept; default with the results"
    )


def _add_experiment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", type=Path, help="results, and a checkpoint a model; go on here after a kill")
    parser.add_argument("--models", type=_names, help=f"comma-separated: {MODELS} (every logistic regression)")
    parser.add_argument("--test_folds", type=int, nargs="+", help="only these folds, counted from 1; default all")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0")
    parser.add_argument("--epochs", type=int, help="instead of the recipes' own, for a try")
    parser.add_argument("--save_fold", type=int, help="fold whose checkpoint is kept; default the last")


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _pairs(values: Sequence[str] | None, option: str) -> dict[str, str] | None:
    pairs = [value.partition("=") for value in values or ()]
    wrong = [value for value, (name, _, meant) in zip(values or (), pairs, strict=True) if not name or not meant]
    if wrong:
        raise ValueError(f"{option} {wrong[0]}: write it as NAME=VALUE")
    return {name: meant for name, _, meant in pairs} if values else None


def _load_corpus(options: argparse.Namespace, beside: Path) -> Any:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _quiet_transformers()
    from .corpora import load_corpus

    given = {
        "channel": options.channel,
        "columns": _pairs(options.columns, "--columns"),
        "labels": _pairs(options.labels, "--labels"),
        "speaker_from": options.speaker_from,
    }
    given = {name: value for name, value in given.items() if value is not None}
    allowed = {"ravdess": {"channel"}, "folder": {"columns", "labels", "speaker_from"}}.get(options.corpus, set())
    stray = sorted(set(given) - allowed)
    if stray:
        raise ValueError(f"--{stray[0]} is not an option of --corpus {options.corpus}")
    return load_corpus(
        options.corpus,
        options.data_dir,
        options.cache_dir or beside / "cache",
        _protocol(options),
        options.face_scores,
        _aligner(options.ctc_model),
        **given,
    )


def _aligner(ctc_model: str | None) -> Any:
    if ctc_model is None:
        return None
    from . import CTCWordAligner

    return CTCWordAligner(ctc_model)


def _protocol(options: argparse.Namespace) -> str | None:
    """The honest protocol that was named, None = the corpus's own."""
    names = [name for name in options.protocol or () if name != "paper"]
    if len(names) > 1:
        raise ValueError(f"--protocol {' '.join(names)}: one protocol at a time, with or without paper beside it")
    return names[0] if names else None


def train(options: argparse.Namespace) -> None:
    """Train and test by recipes; prints one line a finished job, then the table."""
    if options.output_dir is None:
        raise ValueError("--output_dir: name a folder for the results and checkpoints")
    corpus = _load_corpus(options, options.output_dir)
    from .experiment import run_experiment
    from .recipes import possible_models
    from .reporting import results_table
    from .training import process_state

    usual = possible_models(corpus, ["majority", "mman", "text", "cme", "learned_alignment"])
    results = run_experiment(
        corpus,
        options.models or [*usual, "lr"],
        options.output_dir,
        seeds=range(options.seeds),
        folds=options.test_folds,
        epochs=options.epochs,
        save_fold=options.save_fold,
        paper="paper" in (options.protocol or ()),
        progress=lambda line: print(line, flush=True),
    )
    if process_state().is_main_process:
        print(results_table(results))


def evaluate(options: argparse.Namespace) -> None:
    """Cross-validate as `train`, or test a saved model and print its report."""
    if options.enrol is not None:
        _enrol(options)
        return
    if options.model is None:
        train(options)
        return
    _check_folder(options.model)
    corpus = _load_corpus(options, options.output.parent if options.output else Path("runs"))
    from .checkpoints import evaluate_checkpoint

    with _readable_weights(options.model):
        report = evaluate_checkpoint(corpus, options.model, options.fold)
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def _enrol(options: argparse.Namespace) -> None:
    if options.output_dir is None or options.model is not None:
        raise ValueError("--enrol trains models of its own: give --output_dir, and no --model")
    corpus = _load_corpus(options, options.output_dir)
    from .enrolment_rows import MODELS as ENROLLABLE
    from .enrolment_rows import enrolment_rows, results_table

    results = enrolment_rows(
        corpus,
        options.output_dir,
        options.models or ENROLLABLE,
        range(options.seeds),
        options.enrol,
        progress=lambda line: print(line, flush=True),
    )
    print(results_table(results))


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
