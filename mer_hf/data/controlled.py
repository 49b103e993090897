"""The controlled corpus: spoken, worded and drawn dialogues in which the cue that gives the emotion away is known.

A test bench for models and training code, generated on the user's own machine in seconds. **It says nothing about
people**: the speech is espeak-ng's, the faces are schematic drawings, and how each emotion sounds, reads and looks is
a convention of this file. A model that does well here can read and combine the cues below; that is all it shows.

Sixteen speakers talk in eight two-person sessions: 1-5 are for training, 6 for validation, 7-8 for testing, so no
speaker, and no sentence either, is in two splits. A dialogue has about ten turns. Labels: neutral, happy, sad, angry.
What settles a turn's label is its `item`, one of `ITEMS`:

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
by `FACE_PARAMETERS`, at `face_times` seconds.
"""

import hashlib
import json
import math
import multiprocessing
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import datasets
import numpy as np
import pyarrow as pa
import soundfile
from datasets import Value
from datasets.builder import Key

from .schema import FEATURES, make_row, validate_row
from .speech_synthesis import (
    SAMPLE_RATE,
    SpeechSynthesizer,
    WordProsody,
    background_noise,
    import_espeak_loader,
    shape_voice,
)

ITEMS = ("consistent", "neutral_words", "flat_voice", "stressed_word", "masking_smile", "cueless")
LABELS = ("neutral", "happy", "sad", "angry")
FACE_PARAMETERS = ("mouth_curvature", "mouth_openness", "brow_slant", "brow_height", "eye_openness")
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
FRAME_RATE = 8
FRAME_SIZE = 64


@dataclass(frozen=True)
class Difficulty:
    """How clear the cues are: chosen on training and validation sessions so that one modality alone names half of the
    labels or so, while all of them with context name nearly every one."""

    channel_silent: float = 0.25  # chance that one channel of an emotional `consistent` turn stays neutral
    weak_face: float = 0.75  # chance that a `neutral_words` turn has a (weak) expression at all
    voice_strength: tuple[float, float] = (0.7, 1.15)  # of an emotional voice; 1 = as in VOICES
    face_strength: tuple[float, float] = (0.5, 1.0)  # of an expression; 1 = as in FACES
    voice_noise: float = 0.07  # standard deviation of an utterance's log pitch, log rate and half its log energy
    word_noise: float = 0.03  # the same for one word
    face_noise: float = 0.12  # standard deviation of a clip's face parameters
    frame_noise: float = 0.04  # and of one frame's
    stress: tuple[float, float] = (0.35, 1.0)  # strength of each of a stressed word's three cues; 1 = as in STRESS
    speaker_loudness: float = 0.05  # standard deviation of the log level of a speaker's neutral voice
    snr_db: tuple[float, float] = (15.0, 30.0)  # speech to background noise
    topic_change: float = 0.25  # chance of opening with a change of topic where nothing calls for one


@dataclass(frozen=True)
class _VoiceStyle:
    """Natural logarithms of ratios to the speaker's neutral voice; the rest in the synthesiser's own units."""

    pitch: float = 0.0
    energy: float = 0.0
    rate: float = 0.0
    range: float = 0.0
    brightness: float = 0.0
    roughness: float = 0.0


VOICES = {
    "neutral": _VoiceStyle(),
    "happy": _VoiceStyle(pitch=0.22, energy=0.3, rate=0.1, range=40, brightness=0.2),
    "sad": _VoiceStyle(pitch=-0.14, energy=-0.45, rate=-0.22, range=-30, brightness=-0.4),
    "angry": _VoiceStyle(pitch=-0.02, energy=0.65, rate=0.14, range=10, brightness=0.4, roughness=0.5),
}
NEUTRAL_RANGE = 45
STRESS = WordProsody(pitch=0.28, energy=0.6, rate=-0.35)

# Rows: mouth curvature (1 = smile), mouth openness, brow slant (1 = inner ends up), brow height, eye openness.
FACES = {
    "neutral": np.array([0.0, 0.0, 0.0, 0.0, 0.8]),
    "happy": np.array([0.8, 0.15, 0.0, 0.25, 0.45]),
    "sad": np.array([-0.6, 0.0, 0.7, 0.1, 0.6]),
    "angry": np.array([-0.35, 0.1, -0.8, -0.5, 0.95]),
    "polite_smile": np.array([0.7, 0.1, 0.0, 0.05, 0.8]),
}

