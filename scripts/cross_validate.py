"""Cross-validate models under a protocol: python scripts/cross_validate.py --protocol ravdess-emobox --seeds 3 ...

The same as `mer-hf evaluate`, see its --help. Every fold is selected on its validation side and tested once; results
are one JSON, one Markdown and one PNG file in --output_dir. Run it again to go on where it was interrupted.
"""

import sys

from mer_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
