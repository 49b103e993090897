"""Word times out of files as their programs write them, and files that are damaged in the ways files are."""

import numpy as np
import pytest

from mer_hf.data.schema import make_row
from mer_hf.data.word_times import alignment_quality, boundary_errors, read_textgrid, read_wdseg

WDSEG = """\t SFrm  EFrm    SegAScr Word
\t    0    51     -94921 <s>
\t   52    88   -1912345 WHAT(2)
\t   89    89     -10000 <sil>
\t   90   119    -512345 DON'T
\t  120   149    -512345 ++LAUGHTER++
\t  150   179    -512345 </s>
 Total score:    -3554301
"""

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2.5
            text = "AH0"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 2.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "tap"
    item [3]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2.5
        intervals: size = 6
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "the ""big"" one"
        intervals [3]:
            xmin = 0.5
            xmax = 1.125
            text = "naïve!"
        intervals [4]:
            xmin = 1.125
            xmax = 1.5
            text = "SIL"
        intervals [5]:
            xmin = 1.5
            xmax = 2
            text = " 1999 "
        intervals [6]:
            xmin = 2
            xmax = 2.5
            text = "sp"
"""

SHORT = """File type = "ooTextFile short"
"TextGrid"

0
2.5
<exists>
3
"IntervalTier"
"phones"
0
2.5
1
0
2.5
"AH0"
"TextTier"
"clicks"
0
2.5
1
0.7
"tap"
"IntervalTier"
"words"
0
2.5
6
0
0.25
""
0.25
0.5
"the ""big"" one"
0.5
1.125
"naïve!"
1.125
1.5
"SIL"
1.5
2
" 1999 "
2
2.5
"sp"
"""
SPOKEN = [
    {"word": 'the "big" one', "start": 0.25, "end": 0.5},
    {"word": "naïve!", "start": 0.5, "end": 1.125},
    {"word": "1999", "start": 1.5, "end": 2.0},
]


def words_at(*edges):
    return [{"word": word, "start": start, "end": end} for word, start, end in edges]


# -- IEMOCAP ----------------------------------------------------------------------------------------------------------


def test_the_last_frame_of_a_word_belongs_to_it(tmp_path):
    (tmp_path / "a.wdseg").write_text(WDSEG)
    assert read_wdseg(tmp_path / "a.wdseg") == words_at(("what", 0.52, 0.89), ("don't", 0.9, 1.2))


@pytest.mark.parametrize("text", [WDSEG.replace("\n", "\r\n"), WDSEG.replace(" Total score:    -3554301\n", "\n\n")])
def test_line_ends_and_a_missing_total_do_not_matter(tmp_path, text):
    (tmp_path / "a.wdseg").write_bytes(text.encode())
    assert [word["word"] for word in read_wdseg(tmp_path / "a.wdseg")] == ["what", "don't"]


def test_silence_alone_has_no_words(tmp_path):
    (tmp_path / "a.wdseg").write_text("SFrm EFrm SegAScr Word\n0 9 -5 <s>\n10 19 -5 </s>\n")
    assert read_wdseg(tmp_path / "a.wdseg") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", r"a\.wdseg, line 1: no word segmentation"),
        ("SegAScr", "Score", "line 1: no word segmentation"),
        ("   52    88 ", "   52    8x ", r"line 3: '52 8x -1912345 WHAT\(2\)' is not"),
        ("DON'T", "DON T", "line 5: '90 119 -512345 DON T' is not"),
        ("DON'T", "", "line 5: '90 119 -512345' is not"),
        ("   52    88 ", "   50    88 ", "line 3: frames 50 to 88 after frame 51"),
        ("   52    88 ", "   88    52 ", "line 3: frames 88 to 52"),
        ("    0    51 ", "   -1    51 ", "line 2: '-1 51"),
        ("\t  150   179    -512345 </s>\n Total score:    -3554301\n", "", "line 6: cut off"),
        ("</s>\n Total score:    -3554301\n", "", "line 7: '150 179 -512345' is not"),
        ("DON'T", "DON\x92T", "line 5: not text in utf-8"),
    ],
)
def test_a_damaged_wdseg_is_refused_by_file_and_line(tmp_path, old, new, message):
    text = WDSEG.replace(old, new) if old else ""
    (tmp_path / "a.wdseg").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        read_wdseg(tmp_path / "a.wdseg")
    assert str(tmp_path / "a.wdseg") in str(caught.value) and "\n" not in str(caught.value)


# -- Praat ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_text_format_and_encoding_of_praat_says_the_same(tmp_path, text, encoding, newline):
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    (tmp_path / "a.TextGrid").write_bytes((mark + text.replace("\n", newline)).encode(encoding))
    found = read_textgrid(tmp_path / "a.TextGrid")
    assert found == SPOKEN
    make_row(id="a", corpus="mine", text="the big one naïve 1999", words=found)


def test_a_tier_is_chosen_by_its_name(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_text(LONG, encoding="utf-8")
    assert read_textgrid(path, tier="phones") == words_at(("AH0", 0.0, 2.5))
    assert read_textgrid(path, tier="Words") == SPOKEN
    path.write_text(LONG.replace('"phones"', '"Words"'), encoding="utf-8")
    assert read_textgrid(path, tier="Words") == words_at(("AH0", 0.0, 2.5))
    with pytest.raises(ValueError, match="2 tiers are named 'WORDS'; its tiers: 'Words', 'clicks', 'words'"):
        read_textgrid(path, tier="WORDS")
    with pytest.raises(ValueError, match="0 tiers are named 'Wort'"):
        read_textgrid(path, tier="Wort")
    with pytest.raises(ValueError, match="holds points"):
        read_textgrid(path, tier="clicks")


def test_times_count_from_the_start_of_the_grid(tmp_path):
    (tmp_path / "a.TextGrid").write_text(
        '"ooTextFile" "TextGrid" 10 12 <exists> 1 "IntervalTier" "words" 10 12 2 10 10.5 "" 10.5 12 "so"'
    )
    assert read_textgrid(tmp_path / "a.TextGrid") == words_at(("so", 0.5, 2.0))


def test_line_breaks_and_exclamation_marks_inside_a_text_are_text(tmp_path):
    (tmp_path / "a.TextGrid").write_text(
        'File type = "ooTextFile"\n"TextGrid" ! 7 8 "a comment"\n0 1 <exists> 1\n"IntervalTier" "words" 0 1 2\n'
        '0 0.5 "no !\n 5"\n0.5 0.25 "late"\n'
    )
    with pytest.raises(ValueError, match=r"line 7: 'late' runs from 0\.5 to 0\.25"):
        read_textgrid(tmp_path / "a.TextGrid")
    fixed = (tmp_path / "a.TextGrid").read_text().replace("0.25", "0.75")
    (tmp_path / "a.TextGrid").write_text(fixed)
    assert read_textgrid(tmp_path / "a.TextGrid")[0]["word"] == "no !\n 5"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SHORT, "", "line 1: no TextGrid"),
        ("ooTextFile short", "ooBinaryFile", "line 1: no TextGrid"),
        ('"TextGrid"', '"PitchTier"', "line 1: no TextGrid"),
        ("<exists>", "<absent>", "line 6: the grid has no tiers"),
        ("<exists>\n3", "<exists>\n4", "line 45: ends where the class of a tier"),
        ("<exists>\n3", "<exists>\n2", "line 23: 'IntervalTier' after the last tier"),
        ("<exists>\n3", "<exists>\n2.5", "line 7: expected a count"),
        ("TextTier", "Manipulation", "line 16: 'Manipulation' is not"),
        ('0.25\n0.5\n"the', '0.25\n"the', "line 32: expected the end of an interval, found 'the"),
        ("0.5\n1.125", "0.4\n1.125", r"line 36: 'naïve!' runs from 0\.4 to 1\.125 s, after 0\.5 s"),
        ('"sp"\n', "", "line 44: ends where the text of an interval"),
        ('"sp"\n', '"sp', "line 45: a quotation mark is never closed"),
        ("naïve", "na\udcefve", "line 36: not text in utf-8"),
    ],
)
def test_a_damaged_textgrid_is_refused_by_file_and_line(tmp_path, old, new, message):
    assert SHORT.count(old) == 1
    (tmp_path / "a.TextGrid").write_bytes(SHORT.replace(old, new).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        read_textgrid(tmp_path / "a.TextGrid")
    assert str(tmp_path / "a.TextGrid") in str(caught.value) and "\n" not in str(caught.value)


def test_utf16_cut_in_the_middle_of_a_character_is_refused(tmp_path):
    (tmp_path / "a.TextGrid").write_bytes(SHORT.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="not text in utf-16"):
        read_textgrid(tmp_path / "a.TextGrid")


# -- Quality ----------------------------------------------------------------------------------------------------------


def test_quality_by_hand():
    words = words_at(("a", 0.1, 0.13), ("b", 0.13, 0.15), ("c", 0.14, 0.54), ("d", 0.9, 1.1))
    found = alignment_quality(words, 1.0)
    assert found.count == 4
    assert found.shortest == pytest.approx(0.02)
    assert found.long_enough == 0.75  # 0.03 s in decimals is a little less in binary
    assert found.in_order == 0.5  # c begins inside b, d ends after the clip
    assert found.covered == pytest.approx(0.65)


@pytest.mark.parametrize("words", [None, []])
def test_no_words_have_no_quality(words):
    assert alignment_quality(words, 1.0) == (0, None, None, None, None)


def test_quality_needs_a_clip():
    with pytest.raises(ValueError, match="seconds is 0"):
        alignment_quality([], 0)


def test_boundary_errors_by_hand():
    truth = words_at(("the", 0.0, 0.2), ("big", 0.2, 0.5), ("dog", 0.5, 0.9), ("the", 1.0, 1.1))
    found = words_at(("The", 0.1, 0.2), ("dog", 0.45, 1.0), ("uh", 1.0, 1.05), ("the", 1.05, 1.25))
    np.testing.assert_allclose(boundary_errors(found, truth), [[0.1, 0.0], [0.05, 0.1], [0.05, 0.15]], atol=1e-9)


def test_errors_of_words_in_common_with_none_are_none():
    assert boundary_errors(words_at(("a", 0, 1)), words_at(("b", 0, 1))).shape == (0, 2)
    assert boundary_errors([], []).shape == (0, 2)
