"""Which model is trained how: one recipe a model, each number with its source; and the logistic-regression floor.

A recipe turns a corpus, one of its splits and a seed into a `Plan`. What a plan learns from the data before training
(the vocabulary, the standardizers) comes from the training side of the split alone. Beside each number stands its
source: "paper" or what the paper has instead; "validation" = chosen among others by validation scores on RAVDESS's
EmoBox folds; "cost" = smaller than the paper's to train on a CPU; "untuned" = set once. No choice was made by a test
score; by validation scores, MMAN's recipe was revised twice after its test folds had been read (WA 68.2 and 68.5
before) and that of `audio_frames` once (46.7 before). Every clip is on the validation side of one fold, so a recipe
that is common to all folds has seen, in this weak sense, every test clip; nothing of a fold's own training or epochs
has.

The papers' own front ends are small and trained from scratch, so every recipe runs on a CPU.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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
from .data.augmentation import SpeakerSwap, SpeedChange
from .data.collator import ClipDataset, ExampleDataset
from .data.protocols import SIDES, FoldSplit
from .logistic import choose_regression, standardized
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
    statistics: Dataset | None = None
    """What standardizers take their statistics from; None = `train`."""


Recipe = Callable[[Corpus, FoldSplit, int], Plan]
Floor = Callable[[Corpus, FoldSplit], tuple[NDArray, NDArray, dict[str, Any]]]
"""Gives logits (clips, labels) of the validation and of the test clips, and what was chosen."""


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
    """What the corpus has of a model's three inputs."""
    has = {"audio": corpus.has_audio, "text": corpus.has_text, "vision": corpus.vision_width is not None}
    return tuple(modality for modality, there in has.items() if there)


# Recipes


CME_ABLATIONS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": "mean"},
    "max": {"pooling": "max"},
    "whole_clip": {"word_level": False},
    "no_excitement": {"excitement": ()},
    "text_excited": {"excitement": ("audio_to_text", "vision_to_text")},
    "text_excites": {"excitement": ("text_to_audio", "text_to_vision")},
}
"""Fields of CMEConfig that differ, by ablation: one pooling alone, no word times, no or one-way excitement."""


def cme(corpus: Corpus, split: FoldSplit, seed: int, **ablation: Any) -> Plan:
    """CME: filterbank with convolutions from the waveform, word table, word times; the face's frames if there are.

    ablation: an entry of CME_ABLATIONS; pairs with a modality that the corpus lacks are left out.
    """
    set_seed(seed)
    if "excitement" in ablation:
        ablation["excitement"] = [p for p in ablation["excitement"] if set(p.split("_to_")) <= {*_modalities(corpus)}]
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
            vocab_size=len(tokenizer),
            embedding_dim=64,  # paper: 300; cost
            gate_dim=64 if "pooling" in ablation else 128,  # as wide as the pooled audio; paper: 256; cost
        ),
        hidden_size=128,  # paper: 256; cost
        dropout=0.3,  # paper: 0; untuned
        **_head(corpus, label_smoothing=0.1),  # paper: 0; untuned
        **ablation,
    )
    settings = TrainingSettings(
        epochs=18,  # validation: best at 8 to 11 of 25; paper: 20
        batch_size=32,  # paper
        learning_rate=1e-3,  # paper: 5e-4; untuned
        patience=6,  # untuned
        seed=seed,
    )
    # By words, nothing outside their spans is read, so clips may be cut wherever they are used and the logits are the
    # same. As one unit (`word_level=False`) the model reads the cut clip: its variant sees the sound that words see.
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
    settings = TrainingSettings(epochs=20, patience=20, seed=seed)  # untuned; small corpora begin with a plateau
    datasets = clip_datasets(corpus, split, processor, ("text",), untimed_words)
    return Plan(CMEForEmotionClassification(config), processor, *datasets, settings)


