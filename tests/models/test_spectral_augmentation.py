"""Changes of log-mels in training: against loops, and that evaluation sees none of them."""

import math

import pytest
import torch
from model_helpers import assert_same, randomize, speech

from mer_hf import FilterbankConfig, FilterbankModel
from mer_hf.models.spectral_augmentation import mask_at_random, warp_bands

PLAIN = {"conv_dims": (), "conv_kernels": (), "conv_strides": ()}


def front_end(**values):
    return randomize(FilterbankModel(FilterbankConfig(**values)))


def looks(model, waveform, count=200):
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        return torch.stack([model(waveform).last_hidden_state for _ in range(count)])


def test_warped_bands_are_read_between_their_neighbours():
    frames = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    factors = [0.8, 1.0, 1.25]
    warped = warp_bands(frames, torch.tensor(factors))
    for clip, factor in enumerate(factors):
        for time in range(4):
            for bin_ in range(7):
                place = min(bin_ * factor, 6.0)
                below = math.floor(place)
                above = min(below + 1, 6)
                value = frames[clip, time, below] * (1 - place + below) + frames[clip, time, above] * (place - below)
                torch.testing.assert_close(warped[clip, time, bin_], value)
    assert torch.equal(warped[1], frames[1])


def test_masks_cover_no_more_than_asked_and_only_what_is_there():
    lengths = torch.tensor([9, 60, 90])
    most_bands = most_frames = 0
    for seed in range(40):
        masked = mask_at_random(torch.ones(3, 90, 80), lengths, 6, 20, torch.Generator().manual_seed(seed))
        bands, frames = (masked == 0).all(1).sum(-1), (masked == 0).all(2)
        assert bands.max() <= 6
        assert not frames[0, 9:].any()
        assert not frames[1, 60:].any()
        assert frames.sum(-1)[0] <= 3, "a third of the clip"
        assert frames.sum(-1).max() <= 20
        hidden = frames[2].nonzero().flatten()
        assert len(hidden) == 0 or len(hidden) == int(hidden.max() - hidden.min()) + 1, "one stretch"
        most_bands, most_frames = max(most_bands, int(bands.max())), max(most_frames, int(frames.sum(-1).max()))
    assert most_bands == 6
    assert most_frames >= 17


def test_evaluation_hears_clips_as_they_are():
    changes = {"warp": 0.3, "loudness": 2.0, "mask_bands": 9, "mask_frames": 9}
    values = {"conv_dims": (6, 5, 4), "normalization": "utterance"}
    plain, changing = (
        FilterbankModel(FilterbankConfig(**values)),
        FilterbankModel(FilterbankConfig(**values, **changes)),
    )
    changing.load_state_dict(randomize(plain).state_dict())
    waveform = speech(1, 8000)[None]
    with torch.no_grad():
        expected = plain.eval()(waveform).last_hidden_state
        assert_same(changing.eval()(waveform).last_hidden_state, expected)
        assert not torch.allclose(changing.train()(waveform).last_hidden_state, expected)
        assert_same(plain.train()(waveform).last_hidden_state, expected)  # by default nothing is changed


def test_a_louder_clip_is_louder_in_every_band_and_frame():
    model = front_end(loudness=0.7, **PLAIN)
    waveform = torch.stack([speech(1, 4000), speech(2, 4000)])
    with torch.no_grad():
        moved = looks(model, waveform) - model.eval()(waveform).last_hidden_state
    torch.testing.assert_close(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-4, rtol=0)
    assert moved[:, :, 0, 0].std(0).tolist() == pytest.approx([0.7, 0.7], abs=0.1)
    assert abs(moved[:, :, 0, 0].mean()) < 0.12
    assert not torch.allclose(moved[:, 0, 0, 0], moved[:, 1, 0, 0], atol=0.1), "each clip has its own"


def test_a_tone_moves_along_the_mel_axis_as_far_as_it_may():
    time = torch.arange(8000) / 16_000
    model = front_end(warp=0.2, **PLAIN)
    peaks = looks(model, torch.sin(2 * math.pi * 1500 * time)[None])[:, 0].mean(1).argmax(-1).float()
    with torch.no_grad():
        own = float(model.eval()(torch.sin(2 * math.pi * 1500 * time)[None]).last_hidden_state[0].mean(0).argmax())
    assert own * math.exp(-0.2) - 1 <= peaks.min() < own - 2
    assert own + 2 < peaks.max() <= own * math.exp(0.2) + 1


def test_masks_lie_at_the_mean_and_never_on_padding_alone():
    model = front_end(normalization="utterance", mask_frames=10, **PLAIN)
    waveform = torch.zeros(2, 16_000)
    waveform[0], waveform[1, :4000] = speech(1, 16_000), speech(2, 4000)
    mask = torch.arange(16_000) < torch.tensor([[16_000], [4000]])
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        hidden = [(model(waveform, mask).last_hidden_state == 0).all(-1) for _ in range(60)]
    counts = torch.stack([found[1, :23].sum() for found in hidden])
    assert counts.max() == 7, "a third of 23 frames"
    assert torch.stack([found[0].sum() for found in hidden]).max() == 10


@pytest.mark.parametrize("name", ["warp", "loudness", "mask_bands", "mask_frames"])
def test_a_negative_change_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} says how far .* found -1"):
        FilterbankConfig(normalization="global", **{name: -1})


def test_masks_need_a_normalization():
    with pytest.raises(ValueError, match="give a normalization other than 'none'"):
        FilterbankConfig(mask_frames=5)


def test_changes_are_saved_with_the_configuration(tmp_path):
    front_end(normalization="global", warp=0.1, mask_bands=4).save_pretrained(tmp_path)
    found = FilterbankConfig.from_pretrained(tmp_path)
    assert (found.warp, found.mask_bands, found.loudness) == (0.1, 4, 0.0)
