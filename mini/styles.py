"""The painter's scenes in styles that nobody mistakes, with people and places apart, for StyleForge.

A style is a treatment of a finished drawing; the masks of the drawing stay exact. A style may treat
the subject in one way and the place around it in another.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .landscapes import COLOURS, STANDING, Scene, Subject, caption, scene
from .painter import Painting, paint

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

GROUNDS_FOR_FIGURES = tuple(ground for ground, kinds in STANDING.items() if "figure" in kinds)
PAPERS = np.array(  # dark to bright
    [(38, 34, 74), (92, 52, 122), (196, 74, 106), (240, 142, 92), (252, 214, 140)], np.float32
)
INK, IVORY = np.array((44, 34, 46), np.float32), np.array((246, 238, 216), np.float32)
PIXEL_PALETTE = np.array(
    [
        (20, 12, 28), (68, 36, 52), (48, 52, 109), (78, 74, 78), (133, 76, 48), (52, 101, 36),
        (208, 70, 72), (117, 113, 97), (89, 125, 206), (210, 125, 44), (133, 149, 161),
        (109, 170, 44), (210, 170, 153), (109, 194, 202), (218, 212, 94), (222, 238, 214),
    ],
    np.float32,
)  # fmt: skip
BAYER = np.array([(0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5)]) / 16 - 0.47
NEON = {"place": (40, 220, 255), "subject": (255, 60, 200)}


@dataclass(frozen=True)
class Style:
    """How places are treated, and how subjects are."""

    place: str
    subject: str


STYLES = {
    "paper cut": Style("paper cut", "paper cut"),
    "hatching": Style("hatching", "hatching"),
    "pixel art": Style("pixel art", "pixel art"),
    "watercolour": Style("watercolour", "watercolour"),
    "night neon": Style("night neon", "night neon"),
    "collage": Style("paper cut", "night neon"),  # people and places apart
    "oil": Style("oil", "oil"),  # of no style set: what Aux pictures are painted in
}


def paint_in_style(plan: Scene, style: str, width: int, height: int | None = None) -> Painting:
    """Draw a scene in one of `STYLES`; its truth is that of the plain drawing."""
    drawn = paint(plan, width, height)
    rng = np.random.default_rng([plan.seed, 17])
    parts = STYLES[style]
    image = _treated(drawn, parts.place, rng)
    if parts.subject != parts.place:
        inside = (drawn.subject_mask > 0)[..., None]
        image = np.where(inside, _treated(drawn, parts.subject, rng), image)
    return replace(drawn, image=np.clip(image, 0, 255).astype(np.uint8))


def figure_scene(seed: int, close: bool = False) -> Scene:
    """A scene with a person in it, from a third of the frame's height up; `close`: a portrait."""
    rng = np.random.default_rng([seed, 19])
    plan = _open_scene(seed, rng)
    word = str(rng.choice(list(COLOURS)))
    height = float(rng.uniform(0.7, 0.95) if close else rng.uniform(0.34, 0.55))
    foot = float(rng.uniform(1.0, 1.25) if close else rng.uniform(0.82, 0.95))
    horizon = min(plan.horizon or 0.5, foot - 0.1)
    figure = Subject(
        kind="figure", colour=COLOURS[word], colour_word=word, x=float(rng.uniform(0.25, 0.75)),
        distance=foot - horizon, height=height,
    )  # fmt: skip
    return _captioned(replace(plan, subject=figure, horizon=horizon), rng)


def place_scene(seed: int) -> Scene:
    """A scene with nobody and nothing in it but the place."""
    rng = np.random.default_rng([seed, 23])
    return _captioned(replace(_open_scene(seed, rng), subject=None), rng)


def _open_scene(seed: int, rng: np.random.Generator) -> Scene:
    ground = str(rng.choice(GROUNDS_FOR_FIGURES))
    plan, other = scene(seed), seed
    while plan.close_up:  # a tenth of all
        other += 7919
        plan = scene(other)
    trees = plan.tree_line if ground in ("meadow", "snow", "field") else 0.0
    return replace(plan, seed=seed, ground=ground, tilt_deg=0.0, tree_line=trees)


