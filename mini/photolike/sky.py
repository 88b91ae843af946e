"""Skies: gradients, sun, clouds in perspective, stars."""

import numpy as np

from .noise import Array, Rng, any_colour, field, hsv, mix, near, over, soft_step

ZENITH_AND_RIM = {
    "clear": ((0.20, 0.42, 0.80), (0.72, 0.84, 0.95)),
    "deep": ((0.05, 0.20, 0.55), (0.35, 0.60, 0.88)),
    "overcast": ((0.62, 0.65, 0.70), (0.80, 0.81, 0.83)),
    "storm": ((0.22, 0.25, 0.30), (0.55, 0.57, 0.60)),
    "white": ((0.90, 0.92, 0.95), (0.96, 0.96, 0.96)),
    "sunset": ((0.22, 0.25, 0.48), (0.98, 0.62, 0.30)),
    "pink": ((0.50, 0.50, 0.72), (0.95, 0.70, 0.68)),
    "gold": ((0.75, 0.60, 0.35), (0.98, 0.86, 0.60)),
    "red": ((0.35, 0.08, 0.10), (0.95, 0.35, 0.18)),
    "dusk": ((0.06, 0.09, 0.20), (0.35, 0.38, 0.52)),
    "night": ((0.01, 0.01, 0.04), (0.06, 0.08, 0.14)),
    "teal": ((0.10, 0.30, 0.35), (0.55, 0.75, 0.72)),
    "dust": ((0.70, 0.62, 0.50), (0.85, 0.78, 0.66)),
}


def paint_sky(rng: Rng, canvas: Array, u: Array, v: Array) -> tuple[Array, float]:
    """Fill the canvas with sky.

    Returns:
        The colour at the horizon, and the sun's u (also when it is hidden).
    """
    zenith, rim = _colours(rng)
    height = np.clip(-v / rng.uniform(0.3, 1.1), 0, 1) ** rng.uniform(0.5, 1.3)
    canvas[:] = mix(rim, zenith, height)
    sun_u = rng.uniform(-0.7, 0.7)
    if rng.random() < 0.35:
        _paint_sun(rng, canvas, u, v, sun_u)
    for _ in range(rng.choice([0, 1, 2], p=[0.3, 0.45, 0.25])):
        _paint_clouds(rng, canvas, u, v, rim)
    if zenith.mean() < 0.12 and rng.random() < 0.6:
        stars = rng.random(v.shape) ** rng.uniform(60, 400)
        canvas += stars[..., None].astype(np.float32)
    return rim, sun_u


def _colours(rng: Rng) -> tuple[Array, Array]:
    if rng.random() < 0.12:
        return any_colour(rng), any_colour(rng)
    zenith, rim = ZENITH_AND_RIM[rng.choice(list(ZENITH_AND_RIM))]
    return near(rng, zenith, 0.05), near(rng, rim, 0.04)


def _paint_sun(rng: Rng, canvas: Array, u: Array, v: Array, sun_u: float) -> None:
    sun_v = -rng.uniform(-0.02, 0.5)
    distance = np.hypot(u - sun_u, (v - sun_v) * rng.uniform(1, 1.8))
    colour = hsv(rng.uniform(0.03, 0.16), rng.uniform(0, 0.7), 1.0)
    over(canvas, colour, np.exp(-distance / rng.uniform(0.05, 0.35)) * rng.uniform(0.3, 0.9))
    if rng.random() < 0.6:
        side = v.shape[0]
        over(
            canvas,
            np.minimum(colour + 0.3, 1),
            soft_step(rng.uniform(0.01, 0.09) - distance, side, 3),
        )


def _paint_clouds(rng: Rng, canvas: Array, u: Array, v: Array, rim: Array) -> None:
    kind = rng.choice(["plane", "flat", "bands", "heaps"])
    if kind == "plane":
        depth = 1 / np.maximum(-v + rng.uniform(0.03, 0.15), 0.03)
        grain = field(rng, u * depth, depth, rng.uniform(0.04, 0.2), rng.uniform(0.1, 0.5))
    elif kind == "bands":
        grain = field(rng, u * 0.15, v, rng.uniform(0.5, 2.5), rng.uniform(0, 0.5))
    else:
        grain = field(rng, u * rng.uniform(0.5, 1), v, rng.uniform(0.2, 1.2), rng.uniform(0, 0.4))
    cover = rng.uniform(0.35, 0.68)
    sharp = rng.uniform(2, 6) if kind != "heaps" else rng.uniform(6, 20)
    alpha = np.clip((grain - cover) * sharp + 0.3, 0, 1) * rng.uniform(0.3, 1.0)
    shade = field(rng, u, v, rng.uniform(0.4, 1.5), 0.2)
    light = np.clip(rim * 0.4 + rng.uniform(0.35, 0.6), 0, 1)
    dark = light * rng.uniform(0.35, 0.9)
    if rng.random() < 0.3:
        light, dark = dark, light * rng.uniform(0.6, 1)
    over(canvas, mix(dark, light, np.clip(shade * 1.6 - 0.3, 0, 1)), alpha)
