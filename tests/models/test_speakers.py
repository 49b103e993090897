"""Speakers enrolled by their own clips: what is collected and blended, where it is used, and that nobody else is
touched. Through models with standardizers inside the front end and behind it, and through the pipeline."""

import json

import numpy as np
import pytest
import torch
from model_helpers import (
    AUDIO_CONFIGS,
    CLASSES,
    WIDTH_FIELDS,
    WIDTHS,
    assert_same,
    logits_of,
    make_clip,
    make_config,
    make_model,
    quiet_build,
    randomize,
    speech,
)
from transformers import AutoModel

from mer_hf import (
    FilterbankConfig,
    FilterbankStatisticsConfig,
    MerProcessor,
    MultimodalEmotionRecognitionPipeline,
    SpeakerProfile,
    SpectrogramConfig,
    WordTableConfig,
    word_tokenizer,
)
from mer_hf.data.features import cache_embeds
from mer_hf.models.batching import pad_dialogues, pad_examples
from mer_hf.models.front_ends import FilterbankModel
from mer_hf.models.layers import Moments, Standardizer
from mer_hf.models.speakers import SpeakerReference, SpeakerStream, earlier_turns

RATE = 16_000
PLACES = {
    "filterbank": {
        "audio_config": lambda: FilterbankConfig(
            conv_dims=(8, 8), conv_kernels=(3, 2), conv_strides=(2, 1), normalization="global"
        ),
        "standardize": ["vision"],
    },
    "spectrogram": {
        "audio_config": lambda: SpectrogramConfig(hidden_size=8, normalization="global+utterance"),
        "standardize": ["vision"],
    },
    "filterbank, then its states": {
        "audio_config": lambda: FilterbankConfig(conv_dims=(8,), conv_kernels=(3,), conv_strides=(1,)),
        "standardize": ["audio", "vision"],
    },
    "statistics": {"audio_config": FilterbankStatisticsConfig, "standardize": ["audio", "vision"]},
    "wav2vec2": {"audio_config": AUDIO_CONFIGS["wav2vec2_group"], "standardize": ["audio", "vision"]},
}
INSIDE = ("filterbank", "spectrogram")
each_model = pytest.mark.parametrize("model_type", CLASSES)
each_place = pytest.mark.parametrize("place", PLACES)


def spoken(seed, samples=4000, loudness=1.0, drop=()):
    """A clip of sound, words and face; the louder the voice, the larger the face's values."""
    generator = torch.Generator().manual_seed(seed)
    clip = {
        "input_values": speech(seed, samples) * 0.1 * loudness,
        "input_ids": torch.tensor([3 + seed % 9, 12]),
        "word_ids": torch.tensor([0, 1]),
        "word_times": torch.tensor([[0.0, 0.1], [0.1, 0.2]]),
        "vision_embeds": torch.randn(3, WIDTHS["vision"], generator=generator) * loudness + loudness,
        "vision_times": torch.tensor([0.02, 0.1, 0.2]),
        "label": seed % 4,
    }
    return {name: value for name, value in clip.items() if name not in drop}


QUIET = [spoken(seed, 3000 + 500 * seed, 0.2) for seed in range(3)]
LOUD = [spoken(seed, 5000 - 300 * seed, 6.0) for seed in range(3, 6)]


def spoken_model(model_type, place, fitted=True):
    values = PLACES[place] | {"audio_config": PLACES[place]["audio_config"](), "vision_embed_dim": WIDTHS["vision"]}
    config = make_config(model_type, text_config=WordTableConfig(vocab_size=30, embedding_dim=7), **values)
    torch.manual_seed(0)
    model = quiet_build(CLASSES[model_type], config).eval()
    for name, child in model.named_children():
        if not name.endswith("_model"):
            randomize(child)
    if fitted:
        model.fit_standardizers(lambda: iter([pad_examples(QUIET), pad_examples(LOUD)]))
    return model


def use(model, modality, mean, std):
    """Make these the statistics of the checkpoint."""
    model._speaker_standardizer(modality).set_statistics(mean, std)


# Literal numbers


def test_moments_add_up():
    moments = Moments.of(torch.tensor([[1.0, -2.0]])) + Moments.of(torch.tensor([[3.0, 0.0], [5.0, -1.0]]))
    assert moments.count == 3
    assert moments.mean.tolist() == [3.0, -1.0]
    assert moments.variance.tolist() == pytest.approx([8 / 3, 2 / 3])  # 4 + 0 + 4 and 1 + 1 + 0 over 3
    assert moments.mean.dtype == torch.float64


