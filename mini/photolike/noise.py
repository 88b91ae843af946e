"""Random fields and colours that the painters share.

Fields are sampled from a small bank of tileable power-law noise, so that a field costs one remap.
Symbols: u, v position along and across the horizon, in units of the side; v > 0 below it.
"""

from functools import lru_cache

import cv2
import numpy as np

TILE_PX = 256
Array = np.ndarray
Rng = np.random.Generator


@lru_cache(maxsize=1)
def _bank() -> list[Array]:
    """Tileable fields with spectra 1/f^beta, mean 0.5, clipped to 0..1; rough ones first."""
    rng = np.random.default_rng(20240)
    fy = np.fft.fftfreq(TILE_PX)[:, None]
    fx = np.fft.rfftfreq(TILE_PX)[None]
    tiles = []
    for index in range(36):
        beta = 0.6 + 2.0 * index / 35
        stretch = 2.0 ** rng.uniform(-1.0, 1.0)
        radius = np.hypot(fx * stretch, fy / stretch)
        radius[0, 0] = 1.0
        phase = rng.uniform(0, 2 * np.pi, radius.shape)
        field = np.fft.irfft2(np.exp(1j * phase) / radius**beta, s=(TILE_PX, TILE_PX))
        field = (field - field.mean()) / field.std()
        if rng.random() < 0.25:
            field = np.abs(field) * 1.6 - 1.3  # ridged
        tiles.append(np.clip(0.5 + 0.22 * field, 0, 1).astype(np.float32))
    return tiles


def field(rng: Rng, u: Array, v: Array, scale: float, rough: float | None = None) -> Array:
    """A random field over the given coordinates; `scale` tiles a unit, `rough` 0..1 picks the spectrum."""
    tiles = _bank()
    rough = rng.random() if rough is None else rough
    index = int(np.clip((1 - rough) * len(tiles) + rng.normal(0, 3), 0, len(tiles) - 1))
    map_u, map_v = (_wrapped(axis, scale, rng.random()) for axis in (u, v))
    return cv2.remap(tiles[index], map_u, map_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _wrapped(axis: Array, scale: float, shift: float) -> Array:
    turns = axis.astype(np.float32) * np.float32(scale) + np.float32(shift)
    turns -= np.floor(turns)
    return turns * np.float32(TILE_PX)


def profile(rng: Rng, u: Array, scale: float, rough: float | None = None) -> Array:
    """A random function of u alone, 0..1."""
    return field(rng, u, np.zeros_like(u), scale, rough)


def ground_field(rng: Rng, u: Array, v: Array, scale: float, rough: float | None = None) -> Array:
    """A field on the ground plane in perspective, fading to its mean where it would alias."""
    depth = 1.0 / np.maximum(v, 0.004)
    side = u.shape[0]
    total = np.zeros_like(u)
    weight = 0.0
    for octave, share in ((1.0, 1.0), (3.1, 0.7), (9.0, 0.5)):
        step = scale * octave
        footprint = step * TILE_PX * depth**2 / side * 0.15
        fade = np.exp(-footprint / 6.0)
        total += share * fade * (field(rng, u * depth, depth, step * 0.15, rough) - 0.5)
        weight += share
    return np.clip(0.5 + 1.4 * total / weight, 0, 1)


def hsv(hue: float, saturation: float, value: float) -> Array:
    """An RGB colour, floats 0..1; hue in turns."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    rgb = value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
    return rgb.astype(np.float32)


def near(rng: Rng, colour: tuple[float, float, float], spread: float = 0.07) -> Array:
    """A colour near the given RGB one, its lightness varied as well."""
    base = np.array(colour, np.float32) * rng.uniform(0.7, 1.25)
    return np.clip(base + rng.normal(0, spread, 3), 0.01, 1).astype(np.float32)


def any_colour(rng: Rng) -> Array:
    return hsv(rng.random(), rng.random() ** 1.3, rng.uniform(0.05, 1.0))


def mix(a: Array, b: Array | np.floating, t: Array) -> Array:
    """(h w 3) from colour a where t is 0 to colour b where t is 1."""
    t = t[..., None] if t.ndim == 2 else t
    return a * (1 - t) + b * t


def over(canvas: Array, paint: Array | np.floating, alpha: Array) -> None:
    """Lay paint (a colour or (h w 3)) over the canvas in place."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    if paint.ndim == 3:
        paint = paint[part]
    canvas[part] += alpha[part][..., None] * (paint - canvas[part])


def textured(rng: Rng, colour: Array, grain: Array, contrast: float) -> Array:
    """A material: the colour modulated in lightness, and a little in hue, by a grain field."""
    tint = rng.normal(0, 0.12 * contrast, 3).astype(np.float32)
    swing = (grain.astype(np.float32) * 2 - 1)[..., None]
    return np.clip((colour + tint * swing) * (1 + np.float32(contrast) * swing), 0, 1)


def soft_step(x: Array, side: int, width_px: float = 1.0) -> Array:
    """1 where x > 0, 0 where x < 0, with an edge `width_px` wide."""
    return np.clip(x * side / width_px + 0.5, 0, 1).astype(np.float32)
