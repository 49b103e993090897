"""Evaluation protocols by name: which rows count, under which labels, on which side, and what is kept apart.

    rows, splits = protocol("iemocap-4class-loso").apply(rows)

A protocol's sides share no unit (speaker, session or dialogue; it is part of the protocol and stands beside every
result), every fold has a validation side of its own, and no clip's sound is on two sides of a fold: `apply` raises
otherwise. Published folds stand with the builder of their corpus.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .protocols import Folds, FoldSplit, check_audio, check_split, official_split
from .ravdess import ravdess_splits
from .schema import EMOTIONS

Row = Mapping[str, Any]

IEMOCAP_SESSIONS = tuple((f"Ses0{number}",) for number in range(1, 6))
ALL_LABELS = {label: label for label in EMOTIONS}
FOUR_CLASSES = {"neutral": "neutral", "happy": "happy", "excited": "happy", "sad": "sad", "angry": "angry"}


class ProtocolRows(NamedTuple):
    """What a protocol makes of a corpus."""

    rows: list[dict[str, Any]]
    """Those that count, under the protocol's labels."""
    splits: list[FoldSplit]
    left_out: dict[str, int]
    """Rows that do not count, by their label ("null" = none)."""


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate on a corpus.

    unit: the column whose values are never on two sides of a fold. labels: a corpus's label -> the protocol's; rows
    with another label, or none, do not count. corpus: the one it is for, None = any. source: who uses it.
    """

    name: str
    unit: str
    split: Callable[[Sequence[Row]], list[FoldSplit]]
    source: str
    corpus: str | None = None
    labels: Mapping[str, str] | None = None
    metric: str = "wa"
    """The score that the field compares on it."""

    def apply(self, rows: Iterable[Row], audio_hashes: Mapping[str, str] | None = None) -> ProtocolRows:
        """The rows that count, their folds, and what was left out.

        audio_hashes: of each row's sound, by id (`scanning.audio_hashes`); None = duplicates are not looked for.

        Raises:
            ValueError: no row counts; one that counts has no unit; a fold in which a unit or the same sound is on two
                sides; and what the folds' maker refuses.
        """
        labels = ALL_LABELS if self.labels is None else self.labels
        rows = list(rows)
        kept = [{**row, "label": labels[row["label"]]} for row in rows if row["label"] in labels]
        left_out = Counter(str(row["label"] or "null") for row in rows if row["label"] not in labels)
        if rows and all(row["label"] is None for row in rows):
            raise ValueError(
                f"{self.name}: none of the {len(rows)} rows has a label; of a table, name the column that says the "
                "emotion, such as --columns label=mood (columns={'label': 'mood'})"
            )
        if not kept:
            raise ValueError(f"{self.name}: none of the {len(rows)} rows has one of the labels {', '.join(labels)}")
        unknown = [row["id"] for row in kept if row[self.unit] is None]
        if unknown:
            raise ValueError(
                f"{self.name}: {len(unknown)} of {len(kept)} rows have no {self.unit}, such as {unknown[0]!r}, so "
                f"nothing keeps a {self.unit} off two sides. Give the rows one, or a split column of their own and "
                "protocol official-rows, which keeps nothing apart"
            )
        splits = self.split(kept)
        for split in splits:
            check_split(split, kept, self.unit)
            if audio_hashes is not None:
                check_audio(split, audio_hashes)
        return ProtocolRows(kept, splits, dict(sorted(left_out.items())))


# Makers of folds


def dialogue_split_of_iemocap(rows: Sequence[Row]) -> list[FoldSplit]:
    """Session 5 is tested on, as by the models of conversation since 2017; session 4 validates, where they take random
    dialogues of the training sessions, whose speakers are then trained on."""
    ids = {session: tuple(row["id"] for row in rows if row["session"] == session) for (session,) in IEMOCAP_SESSIONS}
    missing = [session for session, found in ids.items() if not found]
    if missing:
        raise ValueError(f"iemocap-6class-dialogue: the copy has no rows of {', '.join(missing)}")
    train = ids["Ses01"] + ids["Ses02"] + ids["Ses03"]
    return [FoldSplit("iemocap-6class-dialogue", 1, train, ids["Ses04"], ids["Ses05"])]


def grouped_speakers(rows: Sequence[Row], folds: int = 5) -> list[FoldSplit]:
    """As many folds as asked, or as there are speakers: these ordered by a hash of their name, dealt out in turn.

    A hash, since names often tell gender or recording order. Fold k validates on the next, as `Folds` does.

    Raises:
        ValueError: fewer than three speakers.
    """
    order = sorted({row["speaker"] for row in rows}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    members = tuple(tuple(order[start::folds]) for start in range(min(folds, len(order))))
    return Folds(f"speakers-{folds}fold", members).splits(rows)


def one_speaker_out(rows: Sequence[Row]) -> list[FoldSplit]:
    """A fold a speaker, by name; the next speaker validates."""
    return Folds("leave-one-speaker-out", tuple((name,) for name in sorted({row["speaker"] for row in rows}))).splits(
        rows
    )


def _official(name: str, unit: str) -> Callable[[Sequence[Row]], list[FoldSplit]]:
    return lambda rows: [official_split(rows, name, unit)]


_SESSIONS_OUT = "one session left out, the next validates; the field's four classes"
_OWN = "the split column of the rows"
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "iemocap-4class-loso",
            "session",
            Folds("iemocap-4class-loso", IEMOCAP_SESSIONS, "session").splits,
            f"{_SESSIONS_OUT}, excited counted as happy",
            "iemocap",
            FOUR_CLASSES,
        ),
        Protocol(
            "iemocap-4class-loso-noexc",
            "session",
            Folds("iemocap-4class-loso-noexc", IEMOCAP_SESSIONS, "session").splits,
            f"{_SESSIONS_OUT}, excited left out",
            "iemocap",
            {label: label for label in ("neutral", "happy", "sad", "angry")},
        ),
        Protocol(
            "iemocap-6class-dialogue",
            "session",
            dialogue_split_of_iemocap,
            "session 5 tested on, as by models of conversation; session 4 validates",
            "iemocap",
            {label: label for label in ("neutral", "happy", "excited", "sad", "angry", "frustrated")},
        ),
        Protocol(
            "ravdess-emobox",
            "speaker",
            lambda rows: ravdess_splits(rows, "emobox"),
            "EmoBox (Ma et al. 2024)",
            "ravdess",
        ),
        Protocol(
            "ravdess-lunajimenez",
            "speaker",
            lambda rows: ravdess_splits(rows, "lunajimenez", allow_missing=True),
            "Luna-Jimenez et al. 2021",
            "ravdess",
        ),
        Protocol(
            "meld-official",
            "dialogue_id",
            _official("meld-official", "dialogue_id"),
            "the split MELD came with (Poria et al. 2019); speakers recur across it",
            "meld",
            metric="weighted_f1",
        ),
        Protocol(
            "controlled-official",
            "session",
            _official("controlled", "session"),
            "the controlled corpus's sessions",
            "controlled",
        ),
        Protocol("official", "speaker", _official("official", "speaker"), f"{_OWN}, speakers apart"),
        Protocol("official-dialogues", "dialogue_id", _official("official-dialogues", "dialogue_id"), _OWN),
        Protocol("official-rows", "id", _official("official-rows", "id"), f"{_OWN}; speakers may be on two sides"),
        Protocol("speakers-5fold", "speaker", grouped_speakers, "speakers dealt into five folds by a hash"),
        Protocol("leave-one-speaker-out", "speaker", one_speaker_out, "as many folds as speakers"),
    )
}
"""Every protocol by name."""
DEFAULT_PROTOCOLS = {
    "iemocap": "iemocap-4class-loso",
    "ravdess": "ravdess-emobox",
    "meld": "meld-official",
    "crema_d": "speakers-5fold",
    "controlled": "controlled-official",
}


def choose_protocol(name: str | None, corpus: str, rows: Sequence[Row]) -> Protocol:
    """The protocol of that name; None = the corpus's usual one, for one's own rows the split they come with, if any.

    Raises:
        ValueError: an unknown name, or a protocol of another corpus.
    """
    if name is None:
        own = "official" if rows and all(row["split"] is not None for row in rows) else "speakers-5fold"
        return PROTOCOLS[DEFAULT_PROTOCOLS.get(corpus, own)]
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; found {name!r}")
    if PROTOCOLS[name].corpus not in (None, corpus):
        raise ValueError(f"protocol {name} is for {PROTOCOLS[name].corpus}, the corpus is {corpus}")
    return PROTOCOLS[name]


def paper_split(split: FoldSplit) -> FoldSplit:
    """The optimistic split of the papers' released codes: everything but the test side trains, the test side selects.

    It leaks by design: a score on it was chosen on the very clips it is measured on. It is only for showing how much
    that adds, beside the honest score, and never for choosing anything.
    """
    return FoldSplit(f"{split.name}-paper", split.fold, split.train + split.validation, split.test, split.test)