_FEMALE_VOICES = ("f1", "f2", "f3", "f4", "f5", "linda", "steph", "anika")
_MALE_VOICES = ("m1", "m2", "m3", "m4", "m5", "m7", "michel", "sandro")

# How often each item is chosen for a turn of each label; a cueless turn is drawn before its label is.
_ITEM_WEIGHTS = {
    "neutral": {"consistent": 6.0, "masking_smile": 1.0},
    "happy": {"consistent": 2.0, "neutral_words": 4.0, "flat_voice": 3.0, "stressed_word": 4.5},
    "sad": {"consistent": 1.5, "neutral_words": 4.0, "flat_voice": 3.0, "stressed_word": 4.5, "masking_smile": 2.5},
    "angry": {"consistent": 1.5, "neutral_words": 4.0, "flat_voice": 3.0, "stressed_word": 4.5, "masking_smile": 2.5},
}
_CUELESS_CHANCE = 0.24  # after an emotional turn that is not itself cueless
_STAY_CHANCE = 0.4

WORDS = {
    "happy": {
        "state": "glad delighted cheerful thrilled proud joyful lucky".split(),
        "quality": "wonderful lovely fantastic delightful".split(),
        "verb": "love enjoy adore celebrate".split(),
    },
    "sad": {
        "state": "lonely miserable unhappy heartbroken hopeless gloomy sorry".split(),
        "quality": "tragic depressing dreary painful".split(),
        "verb": "miss mourn regret lament".split(),
    },
    "angry": {
        "state": "furious annoyed outraged bitter mad irritated offended".split(),
        "quality": "outrageous insulting unfair disgusting".split(),
        "verb": "hate resent despise blame".split(),
    },
}
_KIND_SHARES = (0.5, 0.25, 0.25)  # of state, quality, verb: as many as there are words
_ONE_WORD = {
    "state": (
        "i feel {a} about the {thing}",
        "i am so {a} {time}",
        "we were {a} in our {place}",
        "{person} is {a} about that {thing}",
        "i was {a} because of that {thing} {time}",
    ),
    "quality": (
        "the {thing} was {a} {time}",
        "that is such {a} news to {person}",
        "{person} gave me this {a} {thing}",
        "your {a} {thing} is in our {place}",
    ),
    "verb": (
        "i {a} the {thing} in our {place}",
        "we {a} that {thing} {time}",
        "you know i {a} my {place}",
        "they {a} the {thing} near {person}",
    ),
}
_TWO_WORDS = {
    "state": (
        "i feel {a} and {b} about the {thing}",
        "we were {a} or {b} {time}",
        "{person} is {a} but {b} about that {thing}",
        "i was {a} and also {b} in our {place}",
    ),
    "quality": (
        "the {thing} was {a} and {b} {time}",
        "{person} gave me this {a} but {b} {thing}",
        "the {place} is {a} or {b} {time}",
        "such {a} and also {b} news to {person}",
    ),
    "verb": (
        "i {a} and {b} the {thing} in our {place}",
        "we {a} or {b} that {thing} {time}",
        "you {a} but i {b} the {thing}",
        "they {a} and also {b} my {place}",
    ),
}
_NO_WORD = (
    "the {thing} is in our {place}",
    "we moved the {thing} {time}",
    "{person} took the {thing} to the {place}",
    "there is a {thing} near the {place}",
    "i put the {thing} in our {place}",
    "please send the {thing} {time}",
    "{person} has the {thing} {time}",
    "you can find the {thing} in our {place}",
    "the {place} opens {time}",
    "it takes an hour to reach the {place}",
)
_SLOTS = {
    "thing": "report letter ticket camera package folder printer bottle jacket table window picture".split(),
    "place": "office kitchen garden library station hallway market hotel".split(),
    "time": ("tomorrow", "this morning", "on monday", "on friday", "at noon", "after lunch", "again"),
    "person": ("daniel", "maria", "my brother", "my sister", "our neighbor", "the teacher"),
}
TOPIC_CHANGES = ("anyway", "by the way", "so anyway", "on another note", "meanwhile")
_MOST_WORDS = 9
# Sentences (without their opening) go to a split by a hash, so that none is heard in two.
_SENTENCE_SHARES = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}


@dataclass(frozen=True)
class _Turn:
    """What one turn is to say and show, before any of it is spoken or drawn."""

    item: str
    label: str
    words: tuple[str, ...]
    stressed_word: int
    text_emotion: str | None
    voice_emotion: str
    face: str  # a key of FACES


