"""What knowing a speaker's voice and face is worth: a protocol's rows with speakers enrolled from unlabelled clips.

    results = enrolment_rows(corpus, "runs/ravdess-enrolled")

These are other protocols than the plain one and have names of their own, `<protocol>+enrolled-8` and so on: of every
test speaker some clips are drawn at random, their labels never looked at, and these clips are not scored. All rows
score the same remaining clips, the plain one too. In the row `all` the scored clips enrol their speaker as well: it is
transductive, an upper bound for who has a speaker's whole recording, labelled so.

Each model is trained twice: `<model>` plainly, as in `recipes`; `<model>, enrolled` on clips that are enrolled anew at
every look from 1, 4, 8, 20 or all clips of the training speaker, a fifth of the looks without, so that the one model
serves known and unknown speakers. Choices as in `recipes`, by validation alone.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import MMANForEmotionClassification
from .corpora import Corpus, write_json
from .data.collator import EmotionCollator, ExampleDataset
from .data.enrolment import EnrolledClips, enrol_examples, enrolment_subsets
from .data.protocols import FoldSplit
from .evaluation import SCORES, emotion_metrics, format_table
from .intervals import format_gap, paired_gap
from .logistic import choose_regression
from .recipes import RECIPES, Example, Plan
from .training import batches, fit, predict_logits

SIZES = (1, 8, 20)
TRAINING_SIZES = (1, 4, 8, 20, None)  # untuned
UNENROLLED = 0.2  # validation, one seed: loses nothing on unknown speakers, and about 1 point on known ones
TRANSDUCTIVE = "all, transductive"
ENROLLED = ", enrolled"
MODELS = ("lr_both", "mman")
Answer = Callable[[Sequence[Example]], NDArray]


class Job(NamedTuple):
    """One training: "lr_both" or "mman", plainly or on enrolled clips."""

    name: str
    enrolled: bool
    split: FoldSplit
    seed: int

    @property
    def model(self) -> str:
        """Its name in the results."""
        return f"{self.name}{ENROLLED * self.enrolled}"


class Trained(NamedTuple):
    """A model that answers, and the network whose standardizers know the training speakers."""

    answer: Answer
    """Examples -> predictions (n,)."""
    network: MMANForEmotionClassification


def enrolment_rows(
    corpus: Corpus,
    output_dir: str | PathLike,
    models: Sequence[str] = MODELS,
    seeds: Sequence[int] = (0,),
    sizes: Sequence[int] = SIZES,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train and test on every fold; returns what `results.json` then holds. A finished fold is not run again.

    models: "lr_both" and "mman". seeds: of training and of the draw of enrolment clips.

    Raises:
        ValueError: another model, no seed, no size or one below 1, or a test speaker with no more clips than the
            largest size.
    """
    unknown = [name for name in models if name not in MODELS]
    if unknown or not models or not seeds:
        raise ValueError(f"models must be among {', '.join(MODELS)}, with a seed or more; found {unknown or 'none'}")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be numbers of clips, at least 1; found {list(sizes)}")
    jobs = [
        Job(name, enrolled, split, seed)
        for name in models
        for enrolled in (False, True)
        for split in corpus.splits
        for seed in seeds
    ]
    records = []
    for job in jobs:
        records.append(_run(corpus, job, Path(output_dir), sizes))
        shown = ", ".join(f"{row} {100 * np.mean(hits):.1f}" for row, hits in _hits(records[-1]).items())
        progress(f"{job.model}, seed {job.seed}, fold {job.split.fold}: {shown}")
    results = summarize(corpus, records, sizes)
    shutil.rmtree(Path(output_dir) / "unfinished", ignore_errors=True)
    write_json(Path(output_dir) / "results.json", results)
    (Path(output_dir) / "results.md").write_text(results_table(results) + "\n", encoding="utf-8")
    return results


def _run(corpus: Corpus, job: Job, output_dir: Path, sizes: Sequence[int]) -> dict[str, Any]:
    file = output_dir / "folds" / f"{job.name}{'-enrolled' * job.enrolled}-seed{job.seed}-fold{job.split.fold}.json"
    origin = {
        "model": job.model,
        "seed": job.seed,
        "fold": job.split.fold,
        "corpus_sha256": corpus.sha256,
        "split_sha256": job.split.sha256,
        "sizes": list(sizes),
    }
    if not file.is_file():
        trained = _train(corpus, job, output_dir / "unfinished")
        write_json(file, {"origin": origin} | _tested(corpus, job, trained, sizes))
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["origin"] != origin:
        raise ValueError(f"{file} was made from other data or settings; name another output_dir")
    return record


# Training


def _train(corpus: Corpus, job: Job, directory: Path) -> Trained:
    name, enrolled, split, seed = job
    plan = RECIPES["mman"](corpus, split, seed)
    if not enrolled and name == "mman":
        fit(plan.model, plan.train, plan.validation, plan.settings, directory, plan.statistics)
        return Trained(_network_answer(plan.model), plan.model)
    plan.model.fit_standardizers(lambda: batches(plan.statistics, 64, plan.model))
    speakers = {side: [str(corpus.by_id[i]["speaker"]) for i in split.sides[side]] for side in ("train", "validation")}
    clean, validation = plan.statistics.examples, plan.validation.examples
    if name == "lr_both":
        return _logistic(plan, clean, validation, speakers, seed, enrolled)
    known = EnrolledClips(plan.model, clean, speakers["train"], TRAINING_SIZES, UNENROLLED, seed=seed)
    fit(plan.model, known, plan.validation, plan.settings, directory, plan.statistics)
    return Trained(_network_answer(plan.model), plan.model)


