"""Rewrite README's tables from the results they come from: python scripts/readme_tables.py [--check]

Each `<!-- table: NAME -->` ... `<!-- end -->` in README.md and hub_cards/results/README.md is replaced by the table of
`hub_cards/results/NAME.json`; `NAME summary` has fewer rows and columns, and `default` is made of several files, the
default checkpoint's and those with its floors. With --check nothing is written, and the exit
status says whether anything would be.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mer_hf import alignment_report, benchmark, demo, enrolment_rows, reporting
from mer_hf.evaluation import format_table

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: (\S+)( summary)? -->\n).*?(<!-- end -->)", re.DOTALL)
FILES = (ROOT / "README.md", ROOT / "hub_cards" / "results" / "README.md")
SUMMARY = ("lr_audio", "lr_face", "lr_both", "text", "audio", "cme", "learned_alignment", "mman", "late_fusion")


def read(name: str) -> dict[str, Any]:
    """One results file."""
    return json.loads((ROOT / "hub_cards" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(name: str) -> str:
    """The Markdown table of one results file, or of the default checkpoint's."""
    if name == "default":
        return default_checkpoint()
    results = read(name)
    if "figures" in results:
        return benchmark.results_table(results)
    if "claims" in results:
        return demo.results_table(results)
    if "reports" in results:
        return alignment_report.results_table(results)
    if "scored" in results["protocol"]:
        return enrolment_rows.results_table(results)
    return reporting.results_table(results)


def summary(name: str) -> str:
    """Of a cross-validation the models that README names, with what they scored."""
    models = read(name)["models"]
    scores = {model: models[model]["pooled"] for model in SUMMARY}
    rows = [
        {"model": model, "wa": own["wa"], "wa, 95 %": _interval(own, "wa"), "ua": own["ua"]}
        for model, own in scores.items()
    ]
    return format_table(rows, list(rows[0]))


def default_checkpoint() -> str:
    """Each branch on the test side of its own corpus, told how frequent the emotions are there, beside its floor."""
    speech = read("default-speech")["models"]
    face, words = (
        read(f"default-{branch}")["operating_points"]["training_frequencies"] for branch in ("face", "words")
    )
    lines = {
        "voice, RAVDESS, 7 emotions": (speech["speech"]["pooled"], speech["lr_audio"]["pooled"]),
        "face, FER2013": (face["test"], {"wa": face["test"]["majority_wa"]}),
        "words, MELD": (words["written"]["test"]["pooled"], read("meld-official-text")["models"]["meld_lr"]["pooled"]),
    }
    rows = [
        {"branch": branch}
        | {score: f"{own[score]:.3f} ({_interval(own, score)})" for score in ("wa", "ua", "weighted_f1")}
        | {f"floor's {score}": floor.get(score, "–") for score in ("wa", "weighted_f1")}
        for branch, (own, floor) in lines.items()
    ]
    return format_table(rows, list(rows[0]))


def _interval(scores: Mapping[str, Any], score: str) -> str:
    low, high = scores["intervals"][score]
    return f"{low:.3f} to {high:.3f}"


def main() -> int:
    changed = False
    for file in FILES:
        before = file.read_text(encoding="utf-8")
        after = BLOCK.sub(lambda b: f"{b[1]}{summary(b[2]) if b[3] else table(b[2])}\n{b[4]}", before)
        changed |= before != after
        if "--check" not in sys.argv[1:]:
            file.write_text(after, encoding="utf-8")
    return int(changed and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
