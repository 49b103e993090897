"""`mer-hf train` and `mer-hf evaluate`: protocols on corpora, and saved models on the fold they were kept for."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli_predict import check_folder, quiet_transformers, readable_weights

MODELS = (
    "audio_vector, audio_frames, audio, face, text, cme, cme_<ablation>, learned_alignment, clstm_mma, mman, "
    "late_fusion, majority, lr"
)


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
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME=COLUMN", help="folder: your names of the columns; NAME= drops one"
    )
    parser.add_argument("--encoding", help="folder: of the manifest's text, default utf-8; Excel on Windows: cp1252")
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
    parser.add_argument("--seeds", type=int, help="how many seeds, from 0; default 1")
    parser.add_argument("--epochs", type=int, help="instead of the recipes' own, for a try")
    parser.add_argument("--save_fold", type=int, help="fold whose checkpoint is kept; default the last")


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _pairs(values: Sequence[str] | None, option: str, may_be_empty: bool = False) -> dict[str, str] | None:
    pairs = [value.partition("=") for value in values or ()]
    wrong = [
        value
        for value, (name, equals, meant) in zip(values or (), pairs, strict=True)
        if not name or not equals or not (meant or may_be_empty)
    ]
    if wrong:
        raise ValueError(f"{option} {wrong[0]}: write it as NAME=VALUE")
    return {name: meant for name, _, meant in pairs} if values else None


def _load_corpus(options: argparse.Namespace, beside: Path) -> Any:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_transformers()
    from .corpora import load_corpus

    given = {
        "channel": options.channel,
        "columns": _pairs(options.columns, "--columns", may_be_empty=True),
        "labels": _pairs(options.labels, "--labels"),
        "speaker_from": options.speaker_from,
        "encoding": options.encoding,
    }
    given = {name: value for name, value in given.items() if value is not None}
    allowed = {"ravdess": {"channel"}, "folder": {"columns", "labels", "speaker_from", "encoding"}}.get(
        options.corpus, set()
    )
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
    from .experiment import check_names, run_experiment

    if options.models is not None:
        check_names(options.models)  # before the corpus is read and its words are aligned
    corpus = _load_corpus(options, options.output_dir)
    from .recipes import possible_models
    from .reporting import results_table
    from .training import process_state

    usual = possible_models(corpus, ["majority", "mman", "text", "cme", "learned_alignment"])
    results = run_experiment(
        corpus,
        options.models or [*usual, "lr"],
        options.output_dir,
        seeds=range(_seeds(options)),
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
        _refuse(options, ("fold", "output"), "of a saved --model alone; see --test_folds and --output_dir")
        train(options)
        return
    training = ("models", "test_folds", "epochs", "save_fold", "output_dir", "seeds")
    _refuse(options, training, "of no use to --model, which is tested as it is; see --fold and --output", paper=True)
    check_folder(options.model)
    corpus = _load_corpus(options, options.output.parent if options.output else Path("runs"))
    from .checkpoints import evaluate_checkpoint

    with readable_weights(options.model):
        report = evaluate_checkpoint(corpus, options.model, options.fold)
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def _seeds(options: argparse.Namespace) -> int:
    return 1 if options.seeds is None else options.seeds


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str, paper: bool = False) -> None:
    """Raise ValueError where one of these options, or `--protocol paper`, is given: what has no effect is not dropped
    in silence."""
    given = [f"--{name}" for name in names if getattr(options, name) is not None]
    if paper and "paper" in (options.protocol or ()):
        given.append("--protocol paper")
    if given:
        raise ValueError(f"{', '.join(given)}: {why}")


def _enrol(options: argparse.Namespace) -> None:
    if options.output_dir is None or options.model is not None:
        raise ValueError("--enrol trains models of its own: give --output_dir, and no --model")
    useless = ("test_folds", "epochs", "save_fold", "fold", "output")
    why = "of no use to --enrol, which runs all folds by the recipes and keeps no model"
    _refuse(options, useless, why, paper=True)
    corpus = _load_corpus(options, options.output_dir)
    from .enrolment_rows import MODELS as ENROLLABLE
    from .enrolment_rows import enrolment_rows, results_table

    results = enrolment_rows(
        corpus,
        options.output_dir,
        options.models or ENROLLABLE,
        range(_seeds(options)),
        options.enrol,
        progress=lambda line: print(line, flush=True),
    )
    print(results_table(results))
