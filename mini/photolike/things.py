"""Things that stand in front: trees, people, buildings, boats, busts, leaves, frames, text."""

import string

import cv2
import numpy as np

from .noise import Array, Rng, any_colour, field, mix, near, over, textured

SKIN = ((0.85, 0.65, 0.52), (0.95, 0.78, 0.68), (0.55, 0.36, 0.25), (0.35, 0.22, 0.16))


def stencil(side: int, shapes: list[Array], soft_px: float = 0.8) -> Array:
    """Coverage 0..1 of polygons given as (n 2) corner lists in shares of the side."""
    mask = np.zeros((side, side), np.uint8)
    for shape in shapes:
        points = np.round(shape * side * 16).astype(np.int32)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
    if soft_px > 0.9:
        mask = cv2.GaussianBlur(mask, (0, 0), soft_px)
    return mask.astype(np.float32) / 255


def oval(
    x: float, y: float, rx: float, ry: float, turn: float = 0.0, lumps: Rng | None = None
) -> Array:
    """Corners of an ellipse; with a generator its outline is lumpy."""
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    radius = np.ones_like(t)
    if lumps is not None:
        for k in range(2, 6):
            radius += lumps.normal(0, 0.22 / k) * np.sin(k * t + lumps.uniform(0, 7))
    px, py = rx * radius * np.cos(t), ry * radius * np.sin(t)
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([x + c * px - s * py, y + s * px + c * py], -1)


def box(x0: float, y0: float, x1: float, y1: float) -> Array:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def material(rng: Rng, grid: tuple[Array, Array], colour: Array | None = None) -> Array:
    """A surface: textured, lit from one side."""
    x, y = grid
    colour = any_colour(rng) if colour is None else colour
    grain = field(rng, x * rng.uniform(0.3, 1), y * rng.uniform(0.3, 1), rng.uniform(0.3, 3))
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.8) * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
    return np.clip(
        textured(rng, colour, grain, 10 ** rng.uniform(-1.5, 0.1)) * light[..., None], 0, 1
    )


def _person(rng: Rng, x: float, base: float, tall: float) -> list[tuple[list[Array], Array]]:
    w = tall * rng.uniform(0.13, 0.2)
    top, legs = any_colour(rng), near(rng, (0.2, 0.2, 0.25), 0.1)
    head = oval(x, base - 0.92 * tall, 0.065 * tall, 0.085 * tall)
    torso = np.array(
        [
            [x - w, base - 0.82 * tall],
            [x + w, base - 0.82 * tall],
            [x + w * 0.7, base - 0.42 * tall],
            [x - w * 0.7, base - 0.42 * tall],
        ]
    )
    gap = rng.uniform(0.1, 0.9) * w
    left = np.array(
        [
            [x - w * 0.7, base - 0.44 * tall],
            [x, base - 0.44 * tall],
            [x - gap * 0.6, base],
            [x - gap - w * 0.3, base],
        ]
    )
    right = left * [-1, 1] + [2 * x, 0]
    if rng.random() < 0.3:  # a dress or a coat
        left = np.array(
            [
                [x - w * 0.6, base - 0.5 * tall],
                [x + w * 0.6, base - 0.5 * tall],
                [x + w * 1.5, base],
                [x - w * 1.5, base],
            ]
        )
        right, legs = left, top
    return [([left, right], legs), ([torso], top), ([head], near(rng, SKIN[rng.integers(4)], 0.04))]


def _animal(rng: Rng, x: float, base: float, tall: float) -> list[tuple[list[Array], Array]]:
    coat = near(
        rng, ((0.45, 0.3, 0.18), (0.9, 0.88, 0.84), (0.12, 0.1, 0.1))[rng.integers(3)], 0.05
    )
    face = rng.choice([-1, 1])
    body = oval(x, base - 0.6 * tall, 0.55 * tall, 0.25 * tall, 0, rng)
    neck = oval(x + face * 0.55 * tall, base - 0.85 * tall, 0.12 * tall, 0.28 * tall, face * 0.5)
    head = oval(x + face * 0.72 * tall, base - 1.05 * tall, 0.2 * tall, 0.12 * tall, face * 0.4)
    legs = [
        box(x + d * tall, base - 0.5 * tall, x + (d + 0.08) * tall, base)
        for d in (-0.42, -0.28, 0.2, 0.36)
    ]
    return [(legs, coat * 0.8), ([body, neck, head], coat)]


