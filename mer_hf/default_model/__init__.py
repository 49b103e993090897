"""The default checkpoint: how each of its branches is trained and measured, how it is put together and loaded."""

from .loading import DEFAULT_CHECKPOINT, default_model, load_default

__all__ = ["DEFAULT_CHECKPOINT", "default_model", "load_default"]
