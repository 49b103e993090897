"""What the tests of the Space share: small models to run it with, clips good and bad, and the running Space itself."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from transformers import ResNetConfig, ViTImageProcessor

from mer_hf import (
    FilterbankConfig,
    LateFusionForEmotionClassification,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    SpectrogramConfig,
    WordTableConfig,
    load_frames,
    word_tokenizer,
)
from mer_hf.hub import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "spaces" / "emotion_demo"
EXAMPLES = json.loads((SPACE / "examples" / "examples.json").read_text(encoding="utf-8"))
HAPPY, SAD, TALK = (SPACE / "examples" / name for name in ("happy.mp4", "sad.flac", "talk.mp4"))
SAID = {example["file"]: example["transcript"] for example in EXAMPLES}
"""What is said in each example clip."""
LABELS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
RAVDESS_SAYS = "kids are talking by the door"
EVERYTHING = ["voice", "words", "face"]
RATE = 16_000
GAINS = {"speech": 4.0, "words": 8.0, "face": 2.0}
"""By how much each branch's weights are larger than at the start of a training."""
START_SECONDS = 180
"""Within which the Space must serve; far above what it needs, for machines that do much else."""


# -- Models


def save_fusion(folder: Path) -> Path:
    """A late fusion of untrained voice, words and face, as small as they get."""
    torch.manual_seed(0)
    processor = _processor()
    small = {"network": "unimodal", "hidden_size": 8, "projection_size": 8, "classifier_size": 8, **_labels()}
    face = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    branches = {
        "speech": {"audio_config": FilterbankConfig(conv_dims=(8, 8, 8))},
        "words": {"text_config": WordTableConfig(vocab_size=len(processor.tokenizer), embedding_dim=8)},
        "face": {"vision_config": face},
    }
    models = {name: MMANForEmotionClassification(MMANConfig(**small, **own)) for name, own in branches.items()}
    for name, model in models.items():  # untrained, they hardly listen: make them, so that there is something to show
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(GAINS[name] if parameter.dim() > 1 else 0.1)
        model.config.calibration_temperature = 0.5
    return save_checkpoint(LateFusionForEmotionClassification.from_branches(models), processor, folder)


def save_aligning(folder: Path) -> Path:
    """Untrained voice and words of a model that learns which sound belongs to which word."""
    torch.manual_seed(0)
    processor = _processor()
    config = LearnedAlignmentConfig(
        audio_config=SpectrogramConfig(hidden_size=8),
        text_config=WordTableConfig(vocab_size=len(processor.tokenizer), embedding_dim=8),
        hidden_size=4,
        **_labels(),
    )
    return save_checkpoint(LearnedAlignmentForEmotionClassification(config), processor, folder)


def _labels() -> dict[str, dict]:
    return {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}


def _processor() -> MerProcessor:
    images = ViTImageProcessor(size={"height": 32, "width": 32})
    tokenizer = word_tokenizer([RAVDESS_SAYS, *SAID.values()])
    return MerProcessor.default(tokenizer=tokenizer, image_processor=images, num_frames=4, crop_faces=True, trim_db=30)


# -- Clips


def write_sound(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """samples (n,) in [-1, 1]; the name's ending says in which format."""
    soundfile.write(path, samples, rate)
    return path


def melody(seconds: float = 2.0) -> np.ndarray:
    """(samples,) at 16 kHz: a plucked tune, two notes a second, no voice."""
    clock = np.arange(RATE // 2) / RATE
    notes = 220 * 2 ** (np.array([0, 4, 7, 12, 11, 7, 5, 2]) / 12)
    plucks = [
        np.exp(-clock / 0.3) * sum(np.sin(2 * np.pi * note * k * clock) / k for k in (1, 2, 3)) for note in notes
    ]
    return 0.2 * np.resize(np.concatenate(plucks), round(seconds * RATE))


def write_pictures(path: Path, faces: int, seconds: float = 1.0) -> Path:
    """An mp4 without sound of so many faces side by side, 0 = an empty wall."""
    face = load_frames(HAPPY, 1)[0][0]
    blank = np.full_like(face, 200)
    picture = np.concatenate([face] * faces if faces else [blank], axis=1)
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=8)
        video.height, video.width, video.pix_fmt = *picture.shape[:2], "yuv420p"
        for _ in range(round(8 * seconds)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return path


def write_bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be read, each with what its message must say."""
    folder.mkdir(parents=True, exist_ok=True)
    empty, noise, notes = folder / "empty.mp4", folder / "broken.mp4", folder / "notes.txt"
    empty.write_bytes(b"")
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    notes.write_text("Dear diary", encoding="utf-8")
    long = write_sound(folder / "twenty_minutes.flac", np.zeros(20 * 60 * 4000), 4000)
    silent = write_sound(folder / "silent.wav", np.zeros(RATE))
    return {
        "empty": (empty, "0 bytes"),
        "broken": (noise, "Not a readable media file"),
        "no media": (notes, "Not a readable media file"),
        "too long": (long, "20:00 long; this demo takes up to 10:00"),
        "silent": (silent, "silent"),
    }


# -- The Space


@dataclass(frozen=True)
class Served:
    """A running Space."""

    url: str
    pid: int
    log: Path
    outside: Path
    """a file with a line for each connection that it tried to make to another machine"""

    def memory(self, name: str = "VmRSS") -> float:
        """Megabytes; VmHWM: the most so far."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name))


GUARD = """
import os, sys

def refuse_other_machines(event, arguments):
    host = None
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    if isinstance(host, bytes):
        host = host.decode()
    if host not in (None, "", "0.0.0.0", "127.0.0.1", "::1", "localhost"):
        with open(os.environ["MER_TEST_OUTSIDE"], "a") as file:
            file.write(f"{event} {host}\\n")
        raise OSError(f"the tests allow no connection to {host}")

sys.addaudithook(refuse_other_machines)
"""
"""Run by Python before the app: whatever wants to reach another machine is written down and fails."""


@contextmanager
def serve(model: Path, folder: Path) -> Iterator[Served]:
    """The Space with a model, as `python app.py` serves it, until the block ends; its files lie in `folder`."""
    guard, log, outside = folder / "guard", folder / "app.log", folder / "outside"
    guard.mkdir(parents=True)
    (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    outside.touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        "MER_MODEL": str(model),
        "MER_TEST_OUTSIDE": str(outside),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "PYTHONPATH": str(guard),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(SPACE / "app.py")], env=os.environ | own, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_served(process, log)
        yield Served(f"http://127.0.0.1:{port}", process.pid, log, outside)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_served(process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while "Running on local URL" not in log.read_text(encoding="utf-8", errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the Space does not serve:\n{log.read_text(encoding='utf-8', errors='replace')}")
        time.sleep(0.2)