def _captioned(plan: Scene, rng: np.random.Generator) -> Scene:
    return replace(plan, caption=caption(plan, rng))


@dataclass(frozen=True)
class _Parts:
    """What belongs to the subject, and where sky and ground meet, (h w) each."""

    subject: Mask
    horizon: Mask

    @classmethod
    def of(cls, drawn: Painting) -> "_Parts":
        subject = drawn.subject_mask > 0
        return cls(subject, _rim(drawn.sky_mask > 0) & ~_grown(subject, 3))


def _treated(drawn: Painting, treatment: str, rng: np.random.Generator) -> Array:
    return _TREATMENTS[treatment](drawn.image.astype(np.float32), _Parts.of(drawn), rng)


def _paper_cut(image: Array, parts: _Parts, rng: np.random.Generator) -> Array:
    """Sheets of coloured paper on top of each other, each with its shadow; the subject is the last."""
    small = image.shape[1] / 128
    light = cv2.GaussianBlur(_luminance(image), (0, 0), 3.0 * small)
    subject = parts.subject
    cuts = np.quantile(light[~subject], (0.2, 0.42, 0.64, 0.85))
    canvas = np.broadcast_to(PAPERS[0], image.shape).astype(np.float32)
    for cut, paper in zip(cuts, PAPERS[1:], strict=True):
        canvas = _lay(canvas, light > cut, np.broadcast_to(paper, image.shape), 3 * small)
    if subject.any():
        canvas = _lay(canvas, _grown(subject, 3), np.full_like(image, 250), 4 * small)
        flat = cv2.medianBlur(image.astype(np.uint8), 5).astype(np.float32)
        vivid = flat.mean(-1, keepdims=True) + (flat - flat.mean(-1, keepdims=True)) * 1.4
        canvas = np.where(subject[..., None], vivid, canvas)
    return canvas + rng.normal(0, 4, image.shape[:2])[..., None].astype(np.float32)


def _lay(canvas: Array, sheet: Mask, paper: Array, depth: float) -> Array:
    moved = np.roll(sheet.astype(np.float32), (round(depth), round(depth)), (0, 1))
    shadow = cv2.GaussianBlur(moved, (0, 0), max(depth / 2, 0.5))[..., None]
    return np.where(sheet[..., None], paper, canvas * (1 - 0.55 * shadow)).astype(np.float32)


def _hatching(image: Array, parts: _Parts, rng: np.random.Generator) -> Array:
    """Pen strokes on ivory paper, in more directions where it is darker."""
    tone = _luminance(cv2.GaussianBlur(image, (0, 0), 1.5)) / 255
    low, high = np.quantile(tone, (0.03, 0.97))
    tone = np.clip((tone - low) / max(high - low, 0.05), 0, 1)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    wobble = cv2.GaussianBlur(rng.normal(0, 1, tone.shape).astype(np.float32), (0, 0), 5) * 6
    ink = np.zeros_like(tone)
    for darkness, (a, b) in ((0.8, (1, 1)), (0.55, (1, -1)), (0.3, (0, 1.4)), (0.14, (1.4, 0))):
        stroke = np.mod((a * x + b * y + wobble) / 6.2, 1) < 0.34
        ink = np.maximum(ink, (stroke & (tone < darkness)).astype(np.float32))
    ink = np.maximum(ink, _edges(image, parts))
    return IVORY + (INK - IVORY) * (0.9 * cv2.GaussianBlur(ink, (0, 0), 0.5))[..., None]


