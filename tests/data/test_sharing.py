"""What of a prepared corpus may be published: media where the licence lets, never a path of the user's own copy."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import load_dataset
from datasets.table import embed_table_storage

from mer_hf.data.ravdess import Ravdess


class Restricted(Ravdess):
    """The same corpus under a licence like IEMOCAP's."""

    MEDIA_MAY_BE_SHARED = False


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "private" / "Actor_01"
    folder.mkdir(parents=True)
    for emotion in "123":
        soundfile.write(folder / f"03-01-0{emotion}-01-01-01-01.wav", np.full(200, int(emotion) / 10), 16_000)
    return tmp_path / "private"


def published(builder, file):
    """As `push_to_hub` writes it: media embedded into Parquet."""
    builder.download_and_prepare()
    part = builder.shareable()["train"]
    pq.write_table(embed_table_storage(part.with_format("arrow")[:]), file)
    return part


def test_open_media_travel_as_bytes(tree, tmp_path):
    published(Ravdess(data_dir=str(tree), cache_dir=str(tmp_path / "cache")), tmp_path / "train.parquet")
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert [row["audio"]["path"] for row in rows] == [f"03-01-0{emotion}-01-01-01-01.wav" for emotion in "123"]
    for emotion, row in zip("123", rows, strict=True):
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert rate == 16_000 and samples == pytest.approx(np.full(200, int(emotion) / 10), abs=1e-4)
    assert b"private" not in (tmp_path / "train.parquet").read_bytes()


def test_restricted_media_do_not_travel(tree, tmp_path):
    part = published(Restricted(data_dir=str(tree), cache_dir=str(tmp_path / "cache")), tmp_path / "train.parquet")
    assert part["audio"][:] == [None] * 3 and part["label"][:] == ["neutral", "calm", "happy"]
    assert part.features == Ravdess(data_dir=str(tree), cache_dir=str(tmp_path / "cache")).info.features
    stored = (tmp_path / "train.parquet").read_bytes()
    assert b"private" not in stored and b"RIFF" not in stored
    again = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "again"))
    assert again["train"]["id"][:] == part["id"][:]
