"""Charts of the inversion bench, drawn with OpenCV."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

WIDTH, HEIGHT, MARGIN, KEY = 900, 520, 60, 300  # px; KEY for the names at the right
INK, GRID = (40, 40, 40), (224, 224, 224)
FONT = cv2.FONT_HERSHEY_SIMPLEX
COLOURS = (  # of Okabe and Ito's palette, BGR
    (178, 114, 0), (0, 94, 213), (115, 158, 0), (167, 121, 204), (0, 159, 230), (233, 180, 86),
    (66, 228, 240), (120, 120, 120),
)  # fmt: skip


class Measured(Protocol):
    """What is drawn of a point."""

    @property
    def calls(self) -> int: ...
    @property
    def latent_db(self) -> float: ...


def draw_calls(path: Path, curves: Mapping[tuple[str, str], Sequence[Measured]]) -> None:
    """Latent PSNR against calls; the second condition of a method is thin, with hollow dots.

    Exact methods and those measured once only are left out: the table has them.
    """
    curves = {key: curve for key, curve in curves.items() if len(curve) > 1}
    points = [point for curve in curves.values() for point in curve]
    canvas = _sheet("latent PSNR in dB against calls of the way up")
    place = _axes(canvas, [point.calls for point in points], [point.latent_db for point in points])
    names = list(dict.fromkeys(name for name, _ in curves))
    conditions = list(dict.fromkeys(condition for _, condition in curves))
    for (name, condition), curve in curves.items():
        colour, tight = COLOURS[names.index(name)], conditions.index(condition) > 0
        dots = [place(point.calls, point.latent_db) for point in curve]
        for start, end in itertools.pairwise(dots):
            cv2.line(canvas, start, end, colour, 1 if tight else 2, cv2.LINE_AA)
        for dot in dots:
            cv2.circle(canvas, dot, 4, colour, 1 if tight else cv2.FILLED, cv2.LINE_AA)
    for row, name in enumerate(names):
        _write(canvas, name, (WIDTH - KEY + 40, 2 * MARGIN + 22 * row), COLOURS[row])
    for row, text in enumerate(conditions):
        told = f"{'thin' if row else 'thick'}: {text}"
        _write(canvas, told, (WIDTH - KEY + 40, HEIGHT - 2 * MARGIN + 22 * row), INK)
    _save(path, canvas)


def draw_tightness(path: Path, found: Mapping[str, Measured]) -> None:
    """Latent PSNR of each condition as a bar."""
    values = [point.latent_db for point in found.values()]
    canvas = _sheet("DDIM, 50 steps: latent PSNR in dB by condition")
    top, width = max(values) * 1.1, (WIDTH - 2 * MARGIN) / len(found)
    for index, (name, value) in enumerate(zip(found, values, strict=True)):
        x = MARGIN + index * width
        y = HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)
        corners = (round(x + 0.2 * width), round(y)), (round(x + 0.8 * width), HEIGHT - MARGIN)
        cv2.rectangle(canvas, *corners, COLOURS[0], cv2.FILLED)
        _write(canvas, f"{value:.2f}", (corners[0][0], corners[0][1] - 8), INK)
        _write(canvas, name, (corners[0][0], HEIGHT - MARGIN + 22), INK)
    _save(path, canvas)


def _axes(
    canvas: np.ndarray, x: Sequence[float], y: Sequence[float]
) -> Callable[[float, float], tuple[int, int]]:
    """Ticks at every tenth of calls and dB; gives the function from values to px."""
    low, high, right = min(y) - 2, max(y) + 2, max(x) * 1.05

    def place(across: float, up: float) -> tuple[int, int]:
        span = WIDTH - KEY - MARGIN
        return (
            round(MARGIN + across / right * span),
            round(HEIGHT - MARGIN - (up - low) / (high - low) * (HEIGHT - 2 * MARGIN)),
        )

    for tick in range(10 * math.ceil(low / 10), math.floor(high) + 1, 10):
        level = place(0, tick)[1]
        cv2.line(canvas, (MARGIN, level), (WIDTH - KEY, level), GRID, 1)
        _write(canvas, str(tick), (MARGIN - 32, level + 5), INK)
    for tick in range(0, math.floor(right) + 1, 10):
        _write(canvas, str(tick), (place(tick, low)[0] - 8, HEIGHT - MARGIN + 22), INK)
    return place


def _sheet(title: str) -> np.ndarray:
    canvas = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    _write(canvas, title, (MARGIN, 30), INK)
    return canvas


def _write(
    canvas: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, place, FONT, 0.45, colour, 1, cv2.LINE_AA)


def _save(path: Path, canvas: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), canvas)
