"""What lies on and below the horizon: distant layers, water, and ground in perspective."""

import cv2
import numpy as np

from .noise import (
    Array,
    Rng,
    any_colour,
    field,
    ground_field,
    mix,
    near,
    over,
    profile,
    soft_step,
    textured,
)

GROUNDS = {
    "grass": (0.28, 0.42, 0.14),
    "meadow": (0.45, 0.55, 0.22),
    "dark grass": (0.13, 0.22, 0.08),
    "dry": (0.66, 0.56, 0.32),
    "wheat": (0.80, 0.64, 0.30),
    "sand": (0.82, 0.70, 0.52),
    "red desert": (0.65, 0.34, 0.18),
    "snow": (0.90, 0.92, 0.96),
    "soil": (0.30, 0.21, 0.14),
    "asphalt": (0.35, 0.35, 0.36),
    "paving": (0.62, 0.58, 0.53),
    "rock": (0.42, 0.40, 0.38),
    "black": (0.03, 0.03, 0.03),
}
SEAS = (
    (0.10, 0.28, 0.42),
    (0.05, 0.12, 0.22),
    (0.16, 0.40, 0.45),
    (0.40, 0.47, 0.52),
    (0.25, 0.6, 0.65),
)
FAR = (
    (0.20, 0.26, 0.16),
    (0.30, 0.30, 0.34),
    (0.42, 0.36, 0.30),
    (0.15, 0.18, 0.22),
    (0.3, 0.4, 0.55),
)


def paint_far_layers(rng: Rng, canvas: Array, u: Array, v: Array, rim: Array) -> float:
    """Draw 0 to 4 hazy layers standing on the horizon; returns the mean height of the tallest."""
    count = rng.choice([0, 1, 2, 3, 4], p=[0.27, 0.33, 0.22, 0.12, 0.06])
    amplitude = 10 ** rng.uniform(-2.0, -0.55)
    tallest = 0.0
    for index in range(count):
        kind = rng.choice(["mountain", "hill", "trees", "city"], p=[0.35, 0.2, 0.3, 0.15])
        share = amplitude * (1 - index / (count + 0.5))
        if kind == "trees":
            share = min(share, 10 ** rng.uniform(-2.0, -0.9))
        height = _heights(rng, kind, u, share)
        tallest = max(tallest, float(height.mean()))
        haze = np.clip(rng.uniform(0.0, 1.0) * (1 - index / count), 0, 0.92)
        _paint_layer(rng, canvas, u, v, height, kind, rim, haze)
    return tallest


def _heights(rng: Rng, kind: str, u: Array, amplitude: float) -> Array:
    if kind == "city":
        return _skyline(rng, u, amplitude)
    scale = {"mountain": rng.uniform(0.1, 0.6), "hill": rng.uniform(0.05, 0.25), "trees": 1.5}[kind]
    rough = {"mountain": rng.uniform(0.0, 0.25), "hill": 0.0, "trees": rng.uniform(0.3, 0.9)}[kind]
    shape = profile(rng, u, scale, rough)
    if kind == "trees":
        lumps = profile(rng, u, rng.uniform(0.2, 1.0), 0.1)
        return amplitude * (0.35 + 0.5 * shape + 0.7 * np.clip(lumps * 2 - 0.8, 0, 1))
    if rng.random() < 0.4:
        shape = 1 - np.abs(shape * 2 - 1)
    sunk = rng.uniform(0.0, 0.45)  # a layer may leave gaps where the bare horizon shows
    return amplitude * np.clip((shape - sunk) * 1.6, 0, 2)


def _skyline(rng: Rng, u: Array, amplitude: float) -> Array:
    width = rng.uniform(0.02, 0.12)
    heights = rng.uniform(0.15, 1.0, 128) ** rng.uniform(1, 2.5)
    index = np.clip(((u + 1.5) / width).astype(int), 0, None) % 128
    return (amplitude * 1.3 * heights[index]).astype(np.float32)


