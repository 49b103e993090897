"""The face branch of the default checkpoint: a small ResNet on FER2013's pictures, as one of the package's models.

    pixel_values (b, frames, 3, 96, 96)
      |- ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385), spatial mean -- a vector a frame
      |- Linear, mean over the frames --------------------------------------------- a vector a clip
      +- CME's recurrent layer on this one vector, Linear ------------------------- logits (b, 7)

- The pictures are grey and videos are not: the stem is trained on one channel and then repeated for red, green and
  blue with the weights of luma (`see_colour`), which is the same network on the grey picture.
- A picture is a clip of one frame. The recurrent layer never takes a second step in training, so what would carry
  something from step to step is switched off (`without_memory`): the branch says the same whatever number of words or
  turns stands beside the face.
- The branches of a fusion come from corpora with other frequencies, so those of FER2013 are taken out of the
  classifier's bias once the temperature is known (`assume_equal_frequencies`).
- The weights are numbers of half precision (`round_to_half`), and what is measured is the model with these.

Training is deterministic for a seed on one thread of one kind of CPU, interrupted or not.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ViTImageProcessor

from ..calibration import fit_temperature
from ..data.fer2013 import FacePictures, load_fer2013
from ..models.modeling_cme import CMEForEmotionClassification
from .face_training import (
    MEAN,
    PICTURES_AT_ONCE,
    STD,
    FaceRecipe,
    FaceTraining,
    make_face_model,
)
from .frequencies import LABELS, assume_equal_frequencies, frequency_logits, label_ids

logger = logging.getLogger(__name__)

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey, Rec. ITU-R BT.601; Pillow's and OpenCV's too."""
CLOSED = -30.0
"""Bias of a gate that is shut: its sigmoid, 1e-13, is lost in any float32 sum."""


@dataclass(frozen=True)
class FaceBranch:
    """The finished branch and how it came about."""

    model: CMEForEmotionClassification
    """Assumes equally likely emotions; its `calibration_temperature` is fitted."""
    image_processor: ViTImageProcessor
    recipe: FaceRecipe
    seed: int
    counts: tuple[int, ...]
    """Pictures of each of LABELS on the training side"""
    history: list[dict[str, float]]
    """Of each epoch: loss, validation accuracy and NLL of the averaged weights, CPU seconds"""
    half_precision_change: float
    """The greatest change of a validation logit by rounding the weights"""

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept, from 1."""
        return int(max(self.history, key=lambda entry: entry["validation_accuracy"])["epoch"])

    @property
    def frequency_logits(self) -> Tensor:
        """What added to the logits gives back FER2013's frequencies, (labels,): T log prior."""
        return frequency_logits(self.counts, self.model.config.calibration_temperature)


def face_image_processor(image_size: int = FaceRecipe.image_size) -> ViTImageProcessor:
    """The image processor that goes with the branch; `MerProcessor` needs `crop_faces=True` beside it."""
    return ViTImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )


