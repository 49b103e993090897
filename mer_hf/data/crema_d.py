"""CREMA-D, from the user's own copy: rows of the common schema, under the acted emotion or the one raters perceived.

Cao et al. 2014, "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Transactions on Affective Computing
5(4); ODbL, https://github.com/CheyneyComputerScience/CREMA-D. 91 actors speak 12 sentences in six emotions: 7442
clips, named `actor_sentence_emotion_level` (1001_DFA_ANG_XX; level LO, MD, HI or XX = unspecified). What is read:

    AudioWAV/1001_DFA_ANG_XX.wav   VideoFlash/1001_DFA_ANG_XX.flv   the clips (mp4 instead of flv is read as well)
    VideoDemographics.csv                                           each actor's gender
    SentenceFilenames.csv                                           the clips that there are
    processedResults/summaryTable.csv                               what most raters perceived in voice, face and both
    processedResults/tabulatedVotes.csv                             how many raters perceived what

Raters heard the voice, saw the face, or both. Their majority often differs from what the actor was asked for: choose
`label`. As every actor says every sentence in every emotion, the words tell nothing about the label.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Value

from .scanning import (
    REPEATED,
    CorpusBuilder,
    CorpusConfig,
    Scan,
    Skipped,
    checked_folder,
    files_below,
    logger,
    pointer,
    unreadable,
    unreadable_wav,
)
from .schema import FEATURES, make_row

SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
EMOTION_CODES = {
    "ANG": "angry",
    "DIS": "disgusted",
    "FEA": "fearful",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
_VOTES = {code[0]: emotion for code, emotion in EMOTION_CODES.items()}  # A, D, F, H, N, S
PERCEIVED = ("voice", "face", "multimodal")
LABELS = ("intended", *PERCEIVED)
KNOWN_BROKEN = {
    "1064_IEO_DIS_MD": "known to be broken: a minute that holds every emotion",
    "1064_TIE_SAD_XX": "known to be broken: no duration",
    "1076_MTI_NEU_XX": "known to be broken: next to nothing in it",
    "1076_MTI_SAD_XX": "known to be broken: no sound",
}
"""Clips that the authors' README lists, and why."""
CREMA_D_FEATURES = datasets.Features(
    {**FEATURES, **{f"{what}_votes": {emotion: Value("int32") for emotion in _VOTES.values()} for what in PERCEIVED}}
)
"""The schema's columns, and how many raters perceived each emotion in the voice, the face and both."""
_NAME = re.compile(rf"10\d\d_({'|'.join(SENTENCES)})_({'|'.join(EMOTION_CODES)})_(?:LO|MD|HI|XX)")

# Reasons a file gives no row.
NOT_MEDIA = "not a .wav, .flv or .mp4 file"
BAD_NAME = "name does not follow actor_sentence_emotion_level"
NOT_IN_COPY = "a clip of SentenceFilenames.csv that is not in the copy"
HARMLESS = frozenset({NOT_MEDIA, *KNOWN_BROKEN.values()})
"""Reasons that are listed but not worth a warning: complete copies give them too."""

# What a row may lack.
TIED = "no label: the raters' votes are tied"
NO_VOTES = "no label: the table of votes has no such clip"
NO_GENDER = "no gender: VideoDemographics.csv does not tell the actor's"

_EXPECTED = (
    "A CREMA-D tree holds AudioWAV/1001_DFA_ANG_XX.wav and so on and, where wanted, VideoFlash/1001_DFA_ANG_XX.flv; "
    "the folders' names do not matter. `git lfs pull` fetches what a clone or a zip of the repository only points to."
)


