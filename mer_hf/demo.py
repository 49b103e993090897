"""The main job: the controlled corpus, its encoders, uni-modal baselines and the three models, a table and a picture.

    generate -> train encoders -> cache their states -> train -> test on unseen speakers -> save, reload, predict, plot

`demo_models` says which models, `demo_results` what is claimed of them.
"""

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import ViTImageProcessor, set_seed

from . import TASK, MerPreTrainedModel, MerProcessor, WordTableConfig, WordTableModel, pipeline, word_tokenizer
from .compact_encoders import train_face_encoder, train_speech_encoder
from .data.collator import ClipDataset, DialogueDataset, ExampleDataset
from .data.controlled import generate_controlled_corpus, load_controlled
from .data.controlled_dialogues import LABELS
from .data.features import cache_embeds
from .demo_models import (  # noqa: F401 - the demo's names are importable from here
    ALIGNING_MODEL,
    CONTEXT_MODEL,
    LABELS_ALONE,
    MODALITIES,
    WORD_ABLATION,
    WORD_MODEL,
    ModelPlan,
    plans,
)
from .demo_results import results_table, summarize
from .hub import save_checkpoint
from .models.batching import pad_examples
from .plots import check_plotting, plot_alignment
from .training import fit, predict_logits

FIELDS = {
    "audio": ("input_values", "audio_embeds"),
    "text": ("input_ids", "word_ids", "text_embeds"),
    "vision": ("pixel_values", "vision_embeds", "vision_times"),
}
FACE_SIZE = 32
Say = Callable[[str], None]
Example = dict[str, Tensor]


@dataclass
class Split:
    """Rows of one split, their raw examples, and the same with cached states of the encoders."""

    rows: list[dict[str, Any]]
    raw: list[Example]
    cached: list[Example] = field(default_factory=list)

    def dataset(self, plan: ModelPlan) -> ExampleDataset | DialogueDataset:
        """What a plan's model is trained and tested on: only the fields it reads."""
        names = {name for modality in plan.modalities for name in FIELDS[modality]} | {"word_times", "label"}
        clips = ExampleDataset([{k: v for k, v in example.items() if k in names} for example in self.cached])
        if not plan.uses_context:
            return clips
        return DialogueDataset(clips, [row["dialogue_id"] for row in self.rows], [row["turn"] for row in self.rows])

    def order(self, plan: ModelPlan) -> list[int]:
        """The rows in the order the plan's dataset gives them."""
        if not plan.uses_context:
            return list(range(len(self.rows)))
        return [index for dialogue in self.dataset(plan).dialogues for index in dialogue]


@dataclass
class Bench:
    """A generated corpus ready for training: its splits, its processor, its encoders."""

    splits: dict[str, Split]
    processor: MerProcessor
    encoders: dict[str, Any]


def make_bench(
    corpus_dir: Path, seed: int, threads: int, dialogues_per_session: int = 25, epochs: int | None = None
) -> Bench:
    """Generate (or find) the corpus, decode it, train the encoders on the training sessions, cache their states."""
    with tqdm(total=8, desc="generate the corpus", unit="session") as bar:
        generate_controlled_corpus(
            corpus_dir, seed, dialogues_per_session=dialogues_per_session, progress=lambda n, _: bar.update(n - bar.n)
        )
    loaded = load_controlled(corpus_dir)
    rows = {name: list(loaded[name]) for name in ("train", "validation", "test")}
    processor = MerProcessor.default(
        tokenizer=word_tokenizer(row["text"] for row in rows["train"]),
        image_processor=ViTImageProcessor(size={"height": FACE_SIZE, "width": FACE_SIZE}),
    )
    splits = {name: Split(own, decode(own, processor, threads, name)) for name, own in rows.items()}
    train = splits["train"]
    encoders = {}
    with tqdm(total=epochs or 10, desc="speech encoder", unit="epoch") as bar:
        encoders["audio"] = train_speech_encoder(
            train.rows, train.raw, len(processor.tokenizer), bar.total, seed, progress=lambda *_: bar.update()
        )
    with tqdm(total=epochs or 3, desc="face encoder", unit="epoch") as bar:
        encoders["vision"] = train_face_encoder(
            train.rows, train.raw, epochs=bar.total, seed=seed, progress=lambda *_: bar.update()
        )
    bench = Bench(splits, processor, encoders)
    reader = build(plans()[WORD_MODEL], bench, seed)
    for split in tqdm(splits.values(), desc="cache the encoders' states", unit="split"):
        split.cached = cache_embeds(reader, split.raw, ("audio", "vision"))
    return bench


