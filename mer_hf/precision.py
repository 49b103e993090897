"""A model in torch at lower precision: int8 weights, or computation in bfloat16; `scripts/benchmark.py` measures both.

Neither is a matter of course: what is gained depends on the processor, and what changes on the model.
"""

import copy
import warnings
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

READ_AS_TENSORS = ("WavLMAttention",)
"""Classes that hand the weights of their linear layers on, which int8 layers do not have."""


def quantize_int8(model: PreTrainedModel) -> PreTrainedModel:
    """A copy for CPUs: weights of linear and recurrent layers in int8, activations quantized as they come.

    Classifiers stay as they are: they are tiny, and their rounding would be the logits'. So does WavLM's attention.
    The copy can be neither trained nor saved: save the model and quantize it where it is loaded.
    """
    stay = [(name, part) for name, part in model.named_modules() if _stays(name, part)]
    kept = {f"{name}.{inner}".rstrip("."): None for name, part in stay for inner, _ in part.named_modules()}
    layers = dict.fromkeys((nn.Linear, nn.LSTM, nn.GRU), torch.ao.quantization.default_dynamic_qconfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own plans
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).cpu().eval(), layers | kept)


def _stays(name: str, part: nn.Module) -> bool:
    return name.split(".")[-1] == "classifier" or type(part).__name__ in READ_AS_TENSORS


def autocast_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose forward from now on computes in bfloat16 where that is safe; logits come in float32.

    Better than a model cast as a whole: weights, statistics and the waveform keep their precision. For half the memory
    load backbones with `from_pretrained(..., dtype=torch.bfloat16)`.
    """
    plain = type(model).forward

    @wraps(plain)  # Trainer and pipelines look at its parameters
    def forward(self: PreTrainedModel, *args: Any, **inputs: Any) -> Any:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            output = plain(self, *args, **inputs)
        output.logits = output.logits.float()
        return output

    model.forward = MethodType(forward, model)  # a method, so that a copy of the model calls its own
    return model
