"""Cross-validation: train by recipes on every fold, read each test fold once, and write down what came of it.

    results = run_experiment(corpus, ["cme", "mman", "lr"], "runs/ravdess")

leaves `results.json`, `results.md`, `results.png`, a checkpoint a model, and a file a fold, seed and model, from which
an interrupted run goes on. Under `torchrun` the processes train together and the first one evaluates and writes.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import AutoProcessor

from . import LateFusionForEmotionClassification, MerPreTrainedModel, MerProcessor
from .calibration import fit_temperature
from .corpora import Corpus, write_json
from .data.collator import DialogueDataset
from .data.named_protocols import paper_split
from .data.protocols import FoldSplit
from .evaluation import emotion_metrics
from .hub import save_checkpoint
from .models.modeling_late_fusion import fuse_logits
from .plots import plotting_installed
from .recipes import (
    COMBINATIONS,
    FLOORS,
    RECIPES,
    Floor,
    Plan,
    Recipe,
    check_modalities,
    floor,
    possible_models,
)
from .reporting import logits_of, plot_results, report_text, summarize
from .training import fit, predict_logits, process_state

logger = logging.getLogger(__name__)

LOGISTIC = "lr"
"""Stands for all logistic regressions that the corpus has vectors for."""


FLOOR_OF: dict[str, Floor] = {name: partial(floor, name=name) for name in FLOORS}


def once_a_split(answer: Floor) -> Floor:
    """The floor, computed once for every split it is asked for: no seed changes it."""
    known: dict[str, tuple[NDArray, NDArray, dict[str, Any]]] = {}

    def remembered(corpus: Corpus, split: FoldSplit) -> tuple[NDArray, NDArray, dict[str, Any]]:
        if split.sha256 not in known:
            known[split.sha256] = answer(corpus, split)
        return known[split.sha256]

    return remembered


class Job(NamedTuple):
    """One training: a model, a seed, a split, and the side that chooses: "validation", or "test" as the papers do."""

    model: str
    seed: int
    split: FoldSplit
    chosen_on: str = "validation"

    @property
    def name(self) -> str:
        return f"{self.model}-seed{self.seed}-fold{self.split.fold}{'' if self.honest else '-paper'}"

    @property
    def honest(self) -> bool:
        return self.chosen_on == "validation"


def run_experiment(
    corpus: Corpus,
    models: Sequence[str],
    output_dir: str | PathLike,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] | None = None,
    epochs: int | None = None,
    save_fold: int | None = None,
    paper: bool = False,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Train and test every model on every fold with every seed; returns what `results.json` then holds.

    models: names in RECIPES, COMBINATIONS and FLOORS, "lr" for every logistic regression. folds: those to test on,
    None = all of the corpus's. epochs: instead of the recipes' own (for a try; the results say so). save_fold: whose
    checkpoint, of the first seed, is kept in `output_dir/<model>`; None = the last. paper: train everything once more
    as the papers' released codes do, chosen on the test side (`paper_split`), to stand beside the honest numbers.
    progress: called with one line a finished job.

    A job whose file is in output_dir is not run again.

    Raises:
        ValueError: an unknown model, seed-less or model-less call, a fold that the corpus does not have, or a job's
            file that was made from other data, another recipe or other settings; a checkpoint that is to be kept, or
            fused, of a fold whose training is done and whose checkpoint was not kept.
    """
    names = expand_models(corpus, models)
    splits = chosen_splits(corpus, folds)
    asked, save_fold = save_fold is not None, splits[-1].fold if save_fold is None else save_fold
    if not seeds or save_fold not in [split.fold for split in splits]:
        raise ValueError(f"seeds {list(seeds)} and save_fold {save_fold}: give a seed, and a fold that is run")
    output_dir, state = Path(output_dir), process_state()
    sides = ("validation", "test") if paper else ("validation",)
    jobs = [Job(n, seed, split, side) for side in sides for n in names for split in splits for seed in seeds]
    floors = {name: once_a_split(answer) for name, answer in FLOOR_OF.items()}
    records = []
    for job in jobs:
        kept = job.honest and (job.split.fold, job.seed) == (save_fold, seeds[0])
        keep = output_dir / job.model if kept else None
        record, done_before = run_job(corpus, job, output_dir, epochs, keep, floors=floors)
        if done_before and asked and keep is not None and job.model not in floors:
            _check_kept(keep, trained_on(corpus, job.split))
        records.append(record)
        if state.is_main_process:
            wa, ua = record["scores"]["wa"], record["scores"]["ua"]
            how = "done before" if done_before else f"{record['seconds']:.0f} s"
            progress(f"{job.name}: WA {100 * wa:.1f}, UA {100 * ua:.1f} ({how})")
    results = summarize(corpus, splits, records)
    if state.is_main_process:
        shutil.rmtree(output_dir / "unfinished", ignore_errors=True)
        write_json(output_dir / "results.json", results)
        (output_dir / "results.md").write_text(report_text(results) + "\n", encoding="utf-8")
        if plotting_installed():
            plot_results(results, output_dir / "results.png")
        else:
            progress("results.png is not drawn: pip install 'mer-hf[plot]'")
    return results