def test_rows_with_a_speaker_and_rows_without():
    standardizer = Standardizer(2)
    standardizer.set_statistics(torch.tensor([1.0, 10.0]), torch.tensor([2.0, 0.5]))
    values = torch.tensor([[[5.0, 9.0], [1.0, 9.5]]]).repeat(3, 1, 1)
    speaker = torch.tensor([[[4.0, 9.0], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[77.0, 8.0], [0.0, 4.0]]])
    scaled = standardizer(values, torch.ones(3, 2, dtype=torch.bool), speaker)
    assert scaled[0].tolist() == [[2.0, 0.0], [-5.0, 0.5]]  # (1 - 4) / 0.5 = -6 is clipped
    assert torch.equal(scaled[1], standardizer(values[:1], torch.ones(1, 2, dtype=torch.bool))[0])
    assert scaled[2].tolist() == [[2.0, 0.25], [0.0, 0.375]]  # the first dimension has no deviation: (5 - 1) / 2


def stream(values, clips=1, space="a"):
    return SpeakerStream(clips, Moments.of(torch.tensor(values)), space)


def test_few_clips_are_blended_with_the_training_data():
    # Frames 1, 3, 5 of two clips: mean 3, variance 8/3. Of the training data: mean 0, variance 4.
    mean, std = torch.tensor([0.0]).double(), torch.tensor([2.0]).double()
    own = stream([[1.0], [3.0]]) + stream([[5.0]])
    assert own.clips == 2
    expected = {0: (3.0, 8 / 3), 2: (1.5, 10 / 3), 6: (0.75, 11 / 3)}  # shares 1, 1/2, 1/4
    for prior, (blended_mean, variance) in expected.items():
        blended = own.blended(mean, std, prior)
        assert blended.shape == (2, 1)
        assert blended[:, 0].tolist() == pytest.approx([blended_mean, variance**0.5])
    assert own.blended(mean, std).tolist() == own.blended(mean, std, 5).tolist()
    assert own.blended(mean, std, 1e12)[:, 0].tolist() == pytest.approx([0.0, 2.0], abs=1e-9)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="prior_clips must be 0 or more"):
            own.blended(mean, std, wrong)


def test_one_vector_without_a_prior_keeps_the_scale_of_the_training_data():
    """Its deviation is 0, which would say that nobody is enrolled."""
    blended = stream([[7.0, -3.0]]).blended(torch.zeros(2).double(), torch.tensor([2.0, 4.0]).double(), 0)
    assert blended.tolist() == [[7.0, -3.0], [2.0, 4.0]]


def test_a_turn_knows_the_earlier_turns_of_its_speaker():
    profiles = [SpeakerProfile({"audio": stream([[float(turn)]])}) for turn in range(6)]
    before = earlier_turns(profiles, ["Ann", "Bob", "Ann", None, "Ann", "Bob"])
    totals = [p.streams["audio"].moments.total.item() if p.streams else None for p in before]
    assert totals == [None, None, 0.0, None, 2.0, 1.0]
    assert [p.clips for p in before] == [{}, {}, {"audio": 1}, {}, {"audio": 2}, {"audio": 1}]


def test_profiles_of_different_modalities_and_features_add_or_not():
    heard, seen = SpeakerProfile({"audio": stream([[1.0]])}), SpeakerProfile({"vision": stream([[2.0]], space="b")})
    assert list((seen + heard).streams) == ["audio", "vision"]
    assert (seen + heard + heard).clips == {"audio": 2, "vision": 1}
    with pytest.raises(ValueError, match="different features cannot be added: 'a' and 'b'"):
        heard + SpeakerProfile({"audio": stream([[1.0]], space="b")})


# In the models


