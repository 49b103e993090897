"""People's words and numbers, and what cannot be read of them."""

import pytest
from own_clips import ids, values, write_records, write_sound, write_text

from mer_hf.data import field_values, folder_rows
from mer_hf.data.field_values import LABEL_WORDS
from mer_hf.data.folder import scan
from mer_hf.data.scanning import Skipped
from mer_hf.data.schema import EMOTIONS


@pytest.fixture
def clips(tmp_path):
    """The folder of the clips; tests put files and a manifest into it."""
    path = tmp_path / "clips"
    path.mkdir()
    return path


def test_a_side_value_that_cannot_be_read_is_null_and_told(clips):
    """The clip is of use without it; its label, its files and its side are not left to chance."""
    lines = [
        "id,text,label,turn,valence,start,end,words,split,scripted",
        "a,Hi.,sad,utt_3,high,0:01,0:02,[1],train,maybe",
        "b,Hi.,sad,1.5,inf,2,1,{},test,",
        'c,Hi.,sad,3000000000,nan,-1,,"[{""word"": ""hi"", ""start"": 2, ""end"": 1}]",val,1',
        "d,Hi.,sad,,,,,,fold1,",
        "e,Hi.,sad,,,,,,,",
    ]
    found = scan(write_text(clips / "m.csv", "\n".join(lines).replace(",[1],", ',"[1]",')))
    described = {"id", "corpus", "split", "text", "label"}
    assert [set(values(row)) - {"scripted"} for row in found.rows] == [described] * 3
    words = "words is no list of {word, start, end} with 0 <= start <= end in seconds"
    assert found.incomplete == [
        Skipped("m.csv:2", "turn is no whole number"),
        Skipped("m.csv:2", "start is no number of seconds"),
        Skipped("m.csv:2", "end is no number of seconds"),
        Skipped("m.csv:2", words),
        Skipped("m.csv:2", "scripted is not true or false"),
        Skipped("m.csv:2", "valence is no number"),
        Skipped("m.csv:3", "turn is no whole number"),
        Skipped("m.csv:3", words),
        Skipped("m.csv:3", "valence is no number"),
        Skipped("m.csv:3", folder_rows.BAD_TIMES),
        Skipped("m.csv:4", "turn is no whole number"),
        Skipped("m.csv:4", words),
        Skipped("m.csv:4", folder_rows.BAD_TIMES),
    ]
    assert found.skipped == [
        Skipped("m.csv:5", "split 'fold1' is none of train, validation, test"),
        Skipped("m.csv:6", folder_rows.NO_SPLIT),
    ]


@pytest.mark.parametrize("word", ["None", "NA", "null"])
def test_words_for_nothing_are_words_in_free_text(clips, word):
    found = scan(
        write_text(clips / "m.csv", f"id,text,speaker,session,turn,gender\n{word},{word},{word},{word},{word},n/a\n")
    )
    assert values(found.rows[0]) == dict.fromkeys(("id", "text", "speaker", "session"), word) | {"corpus": "folder"}
    assert found.incomplete == []


@pytest.mark.parametrize(("number", "value"), [("0,5", 0.5), ("-1.25", -1.25), ("2", 2), ("1.234,5", None)])
def test_decimal_commas_and_points(clips, number, value):
    """What could be read in two ways is not guessed at."""
    found = scan(write_text(clips / "m.csv", f"text;valence\nHi.;{number}\n"))
    assert found.rows[0]["valence"] == value
    assert found.incomplete == ([Skipped("m.csv:2", "valence is no number")] if value is None else [])


def test_usual_label_words():
    known = [word for words in LABEL_WORDS.values() for word in words]
    assert tuple(LABEL_WORDS) == EMOTIONS
    assert len(set(known)) == len(known)


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("Anger", "angry"),
        ("ANG", "angry"),
        ("joy", "happy"),
        ("hap", "happy"),
        (" Sadness ", "sad"),
        ("fear", "fearful"),
        ("Disgust", "disgusted"),
        ("surprise", "surprised"),
        ("neu", "neutral"),
        ("exc", "excited"),
        ("fru", "frustrated"),
        ("calm", "calm"),
    ],
)
def test_label_words(clips, word, label):
    assert scan(write_text(clips / "m.csv", f"text,label\nHi.,{word}\n")).rows[0]["label"] == label


def test_ones_own_label_words(clips):
    manifest = write_text(clips / "m.csv", "id,text,class\na,x,Pleasant_Surprise\nb,x,3\nc,x,joy\nd,x,bored\ne,x,\n")
    found = scan(manifest, labels={"pleasant surprise": "surprised", "3": "neutral", "joy": "excited"})
    assert [(row["id"], row["label"]) for row in found.rows] == [
        ("a", "surprised"),
        ("b", "neutral"),
        ("c", "excited"),  # before the usual word
        ("e", None),  # a clip without a label is of use for prediction
    ]
    assert found.skipped == [Skipped("m.csv:5", "label 'bored' is not known")]
    assert found.skip_counts == {"label 'bored' is not known": 1}


def test_words_of_which_none_is_known_are_listed_with_the_remedy(clips):
    manifest = write_text(clips / "m.csv", "text,label\nx,mad\ny,glad\nz,mad\n")
    with pytest.raises(ValueError, match=r"'mad' \(2\), 'glad' \(1\)\. Map them with labels=\{'mad': .*neutral, calm"):
        scan(manifest)
    with pytest.raises(ValueError, match=r"labels maps to 'bored'; the labels are fixed: .*cannot be used"):
        scan(manifest, labels={"mad": "bored"})


def test_media_as_datasets_stores_them(clips):
    write_sound(clips / "1.wav")
    table = [
        {"audio": {"path": "1.wav", "bytes": None}, "label": "sad"},
        {"audio": {"path": "2.wav", "bytes": b"RIFF"}, "label": "sad"},
        {"audio": {"path": None, "bytes": None}, "label": "sad"},
    ]
    found = scan(write_records(clips / "m.parquet", table))
    assert ids(found) == ["1"]
    assert found.skipped == [
        Skipped("m.parquet:2", field_values.EMBEDDED),
        Skipped("m.parquet:3", folder_rows.NOTHING),
    ]
