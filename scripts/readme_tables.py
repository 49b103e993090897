"""Rewrite the tables of README.md from the results they come from: python scripts/readme_tables.py [--check]

Each `<!-- table: NAME -->` ... `<!-- end -->` in README.md is replaced by the table of `hub_cards/results/NAME.json`.
With --check nothing is written, and the exit status says whether anything would be.
"""

import json
import re
import sys
from pathlib import Path

from mer_hf import alignment_report, demo, enrolment_rows, reporting

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


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


def main() -> int:
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}\n{block[3]}", before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
