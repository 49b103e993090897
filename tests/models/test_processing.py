"""MerProcessor: what it makes of clips, and that it comes back from disk as it was saved."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    BertConfig,
    BertTokenizerFast,
    PreTrainedTokenizer,
    RobertaTokenizerFast,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from mer_hf import (
    CMEConfig,
    CMEForEmotionClassification,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    word_tokenizer,
)
from mer_hf.models.processing_mer import clean_words

KIDS = ["kids", "are", "talking", "by", "the", "door"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kid", "##s", "are", "talk", "##ing", "by", "the", "door"]
MARKS = ["!", "-", ",", "?"]
SMALL_IMAGES = {"size": {"height": 8, "width": 8}}


def word_pieces(**values):
    return BertTokenizerFast(vocab={piece: index for index, piece in enumerate([*PIECES, *MARKS])}, **values)


def byte_level():
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"kidsare", "Ġ", "Ġa", "Ġk"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(vocab))}
    return RobertaTokenizerFast(vocab=vocab, merges=[("Ġ", "a"), ("Ġ", "k")])


def timed(words):
    return [{"word": word, "start": 0.25 * i, "end": 0.25 * (i + 1)} for i, word in enumerate(words)]


@pytest.fixture(scope="module")
def processor():
    return MerProcessor.default(
        tokenizer=word_tokenizer(["kids are talking by the door"]), image_processor=ViTImageProcessor(**SMALL_IMAGES)
    )


# The word table's tokenizer


def test_word_table_lists_words_by_frequency_then_alphabet_whatever_the_order_of_transcripts():
    transcripts = ["The dog, the cat!", "a dog; THE door", None]
    expected = ["[PAD]", "[UNK]", "the", "dog", "a", "cat", "door"]
    for order in (transcripts, transcripts[::-1]):
        vocabulary = word_tokenizer(order).get_vocab()
        assert sorted(vocabulary, key=vocabulary.get) == expected


def test_word_table_keeps_the_most_frequent_words_and_calls_others_unknown():
    tokenizer = word_tokenizer(["the dog the cat the dog"], max_words=2)
    assert len(tokenizer) == 4
    assert tokenizer("the cat dog zebra")["input_ids"] == [2, 1, 3, 1]


def test_word_table_of_one_string_is_refused():
    with pytest.raises(ValueError, match="list of transcripts"):
        word_tokenizer("kids are talking")


# Words


def test_unknown_words_are_unknown_not_dropped(processor):
    example = processor.example(text="Kids LOVE the door.")
    assert example["input_ids"].tolist() == [
        processor.tokenizer.get_vocab()[w] for w in ("kids", "[UNK]", "the", "door")
    ]
    assert example["word_ids"].tolist() == [0, 1, 2, 3]


def test_timed_words_are_cleaned_like_transcripts(processor):
    """Recognisers write "Door." where the table, made by split_words, has "door"."""
    words = timed(["Kids", "--", "talking!"])
    example = processor.example(words=words)
    assert torch.equal(example["input_ids"], processor.example(text="kids talking")["input_ids"])
    assert example["word_times"].tolist() == [[0.0, 0.25], [0.5, 0.75]]


def test_a_timed_compound_stays_one_word_and_an_untimed_one_becomes_two(processor):
    example = processor.example(words=[{"word": "talking-door", "start": 0.5, "end": 1.0}])
    assert example["word_ids"].tolist() == [0, 0]
    assert example["word_times"].tolist() == [[0.5, 1.0]]
    untimed = processor.example(words=[{"word": "talking-door"}])
    assert untimed["word_ids"].tolist() == [0, 1]
    assert "word_times" not in untimed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kids", "are"], "words is a list of"),
        ("kids are", "words is a list of"),
        ([{"text": "kids"}], "words is a list of"),
        ([{"word": "kids", "start": 0, "end": 1}, {"word": "are"}], "time all or none"),
        ([{"word": "kids", "start": 0, "end": 1}, {"word": "are", "start": 1, "end": None}], "time all or none"),
        ([{"word": "kids", "start": 1.0, "end": 0.5}], "'kids' is from 1 to 0.5"),
        ([{"word": "kids", "start": -0.1, "end": 0.5}], "from -0.1"),
        ([{"word": "kids", "start": 0.0, "end": float("nan")}], "to nan"),
    ],
)
def test_words_that_are_none_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        clean_words(words)


def test_sub_words_name_their_word():
    processor = MerProcessor.default(tokenizer=word_pieces())
    example = processor.example(text="Kids are talking: zebra")
    assert example["input_ids"].tolist() == [
        PIECES.index(p) for p in ("[CLS]", "kid", "##s", "are", "talk", "##ing")
    ] + [
        PIECES.index("[UNK]"),
        PIECES.index("[SEP]"),
    ]
    assert example["word_ids"].tolist() == [-1, 0, 0, 1, 2, 2, 3, -1]


def test_byte_level_tokens_keep_the_space_before_a_word_and_name_the_word_after_it():
    """A list of pre-split words comes out of RoBERTa's tokenizer glued together: "kids", "are" as "kidsare"."""
    tokenizer = byte_level()
    example = MerProcessor.default(tokenizer=tokenizer).example(text="kids are kids")
    tokens = tokenizer.convert_ids_to_tokens(example["input_ids"].tolist())
    assert tokens == ["<s>", *"kids", "Ġa", "r", "e", "Ġk", *"ids", "</s>"]
    assert example["word_ids"].tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, -1]


