"""What the default checkpoint's card says of each branch: read from its results file, in words and rows of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..card_results import SCORE_NAMES, Score
from ..cards import TERMS
from ..evaluation import SCORES
from .loading import WORDS

FACE_TITLE = "FER2013"
TERMS_OF = {
    "speech": ["https://creativecommons.org/licenses/by-nc-sa/4.0/: name the authors, not commercially, share alike."],
    "face": [
        "The pictures were found by a search engine; nothing that came with the copy used says what may be done with",
        "them. Judge for yourself whether you may use this branch, or leave it out.",
    ],
    "words": ["https://www.gnu.org/licenses/gpl-3.0.html"],
}
"""What the LICENSE file adds on the terms of a branch's data."""
FLOOR = "always the commonest emotion"
SHIPPED = "equally likely (shipped)"
KNOWN = "as in the corpus"
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One way to answer, and what it scores on a test side."""

    name: str
    scores: Sequence[Score]
    """WA, UA, macro F1 and weighted F1"""
    ece: float | None = None
    """calibration error; None where the emotions are not as frequent as the probabilities assume"""


@dataclass(frozen=True)
class Branch:
    """What the card says of one branch; texts are ready to print."""

    name: str
    title: str
    """of its corpus"""
    corpus: str
    licence: str
    terms: Sequence[str]
    reads: str
    where: str
    """which of the checkpoint's files and tensors are its own"""
    models: str
    parameters: int
    setting: str
    """how its scores came about"""
    unit: str
    """what intervals resample"""
    task: str
    """the Hub's name for what was tested"""
    hashed: Mapping[str, Any]
    """what of the data the results file identifies"""
    rows: Sequence[Row]
    """the first = as shipped, the last = the floor"""
    recall: Mapping[str, float | None]
    notes: Sequence[str]
    temperatures: Mapping[str, float]
    """of its models, by name: they tell one training from another"""


def speech_branch(found: Results) -> Branch:
    """Of `default-speech.json`; KeyError and TypeError for what is not such a file."""
    models, folds = found["models"], found["protocol"]["folds"]
    pooled = models["speech_equal"]["pooled"]
    rows = [_row(SHIPPED, pooled)]
    for name, text in {"speech": KNOWN, "lr_audio": f"{KNOWN}, logistic regression"}.items():
        own = models[name]
        rows.append(_row(text, own["pooled"], own["calibration"]["after"]["ece"]))
    names, corpus = list(found["shipped"]["temperatures"]), found["corpus"]
    return Branch(
        name="speech",
        title=TERMS["ravdess"].title,
        corpus=corpus["name"],
        licence=found["licence"],
        terms=TERMS_OF["speech"],
        reads="the sound of the voice, not its words",
        where=f"the tensors of {', '.join(f'branches.{name}' for name in names)} in model.safetensors",
        models=f"{len(names)} of [learned alignment](https://arxiv.org/abs/1909.05645), without words",
        parameters=sum(models[name]["parameters"] for name in names),
        setting=f"The test sides of {len(folds)} folds of `{found['protocol']['split']}` together "
        f"({found['protocol']['unit']}s apart): {pooled['n']:,} clips of {pooled['speakers']} people. "
        f"{found['protocol']['source']}.",
        unit=f"{pooled['clusters']}s",
        task="audio-classification",
        hashed={"protocol": found["protocol"]["split"], "sha256": corpus["sha256"]},
        rows=[*rows, _majority(pooled)],
        recall=pooled["recall"],
        notes=found["notes"],
        temperatures=found["shipped"]["temperatures"],
    )


def face_branch(found: Results) -> Branch:
    """Of `default-face.json`; KeyError and TypeError for what is not such a file."""
    points = found["operating_points"]
    shipped, known = points["equal_frequencies"]["test"], points["training_frequencies"]["test"]
    known_row = _row(KNOWN, known, known["calibration"]["after"]["ece"])
    return Branch(
        name="face",
        title=FACE_TITLE,
        corpus=found["corpus"]["name"],
        licence="none stated in the copy used",
        terms=TERMS_OF["face"],
        reads="one face, frame by frame",
        where="the tensors of branches.face in model.safetensors",
        models="a small [ResNet](https://arxiv.org/abs/1512.03385)",
        parameters=found["training"]["parameters"],
        setting=f"{shipped['n']:,} pictures, one training.",
        unit=f"{shipped['clusters']}s",
        task="image-classification",
        hashed={"sha256": found["corpus"]["sides"]["test"]["sha256"]},
        rows=[_row(SHIPPED, shipped), known_row, _majority(shipped)],
        recall=shipped["recall"],
        notes=found["notes"],
        temperatures={"face": found["temperature"]},
    )


def words_branch(found: Results) -> Branch:
    """Of `default-words.json`; KeyError and TypeError for what is not such a file."""
    points = {SHIPPED: "equal_frequencies", KNOWN: "training_frequencies"}
    rows = []
    for form, text in {"written": "", "spoken": ", without punctuation and capitals"}.items():
        for name, point in points.items():
            own = found["operating_points"][point][form]["test"]
            ece = own["calibration"]["after"]["ece"] if point == "training_frequencies" else None
            rows.append(_row(name + text, own["pooled"], ece))
    shipped = found["operating_points"]["equal_frequencies"]["written"]["test"]
    pooled, seed = shipped["pooled"], found["shipped"]["seed"]
    own = shipped["seeds"][str(seed)]
    return Branch(
        name="words",
        title=TERMS["meld"].title,
        corpus=found["corpus"]["name"],
        licence=found["corpus"]["licence"],
        terms=TERMS_OF["words"],
        reads="what is said",
        where=f"the folder {WORDS}",
        models="[MiniLM](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), a linear layer",
        parameters=found["shipped"]["parameters"],
        setting=f"{found['corpus']['sides']['test']['texts']:,} turns of dialogues, answered by {len(found['seeds'])} "
        f"trainings. Shipped is seed {seed} ({found['shipped']['chosen_by']}), whose own WA is {own['wa']:.3f} and UA "
        f"{own['ua']:.3f}.",
        unit="dialogues",
        task="text-classification",
        hashed={"encoder_sha256": found["encoder"]["sha256"]},
        rows=[*rows, _majority(pooled)],
        recall=pooled["recall"],
        notes=found["notes"],
        temperatures={WORDS: {one["seed"]: one["temperature"] for one in found["seeds"]}[seed]},
    )


def _row(name: str, report: Results, ece: float | None = None) -> Row:
    """report: an `evaluation_report`, of the answers of all folds or seeds together, as its intervals are."""
    bounds = {score: report["intervals"][score] or (None, None) for score in SCORES}
    return Row(name, [Score(SCORE_NAMES[s], report[s], report[s], *bounds[s]) for s in SCORES], ece)


def _majority(report: Results) -> Row:
    """The commonest emotion, always: its share of the decisions; a recall of 1 for one emotion, 0 for the others."""
    support = [count for count in report["support"].values() if count]
    share = report["majority_wa"]
    f1 = 2 * share / (1 + share)
    values = {"wa": share, "ua": 1 / len(support), "macro_f1": f1 / len(support), "weighted_f1": share * f1}
    return Row(FLOOR, [Score(SCORE_NAMES[s], values[s], values[s], None, None) for s in SCORES])
