"""Every kind of manifest, and what people's tables have wrong with them."""

import pytest
from own_clips import ids, values, write_records, write_sound, write_text

from mer_hf.data import manifests
from mer_hf.data.folder import scan
from mer_hf.data.scanning import Skipped


@pytest.fixture
def clips(tmp_path):
    """The folder of the clips; tests put files and a manifest into it."""
    path = tmp_path / "clips"
    path.mkdir()
    return path


RECORDS = [
    {"path": "1.wav", "emotion": "anger", "speaker": 7, "words": [{"word": "no", "start": 0, "end": 0.25}]},
    {"path": "2.wav", "emotion": "sad", "speaker": 8, "words": None},
]


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.json", "m.parquet"])
@pytest.mark.parametrize("by_folder", [True, False])
def test_every_type_of_manifest_gives_the_same_rows(clips, name, by_folder):
    write_sound(clips / "1.wav"), write_sound(clips / "2.wav")
    manifest = write_records(clips / name, RECORDS)
    found = scan(clips if by_folder else manifest)
    assert [values(row) for row in found.rows] == [
        {
            "id": "1",
            "corpus": "folder",
            "speaker": "7",
            "audio": str(clips / "1.wav"),
            "words": [{"word": "no", "start": 0.0, "end": 0.25}],
            "label": "angry",
        },
        {"id": "2", "corpus": "folder", "speaker": "8", "audio": str(clips / "2.wav"), "label": "sad"},
    ]
    assert (found.skipped, found.incomplete) == ([], [])


