"""MELD by its words alone: python scripts/meld_text.py --data_dir MELD --encoder MINILM --output_dir runs/meld

Official split; models chosen on the development side, the test side read once. --encoder is a folder or Hub id of a
small BERT, such as sentence-transformers/all-MiniLM-L6-v2. Run it again to go on where it was interrupted. The model
that the development side prefers is meld_finetuned, which trains a part of the encoder (--models meld_finetuned).
"""

import argparse
from pathlib import Path

from mer_hf.text_recipes import FROZEN, MODELS, run_meld


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--models", nargs="+", default=FROZEN, help=f"among {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    options = parser.parse_args()
    run_meld(options.data_dir, options.encoder, options.output_dir, range(options.seeds), options.models, print)


if __name__ == "__main__":
    main()