def test_a_token_of_nothing_but_the_space_belongs_to_the_word_after_it():
    tokenizer = byte_level()
    example = MerProcessor.default(tokenizer=tokenizer).example(text="kids sad")
    assert tokenizer.convert_ids_to_tokens(example["input_ids"].tolist()) == ["<s>", *"kids", "Ġ", *"sad", "</s>"]
    assert example["word_ids"].tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 1, -1]


@pytest.fixture
def written():
    return MerProcessor.default(tokenizer=word_pieces(), keep_punctuation=True)


def pieces(processor, example):
    tokens = processor.tokenizer.convert_ids_to_tokens(example["input_ids"].tolist())
    return list(zip(tokens, example["word_ids"].tolist(), strict=True))[1:-1]


def test_punctuation_is_kept_on_request_as_part_of_the_word_it_stands_at(written, processor):
    text = "Kids, are -- TALKING by-the door?!"
    example = written.example(text=text)
    assert example["input_ids"].tolist() == written.tokenizer(text)["input_ids"]
    assert pieces(written, example) == [
        *(("kid", 0), ("##s", 0), (",", 0), ("are", 1), ("-", 1), ("-", 1), ("talk", 2), ("##ing", 2)),
        *(("by", 3), ("-", 3), ("the", 4), ("door", 5), ("?", 5), ("!", 5)),
    ]
    assert (
        processor.example(text=text)["input_ids"].tolist()
        == processor.example(text="kids are talking by the door")["input_ids"].tolist()
    )


def test_timed_words_are_written_as_they_are_or_as_in_the_transcript_they_are_of(written):
    words = [{"word": "Kids,", "start": 0, "end": 1}, {"word": "by-the", "start": 1, "end": 2}]
    assert [token for token, _ in pieces(written, written.example(words=words))] == [
        "kid",
        "##s",
        ",",
        "by",
        "-",
        "the",
    ]
    example = written.example(text="kids! by the -", words=words)
    assert pieces(written, example) == [("kid", 0), ("##s", 0), ("!", 0), ("by", 1), ("the", 1), ("-", 1)]
    assert example["word_times"].tolist() == [[0, 1], [1, 2]]
    example = written.example(text="another transcript!", words=words)
    assert [token for token, _ in pieces(written, example)] == ["kid", "##s", ",", "by", "-", "the"]


def test_words_made_once_are_not_changed_when_they_pass_again(written):
    for words in (
        written.words("Oh -- by-the ½ door!"),
        written.words(None, timed(["Kids,", "by-the", "--", "door"])),
    ):
        assert written.words(None, words) == words


def test_keeping_punctuation_survives_saving(written, tmp_path):
    written.save_pretrained(tmp_path)
    assert MerProcessor.from_pretrained(tmp_path).keep_punctuation
    assert not MerProcessor.default().keep_punctuation


def test_truncated_words_keep_their_times_and_are_masked_in_the_model():
    processor = MerProcessor.default(tokenizer=word_pieces(model_max_length=6))
    example = processor.example(words=timed(KIDS))
    assert example["word_ids"].tolist() == [-1, 0, 0, 1, 2, -1]  # [CLS] kid ##s are talk [SEP]
    assert len(example["word_times"]) == 6
    model = CMEForEmotionClassification(
        CMEConfig(
            text_config=BertConfig(
                vocab_size=len(PIECES) + len(MARKS),
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
            ),
            audio_embed_dim=4,
            hidden_size=8,
        )
    ).eval()
    output = model(**processor.pad([example]), audio_embeds=torch.randn(1, 200, 4))
    assert output.word_mask.tolist() == [[True, True, True, False, False, False]]


def test_no_limit_means_no_truncation(processor):
    assert len(processor.example(text="door " * 3000)["input_ids"]) == 3000


