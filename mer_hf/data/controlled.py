"""The controlled corpus: spoken, worded and drawn dialogues in which the cue that gives the emotion away is known.

A test bench for models and training code, generated on the user's own machine in seconds. **It says nothing about
people**: the speech is espeak-ng's, the faces are schematic drawings, and how each emotion sounds, reads and looks is
a convention of this package. A model that does well here can read and combine the cues below; that is all it shows.

Sixteen speakers talk in eight two-person sessions: 1-5 are for training, 6 for validation, 7-8 for testing, so no
speaker, and no sentence either, is in two splits. A dialogue has about ten turns. Labels: neutral, happy, sad, angry.
What settles a turn's label is its `item`:

    consistent      words, voice and face all show the label; now and then one of the three stays neutral
    neutral_words   neutral wording; the voice shows the label, the face weakly or not at all
    flat_voice      an emotional word in a flat voice, with a neutral face
    stressed_word   words of two emotions in one sentence, in either order; the stressed one (higher, louder, longer)
                    decides. The text alone leaves two answers, statistics of the whole clip none
    masking_smile   a polite smile (the eyes do not join in) over a sad or angry voice or wording, or a neutral turn
    cueless         neutral wording, flat voice, neutral face: the label of the turn before, which is not neutral

Neutral turns are `consistent` or `masking_smile`. One that follows an emotional turn always opens with a change of
topic ("anyway", "by the way"), which is what tells it from a cueless turn; other turns open like that now and then.

Beside the columns of `mer_hf.data.schema` a row carries its item, the index of its stressed word (-1: none), the
emotion each channel shows (`text_emotion` is null where two words disagree) and what was asked of the generator:
`word_prosody` (natural logarithms of ratios to the speaker's neutral voice) and `face_parameters` (frames, 5), named
by `drawn_faces.FACE_PARAMETERS`, at `face_times` seconds.
"""

import hashlib
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Value
from datasets.builder import Key

from .controlled_dialogues import DialogueWriter, Difficulty
from .controlled_speakers import Performer, cast
from .schema import FEATURES, validate_row
from .speech_synthesis import SpeechSynthesizer, import_espeak_loader

SPLITS = ("train",) * 5 + ("validation",) + ("test",) * 2
"""The split of each session, from the first on."""

CONTROLLED_FEATURES = datasets.Features(
    {
        **FEATURES,
        "item": Value("string"),
        "stressed_word": Value("int32"),
        "text_emotion": Value("string"),
        "voice_emotion": Value("string"),
        "face_emotion": Value("string"),
        "word_prosody": [{"pitch": Value("float32"), "energy": Value("float32"), "rate": Value("float32")}],
        "face_parameters": [[Value("float32")]],
        "face_times": [Value("float32")],
    }
)

GENERATOR_VERSION = 2
DEFAULT_DIFFICULTY = Difficulty()


def generate_controlled_corpus(
    directory: str | Path,
    seed: int = 0,
    sessions: int = 8,
    dialogues_per_session: int = 25,
    num_workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    difficulty: Difficulty = DEFAULT_DIFFICULTY,
) -> Path:
    """Write the corpus into `directory`: audio/*.wav (16 kHz, mono, PCM16), video/*.mp4, rows.jsonl, corpus.json.

    Byte for byte the same for the same arguments, whatever `num_workers` (worker processes, so a script that calls
    this needs its `if __name__ == "__main__"`; 1 = none, all in this process). `progress` is called with (sessions
    done, sessions). The corpus is built beside `directory` and moved there when complete; a directory that already
    holds it is returned at once.

    Raises:
        ValueError: for more sessions than `SPLITS` has, a count below 1, or a directory that holds anything else.
        ImportError: when espeakng-loader is not installed.
    """
    directory = Path(directory).absolute()
    if not 1 <= sessions <= len(SPLITS) or dialogues_per_session < 1 or num_workers < 1:
        raise ValueError(
            f"need 1 <= sessions <= {len(SPLITS)}, dialogues_per_session >= 1 and num_workers >= 1; found "
            f"sessions={sessions}, dialogues_per_session={dialogues_per_session}, num_workers={num_workers}"
        )
    recipe = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "sessions": sessions,
        "dialogues_per_session": dialogues_per_session,
        "difficulty": asdict(difficulty),
    }
    if _holds(directory, recipe):
        return directory
    import_espeak_loader()  # say what is missing here, not from inside a worker
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-unfinished-", dir=directory.parent))
    try:
        tasks = [
            _SessionTask(unfinished, seed, session, dialogues_per_session, difficulty) for session in range(sessions)
        ]
        rows = _run(tasks, num_workers, progress)
        _finish(unfinished, rows, recipe)
        unfinished.chmod(0o755)  # mkdtemp's folder is for its owner alone
        if directory.is_dir():
            directory.rmdir()  # _holds has seen that it is empty
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def _holds(directory: Path, recipe: dict[str, Any]) -> bool:
    """Whether the directory holds this very corpus; False when it is free to be written."""
    if not directory.exists() or not any(directory.iterdir()):
        return False
    description = directory / "corpus.json"
    found = json.loads(description.read_text()).get("recipe") if description.is_file() else None
    # Through JSON, as the recipe on disk went: tuples are lists there.
    if found == json.loads(json.dumps(recipe)):
        return True
    what = "something else" if found is None else f"a controlled corpus made otherwise ({found})"
    raise ValueError(f"directory {directory} holds {what}; name an empty or a new one")


