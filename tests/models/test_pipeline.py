"""The pipeline as its users call it: every way to name a clip, batches, dialogues, details, and what goes wrong."""

import warnings

import av
import datasets
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    BertConfig,
    BertTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from mer_hf import (
    TASK,
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    FilterbankStatisticsConfig,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    MultimodalEmotionRecognitionPipeline,
    SpectrogramConfig,
    WordTableConfig,
    word_tokenizer,
)

RATE = 16_000
TRANSCRIPT = "kids are talking by the door"
WORDS = [{"word": word, "start": 0.1 * i, "end": 0.1 * (i + 1)} for i, word in enumerate(TRANSCRIPT.split())]
TABLE = {"vocab_size": 8, "embedding_dim": 6}
VIT = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 8}
VIT |= {"num_hidden_layers": 1, "num_attention_heads": 2}
GROUP_NORM = {"conv_dim": (8,) * 7, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
GROUP_NORM |= {"num_attention_heads": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kid", "##s", "are", "talk", "##ing", "by", "the", "door"]
BERT = {"vocab_size": len(PIECES), "hidden_size": 8, "intermediate_size": 8}
BERT |= {"num_hidden_layers": 1, "num_attention_heads": 2}


def lively(model):
    """Random weights large enough that different clips get clearly different scores."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "_model" not in name:
                parameter.mul_(3)
    return model.eval()


def make_models():
    torch.manual_seed(0)
    return {
        "cme": CMEForEmotionClassification(
            CMEConfig(
                audio_config=FilterbankConfig(conv_dims=(8, 8, 8), normalization="utterance"),
                text_config=WordTableConfig(**TABLE, gate_dim=16),
                vision_config=ViTConfig(**VIT),
                hidden_size=16,
            )
        ),
        "learned_alignment": LearnedAlignmentForEmotionClassification(
            LearnedAlignmentConfig(
                audio_config=SpectrogramConfig(hidden_size=8),
                text_config=WordTableConfig(**TABLE),
                vision_config=ViTConfig(**VIT),
                hidden_size=4,
            )
        ),
        "mman": MMANForEmotionClassification(
            MMANConfig(
                audio_config=FilterbankStatisticsConfig(num_mel_bins=8),
                text_config=WordTableConfig(**TABLE),
                vision_config=ViTConfig(**VIT),
                hidden_size=8,
                projection_size=6,
                classifier_size=8,
            )
        ),
        "group_norm": LearnedAlignmentForEmotionClassification(
            LearnedAlignmentConfig(
                audio_config=Wav2Vec2Config(**GROUP_NORM), text_config=BertConfig(**BERT), hidden_size=4
            )
        ),
    }


MODELS = ("cme", "learned_alignment", "mman")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: checkpoint folder}, models and processors as anyone would save them."""
    images = ViTImageProcessor(size={"height": 8, "width": 8})
    table = word_tokenizer([TRANSCRIPT])
    pieces = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(PIECES)}, model_max_length=10)
    paths = {}
    for name, model in make_models().items():
        paths[name] = tmp_path_factory.mktemp(name)
        lively(model).save_pretrained(paths[name])
        tokenizer = pieces if name == "group_norm" else table
        MerProcessor.default(tokenizer=tokenizer, image_processor=images, num_frames=3).save_pretrained(paths[name])
    return paths


@pytest.fixture(scope="module")
def pipes(folders):
    return {name: pipeline(TASK, model=str(folder), device="cpu") for name, folder in folders.items()}


def noise(seconds, seed=0):
    """Noise whose loudness and colour change with the seed, in steps of 16 bits."""
    random = np.random.default_rng(seed)
    wave = np.convolve(random.standard_normal(int(seconds * RATE)), np.ones(1 + seed) / (1 + seed), "same")
    return (wave * 3000 * (1 + seed)).clip(-32768, 32767).astype(np.int16)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.wav"
    soundfile.write(path, noise(0.8), RATE)
    return path


