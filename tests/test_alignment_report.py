"""Figures of an aligner on clips whose true word times are known."""

import numpy as np
import pytest
import soundfile

from mer_hf import AlignmentError, WordAlignment
from mer_hf.alignment_report import alignment_report, results_table
from mer_hf.data.schema import make_row

TRUTH = [{"word": "kids", "start": 0.1, "end": 0.3}, {"word": "door", "start": 0.3, "end": 0.5}]


class ShiftedAligner:
    """The true words, late by 10 or 80 ms; the third clip needs a second try, the fourth is refused."""

    def __init__(self):
        self.calls = -1  # the first call is to warm up

    def align(self, audio, text):
        self.calls += 1
        if len(audio) == 8_004:
            raise AlignmentError("fits badly")
        late = 0.08 if len(audio) == 8_002 else 0.01
        words = [w | {"start": w["start"] + late, "end": w["end"] + late} for w in TRUTH]
        if len(audio) == 8_001:
            words[0]["end"] = words[0]["start"] + 0.02
        return WordAlignment(tuple(words), 2 if len(audio) == 8_003 else 1, -1.0, ())


@pytest.fixture
def rows(tmp_path):
    made = []
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", np.full(8_000 + number, 0.1), 16_000)
        audio = str(tmp_path / f"{number}.wav")
        made.append(make_row(id=f"c{number}", corpus="own", audio=audio, text="kids door", words=TRUTH))
    return [*made, make_row(id="mute", corpus="own", text="kids door"), made[0] | {"id": "wordless", "text": None}]


def test_shares_are_of_the_clips_with_sound_and_words(rows):
    aligner = ShiftedAligner()
    report = alignment_report(rows, aligner)
    assert (report["clips"], aligner.calls, report["refused"]) == (5, 5, {"c4": "fits badly"})
    assert (report["complete_at_once"], report["complete"]) == (0.4, 0.6), "c1 has a word of 20 ms"
    found = report["boundaries"]
    assert (found["words"], found["placed"]) == (10, 0.8)
    assert found["median_error_s"] == pytest.approx(0.01) and found["p90_error_s"] == pytest.approx(0.08)
    assert found["words_within_50_ms"] == 0.5, "of all words: c0, c3 and one of c1's, whose end is 170 ms early"
    assert report["cpu_ms_per_clip"] >= 0


def test_without_a_truth_there_are_no_errors(rows):
    report = alignment_report([row | {"words": None} for row in rows], ShiftedAligner())
    assert report["boundaries"] is None and report["complete"] == 0.6
    table = results_table({"reports": [{"corpus": "own", "aligner": "Shifted", **report}]})
    assert "| own | Shifted | 5 | 0.400 | 0.600 |" in table


def test_rows_without_sound_or_words_are_refused(rows):
    with pytest.raises(ValueError, match="no row has both sound and text"):
        alignment_report(rows[5:], ShiftedAligner())
