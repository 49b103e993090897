"""A clip's way from its file to its scores, beside what its backbones, decoding and face detection take alone."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from . import MultimodalEmotionRecognitionPipeline, load_audio, load_frames
from .benchmark import Figure, Options
from .benchmark_clips import backbone_model, base_configs, speaking_face, timed_words
from .benchmark_measure import cpu_seconds
from .models.media import crop_face


def figures(options: Options) -> Iterator[Figure]:
    """One figure: the pipeline over the sum of its parts, each side in turn."""
    name = "file to scores, of bare backbones + decoding + face detection"
    rounds, seconds = (1, 1.5) if options.quick else (5, 4.5)
    with tempfile.TemporaryDirectory() as folder:
        file = speaking_face(Path(folder) / "clip.mp4", seconds)
        model, processor = backbone_model(base_configs(), crop_faces=True)
        classify = MultimodalEmotionRecognitionPipeline(model, processor)
        clip = {"path": str(file), "words": timed_words(seconds)}
        example = classify.preprocess(clip).turns[0].example
        if len(example.get("pixel_values", ())) != 8:
            yield Figure(name, None, "", at_most=1.10, note="the drawn face is not found in all of 8 frames")
            return
        parts = bare_parts(model, str(file), example)
        with torch.inference_mode():
            for part, call in parts.items():
                if part != "ViT":  # which takes longest and shares its kernels with BERT
                    call()
        ratios, shares = [], []
        for _ in range(rounds):
            with torch.inference_mode():
                alone = {part: cpu_seconds(call) for part, call in parts.items()}
            ratios.append(cpu_seconds(partial(classify, clip)) / sum(alone.values()))
            shares.append(alone)
        each = ", ".join(f"{part} {median(s[part] for s in shares):.3f}" for part in parts)
        note = f"clip of {seconds} s, 8 frames, base size, CPU seconds: {each}"
        yield Figure(name, median(ratios), "", at_most=1.10, note=note)


def bare_parts(model: Any, file: str, example: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What cannot be done without, part by part."""
    frames = load_frames(file, 8)[0]
    batch = {name: example[name][None] for name in ("input_values", "input_ids")}
    return {
        "wav2vec2": lambda: model.audio_model(batch["input_values"]),
        "BERT": lambda: model.text_model(batch["input_ids"]),
        "ViT": lambda: model.vision_model(example["pixel_values"]),
        "decoding": lambda: (load_audio(file), load_frames(file, 8)),
        "face detection": lambda: crop_face(frames),
    }
