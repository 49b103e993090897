import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mer_hf.data.fer2013 import LABELS, SPLITS, load_fer2013, load_split, shared_pictures
from mer_hf.data.schema import EMOTIONS


def encode(picture: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


def draw(seed: int, shape: tuple[int, ...] = (48, 48)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, split: str, rows: list[tuple]) -> None:
    ids, labels, pictures = zip(*rows, strict=True)
    table = pa.table({"id": ids, "label": labels, "jpeg": pa.array(pictures, pa.binary())})
    pq.write_table(table, folder / f"{split}.parquet")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Three sides of two pictures each, all different."""
    for place, split in enumerate(SPLITS):
        write(tmp_path, split, [(f"{split}_{k}", "fear", encode(draw(10 * place + k))) for k in range(2)])
    return tmp_path


def test_every_label_of_the_challenge_is_a_word_of_the_schema():
    assert set(LABELS.values()) <= set(EMOTIONS) and len(set(LABELS.values())) == 7


def test_pixels_ids_and_labels_come_back_in_the_files_order(tmp_path):
    write(tmp_path, "train", [("b", "disgust", encode(draw(1))), ("a", "surprise", encode(draw(2)))])
    side = load_split(tmp_path, "train")
    assert side.ids == ("b", "a") and side.labels == ("disgusted", "surprised") and len(side) == 2
    np.testing.assert_array_equal(side.pixels, np.stack([draw(1), draw(2)]))
    assert side.skipped == ()


def test_a_colour_picture_is_read_as_its_luma(tmp_path):
    red = np.zeros((48, 48, 3), dtype=np.uint8)
    red[..., 0] = 200
    write(tmp_path, "train", [("a", "happy", encode(red))])
    assert set(load_split(tmp_path, "train").pixels.flatten().tolist()) == {60}  # 0.299 * 200


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"no picture at all", "cannot identify image file"),
        (encode(draw(0), "JPEG")[:300], "Truncated File Read"),
        (encode(draw(0, (32, 40))), "40 x 32 pixels, expected 48 x 48"),
        (b"", "no picture"),
        (None, "no picture"),
    ],
)
def test_what_is_no_picture_is_left_out_and_told(tmp_path, broken, reason):
    write(tmp_path, "test", [("a", "sad", encode(draw(1))), ("b", "sad", broken), ("c", "angry", encode(draw(2)))])
    side = load_split(tmp_path, "test")
    assert side.ids == ("a", "c") and side.labels == ("sad", "angry")
    assert [place for place, _ in side.skipped] == ["test.parquet:1"] and reason in side.skipped[0].reason


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "joy", encode(draw(1)))], "row 0 has the label 'joy', which is none of neutral"),
        ([("a", None, encode(draw(1)))], "row 0 has the label None"),
        ([("a", "sad", encode(draw(1))), ("a", "sad", encode(draw(2)))], "row 1 has the id 'a', empty or used before"),
        ([("", "sad", encode(draw(1)))], "row 0 has the id ''"),
        ([("a", "sad", b"?")], "holds no readable picture in 1 rows"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, rows, message):
    write(tmp_path, "train", rows)
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path, "train")


def test_an_absent_file_a_missing_column_and_an_unknown_split_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no train\.parquet"):
        load_split(tmp_path, "train")
    pq.write_table(pa.table({"id": ["a"], "emotion": ["sad"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) label, jpeg; found id, emotion"):
        load_split(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of train, validation, test, found 'dev'"):
        load_split(tmp_path, "dev")


def test_sides_without_a_shared_picture_load(copy):
    assert {name: side.ids for name, side in load_fer2013(copy).items()} == {
        split: (f"{split}_0", f"{split}_1") for split in SPLITS
    }


def test_a_picture_on_two_sides_is_found_whatever_its_id_and_encoding(copy):
    write(copy, "test", [("x", "sad", encode(draw(99))), ("y", "sad", encode(draw(1), "BMP"))])
    with pytest.raises(ValueError, match="1 pictures are on two sides, the first train/train_1 and test/y"):
        load_fer2013(copy)
    sides = {split: load_split(copy, split) for split in SPLITS}
    assert list(shared_pictures(sides)) == [("train/train_1", "test/y")]
    assert set(load_fer2013(copy, ("train", "validation"))) == {"train", "validation"}


def test_a_picture_repeated_on_one_side_is_not_shared(copy):
    write(copy, "test", [("x", "sad", encode(draw(99))), ("y", "sad", encode(draw(99)))])
    assert len(load_fer2013(copy)["test"]) == 2


def test_the_real_copy_is_whole_and_its_sides_are_disjoint(real_data):
    sides = load_fer2013(real_data("fer2013"))
    assert {name: len(side) for name, side in sides.items()} == {"train": 24230, "validation": 2712, "test": 7178}
    assert all(side.skipped == () for side in sides.values())
    assert sides["test"].labels.count("disgusted") == 111
