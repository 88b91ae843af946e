"""The horizon as the lower boundary of a sky mask: a robust line through the edge of the sky.

Source:  least median of squares (Rousseeuw 1984) over lines through pairs of boundary points, then
         least squares over the inliers; trees and towers that rise into the sky are outliers.
"""

import torch
from torch import Tensor

from .horizon_lines import MAX_RISE, SIDE, square_of

INLIER_GAP = 0.02  # share of the height
LEAST_COLUMNS = 6


def horizon_of_mask(mask: Tensor) -> tuple[float, float, float] | None:
    """Heights of the sky's lower edge at the left and right of the frame.

    Args:
        mask: (h w), 1 = sky, 0 = not sky.

    Returns:
        left, right (shares from the top) and the share of columns that lie on the line; None where
        the mask has no lower edge: all sky, none, or edges in too few columns.
    """
    sky = square_of(mask[None, None], SIDE)[0, 0] > 0.5
    inside = sky.any(0) & ~sky[-1]
    if int(inside.sum()) < LEAST_COLUMNS:
        return None
    fine = mask.float().cpu()
    x, y = _boundary(fine)
    line = _least_median_line(x, y)
    if line is None:
        return None
    for _ in range(3):
        near = (_at(line, x) - y).abs() <= INLIER_GAP
        if int(near.sum()) < LEAST_COLUMNS:
            break
        line = _fit(x[near], y[near])
    share = float(((_at(line, x) - y).abs() <= INLIER_GAP).float().mean())
    return float(line[0]), float(line[1]), share


def _boundary(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (k) and heights (k) of the lowest sky in each column that ends above the bottom."""
    height, width = mask.shape
    columns = torch.linspace(0, width - 1, min(width, 256)).round().long()
    sky = mask[:, columns] > 0.5
    lowest = height - sky.flip(0).float().argmax(0)  # rows above it, counted from the top
    kept = sky.any(0) & (lowest < height)
    return (columns[kept] + 0.5) / width, lowest[kept].float() / height


def _least_median_line(x: Tensor, y: Tensor) -> Tensor | None:
    if len(x) < LEAST_COLUMNS:
        return None
    picks = torch.linspace(0, len(x) - 1, min(len(x), 40)).round().long()
    pairs = torch.combinations(picks)
    (x0, x1), (y0, y1) = x[pairs].T, y[pairs].T
    slope = (y1 - y0) / (x1 - x0)
    lines = torch.stack([y0 - slope * x0, y0 + slope * (1 - x0)], 1)
    lines = lines[slope.abs() <= MAX_RISE]
    if not len(lines):
        return None
    misfit = (lines[:, :1] + (lines[:, 1:] - lines[:, :1]) * x - y).abs().median(1).values
    return lines[misfit.argmin()]


def _fit(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares line as edge heights (2)."""
    design = torch.stack([1 - x, x], 1)
    return torch.linalg.lstsq(design, y[:, None]).solution[:, 0]


def _at(line: Tensor, x: Tensor) -> Tensor:
    return line[0] + (line[1] - line[0]) * x
