"""Checkpoints that load with and without this package: model, processor and the code of both in one folder."""

import json
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .models import pipeline_mer, processing_mer
from .models.modeling_mer import MerPreTrainedModel
from .models.pipeline_mer import TASK, MultimodalEmotionRecognitionPipeline
from .models.processing_mer import MerProcessor

MODELS_FOLDER = Path(pipeline_mer.__file__).parent
AUTO_MODELS = ("AutoModel", "AutoModelForAudioClassification")


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
