"""Stored backbone states: computed once, found by content, never used when what made them is another."""

import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from own_clips import write_video
from safetensors import safe_open
from torch.utils.data import DataLoader
from transformers import BertConfig, ViTConfig, ViTImageProcessor

from mer_hf import CMEConfig, CMEForEmotionClassification, MerProcessor, SpectrogramConfig, word_tokenizer
from mer_hf.data.collator import ClipDataset, DialogueDataset, EmotionCollator, ExampleDataset
from mer_hf.data.feature_shards import FeatureShards
from mer_hf.data.feature_store import FeatureStore
from mer_hf.data.length_grouping import dataset_lengths
from mer_hf.data.schema import make_row
from mer_hf.models.batching import pad_examples

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = "kids are talking by the door"
WORDS = [{"word": w, "start": 0.1 * i + 0.1, "end": 0.1 * i + 0.2} for i, w in enumerate(TEXT.split())]


def make_model(seed=0):
    torch.manual_seed(seed)
    config = CMEConfig(
        audio_config=SpectrogramConfig(hidden_size=8, normalization="utterance"),
        text_config=BertConfig(**SIZES, vocab_size=30, max_position_embeddings=20),
        vision_config=ViTConfig(**SIZES, image_size=8, patch_size=4),
        hidden_size=8,
        word_level=True,
    )
    return CMEForEmotionClassification(config).eval()


def make_processor(**values):
    image_processor = ViTImageProcessor(size={"height": 8, "width": 8})
    return MerProcessor.default(
        tokenizer=word_tokenizer([TEXT]), image_processor=image_processor, num_frames=3, **values
    )


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Five sounds of different lengths, and a video."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for index in range(5):
        samples = 0.3 * rng.standard_normal(9_600 + 1_600 * index).clip(-3, 3) / 3
        samples[:1_600] *= 1e-4  # a silent start, for trim_db
        soundfile.write(folder / f"{index}.wav", samples, 16_000, subtype="FLOAT")
    write_video(folder / "face.mp4")
    return folder


@pytest.fixture
def rows(media, tmp_path):
    """Every mixture of modalities; the files are this test's own."""
    for file in media.iterdir():
        shutil.copy(file, tmp_path / file.name)
    sounds = [str(tmp_path / f"{index}.wav") for index in range(5)]
    face = str(tmp_path / "face.mp4")
    has = [
        {"audio": sounds[0], "text": TEXT, "words": WORDS, "video": face},
        {"audio": sounds[1], "text": TEXT, "words": WORDS},
        {"audio": sounds[2]},
        {"text": "by the door", "words": WORDS[3:]},
        {"audio": sounds[4], "video": face},
    ]
    labels = ["angry", "happy", "neutral", "sad", "angry"]
    return [
        make_row(id=str(n), corpus="own", label=label, **fields)
        for n, (fields, label) in enumerate(zip(has, labels, strict=True))
    ]


ONCE = {"audio": 4, "text": 2, "vision": 3}
"""What runs where each clip runs once: two rows have the same words, two the same video, of three frames."""
LABELS = {"angry": 0, "happy": 1, "neutral": 2, "sad": 3}


def count_rows(model):
    """How many clips (frames for vision) each backbone has run on since."""
    counts = {"audio": 0, "text": 0, "vision": 0}

    def counted(modality):
        def hook(module, args, kwargs, output):
            given = args[0] if args else next(iter(kwargs.values()))
            counts[modality] += len(given)

        return hook

    for modality in counts:
        getattr(model, f"{modality}_model").register_forward_hook(counted(modality), with_kwargs=True)
    return counts


@torch.no_grad()
def logits_of(model, clips):
    return model(**pad_examples([{k: v for k, v in clip.items() if k != "label"} for clip in clips])).logits


# What is stored


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("trim_db", [None, 30.0])
def test_the_same_logits_as_from_raw_input(tmp_path, rows, dtype, tolerance, trim_db):
    model, processor = make_model(), make_processor(trim_db=trim_db)
    store = FeatureStore(tmp_path / "store", model, processor, dtype=dtype)
    clips = store.examples(rows, LABELS)
    raw = ClipDataset(rows, processor, LABELS)
    found, expected = [clips[i] for i in range(5)], [raw[i] for i in range(5)]
    assert expected[0].get("begins", 0.0) == found[0].get("begins", 0.0)
    assert (trim_db is None) == ("begins" not in found[0])
    for own, whole in zip(found, expected, strict=True):
        assert own["label"] == whole["label"]
        assert not {"input_values", "input_ids", "pixel_values", "word_ids"} & own.keys()
        for name in ("word_times", "vision_times"):
            assert (name in own) == (name in whole)
            assert name not in own or torch.equal(own[name], whole[name])
    assert found[0]["audio_embeds"].dtype == getattr(torch, dtype)
    wanted = logits_of(model, expected)
    assert wanted.std(0).min() > 10 * tolerance / 2 or dtype == "bfloat16", "the clips hardly differ"
    torch.testing.assert_close(logits_of(model, found), wanted, rtol=0, atol=tolerance)