def _paint_layer(
    rng: Rng, canvas: Array, u: Array, v: Array, height: Array, kind: str, rim: Array, haze: float
) -> None:
    colour = near(rng, FAR[rng.integers(len(FAR))], 0.06)
    grain = field(rng, u, v * rng.uniform(0.6, 1.5), rng.uniform(0.5, 2.5), rng.uniform(0.2, 0.8))
    paint = textured(rng, colour, grain, rng.uniform(0.1, 0.9))
    if kind == "mountain" and rng.random() < 0.35:
        snow = np.clip((-v - rng.uniform(0.3, 0.8) * height.max()) * 25 + (grain - 0.5) * 8, 0, 1)
        paint = mix(paint, np.float32(0.93), snow)
    if kind == "city":
        lit = (np.sin(u * rng.uniform(200, 500)) > 0) & (np.sin(v * rng.uniform(200, 500)) > 0)
        paint = paint * (1 + rng.uniform(-0.5, 1.0) * lit[..., None])
    paint = mix(np.clip(paint, 0, 1), rim, np.full(u.shape, haze, np.float32))
    over(canvas, paint, soft_step(height + v, u.shape[0], rng.uniform(0.8, 2.5)))


def paint_water(rng: Rng, canvas: Array, u: Array, v: Array, rim: Array, sun_u: float) -> None:
    """Sea or lake below the horizon: swell in perspective, glitter, often the mirrored sky."""
    side = u.shape[0]
    base = near(rng, SEAS[rng.integers(len(SEAS))], 0.05) * (0.3 + 0.8 * rim.mean())
    waves = ground_field(
        rng, u * rng.uniform(0.15, 0.7), v, rng.uniform(0.3, 2.0), rng.uniform(0.2, 0.7)
    )
    paint = textured(
        rng,
        mix(rim, base, np.full(v.shape, rng.uniform(0.3, 1), np.float32)),
        waves,
        rng.uniform(0.1, 0.9),
    )
    nearness = np.clip(v / rng.uniform(0.2, 0.8), 0, 1)
    paint = mix(paint, paint * rng.uniform(0.4, 1.0), nearness)
    if rng.random() < 0.45:
        mirrored = _mirror(rng, canvas, u, v, waves)
        paint = mix(
            paint,
            mirrored * rng.uniform(0.6, 1.0),
            np.full(v.shape, rng.uniform(0.3, 0.95), np.float32),
        )
    if rng.random() < 0.35:
        path = np.exp(-(((u - sun_u) / (0.03 + rng.uniform(0.1, 0.6) * np.maximum(v, 0))) ** 2))
        over(paint, np.float32([1, 0.93, 0.8]), np.clip(path * (waves * 2.4 - 0.7), 0, 1))
    if rng.random() < 0.2:
        over(paint, np.float32(0.95), np.clip((waves - rng.uniform(0.6, 0.75)) * 9, 0, 1))
    over(canvas, paint, soft_step(v, side, rng.uniform(0.7, 3)))