def test_text_without_a_word_makes_no_tokens(processor):
    for text in ("", "  ", "?! ...", None):
        assert processor.example(text=text) == {}
    assert processor.example(words=[], text="the door")["word_ids"].tolist() == [0, 1]


# Audio and frames


def test_audio_is_left_as_it_is_by_default_and_normalised_where_the_backbone_wants_it():
    audio = np.linspace(-0.5, 0.7, 1000, dtype=np.float32)
    plain = MerProcessor.default().example(audio=audio)["input_values"]
    assert torch.equal(plain, torch.from_numpy(audio))
    normal = MerProcessor.default(feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True))
    values = normal.example(audio=audio)["input_values"]
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.std().item() == pytest.approx(1, abs=1e-2)


def test_stereo_is_refused_not_cut_to_its_first_sample(processor):
    with pytest.raises(ValueError, match=r"mono; found \(1000, 2\)"):
        processor.example(audio=np.zeros((1000, 2), np.float32))


def test_frames_are_scaled_and_keep_their_times(processor):
    frames = np.zeros((2, 20, 30, 3), np.uint8)
    frames[1] = 255
    example = processor.example(frames=frames, frame_times=np.array([0.5, 1.5]))
    assert example["pixel_values"].shape == (2, 3, 8, 8)
    assert example["pixel_values"][0].unique().tolist() == [-1.0]
    assert example["pixel_values"][1].unique().tolist() == [1.0]
    assert example["vision_times"].tolist() == [0.5, 1.5]
    for times in (None, np.array([0.5])):
        with pytest.raises(ValueError, match="one time a frame"):
            processor.example(frames=frames, frame_times=times)


# Batches


def test_a_batch_has_one_mask_for_each_modality_and_the_audio_one_is_not_the_tokenizers(processor):
    frames, times = np.zeros((2, 8, 8, 3), np.uint8), np.array([0.1, 0.2])
    batch = processor(
        audio=[np.ones(500, np.float32), None, np.ones(300, np.float32)],
        text=["the door", "kids are talking", None],
        frames=[None, frames, None],
        frame_times=[None, times, None],
    )
    assert set(batch) == {
        *("input_values", "input_values_mask", "input_ids", "attention_mask", "word_ids"),
        *("pixel_values", "pixel_values_mask", "vision_times"),
    }
    assert batch["attention_mask"].tolist() == [[True, True, False], [True] * 3, [False] * 3]
    assert batch["input_values_mask"].sum(dim=-1).tolist() == [500, 0, 300]
    assert batch["pixel_values_mask"].tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert batch["word_ids"].tolist() == [[0, 1, -1], [0, 1, 2], [-1, -1, -1]]
    assert {batch[name].dtype for name in batch if name.endswith("mask")} == {torch.bool}


def test_one_clip_needs_no_lists(processor):
    clip = {
        "audio": np.ones(500, np.float32),
        "words": timed(["the", "door"]),
        "frames": np.zeros((2, 8, 8, 3), np.uint8),
        "frame_times": np.array([0.1, 0.2]),
    }
    alone, listed = processor(**clip), processor(**{name: [value] for name, value in clip.items()})
    assert set(alone) == set(listed)
    assert all(torch.equal(alone[name], listed[name]) for name in listed)
    assert processor(text="the door")["input_ids"].shape == (1, 2)


@pytest.mark.parametrize("clips", [{}, {"audio": [np.ones(9, np.float32)], "text": ["kids", "door"]}])
def test_uneven_columns_are_refused(processor, clips):
    with pytest.raises(ValueError, match="at least one of audio, text, words, frames"):
        processor(**clips)


def test_dialogues_get_a_turns_axis(processor):
    one, two, three = (processor.example(text=text) for text in ("kids", "the door", "by the door"))
    batch = processor.pad([[one, two], [three]])
    assert batch["input_ids"].shape == (2, 2, 3)
    assert batch["turn_mask"].tolist() == [[True, True], [True, False]]
    assert batch["attention_mask"].sum(dim=-1).tolist() == [[1, 2], [3, 0]]


# Construction and files


def test_a_tokenizer_without_offsets_and_another_rate_are_refused():
    class SlowTokenizer(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self):
            return {}

    parts = MerProcessor.default()
    for change, message in (
        ({"feature_extractor": Wav2Vec2FeatureExtractor(sampling_rate=8000)}, "16000 Hz, not 8000"),
        ({"tokenizer": SlowTokenizer()}, "fast version"),
    ):
        values = {name: getattr(parts, name) for name in ("feature_extractor", "tokenizer", "image_processor")}
        with pytest.raises(ValueError, match=message):
            MerProcessor(**values | change)


