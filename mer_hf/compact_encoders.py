"""Small encoders for the controlled corpus, taught by what its generator asked for: prosody, words, expressions.

They play the part that wav2vec2 and ViT play for people: trained once, frozen, their states cached, and the fusion
models trained on those. No emotion label is used here, and only the training sessions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from . import FilterbankConfig, FilterbankModel
from .models.backbones import encode_audio, encode_vision, frames_per_word
from .models.batching import pad_examples
from .models.modeling_cme import pool_word_frames

Progress = Callable[[int, int], None]
ABSOLUTE = ("energy", "rate")
"""Prosody against the speaker's neutral voice. Pitch is not among it: a stranger's neutral pitch is unknown."""
RELATIVE = ("pitch", "energy", "rate")
"""Prosody against the mean of the clip."""
PROSODY_SIZE = len(ABSOLUTE) + len(RELATIVE)
LEXICAL_SIZE = 16
AUDIO_CONFIG = {
    "num_mel_bins": 64,  # 40 do not separate the harmonics of low voices
    "normalization": "global+utterance",
    "conv_dims": (64, 96, PROSODY_SIZE + LEXICAL_SIZE),
    "conv_kernels": (5, 5, 5),
    "conv_strides": (2, 2, 1),  # 40 ms a frame
    "nonlinearity": True,
}
FACE_CONFIG = {"embedding_size": 16, "hidden_sizes": [16, 32, 32], "depths": [1, 1, 1], "layer_type": "basic"}


class SpeechTeacher(nn.Module):
    """The first five values of a word's mean state are its prosody; the rest must tell which word it is."""

    def __init__(self, encoder: FilterbankModel, vocab_size: int):
        super().__init__()
        self.encoder = encoder
        self.words = nn.Linear(LEXICAL_SIZE, vocab_size)

    def forward(self, batch: Mapping[str, Tensor], prosody: Tensor) -> Tensor:
        """batch of input_values, input_ids, word_times; prosody (batch, words, 5) -> loss ()."""
        config = self.encoder.config
        states, mask = encode_audio(self.encoder, batch["input_values"], batch["input_values_mask"])
        times = batch["word_times"] * (16_000 / config.inputs_to_logits_ratio)
        spans = frames_per_word(times, mask.sum(dim=-1), config.frame_reach)
        words = pool_word_frames(states, spans, ("mean",))  # (b, words, 21)
        real = batch["attention_mask"]
        heard, lexical = words[real].split([PROSODY_SIZE, LEXICAL_SIZE], dim=-1)
        told = nn.functional.cross_entropy(self.words(lexical), batch["input_ids"][real])
        return 5.0 * nn.functional.smooth_l1_loss(heard, prosody[real]) + 0.5 * told


class FaceTeacher(nn.Module):
    """The parameters of the drawn face from the encoder's state of each frame."""

    def __init__(self, encoder: ResNetModel, num_parameters: int):
        super().__init__()
        self.encoder = encoder
        self.parameters_of = nn.Linear(encoder.config.hidden_sizes[-1], num_parameters)

    def forward(self, batch: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """batch of pixel_values, targets (batch, frames, parameters) -> loss ()."""
        states, mask = encode_vision(self.encoder, batch["pixel_values"], batch["pixel_values_mask"])
        return nn.functional.smooth_l1_loss(self.parameters_of(states)[mask], targets[mask], beta=0.1)


def train_speech_encoder(
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Tensor]],
    vocab_size: int,
    epochs: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> FilterbankModel:
    """Filterbank and convolutions that hear prosody and words. rows and examples: those of the training sessions."""
    torch.manual_seed(seed)
    encoder = FilterbankModel(FilterbankConfig(**AUDIO_CONFIG))
    fields = ("input_values", "input_ids", "word_times")
    _fit_normalization(encoder, examples)
    targets = _prosody(rows)
    _train(SpeechTeacher(encoder, vocab_size), examples, fields, targets, epochs, 3e-3, 32, seed, progress)
    return encoder.eval()


def train_face_encoder(
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Tensor]],
    epochs: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> ResNetModel:
    """A small ResNet that sees the mouth, brows and eyes. rows and examples: those of the training sessions."""
    torch.manual_seed(seed)
    encoder = ResNetModel(ResNetConfig(**FACE_CONFIG))
    targets = [_at_times(row, example["vision_times"]) for row, example in zip(rows, examples, strict=True)]
    teacher = FaceTeacher(encoder, targets[0].shape[-1])
    _train(teacher, examples, ("pixel_values",), targets, epochs, 5e-3, 16, seed, progress)
    return encoder.eval()


def _prosody(rows: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """What was asked of each word, `ABSOLUTE` then `RELATIVE`, (words, 5), all scaled to deviation 1."""

    def asked(row: Mapping[str, Any], names: Sequence[str]) -> Tensor:
        return torch.tensor([[word[name] for name in names] for word in row["word_prosody"]])

    relative = [asked(row, RELATIVE) for row in rows]
    both = [
        torch.cat([asked(row, ABSOLUTE), words - words.mean(dim=0)], dim=-1)
        for row, words in zip(rows, relative, strict=True)
    ]
    scale = torch.cat(both).std(dim=0)
    return [words / scale for words in both]


def _at_times(row: Mapping[str, Any], times: Tensor) -> Tensor:
    """The face parameters of the frames that were sampled, (frames, parameters)."""
    drawn = torch.tensor(row["face_times"])
    nearest = (drawn - times.unsqueeze(-1)).abs().argmin(dim=-1)
    return torch.tensor(row["face_parameters"])[nearest]


@torch.no_grad()
def _fit_normalization(encoder: FilterbankModel, examples: Sequence[Mapping[str, Tensor]]) -> None:
    with encoder.normalization.normalizations[0].observing():
        for start in range(0, len(examples), 32):
            batch = pad_examples([{"input_values": e["input_values"]} for e in examples[start : start + 32]])
            encoder(batch["input_values"], batch["input_values_mask"])


def _train(
    teacher: nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    fields: Sequence[str],
    targets: Sequence[Tensor],
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> None:
    optimizer = torch.optim.AdamW(teacher.parameters(), learning_rate, weight_decay=0.01)
    steps = epochs * -(-len(examples) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    order = np.random.default_rng(seed)
    teacher.train()
    for epoch in range(epochs):
        shuffled = order.permutation(len(examples))
        for start in range(0, len(examples), batch_size):
            chosen = shuffled[start : start + batch_size]
            batch = pad_examples([{name: examples[i][name] for name in fields} for i in chosen])
            asked = nn.utils.rnn.pad_sequence([targets[i] for i in chosen], batch_first=True)
            loss = teacher(batch, asked)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
