"""README says what can be run, and its numbers come from files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results_files():
    results = (ROOT / "hub_cards" / "results" / "README.md").read_text(encoding="utf-8")
    assert [len(re.findall(r"<!-- table: ", text)) for text in (README, results)] == [2, 7]
    done = subprocess.run([sys.executable, ROOT / "scripts" / "readme_tables.py", "--check"], check=False)
    assert done.returncode == 0, "run python scripts/readme_tables.py"


def test_there_are_exactly_two_set_up_commands():
    assert sorted(set(re.findall(r"bash scripts/\w+\.sh", README))) == ["bash scripts/demo.sh", "bash scripts/test.sh"]


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^mer-hf (\w+)", README, flags=re.MULTILINE))))
def test_the_options_of_shown_commands_exist(command):
    from mer_hf.cli import make_parser

    shown = re.findall(rf"^mer-hf {command} .*$", README, flags=re.MULTILINE)
    parser = make_parser()._subparsers._group_actions[0].choices[command]
    known = {option for action in parser._actions for option in action.option_strings}
    for line in shown:
        assert set(re.findall(r"--\w+", line)) <= known, line