@each_model
@each_place
class TestPlaces:
    def test_without_enrolment_nothing_changes(self, model_type, place):
        model = spoken_model(model_type, place)
        batch = pad_examples([*QUIET, *LOUD, spoken(7, drop=("input_values",)), spoken(8, drop=("vision_embeds",))])
        nobody = {
            f"{modality}_speaker": torch.zeros(8, 2, len(reference.mean))
            for modality, reference in model.speaker_references().items()
        }
        assert set(nobody) == {"audio_speaker", "vision_speaker"}
        with torch.no_grad():
            assert torch.equal(model(**batch, **nobody).logits, model(**batch).logits)

    def test_a_profile_holds_what_is_standardized(self, model_type, place):
        """Enrolment from all clips of the training data without a prior gives the statistics of the training data."""
        model = spoken_model(model_type, place)
        clips = [*QUIET, *LOUD]
        profile = model.enrol(clips)
        assert profile.clips == {"audio": 6, "vision": 6}
        statistics = model.speaker_statistics(profile, prior_clips=0)
        for modality, reference in model.speaker_references().items():
            mean, std = statistics[f"{modality}_speaker"].double()
            torch.testing.assert_close(mean, reference.mean, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(std, reference.std, atol=1e-4, rtol=1e-4)
        enrolled = [clip | statistics for clip in clips]
        torch.testing.assert_close(logits_of(model, enrolled), logits_of(model, clips), atol=2e-3, rtol=2e-3)

    def test_a_speakers_statistics_take_the_place_of_the_checkpoints(self, model_type, place):
        model = spoken_model(model_type, place)
        statistics = model.speaker_statistics(model.enrol(LOUD))
        plain, enrolled = logits_of(model, LOUD), logits_of(model, [clip | statistics for clip in LOUD])
        assert (plain - enrolled).abs().max() > 1e-3
        for modality in ("audio", "vision"):
            use(model, modality, *statistics[f"{modality}_speaker"])
        assert_same(logits_of(model, LOUD), enrolled)

    def test_speakers_mix_in_a_batch(self, model_type, place):
        model = spoken_model(model_type, place)
        loud, quiet = (model.speaker_statistics(model.enrol(clips)) for clips in (LOUD, QUIET))
        clips = [
            LOUD[0] | loud,
            LOUD[0],
            QUIET[1] | quiet,
            LOUD[0] | quiet,
            QUIET[2] | {"vision_speaker": quiet["vision_speaker"]},
            spoken(9, 300) | loud,  # no frame of sound
            spoken(7, drop=("input_values",)) | quiet,
        ]
        alone = torch.cat([logits_of(model, [clip]) for clip in clips])
        torch.testing.assert_close(logits_of(model, clips), alone, atol=1e-4, rtol=1e-4)
        assert torch.pdist(alone[:4]).min() > 1e-3

    def test_gradients_are_finite(self, model_type, place):
        model = spoken_model(model_type, place).train()
        loud = model.speaker_statistics(model.enrol(LOUD))
        assert model.training
        clips = [LOUD[0] | loud, QUIET[0], spoken(7, drop=("input_values",)) | loud, spoken(8, 300)]
        output = model(**pad_examples(clips))
        output.loss.backward()
        assert output.loss.isfinite()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients.values())

    def test_neither_order_nor_parts_show_in_a_profile(self, model_type, place):
        model = spoken_model(model_type, place)
        clips = [*QUIET, *LOUD]
        whole = model.enrol(clips)
        others = [model.enrol(clips[::-1]), model.enrol(clips[:2]) + model.enrol(clips[2:]), model.enrol(iter(clips))]
        for other in others:
            assert other.clips == whole.clips
            for modality, one in whole.streams.items():
                two = other.streams[modality]
                assert (two.moments.count, two.space) == (one.moments.count, one.space)
                torch.testing.assert_close(two.moments.total, one.moments.total, atol=1e-9, rtol=1e-12)
                torch.testing.assert_close(two.moments.squares, one.moments.squares, atol=1e-9, rtol=1e-12)

    def test_a_profile_comes_back_from_its_file_to_the_last_bit(self, model_type, place, tmp_path):
        model = spoken_model(model_type, place)
        profile = model.enrol(LOUD)
        profile.save(tmp_path / "ann.json")
        again = SpeakerProfile.load(str(tmp_path / "ann.json"))
        assert again.clips == profile.clips
        for modality, one in profile.streams.items():
            two = again.streams[modality]
            assert two.space == one.space
            assert torch.equal(two.moments.total, one.moments.total)
            assert torch.equal(two.moments.squares, one.moments.squares)
        expected, found = model.speaker_statistics(profile), model.speaker_statistics(again)
        assert all(torch.equal(found[name], value) for name, value in expected.items())

    def test_bfloat16(self, model_type, place):
        model = spoken_model(model_type, place)
        profile = model.enrol(LOUD)
        full = [logits_of(model, LOUD), logits_of(model, [clip | model.speaker_statistics(profile) for clip in LOUD])]
        half = model.to(torch.bfloat16)
        statistics = half.speaker_statistics(profile)  # the profile fits in any precision
        rounded = [logits_of(half, LOUD), logits_of(half, [clip | statistics for clip in LOUD])]
        assert rounded[1].dtype == torch.bfloat16
        plain_error, error = ((r.float() - f).abs().max() for r, f in zip(rounded, full, strict=True))
        assert error < 0.1 + 5 * plain_error  # untrained states vary little, and what is rounded off is scaled up

    def test_collecting_leaves_the_model_as_it_was(self, model_type, place):
        model = spoken_model(model_type, place)
        before, state = logits_of(model, QUIET), {n: v.clone() for n, v in model.state_dict().items()}
        model.enrol(LOUD)
        assert torch.equal(logits_of(model, QUIET), before)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_frames_of_the_front_end_are_what_is_collected():
    model = spoken_model("cme", "filterbank")
    audio = model.audio_model
    frames = torch.cat([audio.log_mel(clip["input_values"][None])[0] for clip in LOUD]).double()
    moments = model.enrol(LOUD).streams["audio"].moments
    assert moments.count == len(frames)
    torch.testing.assert_close(moments.mean, frames.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moments.variance, frames.var(0, correction=0), atol=1e-4, rtol=1e-4)


