"""How well words are placed: python scripts/measure_alignment.py --corpus ravdess --data_dir RAVDESS

Every clip is aligned with PocketSphinx, or with the CTC checkpoint of --ctc_model, and nothing is cached. Where the
corpus knows its word times, as the controlled corpus does, they are the truth. Prints one JSON object.
"""

import argparse
import json
from pathlib import Path

from mer_hf import CTCWordAligner, WordAligner
from mer_hf.alignment_report import alignment_report
from mer_hf.corpora import CORPORA, read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, choices=CORPORA)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/cache"))
    parser.add_argument("--split", help="only rows of this split, such as test")
    parser.add_argument("--ctc_model", help="a folder or Hub id of a CTC checkpoint")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file too")
    options = parser.parse_args()
    rows = read_rows(options.corpus, options.data_dir, options.cache_dir).rows
    rows = [row for row in rows if options.split in (None, row["split"])]
    aligner = WordAligner() if options.ctc_model is None else CTCWordAligner(options.ctc_model)
    report = {
        "corpus": options.corpus,
        "split": options.split,
        "aligner": type(aligner).__name__,
        **alignment_report(rows, aligner),
    }
    text = json.dumps(report, indent=1)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
