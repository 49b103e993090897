"""`mer-hf doctor`: what of this installation works, and what to do about the rest.

Every check runs what users rely on (a clip is really decoded, the aligner really takes a word), works without network
and never raises: a failure becomes a line with a remedy. Only the standard library is imported at the top, so that the
report also comes out of a broken installation; where `import mer_hf` itself fails, run `python mer_hf/doctor.py`.
"""

import argparse
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import struct
import sys
import warnings
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGE = "mer-hf"
EXTRAS = {  # what each extra of pyproject.toml adds
    "demo": "the Gradio demo",
    "video": "faces in video, vision backbones",
    "features": "eGeMAPS features (openSMILE; research only)",
    "export": "ONNX export",
    "controlled": "the controlled corpus (espeak-ng synthesiser; GPL-3)",
    "plot": "plots of explanations and results",
    "dev": "tests and linting",
    "words": "transcripts for the default checkpoint: MiniLM with its weights",
}
SAMPLING_RATE = 16_000
TONE = [int(8000 * math.sin(2 * math.pi * 440 * i / SAMPLING_RATE)) for i in range(SAMPLING_RATE // 5)]  # 0.2 s
MP4_FRAMES = 5
CACHE_GB = 2  # room for one speech and one text backbone of base size


@dataclass(frozen=True)
class Check:
    """One line of the report. `core` marks what every use of the package needs; the rest may be absent."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    core: bool = True


class Failed(Exception):
    """What a check found wrong."""


def diagnose() -> list[Check]:
    """Runs every check, in a few seconds."""
    return [
        _run(PACKAGE, _check_package, f"install it: {_pip_install()}"),
        _run("python", _check_python, f"install mer-hf into a Python that fits: {_pip_install()}"),
        *_run_all("dependencies", _check_dependencies, f"reinstall: {_pip_install()}"),
        _run("libraries", _check_libraries, "install torch and torchaudio as PyPI has them, not a CPU-only torch"),
        _run("wav", _check_wav, _reinstall("soundfile")),
        _run("mp4", _check_mp4, _reinstall("av")),
        _run("alignment", _check_alignment, _reinstall("pocketsphinx")),
        _run("device", _check_device, "update the GPU's driver, or install a torch built for it", core=False),
        _run("cache", _check_cache, "set HF_HOME to a folder on a disk with more room", core=False),
        _run("hub", _check_hub, core=False),
        _run("checkpoint", _check_checkpoint, "train a model, or name one from the Hub", core=False),
        *_run_all("extras", _check_extras, f"reinstall: {_pip_install()}", core=False),
        _run("faces", _check_faces, _pip_install("video"), core=False),
    ]


def format_report(checks: Sequence[Check]) -> str:
    """The checks as text: a line each, and under those that failed an indented remedy."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "ok" if check.ok else ("FAIL" if check.core else "--")
        lines.append(f"{mark:<5}{check.name:<{width}}  {check.detail}")
        if not check.ok and check.remedy:
            lines.append(f"{'':<{width + 7}}{check.remedy}")
    failed = [check.name for check in checks if check.core and not check.ok]
    verdict = f"The core does not work: {', '.join(failed)}." if failed else "The core works."
    return "\n".join([*lines, "", verdict])


def run_doctor(as_json: bool = False) -> int:
    """Prints the report; 0 if the core works, 1 otherwise."""
    checks = diagnose()
    works = all(check.ok for check in checks if check.core)
    if as_json:
        print(json.dumps({"ok": works, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(format_report(checks))
    return 0 if works else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mer-hf doctor", description="Check what of this installation works.")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    return run_doctor(as_json=parser.parse_args(arguments).json)


# -- running checks: one returns its detail, or raises


def _run(name: str, check: Callable[[], str], remedy: str = "", core: bool = True) -> Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report is the place for what they would say
            return Check(name, True, check(), core=core)
    except Exception as error:  # whatever a broken library raises while it loads
        return Check(name, False, _describe(error), remedy, core)


def _run_all(name: str, check: Callable[[], Iterator[Check]], remedy: str, core: bool = True) -> list[Check]:
    try:
        return list(check())
    except Exception as error:
        return [Check(name, False, _describe(error), remedy, core)]


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, Failed) else f"{type(error).__name__}: {text}"


def _pip_install(extra: str = "") -> str:
    """The command for the running Python, which need not be the one that `pip` on PATH installs into."""
    return f'"{sys.executable or "python"}" -m pip install "{PACKAGE}{f"[{extra}]" if extra else ""}"'


def _reinstall(library: str) -> str:
    return f'if the libraries above load: "{sys.executable}" -m pip install --force-reinstall --no-deps {library}'


# -- versions


def _check_python() -> str:
    from packaging.specifiers import SpecifierSet

    detail = f"{platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs"
    needed = importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    if not SpecifierSet(needed).contains(platform.python_version(), prereleases=True):
        raise Failed(f"{detail}; {needed} is needed")
    return detail


def _check_package() -> str:
    return f"{importlib.metadata.version(PACKAGE)} in {Path(__file__).parent}"


def _requirements(extra: str = "") -> Iterator[Any]:
    """The package's core requirements, or those that `extra` adds, extras within it unfolded."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, importlib.metadata.requires(PACKAGE) or ()):
        marker = requirement.marker
        in_core = marker is None or marker.evaluate({"extra": ""})
        if in_core == bool(extra) or (marker is not None and not marker.evaluate({"extra": extra})):
            continue
        if requirement.name == PACKAGE:
            for nested in sorted(requirement.extras):
                yield from _requirements(nested)
        else:
            yield requirement


def _inspect_requirement(requirement: Any) -> tuple[bool, str]:
    """Whether the installed version fits, and a description."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False, "not installed"
    bounds = str(requirement.specifier)
    if requirement.specifier.contains(version, prereleases=True):
        return True, f"{version} ({bounds})"
    return False, f"{version} is installed, {bounds} is needed"


def _check_dependencies() -> Iterator[Check]:
    for requirement in _requirements():
        ok, detail = _inspect_requirement(requirement)
        yield Check(requirement.name, ok, detail, "" if ok else _pip_install())


def _check_extras() -> Iterator[Check]:
    for extra in importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ():
        found = {requirement.name: _inspect_requirement(requirement) for requirement in _requirements(extra)}
        problems = [f"{name} {detail}" for name, (ok, detail) in found.items() if not ok]
        detail = f"{EXTRAS.get(extra, 'more')}: {'; '.join(problems) or 'installed'}"
        yield Check(f"[{extra}]", not problems, detail, _pip_install(extra) if problems else "", core=False)


# -- what really runs


def _check_libraries() -> str:
    """torchaudio beside a CPU-only torch is the one mixture that installs without complaint and then does not load."""
    import torch
    import torchaudio
    import transformers

    return f"torch {torch.__version__}, torchaudio {torchaudio.__version__}, transformers {transformers.__version__}"


def _wav_bytes() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLING_RATE, len(TONE), "NONE", ""))
        file.writeframes(struct.pack(f"<{len(TONE)}h", *TONE))
    return buffer.getvalue()


def _check_wav() -> str:
    from mer_hf.models.media import load_audio

    audio = load_audio(_wav_bytes())
    if [round(32768 * sample) for sample in audio.tolist()] != TONE:
        raise Failed("a wav file is not decoded as it was written")
    return "a wav file is decoded as it was written"


def _mp4_bytes(size: int = 32) -> bytes:
    """Grey frames and a tone, in two codecs that every build of FFmpeg has."""
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = size, size, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLING_RATE)
        for index in range(MP4_FRAMES):
            picture = np.full((size, size, 3), 40 * index, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        sound = av.AudioFrame.from_ndarray(np.array([TONE], dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = SAMPLING_RATE
        container.mux(audio.encode(sound))
        container.mux(video.encode())
        container.mux(audio.encode())
    return buffer.getvalue()


def _check_mp4() -> str:
    from mer_hf.models.media import load_audio, load_frames

    data = _mp4_bytes()
    samples = len(load_audio(data))
    frames, _ = load_frames(data, num_frames=MP4_FRAMES)
    if len(frames) != MP4_FRAMES or samples < len(TONE):  # AAC pads the end
        raise Failed(f"an mp4 of {MP4_FRAMES} frames, {len(TONE)} samples is decoded to {len(frames)} and {samples}")
    return "frames and sound of an mp4 file are decoded"


def _check_alignment() -> str:
    from pocketsphinx import Decoder

    Decoder(samprate=SAMPLING_RATE, loglevel="FATAL").set_align_text("hello")
    return "PocketSphinx loads its English model and takes a word"


def _check_device() -> str:
    import torch

    threads = f"{torch.get_num_threads()} threads (OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')})"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        device, name = "cuda", f"{torch.cuda.get_device_name(0)} x {torch.cuda.device_count()}, {memory:.0f} GiB"
    elif torch.backends.mps.is_available():
        device, name, bf16 = "mps", "Apple GPU", True
    else:
        device, name, bf16 = "cpu", "no GPU that torch can use", True
    ones = torch.ones(8, 8, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    if (ones @ ones).sum().item() != 512:
        raise Failed(f"{device} ({name}) multiplies wrongly")
    if device == "cpu" and Path("/proc/driver/nvidia/version").exists():
        raise Failed(f"an NVIDIA driver is loaded, but torch {torch.__version__} cannot use it; cpu, {threads}")
    return f"{device} ({name}), bf16 {'works' if bf16 else 'is not supported'}, {threads}"


def _check_cache() -> str:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if not os.access(existing, os.W_OK):
        raise Failed(f"{cache} cannot be written")
    if free < CACHE_GB:
        raise Failed(f"{cache}: {free:.1f} GB free, a speech and a text backbone take about {CACHE_GB}")
    return f"{cache}: {free:.0f} GB free"


def _check_hub() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "offline (HF_HUB_OFFLINE is set): models and data sets come from the cache alone"
    return f"downloads from {constants.ENDPOINT} are allowed (none was tried)"


def _check_checkpoint() -> str:
    weights = Path(__file__).parent / "default_checkpoint" / "model.safetensors"
    if not weights.is_file():
        raise Failed("this installation has no default checkpoint")
    return f"the default checkpoint is here, {weights.stat().st_size / 1e6:.1f} MB"


def _check_faces() -> str:
    import numpy as np

    from mer_hf.models.media import crop_face

    crop_face(np.zeros((1, 64, 64, 3), dtype=np.uint8))
    return "OpenCV has its face cascades"


if __name__ == "__main__":
    # Run as a file, Python searches this folder first, and `data` or `models` here would stand in for others so named.
    sys.path[:] = [folder for folder in sys.path if Path(folder).absolute() != Path(__file__).absolute().parent]
    sys.exit(main())
