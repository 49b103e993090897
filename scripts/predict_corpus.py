"""Emotions of a whole corpus in Parquet: python scripts/predict_corpus.py --model runs/mine/cme --corpus ravdess
--data_dir RAVDESS --output_dir runs/predicted

or of a data set: --dataset ann/clips --split train (a Hub id, streamed; or Parquet files on this machine). Under
`torchrun --nproc_per_node N` the processes share the work, each on its own GPU where there are some. Run it again to
go on after a kill, with any number of processes: shards that are there are not computed again, and each row ends up in
the output exactly once. The last line says whether all of it is there.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from mer_hf import TASK, pipeline
from mer_hf.cli_predict import check_folder, quiet_transformers
from mer_hf.corpora import CORPORA, read_rows
from mer_hf.corpus_prediction import Limits, predict_corpus
from mer_hf.data.hub_rows import data_set_version, stream_rows
from mer_hf.default_model import load_default

RANKS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
"""What `torchrun`, or a scheduler's script, tells each process; and what one alone is."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quiet_transformers()
    try:
        predict(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def predict(options: argparse.Namespace) -> None:
    if options.model is not None:
        check_folder(options.model)
    # Taken out of the environment: else libraries make a process group, in which all wait for one that was killed.
    rank, world, local = (int(os.environ.pop(name, default)) for name, default in RANKS.items())
    rows, source = rows_of(options)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = "cpu" if accelerator is None else f"{accelerator.type}:{local}"
    if options.model is None:
        classify = load_default(device=device)
    else:
        remote = {"trust_remote_code": True} if options.trust_remote_code else {}
        classify = pipeline(TASK, model=options.model, device=device, **remote)
    done = predict_corpus(
        rows,
        classify,
        options.output_dir,
        source=source,
        shard_rows=options.shard_rows,
        limits=Limits(options.batch_size, options.batch_seconds),
        rank=rank,
        world=world,
        recognize=options.recognize,
        progress=lambda shard, count: print(f"shard {shard}: {count} rows (process {rank})", flush=True),
    )
    state = f"{len(done.missing)} shards are missing yet" if done.missing else f"all {done.rows} rows are there"
    print(f"process {rank}: {len(done.computed)} shards computed; {state}", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or Hub id of a trained checkpoint; default the package's own")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", choices=CORPORA, help="folder = your own clips")
    source.add_argument("--dataset", help="a Hub id, a Parquet file or a folder of those")
    parser.add_argument("--data_dir", type=Path, help="of --corpus: your copy; of folder a manifest or class folders")
    parser.add_argument("--split", help="of --dataset, or only rows of --corpus with this split")
    parser.add_argument("--config", help="of --dataset")
    parser.add_argument("--revision", help="of --dataset: a commit, branch or tag; default main")
    parser.add_argument(
        "--labels", nargs="+", default=[], metavar="WORD=EMOTION", help="folder: your words for emotions"
    )
    parser.add_argument("--columns", nargs="+", default=[], metavar="FIELD=COLUMN", help="of --dataset or folder")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--cache_dir", type=Path, help="of --corpus; default cache in --output_dir")
    parser.add_argument("--shard_rows", type=int, default=512, help="rows a file: what a kill can lose")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batch_seconds", type=float, default=120.0, help="of sound in a batch, padding included")
    parser.add_argument("--recognize", action="store_true", help="guess the words of clips without a transcript")
    parser.add_argument("--trust_remote_code", action="store_true", help="use the code that came with the checkpoint")
    options = parser.parse_args(arguments)
    if options.corpus is not None and options.data_dir is None:
        parser.error("--corpus needs --data_dir")
    unclear = [f"--{name} {v}" for name in ("columns", "labels") for v in getattr(options, name) if "=" not in v]
    if unclear:
        parser.error(f"{unclear[0]}: write it as NAME=VALUE")
    return options


def rows_of(options: argparse.Namespace) -> tuple[Iterable[dict[str, Any]], Any]:
    """The rows, and what they are."""
    columns = dict(item.split("=", 1) for item in options.columns)
    if options.dataset is not None:
        version = data_set_version(options.dataset, options.revision)
        source = [options.dataset, options.config, options.split, version, columns]
        revision = version if isinstance(version, str) else None
        return stream_rows(options.dataset, options.split, options.config, columns, revision), source
    labels = dict(item.split("=", 1) for item in options.labels)
    given = {name: value for name, value in (("columns", columns), ("labels", labels)) if value}
    if options.corpus != "folder" and given:
        raise ValueError(f"--{', --'.join(given)}: of --corpus folder, not of {options.corpus}")
    cache = options.cache_dir or options.output_dir / "cache"
    rows = read_rows(options.corpus, options.data_dir, cache, **given).rows
    chosen = [row for row in rows if options.split in (None, row["split"])]
    if not chosen:
        splits = sorted({str(row["split"]) for row in rows})
        raise ValueError(f"--split {options.split}: no row is of it; the rows have {', '.join(splits)}")
    return chosen, None


if __name__ == "__main__":
    sys.exit(main())
