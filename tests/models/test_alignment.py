"""Word times: splitting a transcript, and PocketSphinx held to what is promised of it on real clips."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mer_hf.models import alignment
from mer_hf.models.alignment import AlignmentError, WordAligner, split_words, written_words
from mer_hf.models.media import load_audio

SENTENCES = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
KIDS = SENTENCES["01"]


def sentence_of(path):
    return SENTENCES[path.stem.split("-")[4]]


@pytest.fixture(scope="module")
def aligner():
    return WordAligner()


@pytest.fixture(scope="module")
def clips(ravdess_dir):
    """Every 40th clip: (audio, sentence)."""
    paths = sorted(ravdess_dir.glob("Actor_*/*.wav"))[::40]
    return [(load_audio(path), sentence_of(path)) for path in paths]


@pytest.fixture(scope="module")
def kids(ravdess_dir):
    """A calm clip in which the first statement is said."""
    return load_audio(ravdess_dir / "Actor_01" / "03-01-01-01-01-01-01.wav")


def noise(seconds):
    return (0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))).clip(-1, 1)


# -- The words of a transcript ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Kids are talking, by the DOOR!", ["kids", "are", "talking", "by", "the", "door"]),
        ("It’s Joey‘s; don't", ["it's", "joey's", "don't"]),
        ("I\x92m fine", ["i'm", "fine"]),
        ("'Cause he said ''yes'', 'no' and dogs'", ["cause", "he", "said", "yes", "no", "and", "dogs"]),
        ("Well-known—really…nothing", ["well", "known", "really", "nothing"]),
        ("1,250.5 or 3.5. End.5", ["1250.5", "or", "3.5", "end", "5"]),
        ("1,2,3 go", ["1", "2", "3", "go"]),
        ("Cafe\u0301 ÉTÉ", ["caf\u00e9", "\u00e9t\u00e9"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("snake_case e.g. ½", ["snake", "case", "e", "g", "1", "2"]),
        ("  ... -- ' ' ", []),
    ],
)
def test_split_words(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "stretches"),
    [
        ("Oh -- no!", ["Oh -- ", "no!"]),
        ("... Well-known: it's 1,250.5!", ["... Well-", "known: ", "it's ", "1,250.5!"]),
        ("a/b b.b", ["a/", "b ", "b.", "b"]),
        ("(½ of it)", ["(½ ", "", "of ", "it)"]),  # two words where one sign stands
    ],
)
def test_written_words_are_the_transcript_cut_at_its_words(text, stretches):
    found = written_words(text)
    assert [word["written"] for word in found] == stretches
    assert [word["word"] for word in found] == split_words(text)
    assert "".join(stretches) == text


def test_a_transcript_without_a_word_is_written_as_nothing():
    assert written_words(" ... -- ") == written_words("") == []


def test_splitting_split_words_changes_nothing():
    words = split_words("Well-known: “it’s 1,250.5!” Rock 'n' roll, Å")
    assert [part for word in words for part in split_words(word)] == words


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("café", "K AH F EY"),  # the dictionary's cafe
        ("zorch's", "Z AO R CH Z"),
        ("blitt", "B L IH T"),
        ("3.5", "TH R IY P OY N T F AY V"),
        ("40", "F AO R T IY"),
        ("1999", "W AH N TH AW Z AH N D N AY N HH AH N D R AH D N AY N T IY N AY N"),
        ("07", "Z IH R OW S EH V AH N"),
        ("mp3", "M P TH R IY"),
    ],
)
def test_words_outside_the_dictionary_are_pronounced(word, phones):
    decoder = alignment._make_decoder(lm=None)
    assert decoder.lookup_word(word) is None
    assert alignment._pronounce(decoder, word) == phones


def test_every_rule_of_spelling_uses_phones_of_the_acoustic_model(aligner):
    decoder = alignment._make_decoder(lm=None)
    for spelling, phones in {**alignment._SPELLINGS, **alignment._AFTER_APOSTROPHE}.items():
        decoder.add_word(f"x{spelling}x", phones, True)  # raises for a phone the model lacks
    assert all(decoder.lookup_word(word) for word in [*alignment._ONES, *alignment._TENS, "hundred", "thousand"])


# -- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audio", "words", "message"),
    [
        (noise(1), "", "no words"),
        (noise(1), "...", "no words"),
        (noise(1), [], "no words"),
        (noise(1), ["by the"], "'by the' is 2 words"),
        (noise(1), ["by", "--"], "'--' is 0 words"),
        (noise(1), "привет", "without an English sound"),
        (np.zeros(0, np.float32), KIDS, "empty"),
        (np.zeros(16_000, np.float32), KIDS, "silent"),
        ((noise(1) * 32767).astype(np.int16), KIDS, "int16"),
        (noise(1)[None], KIDS, r"\(1, 16000\)"),
        (noise(1).tolist(), KIDS, "list"),
        (noise(1) * 300, KIDS, r"expected \[-1, 1\]"),
        (np.full(16_000, np.nan), KIDS, "reaches nan"),
        (noise(0.3), KIDS, "too short"),
        (noise(2), KIDS, "no path"),
    ],
)
def test_what_cannot_be_aligned_is_refused_with_the_reason(aligner, audio, words, message):
    with pytest.raises(AlignmentError, match=message) as caught:
        aligner.align(audio, words)
    assert "\n" not in str(caught.value)


def test_recognition_hears_nothing_in_digital_silence(aligner):
    assert aligner.recognize(np.zeros(16_000, np.float32)) == []


def test_recognition_refuses_empty_audio(aligner):
    with pytest.raises(AlignmentError, match="empty"):
        aligner.recognize(np.zeros(0, np.float32))


@pytest.mark.parametrize(
    ("times", "complete"),
    [
        ([(0.1, 0.2), (0.2, 0.3)], True),
        ([(0.1, 0.2), (0.4, 0.5)], True),
        ([(0.1, 0.2)], False),
        ([(0.1, 0.2), (0.15, 0.3)], False),
        ([(0.4, 0.5), (0.1, 0.2)], False),
        ([(0.1, 0.2), (0.2, 0.2)], False),
    ],
)
def test_an_alignment_places_every_word_after_the_one_before(times, complete):
    placed = [{"word": word, "start": start, "end": end} for word, (start, end) in zip("ab", times, strict=False)]
    assert alignment._is_complete(placed, ["a", "b"]) is complete
    assert not alignment._is_complete(placed, ["a", "c"])


# -- Real clips -------------------------------------------------------------------------------------------------------


def test_words_are_where_they_are_heard(aligner, kids):
    """The energy of the clip says where speech begins and ends; the edges between are those of PocketSphinx 5.1."""
    placed = aligner.align(kids, KIDS)
    inside = kids[round(16_000 * placed.words[0]["start"]) : round(16_000 * placed.words[-1]["end"])]
    assert np.square(inside).sum() > 0.99 * np.square(kids).sum()
    assert [word["word"] for word in placed.words] == ["kids", "are", "talking", "by", "the", "door"]
    starts = [word["start"] for word in placed.words]
    np.testing.assert_allclose(starts, [0.96, 1.23, 1.28, 1.69, 1.81, 1.92], atol=0.06)
    assert placed.words[-1]["end"] == pytest.approx(2.26, abs=0.06)
    assert (placed.attempts, placed.fallback_words) == (1, ())
    assert all(type(word["start"]) is float and type(word["end"]) is float for word in placed.words)


def test_adjoining_words_share_an_edge(aligner, kids):
    """The decoder's last frame is inclusive; without the one added, every word would end 10 ms early."""
    words = aligner.align(kids, KIDS).words
    assert [word["end"] for word in words[:-1]] == [word["start"] for word in words[1:]]