def mman(corpus: Corpus, split: FoldSplit, seed: int, network: str = "mman", only: str | None = None) -> Plan:
    """MMAN over one fixed vector a clip and modality; every clip is a dialogue of one turn.

    network: as in `MMANConfig`. only: the one modality to read, None = what the corpus has.
    """
    set_seed(seed)
    present = ("audio",) if corpus.vision_width is None else ("audio", "vision")
    modalities = present if only is None else (only,)
    inputs = {"audio_config": audio_vector_config()} if "audio" in modalities else {}
    inputs |= {"vision_embed_dim": 3 * corpus.vision_width} if "vision" in modalities else {}
    config = MMANConfig(
        id2label=dict(enumerate(corpus.labels)),
        label2id=corpus.label2id,
        network=network,
        projection_size=128,  # paper: 150; untuned
        hidden_size=128,  # paper: 300; cost
        classifier_size=128,  # paper: 200; cost
        dropout=0.2,  # paper: 0.5; untuned
        label_smoothing=0.1,  # paper: 0; untuned
        standardize=modalities,  # untuned
        **inputs,
    )
    settings = TrainingSettings(
        epochs=20,  # paper: 100; untuned
        batch_size=32,  # paper: 5 or 10 dialogues; validation
        learning_rate=1e-3,  # paper
        weight_decay=1.0,  # paper: 0; validation
        keep="last",  # validation: the best of 20 epochs on 240 clips is chosen by noise
        seed=seed,
    )
    train, validation, test = (_vectors(corpus, split.sides[side], modalities) for side in SIDES)
    # paper: none; validation
    moved = SpeakerSwap(train, [str(corpus.by_id[i]["speaker"]) for i in split.train], LOG_MEL_LEVELS, loudness=1.0)
    datasets = moved, ExampleDataset(validation), ExampleDataset(test)
    model = MMANForEmotionClassification(config)
    return Plan(model, MerProcessor.default(), *datasets, settings, ExampleDataset(train))


def audio_frames(corpus: Corpus, split: FoldSplit, seed: int) -> Plan:
    """Learned alignment's speech encoder alone: a BiLSTM over filterbank frames between the silent ends of a clip.

    Training hears every clip faster or slower, by a longer or shorter vocal tract, louder or quieter and with gaps:
    see `SpeedChange` and `FilterbankConfig`.
    """
    set_seed(seed)
    config = LearnedAlignmentConfig(
        audio_config=FilterbankConfig(
            normalization="global+utterance",  # CME's paper: none; validation, of the default checkpoint's voice
            conv_dims=(64, 64),  # CME's paper: 64, 128, 128; cost
            conv_kernels=(5, 3),  # CME's paper: 5, 2, 2; untuned
            conv_strides=(3, 2),  # CME's paper: 1; cost
            nonlinearity=True,  # CME's paper: none; untuned
            # Changes as in the default checkpoint's voice; validation, three folds: 51.1 with them and the speed's,
            # 48.1 without any, 44.0 with the recipe before (24 epochs, other regularisation)
            warp=0.08,
            loudness=0.7,
            mask_bands=6,
            mask_frames=20,
        ),
        alignment="none",  # there are no words to align
        hidden_size=64,  # paper: 100; validation, as good as 96
        dropout=0.3,  # paper: 0.5; untuned
        label_smoothing=0.1,  # paper: 0; untuned
        id2label=dict(enumerate(corpus.labels)),
        label2id=corpus.label2id,
    )
    settings = TrainingSettings(
        epochs=50,  # paper: 150; untuned
        batch_size=32,  # paper: 64; untuned
        learning_rate=2e-3,  # paper: 1e-3; untuned
        weight_decay=0.05,  # paper: 0; untuned
        keep="last",  # as mman
        seed=seed,
    )
    processor = MerProcessor.default(trim_db=30.0)  # validation: 51.5 on two folds, untrimmed 45.0
    train, validation, test = clip_datasets(corpus, split, processor, ("audio",))
    model = LearnedAlignmentForEmotionClassification(config)
    moved = SpeedChange(train, 0.1)  # validation: 51.1, 49.9 with 0.2
    return Plan(model, processor, moved, validation, test, settings, train)


LOG_MEL_LEVELS = (*range(40), *range(160, 200))
"""Entries of the fixed audio vector that a louder voice shifts alike: means and maxima of the log-mels."""


def _vectors(corpus: Corpus, ids: Sequence[str], modalities: Collection[str]) -> list[Example]:
    fields = {"audio_embeds": corpus.audio_vectors} if "audio" in modalities else {}
    fields |= {"vision_embeds": corpus.vision_vectors} if "vision" in modalities else {}
    return [
        {name: vectors[i] for name, vectors in fields.items() if i in vectors}
        | {"label": corpus.label2id[corpus.by_id[i]["label"]]}
        for i in ids
    ]


