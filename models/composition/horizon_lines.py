"""Candidate lines of a frame and the statistics of a picture along, above and below each of them.

Every straight line that may be a horizon is a pair of edge heights. With running sums down the
columns, the mean of a channel over a band on either side of a line is two look-ups per column, so
all lines of a batch are described at once, with no loop over pixels.

Symbols: l, r heights of a line at the left and right edge, shares from the top; n lines, k columns,
         s side of the square picture all statistics are taken from, c channels.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SIDE = 96  # the whole frame is squeezed to this square: edge heights keep their shares
COLUMNS = 20
EDGE_STEP = 1 / 30
EDGE_RANGE = (-0.2, 1.2)  # a tilted horizon may leave the frame through top or bottom
MAX_RISE = 0.6  # |r - l|; tan(20 degrees) at an aspect ratio of 3:2 is 0.55
CENTRE_RANGE = (0.03, 0.97)
THIN, NEAR = 0.04, 0.14  # heights of the bands next to a line, shares of the frame
MIN_SPREAD = 0.02  # a picture flatter than this (std, 0..1) has nothing to find


class LineStatistics(NamedTuple):
    """Means on the two sides of every line; see `describe_lines`."""

    thin: Tensor  # (b c n k 2) means of the thin bands above and below, column by column
    near: Tensor  # (b c n k 2) the same of the near bands
    far: Tensor  # (b c n 2) means over everything above and below


@lru_cache(maxsize=1)
def candidate_lines() -> Tensor:
    """(n 2) edge heights of all candidates; read only."""
    count = round((EDGE_RANGE[1] - EDGE_RANGE[0]) / EDGE_STEP) + 1
    heights = torch.linspace(*EDGE_RANGE, count)
    pairs = torch.cartesian_prod(heights, heights)
    rise, centre = pairs[:, 1] - pairs[:, 0], pairs.mean(1)
    inside = (centre >= CENTRE_RANGE[0] - 1e-6) & (centre <= CENTRE_RANGE[1] + 1e-6)
    return pairs[(rise.abs() <= MAX_RISE + 1e-6) & inside]


def heights_at(lines: Tensor, x: Tensor) -> Tensor:
    """Heights (n k) of the lines (n 2) at columns x (k), shares."""
    return lines[:, :1] + (lines[:, 1:] - lines[:, :1]) * x


def square_of(image: Tensor, side: int) -> Tensor:
    """Squeeze the whole frame (b c h w) into a (b c side side) square, averaging areas."""
    return areas_of(image, side, side)


def areas_of(image: Tensor, rows: int, columns: int) -> Tensor:
    """Means (b c rows columns) of the areas of pictures (b c h w); smaller pictures are stretched."""
    height, width = image.shape[-2:]
    if height < rows or width < columns:
        return F.interpolate(
            image.float(), size=(rows, columns), mode="bilinear", align_corners=False
        )
    if image.device.type == "cpu" and image.is_contiguous(memory_format=torch.channels_last):
        return _areas_by_opencv(image.float(), rows, columns)
    if height % rows == 0 and width % columns == 0:  # several times faster than the general case
        return F.avg_pool2d(image.float(), (height // rows, width // columns))
    return F.adaptive_avg_pool2d(image.float(), (rows, columns))


def _areas_by_opencv(image: Tensor, rows: int, columns: int) -> Tensor:
    """The same where channels lie innermost, as in ComfyUI's pictures; so do the answer's."""
    import cv2  # several times faster here than torch

    pictures = image.permute(0, 2, 3, 1).numpy()
    small = [cv2.resize(one, (columns, rows), interpolation=cv2.INTER_AREA) for one in pictures]
    means = torch.stack([torch.from_numpy(one).reshape(rows, columns, -1) for one in small])
    return means.permute(0, 3, 1, 2)


def squeeze(image: Tensor) -> Tensor:
    """The picture's opponent colours as (b 3 s s), scaled to a common spread."""
    small = square_of(image, SIDE)
    spread = small.flatten(1).std(1).clamp_min(MIN_SPREAD).view(-1, 1, 1, 1)
    return opponent_colours(small) / (4 * spread)