def scan(data_dir: str | os.PathLike, label: str = "intended", known_broken: bool = False) -> Scan:
    """Read the names in a CREMA-D tree, and its tables, into schema rows by id; of sound only headers are read.

    label: "intended", the acted emotion, which the name tells; "voice", "face" or "multimodal", what most raters
    perceived; a tie is a null label. known_broken: whether the clips in KNOWN_BROKEN give rows.
    audio is the wav. Where a copy has no wav of a clip it is the video, whose sound track it is; where the wav is
    damaged it is null. A row without audio and video is none. Folders named .git are passed over.

    Raises:
        ValueError: for an unknown label, a data_dir that is not a directory, or one without a single clip or, where
            the label needs them, without the raters' votes; a table without the columns it should have.
    """
    if label not in LABELS:
        raise ValueError(f"label must be one of {', '.join(LABELS)}, got {label!r}")
    root = checked_folder(data_dir, _EXPECTED)
    paths = [path for path in files_below(root) if ".git" not in path.relative_to(root).parts]
    clips, skipped = _clips(paths, root, known_broken)
    if not clips:
        found = Scan([], skipped)
        raise ValueError(f"data_dir {str(data_dir)!r} holds no clip{found.counts()}. {_EXPECTED}")
    genders = _genders(paths)
    majorities = {} if label == "intended" else _majorities(paths, label, data_dir)
    votes = _votes(paths)
    rows = [_row(clip, clips[clip], genders, label, majorities, votes) for clip in sorted(clips)]
    listed = {row["Filename"] for row in _table(paths, "SentenceFilenames.csv", ["Filename"])}
    met = {*clips, *(Path(item.path).stem for item in skipped)}
    skipped += [Skipped(clip, NOT_IN_COPY) for clip in sorted(listed - met)]
    return Scan(rows, sorted(skipped), _gaps(rows, label, majorities))


def _clips(paths: Iterable[Path], root: Path, known_broken: bool) -> tuple[dict[str, dict[str, str]], list[Skipped]]:
    """Clip -> its files by type (".wav": "" where the only one is damaged), and what gives none."""
    clips: dict[str, dict[str, str]] = {}
    damaged, skipped = set(), []
    for path in paths:
        kind = {".wav": ".wav", ".flv": "video", ".mp4": "video"}.get(path.suffix.lower())
        reason = _refusal(path, kind, known_broken)
        if reason is None and kind in clips.get(path.stem, ()):
            reason = REPEATED
        if reason is None:
            clips.setdefault(path.stem, {})[kind] = str(path)
        else:
            skipped.append(Skipped(path.relative_to(root).as_posix(), reason))
            if kind == ".wav":
                damaged.add(path.stem)
    for clip in damaged & set(clips):
        clips[clip].setdefault(".wav", "")
    return clips, skipped


def _refusal(path: Path, kind: str | None, known_broken: bool) -> str | None:
    """Why a file gives no row, or None."""
    if kind is None:
        return NOT_MEDIA
    if not _NAME.fullmatch(path.stem):
        return BAD_NAME
    if path.stem in KNOWN_BROKEN and not known_broken:
        return KNOWN_BROKEN[path.stem]
    return unreadable_wav(path) if kind == ".wav" else unreadable(path) or pointer(path)


def _row(
    clip: str,
    files: Mapping[str, str],
    genders: Mapping[str, str],
    label: str,
    majorities: Mapping[str, str],
    votes: Mapping[tuple[str, str], dict[str, int]],
) -> dict[str, Any]:
    actor, sentence, emotion, _ = clip.split("_")
    row = make_row(
        id=clip,
        corpus="crema_d",
        speaker=f"crema_d-{actor}",
        gender=genders.get(actor),
        audio=files.get(".wav", files.get("video")) or None,
        video=files.get("video"),
        text=SENTENCES[sentence],
        label=EMOTION_CODES[emotion] if label == "intended" else _VOTES.get(majorities.get(clip)),
        scripted=True,
        sentence=sentence,
    )
    return row | {f"{what}_votes": votes.get((clip, what)) for what in PERCEIVED}


def _gaps(rows: Sequence[Mapping[str, Any]], label: str, majorities: Mapping[str, str]) -> list[Skipped]:
    gaps = [Skipped(row["id"], NO_GENDER) for row in rows if row["gender"] is None]
    if label != "intended":
        unlabelled = [row["id"] for row in rows if row["label"] is None]
        gaps += [Skipped(clip, TIED if clip in majorities else NO_VOTES) for clip in unlabelled]
    return sorted(gaps)


# -- Tables -----------------------------------------------------------------------------------------------------------