def check_names(models: Sequence[str]) -> None:
    """Raise ValueError for a name that is no model, or none at all."""
    known = [*RECIPES, *COMBINATIONS, *FLOORS, LOGISTIC]
    unknown = [name for name in models if name not in known]
    if unknown or not models:
        raise ValueError(f"models must be among {', '.join(known)}; found {unknown or 'none'}")


def expand_models(corpus: Corpus, models: Sequence[str]) -> list[str]:
    """The names, each once, with "lr" written out, and before a combination the models that it combines.

    Of "lr" and of combinations only what the corpus has the modalities for.

    Raises:
        ValueError: an unknown name, or none; one that reads what the corpus does not have.
    """
    check_names(models)
    found: list[str] = []
    for name in models:
        if name == LOGISTIC:
            found += possible_models(corpus, [floor for floor, read in FLOORS.items() if read])
        else:
            found += [*possible_models(corpus, COMBINATIONS.get(name, ())), name]
    for name in found:
        check_modalities(corpus, name)
    return list(dict.fromkeys(found))


def chosen_splits(corpus: Corpus, folds: Sequence[int] | None) -> list[FoldSplit]:
    present = {split.fold: split for split in corpus.splits}
    missing = sorted(set(folds or ()) - set(present))
    if missing:
        raise ValueError(f"folds {missing} are not among the corpus's: {sorted(present)}")
    return [split for fold, split in present.items() if folds is None or fold in folds]


# One job


def run_job(
    corpus: Corpus,
    job: Job,
    output_dir: Path,
    epochs: int | None = None,
    keep: Path | None = None,
    recipes: Mapping[str, Recipe] = RECIPES,
    floors: Mapping[str, Floor] = FLOOR_OF,
) -> tuple[dict[str, Any], bool]:
    """What a job gave, and whether it was there already. Its file is `output_dir/folds/<job>.json`.

    keep: where its checkpoint goes (floors have none). recipes, floors: what the names of models stand for.

    Raises:
        ValueError: the file was made otherwise.
    """
    file, state = _job_file(output_dir, job), process_state()
    split = job.split if job.honest else paper_split(job.split)
    plan = recipes[job.model](corpus, split, job.seed) if job.model in recipes else None
    if plan is not None and epochs is not None:
        plan = plan._replace(settings=_with_epochs(plan, epochs))
    origin = describe(corpus, job, plan)
    there = file.is_file()
    state.wait_for_everyone()  # all have looked before one writes
    if there:
        record = json.loads(file.read_text(encoding="utf-8"))
        differing = sorted(name for name in origin if record["origin"].get(name) != origin[name])
        if differing:
            raise ValueError(f"{file} was made with another {', '.join(differing)}; name another output_dir")
        return record, True

    wall, cpu = time.perf_counter(), time.process_time()
    if plan is not None:
        answers = _train(plan, output_dir / "unfinished" / job.name, state)
    elif job.model in floors:
        answers = Answers(*floors[job.model](corpus, split))
    else:
        answers = _combine(corpus, job, output_dir)
    record = {
        "origin": origin,
        **_tested(corpus, split, answers),
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "processes": state.num_processes,
    }
    if state.is_main_process:
        if keep is not None and job.model not in floors:
            own = trained_on(corpus, job.split)
            model, processor = _fused(output_dir, record, own) if plan is None else (plan.model, plan.processor)
            model.config.calibration_temperature = record["temperature"]
            save_checkpoint(model, processor, keep)
            write_json(keep / TRAINED_ON, own)
        write_json(file, record)
    state.wait_for_everyone()
    return record, False


NOT_CHOSEN = ("label2id", "transformers_version", "calibration_temperature")
"""Fields of a configuration that say nothing of how a model is trained."""
TRAINED_ON = "trained_on.json"
"""Beside a checkpoint: which corpus, protocol and fold it was trained on."""


def trained_on(corpus: Corpus, split: FoldSplit) -> dict[str, Any]:
    """What tells later whether a checkpoint may be tested on a fold."""
    return {"corpus": corpus.name, "protocol": split.name, "fold": split.fold, "sha256": split.sha256}


def _job_file(output_dir: Path, job: Job) -> Path:
    return output_dir / "folds" / f"{job.name}.json"


def _with_epochs(plan: Plan, epochs: int) -> Any:
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, found {epochs}")
    return type(plan.settings)(**asdict(plan.settings) | {"epochs": epochs})


def describe(corpus: Corpus, job: Job, plan: Plan | None) -> dict[str, Any]:
    """What a job's result depends on, ready for JSON. What is not trained has neither configuration nor settings."""
    config = {} if plan is None else plan.model.config.to_diff_dict()
    described = {
        "model": job.model,
        "seed": job.seed,
        "fold": job.split.fold,
        "split": job.split.name,
        "split_sha256": job.split.sha256,
        "chosen_on": job.chosen_on,
        "corpus_sha256": corpus.sha256,
        "config": {name: value for name, value in config.items() if name not in NOT_CHOSEN},
        "settings": None if plan is None else asdict(plan.settings),
        "parameters": None if plan is None else plan.model.num_parameters(),
    }
    return json.loads(json.dumps(described))  # tuples as lists, integer keys as strings: as a file gives them back


