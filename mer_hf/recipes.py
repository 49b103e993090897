"""Which model is trained how: one recipe a model, each number with its source; and the logistic-regression floor.

A recipe turns a corpus, one of its splits and a seed into a `Plan`. What a plan learns from the data before training
(the vocabulary, the standardizers) comes from the training side of the split alone. Beside each number stands its
source: "paper" or what the paper has instead; "validation" = chosen among others by validation scores on RAVDESS's
EmoBox folds; "cost" = smaller than the paper's to train on a CPU; "untuned" = set once. No choice was made by a test
score; MMAN's recipe was revised once, by validation scores, after its test folds had been read (WA 68.2 before).

The papers' own front ends are small and trained from scratch, so every recipe runs on a CPU.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, set_seed

from . import (
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerPreTrainedModel,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    SpectrogramConfig,
    WordTableConfig,
    word_tokenizer,
)
from .corpora import Corpus, audio_vector_config
from .data.collator import ClipDataset, ExampleDataset
from .data.protocols import SIDES, FoldSplit
from .models.layers import Standardizer
from .training import TrainingSettings

SAMPLING_RATE = 16_000
GRID = 960
"""Samples a training clip's cut falls on: whole frames at any stride up to 6, so a cut keeps its clip's."""

Example = dict[str, Any]
Row = Mapping[str, Any]


class Plan(NamedTuple):
    """Everything `training.fit` needs, and the test set that is read once after it."""

    model: MerPreTrainedModel
    processor: MerProcessor
    train: Dataset
    validation: Dataset
    test: Dataset
    settings: TrainingSettings


Recipe = Callable[[Corpus, FoldSplit, int], Plan]


# Parts of several recipes


def vocabulary(corpus: Corpus, split: FoldSplit) -> PreTrainedTokenizerFast:
    """A word table of the training side."""
    return word_tokenizer(corpus.by_id[i]["text"] for i in split.train)


def clip_datasets(
    corpus: Corpus,
    split: FoldSplit,
    processor: MerProcessor,
    modalities: tuple[str, ...],
    prepare: Callable[[Row], Row] = dict,
    margin: float | None = None,
    cut: Collection[str] = ("train",),
) -> tuple[Dataset, Dataset, Dataset]:
    """Training, validation and test clips with their extras, decoded once and held in memory.

    prepare: what becomes of a row first, such as `only_timed_words`. margin: seconds left around the words of clips
    on the sides in `cut` (see `cut_to_words`); None = every clip stays whole.
    """
    decoded = tuple(modality for modality in modalities if modality != "vision")
    extras = corpus.extras if "vision" in modalities else {}

    def dataset(side: str) -> ClipDataset:
        rows = [prepare(corpus.by_id[i]) for i in split.sides[side]]
        complete = partial(_complete, extras=extras, margin=margin if side in cut else None)
        return ClipDataset(rows, processor, corpus.label2id, decoded, keep=True, transform=complete)

    return dataset("train"), dataset("validation"), dataset("test")


def only_timed_words(row: Row) -> Row:
    """The row, without its text where the words could not be placed: such a clip is one unit to CME."""
    return dict(row) if row["words"] else {**row, "text": None}


def untimed_words(row: Row) -> Row:
    """The row without the times of its words."""
    return {**row, "words": None}


def _complete(row: Row, example: Example, extras: Mapping[str, Any], margin: float | None) -> Example:
    example = example | dict(extras.get(row["id"], {}))
    return example if margin is None or not row["words"] else cut_to_words(example, row["words"], margin)


def cut_to_words(example: Example, words: Sequence[Mapping[str, Any]], margin: float) -> Example:
    """The example from `margin` seconds before its first word to `margin` after its last, its times moved along."""
    start = int(max(0.0, words[0]["start"] - margin) * SAMPLING_RATE) // GRID * GRID
    end = int((words[-1]["end"] + margin) * SAMPLING_RATE)
    cut = dict(example)
    if "input_values" in cut:
        cut["input_values"] = cut["input_values"][start:end].clone()
    if "word_times" in cut:
        cut["word_times"] = cut["word_times"] - start / SAMPLING_RATE
    if "vision_times" in cut:
        inside = (cut["vision_times"] >= start / SAMPLING_RATE) & (cut["vision_times"] < end / SAMPLING_RATE)
        cut["vision_times"] = cut["vision_times"][inside] - start / SAMPLING_RATE
        cut["vision_embeds"] = cut["vision_embeds"][inside]
    return {name: value for name, value in cut.items() if not torch.is_tensor(value) or value.numel()}


def _head(corpus: Corpus, **values: Any) -> dict[str, Any]:
    """What every configuration states: the labels and, where the corpus has faces, the width of their vectors."""
    vision = {}
    if corpus.vision_width is not None:
        vision = {"vision_embed_dim": corpus.vision_width, "standardize": ("vision",)}
    return {"id2label": dict(enumerate(corpus.labels)), "label2id": corpus.label2id} | vision | values


def _modalities(corpus: Corpus) -> tuple[str, ...]:
    return ("audio", "text") if corpus.vision_width is None else ("audio", "text", "vision")


# Recipes


def cme(corpus: Corpus, split: FoldSplit, seed: int) -> Plan:
    """CME: filterbank with convolutions from the waveform, word table, word times; the face's frames if there are."""
    set_seed(seed)
    tokenizer = vocabulary(corpus, split)
    processor = MerProcessor.default(tokenizer=tokenizer)
    config = CMEConfig(
        audio_config=FilterbankConfig(
            normalization="global",  # paper: none; untuned
            conv_dims=(32, 64, 64),  # paper: 64, 128, 128; cost
            conv_strides=(2, 1, 1),  # paper: 1; cost
            nonlinearity=True,  # paper: none; untuned
        ),
        text_config=WordTableConfig(
            vocab_size=len(tokenizer), embedding_dim=64, gate_dim=128
        ),  # paper: 300, 256; cost
        hidden_size=128,  # paper: 256; cost
        dropout=0.3,  # paper: 0; untuned
        **_head(corpus, label_smoothing=0.1),  # paper: 0; untuned
    )
    settings = TrainingSettings(
        epochs=18,  # validation: best at 8 to 11 of 25; paper: 20
        batch_size=32,  # paper
        learning_rate=1e-3,  # paper: 5e-4; untuned
        patience=6,  # untuned
        seed=seed,
    )
    # Nothing outside the words' spans is read, so clips may be cut wherever they are used: the logits are the same.
    datasets = clip_datasets(corpus, split, processor, _modalities(corpus), only_timed_words, 0.1, SIDES)
    return Plan(CMEForEmotionClassification(config), processor, *datasets, settings)


