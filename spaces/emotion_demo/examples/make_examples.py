"""Make the example clips: espeak-ng's voice and drawn faces, so that nobody's recording has to be published.

    python make_examples.py     # needs mer-hf[controlled,video]

They show how the page works, and are not what the model was made for: no person speaks or looks like this.
"""

import math
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile

from mer_hf.data.controlled_speakers import NEUTRAL_RANGE, VOICES
from mer_hf.data.drawn_faces import FACES, FRAME_RATE, draw_features, draw_portrait, face_colours
from mer_hf.data.speech_synthesis import SAMPLE_RATE, SpeechSynthesizer, WordProsody, shape_voice

HERE = Path(__file__).parent
SIZE, HEIGHT, WIDTH = 5, 360, 480  # of a drawn pixel, and of the picture
BACKGROUND = (188, 200, 212)
VOICE, LOUDNESS, PAUSE = "f2", 0.06, 0.45
FACE_SEED = 1  # colours in which the cascade finds the face
HAPPY, ANGRY, SAD = "we won i love you all", "stop shouting at me right now", "she is gone and i feel so alone"
TALK = (
    ("neutral", "my train leaves at ten past nine"),
    ("neutral", "i will take some sandwiches with me"),
    ("happy", "guess what they gave me that job"),
    ("happy", "i am so happy we must celebrate"),
    ("sad", "but i will miss my friends"),
    ("sad", "leaving this town makes me cry"),
    ("angry", "and nobody asked me what i want"),
    ("angry", "i hate it when they ignore me"),
)


def main() -> None:
    with SpeechSynthesizer(seed=1) as synthesizer:
        happy = _say(synthesizer, "happy", HAPPY)
        _write_video(HERE / "happy.mp4", [("happy", happy)])
        angry = _say(synthesizer, "angry", ANGRY)
        _write_video(HERE / "smiling_anger.mp4", [("polite_smile", angry)])
        sad = _say(synthesizer, "sad", SAD)
        soundfile.write(HERE / "sad.flac", sad, SAMPLE_RATE, subtype="PCM_16")
        _write_video(HERE / "talk.mp4", [(mood, _say(synthesizer, mood, text)) for mood, text in TALK])


def _say(synthesizer: SpeechSynthesizer, mood: str, text: str) -> np.ndarray:
    """(samples,) at 16 kHz of a sentence in one of the controlled corpus's voices, with a pause after it."""
    style, words = VOICES[mood], text.split()
    prosody = [WordProsody(style.pitch, 0.0, style.rate)] * len(words)
    speech = synthesizer.speak(words, prosody, VOICE, pitch_range=NEUTRAL_RANGE + style.range)
    voice = shape_voice(speech.samples, style.brightness, style.roughness)
    voice = voice * LOUDNESS / np.sqrt(np.mean(voice**2)) * math.exp(style.energy)
    noise = np.random.default_rng(0).normal(0, 1e-3, len(voice) + round(2 * PAUSE * SAMPLE_RATE))
    noise[round(PAUSE * SAMPLE_RATE) :][: len(voice)] += voice
    return np.clip(noise, -1, 1)


def _write_video(path: Path, parts: list[tuple[str, np.ndarray]]) -> None:
    """An mp4 a third as large as the controlled corpus's: what is watched in a browser may be compressed harder."""
    frames = np.concatenate([_draw(face, sound) for face, sound in parts])
    samples = np.round(np.concatenate([sound for _, sound in parts]) * 32767).astype(np.int16)
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryslow", "crf": "26"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1  # the same file from any machine
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=32_000)
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        block.sample_rate = SAMPLE_RATE
        container.mux(sound.encode(block))
        container.mux(sound.encode())


def _draw(face: str, sound: np.ndarray) -> np.ndarray:
    """(frames, HEIGHT, WIDTH, 3) uint8 of a face that moves its lips with the sound."""
    count, step = math.ceil(len(sound) / SAMPLE_RATE * FRAME_RATE), SAMPLE_RATE // FRAME_RATE
    parameters = np.repeat(FACES[face][None], count, axis=0)
    loudness = np.sqrt(np.pad(sound, (0, count * step - len(sound))).reshape(count, step).var(axis=1))
    parameters[:, 1] += 0.6 * np.clip(loudness / (2 * LOUDNESS), 0, 1)
    colours = face_colours(np.random.default_rng(FACE_SEED))
    colours[0] = BACKGROUND
    drawn = np.clip(draw_features(draw_portrait(colours, 20), colours, np.clip(parameters, -1, 1)), 0, 255)
    picture = np.full((count, HEIGHT, WIDTH, 3), BACKGROUND, np.uint8)
    side = 64 * SIZE
    left = (WIDTH - side) // 2
    for index, frame in enumerate(drawn.astype(np.uint8)):
        large = cv2.resize(frame, (side, side), interpolation=cv2.INTER_CUBIC)
        picture[index, HEIGHT - side :, left : left + side] = large
    return picture


if __name__ == "__main__":
    main()
