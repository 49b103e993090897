"""Who speaks in the controlled corpus: voices, faces, and how a turn that was written becomes a clip and a row.

How an emotion sounds (`VOICES`) is a convention of this file, as how it looks is one of `drawn_faces`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .controlled_dialogues import Difficulty, Turn
from .drawn_faces import FACES, FRAME_RATE, draw_features, draw_portrait, face_colours, write_clip
from .schema import make_row
from .speech_synthesis import SAMPLE_RATE, SpeechSynthesizer, WordProsody, background_noise, shape_voice


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

_FEMALE_VOICES = ("f1", "f2", "f3", "f4", "f5", "linda", "steph", "anika")
_MALE_VOICES = ("m1", "m2", "m3", "m4", "m5", "m7", "michel", "sandro")


@dataclass(frozen=True)
class Speaker:
    """Who speaks in a session, and how they sound and look when nothing moves them."""

    name: str
    gender: str
    voice: str
    pitch: float
    words_per_minute: float
    loudness: float  # RMS of the neutral voice
    face_width: float
    colours: np.ndarray  # (5, 3): background, hair, skin, eyes, lips


def cast(seed: int, session: int, rng: np.random.Generator, difficulty: Difficulty) -> list[Speaker]:
    """The woman and the man of a session; which voice goes to which session hangs on the seed alone."""
    deal = np.random.default_rng(seed)
    chosen = []
    for gender, voices in (("female", _FEMALE_VOICES), ("male", _MALE_VOICES)):
        chosen.append(
            Speaker(
                name=f"Ses{session + 1:02d}{gender[0].upper()}",
                gender=gender,
                voice=str(deal.permutation(voices)[session]),
                pitch=rng.normal(0, 0.05),
                words_per_minute=rng.uniform(160, 190),
                loudness=0.03 * math.exp(rng.normal(0, difficulty.speaker_loudness)),
                face_width=rng.uniform(18, 23),
                colours=face_colours(rng),
            )
        )
    return chosen


class Performer:
    """One speaker's voice and face: turns plans into clips and rows."""

    def __init__(
        self,
        speaker: Speaker,
        synthesizer: SpeechSynthesizer,
        directory: Path,
        difficulty: Difficulty,
        rng: np.random.Generator,
    ):
        self._speaker, self._synthesizer, self._directory = speaker, synthesizer, directory
        self._difficulty, self._rng = difficulty, rng
        self._portrait = draw_portrait(speaker.colours, speaker.face_width)
        # Variants differ by 9 dB as shipped: one neutral sentence sets this speaker's level.
        plain = self._speak("there is a letter near the library".split(), [WordProsody()] * 7, NEUTRAL_RANGE)
        self._gain = speaker.loudness / float(np.sqrt(np.mean(plain.samples**2)))

    def perform(self, turn: Turn, name: str) -> dict[str, Any]:
        """Write audio/<name>.wav and video/<name>.mp4 below the directory; the turn's row, its place in the session
        not filled in, with the clip's `duration` in seconds."""
        audio, words, prosody = self._voice(turn)
        parameters = self._expression(turn, audio)
        audio_path, video_path = f"audio/{name}.wav", f"video/{name}.mp4"
        pcm = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
        soundfile.write(self._directory / audio_path, pcm, SAMPLE_RATE, subtype="PCM_16")
        write_clip(self._directory / video_path, self._draw(parameters), pcm)
        row = make_row(
            id=name,
            corpus="controlled",
            speaker=self._speaker.name,
            gender=self._speaker.gender,
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

    def _voice(self, turn: Turn) -> tuple[np.ndarray, list[dict[str, Any]], list[WordProsody]]:
        """(samples,) at 16 kHz with silence around and noise over it, the words with their times, what was asked."""
        rng, difficulty = self._rng, self._difficulty
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

    def _expression(self, turn: Turn, audio: np.ndarray) -> np.ndarray:
        """(frames, 5) the face's parameters; the lips open with the loudness of the voice, the eyes blink."""
        rng, difficulty = self._rng, self._difficulty
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
        frames = draw_features(self._portrait, self._speaker.colours, parameters)
        light = self._rng.uniform(0.85, 1.1)
        drift = np.clip(np.cumsum(self._rng.integers(-1, 2, (len(frames), 2)), axis=0), -2, 2)
        for index, shift in enumerate(drift + self._rng.integers(-2, 3, 2)):
            frames[index] = np.roll(frames[index], shift, axis=(0, 1))
        return np.clip(frames * light, 0, 255).astype(np.uint8)