def _finish(directory: Path, rows: list[dict[str, Any]], recipe: dict[str, Any]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "rows.jsonl").write_text(text)
    description = {
        "recipe": recipe,
        "rows": len(rows),
        "rows_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "espeakng_loader": version("espeakng-loader"),
    }
    (directory / "corpus.json").write_text(json.dumps(description, indent=2) + "\n")


@dataclass(frozen=True)
class _SessionTask:
    directory: Path
    seed: int
    session: int  # counted from 0
    dialogues: int
    difficulty: Difficulty


def _run(
    tasks: list[_SessionTask], num_workers: int, progress: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    for task in tasks:
        for folder in ("audio", "video"):
            (task.directory / folder).mkdir(exist_ok=True)
    if num_workers == 1:
        return _collect(map(_generate_session, tasks), len(tasks), progress)
    # spawn: a forked child of a process with threads (torch, pyarrow) may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(tasks)), mp_context=context) as pool:
        return _collect(pool.map(_generate_session, tasks), len(tasks), progress)


def _collect(
    results: Iterator[list[dict[str, Any]]], total: int, progress: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    rows = []
    for done, session_rows in enumerate(results, start=1):
        rows.extend(session_rows)
        if progress is not None:
            progress(done, total)
    return rows


def _generate_session(task: _SessionTask) -> list[dict[str, Any]]:
    """Speak, draw and write one session; everything random in it hangs on (seed, session) alone."""
    rng = np.random.default_rng((task.seed, task.session))
    writer = DialogueWriter(rng, SPLITS[task.session], task.difficulty)
    rows = []
    with SpeechSynthesizer(seed=int(rng.integers(1, 2**31))) as synthesizer:
        speakers = [
            Performer(speaker, synthesizer, task.directory, task.difficulty, rng)
            for speaker in cast(task.seed, task.session, rng, task.difficulty)
        ]
        for dialogue in range(task.dialogues):
            clock = 0.0
            for number, turn in enumerate(writer.write()):
                name = f"Ses{task.session + 1:02d}_D{dialogue:03d}_T{number:02d}"
                row = speakers[(dialogue + number) % 2].perform(turn, name)
                row |= {"session": name[:5], "split": SPLITS[task.session]}
                row |= {"dialogue_id": name.rsplit("_", 1)[0], "turn": number, "start": round(clock, 3)}
                row["end"] = row["start"] + row.pop("duration")
                clock = row["end"] + rng.uniform(0.2, 0.6)
                validate_row(row)
                rows.append(row)
    return rows


class ControlledCorpus(datasets.ArrowBasedBuilder):
    """Builder over a directory that `generate_controlled_corpus` wrote, given as `data_dir`; see `load_controlled`.

    Arrow-based because a `GeneratorBasedBuilder` encodes each example, and `Audio.encode_example` imports torchcodec
    even where all it has to store is a path.
    """

    VERSION = datasets.Version(f"{GENERATOR_VERSION}.0.0")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Synthetic dialogues: a test bench, no claim about people.", features=CONTROLLED_FEATURES
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        directory = _finished(self.config.data_dir)
        rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
        by_split = {name: [row for row in rows if row["split"] == name] for name in dict.fromkeys(SPLITS)}
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"directory": directory, "rows": chosen})
            for name, chosen in by_split.items()
            if chosen
        ]

    def _generate_tables(self, directory: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[Key, pa.Table]]:
        stored = [row | {name: {"path": str(directory / row[name])} for name in ("audio", "video")} for row in rows]
        yield Key(0, 0), pa.Table.from_pylist(stored, CONTROLLED_FEATURES.arrow_schema)


def load_controlled(directory: str | Path, cache_dir: str | Path | None = None) -> datasets.DatasetDict:
    """The generated corpus as a DatasetDict with the columns `CONTROLLED_FEATURES`; media stay paths.

    Raises:
        ValueError: when the directory holds no finished corpus.
    """
    directory = _finished(directory)
    # `datasets` caches by directory; the hash keeps another corpus at the same place from being served from there.
    fingerprint = hashlib.sha256((directory / "corpus.json").read_bytes()).hexdigest()
    cache = None if cache_dir is None else str(cache_dir)
    builder = ControlledCorpus(cache_dir=cache, data_dir=str(directory), hash=fingerprint)
    builder.download_and_prepare()
    return builder.as_dataset()


def _finished(directory: str | Path | None) -> Path:
    if directory is None or not (Path(directory) / "corpus.json").is_file():
        raise ValueError(f"{directory} holds no finished controlled corpus; make one with generate_controlled_corpus")
    return Path(directory).absolute()
