"""The schema refuses rows that would mislead whoever reads them."""

import sys

import pytest
from datasets import Audio, Dataset, Features, Value, Video

from mer_hf.data.schema import EMOTIONS, FEATURES, make_row, rows_to_table, validate_row

WORDS = [{"word": "excuse", "start": 0.1, "end": 0.5}, {"word": "me", "start": 0.5, "end": 0.5}]


def test_columns_not_named_are_null():
    row = make_row(id="a", corpus="test", text="hello", words=WORDS)
    assert list(row) == list(FEATURES)
    assert {name for name, value in row.items() if value is not None} == {"id", "corpus", "text", "words"}


def test_rows_survive_arrow_with_word_times_and_nulls(tmp_path):
    rows = [make_row(id="a", corpus="test", text="excuse me", words=WORDS, label="sad", start=0.0, end=1.5)]
    rows.append(make_row(id="b", corpus="test", text="hello"))
    Dataset.from_list(rows, features=FEATURES).to_parquet(tmp_path / "rows.parquet")
    back = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    assert back.to_list() == rows
    assert back.features == FEATURES


def test_media_are_never_decoded_by_datasets():
    """Its decoders need torchcodec and a system FFmpeg; this package has neither."""
    media = {name: feature for name, feature in FEATURES.items() if isinstance(feature, Audio | Video)}
    assert set(media) == {"audio", "video"}
    assert not any(feature.decode for feature in media.values())


def test_features_survive_their_own_serialisation():
    assert Features.from_dict(FEATURES.to_dict()) == FEATURES


def test_the_label_set():
    assert len(EMOTIONS) == len(set(EMOTIONS)) == 10
    for label in EMOTIONS:
        assert make_row(id="a", corpus="test", text="hello", label=label)["label"] == label


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": ""}, "row '': column 'id' is empty"),
        ({"corpus": None}, "row 'a': column 'corpus' is empty"),
        ({"label": "joy"}, "label 'joy' is not one of neutral"),
        ({"text": None}, "no audio, no video and no text"),
        ({"text": ""}, "no audio, no video and no text"),
        ({"start": 2.0, "end": 1.0}, "start 2.0 and end 1.0"),
        ({"start": 1.0, "end": 1.0}, "start 1.0 and end 1.0"),
        ({"start": -1.0, "end": 1.0}, "start -1.0"),
        ({"words": [WORDS[0], {"word": "me", "start": 0.6, "end": 0.5}]}, r"words\[1\] \('me'\) runs from 0.6 to 0.5"),
        ({"words": [{"word": "me", "start": -0.1, "end": 0.5}]}, r"words\[0\]"),
        ({"speeker": "x"}, "unknown column.s. speeker"),
    ],
)
def test_bad_rows_are_refused_by_name(change, match):
    good = {"id": "a", "corpus": "test", "text": "hello"}
    assert make_row(**good)["id"] == "a"
    with pytest.raises(ValueError, match=match):
        make_row(**(good | change))


@pytest.mark.parametrize("medium", ["audio", "video", "text"])
def test_one_modality_is_enough(medium):
    validate_row({"id": "a", "corpus": "test", medium: "something"})


# Rows as Arrow stores them


def test_media_are_stored_by_path_without_torchcodec(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # importing it now raises ImportError
    rows = [
        make_row(id="a", corpus="test", audio="/a.wav"),
        make_row(id="b", corpus="test", video="/b.mp4", words=WORDS),
    ]
    stored = Dataset(rows_to_table(iter(rows))).to_list()
    assert stored[0] == rows[0] | {"audio": {"bytes": None, "path": "/a.wav"}}
    assert stored[1] == rows[1] | {"video": {"bytes": None, "path": "/b.mp4"}}
    assert rows[0]["audio"] == "/a.wav"  # the caller's rows are left alone


def test_tables_have_the_features_types_even_without_a_row():
    for rows in ([], [make_row(id="a", corpus="test", text="hello")]):
        assert Dataset(rows_to_table(rows)).features == FEATURES


def test_a_corpus_may_have_columns_of_its_own():
    features = Features({**FEATURES, "face": Video(decode=False), "item": Value("string")})
    table = rows_to_table([{"id": "a", "face": "/face.mp4", "item": "x"}], features)
    row = table.to_pylist()[0]
    assert (row["face"], row["item"], row["audio"]) == ({"bytes": None, "path": "/face.mp4"}, "x", None)
    with pytest.raises(ValueError, match=r"row 'a': column\(s\) item, mood are not among the features"):
        rows_to_table([{"id": "a", "item": "x", "mood": "y"}])
