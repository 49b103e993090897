"""The ONNX graph of a model, run by onnxruntime. `export` writes it, and says what it can and cannot do."""

from bisect import bisect_left
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import SequenceClassifierOutput

ONNX_FILE = "model.onnx"
NAMES = {
    "audio": ("input_values", "input_values_mask"),
    "text": ("input_ids", "attention_mask", "word_ids"),
    "vision": ("pixel_values", "pixel_values_mask"),
}
"""A modality's raw input, its mask and what goes with it; precomputed it is `<modality>_embeds` and its mask."""
EMBEDS = {modality: (f"{modality}_embeds", f"{modality}_mask") for modality in NAMES}


def graph_inputs(config: Any) -> list[str]:
    """The names, in order, of the tensors an exported model reads."""
    names = [n for m in config.modalities for n in (NAMES if config.reads_raw(m) else EMBEDS)[m]]
    if config.uses_word_times:
        names += ["vision_times", "word_times"] if "vision" in config.modalities else ["word_times"]
    return names


class OnnxModel(nn.Module):
    """What `export_onnx` wrote, run by onnxruntime on the CPU; stands in the pipeline where the model would.

    folder: as `export_onnx` wrote it; threads: those onnxruntime computes with, None = its own choice.

    Raises:
        ValueError: no graph in the folder.
    """

    def __init__(self, folder: str | PathLike, threads: int | None = None):
        super().__init__()
        import onnxruntime

        file = Path(folder) / ONNX_FILE
        if not file.is_file():
            raise ValueError(f"folder: there is no {ONNX_FILE} in {folder}; write one with export_onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = {given.name: given for given in self.session.get_inputs()}
        self.config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):  # without weights: it says how many frames it makes of how many samples
            self.architecture = AutoModel.from_config(self.config)
        self.fewest_samples = max([0, *map(_fewest_samples, _audio_models(self.architecture))])
        self.enrollable: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> "OnnxModel":
        """Stays on the CPU, wherever it is sent."""
        return self

    def forward(self, output_attentions: bool = False, **inputs: Tensor) -> SequenceClassifierOutput:
        """Inputs as `MerProcessor` makes them, padded or not; of a model with context dialogues of one turn each.

        Gives logits alone, also where output_attentions asks for more.

        Raises:
            ValueError: a dialogue of several turns, inputs that the model does not have, a clip too short for it.
        """
        turns = inputs.pop("turn_mask", None)
        if turns is not None:
            if turns.shape[1] > 1:
                raise ValueError(f"turn_mask: {turns.shape[1]} turns; an exported model reads clips one by one")
            inputs = {name: value.squeeze(1) for name, value in inputs.items()}
        unknown = sorted(set(inputs) - set(self.inputs) - {"vision_times", "word_times", "word_ids"})
        if unknown:
            raise ValueError(f"{', '.join(unknown)} given, but the exported model takes {', '.join(self.inputs)}")
        clips = zip(*[value.cpu().split(1) for value in inputs.values()], strict=True)
        logits = torch.cat([self._logits(dict(zip(inputs, clip, strict=True))) for clip in clips])
        return SequenceClassifierOutput(logits=logits if turns is None else logits.unsqueeze(1))

    def _logits(self, clip: Mapping[str, Tensor]) -> Tensor:
        """One row of a batch, padding and all -> (1, labels)."""
        feed = {}
        for modality in self.config.modalities:
            feed |= self._unpadded(modality, clip)
        if "vision_times" in self.inputs:
            times = clip.get("vision_times", self._nothing("vision_times"))
            feed["vision_times"] = _resized(times, feed[self._names("vision")[1]].shape[1])
        if "word_times" in self.inputs:
            feed |= self._timed(feed, clip)
        return torch.from_numpy(self.session.run(None, {name: feed[name].numpy() for name in self.inputs})[0])

    def _names(self, modality: str) -> tuple[str, ...]:
        return (NAMES if self.config.reads_raw(modality) else EMBEDS)[modality]

    def _unpadded(self, modality: str, clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A modality's tensors up to its last real place; zeros that no mask keeps where the clip lacks it."""
        name, mask_name, *others = self._names(modality)
        fewest = self.fewest_samples if name == "input_values" else 1
        if name not in clip:
            return {n: self._nothing(n, fewest) for n in (name, mask_name, *others)}
        mask = clip[mask_name].bool() if mask_name in clip else torch.ones(clip[name].shape[:2], dtype=torch.bool)
        size = int((mask * torch.arange(1, mask.shape[1] + 1)).max()) if mask.shape[1] else 0
        if not size:
            return {n: self._nothing(n, fewest) for n in (name, mask_name, *others)}
        if size < fewest:
            raise ValueError(f"input_values: a clip of {size} samples; the exported model needs {fewest}")
        if name in NEED_NO_MASK and not mask[:, :size].all():
            raise ValueError(f"{mask_name}: padding before what is real; an exported model takes it at the end alone")
        return {name: clip[name][:, :size], mask_name: mask[:, :size]} | {n: clip[n][:, :size] for n in others}

    def _timed(self, feed: Mapping[str, Tensor], clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """word_times for every word, and as many precomputed words as there are times."""
        words = (
            int(feed["word_ids"].max()) + 1 if "word_ids" in feed else feed.get("text_mask", torch.ones(1, 1)).shape[1]
        )
        times = clip.get("word_times", self._nothing("word_times"))
        words = max(words, times.shape[1], 1)
        precomputed = {name: _resized(feed[name], words) for name in EMBEDS["text"] if name in feed}
        return precomputed | {"word_times": _resized(times, words)}

    def _nothing(self, name: str, size: int = 1) -> Tensor:
        """Zeros of the shape and type the graph takes, (1, size, ...)."""
        given = self.inputs[name]
        return torch.zeros(1, size, *given.shape[2:], dtype=DTYPES[given.type])

    def speaker_statistics(self, profile: Any, prior_clips: float = 0.0) -> dict[str, Tensor]:
        """Nothing for nobody.

        Raises:
            ValueError: an enrolled speaker; the graph has no place for one.
        """
        if profile.streams:
            raise ValueError("speaker: an exported model knows no enrolled speakers; use the model in torch")
        return {}


NEED_NO_MASK = ("input_values", "input_ids")
"""Inputs that backbones in a graph read whole."""
DTYPES = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64, "tensor(bool)": torch.bool}


def _resized(values: Tensor, size: int) -> Tensor:
    """values (1, n, ...) cut off or extended by zeros to (1, size, ...)."""
    missing = values.new_zeros(1, max(size - values.shape[1], 0), *values.shape[2:])
    return torch.cat([values[:, :size], missing], dim=1)


def _audio_models(model: nn.Module) -> list[nn.Module]:
    return [part for name, part in model.named_modules() if name.split(".")[-1] == "audio_model"]


def _fewest_samples(encoder: Any) -> int:
    """Samples of which an audio backbone makes two frames, or the one it ever makes: fewer change the graph."""

    def frames(samples: int) -> int:
        return int(encoder._get_feat_extract_output_lengths(torch.tensor(samples)))

    wanted = min(2, frames(64_000))
    return bisect_left(range(64_000), wanted, key=frames)