def _tree(rng: Rng, x: float, base: float, tall: float) -> list[tuple[list[Array], Array]]:
    leaf = near(
        rng,
        ((0.15, 0.28, 0.1), (0.3, 0.4, 0.12), (0.6, 0.35, 0.1), (0.06, 0.08, 0.05))[
            rng.integers(4)
        ],
        0.05,
    )
    trunk = box(x - 0.03 * tall, base - 0.6 * tall, x + 0.03 * tall, base)
    if rng.random() < 0.3:
        crown = [
            np.array(
                [
                    [x, base - tall * (1 - 0.2 * k)],
                    [x - tall * (0.1 + 0.08 * k), base - tall * (0.62 - 0.2 * k)],
                    [x + tall * (0.1 + 0.08 * k), base - tall * (0.62 - 0.2 * k)],
                ]
            )
            for k in range(3)
        ]
    else:
        crown = [
            oval(
                x + rng.normal(0, 0.16) * tall,
                base - tall * rng.uniform(0.5, 0.85),
                tall * rng.uniform(0.12, 0.3),
                tall * rng.uniform(0.1, 0.22),
                0,
                rng,
            )
            for _ in range(rng.integers(2, 7))
        ]
    return [([trunk], near(rng, (0.2, 0.14, 0.1), 0.04)), (crown, leaf)]


def _house(rng: Rng, x: float, base: float, tall: float) -> list[tuple[list[Array], Array]]:
    w = tall * rng.uniform(0.3, 1.3)
    wall = box(x - w, base - 0.65 * tall, x + w, base)
    roof = np.array(
        [
            [x - w * 1.1, base - 0.65 * tall],
            [x - w * rng.uniform(0, 0.7), base - tall],
            [x + w * rng.uniform(0, 0.7), base - tall],
            [x + w * 1.1, base - 0.65 * tall],
        ]
    )
    panes = [
        box(x + a * w - 0.09 * tall, base - 0.5 * tall, x + a * w + 0.09 * tall, base - 0.25 * tall)
        for a in (-0.6, 0, 0.6)
    ]
    return [
        ([wall], any_colour(rng)),
        ([roof], near(rng, (0.35, 0.22, 0.18), 0.1)),
        (panes, near(rng, (0.15, 0.18, 0.2), 0.1)),
    ]


def _tower(rng: Rng, x: float, base: float, tall: float) -> list[tuple[list[Array], Array]]:
    w, top = tall * rng.uniform(0.02, 0.16), rng.uniform(0, 1.0)
    shape = np.array(
        [[x - w, base], [x - w * top, base - tall], [x + w * top, base - tall], [x + w, base]]
    )
    parts = [([shape], near(rng, (0.55, 0.5, 0.45), 0.15))]
    if rng.random() < 0.35:  # sails of a windmill or turbine
        hub, turn = np.array([x, base - tall * 0.92]), rng.uniform(0, 2)
        blades = []
        for k in range(rng.integers(3, 5)):
            d = np.array([np.cos(turn + k * 1.571), np.sin(turn + k * 1.571)])
            n = np.array([-d[1], d[0]]) * tall * 0.03
            blades.append(
                np.array(
                    [
                        hub + n * 0.3,
                        hub + d * tall * 0.5 + n,
                        hub + d * tall * 0.5 - n,
                        hub - n * 0.3,
                    ]
                )
            )
        parts.append((blades, near(rng, (0.6, 0.58, 0.55), 0.2)))
    return parts


def _boat(rng: Rng, x: float, base: float, tall: float) -> list[tuple[list[Array], Array]]:
    hull = np.array(
        [
            [x - 0.5 * tall, base - 0.2 * tall],
            [x + 0.6 * tall, base - 0.22 * tall],
            [x + 0.35 * tall, base],
            [x - 0.4 * tall, base],
        ]
    )
    sail = np.array(
        [[x, base - tall], [x + 0.45 * tall, base - 0.26 * tall], [x, base - 0.26 * tall]]
    )
    return [
        ([hull], any_colour(rng)),
        (
            [sail]
            if rng.random() < 0.6
            else [box(x - 0.2 * tall, base - 0.4 * tall, x + 0.2 * tall, base - 0.2 * tall)],
            near(rng, (0.9, 0.9, 0.88), 0.05),
        ),
    ]


def _lump(rng: Rng, x: float, base: float, tall: float) -> list[tuple[list[Array], Array]]:
    colour = any_colour(rng) if rng.random() < 0.4 else near(rng, (0.3, 0.3, 0.28), 0.1)
    return [
        ([oval(x, base - tall * 0.3, tall * rng.uniform(0.3, 0.9), tall * 0.4, 0, rng)], colour)
    ]


