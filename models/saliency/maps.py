"""What every saliency map goes through: its scale, its size, and the centre's advantage."""

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-30  # so that a map of zeros is not 0 / 0 on the way back either


def unit_map(found: Tensor) -> Tensor:
    """Scale each map so that its highest value is 1; a map of zeros becomes 1 everywhere.

    Args:
        found: (b 1 h w), 0 and up; left unmodified.
    """
    peak = found.amax((-2, -1), keepdim=True)
    return torch.where(peak > 0, found / peak.clamp_min(TINY), 1.0)


def resized_map(found: Tensor, height: int, width: int) -> Tensor:
    """A map (b 1 h w) in another size, px; the map itself if it has that size."""
    if found.shape[-2:] == (height, width):
        return found
    return F.interpolate(found, (height, width), mode="bilinear", antialias=True)


def centre_prior(height: int, width: int, sigma: float, like: Tensor) -> Tensor:
    """A Gaussian (1 1 h w), 1 in the middle; `sigma` is a share of each side."""
    y, x = (
        (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side - 0.5
        for side in (height, width)
    )
    return torch.exp(-(y.square()[:, None] + x.square()[None]) / (2 * sigma**2))[None, None]
