"""What a cached state depends on: the clip's content, the backbone's configuration and weights, and what comes before
the backbone. All as hashes, so that a key says nothing of names, places and dates of files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..models.media import encoded
from .feature_shards import digest

VOLATILE = ("_name_or_path", "transformers_version", "dtype", "architectures", "auto_map", "processor_class")
"""Fields of a configuration that say nothing of what is computed."""
TRAINING_ONLY = ("masked_spec_embed", "mask_token")
"""Weights that a backbone in evaluation does not use. Checkpoints may lack them (such as wav2vec2's fine-tuned ones),
and then they are drawn anew at each loading."""


def backbone_hash(backbone: nn.Module) -> str:
    """SHA-256 of a backbone's configuration and of every weight and buffer that it uses, precision included."""
    config = {name: value for name, value in backbone.config.to_diff_dict().items() if name not in VOLATILE}
    weights = backbone.state_dict().items()
    used = {name: value for name, value in weights if name.rpartition(".")[2] not in TRAINING_ONLY}
    return sha256_of([config, digest(used)])


def preprocessing(processor: Any, modality: str) -> dict[str, Any]:
    """The settings of a processor that a modality's raw input depends on."""
    if modality == "audio":
        return {"features": _settings(processor.feature_extractor), "trim_db": processor.trim_db}
    if modality == "vision":
        own = {"num_frames": processor.num_frames, "crop_faces": processor.crop_faces, "trim_db": processor.trim_db}
        return {"images": _settings(processor.image_processor)} | own
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of the last call
        tokenizer.pop(state)
    return {
        "tokenizer": tokenizer,
        "max_length": processor.tokenizer.model_max_length,
        "keep_punctuation": processor.keep_punctuation,
        "trim_db": processor.trim_db,
    }


def _settings(part: Any) -> dict[str, Any]:
    return {name: value for name, value in part.to_dict().items() if name not in VOLATILE}


def row_content(modality: str, row: Mapping[str, Any]) -> str | None:
    """Hash of what a schema row has of a modality; None where it has nothing."""
    if modality == "text":
        return sha256_of([row["text"], row["words"]]) if row["text"] or row["words"] else None
    source = row["audio" if modality == "audio" else "video"]
    return None if source is None else content_hash(source)


def content_hash(source: Any) -> str:
    """SHA-256 of a clip: of a file's bytes, wherever it lies and whatever its name, or of decoded samples and rate.

    Raises:
        MediaError: the file is not there or empty.
    """
    if isinstance(source, Mapping) and "array" in source:
        array = np.ascontiguousarray(source["array"])
        head = f"{source['sampling_rate']} {array.dtype} {array.shape}".encode()
        return hashlib.sha256(head + array.tobytes()).hexdigest()
    media = encoded(source)
    if media.path is None:
        return hashlib.sha256(media.data).hexdigest()
    state = os.stat(media.path)
    return _file_hash(media.path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=2**17)  # size and time tell a file that has changed since
def _file_hash(path: str, size: int, modified: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """Of a value's JSON; half of the digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
