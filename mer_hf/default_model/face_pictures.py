"""What happens to face pictures on their way into training: framing, light, sharpness, things in front of them.

Pictures of FER2013 are framed tighter than `media.crop_face` frames a video's faces: the cascade's square covers 0.96
of the picture at the median of 802 training pictures in which it was found (0.75 to 1.12 from the 10th to the 90th
percentile), and 1 / 1.2 = 0.83 of the crop that the processor makes. So pictures are drawn smaller more often than
larger. They are 48 pixels wide and a video's crops are sharper, so they are blurred, sharpened and made noisy.
"""

import math

import torch
from torch import Tensor, nn

ZOOM = (0.72, 1.18)
"""Size of the face against the picture's own, even in logarithms; 0.83 / 0.96 = 0.87 is a video's."""
STRETCH = 0.06
"""Standard deviation of the logarithm of width over height."""
TURN = math.radians(8.0)
"""Standard deviation."""
SHIFT = 0.05
"""Standard deviation, in sides of the picture."""
CONTRAST, BRIGHTNESS = 0.4, 0.15
"""Contrast is multiplied by up to 1 +- 0.4 about the picture's mean, brightness moved by up to 0.15 of white."""
SHARPNESS = 0.8
"""From this share of the way to the mean of 5 x 5 pixels around, a blur, to as much the other way."""
NOISE = 0.03
"""Greatest standard deviation, of white."""
ERASED_SHARE, ERASED_SIDES = 0.3, (0.2, 0.45)
"""Share of pictures with a grey rectangle, and its sides in sides of the picture."""


def augment(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """pictures (batch, 48, 48) uint8 -> changed at random, float (batch, 1, size, size) in [0, 1]."""
    values = pictures.float().div(255).unsqueeze(1)
    values = _reframe(values, size, generator)
    values = _relight(values, generator)
    return _erase(values, generator)


def _uniform(low: float, high: float, batch: int, generator: torch.Generator) -> Tensor:
    """(batch, 1, 1, 1)"""
    return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)


def _reframe(values: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Mirror, zoom, stretch, turn and shift; what lies outside the picture repeats its edge or mirrors it."""
    batch = len(values)
    zoom = _uniform(math.log(ZOOM[0]), math.log(ZOOM[1]), batch, generator).exp().flatten()
    stretch = (STRETCH / 2 * torch.randn(batch, generator=generator)).exp()
    turn = TURN * torch.randn(batch, generator=generator)
    mirror = 1.0 - 2.0 * torch.randint(0, 2, (batch,), generator=generator)
    shift = 2 * SHIFT * torch.randn(batch, 2, generator=generator)  # the grid's unit is half a side
    # Rows: where in the picture an output's place (x, y, 1) is looked up.
    across = torch.stack([turn.cos() / (zoom * stretch) * mirror, -turn.sin() / zoom, shift[:, 0]], dim=-1)
    down = torch.stack([turn.sin() / zoom * mirror, turn.cos() * stretch / zoom, shift[:, 1]], dim=-1)
    grid = nn.functional.affine_grid(torch.stack([across, down], 1), [batch, 1, size, size], align_corners=False)
    outside = "border" if torch.rand((), generator=generator) < 0.5 else "reflection"
    return nn.functional.grid_sample(values, grid, padding_mode=outside, align_corners=False)


def _relight(values: Tensor, generator: torch.Generator) -> Tensor:
    batch = len(values)
    blurred = nn.functional.avg_pool2d(values, 5, stride=1, padding=2, count_include_pad=False)
    values = values + _uniform(-SHARPNESS, SHARPNESS, batch, generator) * (blurred - values)
    mean = values.mean(dim=(-2, -1), keepdim=True)
    values = mean + (values - mean) * _uniform(1 - CONTRAST, 1 + CONTRAST, batch, generator)
    values = values + _uniform(-BRIGHTNESS, BRIGHTNESS, batch, generator)
    noise = torch.randn(values.shape, generator=generator) * _uniform(0, NOISE, batch, generator)
    return (values + noise).clamp(0, 1)


def _erase(values: Tensor, generator: torch.Generator) -> Tensor:
    """Put a rectangle of one grey in front of some of the pictures."""
    batch, size = len(values), values.shape[-1]
    place = torch.arange(size) / size

    def covered() -> Tensor:  # (batch, size): a stretch of one axis
        length = _uniform(*ERASED_SIDES, batch, generator).view(batch, 1)
        start = torch.rand(batch, 1, generator=generator) * (1 - length)
        return (place >= start) & (place < start + length)

    chosen = torch.rand(batch, 1, 1, generator=generator) < ERASED_SHARE
    rectangle = (covered().unsqueeze(2) & covered().unsqueeze(1) & chosen).unsqueeze(1)
    return torch.where(rectangle, _uniform(0, 1, batch, generator), values)
