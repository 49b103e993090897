"""Smaller and faster models: ONNX with dynamic lengths for onnxruntime, int8 weights on CPUs, bfloat16.

ONNX: backbones and head become one graph, from one clip's tensors to its logits.

    export_onnx(model, processor, "folder")                            # model.onnx, config.json and the processor
    classify = pipeline(TASK, model=OnnxModel("folder"), processor=MerProcessor.from_pretrained("folder"))

The graph takes what the processor makes of one clip, under the same names, unpadded: batch 1, any number of samples,
tokens, words and frames. Of a modality that the clip lacks it takes zeros whose mask is False. `OnnxModel` puts those
in and runs the clips of a batch one by one: on a CPU a batch gains nothing, and its padding costs.

What is not exported: more than one turn of a dialogue at once, enrolled speakers, attention weights.

int8 and bfloat16 are of the model in torch:

    classify = pipeline(TASK, model=quantize_int8(model), processor=processor)
    classify = pipeline(TASK, model=autocast_bfloat16(model), processor=processor)
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .models.backbones import picture_vector
from .onnx_model import ONNX_FILE, OnnxModel, graph_inputs
from .precision import autocast_bfloat16, quantize_int8

__all__ = ["OnnxModel", "autocast_bfloat16", "export_onnx", "quantize_int8"]

TOLERANCE = 1e-4
"""By how much logits of the graph may differ from the model's, of the largest, before `export_onnx` refuses it."""


