"""Training of the face branch on one-channel pictures, epoch by epoch, so that it can stop and go on."""

import hashlib
import math
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import ResNetConfig

from ..data.fer2013 import FacePictures
from ..data.whole_files import write_whole
from ..models.configuration_cme import CMEConfig
from ..models.modeling_cme import CMEForEmotionClassification
from .face_pictures import augment
from .frequencies import LABELS, label_ids

MEAN = STD = 0.5
"""Of every channel alike: only then is the luma of normalised channels the normalised luma."""
PICTURES_AT_ONCE = 256
"""Outside training."""


@dataclass(frozen=True)
class FaceRecipe:
    """Architecture and training."""

    image_size: int = 96
    embedding_size: int = 32
    hidden_sizes: tuple[int, ...] = (40, 80, 160)
    depths: tuple[int, ...] = (2, 2, 2)
    head_size: int = 64
    dropout: float = 0.2
    epochs: int = 45
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    label_smoothing: float = 0.1
    mixup: float = 0.2
    """Each batch's share is of Beta(mixup, mixup) (Zhang et al. 2018, https://arxiv.org/abs/1710.09412); 0 = none."""
    averaging: float = 0.999
    """Decay of the moving average of the weights, which is what is kept."""


def make_face_model(recipe: FaceRecipe, num_channels: int = 1) -> CMEForEmotionClassification:
    """The untrained model over pictures of one channel or three."""
    backbone = ResNetConfig(
        num_channels=num_channels,
        embedding_size=recipe.embedding_size,
        hidden_sizes=list(recipe.hidden_sizes),
        depths=list(recipe.depths),
        layer_type="basic",
    )
    config = CMEConfig(
        vision_config=backbone,
        hidden_size=recipe.head_size,
        pooling="mean",
        word_level=False,
        dropout=recipe.dropout,
        id2label=dict(enumerate(LABELS)),
    )
    return CMEForEmotionClassification(config)


def picture_logits(model: CMEForEmotionClassification, pixel_values: Tensor) -> Tensor:
    """Logits of single pictures, (batch, channels, h, w) -> (batch, labels): `forward` on clips of one frame each.

    In one call of the backbone: `forward` takes 32 frames at a time, few for batch normalisation. In training the
    backbone computes in bfloat16, which on CPUs that have it is twice as fast.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
        states = model.vision_model(pixel_values=pixel_values).last_hidden_state
    return model(vision_embeds=states.float().mean(dim=(-2, -1)).unsqueeze(1)).logits


@torch.no_grad()
def grey_logits(model: CMEForEmotionClassification, pictures: Tensor, size: int) -> Tensor:
    """A one-channel model's logits of pictures as they are, (n, 48, 48) uint8 -> (n, labels)."""
    model.eval()
    logits = []
    for part in pictures.split(PICTURES_AT_ONCE):
        values = part.float().div(255).sub(MEAN).div(STD).unsqueeze(1)
        values = nn.functional.interpolate(values, size=(size, size), mode="bilinear", align_corners=False)
        logits.append(picture_logits(model, values.contiguous(memory_format=torch.channels_last)))
    return torch.cat(logits)


class FaceTraining:
    """Model, optimizer and moving average over the epochs.

    An epoch's random numbers follow from seed and epoch alone, so that a training that goes on from a file ends in the
    same weights as one that was never interrupted.
    """

    def __init__(self, recipe: FaceRecipe, seed: int, train: FacePictures, validation: FacePictures):
        torch.manual_seed(seed)
        self.recipe, self.seed = recipe, seed
        self.model = make_face_model(recipe).to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging), use_buffers=True)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, recipe.weight_decay), lr=recipe.learning_rate)
        self.pictures, self.labels = torch.from_numpy(train.pixels), torch.tensor(label_ids(train.labels))
        self.held_out = torch.from_numpy(validation.pixels)
        self.held_out_labels = torch.tensor(label_ids(validation.labels))
        self.data = _digest(train, validation)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """How many are done."""
        return len(self.history)

    def run_epoch(self) -> None:
        """One pass over the training side, then the averaged weights' accuracy on the validation side."""
        begin = process_time()
        seed = 1000 * self.seed + self.epoch
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)
        self.model.train()
        batches = torch.randperm(len(self.labels), generator=generator).split(self.recipe.batch_size)
        if len(batches) > 1 and len(batches[-1]) < self.recipe.batch_size:
            batches = batches[:-1]  # a remainder of a few pictures would spoil the batch statistics
        losses = []
        for number, rows in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * self._schedule(self.epoch + (number + 1) / len(batches))
            losses.append(self._step(rows, generator))
        logits = grey_logits(self.average.module, self.held_out, self.recipe.image_size)
        accuracy = (logits.argmax(-1) == self.held_out_labels).double().mean().item()
        if accuracy > max((entry["validation_accuracy"] for entry in self.history), default=-1.0):
            self.best = {name: value.clone() for name, value in self.average.module.state_dict().items()}
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "loss": sum(losses) / len(losses),
                "validation_accuracy": accuracy,
                "validation_nll": nn.functional.cross_entropy(logits, self.held_out_labels).item(),
                "cpu_seconds": process_time() - begin,
            }
        )

    def best_model(self) -> CMEForEmotionClassification:
        """The averaged weights of the epoch with the best accuracy on the validation side, in evaluation mode.

        Raises:
            ValueError: before the first epoch.
        """
        if not self.best:
            raise ValueError("no epoch has been run yet; call run_epoch first")
        model = make_face_model(self.recipe)
        model.load_state_dict(self.best)
        return model.eval()

    def save(self, path: str | os.PathLike) -> None:
        """Everything that the next epoch depends on; the file is there in whole or as it was."""
        state = {
            "identity": self._identity(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
        }
        write_whole(Path(path), partial(torch.save, state))

    def load(self, path: str | os.PathLike) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: the file is of another recipe, seed or data.
        """
        state = torch.load(path, weights_only=True)
        own, found = self._identity(), state["identity"]
        differing = [name for name in own if own[name] != found.get(name)]
        if differing:
            raise ValueError(
                f"checkpoint {os.fspath(path)} is of another training, it differs in {', '.join(differing)}; delete "
                "it or name another file"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best = state["history"], state["best"]

    def _identity(self) -> dict[str, Any]:
        values = asdict(self.recipe) | {"seed": self.seed, "data": self.data}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _step(self, rows: Tensor, generator: torch.Generator) -> float:
        values = augment(self.pictures[rows], self.recipe.image_size, generator)
        targets = nn.functional.one_hot(self.labels[rows], len(LABELS)).float()
        if self.recipe.mixup > 0:
            share, other = _beta(self.recipe.mixup, generator), torch.randperm(len(rows), generator=generator)
            values = share * values + (1 - share) * values[other]
            targets = share * targets + (1 - share) * targets[other]
        values = ((values - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        logits = picture_logits(self.model, values)
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()

    def _schedule(self, epochs: float) -> float:
        """Share of the learning rate `epochs` into the training: up in a line, down in half a cosine."""
        warmup, end = self.recipe.warmup_epochs, self.recipe.epochs
        if epochs < warmup:
            return epochs / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (epochs - warmup) / max(end - warmup, 1e-9))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases and what batch normalisation scales by do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha): Jöhnk's method, since torch's own takes no generator."""
    while True:
        one, other = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / alpha)).tolist()
        if 0 < one + other <= 1:
            return one / (one + other)


def _digest(*sides: FacePictures) -> str:
    digest = hashlib.sha256()
    for side in sides:
        digest.update(side.pixels.tobytes())
        digest.update("\n".join(side.labels).encode())
    return digest.hexdigest()
