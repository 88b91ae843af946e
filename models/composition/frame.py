"""Plain borders around a picture: letterbox bars, mounts, margins."""

import torch
from torch import Tensor

from .horizon_lines import square_of

SIDE = 128
SAME = 0.03  # spread (0..1) of a border row or column, and its distance from the outermost one
LEAST_BAR, MOST_BAR = 3, 52  # rows of the square: less is an edge, more is no longer a border


def content_box(picture: Tensor) -> tuple[float, float, float, float]:
    """Where the picture inside plain borders lies.

    A border is counted only in pairs (top and bottom, left and right) of like colour, so that a
    clear sky or an even sea is never cut off.

    Args:
        picture: (3 h w), 0..1.

    Returns:
        left, top, right, bottom in shares of the frame; 0, 0, 1, 1 without borders.
    """
    small = square_of(picture[None], SIDE)[0]
    top, bottom = _bars(small)
    left, right = _bars(small.transpose(1, 2))
    return left / SIDE, top / SIDE, 1 - right / SIDE, 1 - bottom / SIDE


def _bars(small: Tensor) -> tuple[int, int]:
    """Border rows at the top and at the bottom of (3 s s), or 0 and 0."""
    if float((small[:, 0].mean(1) - small[:, -1].mean(1)).abs().max()) > 2 * SAME:
        return 0, 0
    top, bottom = _plain_rows(small), _plain_rows(small.flip(1))
    paired = LEAST_BAR <= top <= MOST_BAR and LEAST_BAR <= bottom <= MOST_BAR
    return (top, bottom) if paired else (0, 0)


def _plain_rows(small: Tensor) -> int:
    """How many rows from the first one on are of its single colour."""
    colour = small[:, 0].mean(1)[:, None, None]
    away = (small - colour).abs().amax((0, 2))
    plain = away <= SAME
    return int(torch.cumprod(plain.int(), 0).sum())
