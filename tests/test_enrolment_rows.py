"""Rows for enrolled speakers, on a corpus where a speaker's own level hides the emotion from who does not know it."""

import json

import pytest
import torch

from mer_hf.corpora import Corpus
from mer_hf.data.protocols import FoldSplit
from mer_hf.data.schema import make_row
from mer_hf.enrolment_rows import TRANSDUCTIVE, enrolment_rows, results_table

LABELS = ["neutral", "angry"]


@pytest.fixture(scope="module")
def corpus():
    """24 clips of each of 6 speakers: the emotion moves a vector by 1, the speaker by up to 6."""
    generator = torch.Generator().manual_seed(0)
    rows, audio, faces = [], {}, {}
    for s in range(6):
        level = 6 * torch.rand((), generator=generator) - 3
        for c in range(24):
            rows.append(make_row(id=f"{s}-{c}", corpus="own", speaker=f"s{s}", audio="no.wav", label=LABELS[c % 2]))
            noise = 0.2 * torch.randn(1, 240, generator=generator)
            audio[rows[-1]["id"]] = level + (c % 2) + noise
            faces[rows[-1]["id"]] = {"vision_embeds": torch.rand(4, 2, generator=generator)}
    ids = [tuple(row["id"] for row in rows if row["speaker"] == f"s{s}") for s in range(6)]
    splits = [
        FoldSplit("own", 1, ids[2] + ids[3] + ids[4] + ids[5], ids[1], ids[0]),
        FoldSplit("own", 2, ids[0] + ids[3] + ids[4] + ids[5], ids[2], ids[1]),
    ]
    made = Corpus("own", rows, splits, LABELS, faces)
    made.__dict__["audio_vectors"] = audio  # what the property would compute from sound
    return made


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("run"), []
    return folder, enrolment_rows(corpus, folder, ["lr_both"], (0, 1), (1, 8), lines.append), lines


def test_knowing_the_speaker_shows_the_emotion(finished):
    rows = finished[1]["models"]["lr_both, enrolled"]
    assert list(rows) == ["plain", "1", "8", TRANSDUCTIVE]
    assert rows["8"]["wa"] > rows["plain"]["wa"] + 0.1 and rows["8"]["wa"] > 0.85
    assert rows["8"]["wa_gained"]["low"] > 0


def test_the_clips_that_enrol_are_not_scored_and_all_rows_score_the_same(finished):
    folder, results, _ = finished
    files = sorted((folder / "folds").iterdir())
    assert len(files) == 8
    for file in files:
        record = json.loads(file.read_text())
        assert len(record["labels"]) == 24 - 8
        assert {len(answers) for answers in record["predictions"].values()} == {16}
    assert {row["clips"] for model in results["models"].values() for row in model.values()} == {4 * 16}
    by_seed = [json.loads((folder / "folds" / f"lr_both-seed{s}-fold1.json").read_text()) for s in (0, 1)]
    assert by_seed[0]["labels"] != by_seed[1]["labels"] or by_seed[0]["predictions"] != by_seed[1]["predictions"]


def test_plain_rows_are_compared_with_themselves(finished):
    assert finished[1]["models"]["lr_both"]["plain"]["wa_gained"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert "| lr_both, enrolled | all, transductive | 64 |" in results_table(finished[1])


def test_a_finished_fold_is_not_run_again_nor_taken_for_another(finished, corpus):
    folder, results, lines = finished
    before = {file: file.stat().st_mtime_ns for file in (folder / "folds").iterdir()}
    assert enrolment_rows(corpus, folder, ["lr_both"], (0, 1), (1, 8), print) == results and len(lines) == 8
    assert {file: file.stat().st_mtime_ns for file in (folder / "folds").iterdir()} == before
    with pytest.raises(ValueError, match="was made from other data or settings"):
        enrolment_rows(corpus, folder, ["lr_both"], (0,), (1, 4), print)


def test_the_network_learns_from_enrolled_looks(corpus, tmp_path):
    results = enrolment_rows(corpus, tmp_path, ["mman"], (0,), (8,), print)
    rows = results["models"]["mman, enrolled"]
    # eight clips leave a third of a speaker's level, since five more are taken to be like everybody's
    assert rows[TRANSDUCTIVE]["wa"] > 0.8 and rows["plain"]["wa"] < rows["8"]["wa"] < rows[TRANSDUCTIVE]["wa"]
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": ["cme"]}, r"among lr_both, mman, .*\['cme'\]"),
        ({"seeds": ()}, "with a seed or more"),
        ({"sizes": (0,)}, "at least 1"),
        ({"sizes": (24,)}, "24 clips or fewer: none would be left"),
    ],
)
def test_bad_calls(corpus, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        enrolment_rows(corpus, tmp_path, **{"models": ["lr_both"]} | arguments)
