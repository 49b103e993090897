"""The default checkpoint, made anew from your copies of RAVDESS, FER2013 and MELD: about two hours of one CPU core.

    python scripts/build_default_checkpoint.py --ravdess RAVDESS --fer2013 FER2013 --meld MELD --work_dir runs/default

Writes mer_hf/default_checkpoint/ and what was measured to hub_cards/results/. Run it again to go on where it was
interrupted. Needs `pip install "mer-hf[words]"`.
"""

import argparse
from pathlib import Path

import torch

from mer_hf.default_model.loading import DEFAULT_CHECKPOINT
from mer_hf.default_model.rebuild import rebuild

RESULTS = Path(__file__).resolve().parents[1] / "hub_cards" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ravdess", required=True, type=Path)
    parser.add_argument("--fer2013", required=True, type=Path)
    parser.add_argument("--meld", required=True, type=Path)
    parser.add_argument("--face_scores", type=Path, help="of RAVDESS, to measure voice and face together too")
    parser.add_argument("--work_dir", required=True, type=Path)
    parser.add_argument("--results_dir", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=DEFAULT_CHECKPOINT)
    options = parser.parse_args()
    torch.set_num_threads(1)  # what the shipped one was made with: other numbers round otherwise
    rebuild(**vars(options), progress=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