STANDING = (_person, _animal, _tree, _tree, _house, _tower, _boat, _lump, _lump)


def stand(
    rng: Rng, canvas: Array, grid: tuple[Array, Array], x: float, base: float, tall: float
) -> None:
    """Put one random thing with its foot at (x, base), `tall` shares of the side high."""
    parts = STANDING[rng.integers(len(STANDING))](rng, x, base, tall)
    dark = rng.random() < 0.2
    if rng.random() < 0.5:
        shadow = oval(x + rng.uniform(-0.3, 0.3) * tall, base, 0.4 * tall, 0.04 * tall)
        over(canvas, canvas * 0.4, stencil(canvas.shape[0], [shadow], 2.0) * 0.7)
    for shapes, colour in parts:
        paint = material(rng, grid, np.float32(0.03) + 0.1 * colour if dark else colour)
        over(canvas, paint, stencil(canvas.shape[0], shapes))


def monument(rng: Rng, canvas: Array, grid: tuple[Array, Array], x: float, base: float) -> None:
    """A large building: wings, rows of openings, towers and domes."""
    side, stone = (
        canvas.shape[0],
        near(rng, ((0.75, 0.66, 0.52), (0.55, 0.5, 0.46), (0.85, 0.83, 0.8))[rng.integers(3)], 0.1),
    )
    w, tall = rng.uniform(0.1, 0.45), rng.uniform(0.1, 0.45)
    shapes = [box(x - w, base - tall, x + w, base)]
    for _ in range(rng.integers(0, 6)):
        tx, tw, th = x + rng.uniform(-w, w), rng.uniform(0.01, 0.09), tall * rng.uniform(1.0, 1.9)
        shapes.append(box(tx - tw, base - th, tx + tw, base))
        shapes.append(oval(tx, base - th, tw * 1.1, tw * rng.uniform(0.4, 2.0)))
    over(canvas, material(rng, grid, stone), stencil(side, shapes))
    columns, rows = rng.integers(2, 14), rng.integers(1, 6)
    pitch = 2 * w / columns
    holes = [
        box(
            x - w + (i + 0.3) * pitch,
            base - tall * (j + 0.75) / rows,
            x - w + (i + 0.7) * pitch,
            base - tall * (j + 0.2) / rows,
        )
        for i in range(columns)
        for j in range(rows)
    ]
    over(canvas, canvas * rng.uniform(0.2, 0.7), stencil(side, holes))


def bust(rng: Rng, canvas: Array, grid: tuple[Array, Array]) -> None:
    """Head and shoulders, close to the camera."""
    x, y, r = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.6), rng.uniform(0.08, 0.3)
    hair, skin = near(rng, (0.2, 0.14, 0.1), 0.12), near(rng, SKIN[rng.integers(4)], 0.05)
    side = canvas.shape[0]
    long_hair = oval(
        x,
        y + r * rng.uniform(-0.2, 0.9),
        r * rng.uniform(0.9, 1.4),
        r * rng.uniform(1.1, 2.0),
        0,
        rng,
    )
    shoulders = np.concatenate(
        [
            oval(x, y + r * 3.1, r * 2.4, r * 1.5)[18:],
            box(x + r * 2.4, y + r * 3, x - r * 2.4, y + r * 12)[[1, 2]] * [1, 1],
        ]
    )
    shoulders = np.array(
        [
            [x - r * 0.4, y + r],
            [x + r * 0.4, y + r],
            [x + r * 0.6, y + r * 1.6],
            [x + r * 1.9, y + r * 2.1],
            [x + r * 2.4, 1.6],
            [x - r * 2.4, 1.6],
            [x - r * 1.9, y + r * 2.1],
            [x - r * 0.6, y + r * 1.6],
        ]
    )
    parts = [
        ([long_hair], hair),
        ([shoulders], any_colour(rng)),
        ([oval(x, y, r * 0.78, r, rng.normal(0, 0.15))], skin),
    ]
    parts.append(([oval(x, y - r * 0.75, r * 0.85, r * 0.5, 0, rng)], hair))
    for shapes, colour in parts:
        over(canvas, material(rng, grid, colour), stencil(side, shapes, rng.uniform(0.5, 2)))
    eyes = [oval(x + d * r * 0.33, y - 0.05 * r, r * 0.12, r * 0.06) for d in (-1, 1)] + [
        oval(x, y + r * 0.5, r * 0.22, r * 0.07)
    ]
    over(canvas, skin * 0.35, stencil(side, eyes))


