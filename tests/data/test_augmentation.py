"""What `SpeakerSwap` may change of a vector, by hand."""

import pytest
import torch

from mer_hf.data.augmentation import SpeakerSwap

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
