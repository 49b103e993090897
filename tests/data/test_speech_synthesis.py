import sys

import numpy as np
import pytest

from mer_hf.data.speech_synthesis import (
    SAMPLE_RATE,
    SpeechSynthesizer,
    WordProsody,
    background_noise,
    shape_voice,
    voice_variants,
    word_spans,
)

SENTENCE = "my brother was happy about that letter".split()
HAPPY = SENTENCE.index("happy")


def level(samples):
    return float(np.sqrt(np.mean(np.square(samples))))


def durations(speech):
    return speech.word_times[:, 1] - speech.word_times[:, 0]


def say_with(change, voice="f2"):
    prosody = [WordProsody()] * len(SENTENCE)
    prosody[HAPPY] = change
    with SpeechSynthesizer(seed=1) as synthesizer:
        return synthesizer.speak(SENTENCE, prosody, voice)


def word_level(speech, index):
    start, end = (speech.word_times[index] * SAMPLE_RATE).astype(int)
    return level(speech.samples[start:end])


def pitch(speech, index):
    """Hz, from the autocorrelation of the word's middle."""
    start, end = (speech.word_times[index] * SAMPLE_RATE).astype(int)
    middle = speech.samples[(start + end) // 2 - 400 : (start + end) // 2 + 400]
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    lags = slice(SAMPLE_RATE // 400, SAMPLE_RATE // 70)
    return SAMPLE_RATE / (lags.start + int(np.argmax(correlation[lags])))


def test_a_word_event_opens_a_word_and_a_pause_closes_it():
    events = [
        (2, 0, b"\x01"),
        (1, 0, b"\x01"),
        (7, 10, b"h"),
        (7, 50, b"i:"),
        (7, 90, b"_:"),
        (1, 120, b"\x02"),
        (7, 120, b"_"),
        (7, 130, b"D"),
        (1, 180, b"\x03"),
        (7, 185, b"k"),
        (7, 250, b"_:"),
        (7, 300, b"_"),
    ]
    assert word_spans(events, 400) == [(10, 90), (130, 185), (185, 250)]
    # Without closing pauses the last word runs to the end.
    assert word_spans([(1, 0, b"\x01"), (7, 5, b"a")], 90) == [(5, 90)]


def test_one_seed_and_one_order_of_calls_give_the_same_samples():
    def two_calls(seed):
        with SpeechSynthesizer(seed) as synthesizer:
            return [synthesizer.speak(SENTENCE, voice=voice).samples for voice in ("f1", "m1")]

    assert all(np.array_equal(a, b) for a, b in zip(two_calls(3), two_calls(3), strict=True))


def test_word_times_cover_the_speech_in_order():
    speech = say_with(WordProsody())
    starts, ends = speech.word_times.T
    assert speech.word_times.shape == (len(SENTENCE), 2) and starts[0] == 0
    assert (ends - starts > 0.03).all() and (starts[1:] >= ends[:-1]).all()
    assert ends[-1] <= len(speech.samples) / SAMPLE_RATE <= ends[-1] + 0.03


@pytest.mark.parametrize("voice", ["f2", "m3"])
def test_prosody_changes_its_own_word_and_no_other(voice):
    plain = say_with(WordProsody(), voice)
    slow, loud = say_with(WordProsody(rate=-0.5), voice), say_with(WordProsody(energy=0.7), voice)
    high = say_with(WordProsody(pitch=0.4), voice)
    others = [index for index in range(len(SENTENCE)) if index != HAPPY]
    stretch = durations(slow) / durations(plain)
    assert stretch[HAPPY] > 1.4
    np.testing.assert_allclose(stretch[others], 1, atol=0.15)
    assert word_level(loud, HAPPY) / word_level(plain, HAPPY) == pytest.approx(np.exp(0.7), rel=0.15)
    assert word_level(loud, 0) / word_level(plain, 0) == pytest.approx(1, rel=0.1)
    assert pitch(high, HAPPY) / pitch(plain, HAPPY) == pytest.approx(np.exp(0.4), rel=0.2)


def test_unknown_voice_is_refused_although_espeak_would_speak():
    assert "f2" in voice_variants()
    with SpeechSynthesizer() as synthesizer, pytest.raises(ValueError, match="'zebedee' is not a variant"):
        synthesizer.speak(SENTENCE, voice="zebedee")


def test_wrong_counts_and_merged_words_are_refused():
    with SpeechSynthesizer() as synthesizer:
        with pytest.raises(ValueError, match="0 words"):
            synthesizer.speak([])
        with pytest.raises(ValueError, match="1 word_prosody"):
            synthesizer.speak(SENTENCE, [WordProsody()])
        with pytest.raises(RuntimeError, match="spoke 4 words of the 5"):
            synthesizer.speak("we met in the garden".split())


def test_without_the_loader_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r'pip install "mer-hf\[controlled\]"'):
        SpeechSynthesizer()


def test_shaping_keeps_the_level_and_tilts_the_spectrum():
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(SAMPLE_RATE) * 0.05

    def highs(signal):
        power = np.abs(np.fft.rfft(signal)) ** 2
        return power[len(power) // 2 :].sum() / power.sum()

    bright, dull = shape_voice(samples, 0.6, 0.0), shape_voice(samples, -0.6, 0.0)
    assert level(bright) == pytest.approx(level(samples)) == pytest.approx(level(dull))
    assert highs(bright) > highs(samples) > highs(dull)
    rough = shape_voice(samples, 0.0, 0.8)
    assert level(rough) == pytest.approx(level(samples)) and not np.allclose(rough, samples)


def test_background_noise_has_unit_level():
    assert level(background_noise(4000, np.random.default_rng(0))) == pytest.approx(1)