def test_words_move_with_the_audio(aligner, kids):
    # A small noise instead of zeros, and a whole number of frames, so that only the position changes.
    later = np.concatenate([kids[:8000], kids])
    moved = [
        w["start"] - v["start"] for w, v in zip(*(aligner.align(x, KIDS).words for x in (later, kids)), strict=True)
    ]
    np.testing.assert_allclose(moved, 0.5, atol=0.03)


def test_a_list_of_words_is_the_same_as_the_transcript(aligner, kids):
    assert aligner.align(kids, split_words(KIDS)) == aligner.align(kids, KIDS)


def test_nearly_every_real_clip_aligns(aligner, ravdess_dir):
    paths = sorted(ravdess_dir.glob("Actor_*/*.wav"))[3::24]
    attempts = []
    for path in paths:
        audio = load_audio(path)
        try:
            placed = aligner.align(audio, sentence_of(path))
        except AlignmentError:
            continue
        attempts.append(placed.attempts)
        assert [word["word"] for word in placed.words] == split_words(sentence_of(path))
        edges = [edge for word in placed.words for edge in (word["start"], word["end"])]
        assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= len(audio) / 16_000
        assert min(word["end"] - word["start"] for word in placed.words) > 0.02
    assert len(attempts) >= 0.98 * len(paths)
    assert attempts.count(1) >= 0.96 * len(paths)


