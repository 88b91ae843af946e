"""A found line, settled on the edge beside it where nearly every column of the picture shows one.

The candidate lines are a coarse grid, and their posterior leans to level lines. Where land meets
sky in a clean edge, the edge itself says more: its height and its slant.

Symbols: k columns, o offsets from the line, s side of the square picture, n lines.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .horizon_lines import areas_of, heights_at, opponent_colours, sum_to

SIDE = 192
COLUMNS = 48
REACH, STEP = 0.06, 0.005  # how far the edge may lie from the line, in shares of the height
BAND = 0.025  # height of the bands whose colours are compared
CLEAR = 0.85  # of the largest step in every column, the mean that a line has to find on its way
SHARPNESS = 60.0  # of the mean over the lines beside the best one
NEAR = 0.015


def settle(picture: Tensor, line: Tensor) -> Tensor:
    """The line through the clearest edge near a line; the line itself where there is none.

    Args:
        picture: (3 h w), 0..1.
        line: (2) heights at the left and right edge, shares from the top.
    """
    steps = _edge_strength(picture, line)  # (o k), at most 1
    shifts = torch.cartesian_prod(_offsets(), _offsets())  # (n 2)
    found = _read(steps, heights_at(shifts, _columns())).mean(1)
    best = found.argmax()
    if found[best] < CLEAR:
        return line
    beside = (shifts - shifts[best]).abs().amax(1) <= NEAR
    weight = ((found - found[best]) * SHARPNESS).exp() * beside
    return line + (weight[:, None] * shifts).sum(0) / weight.sum()


def _offsets() -> Tensor:
    return torch.arange(-REACH, REACH + STEP / 2, STEP)


def _columns() -> Tensor:
    return (torch.arange(COLUMNS) + 0.5) / COLUMNS


def _edge_strength(picture: Tensor, line: Tensor) -> Tensor:
    """(o k) the step in colour across every offset, as a share of the column's largest one.

    Only the step along the picture's mean colour difference counts, in its direction.
    """
    pooled = opponent_colours(areas_of(picture[None], SIDE, COLUMNS))
    sums = F.pad(pooled.cumsum(2), (0, 0, 1, 0)).transpose(2, 3)
    level = heights_at(line[None], _columns()) + _offsets()[:, None]
    at = sum_to(sums, level)
    step = sum_to(sums, level + BAND) + sum_to(sums, level - BAND) - 2 * at  # (1 3 o k)
    step = step[0] * ((level > BAND) & (level < 1 - BAND))
    mean = step.mean(2)
    common = mean[:, mean.norm(dim=0).argmax()]
    along = torch.einsum("c o k, c -> o k", step, common).clamp_min(0)
    return along / along.amax(0, keepdim=True).clamp_min(1e-6)


def _read(steps: Tensor, offset: Tensor) -> Tensor:
    """Values of (o k) at offsets (n k), linearly between its rows."""
    place = (offset + REACH) / STEP
    low = place.floor().clamp(0, len(steps) - 2).long()
    above, below = steps.gather(0, low), steps.gather(0, low + 1)
    return torch.lerp(above, below, place - low)