def _pixel_art(image: Array, parts: _Parts, rng: np.random.Generator) -> Array:
    """Large pixels of sixteen colours, dithered."""
    height, width = image.shape[:2]
    block = max(width // 32, 2)
    size = (width // block, height // block)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    tiled = np.tile(BAYER, (size[1] // 4 + 1, size[0] // 4 + 1))[: size[1], : size[0], None]
    away = np.square((small + 42 * tiled)[:, :, None] - PIXEL_PALETTE).sum(-1)
    blocks = PIXEL_PALETTE[away.argmin(-1)]
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)


def _watercolour(image: Array, parts: _Parts, rng: np.random.Generator) -> Array:
    """Thin pigment on white paper: pale, cloudy, darker at its rims, with a ragged white margin."""
    height, width = image.shape[:2]
    grain = rng.normal(0, 1, (height, width)).astype(np.float32)
    cloud = cv2.GaussianBlur(grain, (0, 0), 5) * 12
    flow = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 2)).astype(np.float32), (0, 0), 3) * 14
    y, x = np.mgrid[:height, :width].astype(np.float32)
    run = cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    flat = cv2.bilateralFilter(run.astype(np.uint8), 9, 60, 7).astype(np.float32)
    rims = np.abs(cv2.GaussianBlur(flat, (0, 0), 1) - cv2.GaussianBlur(flat, (0, 0), 3))
    pigment = (255 - flat) * (0.72 + 0.2 * np.clip(cloud, -1, 1))[..., None] + 2.2 * rims
    margin = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y)) / width
    inside = np.clip((margin + cloud * 0.02 - 0.055) * 40, 0, 1)[..., None]
    return 253 - pigment * inside - np.clip(grain, 0, 2)[..., None] * 3


def _night_neon(image: Array, parts: _Parts, rng: np.random.Generator) -> Array:
    """Glowing tubes along the outlines, in the dark."""
    small = image.shape[1] / 128
    dark = _luminance(image)[..., None] / 255 * np.array((52, 22, 92), np.float32) + 6
    flat = cv2.bilateralFilter(image.astype(np.uint8), 9, 40, 7).astype(np.float32)
    lines = _edges(flat, parts)
    near = _grown(parts.subject, 5)
    canvas = dark
    for colour, where in ((NEON["place"], ~near), (NEON["subject"], near)):
        tube = lines * where
        glow = sum(cv2.GaussianBlur(tube, (0, 0), s * small) * g for s, g in ((1, 1.0), (3, 1.6), (7, 1.6)))  # fmt: skip
        canvas = canvas + np.asarray(glow)[..., None] * np.array(colour, np.float32)
        canvas = canvas + (tube * 130)[..., None]
    return canvas


def _oil(image: Array, parts: _Parts, rng: np.random.Generator) -> Array:
    """Short strokes of thick paint, a little warmer than the drawing."""
    height, width = image.shape[:2]
    noise = rng.normal(0, 1, (height, width)).astype(np.float32)
    strokes = cv2.filter2D(noise, -1, np.eye(9, dtype=np.float32) / 9) * 34
    flat = cv2.medianBlur(image.astype(np.uint8), 5).astype(np.float32)
    return flat * np.array((1.04, 1.0, 0.92), np.float32) + strokes[..., None]


def _luminance(image: Array) -> Array:
    return image @ np.array((0.299, 0.587, 0.114), np.float32)


def _edges(image: Array, parts: _Parts) -> Array:
    """Outlines of the picture, of the subject and of the ground, 0 or 1."""
    found = cv2.Canny(cv2.GaussianBlur(image, (0, 0), 1).astype(np.uint8), 30, 80) > 0
    return (found | _rim(parts.subject) | parts.horizon).astype(np.float32)


def _rim(mask: Mask) -> Mask:
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0


def _grown(mask: Mask, size: int) -> Mask:
    return cv2.dilate(mask.astype(np.uint8), np.ones((size, size))) > 0


_TREATMENTS: dict[str, Callable[[Array, _Parts, np.random.Generator], Array]] = {
    "paper cut": _paper_cut,
    "hatching": _hatching,
    "pixel art": _pixel_art,
    "watercolour": _watercolour,
    "night neon": _night_neon,
    "oil": _oil,
}
