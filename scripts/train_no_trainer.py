"""One fold of a corpus, trained by an explicit loop over Accelerate, where every step can be read and changed:

    python scripts/train_no_trainer.py --corpus ravdess --data_dir RAVDESS --model cme --fold 1 --output_dir runs/loop
    torchrun --nproc_per_node 2 scripts/train_no_trainer.py ...                       # the same losses
    accelerate launch --config_file scripts/fsdp.yaml scripts/train_no_trainer.py ... # large backbones

with a recipe of `mer_hf.recipes`, or, with --audio, --text or --vision, with a new head over pretrained backbones:
frozen ones, whose states --store keeps, or trained along with --train_backbones.

--batch_size is what one optimizer step sees, however many processes and accumulation steps it is spread over: clips of
like length go into one batch, their order depends on the seed alone, and a step's loss is the mean over its labels.
--batch_seconds bounds each process's batches by the sound in them, padding included, instead of their clips.
Run it again to go on after a kill. Chosen on the validation side; the test side is read once, at the end.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import get_linear_schedule_with_warmup

from mer_hf.backbone_recipes import HEADS, backbone_plan, check_backbones, stored_plan
from mer_hf.cli_predict import quiet_transformers
from mer_hf.corpora import CORPORA, Corpus, load_corpus, write_json
from mer_hf.data.collator import EmotionCollator, move_to
from mer_hf.data.features import take_head
from mer_hf.data.length_grouping import LengthBatchSampler, dataset_lengths
from mer_hf.data.protocols import FoldSplit
from mer_hf.data.whole_files import check_same_run
from mer_hf.evaluation import emotion_metrics, evaluation_report
from mer_hf.experiment import TRAINED_ON, Job, chosen_splits, describe, trained_on
from mer_hf.hub import save_checkpoint
from mer_hf.recipes import RECIPES, Plan
from mer_hf.training import batches, parameter_groups

CHECKPOINT = "checkpoint-{:08}"
MADE_WITH = "made_with.json"
"""Beside the checkpoints: the data, fold, recipe and settings that a run which goes on from them must share."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quiet_transformers()
    try:
        train(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def train(options: argparse.Namespace) -> None:
    check_backbones(backbones_of(options))
    accelerator = make_accelerator()
    corpus = load_corpus(options.corpus, options.data_dir, options.cache_dir, protocol=options.protocol)
    split = chosen_splits(corpus, [options.fold])[0]
    plan, whole = make_plan(options, corpus, split, accelerator)
    accumulation, every = options.gradient_accumulation_steps, options.checkpoint_steps
    job = Job(options.model, options.seed, split)
    made_with = describe(corpus, job, plan) | {"backbones": backbones_of(options)}
    with accelerator.main_process_first():
        check_same_run(options.output_dir / MADE_WITH, made_with)
    loop = Loop(plan, accelerator, options.output_dir, accumulation, every, options.batch_seconds)
    progress = loop.run()
    labels, predictions = loop.answers("test")
    groups = np.array([corpus.by_id[i][corpus.cluster] for i in split.test])
    report = evaluation_report(labels, predictions, groups, plan.model.config.id2label)
    state = accelerator.get_state_dict(loop.model)
    if accelerator.is_main_process:
        trained = type(plan.model)(plan.model.config)  # the plan's own lies in parts on all processes under FSDP
        trained.load_state_dict(state)
        if whole is not None:
            take_head(whole, trained)
        folder = save_checkpoint(trained if whole is None else whole, plan.processor, options.output_dir / "model")
        write_json(folder / TRAINED_ON, trained_on(corpus, split))
        write_json(options.output_dir / "results.json", {"test": report, **progress.state_dict()})
        accelerator.print(json.dumps({name: report[name] for name in ("n", "wa", "ua")}))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, choices=CORPORA)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--protocol", help="default the corpus's usual one")
    parser.add_argument("--fold", type=int, default=1, help="the fold to test on")
    parser.add_argument(
        "--model", required=True, help=f"a recipe ({', '.join(RECIPES)}), or a head ({', '.join(HEADS)})"
    )
    for modality in ("audio", "text", "vision"):
        parser.add_argument(f"--{modality}", help=f"a folder or Hub id of a {modality} backbone")
    parser.add_argument("--store", type=Path, help="where the states of frozen backbones are kept")
    parser.add_argument("--train_backbones", action="store_true", help="train the backbones too, at 1e-5")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/cache"), help="where word times are kept")
    parser.add_argument("--batch_size", type=int, help="clips a step, over all processes; default the recipe's")
    parser.add_argument("--batch_seconds", type=float, help="of sound in a process's batch; steps then vary in clips")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1, help="pieces of a process's share")
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint_steps", type=int, help="save so often within an epoch too, not only at its end")
    options = parser.parse_args(arguments)
    pretrained = bool(backbones_of(options))
    known = HEADS if pretrained else RECIPES
    if options.model not in known:
        kind = "a head over backbones" if pretrained else "a recipe"
        parser.error(f"--model {options.model}: {kind} is one of {', '.join(known)}")
    if (options.store or options.train_backbones) and not pretrained:
        parser.error("--store and --train_backbones are of backbones; name some by --audio, --text or --vision")
    if options.store and options.train_backbones:
        parser.error("--store keeps what frozen backbones gave; give it or --train_backbones, not both")
    return options


