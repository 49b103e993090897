"""`mer-hf predict`: the emotion of one clip, and why."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Options of `mer-hf predict`."""
    parser.add_argument("clip", help="an audio or video file")
    parser.add_argument("--model", help="a folder or Hub id of a trained checkpoint; default the package's own")
    parser.add_argument("--text", help="what is said; '' = nothing; left out = see --recognize")
    parser.add_argument("--words", type=Path, help="JSON file of [{word, start, end}] in seconds instead of --text")
    parser.add_argument(
        "--recognize",
        action=argparse.BooleanOptionalAction,
        help="without --text, guess the words, poorly, with a warning; default where --model is given",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--top_k", type=int, help="print only the best")
    parser.add_argument(
        "--explain", action="store_true", help="say what each modality and word did for the best label"
    )
    parser.add_argument(
        "--json", action="store_true", help="scores, words, modalities, alignment, explanation as JSON"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        help="write a picture: with --explain what the words or the modalities did; else the alignment, or scores",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="use the code that came with the checkpoint")
    parser.set_defaults(run=predict)


def predict(options: argparse.Namespace) -> None:
    """Classify a clip and print the scores; see `add_predict_options`.

    Raises:
        ValueError: options that contradict each other, a model or a clip that cannot be used.
    """
    if options.text is not None and options.words is not None:
        raise ValueError("--text and --words both say what is said; give one")
    if options.plot is not None:
        from .plots import check_plotting

        check_plotting()
    quiet_transformers()
    clip: dict[str, Any] = {"path": options.clip}
    if options.text is not None:
        clip["text"] = options.text
    if options.words is not None:
        clip["words"] = _read_words(options.words)
    _check_device(options.device)
    classify = _load(options)
    call = {"top_k": options.top_k} | ({} if options.recognize is None else {"recognize": options.recognize})
    if options.explain:
        _explain(classify, clip, call, options)
        return
    found = classify(clip, return_details=True, **call)
    if options.json:
        print(json.dumps(found, default=lambda value: value.tolist(), indent=1))
    else:
        _print_scores(found["scores"], found["modalities"])
    if options.plot is not None:
        _plot(found, options.plot, options.clip)


def _load(options: argparse.Namespace) -> Callable[..., Any]:
    from . import TASK, load_default, pipeline  # by the package's public names: that registers its classes

    if options.model is None:
        return load_default(device=options.device)
    check_folder(options.model)
    remote = {"trust_remote_code": True} if options.trust_remote_code else {}
    with readable_weights(options.model):
        return pipeline(TASK, model=options.model, device=options.device, **remote)


def _print_scores(scores: list[dict[str, Any]], modalities: Any) -> None:
    for item in scores:
        print(f"{item['label']:<12} {item['score']:.3f}")
    print(f"from {', '.join(modalities)}")


def _explain(classify: Callable[..., Any], clip: dict[str, Any], call: dict[str, Any], options: Any) -> None:
    from .explanation import explain
    from .plots import plot_modalities, plot_words

    found = explain(classify, clip, **call)
    if options.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print_scores(found.scores, found.modalities)
        print(f"\nwhat spoke for {found.label}, in logits ({found.baseline:+.2f} with nothing there):")
        for modality, value in found.modalities.items():
            print(f"{modality:<12} {value:+.2f}")
        for word in found.words or ():
            effects = [f"{kind} {word[kind]:+.2f}" for kind in ("text", "audio", "both") if kind in word]
            print(f"  {word['word']:<14} {'  '.join(effects)}".rstrip())
    if options.plot is not None:
        masked = any(kind in word for word in found.words or () for kind in ("text", "audio"))
        draw = plot_words if masked else plot_modalities
        draw(found, options.plot, f"{Path(options.clip).name}: {found.label} {found.scores[0]['score']:.2f}")


def check_folder(model: str) -> None:
    # Otherwise the Hub's client complains about the form of a repository's name.
    first, *rest = model.split("/")
    looks_like_path = model.startswith((".", "/", "~")) or len(rest) != 1 or Path(first).is_dir()
    if looks_like_path and not Path(model).is_dir():
        raise ValueError(f"--model {model}: no such folder; name one that a checkpoint was saved to, or a Hub id")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a name or a machine without one
        raise ValueError(f"--device {device}: {error}") from error


@contextmanager
def readable_weights(model: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:  # neither a ValueError nor an OSError
        raise ValueError(f"--model {model}: its weights cannot be read ({error})") from error


def _read_words(path: Path) -> list[dict[str, Any]]:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--words {path}: it cannot be read as JSON ({error})") from error
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


def quiet_transformers() -> None:
    """No progress bars and reports between the lines of a command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
