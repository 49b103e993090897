"""Checkpoints that load with and without this package: model, processor and the code of both in one folder.

    save_checkpoint(model, processor, "runs/mine")
    pipeline(TASK, model=str(download_checkpoint("ann/mine", revision="<commit>")))   # every byte checked

`publishing` puts such a folder on the Hub.
"""

import json
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.dynamic_module_utils import get_relative_import_files

from .models import pipeline_mer, processing_mer
from .models.modeling_mer import MerPreTrainedModel
from .models.pipeline_mer import TASK, MultimodalEmotionRecognitionPipeline
from .models.processing_mer import MerProcessor

MODELS_FOLDER = Path(pipeline_mer.__file__).parent
AUTO_MODELS = ("AutoModel", "AutoModelForAudioClassification")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.h5", "*.npy", "*.npz")
"""What may run code when it is read: neither published nor fetched."""


def save_checkpoint(model: MerPreTrainedModel, processor: MerProcessor, directory: str | PathLike) -> Path:
    """Write weights, configuration, processor and code; returns the folder.

    With `mer_hf` installed every Auto class and the pipeline load it; without, `trust_remote_code=True` does, from the
    copied files. (`register_for_auto_class` would do the same for every later save in the process, so it is not used.)

    Raises:
        ValueError: the model has weights that were never trained (`untrained_keys`), or `directory` is a file.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(f"directory: {directory} is a file; name a folder to write the checkpoint to")
    untrained = getattr(model, "untrained_keys", ())
    if untrained:
        raise ValueError(f"{len(untrained)} weights ({untrained[0]}, ...) were never trained; fine-tune before saving")
    model.config.auto_map = auto_map(model)
    model.config.custom_pipelines = {
        TASK: {"impl": _reference(MultimodalEmotionRecognitionPipeline), "pt": ["AutoModelForAudioClassification"]}
    }
    try:
        model.save_pretrained(directory)
    finally:
        del model.config.auto_map, model.config.custom_pipelines
    processor.save_pretrained(directory)
    _name_processor_class(directory / "processor_config.json")
    for file in code_files(model):
        shutil.copyfile(file, directory / file.name)
    return directory


def _name_processor_class(file: Path) -> None:
    # AutoProcessor looks into this file before the model's configuration, and settles for a bare tokenizer otherwise.
    values = json.loads(file.read_text(encoding="utf-8"))
    values["auto_map"] = {"AutoProcessor": _reference(MerProcessor)}
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def auto_map(model: MerPreTrainedModel) -> dict[str, str]:
    """Where each Auto class finds its class among the copied files."""
    return {
        "AutoConfig": _reference(type(model.config)),
        **dict.fromkeys(AUTO_MODELS, _reference(type(model))),
        "AutoProcessor": _reference(MerProcessor),
    }


def code_files(model: MerPreTrainedModel) -> list[Path]:
    """The files of `mer_hf/models` that the model, its processor and the pipeline need, by name."""
    modeling = MODELS_FOLDER / f"{type(model).__module__.rsplit('.', 1)[-1]}.py"
    roots = [modeling, Path(pipeline_mer.__file__), Path(processing_mer.__file__)]
    needed = {Path(file) for root in roots for file in get_relative_import_files(root)}
    return sorted(needed | set(roots))


def _reference(cls: Any) -> str:
    return f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"


def download_checkpoint(
    repo_id: str,
    revision: str | None = None,
    cache_dir: str | PathLike | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """A checkpoint from the Hub, every file compared with the hash that the Hub has of it; returns the folder.

    The Hub's client compares sizes only. It loads by repository id as well, and then from its cache without a network;
    this needs one. revision: pin it to a commit, whose code you have read. cache_dir, token, endpoint: of
    huggingface_hub's client.

    Raises:
        ValueError: the repository has no safetensors.
        OSError: files arrived damaged; they are removed from the cache, so that the next try fetches them again. Also
            what huggingface_hub raises: a repository, revision or network that is not there.
    """
    api = HfApi(endpoint=endpoint, token=token, library_name="mer_hf")
    folder = Path(
        api.snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, ignore_patterns=list(PICKLES))
    )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"repo_id: {repo_id} holds no safetensors; weights in other formats are not read")
    found = api.verify_repo_checksums(repo_id, revision=folder.name, cache_dir=cache_dir)
    damaged = [mismatch["path"] for mismatch in found.mismatches]
    for path in damaged:
        (folder / path).resolve().unlink()
        (folder / path).unlink(missing_ok=True)
    if damaged:
        raise OSError(f"{', '.join(damaged)} of {repo_id} arrived damaged and will be fetched again: try once more")
    return folder
