"""Publish a checkpoint, a corpus from your own copy, or the Space. Without --push it says what would go where.

    python scripts/push_to_hub.py model runs/x/cme me/cme-ravdess --results runs/x/results.json
    python scripts/push_to_hub.py dataset ravdess RAVDESS me/ravdess --push
    python scripts/push_to_hub.py space spaces/emotion_demo me/emotion-demo

Log in once with `hf auth login`, or set HF_TOKEN. Run it again after a cut connection: what has arrived is not sent
twice.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

from mer_hf.data.controlled import ControlledCorpus
from mer_hf.data.crema_d import CremaD
from mer_hf.data.folder import Folder
from mer_hf.data.iemocap import Iemocap
from mer_hf.data.meld import Meld
from mer_hf.data.ravdess import Ravdess
from mer_hf.publishing import check_publishable, publish_dataset, publish_model, publish_space

BUILDERS = {
    "ravdess": Ravdess,
    "crema_d": CremaD,
    "meld": Meld,
    "iemocap": Iemocap,
    "folder": Folder,
    "controlled": ControlledCorpus,
}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    model, dataset, space = (kinds.add_parser(kind) for kind in ("model", "dataset", "space"))
    model.add_argument("checkpoint", type=Path, help="a folder that `mer-hf train` or save_checkpoint wrote")
    dataset.add_argument("corpus", choices=BUILDERS, help="folder = your own clips")
    dataset.add_argument("data_dir", type=Path, help="your copy")
    space.add_argument("folder", type=Path, help="of the Space, such as spaces/emotion_demo")
    space.add_argument("--wheel", type=Path, help="this package's; default the one in the folder")
    model.add_argument("--results", type=Path, nargs="+", default=[], help="results.json, or report.json of --model")
    model.add_argument("--datasets", nargs="+", help="Hub ids of what it was trained on; default the corpus's name")
    model.add_argument("--model_name", help="the checkpoint's name in results.json; default the folder's name")
    dataset.add_argument("--cache_dir", type=Path, help="where the corpus is prepared; default that of `datasets`")
    dataset.add_argument(
        "--share_media", choices=["yes", "no"], help="whether sound and pictures go; must be said of your own clips"
    )
    for kind in (model, dataset, space):
        kind.add_argument("repo_id", help="namespace/name on the Hub")
        kind.add_argument("--push", action="store_true", help="do it; without, nothing is sent")
        kind.add_argument("--show_card", action="store_true", help="print README.md as it goes up")
    for kind in (model, dataset):
        kind.add_argument("--license", help="the Hub's identifier; default that of the corpus")
        kind.add_argument("--private", action="store_true")
    return parser


def _hide_progress_of_loading() -> None:
    """That of sending stays, where it was wanted."""
    hidden = are_progress_bars_disabled()
    logging.disable_progress_bar()  # huggingface_hub's too
    if not hidden:
        enable_progress_bars()


def main(arguments: list[str] | None = None) -> int:
    given = options().parse_args(arguments)
    _hide_progress_of_loading()
    try:
        if given.kind == "model":
            done = publish_model(
                given.checkpoint,
                given.repo_id,
                results=given.results,
                model_name=given.model_name,
                license=given.license,
                datasets=given.datasets,
                private=given.private,
                dry_run=not given.push,
            )
        elif given.kind == "dataset":
            check_publishable([given.corpus])  # before its copy is read
            cache = None if given.cache_dir is None else str(given.cache_dir)
            done = publish_dataset(
                BUILDERS[given.corpus](data_dir=str(given.data_dir), cache_dir=cache),
                given.repo_id,
                license=given.license,
                share_media=None if given.share_media is None else given.share_media == "yes",
                private=given.private,
                dry_run=not given.push,
            )
        else:
            done = publish_space(given.folder, given.repo_id, given.wheel, dry_run=not given.push)
    except (ValueError, OSError, RuntimeError) as error:
        told = [line for line in str(error).splitlines() if line and not line.startswith("For more information check")]
        print(f"error: {' '.join(told)}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    if given.show_card:
        print(done.card)
    print(done)
    if done.commit is None:
        print("send it with --push")
    return 0


if __name__ == "__main__":
    sys.exit(main())
