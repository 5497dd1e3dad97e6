"""Made-up images like photographs, and generators, for initialisers that look at data."""

import torch


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photographs(size=256, side=8):
    """Return images with the uneven spectrum and offset of real ones."""
    noise = torch.randn(size, 3, side, side, generator=seeded(1))
    return 2 * noise.cumsum(2).cumsum(3) / side + 0.3
