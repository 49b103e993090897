"""Windows of recordings: each what the pipeline says of the window cut out by itself, and what becomes of the rest."""

import math
import warnings

import numpy as np
import pytest
import soundfile
import torch
from test_streaming import write_media
from transformers import ViTConfig, ViTImageProcessor

from mer_hf import (
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MediaError,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    MultimodalEmotionRecognitionPipeline,
    NoStreamError,
    WordTableConfig,
    load_audio,
    load_frames,
    word_tokenizer,
)
from mer_hf.long_recordings import predict_windows

RATE = 16_000
VIT = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 8}
VIT |= {"num_hidden_layers": 1, "num_attention_heads": 2}
SOUND = {"audio_config": FilterbankConfig(conv_dims=(8, 8, 8), normalization="utterance")}
TABLE = {"text_config": WordTableConfig(vocab_size=8, embedding_dim=6)}
FACE = {"vision_config": ViTConfig(**VIT)}
TRANSCRIPT = "kids are talking by the door"


def make_pipe(model, **processor):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    images = ViTImageProcessor(size={"height": 8, "width": 8})
    processor = {"tokenizer": word_tokenizer([TRANSCRIPT]), "image_processor": images, "num_frames": 3} | processor
    return MultimodalEmotionRecognitionPipeline(model.eval(), MerProcessor.default(**processor))


@pytest.fixture(scope="module")
def hears():
    """A model of sound alone."""
    config = LearnedAlignmentConfig(**SOUND, hidden_size=4)
    return make_pipe(LearnedAlignmentForEmotionClassification(config))


@pytest.fixture(scope="module")
def hears_and_sees():
    return make_pipe(CMEForEmotionClassification(CMEConfig(**SOUND, **TABLE, **FACE, hidden_size=16)))


def noise(seconds, seed=0, level=0.3, rate=RATE):
    """Noise whose colour changes with the seed."""
    random = np.random.default_rng(seed).uniform(-level, level, round(seconds * rate))
    return np.convolve(random, np.ones(1 + seed) / math.sqrt(1 + seed), "same").astype(np.float32)


def write_sound(path, *parts, rate=RATE):
    soundfile.write(path, np.concatenate(parts), rate, subtype="FLOAT")
    return path


def spans(windows):
    return [(window["start"], window["end"]) for window in windows]


def agree(window, expected):
    """Whether a window has the scores and modalities of a detailed result."""
    scores = {item["label"]: item["score"] for item in expected["scores"]}
    found = {item["label"]: item["score"] for item in window["scores"]}
    assert found == pytest.approx(scores, abs=1e-5)
    assert window["modalities"] == expected["modalities"] and window["reason"] is None
    return True


# Equality with the pipeline


@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_each_window_is_what_the_pipeline_says_of_it(tmp_path, hears, rate):
    parts = [noise(0.5, seed, rate=rate) for seed in range(5)]
    path = write_sound(tmp_path / "a.wav", *parts, noise(0.3, 6, rate=rate), rate=rate)
    windows = list(predict_windows(hears, path, seconds=0.5))
    assert spans(windows) == [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2), (2, 2.5), (2.5, pytest.approx(2.8, abs=1e-3))]
    whole = load_audio(path)
    for window in windows:
        assert set(window) == {"start", "end", "scores", "modalities", "reason"}
        cut = whole[round(window["start"] * RATE) : round(window["end"] * RATE)]
        assert agree(window, hears((cut, RATE), return_details=True))
    best = [window["scores"][0]["score"] for window in windows]
    assert max(best) - min(best) > 0.01