def test_json_lines_may_be_called_json(clips):
    text = '{"text": "hello", "label": "happy", "id": "b"}\n{"text": "no", "label": "sad", "id": "a"}'
    assert ids(scan(write_text(clips / "m.json", text))) == ["a", "b"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_told_by_the_header_alone(clips, delimiter):
    """The second column's name and the text hold every other delimiter."""
    header = delimiter.join(["text", '"mood, ; | of it"'.replace(delimiter, " "), "label"])
    text = delimiter.join(['"Oh; well, yes | no, you see, 1,5;2"', "1", "sad"])
    (row,) = scan(write_text(clips / "m.csv", f"{header}\n{text}\n")).rows
    assert (row["text"], row["label"]) == ("Oh; well, yes | no, you see, 1,5;2", "sad")


def test_a_delimiter_inside_a_name_is_not_taken_for_one(clips):
    manifest = write_text(clips / "m.csv", "text;label;a,b,c,d,e\nWell, yes;sad;1\n")
    assert scan(manifest).rows[0]["text"] == "Well, yes"


def test_lines_are_those_of_the_file(clips):
    """A record over several lines counts from its first; blank lines count as lines."""
    text = 'id,text,label\na,"one\ntwo",sad\n\nb,oops\nc,"three, ""3""",joy,more\nd,fine,joy\ne,fine,weird\n'
    found = scan(write_text(clips / "m.csv", text))
    assert [(row["id"], row["text"]) for row in found.rows] == [("a", "one\ntwo"), ("d", "fine")]
    assert found.skipped == [
        Skipped("m.csv:5", manifests.RAGGED),
        Skipped("m.csv:6", manifests.RAGGED),
        Skipped("m.csv:8", "label 'weird' is not known"),
    ]


@pytest.mark.parametrize("tail", ["\nc,fine,joy\n", '\nc,"fine",joy\n'])
def test_an_open_quote_never_swallows_the_rows_after_it(clips, tail):
    manifest = write_text(clips / "m.csv", 'id,text,label\na,fine,joy\nb,"oh no,sad' + tail)
    with pytest.raises(ValueError, match=r"m\.csv:3: .*in quotes, the quote doubled"):
        scan(manifest)


def test_lines_that_are_no_json_objects_are_named(clips):
    lines = ['{"text": "hello", "label": "joy"}', "{'text': 1}", "[1]", "", '{"text": "cut o']
    found = scan(write_text(clips / "m.jsonl", "\r\n".join(lines)))
    assert len(found.rows) == 1
    assert found.skipped == [Skipped(f"m.jsonl:{line}", manifests.NOT_AN_OBJECT) for line in (2, 3, 5)]


def test_other_encodings_are_named_by_line_and_read_when_asked_for(clips):
    manifest = write_text(clips / "m.csv", "text,label\nnaive,sad\nna\u00efve,sad\n", "cp1252")
    with pytest.raises(ValueError, match=r"m\.csv:3: not utf-8 text; name its encoding=, such as cp1252"):
        scan(manifest)
    assert {row["text"] for row in scan(manifest, encoding="cp1252").rows} == {"naive", "na\u00efve"}
    with pytest.raises(ValueError, match="encoding 'cp12' is unknown"):
        scan(manifest, encoding="cp12")
    excel = write_text(clips / "unicode.tsv", "text\tlabel\nna\u00efve\tsad\n", "utf-16")
    with pytest.raises(ValueError, match=r"unicode\.tsv:1: not utf-8 text.* or utf-16"):
        scan(excel)
    assert scan(excel, encoding="utf-16").rows[0]["text"] == "na\u00efve"


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("m.csv", b"", "no column gives audio, video or text; its columns are none"),
        ("m.csv", b"path,label\n", "holds no clip. Expected a manifest"),
        ("m.csv", b"clip,label\n1.wav,sad\n", r"its columns are 'clip', 'label'\. Name one with columns="),
        ("m.csv", b"path,label,label\n1.wav,sad,sad\n", r"the header repeats column\(s\) 'label'"),
        (
            "m.csv",
            b"path,file,label\n1,1,sad\n",
            r"'path', 'file' could each be 'audio'; choose with.*--columns audio=",
        ),
        ("m.jsonl", b'{"text": "a", "sentence": "b"}', "'text', 'sentence' could each be 'text'"),
        ("m.jsonl", b'{"text": "a"\n', "no column gives"),
        ("m.json", b'[\n{"text": "a"\n', r"m\.json:\d: not JSON"),
        ("m.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("m.xlsx", b"PK", r"is a \.xlsx file. Expected a manifest \(\.csv"),
    ],
)
def test_manifests_that_cannot_be_used(clips, name, data, match):
    (clips / name).write_bytes(data)
    with pytest.raises(ValueError, match=match):
        scan(clips / name)


def test_several_manifests_are_named(clips):
    for name in ("train.csv", "metadata.jsonl", ".hidden.csv"):
        write_text(clips / name, "text,label\na,sad\n")
    with pytest.raises(ValueError, match=r"several manifests \(metadata\.jsonl, train\.csv\); name one of them"):
        scan(clips)
    assert len(scan(clips / "train.csv").rows) == 1


def test_named_columns_go_before_usual_names(clips):
    write_sound(clips / "1.wav")
    manifest = write_text(clips / "m.csv", "path,clip,emotion,mood,text,sentence\nx,1.wav,weird,sad,Hi.,s1\n")
    columns = {"audio": "clip", "label": "mood", "text": "text", "sentence": "sentence"}
    found = scan(manifest, columns=columns)
    assert values(found.rows[0]) == {
        "id": "1",
        "corpus": "folder",
        "audio": str(clips / "1.wav"),
        "text": "Hi.",
        "label": "sad",
        "sentence": "s1",
    }
    assert [item.path for item in found.incomplete] == ["m.csv: column 'emotion'", "m.csv: column 'path'"]


def test_a_column_can_be_left_out(clips):
    manifest = write_text(clips / "m.csv", "text,label,id\nHi.,weird,a\n")
    assert values(scan(manifest, columns={"label": "", "id": ""}).rows[0]).keys() == {"id", "corpus", "text"}


def test_a_column_that_is_mapped_is_no_other_field_by_its_name(clips):
    manifest = write_text(clips / "m.csv", "text,utterance_id\nHi.,a7\n")
    found = scan(manifest, columns={"id": "utterance_id"})
    assert (values(found.rows[0]), found.incomplete) == ({"id": "a7", "corpus": "folder", "text": "Hi."}, [])


def test_a_nameless_column_is_no_field(clips):
    """Data frames are written with one, their index."""
    found = scan(write_text(clips / "m.csv", ",id,text,label\n0,a,Hi.,weird\n"), columns={"label": ""})
    assert values(found.rows[0]) == {"id": "a", "corpus": "folder", "text": "Hi."}
    assert [item.path for item in found.incomplete] == ["m.csv: column ''", "m.csv: column 'label'"]


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"sound": "text"}, r"unknown field\(s\) sound; the fields are id, corpus"),
        ({"audio": "Text"}, "columns names 'Text', but its columns are 'text', 'label'"),
    ],
)
def test_wrong_columns(clips, columns, match):
    with pytest.raises(ValueError, match=match):
        scan(write_text(clips / "m.csv", "text,label\nHi.,sad\n"), columns=columns)


def test_real_transcripts_are_all_read(real_data):
    """MELD's own tables: 13,708 turns of text, quotes, commas and damaged characters included."""
    root = real_data("meld")
    found = {name: scan(root / f"{name}_sent_emo.csv") for name in ("train", "dev", "test")}
    assert {name: len(part.rows) for name, part in found.items()} == {"train": 9989, "dev": 1109, "test": 2610}
    assert all(part.skipped == [] for part in found.values())
    assert found["test"].report()["labels"] == {
        "angry": 345,
        "disgusted": 68,
        "fearful": 50,
        "happy": 402,
        "neutral": 1256,
        "sad": 208,
        "surprised": 281,
    }