def learned_alignment(corpus: Corpus, split: FoldSplit, seed: int) -> Plan:
    """Learned alignment: spectrogram with a dense layer, word table, no word times; the face's frames if there are.

    Silence around the words is cut from training clips, which halves the cost; validation and test clips are whole.
    """
    set_seed(seed)
    tokenizer = vocabulary(corpus, split)
    processor = MerProcessor.default(tokenizer=tokenizer)
    config = LearnedAlignmentConfig(
        audio_config=SpectrogramConfig(
            normalization="global",  # paper: of each clip; untuned
            hidden_size=64,  # paper: 512; cost
            frames_averaged=4,  # paper: 1; cost
            dropout=0.2,  # paper: 0.5; untuned
        ),
        text_config=WordTableConfig(vocab_size=len(tokenizer), embedding_dim=64),  # paper: 300; cost
        hidden_size=64,  # paper: 100; cost
        dropout=0.3,  # paper: 0.5; untuned
        **_head(corpus, label_smoothing=0.1),  # paper: 0; untuned
    )
    settings = TrainingSettings(
        epochs=14,  # validation: best at 7 to 10 of 12; paper: 150
        batch_size=32,  # paper: 64; untuned
        learning_rate=2e-3,  # paper: 1e-3; untuned
        patience=5,  # untuned
        seed=seed,
    )
    datasets = clip_datasets(corpus, split, processor, _modalities(corpus), margin=0.2)
    return Plan(LearnedAlignmentForEmotionClassification(config), processor, *datasets, settings)


def text(corpus: Corpus, split: FoldSplit, seed: int) -> Plan:
    """CME over the words alone, without their times: what the transcripts give away."""
    set_seed(seed)
    tokenizer = vocabulary(corpus, split)
    processor = MerProcessor.default(tokenizer=tokenizer)
    config = CMEConfig(
        text_config=WordTableConfig(vocab_size=len(tokenizer), embedding_dim=64),  # paper: 300; cost
        hidden_size=64,  # paper: 256; cost
        dropout=0.3,  # as cme
        id2label=dict(enumerate(corpus.labels)),
        label2id=corpus.label2id,
    )
    settings = TrainingSettings(epochs=10, patience=3, seed=seed)  # untuned: there is nothing to learn
    datasets = clip_datasets(corpus, split, processor, ("text",), untimed_words)
    return Plan(CMEForEmotionClassification(config), processor, *datasets, settings)


