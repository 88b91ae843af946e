"""One picture from a seed: a scene with a horizon, or one of the many kinds without.

A scene keeps the geometric horizon as its label. Where near land or tall hills hide it, the label
moves part of the way to the visible outline, as a person marking the picture would.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .finish import finish
from .indoors import paint_without_horizon
from .land import paint_far_layers, paint_ground, paint_rolling, paint_shore, paint_water
from .noise import Array, Rng
from .sky import paint_sky
from .things import bust, frame, fringe, monument, scatter, stand, write

SIDE_PX = 120


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn picture; `left` and `right` are the horizon's heights at the frame's edges, or None."""

    image: Array  # (side side 3) uint8 RGB
    left: float | None
    right: float | None
    kind: str
    visible: float  # share of the horizon line that nothing hides; 1 without a horizon


def draw(seed: int, horizon_share: float = 0.55) -> Picture:
    """Draw the picture of a seed; the same seed gives the same picture."""
    rng = np.random.default_rng([seed, 77])
    axis = (np.arange(SIDE_PX, dtype=np.float32) + 0.5) / SIDE_PX
    grid = (np.tile(axis, (SIDE_PX, 1)), np.tile(axis[:, None], (1, SIDE_PX)))
    canvas = np.zeros((SIDE_PX, SIDE_PX, 3), np.float32)
    left = right = None
    visible = 1.0
    if rng.random() < horizon_share:
        kind, centre, slope = _paint_landscape(rng, canvas, grid)
        bare = canvas.copy()
        _stand_things(rng, canvas, grid, centre, slope)
        visible = _visible_share(bare, canvas, centre, slope)
        left, right = centre - slope / 2, centre + slope / 2
    else:
        kind = paint_without_horizon(rng, canvas, grid)
    if rng.random() < 0.06:
        frame(rng, canvas)
    return Picture(
        image=finish(rng, canvas, grid), left=left, right=right, kind=kind, visible=visible
    )


def _paint_landscape(
    rng: Rng, canvas: Array, grid: tuple[Array, Array]
) -> tuple[str, float, float]:
    centre = (
        rng.uniform(0.1, 0.9) if rng.random() < 0.8 else np.clip(rng.normal(0.5, 0.12), 0.1, 0.9)
    )
    tilt = np.radians(rng.normal(0, 1.2) if rng.random() < 0.6 else rng.uniform(-20, 20))
    slope = np.tan(tilt)
    if abs(slope) / 2 > min(centre, 1 - centre) - 0.03:
        tilt = slope = 0.0
    x, y = grid[0] - 0.5, grid[1] - centre
    u = np.cos(tilt) * x + np.sin(tilt) * y
    v = np.cos(tilt) * y - np.sin(tilt) * x
    rim, sun_u = paint_sky(rng, canvas, u, v)
    kind = rng.choice(["sea", "land", "rolling"], p=[0.36, 0.42, 0.22])
    tall = paint_far_layers(rng, canvas, u, v, rim)
    if rng.random() < 0.25:
        canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.7, 3.5))
    shift = 0.0
    if kind == "sea":
        paint_water(rng, canvas, u, v, rim, sun_u)
        if rng.random() < 0.35:
            paint_shore(rng, canvas, u, v)
    elif kind == "land":
        paint_ground(rng, canvas, u, v, rim)
        shift = 0.3 * min(tall, 0.08)
    else:
        paint_rolling(rng, canvas, u, v)
        shift = 0.3 * min(tall, 0.06)
    return str(kind), float(centre - shift), float(slope)


def _visible_share(bare: Array, canvas: Array, centre: float, slope: float) -> float:
    """Share of the columns whose pixels at the line survive, and where a line is to be seen at all."""
    columns = np.arange(SIDE_PX)
    rows = ((centre + slope * ((columns + 0.5) / SIDE_PX - 0.5)) * SIDE_PX).astype(int)
    above, below = (np.clip(rows + step, 0, SIDE_PX - 1) for step in (-4, 4))
    kept = np.abs(bare - canvas).mean(-1)[[above, below], columns].max(0) < 0.12
    contrast = np.abs(bare[above, columns] - bare[below, columns]).mean()
    return float(kept.mean()) if contrast > 0.015 else 0.0


def _stand_things(
    rng: Rng, canvas: Array, grid: tuple[Array, Array], centre: float, slope: float
) -> None:
    if rng.random() < 0.14:
        x = rng.uniform(0.1, 0.9)
        base = centre + slope * (x - 0.5) + rng.uniform(0.0, 0.05)
        monument(rng, canvas, grid, x, base)
    for _ in range(rng.choice([0, 1, 2, 4, 9], p=[0.3, 0.25, 0.2, 0.15, 0.1])):
        x = rng.uniform(0, 1)
        depth = rng.uniform(0, 1.0) ** 2 * (1.05 - centre)
        base = centre + slope * (x - 0.5) + depth
        tall = (0.01 + depth) * rng.uniform(0.3, 2.5) + rng.uniform(0, 0.05)
        stand(rng, canvas, grid, x, base, min(tall, 0.9))
    if rng.random() < 0.22:
        canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.7, 4))
    chance = rng.random()
    if chance < 0.13:
        bust(rng, canvas, grid)
    elif chance < 0.3:
        stand(
            rng, canvas, grid, rng.uniform(0.1, 0.9), rng.uniform(0.85, 1.3), rng.uniform(0.4, 1.1)
        )
    elif chance < 0.38:
        scatter(rng, canvas, grid, int(rng.integers(2, 14)), 0.03, 0.3)
    if rng.random() < 0.22:
        fringe(rng, canvas, grid)
    if rng.random() < 0.07:
        write(rng, canvas)