def _table(paths: Iterable[Path], name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of the first table of this name; none where there is no such file."""
    file = next((path for path in paths if path.name == name), None)
    if file is None:
        return []
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise ValueError(f"{file}: no column {', '.join(missing)} (found: {found}); take the file of the release")
        return list(reader)


def _genders(paths: Iterable[Path]) -> dict[str, str]:
    table = _table(paths, "VideoDemographics.csv", ["ActorID", "Sex"])
    return {line["ActorID"]: line["Sex"].lower() for line in table if line["Sex"] in ("Male", "Female")}


def _majorities(paths: Iterable[Path], label: str, data_dir: str | os.PathLike) -> dict[str, str]:
    """Clip -> the letter of what most raters perceived, several with colons between them where votes are tied."""
    column = {"voice": "VoiceVote", "face": "FaceVote", "multimodal": "MultiModalVote"}[label]
    found = {line["FileName"]: line[column] for line in _table(paths, "summaryTable.csv", ["FileName", column])}
    if not found:
        table = _tabulated(paths)
        found = {line["fileName"]: line["emoVote"] for line in table if _perceived(line) == label}
    if not found:
        raise ValueError(
            f"label {label!r} needs what raters perceived, and data_dir {str(data_dir)!r} has neither "
            "processedResults/summaryTable.csv nor processedResults/tabulatedVotes.csv; copy them from the release, "
            "or take label='intended'"
        )
    return found


def _votes(paths: Iterable[Path]) -> dict[tuple[str, str], dict[str, int]]:
    """(clip, what was perceived) -> number of raters by emotion."""
    return {
        (line["fileName"], _perceived(line)): {emotion: int(line[letter]) for letter, emotion in _VOTES.items()}
        for line in _tabulated(paths)
    }


def _tabulated(paths: Iterable[Path]) -> list[dict[str, str]]:
    return _table(paths, "tabulatedVotes.csv", ["", *_VOTES, "fileName", "emoVote"])


def _perceived(line: Mapping[str, str]) -> str:
    """Of a line of tabulatedVotes.csv, whose nameless first column is 100000 for votes on the voice, 200000 on the
    face and 300000 on both, plus the clip's number."""
    return PERCEIVED[int(line[""]) // 100_000 - 1]


# -- The counts of a complete copy, and the builder -------------------------------------------------------------------

ACTORS = 91
COUNTS = {"clips": 7442, "ANG": 1271, "DIS": 1271, "FEA": 1271, "HAP": 1271, "NEU": 1087, "SAD": 1271}
"""Clips of the release, those in KNOWN_BROKEN included: in all, and by intended emotion."""


def check_counts(rows: Iterable[Mapping[str, Any]]) -> None:
    """Compare a copy that has all actors with `COUNTS`, the clips in KNOWN_BROKEN counted as there.

    Raises:
        ValueError: naming each count that differs, expected and found.
    """
    clips = {row["id"] for row in rows}
    if len({clip[:4] for clip in clips}) != ACTORS:
        return
    found = Counter(clip.split("_")[2] for clip in clips | set(KNOWN_BROKEN))
    found["clips"] = found.total()
    differing = [name for name in COUNTS if found[name] != COUNTS[name]]
    wrong = [f"{name}: {COUNTS[name]} expected, {found[name]} found" for name in differing]
    if wrong:
        raise ValueError(
            f"the copy has all actors of CREMA-D but not its clips ({'; '.join(wrong)}). "
            "The report names what gave no row; `git lfs pull` fetches what a clone lacks"
        )


@dataclass
class CremaDConfig(CorpusConfig):
    """`data_dir`: the user's copy. label, known_broken: as `scan`. strict: whether counts that differ from `COUNTS`
    are an error rather than a warning."""

    label: str = "intended"
    known_broken: bool = False
    strict: bool = False

    def scan(self) -> Scan:
        """As the function; with `strict`, `check_counts` as well."""
        found = scan(self.data_dir, self.label, self.known_broken)
        if self.strict:
            check_counts(found.rows)
        return found


class CremaD(CorpusBuilder):
    """CREMA-D as a data set; see `CorpusBuilder`. It has no official split: a protocol makes folds of its actors.

    Three columns stand beside the schema's: voice_votes, face_votes and multimodal_votes, raters by emotion.
    """

    BUILDER_CONFIG_CLASS = CremaDConfig
    HARMLESS = HARMLESS
    MEDIA_MAY_BE_SHARED = True  # ODbL and DbCL: with attribution, under the same licence

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Crowd-sourced Emotional Multimodal Actors Dataset",
            features=CREMA_D_FEATURES,
            homepage="https://github.com/CheyneyComputerScience/CREMA-D",
            license="ODbL 1.0, contents DbCL 1.0",
            citation="Cao et al. 2014, IEEE Transactions on Affective Computing 5(4): 377-390",
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        try:
            check_counts(self.found.rows)
        except ValueError as problem:
            logger.warning("CremaD: %s", problem)
        return super()._split_generators(dl_manager)