def backbones_of(options: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(options, name) for name in ("audio", "text", "vision") if getattr(options, name)}


def make_accelerator(**values: Any) -> Accelerator:
    # A batch may lack a modality, and then its backbone has no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[unused], **values)


def make_plan(
    options: argparse.Namespace, corpus: Corpus, split: FoldSplit, accelerator: Accelerator
) -> tuple[Plan, Any]:
    """The plan; and the model with its backbones where the plan's is a head over stored states, else None."""
    backbones = backbones_of(options)
    if not backbones:
        plan, whole = RECIPES[options.model](corpus, split, options.seed), None
    elif options.store is None:
        plan = backbone_plan(options.model, backbones, corpus, split, options.seed, options.train_backbones)
        whole = None
    else:
        place = accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone
        found = stored_plan(options.model, backbones, corpus, split, options.seed, options.store, *place)
        plan, whole = found.plan, found.whole
        accelerator.print(f"features: {json.dumps(found.report)}")
    asked = {"epochs": options.epochs, "batch_size": options.batch_size, "learning_rate": options.learning_rate}
    given = {name: value for name, value in asked.items() if value is not None}
    return plan._replace(settings=replace(plan.settings, **given)), whole


# The loop


@dataclass
class Progress:
    """Where the training is; goes into every checkpoint."""

    epoch: int = 0
    step: int = 0
    """Of the epoch, the next to be done."""
    total: int = 0
    """Steps of all epochs."""
    best: float = -math.inf
    best_total: int = 0
    """Steps after which the kept checkpoint was saved."""
    best_epoch: int = 0
    losses: list[float] = field(default_factory=list)
    """Of every step."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Scores on validation after every epoch."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Loop:
    """Training, validation and checkpoints of a plan; `model` is then at the epoch that its settings keep.

    Raises:
        ValueError: a batch size that processes and accumulation steps do not divide; MMAN's two stages.
    """

    def __init__(
        self,
        plan: Plan,
        accelerator: Accelerator,
        output_dir: Path,
        accumulation: int = 1,
        checkpoint_steps: int | None = None,
        batch_seconds: float | None = None,
    ):
        settings, parts = plan.settings, accelerator.num_processes * accumulation
        if batch_seconds is None and settings.batch_size % parts:
            raise ValueError(
                f"batch_size {settings.batch_size} is no multiple of the {parts} processes times "
                f"gradient_accumulation_steps; give --batch_size {parts * (settings.batch_size // parts + 1)}"
            )
        if getattr(plan.model.config, "network", None) == "mman":
            raise ValueError("mman is trained in two stages; use scripts/train.py, or the recipe clstm_mma")
        self.plan, self.settings, self.accelerator = plan, settings, accelerator
        self.checkpoints, self.checkpoint_steps = output_dir / "checkpoints", checkpoint_steps
        # Bounded by seconds, a batch has as many clips as they hold.
        self.clips = settings.batch_size // parts if batch_seconds is None else None
        self.seconds = batch_seconds
        self.lengths = {name: dataset_lengths(getattr(plan, name)) for name in ("train", "validation", "test")}
        self.sampler = LengthBatchSampler(
            self.lengths["train"], self.clips, batch_seconds, together=parts, seed=settings.seed
        )
        plan.model.to(accelerator.device)
        seen = plan.train if plan.statistics is None else plan.statistics
        plan.model.fit_standardizers(lambda: batches(seen, settings.batch_size, plan.model))
        optimizer = torch.optim.AdamW(parameter_groups(plan.model, settings))
        steps = sum(len(self.steps_of(epoch)) for epoch in range(settings.epochs))
        self.model, self.optimizer = accelerator.prepare(plan.model, optimizer)
        # Not prepared: Accelerate would advance it once a process.
        self.scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(settings.warmup * steps), steps)
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.scheduler, self.progress)

    def run(self) -> Progress:
        """Train to the end, from the newest checkpoint where there is one, and load the best epoch."""
        progress, settings = self.progress, self.settings
        if saved := self.saved():
            self.accelerator.load_state(str(saved[-1]))
            self.accelerator.print(f"going on after step {progress.total}, from {saved[-1]}")
        while progress.epoch < settings.epochs and not self.is_stuck():
            self.train_epoch()
            labels, predictions = self.answers("validation")
            scores = emotion_metrics(labels, predictions, self.plan.model.config.num_labels)
            progress.epoch, progress.step = progress.epoch + 1, 0
            progress.epochs.append(scores)
            if scores[settings.metric] > progress.best or settings.keep == "last":
                progress.best, progress.best_total = scores[settings.metric], progress.total
                progress.best_epoch = progress.epoch
            self.accelerator.print(
                f"epoch {progress.epoch}: validation {settings.metric} {scores[settings.metric]:.3f}"
            )
            self.save()
        done = Progress(**progress.state_dict())
        self.accelerator.load_state(str(self.checkpoints / CHECKPOINT.format(done.best_total)))
        return done

    def steps_of(self, epoch: int) -> list[list[list[int]]]:
        """An epoch's steps, each the batches of all processes."""
        self.sampler.set_epoch(epoch)
        return self.sampler.steps()

    def is_stuck(self) -> bool:
        without_gain = self.progress.epoch - self.progress.best_epoch
        return self.settings.keep == "best" and without_gain >= self.settings.patience

    def train_epoch(self) -> None:
        """What is left of an epoch's steps."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        steps = self.steps_of(self.progress.epoch)
        shares = [step[rank::processes] for step in steps[self.progress.step :]]
        loaded = iter(self.loader(self.plan.train, [batch for share in shares for batch in share]))
        for share in shares:
            # Dropout and random changes to clips depend on the step alone, so a run that was killed goes on as it was.
            set_seed(self.seed_of(rank))
            self.model.train()
            self.train_step([next(loaded) for _ in share])
            self.progress.step += 1
            self.progress.total += 1
            within = self.progress.step < len(steps)
            if self.checkpoint_steps and within and self.progress.total % self.checkpoint_steps == 0:
                self.save()

    def seed_of(self, stream: int) -> int:
        """Of one process at the step that comes next."""
        return int(np.random.SeedSequence([self.settings.seed, self.progress.total, stream]).generate_state(1)[0])

    def train_step(self, share: list[dict[str, Tensor]]) -> None:
        """One optimizer step over this process's share of the batches."""
        accelerator = self.accelerator
        weights = [self.weight(batch) for batch in share]
        total = accelerator.reduce(torch.stack(weights).sum(), "sum").clamp(min=1e-9)
        losses = []
        for number, (batch, weight) in enumerate(zip(share, weights, strict=True), 1):
            waits = number < len(share)  # gradients go between processes once a step
            with accelerator.no_sync(self.model) if waits else nullcontext():
                # The mean over a batch's labels -> its part of the mean over the step's; processes' are averaged.
                loss = self.model(**batch).loss * weight / total
                accelerator.backward(loss * accelerator.num_processes)
            losses.append(loss.detach())
        accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.losses.append(accelerator.reduce(torch.stack(losses).sum(), "sum").item())

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """What the loss of a batch is a mean over: its labels, by their weights where classes have some."""
        labels = batch["labels"][batch["labels"] != -100]
        by_class = self.plan.model.config.class_weights or [1.0] * self.plan.model.config.num_labels
        return torch.tensor(by_class, device=labels.device)[labels].sum()

    def loader(self, dataset: Dataset, own: list[list[int]]) -> Any:
        """Batches of these indices on this process's device."""
        # Of the seeds of worker processes; without it the loader would draw one from the generator of dropout.
        seeds = torch.Generator().manual_seed(self.seed_of(self.accelerator.num_processes))
        workers = self.settings.num_workers
        collator = EmotionCollator(self.plan.model.config)
        loader = DataLoader(dataset, batch_sampler=own, collate_fn=collator, num_workers=workers, generator=seeds)
        return map(partial(move_to, device=self.accelerator.device), loader)

    @torch.no_grad()  # not inference_mode: FSDP cannot train on parameters that it has gathered in that
    def answers(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predictions of one side's clips, in their order; each process answers its share."""
        processes = self.accelerator.num_processes
        lengths = self.lengths[side]
        steps = LengthBatchSampler(lengths, self.clips, self.seconds, together=processes, shuffle=False).steps()
        own = [step[self.accelerator.process_index] for step in steps]
        self.model.eval()
        found = []
        for indices, batch in zip(own, self.loader(getattr(self.plan, side), own), strict=True):
            labels = batch.pop("labels").reshape(len(indices), -1)  # of a dialogue one a turn
            predictions = self.model(**batch).logits.argmax(-1).reshape(labels.shape)
            found += zip(indices, labels.tolist(), predictions.tolist(), strict=True)
        pairs = np.array([pair for _, *both in sorted(gather_object(found)) for pair in zip(*both, strict=True)])
        labels, predictions = pairs[pairs[:, 0] != -100].T  # turns that pad a dialogue have no label
        return labels, predictions

    # Checkpoints

    def saved(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.checkpoints.glob(CHECKPOINT.replace("{:08}", "*")))

    def save(self) -> None:
        """A checkpoint that appears when it is whole; only it and the best epoch's are kept."""
        target = self.checkpoints / CHECKPOINT.format(self.progress.total)
        unfinished = self.checkpoints / "unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if target.exists():  # the epoch ended on a step that was saved within it
                shutil.rmtree(target)
            unfinished.replace(target)
            kept = {target, self.checkpoints / CHECKPOINT.format(self.progress.best_total)}
            for folder in set(self.saved()) - kept:
                shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()


if __name__ == "__main__":
    sys.exit(main())
