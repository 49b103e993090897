"""Emotion from speech, words and face: published fusion models as Hugging Face models.

Importing this package makes its classes known to `AutoConfig`, `AutoModel`, `AutoModelForAudioClassification`,
`AutoProcessor` and `pipeline("multimodal-emotion-recognition")` of transformers.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

IS_COMMAND = Path(sys.argv[0]).stem == "mer-hf"
"""Whether this process is the command line, whose --help need not wait seconds for transformers and torch: there the
public names are loaded when one is first asked for."""

if not IS_COMMAND:
    from .public import *  # noqa: F403
    from .public import __all__  # noqa: F401


def __getattr__(name: str) -> Any:
    if not IS_COMMAND or name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = import_module(".public", __name__)  # `from . import public` would ask here again
    if name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(public, name)