def train_face(
    data_dir: str | os.PathLike,
    seed: int = 0,
    recipe: FaceRecipe | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> FaceBranch:
    """Train on the training side, keep the epoch that is best on the validation side, finish it; test is not read.

    checkpoint: a file that is written after every epoch and from which an interrupted training goes on.

    Raises:
        ValueError: what `load_fer2013` refuses; a checkpoint of another recipe, seed or data.
    """
    sides = load_fer2013(data_dir, ("train", "validation"))
    training = FaceTraining(recipe or FaceRecipe(), seed, sides["train"], sides["validation"])
    if checkpoint is not None and Path(checkpoint).is_file():
        training.load(checkpoint)
    while training.epoch < training.recipe.epochs:
        training.run_epoch()
        logger.info("face branch: %s", training.history[-1])
        if checkpoint is not None:
            training.save(checkpoint)
    return finish(training, sides["train"], sides["validation"])


def finish(training: FaceTraining, train: FacePictures, validation: FacePictures) -> FaceBranch:
    """The best epoch's weights -> the branch: colour, no memory, half precision, a temperature, equal frequencies."""
    exact = without_memory(see_colour(training.best_model(), training.recipe))
    image_processor = face_image_processor(training.recipe.image_size)
    before = face_logits(exact, image_processor, validation.pixels)
    model = round_to_half(exact)
    logits, labels = face_logits(model, image_processor, validation.pixels), np.array(label_ids(validation.labels))
    model.config.calibration_temperature = fit_temperature(logits.numpy(), labels)
    counts = tuple(np.bincount(label_ids(train.labels), minlength=len(LABELS)).tolist())
    assume_equal_frequencies(model.classifier, counts, model.config.calibration_temperature)
    return FaceBranch(
        model=round_to_half(model),
        image_processor=image_processor,
        recipe=training.recipe,
        seed=training.seed,
        counts=counts,
        history=list(training.history),
        half_precision_change=(logits - before).abs().max().item(),
    )


@torch.no_grad()
def see_colour(model: CMEForEmotionClassification, recipe: FaceRecipe) -> CMEForEmotionClassification:
    """A copy that reads three channels and says of them what the model says of their luma.

    A convolution is linear: sum_c (w_c K) * x_c = K * (sum_c w_c x_c), with w = LUMA, which sums to 1.
    """
    state = model.state_dict()
    stem = "vision_model.embedder.embedder.convolution.weight"  # (out, 1, 7, 7)
    state[stem] = state[stem] * torch.tensor(LUMA).view(1, 3, 1, 1)
    colour = make_face_model(recipe, num_channels=3)
    colour.load_state_dict(state)
    return colour.eval()


@torch.no_grad()
def without_memory(model: CMEForEmotionClassification) -> CMEForEmotionClassification:
    """The same model, changed: each step of its recurrent layer depends on that step's input alone.

    The first step is as before, since it starts from zeros: the recurrent weights get nothing and the forget gate
    multiplies nothing.
    """
    for layer in (*model.rnn.forward_layers, *model.rnn.backward_layers):
        forget = slice(layer.hidden_size, 2 * layer.hidden_size)  # torch's order: input, forget, cell, output
        layer.weight_hh_l0.zero_()
        layer.weight_ih_l0[forget] = 0.0
        layer.bias_hh_l0[forget] = 0.0
        layer.bias_ih_l0[forget] = CLOSED
    return model


@torch.no_grad()
def round_to_half(model: CMEForEmotionClassification) -> CMEForEmotionClassification:
    """A float32 copy whose weights are numbers of half precision, so that a file of half the size loses nothing.

    Raises:
        ValueError: a weight beyond half precision's range.
    """
    copy = type(model)(type(model.config).from_dict(model.config.to_dict()))
    state = {
        name: value.half().float() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    infinite = [name for name, value in state.items() if not value.isfinite().all()]
    if infinite:
        raise ValueError(f"weights {infinite} are beyond half precision's range")
    copy.load_state_dict(state)
    return copy.eval()


@torch.no_grad()
def face_logits(
    model: CMEForEmotionClassification, image_processor: ViTImageProcessor, pictures: NDArray[np.uint8]
) -> Tensor:
    """Logits of pictures as clips of one frame, through the image processor as a video's crops go.

    pictures (n, height, width), grey -> (n, labels).
    """
    logits = []
    for begin in range(0, len(pictures), PICTURES_AT_ONCE):
        frames = [np.repeat(picture[..., None], 3, axis=-1) for picture in pictures[begin : begin + PICTURES_AT_ONCE]]
        values = image_processor(frames, return_tensors="pt").pixel_values
        logits.append(model(pixel_values=values.unsqueeze(1)).logits)
    return torch.cat(logits)


def save_face_branch(branch: FaceBranch, folder: str | os.PathLike) -> None:
    """Write the model (in half precision; it loads as float32) and its image processor."""
    half = round_to_half(branch.model).half()
    half.save_pretrained(folder)
    config = branch.model.config
    config.dtype = torch.float32  # what `from_pretrained` loads the weights as
    config.architectures = [type(branch.model).__name__]
    config.save_pretrained(folder)
    branch.image_processor.save_pretrained(folder)