@dataclass(frozen=True)
class _Speaker:
    name: str
    gender: str
    voice: str
    pitch: float
    words_per_minute: float
    loudness: float  # RMS of the neutral voice
    face_width: float
    colours: np.ndarray  # (5, 3): background, hair, skin, eyes, lips


class _DialogueWriter:
    """Draws labels, items and sentences for one session."""

    def __init__(self, rng: np.random.Generator, split: str, difficulty: Difficulty):
        self._rng, self._split, self._difficulty = rng, split, difficulty
        self._owed: dict[str, list[tuple[str, str, str]]] = defaultdict(list)

    def write(self) -> list[_Turn]:
        turns: list[_Turn] = []
        for _ in range(self._rng.integers(8, 13)):
            turns.append(self._next(turns[-1] if turns else None))
        return turns

    def _next(self, previous: _Turn | None) -> _Turn:
        label = self._rng.choice(LABELS)
        if previous is not None:
            after_emotion = previous.label != "neutral"
            if after_emotion and previous.item != "cueless" and self._rng.random() < _CUELESS_CHANCE:
                return self._turn("cueless", previous.label, "neutral", "neutral", "neutral", opening=False)
            others = [name for name in LABELS if name != previous.label]
            label = previous.label if self._rng.random() < _STAY_CHANCE else self._rng.choice(others)
        items = _ITEM_WEIGHTS[label]
        item = self._rng.choice(list(items), p=np.array(list(items.values())) / sum(items.values()))
        text, voice, face = self._channels(item, label)
        needed = label == "neutral" and previous is not None and previous.label != "neutral"
        opening = needed or self._rng.random() < self._difficulty.topic_change
        return self._turn(str(item), str(label), text, voice, face, opening)

    def _channels(self, item: str, label: str) -> tuple[str | None, str, str]:
        """What words, voice and face show; None for words that disagree."""
        if item == "stressed_word":
            return None, "neutral", "neutral"
        if item == "flat_voice":
            return label, "neutral", "neutral"
        if item == "neutral_words":
            return "neutral", label, label if self._rng.random() < self._difficulty.weak_face else "neutral"
        if item == "masking_smile":
            text, voice = ((label, label), (label, "neutral"), ("neutral", label))[self._rng.integers(3)]
            return text, voice, "polite_smile"
        shown = [label] * 3
        if self._rng.random() < self._difficulty.channel_silent:
            shown[self._rng.integers(3)] = "neutral"
        return tuple(shown)

    def _turn(self, item: str, label: str, text: str | None, voice: str, face: str, opening: bool) -> _Turn:
        stressed = -1
        if text is None:
            kind, chosen, other = self._pair(label)
            first, second = (chosen, other) if self._rng.random() < 0.5 else (other, chosen)
            words = self._sentence(_TWO_WORDS[kind], opening, a=first, b=second)
            stressed = words.index(chosen)
        elif text == "neutral":
            words = self._sentence(_NO_WORD, opening)
        else:
            kind = self._rng.choice(list(WORDS[text]), p=_KIND_SHARES)
            words = self._sentence(_ONE_WORD[kind], opening, a=self._rng.choice(WORDS[text][kind]))
        return _Turn(item, label, words, stressed, text, voice, face)

    def _pair(self, label: str) -> tuple[str, str, str]:
        """(kind, word of the label, word of another emotion): half of the time a pair that was used the other way."""
        if self._owed[label] and self._rng.random() < 0.7:
            return self._owed[label].pop(0)
        rival = self._rng.choice([name for name in WORDS if name != label])
        kind = str(self._rng.choice(list(WORDS[label]), p=_KIND_SHARES))
        chosen, other = (str(self._rng.choice(WORDS[name][kind])) for name in (label, rival))
        self._owed[str(rival)].append((kind, other, chosen))
        return kind, chosen, other

    def _sentence(self, templates: Sequence[str], opening: bool, **words: str) -> tuple[str, ...]:
        while True:
            slots = {name: self._rng.choice(values) for name, values in _SLOTS.items()}
            sentence = str(self._rng.choice(templates)).format(**slots, **words)
            topic = str(self._rng.choice(TOPIC_CHANGES)) if opening else ""
            spoken = tuple(f"{topic} {sentence}".split())
            in_split = crc32(sentence.encode()) % 10 in _SENTENCE_SHARES[self._split]
            if in_split and len(spoken) <= _MOST_WORDS:
                return spoken