@pytest.mark.parametrize("make", [word_pieces, lambda: word_tokenizer([" ".join(KIDS)]), byte_level])
def test_saved_and_loaded_as_one(tmp_path, make):
    saved = MerProcessor.default(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True),
        tokenizer=make(),
        image_processor=ViTImageProcessor(**SMALL_IMAGES),
        num_frames=3,
        crop_faces=True,
        trim_db=20.0,
    )
    saved.save_pretrained(tmp_path)
    clip = {
        "audio": np.sin(np.arange(800, dtype=np.float32)) / 3,
        "text": "kids are sad",
        "frames": np.full((1, 12, 12, 3), 77, np.uint8),
        "frame_times": np.array([0.5]),
    }
    expected = saved(**clip)
    for loaded in (MerProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is MerProcessor
        assert (loaded.num_frames, loaded.crop_faces, loaded.trim_db) == (3, True, 20.0)
        found = loaded(**clip)
        assert set(found) == set(expected)
        assert all(torch.equal(torch.as_tensor(found[name]), torch.as_tensor(expected[name])) for name in expected)


def test_a_folder_with_model_and_processor_gives_the_processor(tmp_path):
    config = LearnedAlignmentConfig(audio_embed_dim=4, hidden_size=2)
    LearnedAlignmentForEmotionClassification(config).save_pretrained(tmp_path)
    MerProcessor.default(tokenizer=word_tokenizer(["kids kids door"]), num_frames=5).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MerProcessor
    assert loaded.num_frames == 5
    assert loaded.tokenizer("door kids tree")["input_ids"] == [3, 2, 1]


def test_a_token_limit_survives_saving(tmp_path):
    MerProcessor.default(tokenizer=word_pieces(model_max_length=5)).save_pretrained(tmp_path)
    assert len(MerProcessor.from_pretrained(tmp_path).example(text=" ".join(KIDS))["input_ids"]) == 5


def test_decoding_crops_faces_and_leaves_faceless_frames_out(monkeypatch):
    frames = np.zeros((3, 20, 20, 3), np.uint8)
    crops = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 4, 3), np.uint8)
    found = np.array([True, False, True])
    monkeypatch.setattr("mer_hf.models.processing_mer.crop_face", lambda frames: (crops, found))
    video = {"frames": frames, "times": [0.0, 1.0, 2.0]}
    decoded = MerProcessor.default(crop_faces=True).load(video=video)
    assert decoded["frames"][:, 0, 0, 0].tolist() == [0, 2]
    assert decoded["frame_times"].tolist() == [0.0, 2.0]
    found[:] = False
    assert MerProcessor.default(crop_faces=True).load(video=video) == {}
    assert len(MerProcessor.default(num_frames=2).load(video=video)["frames"]) == 2


def test_silent_ends_are_trimmed_and_times_move_along():
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 10
    audio = np.concatenate([np.zeros(8_000), noise, 1e-4 * noise[:4_000]]).astype(np.float32)
    clip = {
        "audio": audio,
        "words": [{"word": "kids", "start": 0.6, "end": 0.9}, {"word": "door", "start": 0.9, "end": 1.4}],
        "frames": np.zeros((2, 12, 12, 3), np.uint8),
        "frame_times": np.array([0.1, 1.0]),
    }
    whole, trimmed = (
        MerProcessor.default(image_processor=ViTImageProcessor(**SMALL_IMAGES), trim_db=level).example(**clip)
        for level in (None, 30.0)
    )
    begins = trimmed["begins"]
    assert 0.47 < begins <= 0.5 and "begins" not in whole
    start = round(begins * 16_000)
    assert torch.equal(trimmed["input_values"], whole["input_values"][start : start + len(trimmed["input_values"])])
    assert 16_000 <= len(trimmed["input_values"]) <= 16_000 + 2 * 400
    torch.testing.assert_close(trimmed["word_times"], whole["word_times"] - begins)
    torch.testing.assert_close(trimmed["vision_times"], whole["vision_times"] - begins)


@pytest.mark.parametrize("audio", [np.zeros(0), np.zeros(100), np.zeros(3_000), np.full(399, 0.5)])
def test_what_has_no_loud_part_stays_whole(audio):
    trimmed = MerProcessor.default(trim_db=30.0).example(audio=audio.astype(np.float32))
    assert trimmed["begins"] == 0.0
    assert len(trimmed["input_values"]) >= len(audio) - 160, "but for samples beyond the last whole frame"


def test_trimming_needs_a_level():
    with pytest.raises(ValueError, match="trim_db must be above 0 decibels, found -3"):
        MerProcessor.default(trim_db=-3)
