"""Rewrite README's tables from the results they come from: python scripts/readme_tables.py [--check]

Each `<!-- table: NAME -->` ... `<!-- end -->` in README.md and hub_cards/results/README.md is replaced by the table of
`hub_cards/results/NAME.json`; `NAME summary` has fewer rows and columns. With --check nothing is written, and the exit
status says whether anything would be.
"""

import json
import re
import sys
from pathlib import Path

from mer_hf import alignment_report, demo, enrolment_rows, reporting
from mer_hf.evaluation import format_table

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: (\S+)( summary)? -->\n).*?(<!-- end -->)", re.DOTALL)
FILES = (ROOT / "README.md", ROOT / "hub_cards" / "results" / "README.md")
SUMMARY = ("lr_audio", "lr_face", "lr_both", "text", "audio", "cme", "learned_alignment", "mman", "late_fusion")


def table(name: str) -> str:
    """The Markdown table of one results file."""
    results = json.loads((ROOT / "hub_cards" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    if "claims" in results:
        return demo.results_table(results)
    if "reports" in results:
        return alignment_report.results_table(results)
    if "scored" in results["protocol"]:
        return enrolment_rows.results_table(results)
    return reporting.results_table(results)


def summary(name: str) -> str:
    """Of a cross-validation the models that README names, with what they scored."""
    models = json.loads((ROOT / "hub_cards" / "results" / f"{name}.json").read_text(encoding="utf-8"))["models"]
    rows = []
    for model in SUMMARY:
        scores = models[model]["pooled"]
        low, high = scores["intervals"]["wa"]
        rows.append({"model": model, "wa": scores["wa"], "wa, 95 %": f"{low:.3f} to {high:.3f}", "ua": scores["ua"]})
    return format_table(rows, list(rows[0]))


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