def generate_controlled_corpus(
    directory: str | Path,
    seed: int = 0,
    sessions: int = 8,
    dialogues_per_session: int = 25,
    num_workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    difficulty: Difficulty = Difficulty(),
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
    writer = _DialogueWriter(rng, SPLITS[task.session], task.difficulty)
    rows = []
    with SpeechSynthesizer(seed=int(rng.integers(1, 2**31))) as synthesizer:
        cast = _cast(task.seed, task.session, rng, task.difficulty)
        speakers = [_Performer(speaker, synthesizer, task, rng) for speaker in cast]
        for dialogue in range(task.dialogues):
            clock = 0.0
            for number, turn in enumerate(writer.write()):
                name = f"Ses{task.session + 1:02d}_D{dialogue:03d}_T{number:02d}"
                row = speakers[(dialogue + number) % 2].perform(turn, name)
                row |= {"dialogue_id": name.rsplit("_", 1)[0], "turn": number, "start": round(clock, 3)}
                row["end"] = row["start"] + row.pop("duration")
                clock = row["end"] + rng.uniform(0.2, 0.6)
                validate_row(row)
                rows.append(row)
    return rows


def _cast(seed: int, session: int, rng: np.random.Generator, difficulty: Difficulty) -> list[_Speaker]:
    """The woman and the man of a session; which voice goes to which session hangs on the seed alone."""
    deal = np.random.default_rng(seed)
    cast = []
    for gender, voices in (("female", _FEMALE_VOICES), ("male", _MALE_VOICES)):
        cast.append(
            _Speaker(
                name=f"Ses{session + 1:02d}{gender[0].upper()}",
                gender=gender,
                voice=str(deal.permutation(voices)[session]),
                pitch=rng.normal(0, 0.05),
                words_per_minute=rng.uniform(160, 190),
                loudness=0.03 * math.exp(rng.normal(0, difficulty.speaker_loudness)),
                face_width=rng.uniform(18, 23),
                colours=_face_colours(rng),
            )
        )
    return cast


class _Performer:
    """One speaker's voice and face: turns plans into clips and rows."""

    def __init__(
        self, speaker: _Speaker, synthesizer: SpeechSynthesizer, task: _SessionTask, rng: np.random.Generator
    ):
        self._speaker, self._synthesizer, self._task, self._rng = speaker, synthesizer, task, rng
        self._portrait = _draw_portrait(speaker)
        # Variants differ by 9 dB as shipped: one neutral sentence sets this speaker's level.
        plain = self._speak("there is a letter near the library".split(), [WordProsody()] * 7, NEUTRAL_RANGE)
        self._gain = speaker.loudness / float(np.sqrt(np.mean(plain.samples**2)))

    def perform(self, turn: _Turn, name: str) -> dict[str, Any]:
        audio, words, prosody = self._voice(turn)
        parameters = self._expression(turn, audio)
        audio_path, video_path = f"audio/{name}.wav", f"video/{name}.mp4"
        pcm = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
        soundfile.write(self._task.directory / audio_path, pcm, SAMPLE_RATE, subtype="PCM_16")
        _write_clip(self._task.directory / video_path, self._draw(parameters), pcm)
        row = make_row(
            id=name,
            corpus="controlled",
            speaker=self._speaker.name,
            gender=self._speaker.gender,
            session=f"Ses{self._task.session + 1:02d}",
            split=SPLITS[self._task.session],
            audio=audio_path,
            video=video_path,
            text=" ".join(turn.words),
            words=words,
            label=turn.label,
        )
        return row | {
            "item": turn.item,
            "stressed_word": turn.stressed_word,
            "text_emotion": turn.text_emotion,
            "voice_emotion": turn.voice_emotion,
            "face_emotion": "happy" if turn.face == "polite_smile" else turn.face,
            "word_prosody": [{key: round(value, 4) for key, value in word._asdict().items()} for word in prosody],
            "face_parameters": np.round(parameters, 4).tolist(),
            "face_times": [frame / FRAME_RATE for frame in range(len(parameters))],
            "duration": len(pcm) / SAMPLE_RATE,
        }

    def _speak(self, words: Sequence[str], prosody: Sequence[WordProsody], pitch_range: float):
        speaker = self._speaker
        return self._synthesizer.speak(
            words, prosody, speaker.voice, speaker.pitch, speaker.words_per_minute, pitch_range
        )

    def _voice(self, turn: _Turn) -> tuple[np.ndarray, list[dict[str, Any]], list[WordProsody]]:
        """(samples,) at 16 kHz with silence around and noise over it, the words with their times, what was asked."""
        rng, difficulty = self._rng, self._task.difficulty
        style, strength = VOICES[turn.voice_emotion], rng.uniform(*difficulty.voice_strength)
        pitch, half_energy, rate = rng.normal(0, difficulty.voice_noise, 3)
        pitch, rate = pitch + strength * style.pitch, rate + strength * style.rate
        energy = 2 * half_energy + strength * style.energy
        changes = rng.normal(0, difficulty.word_noise, (len(turn.words), 3)) * (1, 2, 1)
        if turn.stressed_word >= 0:
            changes[turn.stressed_word] += np.array(STRESS) * rng.uniform(*difficulty.stress, 3)
        # The utterance's energy comes last: shape_voice keeps the level it is given.
        spoken = [WordProsody(pitch + word[0], word[1], rate + word[2]) for word in changes]
        speech = self._speak(turn.words, spoken, NEUTRAL_RANGE + strength * style.range)
        voice = shape_voice(speech.samples, strength * style.brightness, strength * style.roughness)
        voice = voice * self._gain * math.exp(energy)
        before, after = (int(rng.uniform(0.1, 0.25) * SAMPLE_RATE) for _ in range(2))
        audio = np.pad(voice, (before, after))
        snr = 10 ** (rng.uniform(*difficulty.snr_db) / 20)
        audio = audio + background_noise(len(audio), rng) * np.sqrt(np.mean(voice**2)) / snr
        times = np.round(speech.word_times + before / SAMPLE_RATE, 4)
        words = [
            {"word": word, "start": float(start), "end": float(end)}
            for word, (start, end) in zip(turn.words, times, strict=True)
        ]
        return audio, words, [word._replace(energy=word.energy + energy) for word in spoken]

    def _expression(self, turn: _Turn, audio: np.ndarray) -> np.ndarray:
        """(frames, 5) the face's parameters; the lips open with the loudness of the voice, the eyes blink."""
        rng, difficulty = self._rng, self._task.difficulty
        frames = math.ceil(len(audio) / SAMPLE_RATE * FRAME_RATE)
        strength = rng.uniform(*difficulty.face_strength) * (0.6 if turn.item == "neutral_words" else 1.0)
        rest = FACES["neutral"]
        face = rest + strength * (FACES[turn.face] - rest) + rng.normal(0, difficulty.face_noise, rest.size)
        parameters = face + rng.normal(0, difficulty.frame_noise, (frames, rest.size))
        step = SAMPLE_RATE // FRAME_RATE
        loudness = np.sqrt(np.pad(audio, (0, frames * step - len(audio))).reshape(frames, step).var(axis=1))
        parameters[:, 1] += 0.8 * np.clip(loudness / (2 * self._speaker.loudness), 0, 1)
        parameters[rng.random(frames) < 0.04, 4] = 0.05
        return np.clip(parameters, (-1, 0, -1, -1, 0), 1)

    def _draw(self, parameters: np.ndarray) -> np.ndarray:
        """(frames, 64, 64, 3) uint8: the speaker's portrait with these expressions, the head moving a little."""
        frames = _draw_features(self._portrait, self._speaker, parameters)
        light = self._rng.uniform(0.85, 1.1)
        drift = np.clip(np.cumsum(self._rng.integers(-1, 2, (len(frames), 2)), axis=0), -2, 2)
        for index, shift in enumerate(drift + self._rng.integers(-2, 3, 2)):
            frames[index] = np.roll(frames[index], shift, axis=(0, 1))
        return np.clip(frames * light, 0, 255).astype(np.uint8)


_CENTRE_X, _CENTRE_Y = FRAME_SIZE / 2, 34
_EYES = ((_CENTRE_X - 8.5, 1.0), (_CENTRE_X + 8.5, -1.0))  # x, and the direction of the nose
_EYE_Y, _BROW_Y, _MOUTH_Y, _MOUTH_WIDTH = 29.0, 21.5, 48.0, 9.0


def _face_colours(rng: np.random.Generator) -> np.ndarray:
    """(5, 3) RGB of background, hair, skin, eyes, lips: skin, hair and eyes between a dark and a light extreme."""
    extremes = {
        "hair": ((25, 18, 15), (190, 150, 90)),
        "skin": ((110, 72, 52), (245, 212, 188)),
        "eyes": ((35, 25, 20), (70, 110, 140)),
    }
    mixed = {name: np.array(low) + rng.random() * np.subtract(high, low) for name, (low, high) in extremes.items()}
    lips = 0.55 * mixed["skin"] + 0.45 * np.array((150, 30, 40))
    return np.stack([rng.uniform(60, 220, 3), mixed["hair"], mixed["skin"], mixed["eyes"], lips])


def _draw_portrait(speaker: _Speaker) -> np.ndarray:
    """(64, 64, 3) the face without its features."""
    y, x = np.mgrid[:FRAME_SIZE, :FRAME_SIZE].astype(np.float32)
    x = x - _CENTRE_X
    background, hair, skin = speaker.colours[:3]
    picture = np.broadcast_to(background, (FRAME_SIZE, FRAME_SIZE, 3)).astype(np.float32)
    width = speaker.face_width
    picture = _paint(picture, hair, 8 * (1.06 - np.hypot(x / (width + 3), (y - 30) / 24)))
    picture = _paint(picture, skin, 8 * (1.06 - np.hypot(x / width, (y - 36) / 22)))
    return _paint(picture, 0.8 * skin, 1.2 - np.hypot(x / 1.2, (y - 38) / 4))


def _draw_features(portrait: np.ndarray, speaker: _Speaker, parameters: np.ndarray) -> np.ndarray:
    """(frames, 64, 64, 3) float: brows, eyes and mouth as the (frames, 5) parameters say."""
    _, hair, _, iris, lips = speaker.colours
    curvature, openness, slant, height, eye = parameters.astype(np.float32).T[:, :, None, None]
    frames = np.repeat(portrait[None], len(parameters), axis=0)

    for eye_x, nose in _EYES:
        area, x, y = _window(eye_x, _EYE_Y, 8, 6)
        lid = 0.3 + 4.0 * eye
        white = 2 * (1 - np.hypot(x / 5.5, y / lid)) * np.minimum(lid, 2)
        frames[area] = _paint(frames[area], np.array((245, 245, 245)), white)
        frames[area] = _paint(frames[area], iris, np.minimum(2.6 - np.hypot(x, y), white))
        area, x, y = _window(eye_x, _BROW_Y, 8, 8)
        line = -2.5 * height - 3.0 * slant * (x * nose / 6) + 0.03 * x**2
        frames[area] = _paint(frames[area], 0.6 * hair, np.minimum(1.6 - np.abs(y - line), 6.5 - np.abs(x)))

    area, x, y = _window(_CENTRE_X, _MOUTH_Y, 12, 11)
    across = 1 - (x / _MOUTH_WIDTH) ** 2
    line = 4.0 * curvature * (2 * across - 1)
    inside = 4.0 * openness * np.maximum(across, 0)
    ends = 2 * (_MOUTH_WIDTH - np.abs(x))
    frames[area] = _paint(frames[area], lips, np.minimum(inside + 1.6 - np.abs(y - line), ends))
    frames[area] = _paint(frames[area], np.array((60, 15, 20)), np.minimum(inside - np.abs(y - line), ends))
    return frames


def _window(x: float, y: float, half_width: int, half_height: int) -> tuple[tuple, np.ndarray, np.ndarray]:
    """Index of a part of every frame, and its pixels' coordinates relative to (x, y)."""
    rows = slice(int(y) - half_height, int(y) + half_height + 1)
    columns = slice(int(x) - half_width, int(x) + half_width + 1)
    grid_y, grid_x = np.mgrid[rows, columns].astype(np.float32)
    return (slice(None), rows, columns), grid_x - x, grid_y - y


def _paint(picture: np.ndarray, colour: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The picture (..., 3) covered by a colour where `depth` (...) is over 0.5 pixels inside the shape; soft edges."""
    cover = np.clip(depth + 0.5, 0, 1)[..., None].astype(np.float32)
    return picture * (1 - cover) + cover * colour.astype(np.float32)


def _write_clip(path: Path, frames: np.ndarray, pcm: np.ndarray) -> None:
    """An mp4 with H.264 pictures (frames, height, width, 3) and AAC sound (samples,) int16."""
    # bitexact, one thread: no version stamps, nothing that depends on timing.
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "ultrafast", "crf": "18"})
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        video.codec_context.thread_count = 1
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        block = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        block.sample_rate = SAMPLE_RATE
        container.mux(sound.encode(block))
        container.mux(sound.encode())


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
