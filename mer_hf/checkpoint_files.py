"""What of a folder is published as a checkpoint (weights, configurations, processor, code), and why the rest stays."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_relative_import_files

from .cards import is_hub_id
from .hub import PICKLES, code_files, save_checkpoint
from .models.modeling_mer import MerPreTrainedModel
from .uploads import Contents

PUBLISHED_TYPES = (".json", ".safetensors", ".txt", ".md", ".model", ".jinja", ".png")
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
OF_TRAINING = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
PATH_FIELDS = ("_name_or_path", "name_or_path")
"""Fields of a configuration that may hold a folder of this machine; what names a repository of the Hub stays."""
MACHINE_FIELDS = ("is_local", "local_files_only")
"""Fields of a tokenizer's configuration that say how it was loaded here."""


def checkpoint_files(folder: Path) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """Path in the repository -> file or content, and what stays here -> why.

    Branches in folders of their own go too. Paths of this machine are taken out of the JSON files; code is that which
    the folder carries, and this package's where it carries none.

    Raises:
        ValueError: no checkpoint, weights that are missing or no safetensors, a model of another library, code that
            config.json names and the folder lacks.
    """
    contents, left_out = _sort_files(folder)
    model = _trained_model(folder, contents)
    contents |= _code(folder, model)
    contents = {path: _portable(item) if path.endswith(".json") else item for path, item in contents.items()}
    own_code = [path.name for path in folder.glob("*.py") if path.name not in contents]
    return contents, left_out | dict.fromkeys(own_code, "not the checkpoint's code")


def _sort_files(folder: Path) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """What of a folder is part of a checkpoint, code aside, and why the rest is not."""
    if not (folder / "config.json").is_file():
        below = [str(path.parent) for path in sorted(folder.glob("*/config.json"))]
        remedy = f"name one of {', '.join(below)}" if below else "name a folder that save_checkpoint wrote"
        raise ValueError(f"checkpoint: {folder} holds no config.json; {remedy}")
    contents: dict[str, Path | bytes] = {}
    left_out = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if (path / "config.json").is_file() and not (path / "trainer_state.json").is_file():  # a branch apart
                inner, stays = _sort_files(path)
                contents |= {f"{path.name}/{name}": item for name, item in inner.items()}
                left_out |= {f"{path.name}/{name}": why for name, why in stays.items()}
            else:
                left_out[f"{path.name}/"] = "a folder that is no checkpoint, or one of training"
        elif any(path.match(pattern) for pattern in PICKLES):
            left_out[path.name] = "may run code when it is read"
        elif path.name in OF_TRAINING or not (path.suffix in PUBLISHED_TYPES or path.name.startswith(LEGAL)):
            left_out |= {} if path.suffix == ".py" else {path.name: "no part of a checkpoint"}
        else:
            contents[path.name] = path
    return contents, left_out


def _trained_model(folder: Path, contents: Contents) -> MerPreTrainedModel:
    if (
        not any(Path(name).match("*.safetensors") and "/" not in name for name in contents)
        or "processor_config.json" not in contents
    ):
        raise ValueError(
            f"checkpoint: {folder} lacks safetensors or processor_config.json; save model and processor with "
            "mer_hf.hub.save_checkpoint"
        )
    model = AutoModel.from_pretrained(folder, use_safetensors=True)
    if not isinstance(model, MerPreTrainedModel):
        raise ValueError(f"checkpoint: {folder} holds a {type(model).__name__}, none of this package's models")
    if model.untrained_keys:
        raise ValueError(
            f"checkpoint: {folder} lacks {len(model.untrained_keys)} weights ({model.untrained_keys[0]}, ...), which "
            "would be random; fine-tune it before publishing"
        )
    return model


def _code(folder: Path, model: MerPreTrainedModel) -> dict[str, Path | bytes]:
    """The code that the checkpoint carries; of one that carries none this package's, and the files that name it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config:
        named = [*config["auto_map"].values(), *(own["impl"] for own in config.get("custom_pipelines", {}).values())]
        roots = {folder / f"{name.split('.')[0]}.py" for name in named}
        absent = sorted(root.name for root in roots if not root.is_file())
        if absent:
            raise ValueError(f"checkpoint: {folder} lacks {', '.join(absent)}, which its config.json names")
        files = {Path(file) for root in roots for file in get_relative_import_files(root)} | roots
        return {file.name: file for file in sorted(files)}
    with TemporaryDirectory() as scratch:
        saved = save_checkpoint(model, AutoProcessor.from_pretrained(folder), scratch)
        named = {name: (saved / name).read_bytes() for name in ("config.json", "processor_config.json")}
    return {file.name: file for file in code_files(model)} | named


def _portable(content: Path | bytes) -> Path | bytes:
    """A JSON file without what is of this machine; as it is where it has nothing of it."""
    before = json.loads(content if isinstance(content, bytes) else content.read_bytes())
    after = _without_machine(before)
    return content if before == after else as_json(after)


def _without_machine(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_machine(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_machine(item)
        for name, item in value.items()
        if name not in MACHINE_FIELDS and (name not in PATH_FIELDS or is_hub_id(item))
    }


def as_json(value: Any) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=2) + "\n").encode()