def _mirror(rng: Rng, canvas: Array, u: Array, v: Array, waves: Array) -> Array:
    """The picture above the line, folded down at it and shaken by the waves."""
    side = u.shape[0]
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    shake = rng.uniform(0, 0.06) * (waves - 0.5) * side
    source = rows - 2 * v * side + shake * 1.5
    return cv2.remap(
        canvas,
        (columns + shake * 0.5).astype(np.float32),
        source.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def paint_ground(rng: Rng, canvas: Array, u: Array, v: Array, rim: Array) -> None:
    """Land below the horizon: texture in perspective, patches, roads and rows, mist at the far end."""
    side = u.shape[0]
    paint = _material(rng, u, v)
    if rng.random() < 0.4:
        second = _material(rng, u, v)
        patches = ground_field(rng, u, v, rng.uniform(0.05, 0.4), 0.1)
        paint = mix(paint, second, np.clip((patches - rng.uniform(0.4, 0.6)) * 14, 0, 1))
    if rng.random() < 0.3:
        _paint_strip(rng, paint, u, v)
    if rng.random() < 0.15:
        rows = np.sin(
            (u - rng.uniform(-0.5, 0.5)) / np.maximum(v + 0.02, 0.02) * rng.uniform(5, 30)
        )
        over(
            paint,
            paint * rng.uniform(0.4, 0.8),
            (rows > 0).astype(np.float32) * np.clip(v * 12, 0, 1),
        )
    light = field(rng, u, v, rng.uniform(0.1, 0.5), 0.0)
    paint = paint * (1 + rng.uniform(0, 0.9) * (light - 0.5))[..., None]
    if rng.random() < 0.35:
        paint = mix(
            paint, rim, np.exp(-np.maximum(v, 0) / rng.uniform(0.01, 0.25)) * rng.uniform(0.2, 0.9)
        )
    waviness = (
        rng.choice([0.0, 0.006, 0.015]) * (profile(rng, u, rng.uniform(0.3, 2), 0.2) - 0.5) * 2
    )
    over(canvas, np.clip(paint, 0, 1), soft_step(v + waviness, side, rng.uniform(0.7, 4)))


def _material(rng: Rng, u: Array, v: Array) -> Array:
    names = list(GROUNDS)
    colour = (
        any_colour(rng)
        if rng.random() < 0.1
        else near(rng, GROUNDS[names[rng.integers(len(names))]], 0.05)
    )
    grain = ground_field(rng, u, v, rng.uniform(0.1, 2.5), rng.uniform(0.2, 1.0))
    if rng.random() < 0.4:
        blades = field(
            rng, u, v * rng.uniform(0.15, 0.6), rng.uniform(1.0, 3.0), rng.uniform(0.4, 1.0)
        )
        grain = grain * 0.5 + 0.5 * (0.5 + (blades - 0.5) * np.clip(v * 4, 0, 1))
    return textured(rng, colour, grain, rng.uniform(0.2, 1.1))


def _paint_strip(rng: Rng, paint: Array, u: Array, v: Array) -> None:
    """A road, path or river: converging to the horizon, or winding."""
    depth = np.maximum(v, 0)
    bend = rng.uniform(-0.4, 0.4) * np.sin(rng.uniform(1, 5) * depth * 6) * depth
    centre = rng.uniform(-0.4, 0.4) + rng.uniform(-1.5, 1.5) * depth + bend
    half = 0.003 + rng.uniform(0.08, 0.6) * depth
    inside = soft_step(half - np.abs(u - centre), u.shape[0], 2)
    colour = near(rng, (0.5, 0.47, 0.43), 0.12)
    over(paint, textured(rng, colour, ground_field(rng, u, v, 1.0, 0.7), 0.3), inside)


def paint_shore(rng: Rng, canvas: Array, u: Array, v: Array) -> None:
    """A beach, bank or field edge in front: an edge well below the horizon, often slanted."""
    reach = rng.uniform(0.08, 0.5)
    edge = (
        reach
        + rng.uniform(-0.6, 0.6) * u
        + 0.15 * (profile(rng, u, rng.uniform(0.2, 1.0), 0.1) - 0.5)
    )
    edge = np.maximum(edge, 0.02)
    alpha = soft_step(v - edge, u.shape[0], rng.uniform(1, 6))
    over(canvas, _material(rng, u, v), alpha)
    if rng.random() < 0.5:
        foam = np.exp(-(((v - edge) / rng.uniform(0.004, 0.03)) ** 2))
        over(canvas, np.float32(0.96), np.clip(foam * rng.uniform(0.4, 1.2), 0, 1))


def paint_rolling(rng: Rng, canvas: Array, u: Array, v: Array) -> None:
    """Near land whose outline itself is the horizon: dunes, a field's brow, a rough crest."""
    amplitude = rng.uniform(0.004, 0.035)
    outline = amplitude * (profile(rng, u, rng.uniform(0.1, 2.0), rng.uniform(0, 0.7)) - 0.5) * 2
    alpha = soft_step(v + outline, u.shape[0], rng.uniform(0.8, 3))
    over(canvas, _material(rng, u, np.maximum(v, 0) + 0.05), alpha)
