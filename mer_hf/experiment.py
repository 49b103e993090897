"""Cross-validation: train by recipes on every fold, read each test fold once, and write down what came of it.

    results = run_experiment(corpus, ["cme", "mman", "lr"], "runs/ravdess")

leaves `results.json`, `results.md`, a checkpoint a model, and a file a fold, seed and model, from which an interrupted
run goes on. Under `torchrun` the processes train together and the first one evaluates and writes.
"""

import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

from .corpora import Corpus, write_json
from .data.collator import ClipDataset, DialogueDataset
from .data.protocols import FoldSplit
from .evaluation import SCORES, emotion_metrics, evaluation_report, format_table, paired_difference
from .hub import save_checkpoint
from .recipes import FLOORS, RECIPES, Plan, logistic_regression
from .training import fit, predict_logits, process_state

logger = logging.getLogger(__name__)

LOGISTIC = "lr"
"""Stands for all logistic regressions that the corpus has vectors for."""
PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")


class Job(NamedTuple):
    """One training: a model, a seed, a split."""

    model: str
    seed: int
    split: FoldSplit

    @property
    def name(self) -> str:
        return f"{self.model}-seed{self.seed}-fold{self.split.fold}"


def run_experiment(
    corpus: Corpus,
    models: Sequence[str],
    output_dir: str | PathLike,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] | None = None,
    epochs: int | None = None,
    save_fold: int | None = None,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Train and test every model on every fold with every seed; returns what `results.json` then holds.

    models: names in RECIPES and FLOORS, "lr" for every floor. folds: those to test on, None = all of the corpus's.
    epochs: instead of the recipes' own (for a try; the results say so). save_fold: whose checkpoint, of the first
    seed, is kept in `output_dir/<model>`; None = the last. progress: called with one line a finished job.

    A job whose file is in output_dir is not run again.

    Raises:
        ValueError: an unknown model, seed-less or model-less call, a fold that the corpus does not have, or a job's
            file that was made from other data, another recipe or other settings.
    """
    names = expand_models(corpus, models)
    splits = _chosen_splits(corpus, folds)
    save_fold = splits[-1].fold if save_fold is None else save_fold
    if not seeds or save_fold not in [split.fold for split in splits]:
        raise ValueError(f"seeds {list(seeds)} and save_fold {save_fold}: give a seed, and a fold that is run")
    output_dir, state = Path(output_dir), process_state()
    records = []
    for job in [Job(name, seed, split) for name in names for split in splits for seed in seeds]:
        keep = output_dir / job.model if (job.split.fold, job.seed) == (save_fold, seeds[0]) else None
        record, done_before = run_job(corpus, job, output_dir, epochs, keep)
        records.append(record)
        if state.is_main_process:
            wa, ua = record["scores"]["wa"], record["scores"]["ua"]
            how = "done before" if done_before else f"{record['seconds']:.0f} s"
            progress(f"{job.name}: WA {100 * wa:.1f}, UA {100 * ua:.1f} ({how})")
    results = summarize(corpus, splits, records)
    if state.is_main_process:
        shutil.rmtree(output_dir / "unfinished", ignore_errors=True)
        write_json(output_dir / "results.json", results)
        (output_dir / "results.md").write_text(results_table(results) + "\n", encoding="utf-8")
    return results


def expand_models(corpus: Corpus, models: Sequence[str]) -> list[str]:
    """The names with "lr" written out: the floors whose vectors the corpus has, each name once.

    Raises:
        ValueError: an unknown name, or none.
    """
    known = [*RECIPES, *FLOORS, LOGISTIC]
    unknown = [name for name in models if name not in known]
    if unknown or not models:
        raise ValueError(f"models must be among {', '.join(known)}; found {unknown or 'none'}")
    possible = [name for name, modalities in FLOORS.items() if "vision" not in modalities or corpus.vision_width]
    return list(dict.fromkeys(part for name in models for part in (possible if name == LOGISTIC else [name])))


def _chosen_splits(corpus: Corpus, folds: Sequence[int] | None) -> list[FoldSplit]:
    present = {split.fold: split for split in corpus.splits}
    missing = sorted(set(folds or ()) - set(present))
    if missing:
        raise ValueError(f"folds {missing} are not among the corpus's: {sorted(present)}")
    return [split for fold, split in present.items() if folds is None or fold in folds]


# One job


def run_job(
    corpus: Corpus, job: Job, output_dir: Path, epochs: int | None = None, keep: Path | None = None
) -> tuple[dict[str, Any], bool]:
    """What a job gave, and whether it was there already. Its file is `output_dir/folds/<job>.json`.

    keep: where its checkpoint goes (floors have none).

    Raises:
        ValueError: the file was made otherwise.
    """
    file, state = output_dir / "folds" / f"{job.name}.json", process_state()
    plan = None if job.model in FLOORS else RECIPES[job.model](corpus, job.split, job.seed)
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
    if plan is None:
        logits, details = logistic_regression(corpus, job.split, job.model)
    else:
        logits, details = _train(plan, output_dir / "unfinished" / job.name, state)
    record = {
        "origin": origin,
        "chosen": details,
        **_tested(corpus, job.split, logits),
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "processes": state.num_processes,
    }
    if state.is_main_process:
        if plan is not None and keep is not None:
            save_checkpoint(plan.model, plan.processor, keep)
        write_json(file, record)
    state.wait_for_everyone()
    return record, False


def _with_epochs(plan: Plan, epochs: int) -> Any:
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, found {epochs}")
    return type(plan.settings)(**asdict(plan.settings) | {"epochs": epochs})


def describe(corpus: Corpus, job: Job, plan: Plan | None) -> dict[str, Any]:
    """What a job's result depends on, ready for JSON. A floor has neither configuration nor settings."""
    config = {} if plan is None else plan.model.config.to_diff_dict()
    described = {
        "model": job.model,
        "seed": job.seed,
        "fold": job.split.fold,
        "split": job.split.name,
        "split_sha256": job.split.sha256,
        "corpus_sha256": corpus.sha256,
        "config": {name: value for name, value in config.items() if name not in ("label2id", "transformers_version")},
        "settings": None if plan is None else asdict(plan.settings),
        "parameters": None if plan is None else plan.model.num_parameters(),
    }
    return json.loads(json.dumps(described))  # tuples as lists, integer keys as strings: as a file gives them back