def test_a_model_in_training_enrols_without_its_dropout():
    model = spoken_model("mman", "wav2vec2")
    expected = model.enrol(LOUD).streams["audio"].moments
    found = model.train().enrol(LOUD).streams["audio"].moments
    assert model.training
    assert torch.equal(found.total, expected.total)


def test_statistics_per_clip_where_a_clip_is_one_vector():
    model = make_model("mman", **WIDTH_FIELDS, standardize=["vision"])
    model.standardizers["vision"].set_statistics(torch.zeros(4), torch.ones(4))
    clips = [{"vision_embeds": torch.full((1, 4), value)} for value in (1.0, 2.0, 6.0)]
    mean, std = model.speaker_statistics(model.enrol(clips), prior_clips=1)["vision_speaker"]
    # Mean 3, variance (4 + 1 + 9) / 3; three shares of four.
    torch.testing.assert_close(mean, torch.full((4,), 2.25))
    torch.testing.assert_close(std, torch.full((4,), (0.75 * 14 / 3 + 0.25) ** 0.5))
    model.train()
    expected = (clips[2]["vision_embeds"] - mean) / std
    inputs = pad_examples([clips[2] | {"vision_speaker": torch.stack([mean, std])}])
    embeds = model.encode(**inputs)["vision"].embeds
    torch.testing.assert_close(embeds[0], expected)


@pytest.mark.parametrize("place", ["statistics", "wav2vec2"])
def test_cached_states_enrol_and_are_enrolled_like_the_sound_they_are_of(place):
    model = spoken_model("mman", place)
    cached = cache_embeds(model, LOUD, ("audio",))
    assert "input_values" not in cached[0]
    raw, cheap = model.speaker_statistics(model.enrol(LOUD)), model.speaker_statistics(model.enrol(cached))
    torch.testing.assert_close(cheap["audio_speaker"], raw["audio_speaker"], atol=1e-4, rtol=1e-4)
    logits = logits_of(model, [clip | raw for clip in LOUD])
    torch.testing.assert_close(logits_of(model, [clip | raw for clip in cached]), logits, atol=1e-4, rtol=1e-4)


def test_every_turn_of_a_dialogue_has_its_own_speaker():
    model = make_model("mman", **WIDTH_FIELDS, standardize=["audio", "vision"])
    clips = [make_clip(seed) for seed in range(5)]
    model.fit_standardizers(lambda: iter([pad_examples(clips)]))
    ann, bob = (model.speaker_statistics(model.enrol(own)) for own in (clips[:2], clips[2:4]))
    turns = [clips[0] | ann, clips[2] | bob, clips[4]]
    batch = pad_dialogues([turns, [clips[1] | ann]])
    assert batch["audio_speaker"].shape == (2, 3, 2, WIDTHS["audio"])
    with torch.no_grad():
        logits = model(**batch).logits
        for length in (1, 2, 3):  # the recurrence runs forward: a dialogue's beginning does not know its end
            torch.testing.assert_close(model(**pad_dialogues([turns[:length]])).logits[0], logits[0, :length])
        plain = model(**pad_dialogues([clips[:1]])).logits[0, 0]
    assert (plain - logits[0, 0]).abs().max() > 1e-3


