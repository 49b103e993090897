"""Log-mel frames changed at random in training, so that few voices are heard as many.

along the mel axis         Jaitly and Hinton 2013, "Vocal Tract Length Perturbation (VTLP) improves speech
                           recognition", ICML workshop WDLASL
masked in time and bands   Park et al. 2019, SpecAugment, https://arxiv.org/abs/1904.08779

The first moves the filters' centres in Hertz, before they are applied; here finished bands are read at other places of
the mel axis, which needs no second filterbank.
"""

import torch
from torch import Tensor


def warp_bands(frames: Tensor, factors: Tensor) -> Tensor:
    """frames (batch, time, bins) -> the same shape, each clip's bins read at `factors` (batch,) times their place.

    A place between two bins is interpolated, one beyond the last bin is the last.
    """
    last = frames.shape[-1] - 1
    place = (torch.arange(last + 1, device=frames.device) * factors.unsqueeze(-1)).clamp(max=last)  # (batch, bins)
    below = place.floor().long()
    share = (place - below).unsqueeze(1).to(frames.dtype)
    lower, upper = (
        frames.gather(-1, bins.unsqueeze(1).expand_as(frames)) for bins in (below, (below + 1).clamp(max=last))
    )
    return lower * (1 - share) + upper * share


def mask_at_random(
    frames: Tensor, lengths: Tensor, most_bands: int, most_frames: int, generator: torch.Generator | None = None
) -> Tensor:
    """frames (batch, time, bands), normalised, lengths (batch,) -> the same with zeros in a stretch of bands and one
    of time in each clip.

    most_bands, most_frames: the longest stretches, of frames never more than a third of the clip. generator: on the
    CPU, None = torch's own.
    """
    batch, time, bands = frames.shape
    lengths = lengths.cpu()
    kept = _outside(torch.full((batch,), bands), bands, torch.full((batch,), most_bands), generator).unsqueeze(1)
    heard = _outside(lengths, time, (lengths // 3).clamp(max=most_frames), generator).unsqueeze(2)
    return frames * (kept & heard).to(frames.device)


def _outside(sizes: Tensor, places: int, most: Tensor, generator: torch.Generator | None) -> Tensor:
    """Which of `places` lie outside a stretch of at most `most` (batch,) within the first `sizes` (batch,)."""
    draws = torch.rand(2, len(sizes), generator=generator)
    width = (draws[0] * (most + 1)).long()
    start = (draws[1] * (sizes - width + 1)).long()
    place = torch.arange(places)
    return (place < start.unsqueeze(-1)) | (place >= (start + width).unsqueeze(-1))
