"""Training a fusion model with `transformers.Trainer`: settings, early stopping on validation, MMAN's two stages."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from .data.collator import EmotionCollator, move_to
from .data.length_grouping import LengthBatchSampler, dataset_lengths
from .evaluation import IGNORED_LABEL, compute_metrics


@dataclass(frozen=True)
class TrainingSettings:
    """What a run needs to be repeated. The epoch kept is the best by `metric` on the validation set, or the last."""

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 1e-3
    """Of everything but the backbones."""
    backbone_learning_rate: float | None = None
    """Of trainable backbones; None = `learning_rate`. Pretrained ones want about 1e-5."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises from 0; then it falls linearly."""
    patience: int = 8
    """Epochs without improvement on validation before training stops; of no account where the last epoch is kept."""
    keep: str = "best"
    """"best" or "last" epoch. On few validation clips the best is chosen by noise, and is then worse than the last."""
    metric: str = "wa"
    """wa, ua, macro_f1 or weighted_f1, on validation."""
    max_grad_norm: float = 3.0
    gradient_accumulation_steps: int = 1
    seed: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep must be best or last, found {self.keep!r}")

    def arguments(self, output_dir: str | PathLike, **overrides: Any) -> TrainingArguments:
        """The settings as TrainingArguments of transformers."""
        values = {
            "output_dir": str(output_dir),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "warmup_steps": self.warmup,  # below 1 it is a share
            "max_grad_norm": self.max_grad_norm,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "seed": self.seed,
            "dataloader_num_workers": self.num_workers,
            "dataloader_pin_memory": torch.accelerator.is_available(),  # else it warns
            "use_cpu": not torch.accelerator.is_available(),  # else processes on CPUs would not find each other
            "eval_strategy": "epoch",
            "save_strategy": "epoch" if self.keep == "best" else "no",
            "save_only_model": True,
            "save_total_limit": 1,
            "load_best_model_at_end": self.keep == "best",
            "metric_for_best_model": self.metric,
            "greater_is_better": True,
            "remove_unused_columns": False,
            "ddp_find_unused_parameters": True,  # a batch may lack a modality, and then its backbone has no gradient
            "logging_strategy": "epoch",
            "report_to": "none",
            "disable_tqdm": True,
        }
        return TrainingArguments(**values | overrides)


def process_state() -> PartialState:
    """Which of the processes that train together (`torchrun`) this is; one alone is the main process."""
    return PartialState(cpu=not torch.accelerator.is_available())


BACKBONES = ("audio_model", "text_model", "vision_model")


