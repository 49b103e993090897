"""The speech branches of the default checkpoint: emotion from the sound of a voice, learned from RAVDESS's actors.

    input_values (b, samples), silent ends cut off by the processor
      |- filterbank, convolutions, BiLSTM, maximum over time (`learned_alignment` without words), twice, two seeds
      +- mean, deviation and maximum of the log-mels, the same head on this one vector
                                          log softmax of each over its temperature, averaged -- logits (b, 7)

- RAVDESS's two sentences are said in every emotion, so no branch reads words, nor when they were said: what is
  answered is the same with a transcript, with a wrong one and without.
- Every branch hears clips one by one: it needs neither turns before nor word times, so it can be fused with others.
- Five folds measure the recipe (`speech_folds`); what is shipped is then trained by it on all actors
  (`train_branches`), for the same epochs, since nobody is left to validate on. Its temperatures are those of the five
  folds' validation sides together, where a clip stands once.
- Calibrated, the branches together are one more model with a temperature of its own. Dividing every branch's
  temperature by its inverse gives the same probabilities, so that is how they are stored: a fusion in which the
  branches share one weight holds calibrated speech.
- Calm counts as neutral, so neutral is half as frequent again as any other emotion; the branches give those
  frequencies up (see `frequencies`).

Sources of numbers as in `recipes`: "validation" = better on the validation sides of EmoBox's folds 1 to 3.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, set_seed

from ..corpora import Corpus, audio_vector_config, load_corpus
from ..data.collator import ClipDataset
from ..data.features import cache_embeds
from ..data.named_protocols import ALL_LABELS, Protocol
from ..data.ravdess import ravdess_splits
from ..models.configuration_front_ends import FilterbankConfig
from ..models.configuration_learned_alignment import LearnedAlignmentConfig
from ..models.modeling_late_fusion import LateFusionForEmotionClassification
from ..models.modeling_learned_alignment import LearnedAlignmentForEmotionClassification
from ..models.processing_mer import MerProcessor
from ..recipes import LOG_MEL_LEVELS
from ..training import TrainingSettings
from .frequencies import LABELS, assume_equal_frequencies
from .speech_training import LogMelChanges, fit_frames, fit_vectors, frame_logits, log_mels, vector_logits

logger = logging.getLogger(__name__)

TRIM_DB = 30.0
"""What the processor cuts off both ends of a clip, in training and whenever the branches are used."""
SEVEN_EMOTIONS = Protocol(
    "ravdess-emobox-7class",
    "speaker",
    partial(ravdess_splits, folds="emobox"),
    "EmoBox (Ma et al. 2024), calm counted as neutral",
    "ravdess",
    ALL_LABELS | {"calm": "neutral"},
)


@dataclass(frozen=True)
class SpeechBranch:
    """One branch: what it reads, "frames" or "vector", and how it is trained."""

    reads: str
    settings: TrainingSettings


FRAME_SETTINGS = TrainingSettings(
    epochs=50,  # validation: 52.9 changed clips, 48.2 with 24 epochs and dropout 0.5
    learning_rate=2e-3,  # untuned
    weight_decay=0.05,  # untuned
    keep="last",
)
VECTOR_SETTINGS = TrainingSettings(
    epochs=40,  # validation, of MMAN's network on these vectors: 50.4 with dropout 0.5, 49.2 with 20 and 0.2
    weight_decay=1.0,  # as recipes.mman
    keep="last",
)
BRANCHES = {
    "speech_frames": SpeechBranch("frames", FRAME_SETTINGS),
    "speech_frames_again": SpeechBranch("frames", replace(FRAME_SETTINGS, seed=1)),
    "speech_vector": SpeechBranch("vector", VECTOR_SETTINGS),
}
"""The branches by the names they have in the checkpoint; they count alike."""
CHANGES = LogMelChanges()


@dataclass(frozen=True)
class SpeechClips:
    """RAVDESS's clips with their seven labels, and by id what the branches are trained on."""

    corpus: Corpus
    mels: Mapping[str, Tensor]
    """(frames, bins)"""
    vectors: Mapping[str, Tensor]
    """(1, width)"""

    def labels(self, ids: Sequence[str]) -> list[int]:
        """Their label ids, in the order of LABELS."""
        return [self.corpus.label2id[self.corpus.by_id[i]["label"]] for i in ids]


