"""Draws a `Scene` at any size, with masks of sky and subject that are exact to the pixel."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from .landscapes import GROUNDS, SKIES, Scene
from .subjects import draw_subject

Array = NDArray[np.float32]

SUPERSAMPLING = 2  # drawn larger and averaged down, for smooth edges
NOISE_SIZE = 512  # px, a power of two; noise tiles repeat without a seam


@dataclass(frozen=True, kw_only=True)
class Painting:
    """A picture and its truth.

    image: (h w 3) RGB, 0..255. sky_mask, subject_mask: (h w), 0 or 255. Positions as in `Scene`;
    the subject's centre is the centroid of its mask. None: there is no such thing in the picture.
    """

    image: NDArray[np.uint8]
    caption: str
    horizon: float | None
    tilt_deg: float | None
    subject_x: float | None
    subject_y: float | None
    subject_kind: str | None
    sky_mask: NDArray[np.uint8]
    subject_mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """Coordinates of a canvas in units of its height, seen from the horizon.

    below: signed distance to the horizon line, positive on the ground. along: position along it, 0
    at the centre column.
    """

    width: int
    height: int
    below: Array
    along: Array


def paint(scene: Scene, width: int, height: int | None = None) -> Painting:
    """Draw a scene.

    Args:
        scene: what to draw.
        width: of the picture in px.
        height: of the picture in px; square if left out.
    """
    height = height or width
    big_w, big_h = width * SUPERSAMPLING, height * SUPERSAMPLING
    rng = np.random.default_rng([scene.seed, 11])
    subject_mask = np.zeros((big_h, big_w), np.uint8)
    if scene.close_up:
        frame = _frame(big_w, big_h, 0.5, 0.0)
        canvas = _close_up(scene, frame, rng)
        sky_mask = np.zeros((big_h, big_w), np.uint8)
    else:
        frame = _frame(big_w, big_h, scene.horizon or 0.0, scene.tilt_deg or 0.0)
        canvas = _landscape(scene, frame, rng)
        if scene.subject:
            canvas, subject_mask = draw_subject(canvas, scene, light=SKIES[scene.sky].light)
        sky_mask = ((frame.below < 0) & (subject_mask == 0)).astype(np.uint8) * 255
    subject_x, subject_y = _centroid(subject_mask)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    small += rng.normal(0, 1.5, small.shape)
    return Painting(
        image=np.clip(small, 0, 255).astype(np.uint8),
        caption=scene.caption,
        horizon=scene.horizon,
        tilt_deg=scene.tilt_deg,
        subject_x=subject_x,
        subject_y=subject_y,
        subject_kind=scene.subject.kind if scene.subject and subject_x is not None else None,
        sky_mask=cv2.resize(sky_mask, (width, height), interpolation=cv2.INTER_NEAREST),
        subject_mask=cv2.resize(subject_mask, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def _frame(width: int, height: int, horizon: float, tilt_deg: float) -> Frame:
    tilt = math.radians(tilt_deg)
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - horizon
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5 - width / 2) / height
    return Frame(
        width,
        height,
        below=(y * math.cos(tilt) - x * math.sin(tilt)).astype(np.float32),
        along=(x * math.cos(tilt) + y * math.sin(tilt)).astype(np.float32),
    )


@lru_cache(maxsize=64)  # 1 MB each
def _noise_tile(kind: int, slope: float) -> Array:
    """Tileable fractal noise (NOISE_SIZE NOISE_SIZE), mean 0, std 1; power falls as f^-slope."""
    rng = np.random.default_rng([kind, 13])
    frequency = np.hypot(
        *np.meshgrid(np.fft.fftfreq(NOISE_SIZE), np.fft.rfftfreq(NOISE_SIZE), indexing="ij")
    )
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(NOISE_SIZE, NOISE_SIZE))) * frequency**-slope
    tile = np.fft.irfft2(spectrum, s=(NOISE_SIZE, NOISE_SIZE)).astype(np.float32)
    return tile / tile.std()


def _noise(x: Array, y: Array, rng: np.random.Generator, slope: float = 1.5) -> Array:
    """Fractal noise at coordinates in tile widths; the two coordinates may be of any size."""
    tile = _noise_tile(int(rng.integers(4)), slope)
    offset = rng.uniform(0, NOISE_SIZE, 2)
    # wrapping by hand: remap knows coordinates up to 32767 only
    map_x = np.mod(x * NOISE_SIZE + offset[0], NOISE_SIZE).astype(np.float32)
    map_y = np.mod(y * NOISE_SIZE + offset[1], NOISE_SIZE).astype(np.float32)
    return cv2.remap(tile, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _blend(canvas: Array, colour: Array, opacity: Array) -> Array:
    return canvas + (colour - canvas) * opacity[..., None]


def _colour(rgb: tuple[float, float, float], rng: np.random.Generator, spread: float = 12) -> Array:
    return np.clip(np.asarray(rgb, np.float32) + rng.normal(0, spread, 3), 2, 253).astype(
        np.float32
    )


def _landscape(scene: Scene, frame: Frame, rng: np.random.Generator) -> Array:
    sky, ground = SKIES[scene.sky], GROUNDS[scene.ground]
    light = np.asarray(sky.light, np.float32)
    low = _colour(sky.low, rng)
    canvas = _sky(scene, frame, _colour(sky.top, rng), low, rng)
    if scene.mountains:
        canvas = _mountains(canvas, scene, frame, low, light, rng)
    if scene.ground == "city":
        canvas = _skyline(canvas, scene, frame, low, light, rng)
    if scene.tree_line:
        canvas = _tree_line(canvas, scene, frame, light, rng)
    soil = _ground(
        scene, frame, _colour(ground.near, rng) * light, _colour(ground.far, rng) * light, low, rng
    )
    edge = np.clip(frame.below * frame.height / SUPERSAMPLING + 0.5, 0, 1)
    canvas = _blend(canvas, soil, edge)
    if scene.haze:
        veil = scene.haze * np.exp(-np.abs(frame.below) / 0.08)
        canvas = _blend(canvas, low, veil.astype(np.float32) * 0.8)
    return canvas


def _sky(scene: Scene, frame: Frame, top: Array, low: Array, rng: np.random.Generator) -> Array:
    height = np.clip(-frame.below / 0.75, 0, 1)[..., None] ** 0.7
    canvas = low + (top - low) * height
    if scene.sky == "night":
        stars = rng.random((frame.height, frame.width)) > 0.9975
        canvas = np.where(stars[..., None], 225.0, canvas).astype(np.float32)
    if scene.cloud_cover:
        depth = np.clip(-frame.below, 0.02, None) + 0.12
        field = _noise(frame.along / depth * 0.16, 0.5 / depth * 0.35, rng)
        cover = np.clip((field - 1.1 + 1.3 * scene.cloud_cover) * 0.9, 0, 1) * 0.85
        bright = 0.75 * low + 0.25 * 255 * np.asarray(SKIES[scene.sky].light, np.float32)
        shade = np.clip(_noise(frame.along * 0.4, frame.below * 0.8, rng), -1, 1)[..., None] * 10
        canvas = _blend(canvas, bright + shade, cover.astype(np.float32))
    return canvas.astype(np.float32)


def _ridge(frame: Frame, rng: np.random.Generator, slope: float, scale: float) -> Array:
    """Outline over `along`, 0..1, rough as a mountain range."""
    row = _noise_tile(int(rng.integers(4)), slope)[int(rng.integers(NOISE_SIZE))]
    profile = (row - row.min()) / np.ptp(row)
    position = np.mod(frame.along * NOISE_SIZE * scale + rng.uniform(0, NOISE_SIZE), NOISE_SIZE)
    return np.interp(position, np.arange(NOISE_SIZE), profile, period=NOISE_SIZE).astype(np.float32)


def _mountains(
    canvas: Array, scene: Scene, frame: Frame, low: Array, light: Array, rng: np.random.Generator
) -> Array:
    rock = _colour((96, 104, 122), rng) * light
    for layer, share in enumerate((1.0, 0.6)):
        outline = scene.mountains * share * (0.15 + 0.85 * _ridge(frame, rng, 2.0, 0.45))
        inside = np.clip((outline + frame.below) * frame.height / 2 + 0.5, 0, 1) * (
            frame.below < 0.01
        )
        relief = _noise(frame.along * 0.5, frame.below * 0.9, rng, 1.2)[..., None] * 9
        far = 0.55 - 0.25 * layer  # distant ranges take the colour of the air
        body = rock * (1 - far) + low * far + relief
        snow_line = np.clip((-frame.below - 0.55 * scene.mountains) * 30, 0, 1) * (layer == 0)
        body = _blend(body, 235 * light + 15, snow_line.astype(np.float32) * 0.8)
        canvas = _blend(canvas, body, inside.astype(np.float32))
    return canvas


def _skyline(
    canvas: Array, scene: Scene, frame: Frame, low: Array, light: Array, rng: np.random.Generator
) -> Array:
    for far in (0.6, 0.25):
        widths = rng.uniform(0.04, 0.11, 80)
        edges = np.cumsum(widths) - widths.sum() / 2
        heights = rng.uniform(0.04, 0.24, 80) * min(1.0, 1.6 * (scene.horizon or 0.5))
        block = np.clip(np.searchsorted(edges, frame.along), 0, 79)
        inside = (frame.below < 0.005) & (-frame.below < heights[block])
        grey = rng.uniform(70, 150, 80)[block][..., None] * light
        body = grey * (1 - far) + low * far
        if far < 0.5:
            grid = (np.mod(frame.along * 60, 1) > 0.45) & (np.mod(frame.below * 45, 1) > 0.5)
            lit = rng.random((64, 512))[
                np.mod((frame.below * 45).astype(int), 64),
                np.mod((frame.along * 60).astype(int), 512),
            ]
            glow = np.asarray((250, 214, 130), np.float32)
            window = np.where(
                (lit > (0.55 if scene.sky in ("night", "storm") else 0.97))[..., None],
                glow,
                body * 0.7,
            )
            body = np.where((grid & inside)[..., None], window, body)
        canvas = np.where(inside[..., None], body, canvas).astype(np.float32)
    return canvas


def _tree_line(
    canvas: Array, scene: Scene, frame: Frame, light: Array, rng: np.random.Generator
) -> Array:
    outline = scene.tree_line * (0.35 + 0.65 * _ridge(frame, rng, 0.7, 1.5))
    inside = np.clip((outline + frame.below) * frame.height / 2 + 0.5, 0, 1) * (frame.below < 0.01)
    return _blend(canvas, _colour((44, 72, 44), rng) * light, inside.astype(np.float32))


def _ground(
    scene: Scene, frame: Frame, near: Array, far: Array, low: Array, rng: np.random.Generator
) -> Array:
    texture = GROUNDS[scene.ground].texture
    below = np.clip(frame.below, 1e-3, None)
    nearness = np.clip(below / 0.6, 0, 1)[..., None] ** 0.6
    canvas = far + (near - far) * nearness
    depth = below + 0.03
    across, away = frame.along / depth, 0.3 / depth  # where the line of sight meets flat ground
    fade = np.clip(below * 9, 0, 1)  # no texture finer than a pixel far away
    if texture == "waves":
        canvas = 0.75 * canvas + 0.25 * low  # water mirrors the sky
        field = _noise(across * 0.05, away * 0.55, rng, 1.1)
        crest = np.clip(field - 0.6 + scene.roughness * 0.5, 0, None)
        canvas = canvas + (field * (4 + 10 * scene.roughness) * fade)[..., None]
        foam = np.clip(crest * scene.roughness * 0.55 * fade, 0, 0.75)
        return _blend(canvas, 0.6 * low + 90, foam.astype(np.float32))
    if texture == "rows":
        stripes = np.sin(across * 14 + rng.uniform(0, 6)) * np.clip(below * 5, 0, 1)
        return canvas + (stripes * 14 + _noise(across * 0.3, away, rng, 1.0) * 5 * fade)[..., None]
    if texture == "street":
        lane = np.abs(np.mod(across * 0.9 + 0.5, 1) - 0.5) < 0.02
        dash = np.mod(away * 3, 1) < 0.5
        canvas = canvas + (_noise(across * 0.3, away * 0.5, rng, 1.0) * 4 * fade)[..., None]
        return np.where((lane & dash & (below > 0.03))[..., None], canvas * 0.4 + 120, canvas)
    if texture == "dunes":
        field = _noise(across * 0.08 + 0.1 * away, away * 0.22, rng, 1.9)
        ripples = np.sin(away * 60 + field * 3) * 3 * fade
        return canvas + (field * 13 * np.clip(below * 5, 0.15, 1) + ripples)[..., None]
    amount, slope = (7, 1.8) if texture == "drifts" else (15, 0.9)
    field = _noise(across * 0.25, away * 0.5, rng, slope)
    canvas = canvas + (field * amount * fade)[..., None]
    if texture == "grass" and scene.roughness > 0.6:
        flowers = _noise(across * 0.5, away, rng, 0.5) > 2.3
        hue = _colour((226, 196, 70), rng, 40) * np.asarray(SKIES[scene.sky].light, np.float32)
        canvas = np.where((flowers & (below > 0.06))[..., None], hue, canvas)
    return canvas


def _close_up(scene: Scene, frame: Frame, rng: np.random.Generator) -> Array:
    u, v = frame.along, frame.below
    angle = rng.uniform(0, math.pi)
    rotated = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
    kind = scene.close_up
    if kind == "bricks":
        row = np.floor(v * 14)
        shift = np.mod(row, 2) * 0.5
        mortar = (np.mod(v * 14, 1) < 0.12) | (np.mod(u * 6 + shift, 1) < 0.06)
        tone = rng.normal(0, 14, (64, 64))[
            np.mod(row, 64).astype(int), np.mod(np.floor(u * 6 + shift), 64).astype(int)
        ]
        grain = _noise(u * 0.9, v * 0.9, rng, 0.8) * 6
        wall = _colour((158, 78, 58), rng) + (tone + grain)[..., None]
        return np.where(mortar[..., None], _colour((186, 178, 168), rng), wall).astype(np.float32)
    if kind == "trunks":
        field = _noise(u * 0.55, v * 0.03 + u * 0.02, rng, 1.0)
        bark = _noise(u * 2.0, v * 0.2, rng, 0.8) * 9
        trunk = np.clip((field - 0.1) * 4, 0, 1)[..., None]
        back = _colour((58, 92, 52), rng) + _noise(u, v, rng, 0.9)[..., None] * 18
        return (back * (1 - trunk) + (_colour((86, 66, 50), rng) + bark[..., None]) * trunk).astype(
            np.float32
        )
    if kind == "clouds":
        field = _noise(u * 0.45, v * 0.6, rng, 1.7)
        sky = SKIES[scene.sky]
        cover = np.clip(field * 0.6 + 0.4, 0, 1).astype(np.float32)
        base = np.broadcast_to(_colour(sky.top, rng), (*u.shape, 3))
        return _blend(base, 0.5 * _colour(sky.low, rng) + 118, cover)
    base, amount, slope = {
        "leaves": ((58, 112, 44), 34, 0.9),
        "sand": ((208, 176, 124), 12, 1.0),
        "water": ((36, 96, 122), 22, 1.4),
        "pebbles": ((136, 134, 130), 34, 0.8),
        "flowers": ((70, 126, 52), 20, 0.9),
    }[str(kind)]
    scale = 0.5 + scene.roughness
    field = _noise(
        rotated[0] * scale, rotated[1] * scale * (2 if kind == "water" else 1), rng, slope
    )
    canvas = _colour(base, rng) + (field * amount)[..., None]
    if kind == "flowers":
        spots = _noise(u * 1.2, v * 1.2, rng, 0.8) > 1.5
        canvas = np.where(spots[..., None], _colour((222, 120, 150), rng, 40), canvas)
    return canvas.astype(np.float32)


def _centroid(mask: NDArray[np.uint8]) -> tuple[float | None, float | None]:
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return None, None
    return float((columns.mean() + 0.5) / mask.shape[1]), float((rows.mean() + 0.5) / mask.shape[0])
