"""The camera and the file: focus, exposure, colour, grain, painterly filters, compression."""

import cv2
import numpy as np

from .noise import Array, Rng, any_colour


def finish(rng: Rng, canvas: Array, grid: tuple[Array, Array]) -> Array:
    """Turn a float canvas into an 8-bit picture as a camera, a painter or a codec leaves it."""
    picture = np.clip(canvas, 0, 1)
    if rng.random() < 0.5:
        picture = _vignette(rng, picture, grid)
    picture = _tone(rng, picture)
    if rng.random() < 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.8))
    if rng.random() < 0.35:
        noise = rng.normal(
            0, 10 ** rng.uniform(-2.6, -1.2), (*picture.shape[:2], rng.choice([1, 3]))
        )
        picture = picture + noise.astype(np.float32)
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.1:
        pixels = _paint_over(rng, pixels)
    if rng.random() < 0.6:
        pixels = _compress(rng, pixels)
    return pixels


def _vignette(rng: Rng, picture: Array, grid: tuple[Array, Array]) -> Array:
    radius = np.hypot(grid[0] - rng.uniform(0.3, 0.7), grid[1] - rng.uniform(0.3, 0.7))
    return picture * (1 - rng.uniform(0, 0.9) * np.clip(radius, 0, 1) ** 2)[..., None].astype(
        np.float32
    )


def _tone(rng: Rng, picture: Array) -> Array:
    picture = np.clip(picture, 1e-4, 1) ** np.float32(np.exp(rng.normal(0, 0.3)))
    picture = (
        0.5
        + (picture - 0.5) * np.float32(rng.uniform(0.75, 1.45))
        + np.float32(rng.normal(0, 0.05))
    )
    if rng.random() < 0.6:
        picture = picture * (1 + rng.normal(0, 0.07, 3)).astype(np.float32)
    grey = picture.mean(-1, keepdims=True)
    keep = 0.0 if rng.random() < 0.08 else rng.uniform(0.6, 1.6)
    picture = grey + (picture - grey) * np.float32(keep)
    if rng.random() < 0.08:  # duotone
        dark, light = any_colour(rng) * 0.3, np.minimum(any_colour(rng) + 0.4, 1)
        picture = dark + (light - dark) * np.clip(grey, 0, 1)
    return np.clip(picture, 0, 1).astype(np.float32)


def _paint_over(rng: Rng, pixels: Array) -> Array:
    kind = rng.choice(["oil", "posterise", "lines", "smooth"])
    if kind == "oil":
        return cv2.medianBlur(pixels, int(rng.choice([5, 7, 9])))
    if kind == "posterise":
        step = int(rng.choice([24, 40, 64]))
        return (cv2.medianBlur(pixels, 5) // step * step + step // 2).clip(0, 255).astype(np.uint8)
    if kind == "lines":
        edges = cv2.Canny(cv2.GaussianBlur(pixels, (0, 0), 1.0), 40, 110)
        paper = cv2.addWeighted(pixels, rng.uniform(0, 1), np.full_like(pixels, 250), 1.0, -120)
        paper[edges > 0] = rng.integers(0, 70)
        return paper
    return cv2.bilateralFilter(pixels, 7, 60, 5)


def _compress(rng: Rng, pixels: Array) -> Array:
    quality = int(rng.integers(25, 95))
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)
