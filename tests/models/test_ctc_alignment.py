"""Word times from CTC models: each step by hand or by brute force, the whole on speakers whose times are known."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
from ctc_helpers import LETTERS, make_config, make_model, make_processor, read_clips, train
from filelock import FileLock
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WavLMConfig,
    WavLMForCTC,
)

from mer_hf.data.controlled import generate_controlled_corpus
from mer_hf.data.word_times import alignment_quality, boundary_errors
from mer_hf.models import ctc_alignment
from mer_hf.models.alignment import AlignmentError, WordAligner, WordAlignment
from mer_hf.models.ctc_alignment import CTCWordAligner, _Alphabet, _FrameGrid

SEED = 100  # seeds 0 to 2 of the corpus are for reported results
WORDS = "the dog is near"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """corpus/ and checkpoint/, made by one of pytest's processes for all of them."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "ctc"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        if not (shared / "checkpoint").exists():
            corpus = generate_controlled_corpus(shared / "corpus", SEED, 8, 5, num_workers=1)
            processor = make_processor(shared / "vocabulary", LETTERS)
            model = make_model(len(processor.tokenizer))
            train(model, processor, read_clips(corpus, "train"))
            processor.save_pretrained(shared / "unfinished")
            model.save_pretrained(shared / "unfinished")
            (shared / "unfinished").rename(shared / "checkpoint")
    return shared


@pytest.fixture(scope="module")
def clips(folder):
    """Up to 60 clips of the four speakers that the model does not know."""
    return read_clips(folder / "corpus", "test")[:60]


@pytest.fixture(scope="module")
def model(folder):
    return Wav2Vec2ForCTC.from_pretrained(folder / "checkpoint")


@pytest.fixture(scope="module")
def processor(folder):
    return Wav2Vec2Processor.from_pretrained(folder / "checkpoint")


