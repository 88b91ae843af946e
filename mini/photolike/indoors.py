"""Pictures without a horizon: rooms, tables, objects, textures, facades, aerial views, pages, skies."""

import cv2
import numpy as np

from .land import paint_rolling
from .noise import Array, Rng, any_colour, field, ground_field, mix, near, over, soft_step
from .sky import paint_sky
from .things import blend_plain, box, bust, fringe, material, oval, scatter, stand, stencil, write

Grid = tuple[Array, Array]


def backdrop(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Something soft behind: a gradient, a blurred clutter, a cloudy tone, a sky."""
    kind = rng.choice(["plain", "blur", "tone", "bokeh"])
    canvas[:] = blend_plain(rng, grid)
    if kind == "blur":
        scatter(rng, canvas, grid, int(rng.integers(10, 60)), 0.05, 0.5)
        canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(3, 14))
    elif kind == "tone":
        grain = field(rng, *grid, rng.uniform(0.2, 1.5), rng.uniform(0, 0.5))
        canvas[:] = mix(canvas, any_colour(rng), np.clip(grain * 2 - 0.6, 0, 1))
    elif kind == "bokeh":
        for _ in range(rng.integers(5, 40)):
            spot = oval(*rng.random(2), *[rng.uniform(0.01, 0.09)] * 2)
            over(
                canvas,
                np.minimum(any_colour(rng) + 0.3, 1),
                stencil(len(canvas), [spot], 1.5) * rng.uniform(0.2, 0.8),
            )


def portrait(rng: Rng, canvas: Array, grid: Grid) -> None:
    backdrop(rng, canvas, grid)
    for _ in range(rng.integers(1, 3)):
        bust(rng, canvas, grid)


def texture(rng: Rng, canvas: Array, grid: Grid) -> None:
    """A surface seen straight on: grain, stripes, waves, bricks, tiles, dots."""
    x, y = grid
    turn = rng.uniform(0, np.pi) if rng.random() < 0.6 else rng.choice([0, np.pi / 2])
    p, q = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    stretch = rng.choice([1, 1, 3, 10])
    grain = field(rng, p / stretch, q, 10 ** rng.uniform(-0.7, 0.6))
    kind = rng.choice(["grain", "stripes", "bricks", "cells"], p=[0.5, 0.2, 0.15, 0.15])
    if kind == "stripes":
        bend = rng.choice([0.0, 0.2]) * (field(rng, p, q, 0.3, 0.0) - 0.5)
        wave = np.sin((q + bend) * rng.uniform(10, 150) + rng.uniform(0, 7))
        grain = grain * 0.3 + 0.7 * (wave > rng.uniform(-0.8, 0.8))
    elif kind == "bricks":
        rows, n = q * rng.uniform(4, 20), rng.uniform(2, 12)
        seam = (rows % 1 < 0.1) | ((p * n + 0.5 * (np.floor(rows) % 2)) % 1 < 0.06)
        grain = grain * 0.5 + 0.5 * seam
    elif kind == "cells":
        grain = 0.3 * grain + 0.7 * (
            np.abs(np.sin(p * rng.uniform(8, 60)) * np.sin(q * rng.uniform(8, 60)))
            > rng.uniform(0.1, 0.9)
        )
    canvas[:] = mix(
        any_colour(rng),
        any_colour(rng),
        np.clip((grain - 0.5) * rng.uniform(0.5, 4) + 0.5, 0, 1).astype(np.float32),
    )
    if rng.random() < 0.5:
        canvas *= (1 + rng.uniform(0, 1.2) * (field(rng, x, y, rng.uniform(0.1, 0.5), 0.0) - 0.5))[
            ..., None
        ]


def clutter(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Close-ups and heaps: dead leaves, often of a few colours."""
    texture(rng, canvas, grid)
    colours = [any_colour(rng) for _ in range(rng.integers(1, 6))] if rng.random() < 0.7 else None
    scatter(
        rng,
        canvas,
        grid,
        int(rng.integers(15, 220)),
        rng.uniform(0.01, 0.05),
        rng.uniform(0.1, 0.6),
        colours,
    )


def flower(rng: Rng, canvas: Array, grid: Grid) -> None:
    """A big object with radial parts before a blurred background."""
    backdrop(rng, canvas, grid)
    cx, cy, r = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.5)
    colour, count = any_colour(rng), rng.integers(4, 24)
    for k in range(count):
        a = 2 * np.pi * k / count
        petal = oval(
            cx + np.cos(a) * r * 0.6,
            cy + np.sin(a) * r * 0.6,
            r * 0.5,
            r * rng.uniform(0.1, 0.3),
            a,
        )
        over(
            canvas,
            material(rng, grid, near(rng, tuple(colour), 0.04)),
            stencil(len(canvas), [petal]),
        )
    over(canvas, material(rng, grid), stencil(len(canvas), [oval(cx, cy, r * 0.3, r * 0.3)]))


