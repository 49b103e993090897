"""What grouping by length and stored states save."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

from . import MerPreTrainedModel
from .benchmark import Figure, Options
from .benchmark_clips import backbone_model, base_configs, noise_rows, small_configs
from .data.collator import ClipDataset, EmotionCollator
from .data.feature_store import FeatureStore
from .data.features import without_backbones
from .data.length_grouping import LengthBatchSampler, iemocap_like_seconds, padding_ratio


def figures(options: Options) -> Iterator[Figure]:
    """Padding under one and two processes, a head's step from stored states, extractions of a cross-validation."""
    for processes in (1, 2):
        found = measure_padding(processes=processes, epochs=1 if options.quick else 5)
        name = f"padded over real seconds of sound, {processes} process{'es' * (processes > 1)}"
        note = f"batch 8, 5,531 clips as long as IEMOCAP's; shuffled {found['random']:.2f}, transformers' "
        note += f"group_by_length {found['transformers']:.3f}, with a budget of seconds {found['seconds']:.3f}"
        yield Figure(name, found["grouped"], "", at_most=1.07, note=note)
    size, seconds = (3, 1.0) if options.quick else (8, 4.5)
    step = measure_head_step(size, seconds)
    note = f"batch {size}, clips of {seconds} s, base size: {step['raw_step_cpu_seconds']:.1f} s of CPU against "
    note += f"{1000 * step['stored_step_cpu_seconds']:.1f} ms"
    yield Figure("head's training step from stored states, times cheaper", step["times_cheaper"], "x", 300, note=note)
    jobs = count_extractions(clips=5) if options.quick else count_extractions()
    worst = max(jobs["runs_a_clip"].values(), key=lambda runs: abs(runs - 1))
    note = f"{jobs['clips']} clips, {jobs['jobs']} jobs (5 folds, 3 seeds), each with a model and store of its own"
    yield Figure("runs of a backbone on each clip in a cross-validation", worst, "", 1, 1, note)


def measure_padding(clips: int = 5531, batch_size: int = 8, processes: int = 1, epochs: int = 3) -> dict[str, float]:
    """Padded over real seconds of sound, on lengths spread as IEMOCAP's, the worst process and epoch of each.

    random: shuffled; transformers: `train_sampling_strategy="group_by_length"`; grouped: `LengthBatchSampler`;
    seconds: the same with a budget of batch_size * 4.55 seconds a batch.
    """
    seconds = iemocap_like_seconds(clips)
    order = torch.Generator().manual_seed(0)

    def cut(indices: Sequence[int]) -> list[list[int]]:
        return [list(indices[i : i + batch_size]) for i in range(0, clips, batch_size)]

    def worst(batches: Sequence[Sequence[int]]) -> float:
        return max(padding_ratio(seconds, batches[rank::processes]) for rank in range(processes))

    samplers = {
        "grouped": LengthBatchSampler(seconds, batch_size, together=processes),
        "seconds": LengthBatchSampler(seconds, seconds=batch_size * 4.55, together=processes),
    }
    found: dict[str, list[float]] = {name: [] for name in ("random", "transformers", *samplers)}
    for epoch in range(epochs):
        found["random"].append(worst(cut(torch.randperm(clips, generator=order).tolist())))
        grouped = get_length_grouped_indices(seconds.tolist(), batch_size, generator=order)
        found["transformers"].append(worst(cut(grouped)))
        for name, sampler in samplers.items():
            sampler.set_epoch(epoch)
            shards = [list(BatchSamplerShard(sampler, processes, rank)) for rank in range(processes)]
            found[name].append(max(padding_ratio(seconds, shard) for shard in shards))
    return {name: max(ratios) for name, ratios in found.items()}


def measure_head_step(
    batch_size: int = 8,
    seconds: float = 4.5,
    raw_steps: int = 1,
    stored_steps: int = 20,
    configs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A training step of CME's head with frozen backbones run again, and from stored states; CPU seconds.

    The first step from stored states is not counted; backbones have run before on the same clips, to store them.
    Reading and padding count for stored states; decoding does not for raw input, which is at hand. configs: of the
    backbones, None = base size.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, processor = backbone_model(base_configs() if configs is None else configs)
        rows = noise_rows(folder, batch_size, seconds)
        labels = model.config.label2id
        raw = ClipDataset(rows, processor, labels, keep=True)
        began = time.process_time()
        store = FeatureStore(Path(folder) / "store", model, processor)
        stored = store.examples(rows, labels)
        extraction = time.process_time() - began
        head = without_backbones(model, model.config.modalities)
        raw_step = _seconds_a_step(model, raw, raw_steps, warm=False)
        stored_step = _seconds_a_step(head, stored, stored_steps)
        return {
            "batch_size": batch_size,
            "clip_seconds": seconds,
            "threads": torch.get_num_threads(),
            "raw_step_cpu_seconds": raw_step,
            "stored_step_cpu_seconds": stored_step,
            "times_cheaper": raw_step / stored_step,
            "extraction_cpu_seconds": extraction,
            "bytes_a_clip": store.report()["bytes"] / batch_size,
        }


def _seconds_a_step(model: MerPreTrainedModel, clips: Dataset, steps: int, warm: bool = True) -> float:
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True
    )  # as Trainer's
    model.train()

    def step() -> None:
        batch = EmotionCollator()([clips[index] for index in range(len(clips))])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if warm:
        step()
    began = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - began) / steps


def count_extractions(clips: int = 10, folds: int = 5, seeds: int = 3) -> dict[str, Any]:
    """How often each backbone runs on a clip in a cross-validation of heads over one folder of stored states.

    Every job has a model and a store of its own, trains a head for an epoch on the other folds and tests it.
    """
    calls = {"audio": 0, "text": 0, "vision": 0}
    with tempfile.TemporaryDirectory() as folder:
        rows = noise_rows(folder, clips, seconds=2.0)  # has the 8 frames that are taken
        for job in range(folds * seeds):
            model, processor = backbone_model(small_configs())
            for modality in calls:
                getattr(model, f"{modality}_model").register_forward_hook(_counting(calls, modality), with_kwargs=True)
            store = FeatureStore(Path(folder) / "store", model, processor)
            test = [row for index, row in enumerate(rows) if index % folds == job % folds]
            training = store.examples([row for row in rows if row not in test], model.config.label2id)
            torch.manual_seed(job)
            head = without_backbones(model, model.config.modalities)
            _seconds_a_step(head, training, 1)
            with torch.inference_mode():
                head.eval()(**EmotionCollator()(list(store.examples(test))))
        report = store.report()
    frames = 8
    runs = {name: count / (frames if name == "vision" else 1) / clips for name, count in calls.items()}
    return {"clips": clips, "jobs": folds * seeds, "runs_a_clip": runs, "entries": report["entries"]}


def _counting(calls: dict[str, int], modality: str) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[modality] += len(output.last_hidden_state)

    return hook