def load_speech(
    data_dir: str | PathLike, cache_dir: str | PathLike, face_scores: str | PathLike | None = None
) -> SpeechClips:
    """RAVDESS by EmoBox's folds with seven labels, and its sound as the processor gives it; as `load_corpus`.

    Raises:
        ValueError: what `load_corpus` refuses, or a copy without one of the seven emotions.
    """
    corpus = load_corpus("ravdess", data_dir, cache_dir, "ravdess-emobox", face_scores)
    rows, splits, _ = SEVEN_EMOTIONS.apply(corpus.rows, corpus.audio_hashes)
    present = {row["label"] for row in rows}
    if present != set(LABELS):
        raise ValueError(f"data_dir {str(data_dir)!r} has no clip that is {', '.join(set(LABELS) - present)}")
    corpus = replace(corpus, rows=rows, splits=splits, labels=LABELS, protocol=SEVEN_EMOTIONS)
    examples = list(ClipDataset(rows, MerProcessor.default(trim_db=TRIM_DB), modalities=("audio",)))
    ids = [row["id"] for row in rows]
    waveforms = {i: example["input_values"] for i, example in zip(ids, examples, strict=True)}
    states = cache_embeds(make_branch("vector"), examples, ("audio",))
    vectors = {i: example["audio_embeds"] for i, example in zip(ids, states, strict=True)}
    return SpeechClips(corpus, log_mels(waveforms, FilterbankConfig().num_mel_bins), vectors)


def make_branch(reads: str) -> LearnedAlignmentForEmotionClassification:
    """An untrained branch that reads "frames" or a "vector"."""
    if reads == "frames":
        audio = FilterbankConfig(
            normalization="global+utterance",  # validation: 55.8, "global" 52.9
            conv_dims=(64, 64),  # as recipes.audio_frames, as are kernels and strides
            conv_kernels=(5, 3),
            conv_strides=(3, 2),
            nonlinearity=True,
        )
        own = {"dropout": 0.3}  # untuned
    else:
        audio = audio_vector_config()
        own = {"standardize": ("audio",), "dropout": 0.5}
    config = LearnedAlignmentConfig(
        audio_config=audio,
        alignment="none",  # there are no words to align
        hidden_size=64,  # as recipes.audio_frames
        label_smoothing=0.1,  # as recipes.audio_frames
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        **own,
    )
    return LearnedAlignmentForEmotionClassification(config)


def train_branch(
    branch: SpeechBranch, clips: SpeechClips, ids: Sequence[str]
) -> LearnedAlignmentForEmotionClassification:
    """The branch, trained on these clips for all its epochs."""
    set_seed(branch.settings.seed)
    model, labels = make_branch(branch.reads), clips.labels(ids)
    if branch.reads == "frames":
        fit_frames(model, [clips.mels[i] for i in ids], labels, branch.settings, CHANGES)
    else:
        speakers = [str(clips.corpus.by_id[i]["speaker"]) for i in ids]
        fit_vectors(model, [clips.vectors[i] for i in ids], labels, speakers, LOG_MEL_LEVELS, branch.settings)
    return model


def branch_logits(
    branch: SpeechBranch, model: LearnedAlignmentForEmotionClassification, clips: SpeechClips, ids: Sequence[str]
) -> NDArray:
    """Logits (clips, labels) of a trained branch."""
    if branch.reads == "frames":
        return frame_logits(model, [clips.mels[i] for i in ids])
    return vector_logits(model, [clips.vectors[i] for i in ids])


def settings_of(branches: Mapping[str, SpeechBranch] = BRANCHES) -> dict[str, Any]:
    """What the branches are made and trained by, ready for JSON."""
    described = {
        name: asdict(branch) | {"config": make_branch(branch.reads).config.to_diff_dict()}
        for name, branch in branches.items()
    }
    for branch in described.values():
        branch["config"].pop("transformers_version", None)
    return {"branches": described, "changes": asdict(CHANGES), "trim_db": TRIM_DB}


# What is shipped


def train_branches(
    clips: SpeechClips,
    temperatures: Mapping[str, float],
    folder: str | PathLike,
    branches: Mapping[str, SpeechBranch] = BRANCHES,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Path]:
    """Train every branch on all clips and save it in `folder/<name>`, calibrated and with its training frequencies
    folded out; one that is there already is not trained again."""
    ids = [row["id"] for row in clips.corpus.rows]
    counts = np.bincount(clips.labels(ids), minlength=len(LABELS)).tolist()
    folders = {name: Path(folder) / name for name in branches}
    for name, own in folders.items():
        if not (own / "config.json").is_file():
            model = train_branch(branches[name], clips, ids)
            model.config.calibration_temperature = temperatures[name]
            assume_equal_frequencies(model.classifier, counts, temperatures[name])
            model.save_pretrained(own)
            progress(f"{name}: {own}")
    return folders


def speech_model(folders: Mapping[str, Path]) -> LateFusionForEmotionClassification:
    """The trained branches as one model, which reads `input_values` of `MerProcessor.default(trim_db=TRIM_DB)`."""
    return LateFusionForEmotionClassification.from_branches(
        {name: AutoModel.from_pretrained(folder) for name, folder in folders.items()}
    ).eval()
