"""Charts of a training as pictures: curves over steps, and histograms before and after.

Colours are of Okabe and Ito's palette, which colour-blind people can tell apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

WIDTH, HEIGHT = 640, 360  # px
LEFT, RIGHT, TOP, BOTTOM = 56, 56, 34, 34  # margins, px
BLUE, ORANGE, GREY = (0, 114, 178), (213, 94, 0), (150, 150, 150)
INK, GRID, PAPER = (40, 40, 40), (224, 224, 224), (255, 255, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Curve:
    """Values over steps, drawn on an axis of their own."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def draw_curves(left: Curve, right: Curve | None, last_step: int) -> Tensor:
    """Draw one curve, or two with an axis each.

    Args:
        left: in blue, its axis at the left.
        right: in orange, its axis at the right, which always shows 0.
        last_step: where the chart ends.

    Returns:
        (3 h w) in 0..1.
    """
    canvas = _sheet()
    _draw_curve(canvas, left, last_step, BLUE, at_right=False)
    if right is not None:
        _draw_curve(canvas, right, last_step, ORANGE, at_right=True)
    _write(canvas, "step 0", (LEFT, HEIGHT - 12), INK)
    _write(canvas, str(last_step), (WIDTH - RIGHT - 30, HEIGHT - 12), INK)
    return _picture(canvas)


def draw_histograms(
    before: Sequence[float], after: Sequence[float], title: str, bins: int = 20
) -> Tensor:
    """Draw how numbers of 0..1 are spread before (grey) and after (blue), as shares of each.

    Args:
        before: may be empty.
        after: may be empty.
        title: one line.
        bins: of 0..1.

    Returns:
        (3 h w) in 0..1.
    """
    canvas = _sheet()
    shares = [_shares(values, bins) for values in (before, after)]
    top = max(0.1, *(float(share.max()) for share in shares))
    step = (WIDTH - LEFT - RIGHT) / bins
    for series, (share, colour) in enumerate(zip(shares, (GREY, BLUE), strict=True)):
        for index, value in enumerate(share):
            x = LEFT + step * (index + 0.1 + 0.4 * series)
            y = HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)
            corners = (round(x), round(y)), (round(x + 0.4 * step), HEIGHT - BOTTOM)
            cv2.rectangle(canvas, *corners, colour, cv2.FILLED)
    for tick in (0.0, 0.5, 1.0):
        x = LEFT + tick * (WIDTH - LEFT - RIGHT)
        _write(canvas, f"{tick:g}", (round(x) - 8, HEIGHT - 12), INK)
    _write(canvas, f"{top:.0%}", (8, TOP + 6), INK)
    _write(canvas, title, (LEFT, 22), INK)
    _write(canvas, f"before ({len(before)})", (WIDTH - 250, 22), GREY)
    _write(canvas, f"after ({len(after)})", (WIDTH - 130, 22), BLUE)
    return _picture(canvas)


def _shares(values: Sequence[float], bins: int) -> np.ndarray:
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins, (0.0, 1.0))
    return counts / max(len(values), 1)


def _sheet() -> np.ndarray:
    canvas = np.full((HEIGHT, WIDTH, 3), PAPER, np.uint8)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = round(TOP + share * (HEIGHT - TOP - BOTTOM))
        cv2.line(canvas, (LEFT, y), (WIDTH - RIGHT, y), GRID, 1)
    return canvas


def _draw_curve(
    canvas: np.ndarray, curve: Curve, last_step: int, colour: tuple[int, int, int], at_right: bool
) -> None:
    points = [
        point for point in zip(curve.steps, curve.values, strict=True) if math.isfinite(point[1])
    ]
    values = [value for _, value in points] or [0.0]
    low, high = min(values), max(values)
    if at_right:
        low = min(low, 0.0)
    if high - low < 1e-6:  # a flat curve still has an axis
        low, high = low - 0.05, high + 0.05
    places = [
        (
            LEFT + step / max(last_step, 1) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )
        for step, value in points
    ]
    line = np.array(places, np.float64).round().astype(np.int32).reshape(-1, 1, 2)
    if len(places) == 1:
        cv2.circle(canvas, tuple(map(int, line[0, 0])), 3, colour, cv2.FILLED, cv2.LINE_AA)
    elif places:
        cv2.polylines(canvas, [line], False, colour, 2, cv2.LINE_AA)
    x = WIDTH - RIGHT + 6 if at_right else 4
    _write(canvas, f"{high:.3g}", (x, TOP + 6), colour)
    _write(canvas, f"{low:.3g}", (x, HEIGHT - BOTTOM), colour)
    _write(canvas, curve.name, (WIDTH // 2 + 40 if at_right else LEFT, 22), colour)


def _write(
    canvas: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, place, FONT, 0.45, colour, 1, cv2.LINE_AA)


def _picture(canvas: np.ndarray) -> Tensor:
    return torch.from_numpy(canvas).movedim(-1, 0).float().div_(255.0)
