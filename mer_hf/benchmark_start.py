"""What `import mer_hf` and `mer-hf --help` add to what Python and transformers take by themselves."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from .benchmark import Figure, Options
from .benchmark_measure import ENVIRONMENT, child_cpu_seconds

IMPORTS = """
import time
import torch
from transformers import (AutoConfig, AutoModel, AutoModelForAudioClassification, AutoProcessor, Pipeline,
    PreTrainedModel, PreTrainedConfig, ProcessorMixin, PreTrainedTokenizerFast, ViTImageProcessor,
    Wav2Vec2FeatureExtractor, initialization, pipeline)
from transformers.modeling_outputs import BaseModelOutput
began = time.process_time()
import mer_hf
print(time.process_time() - began)
"""
"""The classes that the package derives from and fills in; then the package."""


def figures(options: Options) -> Iterator[Figure]:
    """Two figures, CPU seconds."""
    rounds = 1 if options.quick else 5
    added = median(_import_seconds() for _ in range(rounds))
    note = f"median of {rounds}" if rounds > 1 else ""
    yield Figure("import mer_hf adds to transformers' classes", added, "s", at_most=0.3, note=note)
    yield help_figure(3 if options.quick else 9)


def _import_seconds() -> float:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=os.environ | ENVIRONMENT, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def help_figure(rounds: int) -> Figure:
    """Paired with Python that does nothing."""
    name = "mer-hf --help adds to Python's own start"
    command = Path(sys.executable).with_name("mer-hf")
    if not command.is_file():
        return Figure(name, None, "s", at_most=0.2, note=f"{command.name} is not installed beside {sys.executable}")
    nothing = [sys.executable, "-c", "pass"]
    asked = [str(command), "--help"]
    added = median(child_cpu_seconds(asked) - child_cpu_seconds(nothing) for _ in range(rounds))
    return Figure(name, added, "s", at_most=0.2, note=f"median of {rounds}")
