"""int8, bfloat16 and ONNX: how much faster than the model in float32, and what they change."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .benchmark import Figure, Options
from .benchmark_clips import RATE, backbone_model, base_configs, noise, small_configs, timed_words
from .benchmark_measure import cpu_seconds
from .corpora import load_corpus
from .export import OnnxModel, autocast_bfloat16, export_onnx, quantize_int8
from .recipes import RECIPES
from .training import fit, predict_logits

TRAINED = ("cme",)
"""Recipes whose models are measured on real clips; they read the waveform, as a graph of them must."""
SIZES = ((0.4, 2, 1), (1.3, 7, 4), (3.7, 20, 8))
"""Seconds, words and frames of clips, none of them those of the export."""


def figures(options: Options) -> Iterator[Figure]:
    """Speed on backbones of base width, the graph at other lengths, and RAVDESS."""
    layers, rounds = (1, 1) if options.quick else (12, 5)
    model, processor = backbone_model(base_configs(layers))
    clip = example(processor, *((1.5, 20, 8) if options.quick else (4.5, 20, 8)))
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Any] = {"int8": quantize_int8(model), "bf16": autocast_bfloat16(copy.deepcopy(model))}
        if not options.quick and onnx_installed():
            sides["ONNX"] = OnnxModel(export_onnx(model, processor, folder), threads=1)
        yield from speeds(model, sides, clip, rounds, layers)
    yield onnx_figure(options)
    yield from real_clips(options)


def onnx_installed() -> bool:
    """Whether the extra `export` is there."""
    return all(find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))


def example(processor: Any, seconds: float, words: int, frames: int) -> dict[str, Tensor]:
    """A batch of one random clip."""
    random = np.random.default_rng(frames)
    clip = processor.example(
        audio=noise(random, seconds),
        words=timed_words(seconds)[:words],
        frames=random.integers(0, 256, (frames, 224, 224, 3), dtype=np.uint8),
        frame_times=np.linspace(0, seconds, frames),
    )
    return processor.pad([clip])


@torch.inference_mode()
def speeds(model: Any, sides: Mapping[str, Any], clip: Mapping[str, Tensor], rounds: int, layers: int) -> list[Figure]:
    """Of each side how many times as fast it is as the model, all in turn."""
    expected = model(**clip).logits
    off = {name: float((side(**clip).logits - expected).abs().max()) for name, side in sides.items()}
    every = {"": model, **sides}
    times = [{name: cpu_seconds(partial(side, **clip)) for name, side in every.items()} for _ in range(rounds)]
    about = f"a clip of {clip['input_values'].shape[1] / RATE:g} s, 8 frames; base-size backbones of {layers} layers"
    return [
        Figure(
            f"{name}: times faster than float32",
            median(spent[""] / spent[name] for spent in times),
            "x",
            note=f"{about}, random; logits up to {float(expected.abs().max()):.3f} change by at most {off[name]:.1e}",
        )
        for name in sides
    ]


@torch.inference_mode()
def onnx_figure(options: Options) -> Figure:
    """The largest difference of logits at lengths that the export did not see."""
    name = "ONNX: logits off the model's at lengths not seen at export"
    if not onnx_installed():
        return Figure(name, None, "", at_most=1e-4, note="the extra `export` is not installed")
    model, processor = backbone_model(small_configs())
    with tempfile.TemporaryDirectory() as folder:
        graph = OnnxModel(export_onnx(model, processor, folder), threads=1)
        clips = [example(processor, *size) for size in SIZES]
        off = max(float((graph(**clip).logits - model(**clip).logits).abs().max()) for clip in clips)
    return Figure(name, off, "", at_most=1e-4, note=f"CME over small wav2vec2, BERT and ViT; {SIZES} s, words, frames")


def real_clips(options: Options) -> Iterator[Figure]:
    """What each precision changes on RAVDESS's folds, models trained here by the recipes."""
    if options.quick or options.ravdess is None:
        why = "the full run alone trains" if options.quick else "needs --ravdess, a copy of RAVDESS"
        for recipe in TRAINED:
            for side in ("int8", "bf16", "ONNX"):
                yield Figure(f"{recipe}, {side}: change of WA on RAVDESS's folds", None, "points", note=why)
        return
    corpus = load_corpus("ravdess", options.ravdess, options.cache_dir)
    splits = [split for split in corpus.splits if options.folds is None or split.fold in options.folds]
    for recipe in TRAINED:
        answers = [fold_answers(RECIPES[recipe](corpus, split, 0)) for split in splits]
        yield from real_figures(recipe, answers, [split.fold for split in splits])


def fold_answers(plan: Any) -> dict[str, dict[str, Any]]:
    """Logits of the test clips and CPU seconds they took, one clip at a time, of a newly trained model."""
    with tempfile.TemporaryDirectory() as folder:
        fit(plan.model, plan.train, plan.validation, plan.settings, Path(folder) / "fit", plan.statistics)
        model = plan.model.cpu()
        predict_logits(model, plan.test)  # decodes the clips, which the data set then keeps
        sides = {"float32": model, "int8": quantize_int8(model), "bf16": autocast_bfloat16(copy.deepcopy(model))}
        if onnx_installed():
            sides["ONNX"] = OnnxModel(export_onnx(model, plan.processor, Path(folder) / "onnx"), threads=1)
        answers: dict[str, dict[str, Any]] = {}
        for name, side in sides.items():

            def answer(name: str = name, side: Any = side) -> None:
                logits, labels = predict_logits(side, plan.test, batch_size=1)
                answers[name] = {"logits": logits, "labels": labels}

            seconds = cpu_seconds(answer)
            answers[name]["seconds"] = seconds
    return answers


def real_figures(recipe: str, folds: list[dict[str, dict[str, Any]]], numbers: list[int]) -> list[Figure]:
    """Over the clips of all folds."""
    whole = {name: {key: [fold[name][key] for fold in folds] for key in folds[0][name]} for name in folds[0]}
    labels, plain = np.concatenate(whole["float32"]["labels"]), np.concatenate(whole["float32"]["logits"])
    found = []
    for name in (name for name in whole if name != "float32"):
        logits = np.concatenate(whole[name]["logits"])
        was, now = (100 * float((values.argmax(axis=1) == labels).mean()) for values in (plain, logits))
        ratio = sum(whole["float32"]["seconds"]) / sum(whole[name]["seconds"])
        note = f"WA {was:.2f} to {now:.2f} over {len(labels)} clips of folds {numbers}, seed 0; {ratio:.2f} times as "
        note += f"fast clip by clip; logits up to {np.abs(plain).max():.1f} change by at most "
        note += f"{np.abs(logits - plain).max():.1e}"
        found.append(Figure(f"{recipe}, {name}: change of WA on RAVDESS's folds", now - was, "points", note=note))
    return found
