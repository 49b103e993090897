"""The schematic faces of the controlled corpus: colours, a portrait, features that move, and the clip's file."""

from pathlib import Path

import av
import numpy as np

from .speech_synthesis import SAMPLE_RATE

FACE_PARAMETERS = ("mouth_curvature", "mouth_openness", "brow_slant", "brow_height", "eye_openness")
FRAME_RATE = 8
FRAME_SIZE = 64

# Rows: mouth curvature (1 = smile), mouth openness, brow slant (1 = inner ends up), brow height, eye openness.
FACES = {
    "neutral": np.array([0.0, 0.0, 0.0, 0.0, 0.8]),
    "happy": np.array([0.8, 0.15, 0.0, 0.25, 0.45]),
    "sad": np.array([-0.6, 0.0, 0.7, 0.1, 0.6]),
    "angry": np.array([-0.35, 0.1, -0.8, -0.5, 0.95]),
    "polite_smile": np.array([0.7, 0.1, 0.0, 0.05, 0.8]),
}

_CENTRE_X, _CENTRE_Y = FRAME_SIZE / 2, 34
_EYES = ((_CENTRE_X - 8.5, 1.0), (_CENTRE_X + 8.5, -1.0))  # x, and the direction of the nose
_EYE_Y, _BROW_Y, _MOUTH_Y, _MOUTH_WIDTH = 29.0, 21.5, 48.0, 9.0


def face_colours(rng: np.random.Generator) -> np.ndarray:
    """(5, 3) RGB of background, hair, skin, eyes, lips: skin, hair and eyes between a dark and a light extreme."""
    extremes = {
        "hair": ((25, 18, 15), (190, 150, 90)),
        "skin": ((110, 72, 52), (245, 212, 188)),
        "eyes": ((35, 25, 20), (70, 110, 140)),
    }
    mixed = {name: np.array(low) + rng.random() * np.subtract(high, low) for name, (low, high) in extremes.items()}
    lips = 0.55 * mixed["skin"] + 0.45 * np.array((150, 30, 40))
    return np.stack([rng.uniform(60, 220, 3), mixed["hair"], mixed["skin"], mixed["eyes"], lips])


def draw_portrait(colours: np.ndarray, width: float) -> np.ndarray:
    """(64, 64, 3) the face without its features; `colours` as of `face_colours`, `width` half the face's in pixels."""
    y, x = np.mgrid[:FRAME_SIZE, :FRAME_SIZE].astype(np.float32)
    x = x - _CENTRE_X
    background, hair, skin = colours[:3]
    picture = np.broadcast_to(background, (FRAME_SIZE, FRAME_SIZE, 3)).astype(np.float32)
    picture = _paint(picture, hair, 8 * (1.06 - np.hypot(x / (width + 3), (y - 30) / 24)))
    picture = _paint(picture, skin, 8 * (1.06 - np.hypot(x / width, (y - 36) / 22)))
    return _paint(picture, 0.8 * skin, 1.2 - np.hypot(x / 1.2, (y - 38) / 4))


def draw_features(portrait: np.ndarray, colours: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """(frames, 64, 64, 3) float: brows, eyes and mouth as the (frames, 5) parameters say."""
    _, hair, _, iris, lips = colours
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


def write_clip(path: Path, frames: np.ndarray, pcm: np.ndarray) -> None:
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
