"""Speech with exact word times from espeak-ng, called through ctypes.

espeak-ng is GPL-3 and therefore an optional extra, loaded at run time: `pip install "mer-hf[controlled]"`.

Two properties of the library shape this file. Its noise generator and filters carry state from one utterance to the
next, so every `SpeechSynthesizer` loads a private copy of the shared library and seeds it: the same seed and the same
calls in the same order give the same samples, whatever else the process has said before. And it fails silently: it
speaks an unknown voice variant with the default voice, so names are checked against the variants it ships; it drops
words from the middle of a sentence whose words all carry three SSML attributes, so only pitch and rate go through SSML
and a word's loudness is a gain over its span; it takes some pairs ("in the", "for the") for one word, which is
refused.
"""

import ctypes
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import lfilter, resample_poly

SAMPLE_RATE = 16_000
LANGUAGE = "en-us"

# Values of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DO_NOT_EXIT = 0x0001, 0x8000
_UTF8, _SSML = 0x01, 0x10
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_END_OF_EVENTS, _WORD_EVENT, _PHONEME_EVENT = 0, 1, 7
_BASE_VOLUME = 50  # half the default: some variants clip inside espeak-ng otherwise
_GAIN_RAMP = 0.02  # seconds over which the gain moves from one word's to the next


class WordProsody(NamedTuple):
    """How one word departs from the voice's plain way: natural logarithms of ratios, 0 = no change.

    `pitch` of the fundamental frequency, `energy` of the amplitude, `rate` of the speaking rate (negative = longer).
    """

    pitch: float = 0.0
    energy: float = 0.0
    rate: float = 0.0


class Speech(NamedTuple):
    """samples (time,) float32 in [-1, 1] at 16 kHz from the first word's onset; word_times (words, 2) seconds."""

    samples: np.ndarray
    word_times: np.ndarray