@pytest.fixture(scope="module")
def aligner(folder):
    return CTCWordAligner(folder / "checkpoint")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A random model, quick to make, that accepts any words."""
    processor = make_processor(tmp_path_factory.mktemp("vocabulary"), LETTERS)
    return CTCWordAligner(make_model(len(processor.tokenizer)), processor, lowest_score=-math.inf)


def noise(seconds, rate=16_000):
    return (0.1 * np.random.default_rng(0).standard_normal(int(rate * seconds))).clip(-1, 1)


def times_of(words):
    return np.array([(word["start"], word["end"]) for word in words])


# -- Speakers whose word times are known ------------------------------------------------------------------------------


def test_boundaries_are_where_the_synthesiser_put_them(aligner, clips):
    """A frame is 20 ms: being one off, to either side, would move the medians out of their bounds."""
    placed = [aligner.align(clip.audio, clip.text) for clip in clips]
    truth = np.concatenate([times_of(clip.words) for clip in clips])
    offsets = np.concatenate([times_of(result.words) for result in placed]) - truth
    errors = np.concatenate(
        [boundary_errors(result.words, clip.words) for result, clip in zip(placed, clips, strict=True)]
    )
    assert len(errors) == len(truth)
    bias = np.median(offsets, axis=0)
    assert -0.008 < bias.min() and bias.max() < 0.02
    assert np.median(errors) < 0.02
    assert np.quantile(errors, 0.9) < 0.06
    assert (errors <= 0.05).mean() > 0.88
    # The stride: were frames 19 or 21 ms, late words would be off by more than early ones, and to one side.
    late = truth[:, 0] > 1.5
    assert abs(np.median(offsets[late]) - np.median(offsets[truth[:, 0] < 0.5])) < 0.02


def test_pocketsphinx_places_the_same_words_about_as_well(clips):
    sphinx, errors = WordAligner(), []
    for clip in clips[:30]:
        try:
            placed = sphinx.align(clip.audio, clip.text)
        except AlignmentError:
            continue
        errors.append(boundary_errors(placed.words, clip.words))
        frames = [round(100 * (word["end"] - word["start"])) for word in placed.words]
        if placed.attempts <= 2:  # audio that was slowed has its frames elsewhere
            assert np.average(placed.word_scores, weights=frames) == pytest.approx(placed.score, rel=0.05)
    assert len(errors) >= 27
    assert np.median(np.concatenate(errors)) < 0.05


def test_results_keep_the_contract_of_the_other_aligner(aligner, clips):
    for clip in clips[:20]:
        result = aligner.align(clip.audio, clip.text)
        assert isinstance(result, WordAlignment) and (result.attempts, result.fallback_words) == (1, ())
        assert [word["word"] for word in result.words] == clip.text.split()
        assert all(type(word["start"]) is float and type(word["end"]) is float for word in result.words)
        edges = times_of(result.words).ravel()
        assert (np.diff(edges) >= 0).all() and edges[0] >= 0 and edges[-1] <= len(clip.audio) / 16_000
        assert alignment_quality(result.words, len(clip.audio) / 16_000).long_enough == 1
        assert len(result.word_scores) == len(result.words) and max(result.word_scores) <= 0
        assert aligner.align(clip.audio, clip.text.split()) == result
        assert aligner.align(clip.audio, clip.text.upper() + "!") == result


def test_words_move_with_the_audio(aligner, clips):
    moved = []
    for clip in clips[:20]:
        later = aligner.align(np.concatenate([0.01 * noise(0.4), clip.audio]), clip.text)
        moved.append(times_of(later.words) - times_of(aligner.align(clip.audio, clip.text).words))
    moved = np.concatenate(moved)
    assert np.median(moved) == pytest.approx(0.4, abs=0.002)
    assert (np.abs(moved - 0.4) < 0.045).mean() > 0.95  # the noise itself moves a few


def test_words_that_were_not_said_score_lower(aligner, clips):
    right = [aligner.align(clip.audio, clip.text).score for clip in clips]
    refused = 0
    for clip, other in zip(clips, clips[7:] + clips[:7], strict=True):
        if clip.text != other.text:
            try:
                assert aligner.align(clip.audio, other.text).score < -0.3
            except AlignmentError as error:
                assert "fit the audio badly" in str(error)
                refused += 1
    assert np.median(right) > -0.8
    assert refused > 0.4 * len(clips)


def test_the_word_that_was_not_said_is_the_one_that_scores_low(aligner, clips):
    worst = []
    for clip in clips[:30]:
        words = clip.text.split()
        words[1] = "jukebox"
        placed = aligner.align(clip.audio, clip.text)
        swapped = _accept_all(aligner).align(clip.audio, words)
        assert swapped.score < placed.score
        worst.append(int(np.argmin(swapped.word_scores)) == 1)
    assert np.mean(worst) > 0.8


def _accept_all(aligner):
    accepting = object.__new__(CTCWordAligner)
    accepting.__dict__ |= aligner.__dict__ | {"_lowest_score": -math.inf}
    return accepting


# -- Vocabularies, architectures, types -------------------------------------------------------------------------------


def test_an_upper_case_vocabulary_says_the_same(model, aligner, clips, tmp_path):
    upper = CTCWordAligner(model, make_processor(tmp_path, LETTERS.upper()))
    assert upper.align(*_inputs(clips[0])) == aligner.align(*_inputs(clips[0]))


def test_a_vocabulary_without_a_delimiter_has_letters_alone(model, aligner, clips, tmp_path):
    bare = CTCWordAligner(model, make_processor(tmp_path, ["<gap>", *LETTERS], delimiter=None))
    assert (bare._alphabet.delimiter, aligner._alphabet.delimiter) == (None, 4)
    errors = [boundary_errors(bare.align(*_inputs(clip)).words, clip.words) for clip in clips[:20]]
    assert np.median(np.concatenate(errors)) < 0.025


def test_hubert_with_the_same_weights_places_the_same(model, processor, aligner, clips):
    values = model.config.to_dict()
    known = {name: values[name] for name in HubertConfig().to_dict() if name in values and name != "model_type"}
    hubert = HubertForCTC(HubertConfig(**known))
    hubert.load_state_dict({name.replace("wav2vec2.", "hubert."): value for name, value in model.state_dict().items()})
    for clip in clips[:3]:
        assert CTCWordAligner(hubert, processor).align(*_inputs(clip)) == aligner.align(*_inputs(clip))


def test_any_encoder_of_a_waveform_will_do(processor, clips):
    wavlm = WavLMForCTC(_tiny(WavLMConfig(vocab_size=len(processor.tokenizer))))
    placed = CTCWordAligner(wavlm, processor, lowest_score=-math.inf).align(*_inputs(clips[0]))
    assert [word["word"] for word in placed.words] == clips[0].text.split()


def test_half_precision_places_the_same(model, processor, aligner, clips):
    half = Wav2Vec2ForCTC(model.config)
    half.load_state_dict(model.state_dict())
    placed = CTCWordAligner(half.to(torch.bfloat16), processor).align(*_inputs(clips[0]))
    np.testing.assert_allclose(times_of(placed.words), times_of(aligner.align(*_inputs(clips[0])).words), atol=0.045)


def test_a_model_of_another_rate_is_given_its_own(clips, processor, tmp_path):
    slow = make_processor(tmp_path, LETTERS)
    slow.feature_extractor.sampling_rate = 8_000
    aligner = CTCWordAligner(make_model(len(slow.tokenizer)), slow, lowest_score=-math.inf)
    frames = len(aligner._log_probs(clips[0].audio, [], [aligner._alphabet.spell("a")]))
    assert frames == aligner._frames.count(math.ceil(len(clips[0].audio) / 2))
    assert aligner._frames.seconds(np.array(frames)) == pytest.approx(len(clips[0].audio) / 16_000, abs=0.06)


def _inputs(clip):
    return clip.audio, clip.text


# -- Frames and seconds -----------------------------------------------------------------------------------------------


def test_a_frame_stands_for_the_middle_of_what_it_sees():
    """wav2vec2 sees 400 samples every 320: frame 0 stands for samples 40 to 360, 2.5 to 22.5 ms."""
    model = Wav2Vec2ForCTC(_tiny(Wav2Vec2Config()))
    grid = ctc_alignment._frame_grid(model, 16_000)
    assert grid == _FrameGrid(stride=320, field=400, rate=16_000)
    np.testing.assert_allclose(grid.seconds(np.array([0, 1, 50])), [0.0025, 0.0225, 1.0025])
    for samples in [*range(400, 1100, 7), 15_999, 16_000, 16_001]:
        assert grid.count(samples) == model._get_feat_extract_output_lengths(samples)
    enough = [grid.last_sample(frames) for frames in (1, 2, 9)]
    assert [grid.count(samples) for samples in enough] == [1, 2, 9]
    assert [grid.count(samples - 1) for samples in enough] == [0, 1, 8]


def _tiny(config):
    config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size = 8, 1, 2, 8
    config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups, config.conv_dim = 4, 2, (4,) * 7
    return config


def test_words_are_widened_by_hand():
    """LEAD 60 and TAIL 20 ms: a gap of 40 is shared 30 to 10, one of 200 leaves 120 between the words."""
    letters = np.array([[0.02, 0.1], [0.14, 0.2], [0.4, 0.98], [0.98, 0.99]])
    widened = ctc_alignment._widen(letters, seconds=1.0)
    np.testing.assert_allclose(widened, [[0, 0.11], [0.11, 0.22], [0.34, 0.98], [0.98, 1.0]])
    np.testing.assert_allclose(ctc_alignment._widen(np.array([[0.5, 0.6]]), 1.0), [[0.44, 0.62]])


# -- The path ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("delimiter", [None, 2])
def test_the_path_is_the_best_of_all_there_are(blank, delimiter):
    alphabet = _Alphabet({"a": 1, "b": 3 if blank == 0 else 0}, blank, delimiter)
    spellings = [alphabet.spell("aa"), alphabet.spell("ab")]
    letters = ctc_alignment._letters(spellings, delimiter)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        log_probs = (2 * torch.randn(8, 4, generator=generator)).log_softmax(dim=-1)
        best = max(
            (path for path in itertools.product(range(4), repeat=8) if _collapse(path, blank) == letters),
            key=lambda path: log_probs[range(8), path].sum(),
        )
        path, spans = ctc_alignment._best_path(log_probs, spellings, alphabet)
        assert path.tolist() == list(best)
        assert spans.tolist() == _spans(best, blank, 2, delimiter)


def _collapse(path, blank):
    return [token for token, _ in itertools.groupby(path) if token != blank]


def _spans(path, blank, letters_a_word, delimiter):
    """From where to where the first and the second word go, frame by frame."""
    runs = [(token, [frame for frame, _ in run]) for token, run in itertools.groupby(enumerate(path), lambda x: x[1])]
    runs = [frames for token, frames in runs if token not in (blank, delimiter)]
    words = [runs[:letters_a_word], runs[letters_a_word:]]
    return [[word[0][0], word[-1][-1] + 1] for word in words]


def test_scores_by_hand():
    """Blank 0, delimiter 1. Frames: agreed silence, agreed letter, letter for blank, blank for letter, delimiter."""
    log_probs = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [0.6, 0.1, 0.3], [0.2, 0.1, 0.7], [0.6, 0.4, 0.0]])
    alphabet = _Alphabet({"a": 2}, blank=0, delimiter=1)
    loss, holds = ctc_alignment._losses(log_probs.log(), torch.tensor([0, 2, 2, 0, 1]), alphabet)
    assert holds.tolist() == [False, True, True, True, False]
    expected = [0, 0, math.log(0.3 / 0.6), math.log(0.2 / 0.7), math.log(0.4 / 0.6)]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float32))


def test_equal_letters_need_a_blank_between_them(untrained):
    """A frame a letter, one a delimiter, one more inside "oo" and "ff"."""
    grid = untrained._frames
    for words, frames in [("to", 2), ("too", 4), ("to of", 5), ("too off", 9)]:
        enough = noise(1)[: grid.last_sample(frames)]
        placed = untrained.align(enough, words)
        assert len(placed.words) == len(words.split())
        with pytest.raises(AlignmentError, match=f"too short: {frames - 1} frames .* need {frames}"):
            untrained.align(enough[:-1], words)


def test_equal_letters_of_two_words_need_a_blank_too(tmp_path):
    processor = make_processor(tmp_path, LETTERS, delimiter=None)
    aligner = CTCWordAligner(make_model(len(processor.tokenizer)), processor, lowest_score=-math.inf)
    placed = aligner.align(noise(1)[: aligner._frames.last_sample(5)], "is so")
    assert placed.words[0]["end"] <= placed.words[1]["start"]
    with pytest.raises(AlignmentError, match=r"4 frames .* need 5"):
        aligner.align(noise(1)[: aligner._frames.last_sample(4)], "is so")


# -- Spelling ---------------------------------------------------------------------------------------------------------


LOWER = {char: number for number, char in enumerate("abcdefghijklmnopqrstuvwxyz'", start=2)}
UPPER = {char.upper(): number for char, number in LOWER.items()}


@pytest.mark.parametrize("letters", [LOWER, UPPER], ids=["lower", "upper"])
@pytest.mark.parametrize(
    ("word", "spelled", "exact"),
    [
        ("don't", "don't", True),
        ("naïve", "naive", False),
        ("łódź", "odz", False),
        ("3.5", "three|point|five", False),
        ("1999", "one|thousand|nine|hundred|ninety|nine", False),
        ("mp3", "mp|three", False),
        ("٣", "three", False),  # an Arabic-Indic digit
        ("3дa", "three|a", False),
    ],
)
def test_words_are_spelled_with_what_there_is(letters, word, spelled, exact):
    found = _Alphabet(letters, blank=0, delimiter=1).spell(word)
    characters = {number: char.lower() for char, number in letters.items()} | {1: "|"}
    assert "".join(characters[number] for number in found.ids) == spelled
    assert found.exact is exact


def test_characters_of_the_vocabulary_are_never_replaced():
    alphabet = _Alphabet({"ß": 5, "s": 6, "3": 7, "é": 8, "e": 9, "í": 10}, blank=0, delimiter=None)
    assert [alphabet.spell(word) for word in ("ß3é", "ss")] == [((5, 7, 8), True), ((6, 6), True)]
    assert _Alphabet(LOWER, 0, None).spell("ß") == ((LOWER["s"],) * 2, False)
    assert _Alphabet(UPPER, 0, None).spell("ß").ids == (UPPER["S"],) * 2


def test_an_apostrophe_outside_the_vocabulary_is_left_out_unsaid():
    letters = {char: number for char, number in LOWER.items() if char != "'"}
    assert _Alphabet(letters, 0, None).spell("it's") == (tuple(LOWER[char] for char in "its"), True)


def test_words_that_are_not_spelled_as_they_stand_are_named(aligner, clips):
    words = clips[0].text.split()
    placed = aligner.align(clips[0].audio, words)
    accented = [word.replace("a", "ä").replace("o", "ö") for word in words]
    again = aligner.align(clips[0].audio, accented)
    assert again.fallback_words == tuple(dict.fromkeys(word for word in accented if not word.isascii())) != ()
    assert [word["word"] for word in again.words] == accented
    np.testing.assert_array_equal(times_of(again.words), times_of(placed.words))


# -- Long audio -------------------------------------------------------------------------------------------------------


def test_audio_seen_in_windows_gives_the_frames_of_the_whole(aligner, clips, monkeypatch):
    audio = np.concatenate([clip.audio for clip in clips[:3]])
    spellings = [aligner._alphabet.spell("a")]
    whole = aligner._log_probs(audio, ["a"], spellings)
    monkeypatch.setattr(ctc_alignment, "WINDOW", 1.5)
    monkeypatch.setattr(ctc_alignment, "CONTEXT", 1.0)
    pieces = aligner._log_probs(audio, ["a"], spellings)
    assert pieces.shape == whole.shape
    assert (pieces.argmax(dim=-1) == whole.argmax(dim=-1)).float().mean() > 0.85
    monkeypatch.setattr(ctc_alignment, "CONTEXT", 1000.0)  # every window sees everything
    torch.testing.assert_close(aligner._log_probs(audio, ["a"], spellings), whole)


def test_minutes_of_speech_are_aligned(aligner, clips):
    """Twenty clips in a row, 40 s: a frame lost at the edge of each window would show in the last words."""
    assert sum(len(clip.audio) for clip in clips[:20]) > 35 * 16_000
    starts = np.cumsum([0, *(len(clip.audio) for clip in clips[:19])]) / 16_000
    placed = aligner.align(np.concatenate([clip.audio for clip in clips[:20]]), " ".join(c.text for c in clips[:20]))
    truth = np.concatenate([times_of(clip.words) + start for clip, start in zip(clips[:20], starts, strict=True)])
    offsets = times_of(placed.words) - truth
    assert np.median(np.abs(offsets)) < 0.03
    assert np.median(np.abs(offsets[-20:])) < 0.04


def test_what_is_too_long_is_refused(untrained, monkeypatch):
    monkeypatch.setattr(ctc_alignment, "LONGEST", 2)
    with pytest.raises(AlignmentError, match="3 s of audio, expected 2 or less"):
        untrained.align(noise(3), WORDS)


# -- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audio", "words", "message"),
    [
        (noise(1), "", "no words"),
        (noise(1), "...", "no words"),
        (noise(1), [], "no words"),
        (noise(1), ["by the"], "'by the' is 2 words"),
        (noise(1), "say привет", "'привет' has no letter"),
        (np.zeros(0, np.float32), WORDS, "empty"),
        (np.zeros(16_000, np.float32), WORDS, "silent"),
        ((noise(1) * 32767).astype(np.int16), WORDS, "int16"),
        (noise(1)[None], WORDS, r"\(1, 16000\)"),
        (noise(1).tolist(), WORDS, "list"),
        (noise(1) * 300, WORDS, r"expected \[-1, 1\]"),
        (np.full(16_000, np.nan), WORDS, "reaches nan"),
        (noise(0.3), WORDS, "too short: 13 frames for 4 words that need 15"),
        (noise(0.01), WORDS, "too short: 0 frames"),
    ],
)
def test_what_cannot_be_aligned_is_refused_with_the_reason(untrained, audio, words, message):
    with pytest.raises(AlignmentError, match=message) as caught:
        untrained.align(audio, words)
    assert "\n" not in str(caught.value)


def test_output_that_is_not_finite_is_refused(processor, clips):
    broken = make_model(len(processor.tokenizer))
    torch.nn.init.constant_(broken.lm_head.bias, math.nan)
    with pytest.raises(AlignmentError, match="not finite"):
        CTCWordAligner(broken, processor).align(*_inputs(clips[0]))


def test_a_checkpoint_without_a_ctc_head_is_refused(processor, tmp_path):
    Wav2Vec2Model(make_config(32)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no CTC head \(lm_head"):
        CTCWordAligner(tmp_path)


def test_a_loaded_model_needs_its_processor(model):
    with pytest.raises(ValueError, match="processor is missing"):
        CTCWordAligner(model)


def test_a_model_of_spectra_is_refused(processor):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    spectral = Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**sizes, vocab_size=32))
    with pytest.raises(ValueError, match="'wav2vec2-bert' does not read a waveform"):
        CTCWordAligner(spectral, processor)


def test_an_adapter_between_frames_and_letters_is_refused(processor):
    with pytest.raises(ValueError, match="adapter that merges frames"):
        CTCWordAligner(make_model(32, add_adapter=True, output_hidden_size=96), processor)


@pytest.mark.parametrize(
    ("vocab_size", "values", "characters", "message"),
    [
        (32, {"pad_token_id": 5}, LETTERS, "the blank is token 5 for the model .* and 0 for the tokenizer"),
        (20, {}, LETTERS, "ids up to 31, the model 20 outputs"),
        (50, {}, [*LETTERS, *(f"{a}{b}" for a in "aeiou" for b in "nt")], "word pieces or phones"),
        (50, {}, [], "0 characters"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path, vocab_size, values, characters, message):
    with pytest.raises(ValueError, match=message):
        CTCWordAligner(make_model(vocab_size, **values), make_processor(tmp_path, characters))