RECIPES: dict[str, Recipe] = {
    "audio_vector": partial(mman, network="unimodal", only="audio"),
    "audio_frames": audio_frames,
    "face": partial(mman, network="unimodal", only="vision"),
    "text": text,
    "cme": cme,
    **{f"cme_{name}": partial(cme, **values) for name, values in CME_ABLATIONS.items()},
    "learned_alignment": learned_alignment,
    "clstm_mma": partial(mman, network="clstm_mma"),
    "mman": mman,
}
COMBINATIONS = {
    "audio": ("audio_vector", "audio_frames"),  # validation: 52.1, audio LR 51.2, the two alone 45.2 and 46.6
    "late_fusion": ("audio_vector", "audio_frames", "face", "text"),
}
"""Calibrated late fusions by name, and the models of one modality that each fuses, where the corpus has that."""
READS = {
    "audio": ("audio",),
    "audio_vector": ("audio",),
    "audio_frames": ("audio",),
    "face": ("vision",),
    "text": ("text",),
    "cme": ("audio", "text"),
    **{f"cme_{name}": ("audio", "text") for name in CME_ABLATIONS},
    "learned_alignment": ("audio", "text"),
    "clstm_mma": ("audio",),
    "mman": ("audio",),
}
"""What a recipe cannot do without; a face is read besides where there is one."""


def possible_models(corpus: Corpus, names: Iterable[str]) -> list[str]:
    """Those of the models that the corpus has the modalities for."""
    return [name for name in names if not _lacking(corpus, name)]


def _lacking(corpus: Corpus, name: str) -> list[str]:
    needed = FLOORS[name] if name in FLOORS else READS.get(name, ())
    return [modality for modality in needed if modality not in _modalities(corpus)]


def check_modalities(corpus: Corpus, name: str) -> None:
    """Raise ValueError when the corpus lacks what a model cannot do without."""
    lacking = _lacking(corpus, name)
    if lacking:
        remedy = "; give its face_scores" if "vision" in lacking and corpus.name == "ravdess" else ""
        raise ValueError(f"{name}: corpus {corpus.name!r} has no {' and no '.join(lacking)}{remedy}")


# The floor

FLOORS = {"majority": (), "lr_audio": ("audio",), "lr_face": ("vision",), "lr_both": ("audio", "vision")}
"""What is not a network, and the vectors it reads: the commonest class of the training side; logistic regressions."""


def floor(corpus: Corpus, split: FoldSplit, name: str) -> tuple[NDArray, NDArray, dict[str, Any]]:
    """Logits (clips, labels) of the validation and of the test clips, and what was chosen.

    Raises:
        ValueError: the corpus has no vectors of one of the modalities.
    """
    return logistic_regression(corpus, split, name) if FLOORS[name] else majority(corpus, split)


def majority(corpus: Corpus, split: FoldSplit) -> tuple[NDArray, NDArray, dict[str, Any]]:
    """The shares of the classes on the training side, whatever the clip; as `floor`."""
    counts = np.bincount(
        [corpus.label2id[corpus.by_id[i]["label"]] for i in split.train], minlength=len(corpus.labels)
    )
    with np.errstate(divide="ignore"):
        logits = np.log(counts / counts.sum())
    validation, test = (np.tile(logits, (len(ids), 1)) for ids in (split.validation, split.test))
    return validation, test, {"answer": corpus.labels[int(counts.argmax())]}


def logistic_regression(corpus: Corpus, split: FoldSplit, name: str) -> tuple[NDArray, NDArray, dict[str, Any]]:
    """Log-probabilities from the vectors that `mman` reads, C chosen on the validation side; as `floor`.

    Vectors are z-scored by the training clips and clipped as by `Standardizer`; a clip without one has zeros.

    Raises:
        ValueError: the corpus has no vectors of one of the modalities.
    """
    check_modalities(corpus, name)
    vectors = {"audio": corpus.audio_vectors, "vision": corpus.vision_vectors}
    inputs = {
        side: np.concatenate([_stack(vectors[modality], ids) for modality in FLOORS[name]], axis=1)
        for side, ids in split.sides.items()
    }
    inputs = standardized(inputs)
    labels = {side: [corpus.label2id[corpus.by_id[i]["label"]] for i in ids] for side, ids in split.sides.items()}

    model, _ = choose_regression(inputs, labels)
    answers = []
    for side in ("validation", "test"):
        logits = np.full((len(inputs[side]), len(corpus.labels)), -np.inf)  # what training lacks cannot be answered
        logits[:, model.classes_] = model.predict_log_proba(inputs[side])
        answers.append(logits)
    return *answers, {"C": model.C, "inputs": inputs["train"].shape[1]}


def _stack(vectors: Mapping[str, Tensor], ids: Sequence[str]) -> NDArray[np.float64]:
    """Vectors (1, width) of these clips -> (clips, width), NaN for a clip without one."""
    absent = torch.full_like(next(iter(vectors.values())), float("nan"))
    return torch.cat([vectors.get(i, absent) for i in ids]).double().numpy()