def write_video(path, sound=True):
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        audio = container.add_stream("aac", rate=RATE) if sound else None
        for shade in range(0, 240, 24):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound:
            frame = av.AudioFrame.from_ndarray(noise(1.0)[None], format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4")


def scores(result):
    return {item["label"]: item["score"] for item in result}


def same(result, expected, tolerance=1e-5):
    """Whether two lists of scores agree."""
    return scores(result) == pytest.approx(scores(expected), abs=tolerance)


def clip(seed, seconds=0.8, words=WORDS, **more):
    return {"audio": (noise(seconds, seed), RATE), "words": words, **more}


def frames(seed, number=3):
    pictures = np.random.default_rng(seed).integers(0, 255, (number, 8, 8, 3), np.uint8)
    return {"frames": pictures, "times": np.linspace(0.1, 0.7, number)}


# One clip


def test_scores_are_probabilities_best_first(pipes, wav):
    result = pipes["cme"](wav, words=WORDS)
    assert {item["label"] for item in result} == {"angry", "happy", "neutral", "sad"}
    assert sum(scores(result).values()) == pytest.approx(1, abs=1e-6)
    values = [item["score"] for item in result]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.01


def test_every_way_to_name_a_sound_gives_the_same_scores(pipes, wav):
    pipe, array = pipes["learned_alignment"], noise(0.8)
    expected = pipe(str(wav), text=TRANSCRIPT)
    assert not same(pipe((array[: RATE // 3], RATE), text=TRANSCRIPT), expected, 1e-4)
    stored = {"path": None, "bytes": wav.read_bytes()}
    for source in (wav, wav.read_bytes(), bytearray(wav.read_bytes()), (array, RATE), (array / 32768, RATE), stored):
        assert same(pipe(source, text=TRANSCRIPT), expected)
    for source in ({"array": array, "sampling_rate": RATE}, {"path": str(wav), "bytes": None}, {"path": wav}):
        assert same(pipe(source, text=TRANSCRIPT), expected)
    for source in (wav, (array, RATE), {"array": array, "sampling_rate": RATE}, stored):
        assert same(pipe(audio=source, text=TRANSCRIPT), expected)
        assert same(pipe({"audio": source, "text": TRANSCRIPT}), expected)
        assert same(pipe({"audio": source}, text=TRANSCRIPT), expected)


def test_an_array_may_come_as_other_audio_pipelines_take_it(pipes):
    audio = noise(0.5)
    given = {"raw": audio, "sampling_rate": RATE}
    assert pipes["cme"](given, recognize=False) == pipes["cme"]((audio, RATE), recognize=False)


def test_every_way_to_name_a_video_reads_sound_and_picture(pipes, mp4):
    pipe = pipes["learned_alignment"]
    expected = pipe(str(mp4), text=TRANSCRIPT, return_details=True)
    assert expected["modalities"] == ["audio", "text", "vision"]
    data = mp4.read_bytes()
    for source in (data, {"path": str(mp4), "bytes": None}, {"path": "x.mp4", "bytes": data}, {"path": data}):
        assert same(pipe(source, text=TRANSCRIPT), expected["scores"])
    assert same(pipe(audio=mp4, video=mp4, text=TRANSCRIPT), expected["scores"])
    assert pipe(audio=mp4, text=TRANSCRIPT, return_details=True)["modalities"] == ["audio", "text"]
    assert pipe(video=mp4, text=TRANSCRIPT, return_details=True)["modalities"] == ["text", "vision"]


def test_a_file_given_as_a_whole_may_lack_sound_or_picture(pipes, wav, tmp_path):
    silent = write_video(tmp_path / "silent.mp4", sound=False)
    pipe = pipes["learned_alignment"]
    assert pipe(silent, text="", return_details=True)["modalities"] == ["vision"]
    assert pipe(wav, text="", return_details=True)["modalities"] == ["audio"]
    for key, source in (("audio", silent), ("video", wav)):
        with pytest.raises(ValueError, match=f"{source.name}: no {key} stream"):
            pipe(**{key: source}, text="kids")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("given", ["a", "t", "v", "at", "av", "tv", "atv"])
def test_every_subset_of_modalities(pipes, model, given):
    parts = {"a": {"audio": (noise(0.8), RATE)}, "t": {"words": WORDS}, "v": {"video": frames(0)}}
    names = {"a": "audio", "t": "text", "v": "vision"}
    source = {"text": ""} | {key: value for part in given for key, value in parts[part].items()}
    result = pipes[model](source, return_details=True)
    assert result["modalities"] == [names[part] for part in given]
    assert sum(scores(result["scores"]).values()) == pytest.approx(1, abs=1e-5)
    everything = pipes[model]({key: value for part in parts.values() for key, value in part.items()})
    assert same(result["scores"], everything, 1e-5) == (given == "atv")


# Several clips


def test_lists_and_anything_that_iterates(pipes, wav):
    pipe = pipes["mman"]
    sources = [clip(0), clip(1, text="door", words=None), {"text": "kids"}]
    expected = [pipe(source) for source in sources]
    assert not same(expected[0], expected[1], 1e-3)

    class Map(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return sources[index]

    for many in (sources, iter(sources), (source for source in sources), Map()):
        results = list(pipe(many, batch_size=2))
        assert len(results) == 3
        assert all(same(result, other) for result, other in zip(results, expected, strict=True))
    assert isinstance(pipe(sources), list)
    assert pipe([]) == []
    pairs = pipe([(noise(0.8), RATE)] * 2, recognize=False)
    assert len(pairs) == 2
    assert same(pairs[1], pipe((noise(0.8), RATE), text=""))


def test_a_generator_is_consumed_as_results_are_taken(pipes):
    taken = []

    def sources():
        for text in ("kids", "door", "the", "by", "are", "talking"):
            taken.append(text)
            yield {"text": text}

    results = pipes["mman"](sources(), batch_size=2)
    next(results)
    assert len(taken) <= 3


def test_rows_and_columns_of_datasets(pipes, wav):
    data = [{"bytes": wav.read_bytes(), "path": None}, {"bytes": None, "path": str(wav)}]
    rows = datasets.Dataset.from_dict({"audio": data, "text": [TRANSCRIPT, "door"]})
    pipe = pipes["learned_alignment"]
    expected = [pipe(wav, text=TRANSCRIPT), pipe(wav, text="door")]
    results = list(pipe(rows, batch_size=2))
    assert len(results) == 2
    assert all(same(result, other) for result, other in zip(results, expected, strict=True))
    heard = list(pipe(KeyDataset(rows, "audio"), recognize=False))
    assert all(same(result, pipe(wav, text="")) for result in heard)
    assert len(heard) == 2


@pytest.mark.parametrize("model", [*MODELS, "group_norm"])
def test_scores_do_not_depend_on_the_batch(pipes, model):
    """Clips of other lengths, and with other modalities, some with word times and some without."""
    sources = [
        clip(0),
        clip(1, seconds=1.7, words=WORDS[:2]),
        {"text": "kids are talking by the door the kids are by"},
        clip(2, seconds=0.3, words=None, text=""),
        clip(3, words=WORDS[:3], video=frames(3)),
        clip(4, seconds=0.7),
    ]
    if model == "group_norm":
        sources = [{key: value for key, value in source.items() if key != "video"} for source in sources]
    if model == "group_norm":  # whose tokenizer takes fewer
        warnings.filterwarnings("ignore", ".*words are read")
    alone = pipes[model](sources, batch_size=1)
    assert not same(alone[0], alone[5], 1e-3)
    for size in (3, 6):
        together = pipes[model](sources, batch_size=size)
        assert all(same(one, other) for one, other in zip(alone, together, strict=True))


# Dialogues

TURNS = [clip(0), {"text": "the door"}, clip(3, words=WORDS[:2])]


def test_earlier_turns_change_later_ones_and_not_the_reverse(pipes):
    pipe = pipes["mman"]
    results = pipe(dialogue=TURNS)
    assert len(results) == 3
    other_first = pipe(dialogue=[clip(4, seconds=0.6), *TURNS[1:]])
    assert not same(results[2], other_first[2], 1e-4)
    other_last = pipe(dialogue=[*TURNS[:2], {"text": "kids"}])
    assert same(results[0], other_last[0]) and same(results[1], other_last[1])
    assert not same(results[2], other_last[2], 1e-4)
    assert same(pipe(dialogue=TURNS[:1])[0], pipe(TURNS[0]))


def test_a_model_without_context_takes_turns_one_by_one(pipes):
    results = pipes["cme"](dialogue=TURNS)
    assert all(same(result, pipes["cme"](turn)) for result, turn in zip(results, TURNS, strict=True))


@pytest.mark.parametrize("model", ["mman", "cme"])
def test_dialogues_clips_and_batches_mix(pipes, model):
    pipe = pipes[model]
    mixed = [{"dialogue": TURNS}, TURNS[0], {"dialogue": TURNS[1:]}]
    first, single, last = pipe(mixed, batch_size=3)
    assert [len(first), len(last)] == [3, 2]
    assert all(same(one, other) for one, other in zip(first, pipe(dialogue=TURNS), strict=True))
    assert all(same(one, other) for one, other in zip(last, pipe(dialogue=TURNS[1:]), strict=True))
    assert same(single, pipe(TURNS[0]))


@pytest.mark.parametrize(
    ("inputs", "more"),
    [
        (None, {"dialogue": []}),
        (None, {"dialogue": "clip.wav"}),
        (None, {"dialogue": {"text": "kids"}}),
        (None, {"dialogue": [{"text": "kids"}], "text": "door"}),
        ("clip.wav", {"dialogue": [{"text": "kids"}]}),
    ],
)
def test_a_dialogue_that_is_none_is_refused(pipes, inputs, more):
    with pytest.raises(ValueError, match="a list of one or more clips, and nothing beside it"):
        pipes["mman"](inputs, **more)


# Results


def test_top_k(pipes):
    pipe = pipes["mman"]
    everything = pipe(text="kids")
    assert pipe(text="kids", top_k=2) == everything[:2]
    assert pipe(text="kids", top_k=9) == everything
    assert [len(turn) for turn in pipe(dialogue=TURNS, top_k=1)] == [1, 1, 1]
    assert pipe(text="kids", top_k=1, return_details=True)["scores"] == everything[:1]
    with pytest.raises(ValueError, match="top_k is 0"):
        pipe(text="kids", top_k=0)


def test_options_of_construction_can_be_changed_for_a_call(folders):
    pipe = pipeline(TASK, model=str(folders["mman"]), device="cpu", top_k=1, return_details=True)
    assert len(pipe(text="kids")["scores"]) == 1
    assert len(pipe(text="kids", top_k=3)["scores"]) == 3
    assert len(pipe(text="kids", return_details=False)) == 1


def test_alignment_has_a_row_for_each_word_and_a_column_for_each_frame_whatever_the_batch(pipes):
    pipe = pipes["learned_alignment"]
    short = clip(0, seconds=0.5, words=WORDS[:2], video=frames(0, number=2))
    long = clip(1, seconds=1.5, video=frames(1))
    for result in (pipe(short, return_details=True), pipe([long, short], batch_size=2, return_details=True)[1]):
        assert result["words"] == WORDS[:2]
        alignment, faces = result["alignment"], result["face_alignment"]
        columns = 1 + (RATE // 2 - 400) // 160
        assert alignment["weights"].shape == (2, columns)
        assert alignment["weights"].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert alignment["frame_times"] == pytest.approx(np.arange(columns) * 0.01)
        assert faces["weights"].shape == (2, 2)
        assert faces["weights"].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert faces["frame_times"] == pytest.approx([0.1, 0.7])


def test_frames_without_any_weight_stay_in_the_alignment(folders):
    """Attention as sharp as training may make it: most frames get exactly 0."""
    pipe = pipeline(TASK, model=str(folders["learned_alignment"]), device="cpu")
    with torch.no_grad():
        alignment = pipe.model.fusion.alignments["audio"]
        alignment.frame_projection.weight.mul_(50)
        alignment.score.weight.mul_(5000)
    weights = pipe(clip(0), return_details=True)["alignment"]["weights"]
    assert (weights == 0).any(axis=0).sum() > 10
    assert weights.shape == (6, 1 + (int(0.8 * RATE) - 400) // 160)


@pytest.mark.filterwarnings("ignore:.*words are read")
def test_words_beyond_the_tokenizers_limit_are_in_no_result(pipes):
    """[CLS] kid ##s are talk ##ing by the door [SEP] is as long as the tokenizer allows."""
    text = "kids are talking by the door by the door"
    for result in (
        pipes["group_norm"](audio=(noise(0.5), RATE), text=text, return_details=True),
        pipes["group_norm"]([{"audio": (noise(0.5), RATE), "text": text}, clip(1)], batch_size=2, return_details=True)[
            0
        ],
    ):
        assert [word["word"] for word in result["words"]] == TRANSCRIPT.split()
        assert result["alignment"]["weights"].shape == (6, 24)


def test_details_without_words_or_sound(pipes):
    heard = pipes["learned_alignment"](clip(0, words=None, text=""), return_details=True)
    assert heard["words"] is None
    assert heard["alignment"]["weights"].shape == (1, 78)
    assert heard["face_alignment"]["weights"].shape == (1, 0)
    said = pipes["learned_alignment"](text="kids", return_details=True)
    assert said["words"] == [{"word": "kids"}]
    assert said["alignment"]["weights"].shape == (1, 0)
    assert "alignment" not in pipes["cme"](text="kids", return_details=True)


def test_modality_attention(pipes):
    results = pipes["mman"](dialogue=TURNS, return_details=True)
    attention = results[1]["modality_attention"]
    assert attention["modalities"] == ["audio", "text", "vision"]
    assert attention["weights"] == pytest.approx(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    assert results[0]["modality_attention"]["weights"][:2, :2].sum(axis=1) == pytest.approx(1)


# Words: given, recognised, aligned


def recognised(text, times=None):
    """A stand-in for a speech-recognition pipeline that remembers how it was called."""

    def asr(inputs, return_timestamps):
        asr.calls.append((inputs["raw"].dtype, len(inputs["raw"]), inputs["sampling_rate"], return_timestamps))
        chunks = [
            {"text": f" {word}", "timestamp": span} for word, span in zip(text.split(), times or (), strict=False)
        ]
        return {"text": f" {text}", "chunks": chunks} if times else {"text": f" {text}"}

    asr.calls = []
    return asr


def test_words_and_times_of_a_recogniser(pipes):
    asr = recognised("Kids, ARE -- talking.", [(0.0, 0.2), (0.2, 0.3), (0.3, 0.3), (0.3, 0.7)])
    result = pipes["cme"]((noise(0.8), RATE), asr=asr, return_details=True)
    assert asr.calls == [(np.float32, 12_800, RATE, "word")]
    assert result["words"] == [
        {"word": "kids", "start": 0.0, "end": 0.2},
        {"word": "are", "start": 0.2, "end": 0.3},
        {"word": "talking", "start": 0.3, "end": 0.7},
    ]
    assert same(result["scores"], pipes["cme"]((noise(0.8), RATE), words=result["words"]))


@pytest.mark.parametrize("times", [None, [(0.0, 0.2), (0.2, None)], [(0.0, 0.2), (0.6, 0.4)]])
def test_a_recogniser_without_usable_times_gives_words_alone(pipes, times):
    asr = recognised("The door", times)
    result = pipes["learned_alignment"]((noise(0.8), RATE), asr=asr, return_details=True)
    assert result["words"] == [{"word": "the"}, {"word": "door"}]


def test_a_recogniser_is_asked_only_where_there_is_no_transcript(folders):
    asr = recognised("kids")
    pipe = pipeline(TASK, model=str(folders["mman"]), device="cpu", asr=asr)
    sound = (noise(0.8), RATE)
    for source in ({"audio": sound, "text": ""}, {"audio": sound, "words": WORDS}, {"text": "kids"}):
        pipe(source)
    assert asr.calls == []
    assert pipe(sound, return_details=True)["words"] == [{"word": "kids"}]
    assert pipe(sound, asr=recognised(""), return_details=True)["modalities"] == ["audio"]


def test_a_real_speech_recognition_pipeline(pipes, tmp_path):
    letters = tmp_path / "vocab.json"
    letters.write_text('{"<pad>": 0, "|": 1, "A": 2, "B": 3}')
    torch.manual_seed(0)
    asr = AutomaticSpeechRecognitionPipeline(
        model=Wav2Vec2ForCTC(Wav2Vec2Config(**GROUP_NORM, vocab_size=4, pad_token_id=0)),
        tokenizer=Wav2Vec2CTCTokenizer(letters, pad_token="<pad>", unk_token="<pad>"),
        feature_extractor=Wav2Vec2FeatureExtractor(),
        device="cpu",
    )
    with torch.no_grad():
        asr.model.lm_head.bias.copy_(torch.tensor([-9.0, 0.0, 0.0, 0.0]))
    result = pipes["cme"]((noise(0.8), RATE), asr=asr, return_details=True)
    assert result["modalities"] == ["audio", "text"]
    assert set("".join(word["word"] for word in result["words"])) <= {"a", "b"}
    assert all(0 <= word["start"] <= word["end"] <= 0.8 for word in result["words"])


def test_recognition_as_a_last_resort_warns_and_can_be_turned_off(pipes, monkeypatch):
    pipe = pipes["cme"]
    monkeypatch.setattr(pipe.aligner, "recognize", lambda audio: [{"word": "Door", "start": 0.1, "end": 0.5}])
    with pytest.warns(UserWarning, match=r"no transcript.*text=.*asr=.*recognize=False"):
        result = pipe((noise(0.8), RATE), return_details=True)
    assert result["words"] == [{"word": "door", "start": 0.1, "end": 0.5}]
    for silent in ({"recognize": False}, {"text": ""}):
        result = pipe((noise(0.8), RATE), return_details=True, **silent)
        assert result["words"] is None
        assert result["modalities"] == ["audio"]


def test_words_that_cannot_be_timed_are_refused_alone_and_in_a_batch(pipes):
    """In a batch with timed words the model itself would take them for words without a frame."""
    untimed = {"text": "kids are", "video": frames(0)}
    for inputs in (untimed, [clip(0), untimed]):
        with pytest.raises(ValueError, match=r"a clip of text, video: .* no sound to align them to; give words="):
            pipes["cme"](inputs, batch_size=2)
    assert pipes["cme"](words=WORDS, video=frames(0), return_details=True)["modalities"] == ["text", "vision"]


def test_a_real_clip_is_aligned(pipes, ravdess_dir):
    video = ravdess_dir / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    result = pipes["cme"](video, text="Kids are talking by the door.", return_details=True)
    assert result["modalities"] == ["audio", "text", "vision"]
    assert [word["word"] for word in result["words"]] == TRANSCRIPT.split()
    edges = [edge for word in result["words"] for edge in (word["start"], word["end"])]
    assert edges == sorted(edges)
    assert 0.3 < edges[0] < 1.5 < edges[-1] < 3.3
    sound = ravdess_dir / "Actor_01" / "03-01-01-01-01-01-01.wav"
    with pytest.raises(ValueError, match=rf"^{sound}: .*; or give words= with their times$"):
        pipes["cme"](sound, text="the quick brown fox jumps over seven lazy elephants in june")


# Precomputed features


@pytest.mark.parametrize("model", [LearnedAlignmentForEmotionClassification, CMEForEmotionClassification])
def test_a_model_of_features_alone(model):
    torch.manual_seed(0)
    widths = {"audio_embed_dim": 5, "text_embed_dim": 4, "vision_embed_dim": 3}
    model = lively(model(model.config_class(**widths, hidden_size=8, audio_frame_stride=0.05)))
    pipe = MultimodalEmotionRecognitionPipeline(model=model, processor=MerProcessor.default(), device="cpu")
    random = np.random.default_rng(0)
    features = {
        "audio_embeds": random.standard_normal((20, 5)),
        "text_embeds": random.standard_normal((6, 4)),
        "vision_embeds": random.standard_normal((3, 3)),
        "vision_times": [0.1, 0.3, 0.5],
    }
    result = pipe(**features, words=WORDS, return_details=True)
    assert result["modalities"] == ["audio", "text", "vision"]
    if "alignment" in result:
        assert result["alignment"]["weights"].shape == (6, 20)
        assert result["alignment"]["frame_times"] == pytest.approx(np.arange(20) * 0.05)
    shorter = {"audio_embeds": random.standard_normal((9, 5)), "text_embeds": random.standard_normal((8, 4))}
    shorter |= {"word_times": [[0.05 * i, 0.05 * i + 0.05] for i in range(8)]}
    only_words = {"text_embeds": random.standard_normal((9, 4))}
    sources = [features | {"words": WORDS}, shorter, only_words]
    alone = [pipe(source) for source in sources]
    assert same(alone[0], result["scores"])
    assert not same(alone[0], alone[1], 1e-3)
    assert all(same(one, other) for one, other in zip(alone, pipe(sources, batch_size=3), strict=True))
    with pytest.raises(ValueError, match=r"give audio_embeds=, text_embeds=, vision_embeds="):
        pipe((noise(0.8), RATE))


def test_face_features_without_times_are_refused_where_words_need_them():
    model = CMEForEmotionClassification(CMEConfig(text_embed_dim=4, vision_embed_dim=3, hidden_size=8))
    pipe = MultimodalEmotionRecognitionPipeline(model=model, processor=MerProcessor.default(), device="cpu")
    with pytest.raises(ValueError, match="vision_embeds without vision_times"):
        pipe(text_embeds=np.ones((1, 4)), vision_embeds=np.ones((2, 3)), word_times=[[0.0, 1.0]])


def test_features_take_the_place_of_a_backbone(pipes):
    pipe = pipes["learned_alignment"]
    result = pipe(audio_embeds=np.ones((4, 8)), text="kids", return_details=True)
    assert result["modalities"] == ["audio", "text"]
    assert result["alignment"]["weights"].shape == (1, 4)


# Loading


def test_device_dtype_and_offline_loading(folders, pipes, wav):
    expected = pipes["learned_alignment"](wav, text=TRANSCRIPT)
    pipe = pipeline(
        TASK, model=str(folders["learned_alignment"]), device=-1, dtype=torch.bfloat16, local_files_only=True
    )
    assert pipe.model.dtype == torch.bfloat16
    assert pipe.device == torch.device("cpu")
    result = pipe(wav, text=TRANSCRIPT, return_details=True)
    assert same(result["scores"], expected, 0.03)
    assert result["alignment"]["weights"].sum(axis=1) == pytest.approx(1, abs=0.02)


def test_a_saved_pipeline_comes_back(pipes, tmp_path):
    pipes["cme"].save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert isinstance(again, MultimodalEmotionRecognitionPipeline)
    assert same(again(clip(0)), pipes["cme"](clip(0)))


def test_a_checkpoint_without_a_head_is_refused(folders, tmp_path):
    for file in folders["learned_alignment"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    headless = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"2 weights of this model \(classifier\.bias, .*would be random"):
        pipeline(TASK, model=str(tmp_path), device="cpu")


def test_a_model_object_needs_its_processor(pipes):
    with pytest.raises(ValueError, match="processor="):
        MultimodalEmotionRecognitionPipeline(model=pipes["cme"].model)


# What goes wrong


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("nowhere.wav", None, "no such file"),
        ("empty.wav", b"", "holds no bytes"),
        ("notes.wav", b"These are my notes, not a sound.", "not a readable media file"),
        ("cut.mp4", slice(0, 7000), "truncated"),
    ],
)
def test_files_that_cannot_be_read(pipes, tmp_path, mp4, model, name, content, problem):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(mp4.read_bytes()[content] if isinstance(content, slice) else content)
    for source in (path, {"audio": str(path)}):
        with pytest.raises(ValueError) as error:
            pipes[model](source, words=WORDS)
        one_line(error, str(path), problem)


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        (None, {}, "no clip: give a path"),
        ("clip.wav", {"transcript": "kids"}, "unknown argument.* transcript"),
        ({"sound": "clip.wav"}, {}, "found sound"),
        ({}, {}, "found none"),
        ([{"text": "kids"}], {"text": "door"}, "text as keywords belong to one clip"),
        (np.zeros(800, np.float32), {}, "pass .array, rate."),
        ((np.zeros(800, np.float32), None), {}, "the rate is"),
        (3, {}, "int"),
        (None, {"text": ["kids", "door"]}, "text is one clip's transcript, a string"),
        (None, {"words": [{"word": 5}]}, "words is a list of"),
        (None, {"words": [{"word": "kids", "start": "a", "end": 1}]}, "must be numbers, seconds of the clip"),
        ({"text": "kids"}, {"top_k": 1.5}, "top_k is 1.5"),
    ],
)
def test_inputs_that_are_no_clip(pipes, inputs, keywords, message):
    with pytest.raises(ValueError, match=message) as error:
        pipes["cme"](inputs, **keywords)
    one_line(error)


def test_what_is_given_and_cannot_count_is_said(pipes, folders):
    with pytest.warns(UserWarning, match="the first 6 of 9 words are read"):
        pipes["group_norm"](text="kids are talking by the door by the door")
    silence = np.zeros(RATE, np.float32)
    with pytest.warns(UserWarning, match="the sound is silent"):
        pipes["cme"](audio=(silence, RATE), recognize=False)
    milliseconds = [{"word": "kids", "start": 0.1, "end": 0.3}, {"word": "door", "start": 300, "end": 450}]
    with pytest.warns(UserWarning, match="ends at 0.50 s and 1 words begin later, 'door' at 300 the first"):
        pipes["cme"](audio=(noise(0.5), RATE), words=milliseconds)
    pipes["cme"](audio=(noise(0.5), RATE), words=[{"word": "kids", "start": 0.4, "end": 0.6}])  # begins in the clip
    config = LearnedAlignmentConfig(audio_config=SpectrogramConfig(hidden_size=4), hidden_size=4)
    listener = LearnedAlignmentForEmotionClassification(config)
    listener = MultimodalEmotionRecognitionPipeline(model=listener, processor=MerProcessor.default(), device="cpu")
    with pytest.warns(UserWarning, match="the transcript is not read; this model reads audio"):
        listener(audio=(noise(0.5), RATE), text="kids")
    listener(audio=(noise(0.5), RATE), text=" ?! ")  # is none
    listener(audio=(1.1e-3 * np.sign(noise(0.5)), RATE))  # is quiet, and no silence


def test_a_clip_in_which_nothing_is_left(wav, tmp_path):
    config = LearnedAlignmentConfig(text_config=WordTableConfig(**TABLE), hidden_size=4)
    processor = MerProcessor.default(tokenizer=word_tokenizer([TRANSCRIPT]))
    reader = LearnedAlignmentForEmotionClassification(config)
    reader = MultimodalEmotionRecognitionPipeline(model=reader, processor=processor, device="cpu")
    for source in (wav, {"audio": wav}, {"path": str(wav), "bytes": None}):
        with pytest.raises(ValueError) as error:
            reader(source, recognize=False)
        one_line(error, str(wav), "nothing in it is what this model reads; give text= or words=")
    with pytest.raises(ValueError, match="a clip of text: nothing in it"):
        reader(text=" ?! ")
    with pytest.raises(ValueError, match="a clip of nothing: nothing in it"):
        reader(text=None)
    assert reader(wav, text="kids", return_details=True)["modalities"] == ["text"]

    config = LearnedAlignmentConfig(audio_config=SpectrogramConfig(hidden_size=4), hidden_size=4)
    listener = LearnedAlignmentForEmotionClassification(config)
    listener = MultimodalEmotionRecognitionPipeline(model=listener, processor=processor, device="cpu")
    silent = write_video(tmp_path / "silent.mp4", sound=False)
    with pytest.raises(ValueError, match=r"silent\.mp4: nothing in it is what this model reads; give audio="):
        listener(silent)
    assert listener((noise(0.025), RATE), return_details=True)["modalities"] == ["audio"]
    with pytest.raises(ValueError, match="a clip of audio: nothing in it"):  # shorter than one frame
        listener((noise(0.02), RATE))


# Calibration


def test_scores_are_of_the_logits_divided_by_the_temperature(folders, wav):
    plain = pipeline(TASK, model=str(folders["mman"]), device="cpu")
    before = scores(plain(wav, text=TRANSCRIPT))
    inputs = plain.processor.pad([plain.preprocess({"audio": wav, "text": TRANSCRIPT}).turns[0].example])
    with torch.no_grad():
        logits = plain.model(**inputs).logits
    plain.model.config.calibration_temperature = 2.5
    after = scores(plain(wav, text=TRANSCRIPT))
    expected = dict(zip(plain.model.config.id2label.values(), (logits[0] / 2.5).softmax(-1).tolist(), strict=True))
    assert after == pytest.approx(expected, abs=1e-6)
    assert max(after.values()) < max(before.values()) - 0.01
    assert sorted(after, key=after.get) == sorted(before, key=before.get)
    turns = plain(dialogue=[{"audio": wav, "text": TRANSCRIPT}])
    assert scores(turns[0]) == pytest.approx(expected, abs=1e-6)
    with torch.no_grad():
        assert torch.equal(plain.model(**inputs).logits, logits)  # the model's own are what training sees


def test_the_temperature_travels_with_the_checkpoint(folders, pipes, tmp_path):
    """A generation parameter has the same name, and transformers drops those from configurations unless declared."""
    pipe = pipeline(TASK, model=str(folders["cme"]), device="cpu")
    pipe.model.config.calibration_temperature = 0.5
    pipe.save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert again.model.config.calibration_temperature == 0.5
    assert same(again(clip(0)), pipe(clip(0)))
    assert not same(again(clip(0)), pipes["cme"](clip(0)), 0.01)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0 and finite"):
            CMEConfig(audio_embed_dim=4, calibration_temperature=temperature)