def test_states_are_read_by_worker_processes_too(tmp_path, rows):
    clips = FeatureStore(tmp_path / "store", make_model(), make_processor()).examples(rows, LABELS)
    copy = pickle.loads(pickle.dumps(clips))
    assert torch.equal(copy[0]["audio_embeds"], clips[0]["audio_embeds"])
    loader = DataLoader(clips, batch_size=5, collate_fn=EmotionCollator(), num_workers=1)
    here = EmotionCollator()([clips[i] for i in range(5)])
    for batch in loader:
        assert all(torch.equal(batch[name], here[name]) for name in here)


def test_lengths_come_from_the_headers(tmp_path, rows):
    clips = FeatureStore(tmp_path / "store", make_model(), make_processor()).examples(rows)
    read = dataset_lengths(ExampleDataset([clips[index] for index in range(len(clips))]))
    clips.shards.read = None
    assert dataset_lengths(clips).tolist() == clips.lengths.tolist() == read.tolist()
    dialogues = DialogueDataset(clips, ["a", "b", "a", "b", "b"], [0, 0, 1, 1, 2])
    assert dataset_lengths(dialogues).tolist() == [[2, max(read[0], read[2])], [3, max(read[[1, 3, 4]])]]


def test_states_too_large_for_float16_are_refused(tmp_path, rows):
    model = make_model()
    with torch.no_grad():
        model.text_model.encoder.layer[0].output.LayerNorm.weight.mul_(1e6)
    with pytest.raises(ValueError, match=r"too much for dtype .float16.; make the store with dtype=.bfloat16"):
        FeatureStore(tmp_path / "store", model, make_processor(), ("text",)).fill(rows)
    FeatureStore(tmp_path / "store", model, make_processor(), ("text",), dtype="bfloat16").fill(rows)


# Once a clip


def test_folds_seeds_and_heads_share_what_was_computed_once(tmp_path, rows):
    """Five folds and three seeds, each with a head and a store of its own over one folder."""
    calls = []
    for seed in range(3):
        for fold in range(5):
            model = make_model()  # the same backbones
            torch.manual_seed(100 * seed + fold)
            with torch.no_grad():
                for parameter in model.classifier.parameters():
                    parameter.normal_()  # another head
            calls.append(count_rows(model))
            store = FeatureStore(tmp_path / "store", model, make_processor())
            training = store.examples([row for n, row in enumerate(rows) if n != fold], LABELS)
            test = store.examples(rows[fold : fold + 1], LABELS)
            optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
            model(**EmotionCollator()([training[i] for i in range(4)])).loss.backward()
            optimizer.step()
            logits_of(model, [test[0]])
    total = {modality: sum(count[modality] for count in calls) for modality in calls[0]}
    assert total == ONCE
    assert all(not any(count.values()) for count in calls[1:])
    report = store.report()
    assert report["hits"] == 9 and report["misses"] == 0 and report["hit_rate"] == 1.0


def test_the_report_counts(tmp_path, rows):
    store = FeatureStore(tmp_path / "store", make_model(), make_processor())
    assert store.report() | {"hit_rate": None} == dict.fromkeys(store.report(), 0) | {"hit_rate": None}
    store.fill(rows)
    report = store.report()
    assert (report["entries"], report["shards"]) == (7, 3)
    assert (report["hits"], report["misses"]) == (2, 7), "two rows have one video, two the same words"
    assert report["bytes"] == sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
    store.fill(rows)
    assert store.report()["hits"] == 11 and store.report()["hit_rate"] == 11 / 18


def test_a_moved_and_renamed_file_is_the_same_clip(tmp_path, rows):
    store = FeatureStore(tmp_path / "store", make_model(), make_processor(), ("audio",))
    store.fill(rows)
    moved = tmp_path / "elsewhere" / "other.wav"
    moved.parent.mkdir()
    shutil.copy(rows[0]["audio"], moved)
    counts = count_rows(store.model)
    store.fill([rows[0] | {"id": "moved", "audio": {"path": "gone.wav", "bytes": moved.read_bytes()}}])
    store.fill([rows[0] | {"id": "moved", "audio": str(moved)}])
    assert counts["audio"] == 0