# What is refused


def test_a_model_without_standardizers_enrols_nobody():
    model = make_model("cme", **WIDTH_FIELDS)
    assert model.enrollable == ()
    with pytest.raises(ValueError, match=r"standardizes neither audio nor vision.*normalization='global'"):
        model.enrol([make_clip(0)])
    with pytest.raises(ValueError, match="audio_speaker given, but this model does not standardize audio"):
        logits_of(model, [make_clip(0) | {"audio_speaker": torch.ones(2, 6)}])
    assert make_model("cme", **WIDTH_FIELDS, standardize=["text", "vision"]).enrollable == ("vision",)


def test_statistics_of_another_shape():
    model = make_model("mman", **WIDTH_FIELDS, standardize=["audio"])
    for shape in ((2, 5), (1, 6)):
        with pytest.raises(ValueError, match=r"audio_speaker must be \(1, 2, 6\), found \(1, "):
            logits_of(model, [make_clip(0) | {"audio_speaker": torch.ones(shape)}])


@pytest.mark.parametrize("place", INSIDE)
def test_states_that_the_front_end_has_standardized(place):
    model = spoken_model("learned_alignment", place)
    statistics = model.speaker_statistics(model.enrol(LOUD))
    cached = cache_embeds(model, LOUD, ("audio",))
    assert torch.equal(logits_of(model, cached), logits_of(model, cached))
    with pytest.raises(ValueError, match=r"audio_speaker belongs inside the audio backbone.*give input_values"):
        logits_of(model, [clip | statistics for clip in cached])
    with pytest.raises(ValueError, match="audio_embeds are standardized already; enrol from input_values"):
        model.enrol(cached)


def test_a_profile_of_other_features():
    mine = spoken_model("cme", "filterbank")
    profile = mine.enrol(LOUD)
    assert mine.speaker_statistics(profile)
    other_head = spoken_model("mman", "filterbank")
    assert other_head.feature_space("audio") == mine.feature_space("audio")
    assert other_head.speaker_statistics(profile)
    for place in set(PLACES) - {"filterbank"}:
        with pytest.raises(ValueError, match="its audio is of mer_filterbank frames of width 40, this model's is "):
            spoken_model("cme", place).speaker_statistics(profile)
    deaf = make_model("cme", vision_embed_dim=4, standardize=["vision"])
    with pytest.raises(ValueError, match="this model's is not standardized"):
        deaf.speaker_statistics(profile)
    narrow = make_model("cme", audio_embed_dim=5, standardize=["audio"]).enrol([{"audio_embeds": torch.ones(2, 5)}])
    with pytest.raises(ValueError, match=r"audio_embeds of width 5, this model's is audio_embeds of width 6"):
        make_model("cme", audio_embed_dim=6, standardize=["audio"]).speaker_statistics(narrow)


def test_a_profile_of_other_weights():
    model = spoken_model("cme", "wav2vec2")
    profile = model.enrol(LOUD)
    with torch.no_grad():
        for parameter in model.audio_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # as fine-tuning would
    with pytest.raises(ValueError, match="wav2vec2 states of width 32 "):
        model.speaker_statistics(profile)


def test_a_profile_of_other_settings_of_a_front_end_without_weights():
    def model(trim_db):
        config = FilterbankStatisticsConfig(trim_db=trim_db)
        return make_model("mman", audio_config=config, network="unimodal", standardize=["audio"])

    assert model(30.0).feature_space("audio") == model(30.0).feature_space("audio")
    assert model(30.0).feature_space("audio") != model(20.0).feature_space("audio")
    profile = model(30.0).enrol(LOUD)
    with pytest.raises(ValueError, match="mer_filterbank_statistics states of width 240"):
        model(20.0).speaker_statistics(profile)


def test_a_model_that_was_never_fitted():
    model = spoken_model("mman", "statistics", fitted=False)
    profile = model.enrol(LOUD)  # the sums are the same before training and after it
    with pytest.raises(ValueError, match="statistics of audio were never fitted"):
        model.speaker_statistics(profile)


