"""Branches that were trained apart -> the folder of the default checkpoint.

No corpus at hand has voice, words and face of the same clips with these labels, so nothing is trained or fitted here:
each branch answers with the probabilities that its own validation side calibrated, as if every emotion were equally
likely, and the three senses are multiplied, as independent ones are. What the fusion of all three is worth on one
corpus was not measured.
"""

import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from transformers import AutoModel, ViTImageProcessor

from ..models.modeling_late_fusion import LateFusionForEmotionClassification
from ..models.processing_mer import MerProcessor
from .loading import WORDS

FACE = "face"
TRIM_DB = 30.0  # what the speech branches were trained with
HALF = f"branches.{FACE}."
"""Weights that are numbers of half precision already and are stored as such."""


def assemble(
    folder: str | PathLike,
    speech: Mapping[str, str | PathLike],
    face: str | PathLike,
    words: str | PathLike,
    speech_weights: Mapping[str, float] | None = None,
) -> Path:
    """Write the checkpoint from the folders of its branches; returns its folder, made anew.

    speech: the branches that hear the voice, by name; together they count as much as the face. speech_weights: how
    they share that, None = equally. face: with its image processor beside it. words: as `words.save_words` wrote it.

    Raises:
        ValueError: what `LateFusionConfig` refuses, or weights for other branches than those of speech.
    """
    folder = Path(folder)
    given = speech_weights or dict.fromkeys(speech, 1.0)
    if set(given) != set(speech):
        raise ValueError(f"speech_weights are for {sorted(given)}, the branches are {sorted(speech)}")
    shares = [given[name] / sum(given.values()) for name in speech]
    branches = {name: AutoModel.from_pretrained(source, dtype=torch.float32) for name, source in speech.items()}
    branches[FACE] = AutoModel.from_pretrained(face, dtype=torch.float32)
    for branch in branches.values():
        branch.config._name_or_path = ""  # a folder of this machine
    model = LateFusionForEmotionClassification.from_branches(branches, weights=[*shares, 1.0], independent=True)
    processor = MerProcessor.default(
        image_processor=ViTImageProcessor.from_pretrained(face), crop_faces=True, trim_db=TRIM_DB
    )
    shutil.rmtree(folder, ignore_errors=True)
    stored = {
        name: value.half() if name.startswith(HALF) and value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=stored)
    model.config.dtype = torch.float32  # what `from_pretrained` loads all weights as
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.copytree(words, folder / WORDS)
    return folder