@pytest.mark.parametrize("late", [False, True])
def test_processes_share_the_work_and_a_folder(tmp_path, rows, monkeypatch, late):
    """Whether the second begins when the first has written, or knows nothing of it, nothing is left out or doubled."""
    models = [make_model(), make_model()]
    counts = [count_rows(model) for model in models]
    stores = [FeatureStore(tmp_path / "store", model, make_processor()) for model in models]
    if not late:
        monkeypatch.setattr(FeatureStore, "refresh", lambda store: None)
    for rank, store in enumerate(stores):
        store.fill(rows, rank=rank, world=2)
    monkeypatch.undo()
    assert [count["audio"] for count in counts] == [2, 2] and sum(count["text"] for count in counts) == 2
    reports = [store.report() for store in stores]
    assert sum(report["misses"] for report in reports) == 7 and sum(report["hits"] for report in reports) == 2
    both = FeatureStore(tmp_path / "store", make_model(), make_processor())
    after = count_rows(both.model)
    assert len(both.examples(rows)) == 5 and not any(after.values())


# Stale


@pytest.mark.parametrize(
    "change", ["one weight", "configuration", "preprocessing", "dtype", "content", "transcript", "version"]
)
def test_what_was_made_otherwise_is_never_used(tmp_path, rows, monkeypatch, change):
    model, processor, dtype = make_model(), make_processor(), "float16"
    FeatureStore(tmp_path / "store", model, processor, dtype=dtype).fill(rows)
    expected, stale = ONCE, 7
    if change == "one weight":
        with torch.no_grad():
            model.text_model.encoder.layer[0].output.dense.weight[3, 5] += 1e-3
        expected, stale = {"audio": 0, "text": 2, "vision": 0}, 2
    elif change == "configuration":
        model.vision_model.config.layer_norm_eps = 0.1
        expected, stale = {"audio": 0, "text": 0, "vision": 3}, 1
    elif change == "preprocessing":
        processor = make_processor(trim_db=30.0)  # times now depend on the sound, which no two rows share
        expected = {"audio": 4, "text": 3, "vision": 6}
    elif change == "dtype":
        dtype = "float32"
    elif change == "content":
        samples, rate = soundfile.read(rows[1]["audio"], dtype="float32")
        samples[5_000] += 1e-3
        soundfile.write(rows[1]["audio"], samples, rate, subtype="FLOAT")
        expected, stale = {"audio": 1, "text": 0, "vision": 0}, 0  # the old entry is right for the old file
    elif change == "transcript":
        rows[1] = rows[1] | {"text": "kids", "words": WORDS[:1]}
        expected, stale = {"audio": 0, "text": 1, "vision": 0}, 0
    else:
        monkeypatch.setattr("mer_hf.data.feature_store.STORE_VERSION", 0)
    counts = count_rows(model)
    store = FeatureStore(tmp_path / "store", model, processor, dtype=dtype)
    assert store.report()["stale"] == stale
    clips = store.examples(rows)
    assert counts == expected
    raw = ClipDataset(rows, processor)
    found, wanted = [clips[i] for i in range(5)], [raw[i] for i in range(5)]
    torch.testing.assert_close(logits_of(model, found), logits_of(model, wanted), rtol=0, atol=2e-3)


def test_pruning_frees_what_is_stale(tmp_path, rows):
    folder = tmp_path / "store"
    FeatureStore(folder, make_model(1), make_processor()).fill(rows)
    before = {file.name for file in folder.iterdir()}
    store = FeatureStore(folder, make_model(), make_processor(), ("audio",))
    store.fill(rows)
    assert store.report()["stale"] == 4, "it knows nothing of text and vision"
    (folder / ".features-0.safetensors.unfinished").write_bytes(b"12345")
    size = sum(file.stat().st_size for file in folder.iterdir())
    freed = store.prune()
    assert sum(file.stat().st_size for file in folder.iterdir()) == size - freed
    assert len({file.name for file in folder.iterdir()} & before) == 2
    assert store.report()["stale"] == 0 and len(store.examples(rows)) == 5


# Damage and kills


def test_a_truncated_shard_is_computed_anew(tmp_path, rows):
    FeatureStore(tmp_path / "store", make_model(), make_processor(), ("audio",)).fill(rows)
    (shard,) = (tmp_path / "store").iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    model = make_model()
    counts = count_rows(model)
    store = FeatureStore(tmp_path / "store", model, make_processor(), ("audio",))
    assert store.report()["damaged"] == 1 and store.report()["entries"] == 0
    store.fill(rows)
    assert counts["audio"] == 4
    assert store.prune() and store.report()["damaged"] == 0 and len(store.examples(rows)) == 5