def test_clips_with_nothing_to_enrol_from():
    model = spoken_model("mman", "statistics")
    empty = [spoken(0, 300, drop=("vision_embeds",)), {"input_ids": torch.tensor([3])}]
    assert [profile.streams for profile in model.clip_profiles(empty)] == [{}, {}]
    for clips in (empty, []):
        with pytest.raises(ValueError, match="no clip with audio or vision to enrol a speaker from"):
            model.enrol(clips)
    broken = spoken(0) | {"vision_embeds": torch.full((1, 4), float("nan"))}
    with pytest.raises(ValueError, match="vision of a clip to enrol from holds values that are not finite"):
        model.train().enrol([broken])
    assert model.training
    assert model.enrol([spoken(0, drop=("input_values",))]).clips == {"vision": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: None, "cannot be read"),
        (lambda content: "{", "is no speaker profile"),
        (lambda content: [], "is no speaker profile"),
        (lambda content: content | {"format": "something else"}, "found 'something else'"),
        (lambda content: {"format": content["format"]}, "is no speaker profile.*streams"),
        (lambda content: change_stream(content, total=[1.0]), "equally long"),
        (lambda content: change_stream(content, total=["x"]), "is no speaker profile"),
        (lambda content: change_stream(content, squares=[float("inf")] * 4), "finite"),
        (lambda content: change_stream(content, clips=0), "must be counts"),
        (lambda content: change_stream(content, frames=0), "must be counts"),
        (lambda content: content | {"streams": {"text": content["streams"]["vision"]}}, "of text"),
    ],
)
def test_files_that_are_no_profile(tmp_path, change, message):
    path = tmp_path / "ann.json"
    make_model("cme", **WIDTH_FIELDS, standardize=["vision"]).enrol([make_clip(0)]).save(path)
    changed = change(json.loads(path.read_text()))
    path.unlink()
    if changed is not None:
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(ValueError, match=message) as error:
        SpeakerProfile.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def change_stream(content, **values):
    return content | {"streams": {"vision": content["streams"]["vision"] | values}}


def test_references_are_of_the_moment():
    """A training set keeps them while the model is fitted anew."""
    model = make_model("cme", **WIDTH_FIELDS, standardize=["audio"])
    use(model, "audio", torch.ones(6), torch.full((6,), 2.0))
    reference = model.speaker_references()["audio"]
    assert isinstance(reference, SpeakerReference)
    use(model, "audio", torch.zeros(6), torch.ones(6))
    assert reference.mean.tolist() == [1.0] * 6
    assert reference.std.tolist() == [2.0] * 6


def test_a_front_end_alone_takes_a_speaker():
    torch.manual_seed(0)
    model = FilterbankModel(FilterbankConfig(conv_dims=(), conv_kernels=(), conv_strides=(), normalization="global"))
    model.normalization.set_statistics(torch.zeros(40), torch.ones(40))
    waveform = speech(0, 2000)[None]
    frames = model.log_mel(waveform)
    speaker = torch.stack([torch.full((40,), 10.0), torch.full((40,), 4.0)])[None]
    states = model(waveform, speaker=speaker).last_hidden_state
    torch.testing.assert_close(states, ((frames - 10) / 4).clamp(-5, 5))


# In the pipeline


def noise(seconds, seed=0, loudness=1.0):
    random = np.random.default_rng(seed)
    wave = np.convolve(random.standard_normal(int(seconds * RATE)), np.ones(1 + seed % 4) / (1 + seed % 4), "same")
    return (wave * 1500 * loudness).clip(-32768, 32767).astype(np.int16), RATE


@pytest.fixture(scope="module", params=["cme", "learned_alignment", "mman"])
def pipe(request, tmp_path_factory):
    """A pipeline of a saved and reloaded model, fitted on sound and face scores of two kinds of clips."""
    audio = {
        "cme": FilterbankConfig(conv_dims=(8,), conv_kernels=(3,), conv_strides=(2,), normalization="global"),
        "learned_alignment": SpectrogramConfig(hidden_size=8, normalization="global"),
        "mman": FilterbankStatisticsConfig(num_mel_bins=8),
    }[request.param]
    standardize = ["vision"] if request.param != "mman" else ["audio", "vision"]
    text = WordTableConfig(vocab_size=8, embedding_dim=6)
    values = {"audio_config": audio, "text_config": text, "vision_embed_dim": 3, "standardize": standardize}
    model = make_model(request.param, **values)
    processor = MerProcessor.default(tokenizer=word_tokenizer(["kids are talking by the door"]))
    pipe = MultimodalEmotionRecognitionPipeline(model=model, processor=processor, device="cpu")
    examples = [pipe._prepare(turn(seed), None, False).example for seed in range(4)]
    model.fit_standardizers(lambda: iter([pad_examples(examples)]))
    folder = tmp_path_factory.mktemp(request.param)
    pipe.save_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    processor = MerProcessor.from_pretrained(folder)
    return MultimodalEmotionRecognitionPipeline(model=model, processor=processor, device="cpu", recognize=False)


