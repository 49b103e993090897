"""What `SpeakerSwap` may change of a vector and `SpeedChange` of a waveform, by hand."""

import math

import pytest
import torch

from mer_hf.data.augmentation import SpeakerSwap, SpeedChange

VECTORS = {"a": [[0.0, 10.0], [2.0, 10.0]], "b": [[5.0, 30.0], [7.0, 50.0]]}
SPEAKERS = ["a", "a", "b", "b"]


def make(**values):
    examples = [
        {"audio_embeds": torch.tensor([vector]), "label": number}
        for own in VECTORS.values()
        for number, vector in enumerate(own)
    ]
    return SpeakerSwap(examples, SPEAKERS, **values)


def test_a_clip_moves_along_the_line_between_two_speakers():
    torch.manual_seed(0)
    dataset = make()
    moves = torch.cat([dataset[1]["audio_embeds"] - dataset.clean[1]["audio_embeds"] for _ in range(300)])
    shares = moves[:, 0] / 5  # the means are (1, 10) and (6, 40)
    torch.testing.assert_close(moves[:, 1], 30 * shares)
    assert 0.4 < (moves[:, 0] == 0).float().mean() < 0.6, "half of the draws are of the own speaker"
    others = shares[shares != 0]
    assert others.min() > 0 and others.max() < 1 and abs(others.mean() - 0.5) < 0.06
    back = dataset[2]["audio_embeds"] - dataset.clean[2]["audio_embeds"]
    assert (back <= 0).all()


def test_loudness_moves_only_the_entries_that_it_may():
    torch.manual_seed(0)
    dataset = SpeakerSwap([{"audio_embeds": torch.zeros(1, 3), "vision_embeds": torch.ones(1, 2)}], ["a"], (0, 2), 2.0)
    looks = [dataset[0] for _ in range(300)]
    moves = torch.cat([look["audio_embeds"] for look in looks])
    assert torch.equal(moves[:, 0], moves[:, 2]) and not moves[:, 1].any()
    assert 1.7 < moves[:, 0].std() < 2.3 and abs(moves[:, 0].mean()) < 0.4
    assert all(torch.equal(look["vision_embeds"], torch.ones(1, 2)) for look in looks)
    assert not dataset.clean[0]["audio_embeds"].any(), "the clean vectors stay"


def test_modalities_move_apart_and_a_clip_without_one_stays_without():
    torch.manual_seed(0)
    both = {"audio_embeds": torch.zeros(1, 1), "vision_embeds": torch.zeros(1, 1)}
    other = {"audio_embeds": torch.ones(1, 1), "vision_embeds": torch.ones(1, 1), "label": 3}
    dataset = SpeakerSwap([both, other, {"vision_embeds": torch.zeros(1, 1)}], ["a", "b", "a"])
    looks = [dataset[0] for _ in range(50)]
    assert any(look["audio_embeds"] != look["vision_embeds"] for look in looks)
    assert "audio_embeds" not in dataset[2] and dataset[1]["label"] == 3 and len(dataset) == 3


def test_every_example_needs_its_speaker():
    with pytest.raises(ValueError, match="1 examples and 2 speakers"):
        SpeakerSwap([{}], ["a", "b"])


def tone(hertz=500.0, seconds=0.5):
    return torch.sin(2 * math.pi * hertz * torch.arange(round(16_000 * seconds)) / 16_000)


def test_a_faster_clip_is_shorter_and_higher_and_its_times_move_along():
    torch.manual_seed(0)
    example = {
        "input_values": tone(),
        "word_times": torch.tensor([[0.1, 0.2], [0.2, 0.45]]),
        "vision_times": torch.tensor([0.0, 0.4]),
        "label": 2,
    }
    dataset = SpeedChange([example], 0.2)
    factors = []
    for _ in range(200):
        look = dataset[0]
        factor = len(look["input_values"]) / 8000
        factors.append(math.log(factor))
        torch.testing.assert_close(look["word_times"], example["word_times"] * factor)
        torch.testing.assert_close(look["vision_times"], example["vision_times"] * factor)
        crossings = int((look["input_values"][:-1] * look["input_values"][1:] < 0).sum())
        assert abs(crossings - 500) <= 2, "as many periods in fewer samples"
        assert look["label"] == 2
    assert -0.2 <= min(factors) < -0.18 and 0.18 < max(factors) <= 0.2
    assert torch.equal(dataset.clean[0]["input_values"], tone()) and len(dataset) == 1


def test_clips_without_sound_and_speeds_that_may_not_change_stay():
    silent = {"vision_times": torch.tensor([0.5]), "label": 1}
    assert SpeedChange([silent], 0.5)[0]["vision_times"].item() == 0.5
    torch.testing.assert_close(SpeedChange([{"input_values": tone()}], 0.0)[0]["input_values"], tone())
    with pytest.raises(ValueError, match="most says how far the speed may change"):
        SpeedChange([], -0.1)