def _logistic(
    plan: Plan,
    clean: Sequence[Example],
    validation: Sequence[Example],
    speakers: Mapping[str, Sequence[str]],
    seed: int,
    enrolled: bool,
) -> Trained:
    """Logistic regression on what the network's standardizers make of the vectors, C by validation."""
    train, held_out = list(clean), list(validation)
    if enrolled:
        looks = EnrolledClips(plan.model, clean, speakers["train"], TRAINING_SIZES, seed=seed)
        train += [looks[index] for _ in TRAINING_SIZES for index in range(len(clean))]
        eight = EnrolledClips(plan.model, validation, speakers["validation"], (8,), seed=seed)
        held_out += [eight[index] for index in range(len(validation))]
    inputs, labels = _vectors(plan.model, train), [example["label"] for example in train]
    others, answers = _vectors(plan.model, held_out), [example["label"] for example in held_out]
    best, _ = choose_regression({"train": inputs, "validation": others}, {"train": labels, "validation": answers})
    return Trained(lambda examples: best.predict(_vectors(plan.model, examples)), plan.model)


def _network_answer(network: MMANForEmotionClassification) -> Answer:
    return lambda examples: predict_logits(network, ExampleDataset(examples))[0].argmax(-1)


@torch.inference_mode()
def _vectors(network: MMANForEmotionClassification, examples: Sequence[Example]) -> NDArray:
    """Standardized vectors of all modalities side by side (n, width), zeros for one that a clip lacks."""
    batch = {name: value for name, value in EmotionCollator()(examples).items() if name != "labels"}
    sequences = network.encode(**batch)
    return torch.cat([sequences[modality].embeds[:, 0] for modality in sorted(sequences)], dim=-1).double().numpy()


# Testing


def _tested(corpus: Corpus, job: Job, trained: Trained, sizes: Sequence[int]) -> dict[str, Any]:
    """Predictions of every row on the test clips that no row but the transductive one is enrolled from."""
    split, seed = job.split, job.seed
    speaker = {i: str(corpus.by_id[i]["speaker"]) for i in split.test}
    plan = RECIPES["mman"](corpus, split, seed)
    examples = dict(zip(split.test, plan.test.examples, strict=True))
    largest = {i for ids in enrolment_subsets(speaker, max(sizes), seed).values() for i in ids}
    scored = [i for i in split.test if i not in largest]
    rows = {"plain": [examples[i] for i in scored]}
    names = [speaker[i] for i in scored]
    for size in sizes:
        drawn = enrolment_subsets(speaker, size, seed)
        enrolment = {name: [examples[i] for i in ids] for name, ids in drawn.items()}
        rows[str(size)] = enrol_examples(trained.network, rows["plain"], names, enrolment)
    everything = {name: [examples[i] for i in split.test if speaker[i] == name] for name in set(names)}
    rows[TRANSDUCTIVE] = enrol_examples(trained.network, rows["plain"], names, everything)
    return {
        "labels": [examples[i]["label"] for i in scored],
        "speakers": names,
        "predictions": {row: np.asarray(trained.answer(clips)).tolist() for row, clips in rows.items()},
    }


def _hits(record: Mapping[str, Any]) -> dict[str, NDArray]:
    labels = np.array(record["labels"])
    return {row: labels == np.array(predictions) for row, predictions in record["predictions"].items()}


# Results


def summarize(corpus: Corpus, records: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """By model and row: scores over all folds and seeds; WA gained over the plain model unenrolled, paired by clip."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_model.setdefault(record["origin"]["model"], []).append(record)
    models = {}
    for name, own in by_model.items():
        plain = by_model[name.removesuffix(ENROLLED)]
        models[name] = {
            row: _row(own, plain, row, len(corpus.labels)) for row in ("plain", *map(str, sizes), TRANSDUCTIVE)
        }
    return {
        "corpus": {"name": corpus.name, "labels": list(corpus.labels), "sha256": corpus.sha256, **corpus.notes},
        "protocol": {
            "split": f"{corpus.splits[0].name}+enrolled",
            "scored": "the test clips that no speaker is enrolled from, the same in all rows",
            "seeds": len({record["origin"]["seed"] for record in records}),
            **corpus.protocol_notes,
        },
        "models": models,
    }


def _row(own: Sequence[Mapping], plain: Sequence[Mapping], row: str, labels: int) -> dict[str, Any]:
    speakers = np.concatenate([record["speakers"] for record in own])
    answers = np.concatenate([record["predictions"][row] for record in own])
    truth = np.concatenate([record["labels"] for record in own])
    before = np.concatenate([_hits(record)["plain"] for record in plain])
    return {
        "clips": len(truth),
        **{name: value for name, value in emotion_metrics(truth, answers, labels).items() if name in SCORES},
        "wa_gained": paired_gap(truth == answers, before, speakers),
    }


def results_table(results: Mapping[str, Any]) -> str:
    """A Markdown table: a line a model and row."""
    rows = [
        {"model": name, "enrolled from": row, "clips": scores["clips"], "wa": scores["wa"], "ua": scores["ua"]}
        | {"wa gained over plain": format_gap(scores["wa_gained"])}
        for name, model in results["models"].items()
        for row, scores in model.items()
    ]
    return format_table(rows, ["model", "enrolled from", "clips", "wa", "ua", "wa gained over plain"])