def turn(seed, loudness=1.0, **more):
    random = np.random.default_rng(seed)
    face = random.standard_normal((2, 3)).astype(np.float32) * loudness
    clip = {"audio": noise(0.3, seed, loudness), "vision_embeds": face, "vision_times": [0.1, 0.2]}
    return clip | {"words": [{"word": "kids", "start": 0.0, "end": 0.3}]} | more


def scores(result):
    return {item["label"]: item["score"] for item in result}


def same(one, other, tolerance=1e-5):
    return scores(one) == pytest.approx(scores(other), abs=tolerance)


class TestPipeline:
    def test_a_profile_and_its_file_do_the_same(self, pipe, tmp_path):
        profile = pipe.enrol([turn(seed, 5.0) for seed in (10, 11, 12)])
        assert profile.clips == {"audio": 3, "vision": 3}
        profile.save(tmp_path / "ann.json")
        plain, enrolled = pipe(turn(13, 5.0)), pipe(turn(13, 5.0), speaker=profile)
        assert not same(plain, enrolled, 1e-3)
        assert same(pipe(turn(13, 5.0, speaker=tmp_path / "ann.json")), enrolled)
        assert same(pipe(turn(13, 5.0), speaker=str(tmp_path / "ann.json")), enrolled)
        assert same(pipe(turn(13, 5.0, speaker=None)), plain)
        assert not same(pipe(turn(13, 5.0), speaker=profile, prior_clips=50), enrolled, 1e-4)

    def test_the_model_and_the_pipeline_enrol_alike(self, pipe):
        clips = [turn(seed, 5.0) for seed in (10, 11)]
        examples = [pipe._prepare(clip, None, False).example for clip in clips]
        by_model, by_pipe = pipe.model.enrol(examples), pipe.enrol(clips)
        for modality, one in by_model.streams.items():
            assert torch.equal(by_pipe.streams[modality].moments.total, one.moments.total)

    def test_words_are_not_needed_to_enrol(self, pipe):
        bare = [{name: value for name, value in turn(10).items() if name in ("audio", "vision_embeds")}]
        assert pipe.enrol(bare).clips == pipe.enrol([turn(10)]).clips
        assert pipe.enrol(noise(0.3)).clips == {"audio": 1}

    def test_enrolled_and_other_clips_mix_in_a_list(self, pipe):
        ann = pipe.enrol([turn(seed, 5.0) for seed in (10, 11)])
        bob = pipe.enrol([turn(seed, 0.1) for seed in (20, 21)])
        clips = [turn(12, 5.0, speaker=ann), turn(12, 5.0), turn(22, 0.1, speaker=bob), noise(0.4, 3)]
        alone = [pipe(clip) for clip in clips]
        assert not same(alone[0], alone[1], 1e-3)
        assert all(same(one, other) for one, other in zip(pipe(clips, batch_size=4), alone, strict=True))

    def test_turns_with_profiles(self, pipe):
        ann = pipe.enrol([turn(seed, 5.0) for seed in (10, 11)])
        plain = pipe(dialogue=[turn(12, 5.0), turn(13, 5.0)])
        enrolled = pipe(dialogue=[turn(12, 5.0, speaker=ann), turn(13, 5.0)])
        assert same(enrolled[0], pipe(turn(12, 5.0, speaker=ann)))
        assert not same(enrolled[0], plain[0], 1e-3)

    def test_earlier_turns_enrol_the_speaker(self, pipe):
        who = ["Ann", "Bob", "Ann", None, "Ann"]
        turns = [turn(30 + n, 5.0 if name == "Ann" else 0.3, speaker_id=name) for n, name in enumerate(who, start=1)]
        plain, causal = pipe(dialogue=turns), pipe(dialogue=turns, enrol_turns=True)
        assert same(plain[0], causal[0], 1e-7)
        assert same(plain[1], causal[1], 1e-7)
        assert not same(plain[2], causal[2], 1e-4)
        given = [clip | {"speaker": None} for clip in turns]
        given[2]["speaker"] = pipe.enrol(turns[:1])
        given[4]["speaker"] = pipe.enrol([turns[2], turns[0]])
        by_hand = pipe(dialogue=given)
        assert all(same(one, other) for one, other in zip(by_hand, causal, strict=True))

    def test_a_turn_sees_neither_itself_nor_what_follows(self, pipe):
        turns = [turn(30 + n, 5.0, speaker_id="Ann") for n in range(4)]
        expected = pipe(dialogue=turns, enrol_turns=True)
        changed = pipe(dialogue=[*turns[:2], turn(77, 0.05, speaker_id="Ann"), turns[3]], enrol_turns=True)
        assert all(same(one, other, 1e-7) for one, other in zip(expected[:2], changed[:2], strict=True))
        assert not same(expected[3], changed[3], 1e-4)
        # The changed turn itself: standardized by the two turns before it, as if they were given.
        ann = pipe.enrol(turns[:2])
        alone = [turns[0], turns[1] | {"speaker": pipe.enrol(turns[:1])}]
        by_hand = pipe(dialogue=[*alone, turn(77, 0.05, speaker=ann)])
        assert same(by_hand[2], changed[2])

    def test_a_profile_goes_on_with_the_turns(self, pipe):
        known = pipe.enrol([turn(seed, 5.0) for seed in (10, 11)])
        turns = [turn(12, 5.0, speaker_id="Ann", speaker=known), turn(13, 5.0, speaker_id="Ann", speaker=known)]
        given = [turn(12, 5.0, speaker=known), turn(13, 5.0, speaker=known + pipe.enrol(turns[:1]))]
        by_hand = pipe(dialogue=given)
        causal = pipe(dialogue=turns, enrol_turns=True)
        assert all(same(one, other) for one, other in zip(causal, by_hand, strict=True))

    @pytest.mark.parametrize(
        ("inputs", "keywords", "message"),
        [
            (turn(0), {"speaker": "nobody.json"}, "speaker profile 'nobody.json' cannot be read"),
            (turn(0, speaker=3), {}, "speaker is a profile from enrol.*found int"),
            ([turn(0)], {"speaker": "ann.json"}, "speaker as keywords belong to one clip"),
            (None, {"dialogue": [turn(0)], "enrol_turns": True}, "no turn of the dialogue says who speaks"),
            (None, {"dialogue": [turn(0)], "speaker": "ann.json"}, "dialogue= takes a list of one or more clips"),
        ],
    )
    def test_what_is_refused(self, pipe, inputs, keywords, message):
        with pytest.raises(ValueError, match=message):
            pipe(inputs, **keywords)

    def test_clips_that_enrol_nobody(self, pipe):
        with pytest.raises(ValueError, match="a clip of text: no audio and no vision in it"):
            pipe.enrol([turn(0), {"text": "kids"}])
        with pytest.raises(ValueError, match="no clip to enrol a speaker from"):
            pipe.enrol([])
        with pytest.raises(ValueError, match="no audio and no vision in it"):
            pipe.enrol([noise(0.01)])


