"""The two commands of README, as they stand there, on somebody's own clips."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from transformers.utils import logging

from mer_hf.cli import main
from mer_hf.data.controlled import generate_controlled_corpus

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mer-hf ((?:train|evaluate) --corpus folder .*)$", README, flags=re.MULTILINE)


@pytest.fixture(autouse=True)
def _verbosity():
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def table(tmp_path):
    """clips.csv with README's four columns, generated speech beside it, one line without a file; and how many have."""
    corpus = generate_controlled_corpus(tmp_path / "speech", 100, 8, 1, num_workers=1)
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").read_text().splitlines()]
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "emotion", "speaker", "text"])
        writer.writerows([f"speech/{row['audio']}", row["label"], row["speaker"], row["text"]] for row in rows)
        writer.writerow(["speech/gone.wav", "happy", "nobody", "not here"])
    return len(rows)


@pytest.mark.slow
def test_from_a_table_to_a_tested_model_in_two_commands(table, tmp_path, monkeypatch, capsys):
    train, evaluate = COMMANDS
    count = table
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(train), "--epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()[:5]] == [f"cme-seed0-fold{k}" for k in range(1, 6)]

    results = json.loads(Path("runs/mine/results.json").read_text())
    assert results["protocol"]["split"] == "speakers-5fold" and results["protocol"]["unit"] == "speaker"
    assert sum(fold["test"] for fold in results["protocol"]["folds"]) == results["corpus"]["clips"] == count
    assert results["corpus"]["skipped"] == {"the file is not there": 1}
    skips = json.loads(Path("runs/mine/cache/folder-report.json").read_text())["skips"]
    assert skips == [{"path": f"clips.csv:{count + 2}", "reason": "the file is not there"}]
    assert {"results.md", "results.png", "cme"} <= {file.name for file in Path("runs/mine").iterdir()}

    assert main(shlex.split(evaluate)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(Path("runs/mine/report.json").read_text())
    kept = results["models"]["cme"]["folds"][-1]
    assert (report["fold"], report["wa"], report["n"]) == (5, kept["wa"], results["protocol"]["folds"][-1]["test"])
    assert report["calibration"]["temperature"] == pytest.approx(kept["temperature"])