def test_one_damaged_entry_is_computed_anew_and_the_others_are_kept(tmp_path, rows):
    FeatureStore(tmp_path / "store", make_model(), make_processor(), ("audio",)).fill(rows)
    (shard,) = (tmp_path / "store").iterdir()
    data = bytearray(shard.read_bytes())
    data[-5] ^= 0b100  # the file is as long as it was, and opens
    shard.write_bytes(data)
    with safe_open(shard, framework="pt"):
        pass
    model = make_model()
    counts = count_rows(model)
    store = FeatureStore(tmp_path / "store", model, make_processor(), ("audio",))
    clips = store.examples(rows)
    assert counts["audio"] == 1 and store.report()["damaged"] == 1
    wanted = ClipDataset(rows, store.processor, modalities=("audio",))
    found = logits_of(model, [clips[i] for i in (0, 1, 2, 4)])
    torch.testing.assert_close(found, logits_of(model, [wanted[i] for i in (0, 1, 2, 4)]), rtol=0, atol=2e-3)


def test_a_shard_that_is_none_of_ours_is_left_out(tmp_path):
    (tmp_path / "features-1.safetensors").write_bytes(b"")
    (tmp_path / "features-2.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    shards = FeatureShards(tmp_path)
    assert shards.entries == {} and set(shards.damaged) == {"features-1.safetensors", "features-2.safetensors"}
    with pytest.raises(KeyError):
        shards.read("anything")


def _write_shards(folder):
    shards = FeatureShards(folder)
    for number in range(100_000):
        shards.write({str(number): {"audio_embeds": torch.full((200, 64), float(number))}}, {str(number): {}})


def test_a_kill_leaves_whole_shards_only(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_write_shards, args=(tmp_path,))
    process.start()
    while process.is_alive() and len(list(tmp_path.glob("features-*"))) < 20:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    shards = FeatureShards(tmp_path)
    assert len(shards.entries) >= 20 and not shards.damaged
    for key in shards.entries:
        assert torch.equal(shards.read(key)["audio_embeds"], torch.full((200, 64), float(key)))


def test_what_was_computed_before_an_interruption_is_kept(tmp_path, rows, monkeypatch):
    model = make_model()
    store = FeatureStore(tmp_path / "store", model, make_processor(), ("audio",))
    done = []

    def interrupt(modality, clips, of):
        done.append(clips)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("mer_hf.data.feature_store.CLIPS_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        store.fill(rows, progress=interrupt)
    assert done == [1, 2]
    counts = count_rows(model)
    FeatureStore(tmp_path / "store", model, make_processor(), ("audio",)).fill(rows)
    assert counts["audio"] == 2


def test_shards_are_written_as_they_fill(tmp_path, rows, monkeypatch):
    monkeypatch.setattr("mer_hf.data.feature_store.CLIPS_AT_ONCE", 1)
    store = FeatureStore(tmp_path / "store", make_model(), make_processor(), ("audio",), shard_bytes=1)
    store.fill(rows)
    assert store.report()["shards"] == 4


# What cannot be read


def test_a_broken_clip_is_told_and_the_others_are_computed(tmp_path, rows):
    Path(rows[1]["audio"]).write_bytes(b"no sound at all")
    rows.append(make_row(id="absent", corpus="own", audio=str(tmp_path / "absent.wav")))
    store = FeatureStore(tmp_path / "store", make_model(), make_processor())
    store.fill(rows)
    assert set(store.failed) == {"1", "absent"} and "no such file" in store.failed["absent"]
    assert store.report()["failed"] == 2 and store.report()["entries"] == 6
    with pytest.raises(ValueError, match=r"2 clips have no states, such as '1': .*1\.wav"):
        store.examples(rows)
    assert len(store.examples([row for row in rows if row["id"] not in store.failed])) == 4


def test_a_modality_may_stay_raw(tmp_path, rows):
    processor = make_processor()
    store = FeatureStore(tmp_path / "store", make_model(), processor, ("audio", "vision"))
    clips = store.examples(rows, raw=("text",), transform=lambda row, example: example | {"id": row["id"]})
    assert {"audio_embeds", "input_ids", "word_times", "vision_embeds", "id"} <= clips[0].keys()
    assert torch.equal(clips[0]["input_ids"], ClipDataset(rows, processor)[0]["input_ids"])
    with pytest.raises(ValueError, match="audio come from the store"):
        store.examples(rows, raw=("audio",))
    trimmed = FeatureStore(tmp_path / "store", make_model(), make_processor(trim_db=30.0), ("audio",))
    with pytest.raises(ValueError, match="trim_db=None"):
        trimmed.examples(rows, raw=("text",))


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="float8"):
        FeatureStore(tmp_path, make_model(), make_processor(), dtype="float8")
    bare = CMEForEmotionClassification(CMEConfig(audio_embed_dim=4, text_embed_dim=4, hidden_size=8))
    with pytest.raises(ValueError, match="no audio backbone"):
        FeatureStore(tmp_path, bare, make_processor(), ("audio",))
    with pytest.raises(ValueError, match="no raw backbone"):
        FeatureStore(tmp_path, bare, make_processor())
    with pytest.raises(ValueError, match="rank is 2 of world 2"):
        FeatureStore(tmp_path, make_model(), make_processor()).fill([], rank=2, world=2)