def test_real_speakers_are_told_from_the_average(ravdess_dir):
    """Of two actors: each one's own clips, standardized by his or her profile, are centred; by the other's, not."""
    config = FilterbankStatisticsConfig(trim_db=30.0)
    model = make_model("mman", audio_config=config, network="unimodal", standardize=["audio"])
    pipe = MultimodalEmotionRecognitionPipeline(model=model, processor=MerProcessor.default(), device="cpu")
    clips = {n: sorted((ravdess_dir / f"Actor_{n:02}").glob("03-*.wav"))[::6] for n in (1, 2)}
    examples = {n: [pipe.processor.example(**pipe.processor.load(audio=path)) for path in clips[n]] for n in clips}
    model.fit_standardizers(lambda: iter([pad_examples(own) for own in examples.values()]))
    profiles = {n: pipe.enrol(paths) for n, paths in clips.items()}
    for n, other in ((1, 2), (2, 1)):
        offset = {}
        for who in (n, other):
            statistics = model.speaker_statistics(profiles[who], prior_clips=0)
            inputs = pad_examples([example | statistics for example in examples[n]])
            offset[who] = model.encode(**inputs)["audio"].embeds.mean(dim=(0, 1)).abs().mean()
        assert offset[n] < 0.05
        assert offset[other] > 0.5