def test_results_do_not_depend_on_what_was_aligned_before(aligner, clips):
    """Noise estimates carried over between utterances moved the words of most of these clips."""
    forwards = [aligner.align(audio, text) for audio, text in clips[:12]]
    backwards = [aligner.align(audio, text) for audio, text in clips[:12][::-1]]
    assert backwards[::-1] == forwards
    assert WordAligner().align(*clips[11]) == forwards[11]


def test_recognition_does_not_depend_on_what_came_before(aligner, clips, kids):
    first = aligner.recognize(kids)
    aligner.recognize(clips[5][0])
    assert aligner.recognize(kids) == first


def test_every_failure_leaves_a_usable_decoder(clips, kids):
    aligner = WordAligner()
    fresh = WordAligner().align(*clips[3])
    for audio, words in [
        (noise(2), KIDS),
        (kids, "I certainly never expected the Spanish inquisition to arrive so early on Sunday morning"),
        (kids, "привет"),
        (np.zeros(0), KIDS),
    ]:
        with pytest.raises(AlignmentError):
            aligner.align(audio, words)
        assert aligner.align(*clips[3]) == fresh


def test_an_error_inside_the_decoder_ends_the_utterance(clips):
    aligner = WordAligner()
    fresh = aligner.align(*clips[3])
    with pytest.raises(IndexError):  # PocketSphinx's own answer to empty audio, which `align` stops at the door
        alignment._decode(aligner._aligner, np.zeros(0))
    assert aligner.align(*clips[3]) == fresh


def test_a_clip_that_fails_at_once_is_placed_by_a_retry(aligner, ravdess_dir):
    audio = load_audio(ravdess_dir / "Actor_20" / "03-01-06-02-02-01-20.wav")
    placed = aligner.align(audio, SENTENCES["02"])
    assert placed.attempts > 1
    assert placed.words[-1]["end"] <= len(audio) / 16_000


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_times_and_score_of_a_retry_mean_the_same(aligner, kids, monkeypatch, attempt):
    plain = aligner.align(kids, KIDS)
    monkeypatch.setattr(alignment, "ATTEMPTS", alignment.ATTEMPTS[attempt : attempt + 1])
    retried = aligner.align(kids, KIDS)
    for before, after in zip(plain.words, retried.words, strict=True):
        assert after["start"] == pytest.approx(before["start"], abs=0.06)
        assert after["end"] == pytest.approx(before["end"], abs=0.06)
    assert retried.score == pytest.approx(plain.score, abs=1.0)
    assert retried.score < -0.5


@pytest.mark.parametrize("words", ["Yes!", "I do not know what you want."])
def test_words_that_were_not_said_are_refused_for_their_score(aligner, kids, monkeypatch, words):
    with pytest.raises(AlignmentError, match="fit the audio badly"):
        aligner.align(kids, words)
    monkeypatch.setattr(alignment, "LOWEST_SCORE", -100.0)
    assert aligner.align(kids, words).score < aligner.align(kids, KIDS).score - 2


def test_words_outside_the_dictionary_are_placed_and_named(aligner, kids):
    first = aligner.align(kids, "Kids are talking by the duur")
    assert first.fallback_words == ("duur",)
    assert first.words[-1]["start"] == pytest.approx(1.92, abs=0.06)
    assert aligner.align(kids, "Kids are talking by the duur") == first  # by now the decoder knows the word
    assert aligner.align(kids, KIDS).fallback_words == ()


def test_pickling_leaves_the_decoder_behind(aligner, kids):
    placed = aligner.align(kids, KIDS)
    data = pickle.dumps(aligner)
    assert len(data) < 1000
    assert pickle.loads(data).align(kids, KIDS) == placed


def test_threads_take_turns(aligner, clips):
    one_by_one = [aligner.align(audio, text) for audio, text in clips[:6]]
    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(lambda clip: aligner.align(*clip), clips[:6] * 2))
    assert at_once == one_by_one * 2


def test_recognition_finds_words_and_times(aligner, ravdess_dir):
    audio = load_audio(ravdess_dir / "Actor_05" / "03-01-01-01-01-01-05.wav")
    heard = aligner.recognize(audio)
    assert [word["word"] for word in heard] == split_words(KIDS)
    placed = aligner.align(audio, KIDS).words
    np.testing.assert_allclose([w["start"] for w in heard], [w["start"] for w in placed], atol=0.1)
