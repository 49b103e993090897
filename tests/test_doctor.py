import builtins
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mer_hf import doctor
from mer_hf.doctor import Check, diagnose, format_report, main, run_doctor

CORE = {
    "python",
    "mer-hf",
    "torch",
    "transformers",
    "soundfile",
    "av",
    "libraries",
    "wav",
    "mp4",
    "alignment",
}


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    return {check.name: check for check in diagnose()}


@pytest.fixture
def block_import(monkeypatch):
    """`block_import("av")`: importing it fails from now on."""
    real_import = builtins.__import__

    def block(blocked: str) -> None:
        def fake_import(name, *arguments, **options):
            if name.partition(".")[0] == blocked:
                raise OSError(f"lib{blocked}.so: cannot open\nshared object file")
            return real_import(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", fake_import)

    return block


@pytest.fixture
def fake_versions(monkeypatch):
    """`fake_versions(torch="1.0", av=None)`: what is installed, None = not at all."""
    real_version = importlib.metadata.version

    def fake(**versions: str | None) -> None:
        def version(name: str) -> str:
            if name not in versions:
                return real_version(name)
            if versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return fake


def test_core_works_here(checks):
    assert checks.keys() >= CORE
    assert [check for check in checks.values() if check.core and not check.ok] == []


def test_every_core_dependency_and_every_extra_has_a_line(checks):
    metadata = importlib.metadata.metadata("mer-hf")
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert all(any(line.startswith(name) for name in checks) for line in core)
    assert doctor.EXTRAS.keys() == set(metadata.get_all("Provides-Extra"))
    assert {f"[{extra}]" for extra in doctor.EXTRAS} <= checks.keys()


def test_whatever_failed_has_a_remedy(checks):
    assert all(check.remedy for check in checks.values() if not check.ok)


@pytest.mark.slow
def test_takes_less_than_ten_seconds_in_a_fresh_process_without_network():
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-W", "error", doctor.__file__, "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    assert json.loads(result.stdout)["ok"] is True
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time: the clock on the wall also counts what else this machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_import_is_light():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import doctor; "
        "print(*{'torch', 'numpy', 'av', 'packaging', 'transformers'} & sys.modules.keys())"
    )
    folder = os.path.dirname(doctor.__file__)
    result = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(
    ("library", "check"),
    [("soundfile", "wav"), ("av", "mp4"), ("pocketsphinx", "alignment"), ("torchaudio", "libraries")],
)
def test_a_library_that_does_not_load_is_a_line_with_a_remedy(block_import, capsys, library, check):
    block_import(library)
    assert run_doctor() == 1
    report = capsys.readouterr().out.splitlines()
    (index,) = [i for i, line in enumerate(report) if line.startswith(f"FAIL {check} ")]
    assert report[index].endswith(f"OSError: lib{library}.so: cannot open shared object file")
    assert "install" in report[index + 1]
    assert report[-1].startswith("The core does not work: ") and check in report[-1]


def test_a_broken_environment_never_raises(block_import):
    block_import("packaging")
    failed = {check.name for check in diagnose() if not check.ok}
    assert {"python", "dependencies", "extras"} <= failed


def test_versions_are_held_against_the_package_metadata(fake_versions):
    fake_versions(torch="1.13.0", av=None)
    checks = {check.name: check for check in diagnose()}
    assert checks["torch"].detail.startswith("1.13.0 is installed, ") and not checks["torch"].ok
    assert checks["av"].detail == "not installed" and not checks["av"].ok
    assert 'pip install "mer-hf"' in checks["av"].remedy


def test_a_missing_extra_is_no_failure_and_says_how_to_get_it(fake_versions):
    fake_versions(gradio=None)
    checks = {check.name: check for check in diagnose()}
    assert checks["[demo]"] == Check(
        "[demo]", False, "the Gradio demo: gradio not installed", doctor._pip_install("demo"), core=False
    )
    assert not checks["[dev]"].ok  # contains demo
    assert checks["[plot]"].ok


def test_upper_bounds_count_too(fake_versions, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ['opencv>=4.11,<5; extra == "video"'])
    fake_versions(opencv="5.0.0.93")
    extra = next(check for check in diagnose() if check.name == "[video]")
    assert not extra.ok and extra.detail.endswith(": opencv 5.0.0.93 is installed, <5,>=4.11 is needed")


def test_package_without_metadata(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGE", "mer-hf-not-installed")
    failed = {check.name for check in diagnose() if not check.ok}
    assert {"mer-hf-not-installed", "python", "dependencies"} <= failed


def test_cache_in_a_place_that_is_full(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet" / "there"))
    assert next(check for check in diagnose() if check.name == "cache").ok
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    cache = next(check for check in diagnose() if check.name == "cache")
    assert not cache.ok and "0.1 GB free" in cache.detail and "HF_HOME" in cache.remedy and not cache.core


def test_a_decoder_that_returns_something_else_fails(monkeypatch):
    import soundfile

    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, **options: np.zeros((3200, 1), dtype=np.float32))
    wav = next(check for check in diagnose() if check.name == "wav")
    assert not wav.ok and wav.detail == "a wav file is not decoded as it was written"


def test_format_report():
    report = format_report(
        [
            Check("python", True, "3.11"),
            Check("mp4", False, "broken", "mend it"),
            Check("[demo]", False, "not here", "get it", core=False),
        ]
    )
    assert report.splitlines() == [
        "ok   python  3.11",
        "FAIL mp4     broken",
        "             mend it",
        "--   [demo]  not here",
        "             get it",
        "",
        "The core does not work: mp4.",
    ]


def test_json(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "diagnose", lambda: [Check("mp4", False, "broken", "mend it")])
    assert main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "checks": [{"name": "mp4", "ok": False, "detail": "broken", "remedy": "mend it", "core": True}],
    }