@pytest.mark.parametrize("hop", [None, 0.3, 0.9])
def test_a_video_in_windows(tmp_path, hears_and_sees, hop):
    path = write_media(tmp_path / "a.mp4", 55, 48_000 * 22 // 10)
    words = [{"word": w, "start": 0.35 * i, "end": 0.35 * i + 0.3} for i, w in enumerate(TRANSCRIPT.split())]
    windows = list(predict_windows(hears_and_sees, path, seconds=0.7, hop=hop, words=words))
    whole, (frames, times) = load_audio(path), load_frames(path, 10**6)
    assert len(windows) == {None: 4, 0.3: 6, 0.9: 3}[hop]
    for index, window in enumerate(windows):
        start, end = window["start"], window["end"]
        assert start == pytest.approx(index * (hop or 0.7), abs=1e-4)
        inside = (times >= start - 1e-5) & (times < end - 1e-5)
        said = [word for word in words if start <= (word["start"] + word["end"]) / 2 < end]
        clip = {
            "audio": (whole[round(start * RATE) : round(end * RATE)], RATE),
            "video": {"frames": frames[inside], "times": times[inside] - start},
            "words": [
                {"word": w["word"], "start": max(w["start"] - start, 0), "end": min(w["end"], end) - start}
                for w in said
            ],
        }
        assert agree(window, hears_and_sees(clip, return_details=True))
        assert ("text" in window["modalities"]) == bool(said)
    assert windows[-1]["end"] == pytest.approx(max(len(whole) / RATE, 55 / 25), abs=0.01)


def test_arguments_reach_the_pipeline(tmp_path, hears, hears_and_sees):
    path = write_sound(tmp_path / "a.wav", noise(1.0))
    windows = list(predict_windows(hears, path, seconds=0.5, top_k=1))
    assert [len(window["scores"]) for window in windows] == [1, 1]
    heard = []

    def asr(sound, return_timestamps):
        heard.append(len(sound["raw"]))
        return {"text": "kids", "chunks": [{"text": "kids", "timestamp": (0.1, 0.3)}]}

    windows = list(predict_windows(hears_and_sees, path, seconds=0.5, asr=asr))
    assert heard == [8000, 8000] and windows[0]["modalities"] == ["audio", "text"]
    windows = list(predict_windows(hears_and_sees, path, seconds=0.5, recognize=False))
    assert windows[0]["modalities"] == ["audio"]


def test_a_speakers_profile_serves_all_windows(tmp_path):
    config = CMEConfig(audio_config=FilterbankConfig(conv_dims=(8, 8, 8), normalization="global"), hidden_size=16)
    pipe = make_pipe(CMEForEmotionClassification(config))
    pipe.model.audio_model.normalization.set_statistics(torch.full((40,), 16.0), torch.full((40,), 3.0))
    profile = pipe.enrol([(noise(1.0, 3), RATE)])
    path = write_sound(tmp_path / "a.wav", noise(1.0))
    [window] = predict_windows(pipe, path, speaker=profile)
    assert agree(window, pipe(path, speaker=profile, return_details=True))
    assert window["scores"] != pipe(path)


# Where windows begin and end


@pytest.mark.parametrize(
    ("length", "seconds", "hop", "expected"),
    [
        (1.5, 0.5, None, [(0, 0.5), (0.5, 1), (1, 1.5)]),
        (1.2, 0.5, None, [(0, 0.5), (0.5, 1), (1, 1.2)]),
        (1.05, 0.5, None, [(0, 0.5), (0.5, 1.05)]),  # the rest is too short to be one
        (0.4, 0.5, None, [(0, 0.4)]),
        (1.0, 0.6, 0.3, [(0, 0.6), (0.3, 0.9), (0.6, 1.0)]),
        (1.2, 0.6, 0.3, [(0, 0.6), (0.3, 0.9), (0.6, 1.2)]),
        (1.5, 0.3, 0.6, [(0, 0.3), (0.6, 0.9), (1.2, 1.5)]),
        (1.1, 0.3, 0.6, [(0, 0.3), (0.6, 0.9)]),
        (1.25, 0.3, 0.6, [(0, 0.3), (0.6, 0.9), (1.2, 1.25)]),
    ],
)
def test_where_windows_lie(tmp_path, hears, length, seconds, hop, expected):
    path = write_sound(tmp_path / "a.wav", noise(length))
    windows = list(predict_windows(hears, path, seconds=seconds, hop=hop))
    assert spans(windows) == [pytest.approx(span) for span in expected]
    assert [w["reason"] for w in windows] == ["too short" if b - a < 0.1 else None for a, b in expected]


def test_windows_end_at_pauses(tmp_path, hears):
    still = noise(0.06, level=1e-4)
    parts = [noise(1.15), still, noise(0.94), still, noise(1.09)]  # pauses at 1.15 to 1.21 and 2.15 to 2.21
    windows = list(predict_windows(hears, write_sound(tmp_path / "a.wav", *parts), seconds=1.0, at_pauses=True))
    borders = [window["end"] for window in windows]
    assert len(borders) == 3 and [window["start"] for window in windows] == [0, *borders[:-1]]
    assert 1.17 <= borders[0] <= 1.19 and 2.17 <= borders[1] <= 2.19
    assert borders[2] == pytest.approx(3.3)
    whole = load_audio(tmp_path / "a.wav")
    for window in windows:
        cut = whole[round(window["start"] * RATE) : round(window["end"] * RATE)]
        assert agree(window, hears((cut, RATE), return_details=True))


def test_without_a_pause_windows_end_in_their_place(tmp_path, hears):
    path = write_sound(tmp_path / "a.wav", np.full(3 * RATE, 0.1, np.float32))
    borders = np.array(spans(predict_windows(hears, path, seconds=1.0, at_pauses=True)))
    np.testing.assert_allclose(borders, [(0, 1), (1, 2), (2, 3)], atol=0.0101)
    quiet_end = write_sound(tmp_path / "b.wav", noise(1.2))
    assert spans(predict_windows(hears, quiet_end, seconds=1.0, at_pauses=True)) == [(0, pytest.approx(1.2))]


# What is not classified


def test_silence_is_not_classified(tmp_path, hears, hears_and_sees):
    path = write_sound(tmp_path / "a.wav", noise(0.5), np.zeros(8000, np.float32), noise(0.5, level=1e-4))
    windows = list(predict_windows(hears, path, seconds=0.5))
    assert [window["reason"] for window in windows] == [None, "silence", "silence"]
    assert windows[1] == {"start": 0.5, "end": 1.0, "scores": None, "modalities": [], "reason": "silence"}
    with pytest.warns(UserWarning, match="the sound is silent"):
        windows = list(predict_windows(hears, path, seconds=0.5, silence_db=-100))
    assert [window["reason"] for window in windows] == [None, "silence", None]
    words = [{"word": "kids", "start": 0.6, "end": 0.8}]
    windows = list(predict_windows(hears_and_sees, path, seconds=0.5, words=words))
    assert [window["modalities"] for window in windows] == [["audio"], ["text"], []]


def test_loudness_is_that_of_the_loudest_10_ms(tmp_path, hears):
    click = np.zeros(8000, np.float32)
    click[4000:4160] = 0.002  # -54 dB for 10 ms
    path = write_sound(tmp_path / "a.wav", click)
    assert next(predict_windows(hears, path, silence_db=-53.9))["reason"] == "silence"
    assert next(predict_windows(hears, path, silence_db=-54.1))["reason"] is None


def test_a_face_is_seen_while_nothing_is_heard(tmp_path, hears_and_sees):
    path = write_media(tmp_path / "a.mp4", 25)
    windows = list(predict_windows(hears_and_sees, path, seconds=0.5))
    assert [window["modalities"] for window in windows] == [["vision"], ["vision"]]
    frames, times = load_frames(path, 100)
    expected = hears_and_sees(video={"frames": frames[13:], "times": times[13:] - 0.5}, return_details=True)
    assert agree(windows[1], expected)


def test_a_window_without_a_face_or_a_word_has_a_reason(tmp_path):
    sees = make_pipe(MMANForEmotionClassification(MMANConfig(**FACE, hidden_size=8)), crop_faces=True)
    path = write_media(tmp_path / "a.mp4", 25, 48_000)
    windows = list(predict_windows(sees, path, seconds=0.5))
    assert [window["reason"] for window in windows] == ["nothing to read"] * 2
    reads = make_pipe(LearnedAlignmentForEmotionClassification(LearnedAlignmentConfig(**TABLE, hidden_size=4)))
    words = [{"word": "kids", "start": 0.6, "end": 0.8}]
    windows = list(predict_windows(reads, path, seconds=0.5, words=words))
    assert [window["reason"] for window in windows] == ["nothing to read", None]
    assert windows[1]["modalities"] == ["text"]


def test_words_that_cannot_be_aligned_cost_their_window_alone(tmp_path, hears_and_sees):
    texts = iter(["kids " * 300, "kids"])
    path = write_sound(tmp_path / "a.wav", noise(2.0))
    windows = list(predict_windows(hears_and_sees, path, seconds=1, asr=lambda *_, **__: {"text": next(texts)}))
    assert len(windows) == 2 and windows[0]["scores"] is None
    assert "give words= with their times" in windows[0]["reason"]


def test_other_mistakes_of_a_window_are_raised(tmp_path, hears_and_sees):
    def asr(*_, **__):
        raise ValueError("no such language")

    with pytest.raises(ValueError, match="no such language"):
        list(predict_windows(hears_and_sees, write_sound(tmp_path / "a.wav", noise(1.0)), asr=asr))


# Mistakes


def test_mistakes_are_refused_at_the_door(tmp_path, hears, hears_and_sees):
    path = write_sound(tmp_path / "a.wav", noise(1.0))
    for wrong, problem in [
        ({"seconds": 0}, "seconds must be"),
        ({"seconds": float("nan")}, "seconds must be"),
        ({"hop": 0}, "hop above 0"),
        ({"hop": 1, "at_pauses": True}, "hop is 1 with at_pauses"),
        ({"words": [{"word": "kids"}]}, "no start or no end"),
        ({"words": ["kids"]}, "no start or no end"),
        ({"text": "kids"}, r"unknown argument\(s\) text"),
    ]:
        with pytest.raises(ValueError, match=problem):
            predict_windows(hears_and_sees, path, **wrong)
    with pytest.raises(MediaError, match=r"gone\.wav: no such file"):
        predict_windows(hears, tmp_path / "gone.wav")
    with pytest.raises(NoStreamError, match="no audio stream"):
        predict_windows(hears, write_media(tmp_path / "mute.mp4", 10))
    config = LearnedAlignmentConfig(audio_embed_dim=4, hidden_size=4)
    with pytest.raises(ValueError, match="features alone"):
        predict_windows(make_pipe(LearnedAlignmentForEmotionClassification(config)), path)


def test_a_truncated_recording_is_refused(tmp_path, hears, hears_and_sees):
    path = write_sound(tmp_path / "a.wav", noise(20.0))
    path.write_bytes(path.read_bytes()[:600_000])
    with pytest.raises(MediaError, match=r"a\.wav: truncated, 9\.\d+ s of 20\.00 s"):
        predict_windows(hears, path)
    video = write_media(tmp_path / "a.mkv", 100, 192_000)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(MediaError, match=r"a\.mkv: truncated"):
        predict_windows(hears_and_sees, video)


def test_words_later_than_the_recording_are_told(tmp_path, hears):
    words = [{"word": "kids", "start": 0.1, "end": 0.2}, {"word": "door", "start": 5.0, "end": 5.2}]
    path = write_sound(tmp_path / "a.wav", noise(1.0))
    with pytest.warns(UserWarning, match=r"a\.wav: ends at 1\.00 s and 1 words are later.*door"):
        list(predict_windows(hears, path, words=words))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(predict_windows(hears, path, words=words[:1]))
