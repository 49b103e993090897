"""Train and test models fold by fold: python scripts/train.py --corpus ravdess --data_dir RAVDESS --output_dir runs/x

Every fold is trained by the recipes of `mer_hf.recipes`, selected on its validation side and tested once, logistic
regressions on the same clips beside it. Run it again to go on where it was interrupted. The same as `mer-hf train`;
under `torchrun` the processes train together.
"""

import sys

from mer_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