def decode(rows: Sequence[Mapping[str, Any]], processor: MerProcessor, threads: int, name: str) -> list[Example]:
    """Every clip of the rows as an example, decoded by several threads."""
    dataset = ClipDataset(rows, processor, {label: index for index, label in enumerate(LABELS)})
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(dataset.__getitem__, range(len(rows)))
        return list(tqdm(found, total=len(rows), desc=f"decode {name}", unit="clip"))


def build(plan: ModelPlan, bench: Bench, seed: int) -> MerPreTrainedModel:
    """An untrained model over copies of the frozen encoders and a word table of its own."""
    set_seed(seed)
    table = WordTableConfig(vocab_size=len(bench.processor.tokenizer), embedding_dim=32, dropout=0.2)
    backbones = {m: copy.deepcopy(bench.encoders[m]) for m in plan.modalities if m != "text"}
    frozen = tuple(backbones)
    if "text" in plan.modalities:
        backbones["text"] = WordTableModel(table)
    return plan.kind.from_backbones(
        **backbones,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        freeze_backbones=frozen,
        standardize=frozen,
        label_smoothing=0.1,
        **plan.values,
    )


def train_model(plan: ModelPlan, bench: Bench, seed: int, directory: Path) -> tuple[MerPreTrainedModel, Any]:
    """A plan's model at its best epoch on the validation session, and what `training.fit` says of it."""
    model = build(plan, bench, seed)
    train, validation = (bench.splits[name].dataset(plan) for name in ("train", "validation"))
    return model, fit(model, train, validation, replace(plan.settings, seed=seed), directory)


@torch.inference_mode()
def attention_inside_words(model: MerPreTrainedModel, split: Split, plan: ModelPlan) -> list[dict[str, float]]:
    """For each clip: the share of a word's attention inside its true span, and the span's share of the frames.

    Means over the clip's words. The true times are the generator's; the model is not given them.
    """
    seconds, found = model.config.audio_frame_seconds, []
    middle = model.config.audio_frame_middle
    for example in split.dataset(plan):
        batch = pad_examples([example])
        batch.pop("labels")
        weights = model(**batch, output_attentions=True).audio_alignment[0]  # (words, frames)
        middles = torch.arange(weights.shape[1]) * seconds + middle
        inside = (middles >= example["word_times"][:, :1]) & (middles < example["word_times"][:, 1:])
        real = inside.any(dim=-1)
        if real.any():
            share = (weights * inside).sum(dim=-1)[real].mean()
            found.append({"inside": float(share), "uniform": float(inside[real].float().mean())})
    return found


def test_model(name: str, model: MerPreTrainedModel, plan: ModelPlan, bench: Bench) -> dict[str, Any]:
    """What one model answers on the test sessions, in the order of their rows."""
    split = bench.splits["test"]
    logits, _ = predict_logits(model, split.dataset(plan), plan.settings.batch_size)
    ordered = np.empty(len(split.rows), dtype=int)
    ordered[split.order(plan)] = logits.argmax(axis=-1)
    record = {"predictions": ordered.tolist(), "parameters": sum(p.numel() for p in model.parameters())}
    if model.config.model_type == "learned_alignment":
        record["attention"] = attention_inside_words(model, split, plan)
    return record


test_model.__test__ = False  # pytest: not a test


def with_epochs(plan: ModelPlan, epochs: int | None) -> ModelPlan:
    """The plan with no more than these epochs of each kind; None = as it is."""
    if epochs is None:
        return plan
    settings = replace(plan.settings, epochs=min(epochs, plan.settings.epochs))
    return replace(plan, settings=settings)


def run_seed(
    seed: int, output_dir: Path, threads: int, dialogues_per_session: int = 25, epochs: int | None = None
) -> tuple[dict[str, Any], dict[str, Any], Bench]:
    """Everything for one corpus: its record (JSON), its trained models and its bench."""
    started = time.perf_counter()
    torch.set_num_threads(threads)
    bench = make_bench(output_dir / f"corpus-{seed}", seed, threads, dialogues_per_session, epochs)
    rows = bench.splits["test"].rows
    record: dict[str, Any] = {
        "seed": seed,
        "size": [dialogues_per_session, epochs],
        "labels": [LABELS.index(row["label"]) for row in rows],
        "speakers": [f"{seed}-{row['speaker']}" for row in rows],
        "items": [row["item"] for row in rows],
        "models": {},
    }
    torch.set_num_threads(1)  # the heads' operations are too small to share; a second thread only waits
    models = {}
    bar = tqdm(plans().items(), desc="train", unit="model")
    for name, plan in bar:
        bar.set_postfix_str(name)
        plan, begun = with_epochs(plan, epochs), time.perf_counter()
        models[name], chosen = train_model(plan, bench, seed, output_dir / "unfinished")
        validation = chosen["stages"][-1]["validation_wa"]
        record["models"][name] = {
            **test_model(name, models[name], plan, bench),
            "validation_wa": validation,
            "seconds": round(time.perf_counter() - begun, 1),
        }
    record["seconds"] = round(time.perf_counter() - started, 1)
    return record, models, bench


