"""Explanations against plain loops over pipeline calls: every subset of the modalities, every masked word."""

import json
import math
from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertTokenizerFast, ViTConfig, ViTImageProcessor, Wav2Vec2Config

from mer_hf import (
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    FilterbankStatisticsConfig,
    LateFusionForEmotionClassification,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    MultimodalEmotionRecognitionPipeline,
    SpectrogramConfig,
    WordTableConfig,
    explanation,
    word_tokenizer,
)
from mer_hf.explanation import Explanation, explain, stand_in_token

RATE = 16_000
TRANSCRIPT = "kids are talking by the door"
WORDS = [{"word": word, "start": 0.1 * i, "end": 0.1 * (i + 1)} for i, word in enumerate(TRANSCRIPT.split())]
TABLE = {"vocab_size": 8, "embedding_dim": 6}
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = SMALL | {"image_size": 8, "patch_size": 4}
GROUP_NORM = SMALL | {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kid", "##s", "are", "talk", "##ing", "by", "the", "door"]
LABELS = {0: "angry", 1: "sad"}


def lively(model, seed=0):
    """Weights large enough that every part shows in the scores."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_model" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
            elif parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


def make_cme(**values):
    audio = FilterbankConfig(conv_dims=(8, 8, 8), normalization="utterance")
    text = WordTableConfig(**TABLE, gate_dim=16)
    values = {"audio_config": audio, "text_config": text, "vision_config": ViTConfig(**VIT)} | values
    return CMEForEmotionClassification(CMEConfig(hidden_size=16, calibration_temperature=1.7, **values))


def make_learned_alignment(**values):
    audio, text = SpectrogramConfig(hidden_size=8), WordTableConfig(**TABLE)
    values = {"audio_config": audio, "text_config": text, "vision_config": ViTConfig(**VIT)} | values
    return LearnedAlignmentForEmotionClassification(LearnedAlignmentConfig(hidden_size=4, **values))


def make_mman(**values):
    audio = FilterbankStatisticsConfig(num_mel_bins=8)
    values = {
        "audio_config": audio,
        "text_config": WordTableConfig(**TABLE),
        "vision_config": ViTConfig(**VIT),
    } | values
    sizes = {"hidden_size": 8, "projection_size": 6, "classifier_size": 8}
    return MMANForEmotionClassification(MMANConfig(**sizes, **values))


def make_group_norm():
    text = BertConfig(**SMALL, vocab_size=len(PIECES))
    config = LearnedAlignmentConfig(audio_config=Wav2Vec2Config(**GROUP_NORM), text_config=text, hidden_size=4)
    return LearnedAlignmentForEmotionClassification(config)


def make_late_fusion():
    branches = {"spoken": make_cme(vision_config=None), "face": make_mman(audio_config=None, text_config=None)}
    return LateFusionForEmotionClassification.from_branches(branches, weights=[2, 1], calibration_temperature=0.6)


MAKERS = {
    "cme": make_cme,
    "learned_alignment": make_learned_alignment,
    "mman": make_mman,
    "group_norm": make_group_norm,
    "late_fusion": make_late_fusion,
}


def make_pipe(model, **processor):
    tokenizer = word_tokenizer([TRANSCRIPT])
    if model.config.text_config is not None and model.config.text_config.model_type == "bert":
        tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(PIECES)})
    images = ViTImageProcessor(size={"height": 8, "width": 8})
    processor = {"tokenizer": tokenizer} | processor
    return MultimodalEmotionRecognitionPipeline(
        model, MerProcessor.default(image_processor=images, num_frames=3, **processor)
    )


@pytest.fixture(scope="module")
def pipes():
    torch.manual_seed(0)
    return {name: make_pipe(lively(make())) for name, make in MAKERS.items()}


def noise(seconds=0.8, seed=0):
    random = np.random.default_rng(seed)
    wave = np.convolve(random.standard_normal(int(seconds * RATE)), np.ones(1 + seed) / (1 + seed), "same")
    return (wave * 0.1 * (1 + seed)).clip(-1, 1).astype(np.float32)


def frames(seed=0, number=3):
    pictures = np.random.default_rng(seed).integers(0, 255, (number, 8, 8, 3), np.uint8)
    return {"frames": pictures, "times": np.linspace(0.1, 0.7, number)}


def clip(pipe, seed=0, **more):
    """All that a model reads: sound, timed words and, where it has a face, pictures."""
    face = {"video": frames(seed)} if "vision" in pipe.model.config.modalities else {}
    return {"audio": (noise(0.8, seed), RATE), "words": WORDS, **face, **more}


KEYS = {"audio": "audio", "text": "words", "vision": "video"}


def without(whole, gone):
    """The clip as somebody would pass it who does not have some modalities."""
    left = {key: value for key, value in whole.items() if key not in {KEYS[modality] for modality in gone}}
    return left | ({"text": ""} if "text" in gone else {})


def value(scores, label):
    """Centred log-probability: what softmax leaves of the centred logit."""
    logs = {item["label"]: math.log(item["score"]) for item in scores}
    return logs[label] - sum(logs.values()) / len(logs)


def value_of_nothing(pipe, label):
    model = pipe.model
    branch = model if model.config.model_type != "mer_late_fusion" else None
    if branch is None:
        return 0.0
    width = model.config.width("audio")
    with torch.no_grad():
        logits = model(audio_embeds=torch.zeros(1, 0, width)).logits[0] / model.config.calibration_temperature
    return float(logits[model.config.label2id[label]] - logits.mean())


def naive_shapley(players, worth):
    """Mean over all orders in which the players may come of what each adds when it comes."""
    orders, worth = list(permutations(players)), cache(worth)
    added = dict.fromkeys(players, 0.0)
    for order in orders:
        for place, player in enumerate(order):
            added[player] += worth(frozenset(order[: place + 1])) - worth(frozenset(order[:place]))
    return {player: total / len(orders) for player, total in added.items()}


# Modalities


@pytest.mark.parametrize(("name", "label"), [*((name, "sad") for name in MAKERS), ("cme", None)])
def test_modalities_are_worth_what_separate_calls_say(pipes, name, label):
    pipe = pipes[name]
    whole, players = clip(pipe), pipe.model.config.modalities
    found = explain(pipe, whole, label, words=False)
    scores = pipe(whole)
    assert [item["label"] for item in found.scores] == [item["label"] for item in scores]
    assert [item["score"] for item in found.scores] == pytest.approx([item["score"] for item in scores], abs=1e-5)
    assert found.label == (label or scores[0]["label"]) and found.words is None

    def worth(present):
        if not present:
            return value_of_nothing(pipe, found.label)
        return value(pipe(without(whole, set(players) - present)), found.label)

    expected = naive_shapley(players, worth)
    assert found.modalities == pytest.approx(expected, abs=2e-5)
    assert max(map(abs, expected.values())) > 0.01
    assert found.baseline == pytest.approx(worth(frozenset()), abs=1e-5)
    assert found.total == pytest.approx(worth(frozenset(players)), abs=1e-5)
    assert sum(found.modalities.values()) == pytest.approx(found.total - found.baseline, abs=1e-9)
    size = sum(map(abs, expected.values()))
    assert found.shares == pytest.approx({m: abs(v) / size for m, v in expected.items()}, abs=1e-4)


@pytest.mark.parametrize("gone", [("audio",), ("text",), ("vision",), ("audio", "vision"), ("text", "vision")])
def test_only_what_a_clip_has_takes_part(pipes, gone):
    pipe = pipes["cme"]
    rest = without(clip(pipe), gone)
    found = explain(pipe, rest)
    assert list(found.modalities) == [m for m in ("audio", "text", "vision") if m not in gone]
    assert sum(found.modalities.values()) == pytest.approx(found.total - found.baseline, abs=1e-9)
    assert found.total == pytest.approx(value(pipe(rest), found.label), abs=1e-5)
    assert (found.words is None) == ("text" in gone)


def test_two_branches_by_hand():
    """Voice says .8 to .2, which is centred log(2); the face says .5 to .5; their mean is half as sure as the voice.

    Voice: (log 2 + (log 2) / 2) / 2; face: (0 - (log 2) / 2) / 2.
    """
    branches = {"voice": {"audio_embed_dim": 3}, "face": {"vision_embed_dim": 2}}
    for (name, width), odds in zip(list(branches.items()), ([0.8, 0.2], [0.5, 0.5]), strict=True):
        branch = LearnedAlignmentForEmotionClassification(LearnedAlignmentConfig(**width, id2label=LABELS))
        with torch.no_grad():
            branch.classifier.weight.zero_()
            branch.classifier.bias.copy_(torch.tensor(odds).log() * 3)
        branch.config.calibration_temperature = 3.0
        branches[name] = branch
    pipe = make_pipe(LateFusionForEmotionClassification.from_branches(branches).eval())
    features = {"audio_embeds": torch.ones(5, 3), "vision_embeds": torch.ones(2, 2), "vision_times": torch.ones(2)}
    found = explain(pipe, features)
    assert found.label == "angry" and found.baseline == 0.0
    two = math.log(2)
    assert found.modalities == pytest.approx({"audio": 0.75 * two, "vision": -0.25 * two}, abs=1e-6)
    assert found.shares == pytest.approx({"audio": 0.75, "vision": 0.25}, abs=1e-6)
    assert found.total == pytest.approx(two / 2, abs=1e-6)
    opposite = explain(pipe, features, "sad")
    assert opposite.modalities == pytest.approx({"audio": -0.75 * two, "vision": 0.25 * two}, abs=1e-6)


def rnn_columns(model, side):
    """The input weights of the recurrence over the words that read one side (200 columns in the paper)."""
    size = 2 * model.config.hidden_size
    columns = slice(side * size, (side + 1) * size)
    layers = [*model.fusion.rnn.forward_layers, *model.fusion.rnn.backward_layers]
    return [layer.weight_ih_l0[:, columns] for layer in layers]


def test_a_modality_the_model_ignores_is_worth_nothing():
    torch.manual_seed(0)
    model = lively(make_learned_alignment())
    with torch.no_grad():
        for weights in rnn_columns(model, 1):  # audio, vision, text
            weights.zero_()
    pipe = make_pipe(model)
    found = explain(pipe, clip(pipe), words=False)
    assert found.modalities["vision"] == pytest.approx(0, abs=1e-6)
    assert min(abs(found.modalities["audio"]), abs(found.modalities["text"])) > 0.01


def test_players_that_the_model_cannot_tell_apart_are_worth_the_same():
    widths = {"audio_embed_dim": 4, "vision_embed_dim": 4}
    model = make_learned_alignment(audio_config=None, vision_config=None, **widths)
    model = lively(model)
    with torch.no_grad():
        model.encoders["vision"].load_state_dict(model.encoders["audio"].state_dict())
        model.fusion.alignments["vision"].load_state_dict(model.fusion.alignments["audio"].state_dict())
        for audio, vision in zip(rnn_columns(model, 0), rnn_columns(model, 1), strict=True):
            vision.copy_(audio)
    same = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    found = explain(make_pipe(model), {"audio_embeds": same, "vision_embeds": same, "text": TRANSCRIPT})
    assert found.modalities["audio"] == pytest.approx(found.modalities["vision"], abs=1e-6)
    assert abs(found.modalities["audio"]) > 0.01
    other = explain(make_pipe(model), {"audio_embeds": same, "vision_embeds": 1 - same, "text": TRANSCRIPT})
    assert abs(other.modalities["audio"] - other.modalities["vision"]) > 1e-3


# Words


def masked_clip(whole, index, kind):
    """The clip with a word that the word table does not have, or with silence while it is said."""
    edited = dict(whole)
    if kind in ("text", "both"):
        edited["words"] = [*WORDS[:index], WORDS[index] | {"word": "qqq"}, *WORDS[index + 1 :]]
    if kind in ("audio", "both"):
        samples = whole["audio"][0].copy()
        samples[round(WORDS[index]["start"] * RATE) : round(WORDS[index]["end"] * RATE)] = 0
        edited["audio"] = (samples, RATE)
    return edited


@pytest.mark.parametrize("name", ["cme", "learned_alignment", "mman", "late_fusion"])
def test_words_do_what_the_pipeline_says_of_the_edited_clip(pipes, name):
    pipe = pipes[name]
    whole = clip(pipe)
    found = explain(pipe, whole)
    assert [word["word"] for word in found.words] == TRANSCRIPT.split()
    total = value(pipe(whole), found.label)
    for index, word in enumerate(found.words):
        assert set(word) == {"word", "start", "end", "text", "audio", "both"}
        for kind in ("text", "audio", "both"):
            drop = total - value(pipe(masked_clip(whole, index, kind)), found.label)
            assert word[kind] == pytest.approx(drop, abs=2e-5), (index, kind)
    for kind in ("text", "audio", "both"):
        assert max(abs(word[kind]) for word in found.words) > 1e-3


def edited_value(pipe, whole, label, edit):
    """The value with an edit of the prepared example: what cannot be said in a clip, such as a mask token."""
    prepared = pipe.preprocess(whole)
    [turn] = prepared.turns
    [output] = pipe.forward([replace(prepared, turns=[replace(turn, example=turn.example | edit(turn.example))])])
    return value(pipe.postprocess(output), label)


@pytest.mark.parametrize("stands_in", ["[MASK]", "[UNK]", None])
def test_sub_word_pieces_become_the_mask_token_else_unknown_else_nothing(stands_in):
    torch.manual_seed(0)
    special = {"mask_token": None} if stands_in != "[MASK]" else {}
    special |= {"unk_token": None} if stands_in is None else {}
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(PIECES)}, **special)
    assert stand_in_token(tokenizer) == (None if stands_in is None else PIECES.index(stands_in))
    pipe = make_pipe(lively(make_group_norm()), tokenizer=tokenizer)
    whole = clip(pipe)
    found = explain(pipe, whole, "sad")
    total = value(pipe(whole), "sad")
    samples = {"kids": slice(0, 1600), "talking": slice(3200, 4800)}
    for word, pieces in (("kids", ["kid", "##s"]), ("talking", ["talk", "##ing"])):
        gone = torch.tensor([PIECES.index(piece) for piece in pieces])

        def text(example, gone=gone):
            hit = torch.isin(example["input_ids"], gone)
            if stands_in is None:
                return {name: example[name][~hit] for name in ("input_ids", "word_ids")}
            return {"input_ids": torch.where(hit, PIECES.index(stands_in), example["input_ids"])}

        def sound(example, span=samples[word]):
            silenced = example["input_values"].clone()
            silenced[span] = 0
            return {"input_values": silenced}

        [entry] = [entry for entry in found.words if entry["word"] == word]
        expected = {"text": text, "audio": sound, "both": lambda e, text=text, sound=sound: text(e) | sound(e)}
        for kind, edit in expected.items():
            assert entry[kind] == pytest.approx(total - edited_value(pipe, whole, "sad", edit), abs=2e-5), (word, kind)
        assert abs(entry["text"]) > 5e-5 and abs(entry["audio"]) > 5e-5


def test_a_tokenizer_whose_unknown_token_ends_texts_has_no_stand_in():
    tokenizer = BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate(PIECES)}, mask_token=None, unk_token="[SEP]", eos_token="[SEP]"
    )
    assert stand_in_token(tokenizer) is None


def test_words_without_times_have_text_alone(pipes):
    pipe = pipes["learned_alignment"]
    whole = {"audio": (noise(), RATE), "text": TRANSCRIPT}
    found = explain(pipe, whole)
    assert [set(word) for word in found.words] == [{"word", "text"}] * 6
    edited = {"audio": (noise(), RATE), "text": TRANSCRIPT.replace("talking", "qqq")}
    drop = value(pipe(whole), found.label) - value(pipe(edited), found.label)
    assert found.words[2]["text"] == pytest.approx(drop, abs=1e-5)


def test_without_sound_timed_words_have_text_alone(pipes):
    found = explain(pipes["cme"], {"words": WORDS, "video": frames()})
    assert [set(word) for word in found.words] == [{"word", "start", "end", "text"}] * 6


def test_a_model_without_text_shows_the_sound_of_words_given_for_their_times():
    torch.manual_seed(0)
    pipe = make_pipe(lively(make_cme(text_config=None, vision_config=None, excitement=[])))
    whole = {"audio": (noise(), RATE), "words": WORDS}
    found = explain(pipe, whole)
    assert list(found.modalities) == ["audio"] and found.shares == {"audio": 1.0}
    drop = value(pipe(whole), found.label) - value(pipe(masked_clip(whole, 1, "audio")), found.label)
    assert set(found.words[1]) == {"word", "start", "end", "audio"}
    assert found.words[1]["audio"] == pytest.approx(drop, abs=1e-5) and abs(drop) > 1e-4


def test_frames_computed_beforehand_become_the_mean_of_the_others():
    pipe = make_pipe(lively(make_cme(audio_config=None, vision_config=None, audio_embed_dim=8)))
    states = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    whole = {"audio_embeds": states, "words": WORDS}
    found = explain(pipe, whole)
    edited = states.clone()
    edited[10:20] = torch.cat([states[:10], states[20:]]).mean(0)
    drop = value(pipe(whole), found.label) - value(pipe(whole | {"audio_embeds": edited}), found.label)
    assert found.words[1]["audio"] == pytest.approx(drop, abs=1e-5) and abs(drop) > 1e-4
    everything = explain(pipe, {"audio_embeds": states, "words": [{"word": "kids", "start": 0, "end": 2}]})
    silent = {"audio_embeds": torch.zeros(60, 8), "words": [{"word": "kids", "start": 0, "end": 2}]}
    drop = everything.total - value(pipe(silent), everything.label)
    assert everything.words[0]["audio"] == pytest.approx(drop, abs=1e-5)


def test_word_vectors_computed_beforehand_are_not_masked():
    values = {"audio_config": None, "vision_config": None, "text_config": None}
    pipe = make_pipe(lively(make_learned_alignment(**values, audio_embed_dim=8, text_embed_dim=5)))
    whole = {"audio_embeds": torch.ones(60, 8), "text_embeds": torch.randn(6, 5), "words": WORDS}
    found = explain(pipe, whole)
    assert set(found.modalities) == {"audio", "text"}
    assert [set(word) for word in found.words] == [{"word", "start", "end", "audio"}] * 6


def test_times_count_from_where_a_trimmed_clip_begins():
    torch.manual_seed(0)
    pipe = make_pipe(lively(make_cme(vision_config=None)), trim_db=30.0)
    still = 1e-4 * noise(0.5, 3)
    shifted = [{"word": w["word"], "start": w["start"] + 0.5, "end": w["end"] + 0.5} for w in WORDS]
    audio = np.concatenate([still, noise(), still])
    whole = {"audio": (audio, RATE), "words": shifted}
    assert pipe.preprocess(whole).turns[0].example["begins"] > 0.4
    found = explain(pipe, whole)
    silenced = audio.copy()
    silenced[round(0.7 * RATE) : round(0.8 * RATE)] = 0
    drop = value(pipe(whole), found.label) - value(pipe(whole | {"audio": (silenced, RATE)}), found.label)
    assert found.words[2]["start"] == pytest.approx(0.7)
    assert found.words[2]["audio"] == pytest.approx(drop, abs=1e-5) and abs(drop) > 1e-4


# Speakers and dialogues


def test_an_enrolled_speaker_goes_with_the_sound():
    torch.manual_seed(0)
    audio = FilterbankConfig(conv_dims=(8, 8, 8), normalization="global")
    model = lively(make_cme(audio_config=audio, vision_config=None))
    model.audio_model.normalization.set_statistics(torch.full((40,), 16.0), torch.full((40,), 3.0))
    pipe = make_pipe(model)
    profile = pipe.enrol([(noise(0.8, 2), RATE)])
    whole = clip(pipe, speaker=profile)
    found = explain(pipe, whole, "sad")
    assert found.total != pytest.approx(explain(pipe, clip(pipe), "sad").total, abs=1e-3)

    def worth(present):
        if not present:
            return value_of_nothing(pipe, "sad")
        return value(pipe(without(whole, {"audio", "text"} - present)), "sad")

    assert found.modalities == pytest.approx(naive_shapley(("audio", "text"), worth), abs=2e-5)
    drop = value(pipe(whole), "sad") - value(pipe(masked_clip(whole, 2, "audio")), "sad")
    assert found.words[2]["audio"] == pytest.approx(drop, abs=2e-5)


def test_a_turn_is_explained_within_its_dialogue(pipes):
    pipe = pipes["mman"]
    turns = [clip(pipe, seed) for seed in range(2)]
    found = explain(pipe, {"dialogue": turns}, "sad")
    scores = pipe(dialogue=turns)
    alone = explain(pipe, turns[1], "sad", words=False)
    assert abs(found[1].total - alone.total) > 1e-3
    for turn in range(2):
        assert [i["score"] for i in found[turn].scores] == pytest.approx([i["score"] for i in scores[turn]], abs=1e-5)

        def value_with(edited, turn=turn):
            return value(pipe(dialogue=[*turns[:turn], edited, *turns[turn + 1 :]])[turn], "sad")

        def worth(present, turn=turn, value_with=value_with):
            gone = {"audio", "text", "vision"} - present
            return value_with(without(turns[turn], gone)) if present else found[turn].baseline

        expected = naive_shapley(("audio", "text", "vision"), worth)
        assert found[turn].modalities == pytest.approx(expected, abs=2e-5)
        for kind in ("text", "audio", "both"):
            drop = value_with(turns[turn]) - value_with(masked_clip(turns[turn], 1, kind))
            assert found[turn].words[1][kind] == pytest.approx(drop, abs=2e-5)


def test_a_turn_with_nothing_in_it_still_has_its_context():
    torch.manual_seed(0)
    pipe = make_pipe(lively(make_mman(network="clstm_mma")))
    turns = [clip(pipe, seed) for seed in range(2)]
    found = explain(pipe, {"dialogue": turns}, "sad", words=False)[1]
    prepared = pipe.preprocess({"dialogue": turns})
    emptied = replace(prepared, turns=[prepared.turns[0], replace(prepared.turns[1], example={})])
    [output] = pipe.forward([emptied])
    assert found.baseline == pytest.approx(value(pipe.postprocess(output)[1], "sad"), abs=1e-5)
    other = explain(pipe, {"dialogue": [clip(pipe, 2), turns[1]]}, "sad", words=False)[1]
    assert abs(found.baseline - other.baseline) > 1e-4


def test_turns_of_a_model_without_context_are_clips(pipes):
    pipe = pipes["learned_alignment"]
    turns = [clip(pipe, seed) for seed in range(2)]
    for in_dialogue, turn in zip(explain(pipe, {"dialogue": turns}), turns, strict=True):
        alone = explain(pipe, turn)
        assert in_dialogue.label == alone.label
        assert in_dialogue.modalities == pytest.approx(alone.modalities, abs=1e-6)
        assert in_dialogue.alignment["weights"].shape == alone.alignment["weights"].shape


# Form, cost, mistakes


def test_learned_alignment_is_that_of_the_pipeline(pipes):
    pipe = pipes["learned_alignment"]
    found, details = explain(pipe, clip(pipe), words=False), pipe(clip(pipe), return_details=True)
    np.testing.assert_allclose(found.alignment["weights"], details["alignment"]["weights"], atol=1e-6)
    np.testing.assert_array_equal(found.alignment["frame_times"], details["alignment"]["frame_times"])
    assert explain(pipe, {"audio": (noise(), RATE), "text": ""}).alignment is None
    assert explain(pipes["cme"], clip(pipes["cme"]), words=False).alignment is None


def test_what_the_pipeline_was_made_with_holds_here_too(pipes):
    pipe = pipes["learned_alignment"]
    made = MultimodalEmotionRecognitionPipeline(pipe.model, pipe.processor, top_k=2, recognize=False)
    sound = {"audio": (noise(), RATE)}
    found = explain(made, sound)
    assert found.words is None and [i["label"] for i in found.scores] == [i["label"] for i in made(sound)]
    assert len(found.scores) == 2 and len(explain(made, sound, top_k=3).scores) == 3
    worst = pipe(sound, recognize=False)[-1]["label"]
    assert explain(made, sound, worst).label == worst


def test_to_dict_is_ready_for_json(pipes):
    found = explain(pipes["learned_alignment"], clip(pipes["learned_alignment"]))
    read = json.loads(json.dumps(found.to_dict()))
    assert list(read) == list(Explanation.__dataclass_fields__)
    assert read["modalities"] == found.modalities and read["words"] == found.words
    np.testing.assert_allclose(read["alignment"]["weights"], found.alignment["weights"])
    assert json.loads(json.dumps(replace(found, alignment=None).to_dict()))["alignment"] is None


def test_few_rows_at_once_give_the_same(pipes, monkeypatch):
    for name in ("cme", "late_fusion"):
        expected = explain(pipes[name], clip(pipes[name]))
        with monkeypatch.context() as patch:
            patch.setattr(explanation, "SAMPLES_AT_ONCE", 5 * len(noise()))
            found = explain(pipes[name], clip(pipes[name]))
        for word, other in zip(found.words, expected.words, strict=True):
            assert word == {
                k: pytest.approx(v, abs=1e-5) if k in ("text", "audio", "both") else v for k, v in other.items()
            }


def test_a_backbone_runs_once_on_each_different_input(pipes):
    pipe = pipes["learned_alignment"]
    rows = {"audio": 0, "text": 0, "vision": 0}
    hooks = []
    for modality in rows:

        def count(module, args, kwargs, modality=modality):
            rows[modality] += len(next(iter([*args, *kwargs.values()])))

        backbone = getattr(pipe.model, f"{modality}_model")
        hooks.append(backbone.register_forward_pre_hook(count, with_kwargs=True))
    explain(pipe, clip(pipe))
    for hook in hooks:
        hook.remove()
    assert rows == {"audio": 7, "text": 7, "vision": 3}  # the clip and six masked words; three pictures


def test_mistakes_are_named(pipes):
    pipe = pipes["cme"]
    with pytest.raises(ValueError, match=r"label is 'joy'; this model has angry, happy, neutral, sad"):
        explain(pipe, clip(pipe), "joy")
    with pytest.raises(ValueError, match="one at a time"):
        explain(pipe, [clip(pipe)])
    with pytest.raises(ValueError, match=r"unknown argument\(s\) loud"):
        explain(pipe, clip(pipe), loud=True)
    with pytest.raises(ValueError, match="nothing in it"):
        explain(pipe, {"text": ""})