def parameter_groups(model: PreTrainedModel, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Trainable parameters in up to four groups: backbone or head, with weight decay or (biases, norms) without."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            backbone = any(part in BACKBONES for part in name.split("."))  # a late fusion's lie in its branches
            groups.setdefault((backbone, parameter.dim() > 1), []).append(parameter)
    slow = settings.learning_rate if settings.backbone_learning_rate is None else settings.backbone_learning_rate
    return [
        {
            "params": parameters,
            "lr": slow if backbone else settings.learning_rate,
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (backbone, decayed), parameters in groups.items()
    ]


class LengthGroupedTrainer(Trainer):
    """The stock Trainer over batches of clips, or dialogues, of like length; see `LengthBatchSampler`.

    transformers' own `train_sampling_strategy="group_by_length"` looks for lengths where our data sets do not have
    them, and does not know dialogues.
    """

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        together = args.world_size * args.gradient_accumulation_steps
        lengths = dataset_lengths(self.train_dataset)
        grouped = LengthBatchSampler(lengths, args.train_batch_size, together=together, seed=args.seed)
        return self._loader(self.train_dataset, batch_sampler=grouped)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Longest first. Metrics do not depend on the order, and processes that gather need batches of one size."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):  # one of several, by its name
            dataset = self.eval_dataset[dataset]
        longest_first = dataset_lengths(dataset).reshape(len(dataset), -1).prod(axis=1).argsort()[::-1]
        return self._loader(dataset, batch_size=self.args.eval_batch_size, sampler=longest_first.tolist())

    def _loader(self, dataset: Dataset, **order: Any) -> DataLoader:
        workers, pin = self.args.dataloader_num_workers, self.args.dataloader_pin_memory
        loader = DataLoader(dataset, collate_fn=self.data_collator, num_workers=workers, pin_memory=pin, **order)
        return self.accelerator.prepare(loader)


def make_trainer(
    model: PreTrainedModel,
    train_dataset: Dataset,
    validation_dataset: Dataset,
    settings: TrainingSettings,
    output_dir: str | PathLike,
    group_by_length: bool = False,
    **arguments: Any,
) -> Trainer:
    """A stock Trainer with our collator, metrics, parameter groups and early stopping; quiet, see its `state`.

    group_by_length: the `LengthGroupedTrainer`. arguments: fields of TrainingArguments.
    """
    trainer = (LengthGroupedTrainer if group_by_length else Trainer)(
        model=model,
        args=settings.arguments(output_dir, **arguments),
        train_dataset=train_dataset,
        eval_dataset=validation_dataset,
        data_collator=EmotionCollator(model.config),
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(settings.patience)] if settings.keep == "best" else [],
        optimizers=(torch.optim.AdamW(parameter_groups(model, settings)), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def fit(
    model: PreTrainedModel,
    train_dataset: Dataset,
    validation_dataset: Dataset,
    settings: TrainingSettings,
    output_dir: str | PathLike,
    statistics_dataset: Dataset | None = None,
    group_by_length: bool = False,
    **arguments: Any,
) -> dict[str, Any]:
    """Train a model and leave it at the epoch that `settings.keep` names; returns what was chosen and why.

    Standardizers take their statistics from the training set first, or from `statistics_dataset`, which is the same
    clips without the training set's random changes. group_by_length: batches of clips of like length (the package's
    own figures were measured without). MMAN goes through the paper's two stages: its branches, then, these frozen,
    their fusion.

    Raises:
        ValueError: an empty training or validation set.
    """
    for name, dataset in (("train_dataset", train_dataset), ("validation_dataset", validation_dataset)):
        if not len(dataset):
            raise ValueError(f"{name} is empty")
    device = settings.arguments(output_dir, **arguments).device
    model.to(device)
    seen = train_dataset if statistics_dataset is None else statistics_dataset
    model.fit_standardizers(lambda: batches(seen, settings.batch_size, model))
    stages = [settings]
    if getattr(model.config, "network", None) == "mman" and not model.config.freeze_branches:
        stages.append(replace(settings, epochs=max(settings.epochs // 4, 1), weight_decay=0.0))
    history = []
    for number, stage in enumerate(stages):
        if number:
            model.freeze_branches()
        directory = Path(output_dir) / f"stage-{number + 1}" if len(stages) > 1 else Path(output_dir)
        trainer = make_trainer(
            model, train_dataset, validation_dataset, stage, directory, group_by_length, **arguments
        )
        trainer.train()
        evaluations = [entry for entry in trainer.state.log_history if f"eval_{stage.metric}" in entry]
        best = evaluations[-1]
        if stage.keep == "best":
            best = max(evaluations, key=lambda entry: entry[f"eval_{stage.metric}"])
        history.append(
            {
                "settings": asdict(stage),
                "epochs_run": len(evaluations),
                "epoch_kept": best["epoch"],
                f"validation_{stage.metric}": best[f"eval_{stage.metric}"],
            }
        )
    model.eval()
    model.untrained_keys = ()  # a head that its checkpoint lacked is trained now
    return {"stages": history}


def batches(dataset: Dataset, batch_size: int, model: PreTrainedModel | None = None) -> Iterator[dict[str, Any]]:
    """Padded batches of a dataset in its order, on the model's device."""
    yield from _padded(dataset, model, batch_size=batch_size)


def _padded(dataset: Dataset, model: PreTrainedModel | None, **order: Any) -> Iterator[dict[str, Any]]:
    collator = EmotionCollator(None if model is None else model.config)
    for batch in DataLoader(dataset, collate_fn=collator, **order):
        yield batch if model is None else move_to(batch, model.device)


@torch.inference_mode()
def predict_logits(model: PreTrainedModel, dataset: Dataset, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Logits (items, labels) and labels (items,), -100 where there is none, of the real turns or clips, in the
    dataset's order.

    Clips, or dialogues, of like length are run together.
    """
    model.eval()
    grouped = list(LengthBatchSampler(dataset_lengths(dataset), batch_size, shuffle=False))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for indices, batch in zip(grouped, _padded(dataset, model, batch_sampler=grouped), strict=True):
        labels = batch.pop("labels", None)
        real = batch.get("turn_mask", torch.ones(len(indices), 1, dtype=torch.bool, device=model.device))
        logits = model(**batch).logits.float().reshape(*real.shape, -1)
        labels = torch.full(real.shape, IGNORED_LABEL) if labels is None else labels.reshape(real.shape)
        for row, index in enumerate(indices):
            found[index] = logits[row][real[row]].cpu(), labels[row][real[row]].cpu()
    sides = zip(*(found[index] for index in range(len(dataset))), strict=True)
    logits, labels = (torch.cat(side).numpy() for side in sides)
    return logits, labels