# A checkpoint in use


def show(models: Mapping[str, MerPreTrainedModel], bench: Bench, output_dir: Path, say: Say) -> None:
    """Save the fusion models, reload them through the pipeline, classify a held-out clip from its files, draw it."""
    folders = {CONTEXT_MODEL: "mman", WORD_MODEL: "cme", ALIGNING_MODEL: "learned_alignment"}
    row = next(row for row in bench.splits["test"].rows if row["item"] == "stressed_word")
    files = {"wav": row["audio"]["path"], "mp4": row["video"]["path"]}
    say(f"\nA held-out clip, {Path(files['mp4']).name}: {row['text']!r}, {row['label']}")
    for name, folder in folders.items():
        directory = save_checkpoint(models[name], bench.processor, output_dir / "models" / folder)
        classify = pipeline(TASK, model=str(directory), device="cpu")
        for kind, file in files.items():
            found = classify(file, words=row["words"], return_details=True)
            best = found["scores"][0]
            say(f"  {name} from its {kind} ({', '.join(found['modalities'])}): {best['label']} {best['score']:.2f}")
        if "alignment" in found:
            picture = plot_alignment(
                found["alignment"]["weights"],
                found["alignment"]["frame_times"] + models[name].config.audio_frame_middle,
                found["words"],
                output_dir / "alignment.png",
                f"{name}: attention of each word; dashed: where it was said",
            )
            say(f"  picture of the word x frame alignment: {picture}")


def run_demo(
    output_dir: str | PathLike = "runs/demo",
    seeds: Sequence[int] = (0,),
    threads: int | None = None,
    say: Say = print,
    dialogues_per_session: int = 25,
    epochs: int | None = None,
) -> dict[str, Any]:
    """The main job; returns what `results.json` holds. See the module.

    Several seeds are several corpora with other speakers; checkpoints, picture and predictions are the first one's. A
    seed that was finished before in the same folder is not run again. dialogues_per_session and epochs (at most, of
    every model and encoder; None = their own) make a small run of it, for a try.

    Raises:
        ValueError: a seed that was finished before in the same folder in another size.
        ImportError: the synthesiser (`mer-hf[controlled]`) or matplotlib (`mer-hf[plot]`) is missing.
    """
    check_plotting()  # before minutes are spent
    started = time.perf_counter()
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    threads = threads or min(os.cpu_count() or 1, 2)
    records = []
    for seed in seeds:
        file = output_dir / f"seed-{seed}.json"
        if file.is_file() and len(seeds) > 1:
            records.append(json.loads(file.read_text(encoding="utf-8")))
            if records[-1].get("size", [25, None]) != [dialogues_per_session, epochs]:
                raise ValueError(f"{file} is of a run of another size; name another output_dir")
            continue
        record, models, bench = run_seed(seed, output_dir, threads, dialogues_per_session, epochs)
        records.append(record)
        if seed == seeds[0]:
            show(models, bench, output_dir, say)
        file.write_text(json.dumps(record), encoding="utf-8")  # last: it says that all of this seed is done
    results = summarize(records)
    (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = results_table(results)
    (output_dir / "results.md").write_text(table + "\n", encoding="utf-8")
    say(f"\nUnseen speakers, {results['clips']} clips, {results['speakers']} speakers; intervals over speakers\n")
    say(table)
    say(f"\nAll of this took {time.perf_counter() - started:.0f} s and is in {output_dir}/. Next:")
    say(f"  mer-hf predict CLIP.wav --text 'what is said' --model {output_dir}/models/cme      your own clip")
    say("  mer-hf train --corpus ravdess --data_dir RAVDESS --output_dir runs/ravdess     on people's voices")
    say("  README.md: fine-tune over wav2vec2, BERT and ViT with the stock Trainer")
    return results