def export_onnx(model: PreTrainedModel, processor: Any, folder: str | PathLike) -> Path:
    """Write model.onnx with the model's configuration and the processor beside it; needs the extra `mer-hf[export]`.

    The graph's logits are compared with the model's on clips of lengths that were not seen at export.

    Raises:
        ValueError: a model with weights that its checkpoint did not have; a graph whose logits differ by more than
            `TOLERANCE`.
    """
    untrained = getattr(model, "untrained_keys", ())
    if untrained:
        raise ValueError(f"model: {len(untrained)} weights ({untrained[0]}, ...) were never trained; fine-tune it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = graph_inputs(model.config)
    clip = _random_clip(model, processor, seconds=1.5, words=5, frames=3)
    with _exportable(model), _quiet():
        torch.onnx.export(
            _Graph(model, names),
            tuple(clip[name] for name in names),
            folder / ONNX_FILE,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(tuple({1: torch.export.Dim.DYNAMIC} for _ in names),),
            custom_translation_table=_translations(),
            dynamo=True,
            verbose=False,
        )
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    exported = OnnxModel(folder)
    for seconds, words, frames in ((2.3, 9, 2), (0.7, 2, 6)):
        _compare(model, exported, _random_clip(model, processor, seconds, words, frames))
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and the ONNX libraries say about their own insides."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Graph(nn.Module):
    """The tensors of one clip, in the order of `names` -> logits (1, labels)."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


@contextmanager
def _exportable(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model has no branches on values and no loops over time.

    Backbones run on the one row there is: how rows are grouped otherwise depends on values. Recurrences are one
    operator each, which ONNX has; torch would make loops of them.
    """
    own = {
        part: ("run_backbone", partial(_run_backbone, part))
        for part in model.modules()
        if hasattr(part, "run_backbone")
    }
    own |= {part: ("forward", partial(_run_rnn, part)) for part in model.modules() if _is_plain_rnn(part)}
    was_training = model.training
    model.eval()
    for part, (name, function) in own.items():
        setattr(part, name, function)
    try:
        with torch.no_grad():
            yield
    finally:
        for part, (name, _) in own.items():
            delattr(part, name)
        model.train(was_training)


def _run_backbone(
    model: PreTrainedModel,
    modality: str,
    values: Tensor,
    mask: Tensor,
    word_ids: Tensor | None = None,
    num_words: int | None = None,
    speaker: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `MerPreTrainedModel.run_backbone` for one unpadded row, present or absent as a whole."""
    backbone = getattr(model, f"{modality}_model")
    if modality == "vision":
        states = backbone(pixel_values=values.flatten(0, 1)).last_hidden_state  # (frames, patches, d) or a map
        return picture_vector(backbone, states).unsqueeze(0), mask
    states = backbone(values).last_hidden_state
    if modality == "audio":
        return states, mask[:, :1].expand(-1, states.shape[1])
    words = torch.arange(values.shape[1] if num_words is None else num_words, device=values.device)
    belongs = mask.unsqueeze(1) & (word_ids.unsqueeze(1) == words.view(1, -1, 1))  # (1, words, tokens)
    counts = belongs.sum(dim=-1, keepdim=True)
    return belongs.to(states.dtype) @ states / counts.clamp(min=1), counts.squeeze(-1) > 0


def _is_plain_rnn(part: nn.Module) -> bool:
    """Whether it is one layer and one direction of an LSTM or GRU, as in `MaskedRNN`."""
    plain = isinstance(part, nn.LSTM | nn.GRU) and part.num_layers == 1 and part.batch_first and part.bias
    return plain and not part.bidirectional and not part.proj_size


def _run_rnn(rnn: nn.LSTM | nn.GRU, values: Tensor) -> tuple[Tensor, None]:
    """As `rnn(values)` for values (1, time, width), with the gates in the order of ONNX."""
    order = [0, 3, 1, 2] if isinstance(rnn, nn.LSTM) else [1, 0, 2]  # i f g o -> i o f c; r z n -> z r h
    parameters = [getattr(rnn, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    parameters = [torch.cat([parameter.chunk(len(order))[gate] for gate in order]) for parameter in parameters]
    return torch.ops.mer_hf.rnn(values, *parameters), None


# An operator for graphs alone, so without a kernel; it means what ONNX's LSTM (four gates) or GRU (three) do.
torch.library.define(
    "mer_hf::rnn", "(Tensor values, Tensor weight_ih, Tensor weight_hh, Tensor bias_ih, Tensor bias_hh) -> Tensor"
)


@torch.library.register_fake("mer_hf::rnn")
def _rnn_shape(values: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], values.shape[1], weight_hh.shape[1])


def _translations() -> dict[Any, Any]:
    """What torch's exporter does not know, or knows as loops only, in ONNX's operators."""
    from onnxscript import INT64
    from onnxscript import opset18 as op

    def rnn(values: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
        values = op.Transpose(values, perm=[1, 0, 2])  # (time, 1, width)
        first = op.Constant(value_ints=[0])  # the one direction
        weights = [op.Unsqueeze(weight, first) for weight in (weight_ih, weight_hh)]
        biases = op.Unsqueeze(op.Concat(bias_ih, bias_hh, axis=0), first)
        size = weight_hh.shape[1]
        if weight_hh.shape[0] == 4 * size:
            outputs, _, _ = op.LSTM(values, *weights, biases, hidden_size=size)
        else:
            outputs, _ = op.GRU(values, *weights, biases, hidden_size=size, linear_before_reset=1)
        return op.Transpose(op.Squeeze(outputs, op.Constant(value_ints=[1])), perm=[1, 0, 2])

    def searchsorted(
        boundaries: Any,
        values: Any,
        out_int32: bool = False,
        right: bool = False,
        side: Any = None,
        sorter: Any = None,
    ) -> Any:
        boundaries = op.Unsqueeze(boundaries, op.Constant(value_ints=[1]))
        values = op.Unsqueeze(values, op.Constant(value_ints=[2]))
        before = op.LessOrEqual(boundaries, values) if right else op.Less(boundaries, values)
        return op.ReduceSum(op.Cast(before, to=INT64.dtype), op.Constant(value_ints=[2]), keepdims=False)

    return {torch.ops.mer_hf.rnn.default: rnn, torch.ops.aten.searchsorted.Tensor: searchsorted}


def _random_clip(model: PreTrainedModel, processor: Any, seconds: float, words: int, frames: int) -> dict[str, Tensor]:
    """A clip with all that the model reads, padded to a batch of one, for tracing and comparing."""
    generator = np.random.default_rng(words)
    edges = np.linspace(0.0, seconds, words + 1)
    example = processor.example(
        audio=generator.uniform(-0.5, 0.5, int(16_000 * seconds)).astype(np.float32),
        words=[{"word": "a", "start": start, "end": end} for start, end in pairwise(edges)],
        frames=generator.integers(0, 256, (frames, 96, 96, 3), dtype=np.uint8),
        frame_times=np.linspace(0.0, seconds, frames),
    )
    lengths = {"audio": int(100 * seconds), "text": words, "vision": frames}
    for modality in model.config.modalities:
        if not model.config.reads_raw(modality):
            shape = lengths[modality], model.config.width(modality)
            example[f"{modality}_embeds"] = generator.standard_normal(shape, dtype=np.float32)
    batch = processor.pad([example])
    return {name: batch[name].to(model.device) for name in graph_inputs(model.config)}


@torch.no_grad()
def _compare(model: PreTrainedModel, exported: OnnxModel, clip: Mapping[str, Tensor]) -> None:
    was_training = model.training
    expected = model.eval()(**clip).logits.float().cpu()
    model.train(was_training)
    off = float((exported(**clip).logits - expected).abs().max())
    if not off <= TOLERANCE * max(1.0, float(expected.abs().max())):
        shapes = {name: tuple(value.shape) for name, value in clip.items()}
        raise ValueError(
            f"model: the exported graph's logits are off by {off:.1e} on a clip of {shapes}; do not use it"
        )
