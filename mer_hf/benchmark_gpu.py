"""The same on a GPU, against what the card can do. Written without a GPU at hand: this path has not been run.

Times are those of the card's own clock (`torch.cuda.Event`), memory is that of torch's allocator.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from . import MerPreTrainedModel
from .benchmark import Figure, Options
from .benchmark_clips import RATE, backbone_model, base_configs
from .data.collator import EmotionCollator
from .data.length_grouping import LengthBatchSampler, iemocap_like_seconds, padding_ratio

PEAKS = {
    "H200": (989, 4800),
    "H100 PCIe": (756, 2000),
    "H100": (989, 3350),
    "A100": (312, 1555),
    "L40S": (362, 864),
    "A10": (125, 600),
    "L4": (121, 300),
    "RTX 4090": (165, 1008),
    "T4": (65, 320),
}
"""Dense half-precision TFLOP/s and GB/s that vendors state, by what the card's name contains."""
BATCH, SECONDS = 8, 4.55


def figures(options: Options) -> Iterator[Figure]:
    """A training step of base-size backbones in bfloat16, padding and stalls; CME against its dense form."""
    if not torch.cuda.is_available():
        for name in ("TFLOP/s of a training step", "bytes a second", "padding", "data-loader stalls", "CME"):
            yield Figure(f"GPU: {name}", None, "", note="no GPU")
        return
    device = torch.device("cuda")
    model = trainable(device)
    yield from step_figures(model, rounds=3 if options.quick else 20)
    yield from loader_figures(model, clips=64 if options.quick else 512)
    del model
    torch.cuda.empty_cache()
    yield from cme_figures(device, rounds=5 if options.quick else 25)


def trainable(device: torch.device) -> MerPreTrainedModel:
    """CME over backbones of base size that all learn."""
    model = backbone_model(base_configs())[0]
    model.config.freeze_backbones = ()
    return model.requires_grad_(True).to(device).train()


def event_seconds(function: Callable[[], Any], rounds: int) -> float:
    """Median seconds a call takes on the card; once before, not counted."""
    function()
    spent = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        spent.append(begin.elapsed_time(end) / 1000)
    return median(spent)


def card_limits() -> tuple[float, float] | None:
    """TFLOP/s and GB/s of this card, None for one that is not in PEAKS."""
    name = torch.cuda.get_device_name()
    return next((limits for part, limits in PEAKS.items() if part in name), None)


def step(model: MerPreTrainedModel, batch: dict[str, Tensor]) -> None:
    """Forward and backward in bfloat16; gradients are dropped."""
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


def step_figures(model: MerPreTrainedModel, rounds: int) -> Iterator[Figure]:
    """How near a training step comes to the card's arithmetic and memory."""
    clips = NoiseClips(np.full(BATCH, SECONDS))
    batch = {name: value.cuda() for name, value in EmotionCollator()([clips[i] for i in range(BATCH)]).items()}
    with FlopCounterMode(display=False) as counter:
        step(model, batch)
    torch.cuda.reset_peak_memory_stats()
    seconds = event_seconds(partial(step, model, batch), rounds)
    peak, limits = torch.cuda.max_memory_allocated() / 1e9, card_limits()
    rate = counter.get_total_flops() / seconds / 1e12
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    moved = 3 * weights / seconds / 1e9  # the least: weights read twice, gradients written once
    note = f"batch {BATCH} of {SECONDS} s, base size, bf16, {1000 * seconds:.1f} ms"
    yield Figure("GPU: training step", rate, "TFLOP/s", note=note)
    yield Figure("GPU: weights and gradients moved, at the least", moved, "GB/s", note=note)
    card = torch.cuda.get_device_name()
    for name, value, limit in zip(("arithmetic", "bandwidth"), (rate, moved), limits or (), strict=False):
        yield Figure(f"GPU: share of the card's {name}", value / limit, "", note=f"{card}: {limit}")
    yield Figure("GPU: peak memory of a training step", peak, "GB", note=note)


class NoiseClips(Dataset):
    """Clips of given seconds for the tokenizer and sizes of `backbone_model`, made as they are asked for."""

    def __init__(self, seconds: np.ndarray):
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator, words = torch.Generator().manual_seed(index), 20
        edges = torch.linspace(0, float(self.seconds[index]), words + 1)
        return {
            "input_values": torch.randn(int(RATE * self.seconds[index]), generator=generator),
            "input_ids": torch.randint(2, 20, (words,), generator=generator),
            "word_ids": torch.arange(words),
            "word_times": torch.stack([edges[:-1], edges[1:]], dim=-1),
            "pixel_values": torch.randn(8, 3, 224, 224, generator=generator),
            "vision_times": torch.linspace(0, float(self.seconds[index]), 8),
            "label": index % 4,
        }


def loader_figures(model: MerPreTrainedModel, clips: int) -> Iterator[Figure]:
    """An epoch through a loader: what is padding, and the share of time in which the card waits for a batch."""
    seconds = iemocap_like_seconds(clips)
    sampler = LengthBatchSampler(seconds, BATCH)
    yield Figure("GPU: padded over real seconds of sound", padding_ratio(seconds, list(sampler)), "", at_most=1.07)
    loader = DataLoader(
        NoiseClips(seconds), batch_sampler=sampler, collate_fn=EmotionCollator(), num_workers=2, pin_memory=True
    )
    waited, began, batches = 0.0, perf_counter(), iter(loader)
    for _ in range(len(sampler)):
        asked = perf_counter()
        batch = {name: value.cuda(non_blocking=True) for name, value in next(batches).items()}
        waited += perf_counter() - asked
        step(model, batch)
        torch.cuda.synchronize()
    share = waited / (perf_counter() - began)
    yield Figure("GPU: share of an epoch spent waiting for data", share, "", note=f"{clips} clips, 2 workers")


def cme_figures(device: torch.device, rounds: int) -> Iterator[Figure]:
    """CME's head over features, as `benchmark_cme` measures it on the CPU."""
    from . import benchmark_cme as cme

    model = cme.make_model().to(device)
    batch = {name: value.to(device) for name, value in cme.make_batch(cme.BATCH, cme.FRAMES).items()}
    batch["audio_embeds"].requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    calls = {"forward": partial(cme.infer, model, batch), "step": partial(cme.step, model, batch, optimizer)}
    for name, call in calls.items():
        seconds, peaks = [], []
        for dense in (True, False):
            torch.cuda.reset_peak_memory_stats()
            seconds.append(event_seconds(partial(call, dense), rounds))
            peaks.append(torch.cuda.max_memory_allocated() / 1e6)
        note = f"batch {cme.BATCH}, {cme.FRAMES} frames; {peaks[1]:.0f} MB, dense {peaks[0]:.0f} MB"
        yield Figure(f"GPU: CME {name}, times faster than the dense form", seconds[0] / seconds[1], "x", note=note)
