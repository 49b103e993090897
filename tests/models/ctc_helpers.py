"""A small Wav2Vec2ForCTC that learns to spell the controlled corpus in half a minute, and the clips to try it on.

The word times of the corpus are never shown to it: it is trained as every CTC model is, on sentences. Two things make
half a minute enough. Its feature encoder is set to a bank of band-pass filters and stays so, as fine-tuning wav2vec2
leaves it alone; and the first epochs ask for the letters spread evenly over each clip, the flat start of hidden Markov
models, without which it would say blank for several minutes before it says a letter.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from mer_hf.models.media import load_audio

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
BANDS = 24
PHASES = 4  # of each filter: their rectified outputs add up to the band's envelope
TAPS = 256
SAMPLING_RATE = 16_000


class Clip(NamedTuple):
    """audio (samples,) at 16 kHz, words as in the schema with the times the synthesiser told."""

    audio: np.ndarray
    words: list[dict]

    @property
    def text(self) -> str:
        return " ".join(word["word"] for word in self.words)


def read_clips(corpus: Path, *splits: str) -> list[Clip]:
    """The clips of some splits of a controlled corpus, in the order of its rows."""
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").read_text().splitlines()]
    return [Clip(load_audio(corpus / row["audio"]), row["words"]) for row in rows if row["split"] in splits]


def make_processor(folder: Path, characters: Sequence[str], delimiter: str | None = "|") -> Wav2Vec2Processor:
    """A processor over `<pad> <s> </s> <unk>`, the delimiter if there is one, and these characters, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*SPECIAL, *([delimiter] if delimiter else []), *characters]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), **({"word_delimiter_token": delimiter} if delimiter else {})
    )
    return Wav2Vec2Processor(feature_extractor=Wav2Vec2FeatureExtractor(), tokenizer=tokenizer)


def make_config(vocab_size: int, **values) -> Wav2Vec2Config:
    """20 ms a frame as the real ones; two narrow layers."""
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    sizes = {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "conv_dim": (PHASES * BANDS, BANDS, 2 * BANDS),
        "conv_kernel": (TAPS, 8, 2),
        "conv_stride": (40, 4, 2),
        "num_conv_pos_embeddings": 15,
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": True,
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "pad_token_id": 0,
    }
    return Wav2Vec2Config(vocab_size=vocab_size, **dict.fromkeys(dropouts, 0.0) | sizes | values)


def make_model(vocab_size: int, seed: int = 0, **values) -> Wav2Vec2ForCTC:
    """Untrained, but for the filters of its feature encoder."""
    torch.manual_seed(seed)
    model = Wav2Vec2ForCTC(make_config(vocab_size, **values)).eval()
    filters, envelopes, pairs = model.wav2vec2.feature_extractor.conv_layers
    with torch.no_grad():
        filters.conv.weight.copy_(_band_pass_filters()[:, None])
        filters.layer_norm.weight.fill_(3.0)  # GELU rectifies large values, and only lets small ones through halved
        nn.init.zeros_(envelopes.conv.weight)
        nn.init.zeros_(pairs.conv.weight)
        for band in range(BANDS):
            envelopes.conv.weight[band, PHASES * band : PHASES * (band + 1)] = 1 / envelopes.conv.kernel_size[0]
            for step in range(2):
                pairs.conv.weight[band + step * BANDS, band, step] = 1.0
    return model


def _band_pass_filters() -> Tensor:
    """(phases * bands, taps): sinusoids under a bell as narrow as their band is wide, evenly spaced in mel."""
    mel = np.linspace(np.log1p(150 / 700), np.log1p(7000 / 700), BANDS + 2)
    edges = 700 * np.expm1(mel)
    times = (np.arange(TAPS) - (TAPS - 1) / 2) / SAMPLING_RATE
    rows = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        bell = np.exp(-0.5 * (2 * times * max(high - low, 120)) ** 2) * np.hanning(TAPS)
        for phase in range(PHASES):
            row = bell * np.cos(2 * np.pi * (centre * times + phase / PHASES))
            rows.append(row / np.linalg.norm(row))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def train(
    model: Wav2Vec2ForCTC,
    processor: Wav2Vec2Processor,
    clips: Sequence[Clip],
    epochs: int = 14,
    flat_epochs: int = 4,
    seed: int = 0,
    learning_rate: float = 2e-3,
    batch_size: int = 8,
) -> list[float]:
    """Train all but the feature encoder; the mean loss of each epoch."""
    torch.manual_seed(seed)
    features = [_features(model, processor, clip.audio) for clip in clips]
    vocabulary = processor.tokenizer.get_vocab()
    delimiter = "|" if "|" in vocabulary else ""
    targets = [torch.tensor([vocabulary[char] for char in clip.text.replace(" ", delimiter)]) for clip in clips]
    by_length = sorted(range(len(clips)), key=lambda index: len(features[index]))
    batches = [by_length[start : start + batch_size] for start in range(0, len(clips), batch_size)]
    parameters = [value for name, value in model.named_parameters() if "feature_extractor" not in name]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * len(batches), pct_start=0.1
    )
    model.train()
    losses = []
    for epoch in range(epochs):
        loss_of = _flat_loss if epoch < flat_epochs else _ctc_loss
        total = 0.0
        for batch in torch.randperm(len(batches)).tolist():
            chosen = batches[batch]
            loss = loss_of(model, [features[index] for index in chosen], [targets[index] for index in chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / len(batches))
    model.eval()
    return losses


@torch.no_grad()
def _features(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, audio: np.ndarray) -> Tensor:
    values = processor.feature_extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
    return model.wav2vec2.feature_extractor(values)[0].T


def _logits(model: Wav2Vec2ForCTC, features: list[Tensor]) -> Tensor:
    """Without a mask: clips of a batch are of nearly one length."""
    hidden, _ = model.wav2vec2.feature_projection(nn.utils.rnn.pad_sequence(features, batch_first=True))
    return model.lm_head(model.wav2vec2.encoder(hidden).last_hidden_state)


def _ctc_loss(model: Wav2Vec2ForCTC, features: list[Tensor], targets: list[Tensor]) -> Tensor:
    return nn.functional.ctc_loss(
        _logits(model, features).log_softmax(dim=-1).transpose(0, 1),
        torch.cat(targets),
        torch.tensor([len(clip) for clip in features]),
        torch.tensor([len(letters) for letters in targets]),
        blank=model.config.pad_token_id,
    )


def _flat_loss(model: Wav2Vec2ForCTC, features: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Letters of equal length from 9 % to 92 % of the clip, blank around them."""
    logits = _logits(model, features)
    wanted = torch.full(logits.shape[:2], -100)
    for row, letters in enumerate(targets):
        frames = len(features[row])
        start, end = int(0.09 * frames), int(0.92 * frames)
        wanted[row, :frames] = model.config.pad_token_id
        wanted[row, start:end] = letters[torch.arange(end - start) * len(letters) // (end - start)]
    return nn.functional.cross_entropy(logits.transpose(1, 2), wanted)