def product(rng: Rng, canvas: Array, grid: Grid) -> None:
    """One or a few objects on a plain backdrop, a table or a studio sweep."""
    backdrop(rng, canvas, grid)
    edge = 1.1
    if rng.random() < 0.6:
        edge = rng.uniform(0.35, 0.95)
        slope = rng.choice([0.0, rng.uniform(-0.15, 0.15)])
        alpha = soft_step(
            grid[1] - edge - slope * (grid[0] - 0.5), len(canvas), 10 ** rng.uniform(0, 1.6)
        )
        over(canvas, material(rng, grid), alpha)
    foot = min(edge, 0.9)
    for _ in range(rng.integers(1, 4)):
        x, tall, w = rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.6), rng.uniform(0.05, 0.25)
        base = foot + rng.uniform(0, 0.2)
        shapes = (
            [oval(x, base - tall / 2, w, tall / 2, 0, rng)]
            if rng.random() < 0.5
            else [box(x - w, base - tall, x + w, base)]
        )
        over(canvas, canvas * 0.5, stencil(len(canvas), [oval(x, base, w * 1.4, 0.03)], 3.0))
        over(canvas, material(rng, grid), stencil(len(canvas), shapes))
        inner = [oval(x, base - tall * rng.uniform(0.2, 0.8), w * 0.6, tall * 0.15)]
        over(canvas, material(rng, grid), stencil(len(canvas), inner))


def room(rng: Rng, canvas: Array, grid: Grid) -> None:
    """A room in central perspective with windows, frames and furniture."""
    side = len(canvas)
    x0, x1 = rng.uniform(-0.1, 0.35), rng.uniform(0.65, 1.1)
    y0, y1 = rng.uniform(-0.1, 0.3), rng.uniform(0.5, 0.92)
    vx, vy = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.6)
    out = lambda x, y: (vx + (x - vx) * 4, vy + (y - vy) * 4)  # noqa: E731
    wall = near(rng, (0.75, 0.72, 0.68), 0.1) if rng.random() < 0.6 else any_colour(rng)
    canvas[:] = material(rng, grid, wall)
    sides = [
        np.array([(x0, y1), (x1, y1), out(x1, y1), out(x0, y1)]),
        np.array([(x0, y0), (x1, y0), out(x1, y0), out(x0, y0)]),
        np.array([(x0, y0), (x0, y1), out(x0, y1), out(x0, y0)]),
        np.array([(x1, y0), (x1, y1), out(x1, y1), out(x1, y0)]),
    ]
    floor = near(rng, ((0.5, 0.36, 0.24), (0.6, 0.6, 0.6), (0.4, 0.3, 0.3))[rng.integers(3)], 0.08)
    tints = [
        floor,
        np.minimum(wall * 1.15, 1),
        wall * rng.uniform(0.5, 0.95),
        wall * rng.uniform(0.5, 0.95),
    ]
    for shape, tint in zip(sides, tints, strict=True):
        over(canvas, material(rng, grid, np.clip(tint, 0, 1)), stencil(side, [shape]))
    _furnish(rng, canvas, grid, (x0, y0, x1, y1))
    if rng.random() < 0.3:
        bust(rng, canvas, grid)
    elif rng.random() < 0.4:
        stand(
            rng, canvas, grid, rng.uniform(0.2, 0.8), rng.uniform(0.8, 1.1), rng.uniform(0.4, 0.9)
        )


def _furnish(rng: Rng, canvas: Array, grid: Grid, wall: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = wall
    for _ in range(rng.integers(1, 6)):  # windows, pictures, shelves on the wall
        w, h = rng.uniform(0.05, 0.3), rng.uniform(0.01, 0.35)
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        over(
            canvas,
            any_colour(rng),
            stencil(len(canvas), [box(x - 0.01, y - 0.01, x + w + 0.01, y + h + 0.01)]),
        )
        pane = material(rng, grid) if rng.random() < 0.6 else blend_plain(rng, grid) * 0.3 + 0.7
        over(canvas, pane, stencil(len(canvas), [box(x, y, x + w, y + h)]))
    for _ in range(rng.integers(1, 6)):  # furniture on the floor
        x, w, tall = rng.random(), rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.4)
        base = rng.uniform(y1, 1.1)
        colour = any_colour(rng)
        over(
            canvas,
            material(rng, grid, colour),
            stencil(len(canvas), [box(x - w, base - tall, x + w, base)]),
        )
        top = np.array(
            [
                [x - w, base - tall],
                [x + w, base - tall],
                [x + w * 0.8, base - tall * 1.15],
                [x - w * 0.8, base - tall * 1.15],
            ]
        )
        over(canvas, material(rng, grid, np.minimum(colour * 1.3, 1)), stencil(len(canvas), [top]))


