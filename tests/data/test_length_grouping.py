"""Batches by length: every clip once, within bounds, as many for each process, and little padding."""

from itertools import chain

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from own_clips import write_sound, write_video
from torch.utils.data import DataLoader

from mer_hf.data.collator import ClipDataset, DialogueDataset, ExampleDataset
from mer_hf.data.length_grouping import (
    LengthBatchSampler,
    dataset_lengths,
    iemocap_like_seconds,
    padding_ratio,
    row_seconds,
    seconds_of,
)
from mer_hf.data.schema import make_row
from mer_hf.models.media import MediaError, load_audio

LENGTHS = [3.0, 1.0, 9.0, 2.0, 2.5, 8.0, 1.5, 4.0, 3.5, 2.0, 1.0]


def batch_lengths(batches, lengths=LENGTHS):
    return [[lengths[index] for index in batch] for batch in batches]


# What is in a batch


def test_without_shuffling_the_longest_come_first():
    sampler = LengthBatchSampler(LENGTHS, batch_size=4, shuffle=False)
    assert batch_lengths(sampler) == [[9.0, 8.0, 4.0, 3.5], [3.0, 2.5, 2.0, 2.0], [1.5, 1.0, 1.0]]
    assert len(sampler) == 3
    within = LengthBatchSampler(LENGTHS, seconds=10.0, shuffle=False)
    # 2 * 9 > 10; 2 * 4 <= 10 < 3 * 4; 3 * 3 <= 10 < 4 * 3; 4 * 2 <= 10
    assert batch_lengths(within) == [[9.0], [8.0], [4.0, 3.5], [3.0, 2.5, 2.0], [2.0, 1.5, 1.0, 1.0]]
    both = LengthBatchSampler(LENGTHS, batch_size=2, seconds=10.0, shuffle=False)
    assert batch_lengths(both) == [[9.0], [8.0], [4.0, 3.5], [3.0, 2.5], [2.0, 2.0], [1.5, 1.0], [1.0]]