def opponent_colours(image: Tensor) -> Tensor:
    """Light, red against green, and yellow against blue of pictures (b 3 h w)."""
    red, green, blue = image.unbind(1)
    return torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], 1)


def channels_of(square: Tensor) -> Tensor:
    """(b 6 s s): the three colours, their squares summed, light squared, and edge strength."""
    light = square[:, :1]
    across = F.pad(light, (1, 1, 0, 0), mode="replicate")
    down = F.pad(light, (0, 0, 1, 1), mode="replicate")
    edges = (across[..., 2:] - across[..., :-2]).abs() + (
        down[..., 2:, :] - down[..., :-2, :]
    ).abs()
    chroma = square[:, 1:].square().sum(1, keepdim=True)
    return torch.cat([square, chroma, light.square(), edges], 1)


def describe_lines(channels: Tensor, lines: Tensor, thin: float = THIN) -> LineStatistics:
    """Means of every channel in bands above and below every line.

    Args:
        channels: (b c s s).
        lines: (n 2) edge heights.
        thin: height of the thin bands.
    """
    side = channels.shape[-1]
    pooled = F.adaptive_avg_pool2d(channels, (side, COLUMNS))
    sums = F.pad(pooled.cumsum(2), (0, 0, 1, 0)).transpose(2, 3)  # (b c k s+1)
    x = (torch.arange(COLUMNS, device=lines.device) + 0.5) / COLUMNS
    level = heights_at(lines, x)
    at = sum_to(sums, level)
    bands = _band_means(sums, at, level, thin), _band_means(sums, at, level, NEAR)
    return LineStatistics(*bands, _side_means(sums, at, level))


def sum_to(sums: Tensor, level: Tensor) -> Tensor:
    """Running sums (b c k s+1) read at heights (n k) by linear interpolation: (b c n k)."""
    side = sums.shape[-1] - 1
    place = level.clamp(0, 1) * side
    low = place.floor().clamp(max=side - 1)
    column = torch.arange(level.shape[1], device=level.device) * (side + 1)
    index = (low.long() + column).flatten()
    # each place's channels and the next one's lie side by side, so that one look-up fetches them all
    places = rearrange(sums, "b c k s -> b (k s) c")
    pairs = torch.cat([places, places.roll(-1, 1)], 2)
    below, above = pairs.index_select(1, index).chunk(2, 2)
    read = torch.lerp(below, above, (place - low).flatten()[:, None])
    return read.transpose(1, 2).contiguous().unflatten(-1, level.shape)


def _band_means(sums: Tensor, at: Tensor, level: Tensor, height: float) -> Tensor:
    side = sums.shape[-1] - 1
    above, below = at - sum_to(sums, level - height), sum_to(sums, level + height) - at
    rows = level.clamp(0, 1)
    tall_above = (rows - (level - height).clamp(0, 1)) * side
    tall_below = ((level + height).clamp(0, 1) - rows) * side
    return _paired(above / tall_above.clamp_min(0.5), below / tall_below.clamp_min(0.5))


def _side_means(sums: Tensor, at: Tensor, level: Tensor) -> Tensor:
    side = sums.shape[-1] - 1
    at = at.sum(-1)
    total = sums[..., -1].sum(-1)[..., None]
    rows = level.clamp(0, 1).sum(-1) * side
    every = level.shape[1] * side
    return _paired(at / rows.clamp_min(1), (total - at) / (every - rows).clamp_min(1))


def _paired(above: Tensor, below: Tensor) -> Tensor:
    """Both sides in a last dimension; in memory each stays in one piece."""
    return torch.stack([above, below]).movedim(0, -1)