class SpeechSynthesizer:
    """One seeded, private instance of espeak-ng.

    Raises:
        ImportError: when espeakng-loader is not installed.
    """

    def __init__(self, seed: int = 0):
        loader = import_espeak_loader()
        self._variants = voice_variants()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            # The loader of shared libraries knows a file by its path: a copy brings its own static state.
            self._library = _declare(ctypes.CDLL(shutil.copy(loader.get_library_path(), folder)))
        data_path = str(loader.get_data_path()).encode()
        options = _PHONEME_EVENTS | _DO_NOT_EXIT
        self._native_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, options)
        if self._native_rate <= 0:
            raise RuntimeError(f"espeak-ng did not start with the data in {data_path.decode()}")
        self._chunks: list[bytes] = []
        self._events: list[tuple[int, int, bytes]] = []
        self._callback = _Callback(self._receive)  # kept: ctypes frees a callback nobody refers to
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(seed)

    def __enter__(self) -> "SpeechSynthesizer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._library.espeak_Terminate()

    def speak(
        self,
        words: Sequence[str],
        word_prosody: Sequence[WordProsody] | None = None,
        voice: str = "f2",
        pitch: float = 0.0,
        words_per_minute: float = 175.0,
        pitch_range: float = 50.0,
    ) -> Speech:
        """Say `words` (lower case, no punctuation), each with its own prosody.

        `voice` is a variant's name (see `voice_variants`), `pitch` the natural logarithm of a ratio to that variant's
        own pitch, kept by espeak-ng within half and double; `pitch_range` 0 is monotonous, 50 usual, 100 lively.

        Raises:
            ValueError: for an unknown variant, no words, or another number of prosodies than of words.
            RuntimeError: when espeak-ng refuses the text or reports another number of words.
        """
        word_prosody = [WordProsody()] * len(words) if word_prosody is None else word_prosody
        if voice not in self._variants:
            raise ValueError(f"voice {voice!r} is not a variant of espeak-ng; it has {', '.join(self._variants)}")
        if not words or len(words) != len(word_prosody):
            raise ValueError(
                f"{len(words)} words and {len(word_prosody)} word_prosody entries; need as many, not none"
            )
        self._set_voice(voice, words_per_minute, pitch_range)
        self._say(_ssml(words, word_prosody, pitch))
        spans = word_spans(self._events, sum(map(len, self._chunks)) // 2)
        if len(spans) != len(words):
            raise RuntimeError(f"espeak-ng spoke {len(spans)} words of the {len(words)} in {' '.join(words)!r}")
        samples = np.frombuffer(b"".join(self._chunks), np.int16).astype(np.float32) / 32768
        first, last = spans[0][0], spans[-1][1]
        # The last sound rings on for a moment after its nominal end.
        samples = samples[first : last + self._native_rate // 50]
        common = math.gcd(SAMPLE_RATE, self._native_rate)
        samples = resample_poly(samples, SAMPLE_RATE // common, self._native_rate // common).astype(np.float32)
        times = (np.array(spans) - first) / self._native_rate
        return Speech(_apply_word_energy(samples, times, [word.energy for word in word_prosody]), times)

    def _set_voice(self, voice: str, words_per_minute: float, pitch_range: float) -> None:
        if self._library.espeak_ng_SetVoiceByName(f"{LANGUAGE}+{voice}".encode()) != 0:
            raise RuntimeError(f"espeak-ng could not load the voice {LANGUAGE}+{voice}")
        for parameter, value in ((_RATE, words_per_minute), (_VOLUME, _BASE_VOLUME), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, round(value), 0)

    def _say(self, ssml: str) -> None:
        self._chunks, self._events = [], []
        text = ssml.encode() + b"\0"
        status = self._library.espeak_Synth(text, len(text), 0, 1, 0, _UTF8 | _SSML, None, None)
        if status != 0:
            raise RuntimeError(f"espeak-ng returned status {status} for {ssml!r}")

    def _receive(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        for event in events:
            if event.type == _END_OF_EVENTS:
                break
            self._events.append((event.type, event.sample, event.id.name))
        return 0


def import_espeak_loader() -> ModuleType:
    """The `espeakng_loader` module. Raises ImportError saying what to install when it is missing."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            'speech synthesis needs espeak-ng, an optional extra: pip install "mer-hf[controlled]"'
        ) from error
    return espeakng_loader


def voice_variants() -> tuple[str, ...]:
    """Names of the voice variants that the installed espeak-ng ships."""
    folder = Path(import_espeak_loader().get_data_path()) / "voices" / "!v"
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_file()))


def word_spans(events: Sequence[tuple[int, int, bytes]], total_samples: int) -> list[tuple[int, int]]:
    """[start, end) in samples of each word, from espeak-ng's (type, sample, phoneme) events.

    A word runs from its first phoneme that is no pause to the pause that closes it, or to the next word.
    """
    words: list[list[tuple[int, bool]]] = []
    for kind, sample, name in events:
        if kind == _WORD_EVENT:
            words.append([])
        elif kind == _PHONEME_EVENT and words and name:
            words[-1].append((sample, name.startswith(b"_")))
    spans = []
    for phonemes, following in zip(words, [*words[1:], [(total_samples, True)]], strict=True):
        sounds = [index for index, (_, is_pause) in enumerate(phonemes) if not is_pause]
        if not sounds:
            continue
        start, after = phonemes[sounds[0]][0], [*phonemes[sounds[-1] + 1 :], *following, (total_samples, True)]
        spans.append((start, min(after[0][0], total_samples)))
    return spans


def shape_voice(samples: np.ndarray, brightness: float, roughness: float) -> np.ndarray:
    """Colour a voice without changing its level: samples (time,) -> (time,).

    `brightness` in [-1, 1] tilts the spectrum: negative dulls (a low voice effort), positive sharpens (a raised one).
    `roughness` in [0, 1] adds what harsh voices have: peaks pressed flat, and an amplitude flutter of 70 Hz.
    """
    level = np.sqrt(np.mean(samples**2)) + 1e-9
    pole = 0.85
    dull = lfilter([1 - pole], [1, -pole], samples)
    shaped = samples + brightness * ((samples - dull) if brightness > 0 else (samples - dull) * 0.8)
    if roughness > 0:
        pressed = np.tanh(shaped / level * (1 + roughness)) * level
        flutter = 1 + 0.5 * roughness * np.sin(2 * np.pi * 70 * np.arange(len(samples)) / SAMPLE_RATE)
        shaped = ((1 - roughness) * shaped + roughness * pressed) * flutter
    return shaped * level / (np.sqrt(np.mean(shaped**2)) + 1e-9)


def background_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) room noise of unit level: white noise with the highs rolled off."""
    noise = lfilter([1.0], [1, -0.7], rng.standard_normal(length))
    return noise / np.sqrt(np.mean(noise**2))


def _apply_word_energy(samples: np.ndarray, times: np.ndarray, energy: Sequence[float]) -> np.ndarray:
    """samples (time,) with word i of times (words, 2) seconds scaled by exp(energy[i])."""
    gain = np.ones(len(samples))
    for (start, end), change in zip((times * SAMPLE_RATE).astype(int), energy, strict=True):
        gain[start:end] = math.exp(change)
    ramped = uniform_filter1d(gain, int(_GAIN_RAMP * SAMPLE_RATE), mode="nearest")
    return (samples * ramped).astype(np.float32)


def _ssml(words: Sequence[str], prosody: Sequence[WordProsody], pitch: float) -> str:
    """One <prosody> element a word. espeak-ng's pitch parameter is 50 + 50 octaves; its rate is a percentage."""
    spoken = []
    for word, change in zip(words, prosody, strict=True):
        level, rate = round(50 + 50 * (pitch + change.pitch) / math.log(2)), round(100 * math.exp(change.rate))
        spoken.append(f'<prosody pitch="{min(max(level, 0), 99)}" rate="{rate}%">{word}</prosody>')
    return f"<speak>{' '.join(spoken)}</speak>"


class _EventId(ctypes.Union):
    # espeak-ng writes a phoneme's name into these eight bytes; a name of eight is not closed by a zero.
    _fields_ = (("number", ctypes.c_int), ("pointer", ctypes.c_char_p), ("name", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Argument types of the calls above: without them ctypes would cut pointers and sizes to 32 bits."""
    number, text = ctypes.c_int, ctypes.c_char_p
    library.espeak_Initialize.argtypes = [number, number, text, number]
    library.espeak_SetSynthCallback.argtypes = [_Callback]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetVoiceByName.argtypes = [text]
    library.espeak_SetParameter.argtypes = [number, number, number]
    unsigned, pointer = ctypes.c_uint, ctypes.c_void_p
    library.espeak_Synth.argtypes = [text, ctypes.c_size_t, unsigned, number, unsigned, unsigned, pointer, pointer]
    return library