class Answers(NamedTuple):
    """Logits (clips, labels) on both sides that are not trained on, and what was chosen how."""

    validation: NDArray
    test: NDArray
    chosen: dict[str, Any]


def _train(plan: Plan, directory: Path, state: PartialState) -> Answers:
    # the same number of clips a step, however many processes share them
    share = max(plan.settings.batch_size // state.num_processes, 1)
    datasets = plan.train, plan.validation, plan.settings
    chosen = fit(plan.model, *datasets, directory, plan.statistics, per_device_train_batch_size=share)
    state.wait_for_everyone()  # all have read the best epoch's weights
    if state.is_main_process:
        shutil.rmtree(directory, ignore_errors=True)  # where the last epoch is kept nothing was saved
    return Answers(logits_by_row(plan.model, plan.validation), logits_by_row(plan.model, plan.test), chosen)


def logits_by_row(model: MerPreTrainedModel, dataset: Dataset) -> NDArray:
    """Logits (rows, labels) in the order of the rows that a data set was made of, whatever that of its dialogues."""
    logits = predict_logits(model, dataset)[0]
    if not isinstance(dataset, DialogueDataset):
        return logits
    return logits[np.argsort([index for dialogue in dataset.dialogues for index in dialogue])]


def _combine(corpus: Corpus, job: Job, output_dir: Path) -> Answers:
    """Calibrated late fusion of what other models of the same fold, seed and selection answered."""
    branches = possible_models(corpus, COMBINATIONS[job.model])
    records = [json.loads(_job_file(output_dir, job._replace(model=name)).read_text("utf-8")) for name in branches]
    return Answers(*fuse_records(records), {"branches": branches})


def fuse_records(records: Sequence[Mapping[str, Any]], independent: bool = False) -> tuple[NDArray, NDArray]:
    """Calibrated late fusion of models' records of one fold: logits (clips, labels) of its validation and test side.

    independent: as of `fuse_logits`.
    """
    temperatures = [record["temperature"] for record in records]
    sides = [record["validation"] for record in records], records
    validation, test = (
        fuse_logits(np.stack([logits_of(one) for one in side]), temperatures, independent=independent).numpy()
        for side in sides
    )
    return validation, test


def _check_kept(folder: Path, trained: Mapping[str, Any]) -> None:
    """Raise ValueError for a checkpoint that is not there, or was kept for another fold."""
    file = folder / TRAINED_ON
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if known != trained:
        found = f"is of fold {known.get('fold')} of {known.get('protocol')}" if known else "is not there"
        raise ValueError(
            f"save_fold: the checkpoint of fold {trained['fold']} of {trained['protocol']} is asked for, but that in "
            f"{folder} {found}, and what is trained already is not trained again; name another output_dir"
        )


def _fused(output_dir: Path, record: dict[str, Any], trained: Mapping[str, Any]) -> tuple[Any, MerProcessor]:
    """The late fusion of the branches' checkpoints, which were kept before it, with the tokenizer of the one that
    reads words, and silence trimmed as for the one that wants it. trained: what all were trained on."""
    folders = {name: output_dir / name for name in record["chosen"]["branches"]}
    for folder in folders.values():
        _check_kept(folder, trained)
    model = LateFusionForEmotionClassification.from_branches(folders)
    processors = {name: AutoProcessor.from_pretrained(folder) for name, folder in folders.items()}
    words = [name for name, branch in model.branches.items() if "text" in branch.config.modalities]
    processor = processors[(words or list(folders))[0]]
    processor.trim_db = next((own.trim_db for own in processors.values() if own.trim_db is not None), None)
    return model, processor


def _tested(corpus: Corpus, split: FoldSplit, answers: Answers) -> dict[str, Any]:
    """A record's scores, calibrated by the validation side, and what it takes to score it otherwise later."""
    labels = {side: [corpus.label2id[corpus.by_id[i]["label"]] for i in split.sides[side]] for side in split.sides}
    temperature = fit_temperature(answers.validation, np.array(labels["validation"]))
    predictions = answers.test.argmax(-1).tolist()
    correct = answers.validation.argmax(-1) == labels["validation"]
    return {
        "chosen": answers.chosen | {"validation_wa": float(correct.mean())},
        "scores": emotion_metrics(labels["test"], predictions, len(corpus.labels)),
        "temperature": temperature,
        "labels": labels["test"],
        "predictions": predictions,
        "groups": [corpus.by_id[i][corpus.cluster] for i in split.test],
        "logits": _storable(answers.test),
        "validation": {"labels": labels["validation"], "logits": _storable(answers.validation)},
    }


def _storable(logits: NDArray) -> list[list[float | None]]:
    """JSON knows no -inf, which a class that training lacked has."""
    return [[round(float(v), 4) if np.isfinite(v) else None for v in row] for row in logits]