def mman(corpus: Corpus, split: FoldSplit, seed: int, network: str = "mman") -> Plan:
    """MMAN over one fixed vector a clip and modality; every clip is a dialogue of one turn."""
    set_seed(seed)
    modalities = ("audio",) if corpus.vision_width is None else ("audio", "vision")
    head = _head(corpus, standardize=modalities, label_smoothing=0.1)  # paper: 0; untuned
    head |= {} if corpus.vision_width is None else {"vision_embed_dim": 3 * corpus.vision_width}
    config = MMANConfig(
        audio_config=audio_vector_config(),
        network=network,
        projection_size=128,  # paper: 150; untuned
        hidden_size=128,  # paper: 300; cost
        classifier_size=128,  # paper: 200; cost
        dropout=0.2,  # paper: 0.5; validation
        **head,
    )
    settings = TrainingSettings(
        epochs=20,  # validation: best at 3 to 18; paper: 100
        batch_size=32,  # paper: 5 or 10 dialogues; untuned
        learning_rate=1e-3,  # paper
        patience=20,  # untuned
        seed=seed,
    )
    train, validation, test = (ExampleDataset(_vectors(corpus, split.sides[side])) for side in SIDES)
    noisy = NoisyVectors(train, noise=0.5)  # paper: none; validation, within the noise between seeds
    return Plan(MMANForEmotionClassification(config), MerProcessor.default(), noisy, validation, test, settings)


def _vectors(corpus: Corpus, ids: Sequence[str]) -> list[Example]:
    fields = {"audio_embeds": corpus.audio_vectors, "vision_embeds": corpus.vision_vectors}
    return [
        {name: vectors[i] for name, vectors in fields.items() if i in vectors}
        | {"label": corpus.label2id[corpus.by_id[i]["label"]]}
        for i in ids
    ]


class NoisyVectors(Dataset):
    """Examples whose `*_embeds` get new Gaussian noise at every look, `noise` times their deviation over the set."""

    def __init__(self, examples: ExampleDataset, noise: float):
        self.examples = examples
        self.scales = {}
        for name in ("audio_embeds", "vision_embeds"):
            found = [example[name] for example in examples.examples if name in example]
            if found:
                self.scales[name] = noise * torch.cat(found).std(0, correction=0)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = dict(self.examples[index])
        for name, scale in self.scales.items():
            if name in example:
                example[name] = example[name] + scale * torch.randn_like(example[name])
        return example


RECIPES: dict[str, Recipe] = {
    "cme": cme,
    "learned_alignment": learned_alignment,
    "mman": mman,
    "clstm_mma": partial(mman, network="clstm_mma"),
    "text": text,
}


# The floor

REGULARISATION = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Values of C, from which the validation side chooses."""
FLOORS = {"lr_audio": ("audio",), "lr_face": ("vision",), "lr_both": ("audio", "vision")}
"""Logistic regressions by name, and the vectors each reads."""


def logistic_regression(corpus: Corpus, split: FoldSplit, name: str) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Log-probabilities of the test clips (clips, labels) from the vectors that `mman` reads, and what was chosen.

    Vectors are z-scored by the training clips and clipped as by `Standardizer`; a clip without one has zeros.

    Raises:
        ValueError: the corpus has no vectors of one of the modalities.
    """
    vectors = {"audio": corpus.audio_vectors, "vision": corpus.vision_vectors}
    absent = [modality for modality in FLOORS[name] if not vectors[modality]]
    if absent:
        raise ValueError(f"{name}: corpus {corpus.name!r} has no {' and no '.join(absent)} vectors")
    inputs = {
        side: np.concatenate([_stack(vectors[modality], ids) for modality in FLOORS[name]], axis=1)
        for side, ids in split.sides.items()
    }
    mean, std = np.nanmean(inputs["train"], axis=0), np.nanstd(inputs["train"], axis=0)
    std[std == 0] = 1.0
    inputs = {
        side: np.nan_to_num(((values - mean) / std).clip(-Standardizer.limit, Standardizer.limit))
        for side, values in inputs.items()
    }
    labels = {side: [corpus.label2id[corpus.by_id[i]["label"]] for i in ids] for side, ids in split.sides.items()}

    tried = []
    for strength in REGULARISATION:
        model = LogisticRegression(C=strength, max_iter=5000).fit(inputs["train"], labels["train"])
        tried.append((float(model.score(inputs["validation"], labels["validation"])), model))
    score, model = max(tried, key=lambda pair: pair[0])  # of equals the first: the most regularised
    logits = np.full((len(split.test), len(corpus.labels)), -np.inf)  # a class that training lacks cannot be answered
    logits[:, model.classes_] = model.predict_log_proba(inputs["test"])
    return logits, {"C": model.C, "validation_wa": score, "inputs": inputs["train"].shape[1]}


def _stack(vectors: Mapping[str, Tensor], ids: Sequence[str]) -> NDArray[np.float64]:
    """Vectors (1, width) of these clips -> (clips, width), NaN for a clip without one."""
    absent = torch.full_like(next(iter(vectors.values())), float("nan"))
    return torch.cat([vectors.get(i, absent) for i in ids]).double().numpy()
