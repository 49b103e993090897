"""Models and clips that are measured: backbones of base size with random weights, drawn faces that speak noise.

Weights are random because what a backbone costs does not depend on them.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import BertConfig, ViTConfig, ViTImageProcessor, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from . import CMEConfig, CMEForEmotionClassification, MerPreTrainedModel, MerProcessor, word_tokenizer
from .data.drawn_faces import FACES, draw_features, draw_portrait, face_colours
from .data.schema import make_row

RATE = 16_000
SENTENCE = "i never thought that you would come back to this place after all that they had said about us then"
"""Twenty words."""
FACE_SEED = 4
"""Of a drawn face that OpenCV's cascade takes for one."""
CELL = 256
"""Pixels of the face's side; the picture is twice as wide and high."""


def base_configs(layers: int = 12) -> dict[str, Any]:
    """wav2vec2, BERT and ViT of base size, the defaults of transformers, or with fewer layers."""
    depth = {"num_hidden_layers": layers}
    return {
        "audio_config": Wav2Vec2Config(**depth),
        "text_config": BertConfig(**depth),
        "vision_config": ViTConfig(**depth),
    }


def small_configs() -> dict[str, Any]:
    """The same three in miniature, where the backbones' cost is not what is measured."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": (8, 8), "conv_stride": (20, 16), "conv_kernel": (20, 16), "num_conv_pos_embeddings": 4}
    return {
        "audio_config": Wav2Vec2Config(**sizes, **convolutions),
        "text_config": BertConfig(**sizes, vocab_size=40),
        "vision_config": ViTConfig(**sizes, image_size=224, patch_size=56),
    }


def backbone_model(configs: Mapping[str, Any], **processor: Any) -> tuple[MerPreTrainedModel, MerProcessor]:
    """CME over frozen backbones at random, always the same ones, and a processor of 8 frames a video."""
    torch.manual_seed(0)
    model = CMEForEmotionClassification(CMEConfig(**configs, freeze_backbones=("audio", "text", "vision"))).eval()
    parts = Wav2Vec2FeatureExtractor(), word_tokenizer([SENTENCE]), ViTImageProcessor()
    return model, MerProcessor.default(*parts, **processor)


def model_labels() -> tuple[str, ...]:
    """The classes of the measured models."""
    return tuple(CMEConfig(audio_embed_dim=1).id2label.values())


def timed_words(seconds: float, index: int = 0) -> list[dict[str, Any]]:
    """The sentence spread over a clip; index: so that no two clips have the same words at the same times."""
    words = SENTENCE.split()
    edges = np.linspace(0, seconds * (1 - index / 1000), len(words) + 1)
    return [{"word": w, "start": float(a), "end": float(b)} for w, (a, b) in zip(words, pairwise(edges), strict=True)]


def noise_rows(folder: str | Path, clips: int, seconds: float = 4.5) -> list[dict[str, Any]]:
    """Rows of noise in sound and pictures, each with 20 words and their times; the files go to `folder`."""
    random, rows = np.random.default_rng(0), []
    for index in range(clips):
        sound, video = Path(folder) / f"{index}.wav", Path(folder) / f"{index}.mp4"
        soundfile.write(sound, noise(random, seconds), RATE)
        write_video(video, random.integers(0, 255, (round(seconds * 5), 224, 224, 3), dtype=np.uint8), rate=5)
        words, label = timed_words(seconds, index), model_labels()[index % 4]
        values = {"audio": str(sound), "video": str(video), "text": SENTENCE, "words": words, "label": label}
        rows.append(make_row(id=str(index), corpus="noise", **values))
    return rows


def speaking_face(file: Path, seconds: float = 4.5, rate: int = 25) -> Path:
    """An mp4 of a drawn face whose mouth moves, 512 x 512, and of noise for a voice."""
    random = np.random.default_rng(FACE_SEED)
    colours = face_colours(random)
    moments = np.tile(FACES["neutral"], (round(seconds * rate), 1))
    moments[:, 1] = 0.2 * np.abs(np.sin(np.arange(len(moments))))  # how open the mouth is
    faces = draw_features(draw_portrait(colours, 17.0), colours, moments).clip(0, 255).astype(np.uint8)
    enlarged = [np.asarray(Image.fromarray(face).resize((CELL, CELL), Image.Resampling.BICUBIC)) for face in faces]
    border = ((0, 0), (CELL // 2, CELL // 2), (CELL // 2, CELL // 2), (0, 0))
    write_video(file, np.pad(np.stack(enlarged), border, mode="edge"), rate, noise(random, seconds))
    return file


def noise(random: np.random.Generator, seconds: float) -> np.ndarray:
    """White noise (samples,) of deviation 0.1."""
    return (0.1 * random.standard_normal(round(seconds * RATE))).clip(-1, 1).astype(np.float32)


def write_video(file: Path, pictures: Any, rate: int, sound: np.ndarray | None = None) -> None:
    """pictures: an iterable of (height, width, 3) uint8, RGB; sound (samples,) at 16 kHz beside them."""
    with av.open(str(file), "w") as container:
        video, audio = None, None if sound is None else container.add_stream("aac", rate=RATE, layout="mono")
        for picture in pictures:
            if video is None:
                height, width = picture.shape[:2]
                video = container.add_stream("mpeg4", rate=rate, width=width, height=height, pix_fmt="yuv420p")
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, 0 if sound is None else len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(audio.encode(frame))
        if audio is not None:
            container.mux(audio.encode())