def facade(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Buildings filling the frame, seen along a street, from below or straight on."""
    side = len(canvas)
    paint_sky(rng, canvas, grid[0] - 0.5, grid[1] - rng.uniform(0.6, 1.3))
    for _ in range(rng.integers(1, 5)):
        x, w = rng.uniform(-0.2, 1.0), rng.uniform(0.2, 0.9)
        top, keystone = rng.uniform(-0.3, 0.45), rng.uniform(-0.25, 0.4)
        corners = np.float32(
            [
                [x + w * keystone * 0.5, top],
                [x + w * (1 - keystone * 0.5), top + rng.uniform(-0.2, 0.2)],
                [x + w, 1.2],
                [x, 1.2],
            ]
        )
        tile = np.clip(material(rng, grid), 0, 1).copy()
        columns, rows = rng.integers(2, 10), rng.integers(2, 14)
        pane, lit = any_colour(rng) * 0.5, any_colour(rng)
        for i in range(columns):
            for j in range(rows):
                a, b = int((i + 0.25) / columns * side), int((i + 0.75) / columns * side)
                c, d = int((j + 0.25) / rows * side), int((j + 0.8) / rows * side)
                tile[c:d, a:b] = lit if rng.random() < 0.15 else pane
        warp = cv2.getPerspectiveTransform(
            np.float32([[0, 0], [side, 0], [side, side], [0, side]]), corners * side
        )
        alpha = cv2.warpPerspective(np.ones((side, side), np.float32), warp, (side, side))
        over(canvas, cv2.warpPerspective(tile, warp, (side, side)), alpha)
    if rng.random() < 0.5:
        street = np.array([[0.5, rng.uniform(0.5, 0.8)], [1.4, 1.1], [-0.4, 1.1]])
        over(canvas, material(rng, grid, near(rng, (0.4, 0.4, 0.4), 0.05)), stencil(side, [street]))
        for _ in range(rng.integers(0, 5)):
            stand(rng, canvas, grid, rng.random(), rng.uniform(0.75, 1.0), rng.uniform(0.1, 0.5))


def aerial(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Land or coast from above: fields, a shoreline, roads."""
    x, y = grid
    texture(rng, canvas, grid)
    if rng.random() < 0.6:
        coast = field(rng, x, y, rng.uniform(0.1, 0.6), rng.uniform(0, 0.3))
        tilt = rng.uniform(-1, 1) * (x - 0.5) + rng.uniform(-1, 1) * (y - 0.5)
        inside = np.clip((coast + tilt - 0.5) * rng.uniform(15, 60), 0, 1)
        over(canvas, material(rng, grid), inside)
        over(
            canvas,
            np.float32(0.95),
            np.exp(-(((coast + tilt - 0.5) / 0.02) ** 2)) * rng.uniform(0, 1),
        )
    else:
        scatter(
            rng,
            canvas,
            grid,
            int(rng.integers(20, 60)),
            0.08,
            0.5,
            [any_colour(rng) for _ in range(4)],
        )
    for _ in range(rng.integers(0, 3)):
        a, b = rng.uniform(-0.2, 1.2, 2), rng.uniform(-0.2, 1.2, 2)
        n = np.array([a[1] - b[1], b[0] - a[0]]) * rng.uniform(0.005, 0.04)
        over(
            canvas, any_colour(rng), stencil(len(canvas), [np.array([a + n, b + n, b - n, a - n])])
        )


def page(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Screens, charts, logos and collages: flat boxes, rules, letters."""
    canvas[:] = any_colour(rng) if rng.random() < 0.7 else blend_plain(rng, grid)
    for _ in range(rng.integers(0, 14)):
        x, y = rng.uniform(-0.1, 0.95, 2)
        shape = box(x, y, x + rng.uniform(0.05, 0.9), y + rng.uniform(0.01, 0.5))
        if rng.random() < 0.25:
            shape = oval(x, y, rng.uniform(0.02, 0.4), rng.uniform(0.02, 0.4), 0, rng)
        paint = material(rng, grid) if rng.random() < 0.3 else any_colour(rng)
        over(canvas, paint, stencil(len(canvas), [shape]))
    if rng.random() < 0.8:
        write(rng, canvas)


def open_sky(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Looking up: sky alone, or with something standing or flying in it."""
    turn = rng.normal(0, 0.2)
    u, v = grid[0] - 0.5 + turn * grid[1], grid[1] - rng.uniform(1.02, 2.0) + turn * grid[0]
    paint_sky(rng, canvas, u, v)
    if rng.random() < 0.4:
        stand(
            rng, canvas, grid, rng.uniform(0.2, 0.8), rng.uniform(1.0, 1.3), rng.uniform(0.6, 1.3)
        )
    for _ in range(rng.integers(0, 4)):
        shape = oval(
            *rng.random(2), rng.uniform(0.01, 0.2), rng.uniform(0.01, 0.1), rng.uniform(0, 3), rng
        )
        over(canvas, material(rng, grid), stencil(len(canvas), [shape]))
    if rng.random() < 0.25:
        fringe(rng, canvas, grid)


def looking_down(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Ground or water without its far end: an animal in a meadow, a pond, a street's surface."""
    v = grid[1] + rng.uniform(0.12, 1.0)
    paint_rolling(rng, canvas, grid[0] - 0.5, v)
    if rng.random() < 0.4:
        patches = ground_field(rng, grid[0], v, rng.uniform(0.1, 0.6), 0.1)
        over(canvas, material(rng, grid), np.clip((patches - 0.5) * 10, 0, 1))
    for _ in range(rng.integers(0, 6)):
        base = rng.uniform(0.3, 1.1)
        stand(rng, canvas, grid, rng.random(), base, rng.uniform(0.1, 0.6))
    if rng.random() < 0.4:
        canvas[:] = mix(
            canvas, cv2.GaussianBlur(canvas, (0, 0), 3.0), np.clip(1 - 2 * grid[1], 0, 1)
        )


def forest(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Inside a wood: leaves, trunks, a floor without a clear end."""
    leaf = (
        [near(rng, (0.2, 0.3, 0.1), 0.08) for _ in range(3)]
        if rng.random() < 0.7
        else [any_colour(rng) for _ in range(3)]
    )
    backdrop(rng, canvas, grid)
    scatter(rng, canvas, grid, int(rng.integers(60, 200)), 0.015, 0.2, leaf)
    floor = rng.uniform(0.6, 0.95) + 0.15 * (field(rng, grid[0], grid[1], 0.5, 0.4) - 0.5)
    over(canvas, material(rng, grid), soft_step(grid[1] - floor, len(canvas), rng.uniform(4, 30)))
    for _ in range(rng.integers(2, 16)):
        x, w = rng.uniform(-0.05, 1.05), rng.uniform(0.004, 0.06)
        lean = rng.normal(0, 0.06)
        trunk = np.array(
            [[x - w, 1.1], [x + w, 1.1], [x + w * 0.6 + lean, -0.1], [x - w * 0.6 + lean, -0.1]]
        )
        over(
            canvas,
            material(rng, grid, near(rng, (0.25, 0.2, 0.16), 0.08)),
            stencil(len(canvas), [trunk]),
        )
    if rng.random() < 0.4:
        scatter(rng, canvas, grid, int(rng.integers(20, 120)), 0.01, 0.1, leaf)


def glow(rng: Rng, canvas: Array, grid: Grid) -> None:
    """Abstract wallpapers: smooth bands, folds and polygons."""
    x, y = grid
    canvas[:] = blend_plain(rng, grid)
    for _ in range(rng.integers(1, 8)):
        a = rng.uniform(0, 2 * np.pi)
        p = np.cos(a) * (x - 0.5) + np.sin(a) * (y - 0.5)
        bend = rng.uniform(0, 0.5) * (field(rng, x, y, rng.uniform(0.05, 0.4), 0.0) - 0.5)
        curve = rng.uniform(-1.5, 1.5) * (np.cos(a) * (y - 0.5) - np.sin(a) * (x - 0.5)) ** 2
        edge = p + bend + curve - rng.uniform(-0.5, 0.5)
        alpha = soft_step(edge, len(canvas), 10 ** rng.uniform(0, 2)) * rng.uniform(0.3, 1)
        if rng.random() < 0.5:
            alpha *= np.exp(-np.maximum(edge, 0) / rng.uniform(0.03, 0.5))
        over(canvas, any_colour(rng), alpha)


KINDS = {
    portrait: 0.11,
    texture: 0.09,
    clutter: 0.09,
    flower: 0.05,
    product: 0.11,
    room: 0.12,
    facade: 0.08,
    aerial: 0.05,
    page: 0.07,
    open_sky: 0.07,
    looking_down: 0.07,
    forest: 0.05,
    glow: 0.04,
}


def paint_without_horizon(rng: Rng, canvas: Array, grid: Grid) -> str:
    """Fill the canvas with one of the kinds; returns its name."""
    kinds, weights = list(KINDS), np.array(list(KINDS.values()))
    kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    kind(rng, canvas, grid)
    if rng.random() < 0.08:
        write(rng, canvas)
    return kind.__name__
