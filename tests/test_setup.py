"""The set-up scripts with a stand-in for Python and pip, and the files that describe the project."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SHELL_SCRIPTS = [ROOT / name for name in ("scripts/setup.sh", "scripts/demo.sh", "scripts/test.sh", ".ci/run")]

# Logs every call; makes an environment by copying itself; pip and pytest only print. All else goes to the real Python.
FAKE_PYTHON = f"""#!/bin/sh
echo "$*" >>"$FAKE_LOG"
case "$*" in
    *"import ensurepip"*) exit "${{FAKE_ENSUREPIP:-0}}" ;;
    *"import pip"* | *"import torch"*) exit 0 ;;
    "-m venv"*) for last; do :; done; mkdir -p "$last/bin" && cp "$0" "$last/bin/python"; exit ;;
    "-m pip"*) echo "$FAKE_PIP"; exit "${{FAKE_PIP_STATUS:-0}}" ;;
    "-m pytest"*) echo "in $PWD with $OMP_NUM_THREADS thread"; exit ;;
esac
exec "{sys.executable}" "$@"
"""
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Checkout:
    """A copy of what the scripts need, and a PATH on which every Python is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.root, self.programs, self.log = folder / "a checkout", folder / "bin", folder / "calls.log"
        self.venv, self.stamp = self.root / ".venv", self.root / ".venv" / ".mer_hf_stamp"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for name in PYTHONS:
            write_program(self.programs / name, FAKE_PYTHON)
        self.set_free_disk_gb(100)

    def set_free_disk_gb(self, free: int) -> None:
        kilobytes = free * 1024 * 1024
        write_program(self.programs / "df", f"#!/bin/sh\necho header\necho disk 0 0 {kilobytes} 0% /\n")

    def run(self, script: str = "setup.sh", *arguments: str, cwd: Path | None = None, **variables: str):
        self.log.write_text("")
        path = f"{self.programs}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
        environment = {"PATH": path, "HOME": str(self.root), "FAKE_LOG": str(self.log), **variables}
        command = ["bash", str(self.root / "scripts" / script), *arguments]
        return subprocess.run(command, env=environment, cwd=cwd or "/", capture_output=True, text=True, timeout=60)

    def calls(self, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    assert checkout.run().returncode == 0
    return checkout


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_and_stop_at_errors(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r"^set -e?uo pipefail$", script.read_text(), re.MULTILINE)
    assert os.access(script, os.X_OK)


def test_first_run_installs_under_the_constraints_and_leaves_a_stamp(checkout):
    result = checkout.run()
    assert result.returncode == 0, result.stderr
    assert checkout.calls("-m venv") == [f"-m venv {checkout.venv}"]
    tools, package = checkout.calls("-m pip")
    constraints = f"-c {checkout.root}/scripts/constraints.txt"
    assert constraints in tools and tools.endswith(" setuptools")
    assert constraints in package and package.endswith(f" -e {checkout.root}[dev]")
    assert re.fullmatch(r"[0-9a-f]{64}\n", checkout.stamp.read_text())


def test_second_run_does_nothing_and_says_nothing(installed):
    installed.set_free_disk_gb(0)
    result = installed.run()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not installed.calls("-m")


@pytest.mark.parametrize("name", ["pyproject.toml", "scripts/constraints.txt"])
def test_a_changed_file_installs_again_into_the_same_environment(installed, name):
    with (installed.root / name).open("a") as file:
        file.write("# changed\n")
    assert installed.run().returncode == 0
    assert len(installed.calls("-m pip")) == 2 and not installed.calls("-m venv")
    installed.run()
    assert not installed.calls("-m pip")


def test_an_interrupted_install_leaves_no_stamp_and_is_resumed(installed):
    (installed.root / "pyproject.toml").write_text("changed")
    assert installed.run(FAKE_PIP_STATUS="130").returncode == 1
    assert not installed.stamp.exists()
    half, whole = (
        installed.venv / "lib/python3.11/site-packages" / f"{name}-1.dist-info" for name in ("half", "whole")
    )
    half.mkdir(parents=True)
    whole.mkdir()
    (whole / "INSTALLER").write_text("pip\n")
    assert installed.run().returncode == 0
    assert installed.stamp.exists() and whole.exists() and not half.exists()


@pytest.mark.parametrize(
    ("output", "problem", "remedy"),
    [
        (
            "(from versions: none)\nERROR: No matching distribution found",
            "pip could not reach the package index",
            "pip config list",
        ),
        ("[Errno 28] No space left on device", "the disk filled up", "TMPDIR"),
        ("ERROR: No matching distribution found for torch", "the package index has no fitting build", "Python 3.11"),
        ("something else", "pip failed", "run this again"),
    ],
)
def test_a_failing_pip_is_explained(checkout, output, problem, remedy):
    result = checkout.run(FAKE_PIP=output, FAKE_PIP_STATUS="1")
    assert result.returncode == 1 and output in result.stdout
    assert f"error: {problem}" in result.stderr
    assert remedy in result.stderr.split("remedy:")[1]
    assert not checkout.stamp.exists()


def test_no_fitting_python_is_explained(checkout):
    for name in PYTHONS:
        write_program(checkout.programs / name, "#!/bin/sh\nexit 1\n")
    result = checkout.run()
    assert result.returncode == 1 and not checkout.venv.exists()
    assert "no Python 3.11 or newer" in result.stderr and "apt-get install python3.11" in result.stderr


def test_a_name_on_path_that_does_not_run_is_passed_over(checkout):
    write_program(checkout.programs / "python3.11", "#!/bin/sh\necho 'python3.11: command not found' >&2\nexit 127\n")
    assert checkout.run().returncode == 0


def test_too_little_disk_stops_only_a_first_install(checkout):
    checkout.set_free_disk_gb(5)
    result = checkout.run()
    assert result.returncode == 1 and not checkout.venv.exists()
    assert "5 GB free" in result.stderr and "about 12 GB" in result.stderr


def test_a_python_without_ensurepip_fills_the_environment_with_its_own_pip(checkout):
    assert checkout.run(FAKE_ENSUREPIP="1").returncode == 0
    assert checkout.calls("-m venv") == [f"-m venv --without-pip {checkout.venv}"]
    assert checkout.calls("-m pip")[0] == f"-m pip --python {checkout.venv}/bin/python install --no-user pip"


def test_a_broken_environment_is_made_anew(installed):
    python = installed.venv / "bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    result = installed.run()
    assert result.returncode == 0 and ".venv is broken" in result.stderr
    assert len(installed.calls("-m venv")) == 1


def test_a_moved_checkout_gets_a_new_environment(installed):
    moved = installed.root.with_name("elsewhere")
    installed.root.rename(moved)
    installed.root = moved
    result = installed.run()
    assert result.returncode == 0 and "moved or copied" in result.stderr
    assert installed.calls("-m venv") == [f"-m venv {moved}/.venv"]


def test_demo_stays_in_the_callers_directory_and_passes_arguments_on(installed, tmp_path):
    write_program(installed.venv / "bin/mer-hf", '#!/bin/sh\necho "$PWD"\nprintf "%s\\n" "$@"\n')
    result = installed.run("demo.sh", "--clip", "my clip.wav", cwd=tmp_path)
    assert result.stdout.splitlines() == [str(tmp_path.resolve()), "demo", "--clip", "my clip.wav"]


def test_test_script_runs_pytest_at_the_top_with_one_thread_a_worker(installed, tmp_path):
    result = installed.run("test.sh", "-k", "mask", cwd=tmp_path)
    assert result.stdout.strip() == f"in {installed.root} with 1 thread"
    assert installed.calls("-m pytest") == ["-m pytest -n 2 --dist worksteal -k mask"]


def test_a_failed_set_up_stops_the_scripts_that_need_it(checkout):
    for script in ("demo.sh", "test.sh"):
        assert checkout.run(script, FAKE_PIP_STATUS="1").returncode == 1
        assert not checkout.calls("-m pytest")


# -- files that describe the project


def read_constraints() -> dict[str, Requirement]:
    lines = (ROOT / "scripts/constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name.lower().replace("_", "-"): requirement for requirement in requirements}


def read_project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_constraints_pin_every_requirement_within_its_bounds():
    project, constraints = read_project(), read_constraints()
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            (pin,) = constraints[requirement.name].specifier
            assert requirement.specifier.contains(pin.version), f"{pin} does not satisfy {line}"


def test_constraints_are_exact_versions_and_nothing_else():
    for name, requirement in read_constraints().items():
        (pin,) = requirement.specifier
        # `===` is what a CPU-only local build (2.14.1+cpu) does not satisfy, and torchaudio does not load beside one.
        assert pin.operator == ("===" if name in ("torch", "torchaudio", "torchvision") else "==")
        assert "+" not in pin.version and "*" not in pin.version and requirement.url is None


def test_set_up_names_no_package_index():
    for path in (*SHELL_SCRIPTS, ROOT / "scripts/constraints.txt"):
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", path.read_text()), path


def test_citation_names_the_software_and_the_three_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == read_project()["version"]
    assert citation["license"] == read_project()["license"]
    papers = {paper["url"].rpartition("/")[2]: len(paper["authors"]) for paper in citation["references"]}
    assert papers == {"2009.04107": 4, "1909.05645": 6, "2010.12733": 4}


def test_licence_is_the_plain_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:3] == ["Apache", "License", "Version"]
    assert "Copyright [yyyy] [name of copyright owner]" in text and "Copyright 20" not in text
