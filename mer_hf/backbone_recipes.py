"""New heads over pretrained backbones, for any corpus: the backbones trained along, or frozen and run once a clip.

    plan = backbone_plan("cme", {"audio": "facebook/wav2vec2-base", "text": "roberta-base"}, corpus, split, seed=0)

The numbers are untuned: what they give on a corpus is to be measured, and chosen on its validation side.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, set_seed

from . import (
    CMEForEmotionClassification,
    LearnedAlignmentForEmotionClassification,
    MerPreTrainedModel,
    MerProcessor,
)
from .corpora import Corpus
from .data.collator import ClipDataset
from .data.feature_store import FeatureStore
from .data.features import without_backbones
from .data.protocols import FoldSplit
from .recipes import Plan, only_timed_words
from .training import TrainingSettings, process_state

Row = Mapping[str, Any]

HEADS = {"cme": CMEForEmotionClassification, "learned_alignment": LearnedAlignmentForEmotionClassification}
"""What can be put over backbones that give a sequence."""


class StoredPlan(NamedTuple):
    """A plan for a head over stored states, the model that the head is of, and what the store had to compute."""

    plan: Plan
    whole: MerPreTrainedModel
    """With its backbones and an untrained head: `take_head` gives it the trained one."""
    report: dict[str, Any]
    """`FeatureStore.report` after filling."""


def backbone_model(head: str, backbones: Mapping[str, str], seed: int = 0, **config: Any) -> MerPreTrainedModel:
    """A new head over pretrained backbones. backbones: modality -> a folder or Hub id; config: fields of the model's
    configuration.

    Raises:
        ValueError: a head that is not in HEADS, a folder that is not there, and what `from_backbones` refuses.
    """
    if head not in HEADS:
        raise ValueError(f"a head over pretrained backbones is one of {', '.join(HEADS)}; found {head!r}")
    check_backbones(backbones)
    set_seed(seed)
    return HEADS[head].from_backbones(**backbones, **config)


def check_backbones(backbones: Mapping[str, str]) -> None:
    """ValueError where a folder is named that is not there, before anything that takes long."""
    for modality, name in backbones.items():
        looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
        if looks_like_path and not Path(name).is_dir():  # else the Hub's client complains about the form of a name
            raise ValueError(f"{modality}: no folder {name}; name one that a backbone was saved to, or a Hub id")


def backbone_processor(backbones: Mapping[str, str]) -> MerProcessor:
    """A processor with what was saved beside each backbone: feature extractor, tokenizer, image processor."""
    parts: dict[str, Any] = {}
    if "audio" in backbones:
        parts["feature_extractor"] = AutoFeatureExtractor.from_pretrained(backbones["audio"])
    if "text" in backbones:
        parts["tokenizer"] = AutoTokenizer.from_pretrained(backbones["text"])
    if "vision" in backbones:
        parts["image_processor"] = AutoImageProcessor.from_pretrained(backbones["vision"])
    return MerProcessor.default(**parts, keep_punctuation="text" in backbones)


def backbone_plan(
    head: str, backbones: Mapping[str, str], corpus: Corpus, split: FoldSplit, seed: int, train_backbones: bool = True
) -> Plan:
    """Clips decoded as they are needed, backbones run at every step; with train_backbones they learn too, at 1e-5."""
    frozen = () if train_backbones else tuple(backbones)
    names = {"id2label": dict(enumerate(corpus.labels)), "label2id": corpus.label2id}
    model = backbone_model(head, backbones, seed, freeze_backbones=frozen, **names)
    processor = backbone_processor(backbones)
    rows = _rows(head, backbones, corpus, split)
    sides = [ClipDataset(own, processor, corpus.label2id, tuple(backbones)) for own in rows]
    return Plan(model, processor, *sides, TrainingSettings(backbone_learning_rate=1e-5, seed=seed))


def stored_plan(
    head: str,
    backbones: Mapping[str, str],
    corpus: Corpus,
    split: FoldSplit,
    seed: int,
    folder: str | PathLike,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], Any] = lambda: None,
) -> StoredPlan:
    """A head alone, over states of frozen backbones that are computed once and kept in `folder`.

    rank, world: of processes that share the computing; `wait` returns when all have done theirs.
    """
    plan = backbone_plan(head, backbones, corpus, split, seed, train_backbones=False)
    store = FeatureStore(folder, plan.model.to(process_state().device), plan.processor)
    rows = _rows(head, backbones, corpus, split)
    store.fill([row for own in rows for row in own], rank=rank, world=world)
    wait()
    store.refresh()
    report = store.report()
    sides = [store.examples(own, corpus.label2id) for own in rows]
    whole = plan.model.cpu()
    head_alone = without_backbones(whole, tuple(backbones))
    return StoredPlan(Plan(head_alone, plan.processor, *sides, plan.settings), whole, report)


def _rows(head: str, backbones: Mapping[str, str], corpus: Corpus, split: FoldSplit) -> list[list[Row]]:
    """Those of the three sides. CME wants the time of each word that it hears: where words could not be placed, a clip
    is one unit of sound to it."""
    by_words = head == "cme" and {"audio", "text"} <= backbones.keys()
    prepare = only_timed_words if by_words else dict
    return [[prepare(corpus.by_id[i]) for i in ids] for ids in (split.train, split.validation, split.test)]