@pytest.mark.parametrize("together", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("limits", [{"batch_size": 1}, {"batch_size": 4}, {"seconds": 10.0}, {"seconds": 0.5}])
def test_every_clip_once_and_as_many_batches_as_fill_all_steps(limits, together):
    for epoch in range(3):
        sampler = LengthBatchSampler(LENGTHS, **limits, together=together, noise=0.3)
        sampler.set_epoch(epoch)
        steps = sampler.steps()
        assert {len(step) for step in steps} == {together}
        batches = list(sampler)
        assert batches == [batch for step in steps for batch in step] and len(sampler) == len(batches)
        assert all(batches) and sorted(chain.from_iterable(batches)) == list(range(len(LENGTHS)))


def test_bounds_hold():
    seconds = iemocap_like_seconds(500)
    for together in (1, 2, 3):
        for batch in LengthBatchSampler(seconds, seconds=30.0, together=together):
            assert len(batch) == 1 or len(batch) * seconds[batch].max() <= 30.0
        sizes = {len(batch) for batch in LengthBatchSampler(seconds, batch_size=8, together=together)}
        assert max(sizes) <= 8 and max(sizes) - min(sizes) <= 1


def test_a_batch_of_dialogues_is_as_large_as_it_is_padded():
    turns = np.array([(2, 3.0), (10, 4.0), (3, 9.0), (9, 5.0), (2, 2.0), (1, 30.0)])
    batches = list(LengthBatchSampler(turns, seconds=60.0, shuffle=False))
    assert sorted(chain.from_iterable(batches)) == list(range(6))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * turns[batch, 0].max() * turns[batch, 1].max() <= 60.0
    # (3, 9.0) and (1, 30.0), neighbours by size, would be 2 * 3 * 30 = 180 seconds.
    assert [5] in batches and [2, 0] in batches


# Order


def test_epochs_differ_and_come_back():
    sampler = LengthBatchSampler(iemocap_like_seconds(200), batch_size=8, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first
    kept = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert len(kept) <= len(first) / 5  # the few clips that are far longer than all others meet again
    assert list(LengthBatchSampler(sampler.sizes[:, 0], batch_size=8, seed=4)) != first


def test_the_longest_batch_comes_first_in_every_epoch():
    seconds = iemocap_like_seconds(300)
    sampler = LengthBatchSampler(seconds, batch_size=8, together=2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        padded = [sum(len(batch) * seconds[batch].max() for batch in step) for step in sampler.steps()]
        assert padded[0] == max(padded)
        assert padded != sorted(padded, reverse=True)


def test_two_halves_of_a_step_are_one_batch_of_twice_the_size():
    seconds = iemocap_like_seconds(101)
    for epoch in range(2):
        one = LengthBatchSampler(seconds, batch_size=16)
        two = LengthBatchSampler(seconds, batch_size=8, together=2)
        one.set_epoch(epoch), two.set_epoch(epoch)
        assert [a + b for a, b in two.steps()] == [batch for (batch,) in one.steps()]


# Accelerate


@pytest.mark.parametrize("limits", [{"batch_size": 8}, {"seconds": 40.0}])
def test_accelerates_shards_share_the_batches_out(limits):
    seconds = iemocap_like_seconds(203)
    sampler = LengthBatchSampler(seconds, **limits, together=3)
    shards = [list(BatchSamplerShard(sampler, num_processes=3, process_index=rank)) for rank in range(3)]
    assert len({len(shard) for shard in shards}) == 1
    assert sorted(i for shard in shards for batch in shard for i in batch) == list(range(203))
    assert [list(step) for step in zip(*shards, strict=True)] == sampler.steps()


def test_a_loader_takes_it():
    examples = ExampleDataset([{"label": index} for index in range(len(LENGTHS))])
    sampler = LengthBatchSampler(LENGTHS, batch_size=4)
    loader = DataLoader(examples, batch_sampler=sampler, collate_fn=lambda batch: [e["label"] for e in batch])
    assert list(loader) == list(sampler) and len(loader) == 3


# Padding


def test_padding_is_counted():
    assert padding_ratio([1.0, 2.0, 4.0], [[0, 1], [2]]) == pytest.approx((2 * 2 + 4) / 7)


def test_the_lengths_are_like_iemocaps():
    seconds = iemocap_like_seconds(5531)
    assert seconds.mean() == pytest.approx(4.55, rel=0.02) and np.median(seconds) == pytest.approx(3.58, rel=0.02)
    assert np.percentile(seconds, 95) == pytest.approx(11.1, rel=0.03)
    assert seconds.max() <= 34.1


@pytest.mark.parametrize("processes", [1, 2])
def test_at_most_seven_percent_are_padding(processes):
    seconds = iemocap_like_seconds(5531)
    sampler = LengthBatchSampler(seconds, batch_size=8, together=processes)
    for rank in range(processes):
        own = list(BatchSamplerShard(sampler, num_processes=processes, process_index=rank))
        assert 1.0 < padding_ratio(seconds, own) <= 1.07
    order = torch.randperm(5531, generator=torch.Generator().manual_seed(0)).tolist()
    assert padding_ratio(seconds, [order[i : i + 8] for i in range(0, 5531, 8)]) > 2


# Lengths


def test_lengths_of_clips_come_from_their_headers(tmp_path, monkeypatch):
    sounds = [write_sound(tmp_path / f"{n}.wav", seconds) for n, seconds in enumerate((0.5, 1.25, 0.75))]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    rows = [make_row(id=path.name, corpus="own", audio=str(path)) for path in [*sounds, broken]]
    rows.append(make_row(id="words", corpus="own", text="five words are said here"))
    clips = ClipDataset(rows, processor=None)
    monkeypatch.setattr("mer_hf.models.media._decode_audio", None)
    assert dataset_lengths(clips).tolist() == [0.5, 1.25, 0.75, 0.0, 1.5]
    dialogues = DialogueDataset(clips, ["a", "b", "a", None, "b"], [1, 1, 2, None, 2])
    assert dataset_lengths(dialogues).tolist() == [[2, 0.75], [2, 1.5], [1, 0.0]]


def test_lengths_of_ready_examples_are_those_of_their_sequences():
    examples = [
        {"input_values": torch.zeros(8_000), "text_embeds": torch.zeros(90, 2)},
        {"audio_embeds": torch.zeros(7, 2), "vision_embeds": torch.zeros(9, 2)},
        {"label": 1},
    ]
    assert dataset_lengths(ExampleDataset(examples)).tolist() == [0.5, 9.0, 0.0]


def test_seconds_of_all_kinds_of_sources(tmp_path):
    wav, webm = write_sound(tmp_path / "a.wav", 0.5), write_video(tmp_path / "a.webm", seconds=1.0)
    assert seconds_of(str(wav)) == seconds_of({"path": None, "bytes": wav.read_bytes()}) == 0.5
    assert seconds_of({"array": np.zeros(24_000, np.float32), "sampling_rate": 48_000}) == 0.5
    assert seconds_of(str(webm)) == pytest.approx(len(load_audio(webm)) / 16_000, abs=0.1)
    with pytest.raises(MediaError, match="no such file"):
        seconds_of(str(tmp_path / "absent.wav"))
    assert row_seconds(make_row(id="a", corpus="own", audio=str(tmp_path / "absent.wav"))) == 0.0


# Refusals


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "batch_size or seconds"),
        ({"batch_size": 0}, "above 0"),
        ({"seconds": -1.0}, "above 0"),
        ({"batch_size": 2, "together": 12}, "together is 12, of 11"),
        ({"batch_size": 2, "lengths": [1.0, float("nan")]}, "finite"),
        ({"batch_size": 2, "lengths": [1.0, -1.0]}, "not negative"),
        ({"batch_size": 2, "lengths": np.zeros((2, 2, 2))}, "items, 2"),
    ],
)
def test_wrong_arguments_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        LengthBatchSampler(**{"lengths": LENGTHS} | values)
