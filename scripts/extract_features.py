"""States of frozen backbones, once a clip: python scripts/extract_features.py --corpus ravdess --data_dir RAVDESS
--audio facebook/wav2vec2-base --text roberta-base --vision google/vit-base-patch16-224-in21k --store runs/features

--model takes the backbones of a trained checkpoint instead. Clips of like length are run together. What is there is
found by content and not computed again (see `mer_hf.data.feature_store`), so run it again to go on after a kill. Under
`torchrun --nproc_per_node N` the processes share the clips. Prints one JSON object for all of them; clips that cannot
be read are in it, with the reason.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoModel, AutoProcessor

from mer_hf.backbone_recipes import backbone_model, backbone_processor
from mer_hf.cli_predict import check_folder, quiet_transformers
from mer_hf.corpora import CORPORA, align_rows, read_rows
from mer_hf.data.feature_store import DTYPES, FeatureStore
from mer_hf.training import process_state


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quiet_transformers()
    try:
        extract(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def extract(options: argparse.Namespace) -> None:
    state = process_state()
    if options.model is not None:
        check_folder(options.model)
        model, processor = AutoModel.from_pretrained(options.model), AutoProcessor.from_pretrained(options.model)
    else:
        backbones = {name: getattr(options, name) for name in ("audio", "text", "vision") if getattr(options, name)}
        model, processor = backbone_model("cme", backbones), backbone_processor(backbones)
    model.to(state.device, getattr(torch, options.precision))
    store = FeatureStore(options.store, model, processor, dtype=options.dtype)
    with state.main_process_first():
        rows = read_rows(options.corpus, options.data_dir, options.cache_dir).rows
        if "text" in store.modalities:  # as in training; an entry of words is found by their times too
            rows, _ = align_rows(rows, options.cache_dir / "words.json")
    if options.prune and state.is_main_process:
        store.prune()
    state.wait_for_everyone()
    store.fill(rows, options.batch_seconds, state.process_index, state.num_processes, tell(state))
    counted = gather_object([(store.hits, store.misses, store.failed)])
    if state.is_main_process:
        store.refresh()
        store.hits, store.misses = (sum(count) for count in list(zip(*counted, strict=True))[:2])
        reasons = {row: why for *_, failed in counted for row, why in sorted(failed.items())}
        report = store.report() | {"clips": len(rows), "failed": len(reasons), "reasons": reasons}
        print(json.dumps(report, indent=1), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, choices=CORPORA, help="folder = your own clips")
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/cache"), help="where word times are kept")
    parser.add_argument("--model", help="a folder or Hub id of a checkpoint with pretrained backbones")
    for modality in ("audio", "text", "vision"):
        parser.add_argument(f"--{modality}", help=f"a folder or Hub id of a {modality} backbone")
    parser.add_argument("--store", required=True, type=Path, help="the folder of the states")
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="that states are kept in")
    parser.add_argument("--precision", default="float32", choices=DTYPES, help="that backbones are run in")
    parser.add_argument("--batch_seconds", type=float, default=120.0, help="of sound in a batch, padding included")
    parser.add_argument(
        "--prune", action="store_true", help="first delete what this does not use, other backbones' too"
    )
    options = parser.parse_args(arguments)
    if (options.model is None) == (not (options.audio or options.text or options.vision)):
        parser.error("give --model, or some of --audio, --text and --vision")
    return options


def tell(state: PartialState) -> Callable[[str, int, int], None]:
    def progress(modality: str, done: int, of: int) -> None:
        if state.is_main_process:
            print(f"{modality}: {done} of {of} clips of this process", file=sys.stderr, flush=True)

    return progress


if __name__ == "__main__":
    sys.exit(main())
