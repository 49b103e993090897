"""Peak memory of predicting recordings of any length, against that of a clip of ten seconds."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from . import FilterbankConfig, MMANConfig, MMANForEmotionClassification, MultimodalEmotionRecognitionPipeline
from .benchmark import Figure, Options
from .benchmark_clips import RATE, noise, small_configs, write_video
from .benchmark_measure import in_process, peak_bytes
from .long_recordings import predict_windows
from .models.processing_mer import MerProcessor

CLIP = 10
"""Seconds of the clip that is compared with."""
PICTURES_A_SECOND = 5


def figures(options: Options) -> Iterator[Figure]:
    """Sound alone, and sound with pictures."""
    minutes = {"wav": 3 if options.quick else 60, "mp4": 1 if options.quick else 10}
    writers = {"wav": _write_sound, "mp4": _write_film}
    with tempfile.TemporaryDirectory() as folder:
        for kind, length in minutes.items():
            files = [Path(folder) / f"{seconds}.{kind}" for seconds in (CLIP, 60 * length)]
            for file, seconds in zip(files, (CLIP, 60 * length), strict=True):
                writers[kind](file, seconds)
            (_, clip), (windows, whole) = in_process(__name__, "peaks", [str(file) for file in files], kind == "mp4")
            files[1].unlink()
            name = f"{length} min of {'video' if kind == 'mp4' else 'sound'}: memory more than for {CLIP} s"
            note = f"{kind}, {windows} windows of 6 s, {clip / 1e6:.0f} MB for the clip"
            yield Figure(name, (whole - clip) / 1e6, "MB", at_most=300, note=note)


def _write_sound(file: Path, seconds: int) -> None:
    random = np.random.default_rng(0)
    with soundfile.SoundFile(file, "w", RATE, 1, "PCM_16") as out:
        for _ in range(seconds):
            out.write(noise(random, 1.0))


def _write_film(file: Path, seconds: int) -> None:
    random = np.random.default_rng(0)
    pictures = (random.integers(0, 255, (240, 320, 3), dtype=np.uint8) for _ in range(seconds * PICTURES_A_SECOND))
    write_video(file, pictures, PICTURES_A_SECOND, noise(random, seconds))


def peaks(files: list[str], pictures: bool) -> list[tuple[int, int]]:
    """Windows of each recording, and the most memory this process has held by its end; in a process of its own.

    The model is small: backbones of any size would add the same to all.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vision = {"vision_config": small_configs()["vision_config"]} if pictures else {}
    network = {} if pictures else {"network": "unimodal"}
    config = MMANConfig(audio_config=FilterbankConfig(conv_dims=(8, 8, 8)), **vision, **network, hidden_size=8)
    classify = MultimodalEmotionRecognitionPipeline(MMANForEmotionClassification(config), MerProcessor.default())
    found = []
    for file in files:
        windows = sum(1 for _ in predict_windows(classify, file, seconds=6.0, words=[]))
        found.append((windows, peak_bytes()))
    return found