def _train(plan: Plan, directory: Path, state: PartialState) -> tuple[np.ndarray, dict[str, Any]]:
    # the same number of clips a step, however many processes share them
    share = max(plan.settings.batch_size // state.num_processes, 1)
    chosen = fit(plan.model, plan.train, plan.validation, plan.settings, directory, per_device_train_batch_size=share)
    state.wait_for_everyone()  # all have read the best epoch's weights
    if state.is_main_process:
        shutil.rmtree(directory)
    return predict_logits(plan.model, plan.test)[0], chosen


def _tested(corpus: Corpus, split: FoldSplit, logits: np.ndarray) -> dict[str, Any]:
    labels = [corpus.label2id[corpus.by_id[i]["label"]] for i in split.test]
    predictions = logits.argmax(-1).tolist()
    return {
        "scores": emotion_metrics(labels, predictions, len(corpus.labels)),
        "labels": labels,
        "predictions": predictions,
        "speakers": [corpus.by_id[i]["speaker"] for i in split.test],
    }


def evaluate_checkpoint(corpus: Corpus, model: str | PathLike, fold: int) -> dict[str, Any]:
    """A saved model's scores on the test side of one fold, with intervals over speakers.

    model: a folder or Hub id with its processor. Whether the model was trained without this fold's test clips is for
    the caller to know: the report says which fold it is, by hash.

    Raises:
        ValueError: a fold the corpus does not have, labels that are not the model's, a checkpoint with untrained
            weights, or face features of another width.
    """
    network = AutoModel.from_pretrained(model).eval()
    if getattr(network, "untrained_keys", ()):
        raise ValueError(f"model: {model} lacks {len(network.untrained_keys)} weights; fine-tune it first")
    processor = AutoProcessor.from_pretrained(model)
    split = _chosen_splits(corpus, [fold])[0]
    rows = [corpus.by_id[i] for i in split.test]
    config = network.config
    raw = tuple(m for m in config.modalities if getattr(config, f"{m}_config") is not None)
    extras = vision_extras(corpus, config.vision_embed_dim)

    def complete(row: Any, example: dict[str, Any]) -> dict[str, Any]:
        return example | dict(extras.get(row["id"], {}))

    clips: Any = ClipDataset(rows, processor, config.label2id, raw, transform=complete)
    order = list(range(len(rows)))
    if config.uses_context:
        clips = DialogueDataset(clips, [row["dialogue_id"] for row in rows], [row["turn"] for row in rows])
        order = [index for dialogue in clips.dialogues for index in dialogue]
    logits, labels = predict_logits(network, clips)
    speakers = [rows[index]["speaker"] for index in order]
    report = evaluation_report(labels, logits.argmax(-1), speakers, config.id2label)
    return {"model": str(model), "split": split.name, "fold": split.fold, "sha256": split.sha256, **report}


def vision_extras(corpus: Corpus, width: int | None) -> dict[str, Any]:
    """What a model without a vision backbone reads of the corpus's faces: their frames, or one vector a clip.

    Raises:
        ValueError: the corpus has neither of this width.
    """
    if width is None:
        return {}
    if width == corpus.vision_width:
        return dict(corpus.extras)
    if corpus.vision_width is not None and width == 3 * corpus.vision_width:
        return {i: {"vision_embeds": vector} for i, vector in corpus.vision_vectors.items()}
    raise ValueError(
        f"the model reads face features of width {width}, the corpus has {corpus.vision_width or 'none'}; "
        "give the face_scores it was trained with"
    )


# All jobs


def summarize(corpus: Corpus, splits: Sequence[FoldSplit], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results file: data, folds, and of each model its scores by fold, their mean, all folds pooled with
    intervals over speakers, and the paired difference in WA to each floor."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_model.setdefault(record["origin"]["model"], []).append(record)
    floors = {name: by_model[name] for name in FLOORS if name in by_model}
    sides = [{"fold": s.fold, "sha256": s.sha256} | {side: len(ids) for side, ids in s.sides.items()} for s in splits]
    return {
        "corpus": {"name": corpus.name, "labels": list(corpus.labels), "sha256": corpus.sha256, **corpus.notes},
        "protocol": {"split": splits[0].name, "selected_on": "validation", "folds": sides},
        "models": {name: _model_results(corpus, own, floors) for name, own in by_model.items()},
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _model_results(
    corpus: Corpus, records: Sequence[dict[str, Any]], floors: dict[str, Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    first = records[0]["origin"]
    scores = {name: np.array([record["scores"][name] for record in records]) for name in SCORES}
    own = _pooled(records)
    report = evaluation_report(own["labels"], own["predictions"], own["speakers"], dict(enumerate(corpus.labels)))
    del report["labels"]
    versus = {}
    for name, others in floors.items():
        if others is not records and [_place(record) for record in others] == [_place(record) for record in records]:
            correct = own["labels"] == own["predictions"], own["labels"] == _pooled(others)["predictions"]
            versus[name] = paired_difference(*correct, own["speakers"])._asdict()
    return {
        "parameters": first["parameters"],
        "settings": None if first["settings"] is None else {k: v for k, v in first["settings"].items() if k != "seed"},
        "config": first["config"],
        "mean": {name: float(values.mean()) for name, values in scores.items()},
        "deviation": {name: float(values.std()) for name, values in scores.items()},
        "pooled": report,
        "wa_minus": versus,
        "folds": [
            {"fold": record["origin"]["fold"], "seed": record["origin"]["seed"], **record["scores"]}
            | {name: record[name] for name in ("chosen", "seconds", "cpu_seconds", "processes")}
            for record in records
        ],
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
    }


def _place(record: dict[str, Any]) -> tuple[int, int]:
    return record["origin"]["fold"], record["origin"]["seed"]


def _pooled(records: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([record[name] for record in records]) for name in ("labels", "predictions", "speakers")
    }


def results_table(results: dict[str, Any]) -> str:
    """The results as a Markdown table: means over folds and seeds, 95 % intervals over speakers."""
    rows = []
    for name, model in results["models"].items():
        low, high = model["pooled"]["intervals"]["wa"] or (None, None)
        row = {"model": name} | {column: model["mean"][column] for column in SCORES}
        row["wa_95"] = None if low is None else f"{low:.3f} to {high:.3f}"
        for floor, gap in model["wa_minus"].items():
            row[f"wa - {floor}"] = f"{gap['estimate']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
        rows.append(row | {"parameters": model["parameters"], "cpu_s": model["cpu_seconds"]})
    floors = [f"wa - {floor}" for floor in FLOORS if any(f"wa - {floor}" in row for row in rows)]
    return format_table(rows, ["model", *SCORES, "wa_95", *floors, "parameters", "cpu_s"])