def scatter(
    rng: Rng,
    canvas: Array,
    grid: tuple[Array, Array],
    count: int,
    low: float,
    high: float,
    colours: list[Array] | None = None,
) -> None:
    """Dead leaves: opaque shapes with power-law sizes anywhere in the frame, small ones on top."""
    side = canvas.shape[0]
    sizes = np.sort(low * (1 - rng.random(count) * (1 - (low / high) ** 1.5)) ** (-1 / 1.5))[::-1]
    for size in sizes:
        x, y = rng.uniform(-0.05, 1.05, 2)
        colour = (
            any_colour(rng)
            if colours is None
            else near(rng, tuple(colours[rng.integers(len(colours))]), 0.06)
        )
        kind = rng.random()
        if kind < 0.5:
            shape = oval(x, y, size * rng.uniform(0.4, 1), size, rng.uniform(0, 3.2), rng)
        else:
            turn = rng.uniform(0, 3.2) if kind < 0.85 else 0.0
            corner = oval(x, y, size, size * rng.uniform(0.2, 1), turn)
            shape = corner[np.sort(rng.choice(36, rng.integers(3, 6), replace=False))]
        alpha = stencil(side, [shape], 0.5 if rng.random() < 0.8 else rng.uniform(1, 4))
        shade = 1 + rng.uniform(0, 0.6) * ((grid[0] - x) + (grid[1] - y)) / max(size, 0.05) * 0.3
        over(canvas, np.clip(colour * shade[..., None], 0, 1), alpha)


def fringe(rng: Rng, canvas: Array, grid: tuple[Array, Array]) -> None:
    """Something at a frame edge: foliage from above, a wall or trunk at the side, grass in front."""
    x, y = grid
    edge = rng.choice(["left", "right", "top", "bottom"], p=[0.3, 0.3, 0.15, 0.25])
    depth = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[edge]
    along = y if edge in ("left", "right") else x
    reach = rng.uniform(0.03, 0.3)
    ragged = rng.choice([0.0, 0.1, 0.3]) * (
        field(rng, along, depth * rng.uniform(0, 1), rng.uniform(0.2, 2)) - 0.5
    )
    slant = rng.uniform(-0.3, 0.3) * (along - 0.5)
    alpha = np.clip((reach + ragged + slant - depth) * canvas.shape[0] / rng.uniform(1, 8), 0, 1)
    over(canvas, material(rng, grid), alpha)


def write(rng: Rng, canvas: Array) -> None:
    """Letters laid over the picture, as on thumbnails and posters."""
    side = canvas.shape[0]
    for _ in range(rng.integers(1, 4)):
        text = "".join(rng.choice(list(string.ascii_letters + "   "), rng.integers(3, 16)))
        size, thick = rng.uniform(0.25, 1.4) * side / 160, int(rng.integers(1, 4))
        ink = np.zeros((side, side), np.uint8)
        place = (int(rng.uniform(-0.1, 0.6) * side), int(rng.uniform(0.08, 0.98) * side))
        cv2.putText(ink, text, place, int(rng.integers(0, 8)), size, 255, thick, cv2.LINE_AA)
        over(
            canvas,
            np.float32(rng.choice([0.02, 0.98])) if rng.random() < 0.7 else any_colour(rng),
            ink.astype(np.float32) / 255,
        )


def frame(rng: Rng, canvas: Array) -> None:
    """Letterbox bars or a border around the picture; the caller moves the label if it shrinks."""
    side = canvas.shape[0]
    bar = int(rng.uniform(0.03, 0.16) * side)
    colour = np.float32(rng.choice([0.0, 1.0])) if rng.random() < 0.7 else any_colour(rng)
    if rng.random() < 0.7:
        canvas[:bar], canvas[side - bar :] = colour, colour
    if rng.random() < 0.5:
        canvas[:, :bar], canvas[:, side - bar :] = colour, colour


def blend_plain(rng: Rng, grid: tuple[Array, Array]) -> Array:
    """A two-colour gradient in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    t = 0.5 + (np.cos(angle) * (grid[0] - 0.5) + np.sin(angle) * (grid[1] - 0.5)) * rng.uniform(
        0.3, 1.4
    )
    return mix(any_colour(rng), any_colour(rng), np.clip(t, 0, 1))
