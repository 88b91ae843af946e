"""Pictures with the wanted and the found composition drawn on them.

Source:  own. Wanted is yellow, dashed and edged in black, its subject mark a ring; found is blue,
         solid and edged in white, its subject mark a cross. Colour, lightness, dash and shape all
         differ, so the two read on any picture, in grey and by colour-blind people (yellow and
         blue of Okabe and Ito's palette). Guides are thin dotted lines.
Note:    a small picture is enlarged by a whole number until its shorter side has 512 px, so that
         lines and letters stay legible; widths grow with the picture.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ..common.anchor import GOLDEN, THIRD, Anchor
from .tables import describe_anchor

LEAST_SIDE_PX = 512
YELLOW, BLUE = (240, 228, 66), (0, 114, 178)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SHIFT = 4  # cv2 takes fixed-point coordinates: 1/16 px
FONT = cv2.FONT_HERSHEY_SIMPLEX
PANEL_OPACITY = 0.65
GUIDE_OPACITY = 0.45
GUIDE_DASH = (4.0, 8.0)  # white on black, length and gap in units: shows on light and dark

GUIDES: dict[str, tuple[float, ...]] = {
    "thirds": (THIRD, 2 * THIRD),
    "golden section": (1.0 - GOLDEN, GOLDEN),
    "none": (),
}


_Point = tuple[float, float]  # x y, px


@dataclass(frozen=True)
class _Pen:
    colour: tuple[int, int, int]
    edge: tuple[int, int, int]
    dash: tuple[float, float] | None  # length and gap in units, None is solid


WANTED = _Pen(YELLOW, BLACK, (16.0, 10.0))
FOUND = _Pen(BLUE, WHITE, None)


def draw_overlays(
    image: Tensor,
    found: Sequence[Anchor],
    wanted: Sequence[Anchor] | None = None,
    guides: str = "thirds",
    advance: Callable[[], None] | None = None,
) -> Tensor:
    """Draw what was found, and what was wanted, on a copy of each picture.

    Args:
        image: (b 3 h w) in 0..1; left unmodified.
        found: measured anchor per picture; parts that are None are not drawn.
        wanted: target per picture, or None without a target.
        guides: "thirds", "golden section" or "none".
        advance: called after each picture.

    Returns:
        (b 3 H W) float32 on CPU, H W a whole multiple of h w.

    Raises:
        ValueError: the guides have another name, or the anchors do not pair with the pictures.
    """
    if guides not in GUIDES:
        raise ValueError(f"guides is {guides!r}, one of {', '.join(GUIDES)} is needed")
    targets = [None] * len(found) if wanted is None else wanted
    if not len(image) == len(found) == len(targets):
        raise ValueError(
            f"image holds {len(image)} pictures, found {len(found)} anchors and wanted "
            f"{len(targets)}; pass one of each per picture"
        )
    drawn = []
    for planes, measured, target in zip(image, found, targets, strict=True):
        canvas = _canvas(planes)
        _draw(canvas, measured, target, guides)
        drawn.append(torch.from_numpy(canvas).movedim(-1, 0).float().div_(255.0))
        if advance is not None:
            advance()
    return torch.stack(drawn)


def _canvas(planes: Tensor) -> np.ndarray:
    pixels = planes.detach().mul(255.0).round().clamp(0, 255).to("cpu", torch.uint8)
    canvas = np.ascontiguousarray(pixels.movedim(0, -1).numpy())
    factor = math.ceil(LEAST_SIDE_PX / min(canvas.shape[:2]))
    if factor > 1:
        size = (canvas.shape[1] * factor, canvas.shape[0] * factor)
        canvas = cv2.resize(canvas, size, interpolation=cv2.INTER_CUBIC)
    return canvas


def _draw(canvas: np.ndarray, found: Anchor, wanted: Anchor | None, guides: str) -> None:
    unit = min(canvas.shape[:2]) / LEAST_SIDE_PX
    _draw_guides(canvas, GUIDES[guides], unit)
    for anchor, pen in ((wanted, WANTED), (found, FOUND)):
        if anchor is not None:
            _draw_horizon(canvas, anchor, pen, unit)
    if wanted is not None:
        _draw_ring(canvas, wanted, WANTED, unit)
        _draw_subject_line(canvas, wanted, WANTED, unit)
    _draw_cross(canvas, found, FOUND, unit)
    _draw_legend(canvas, found, wanted, unit)


def _draw_guides(canvas: np.ndarray, shares: tuple[float, ...], unit: float) -> None:
    height, width = canvas.shape[:2]
    px, lines = max(1, round(unit)), canvas.copy()
    for share in shares:
        across, down = share * height, share * width
        for start, end in (((0.0, across), (width, across)), ((down, 0.0), (down, height))):
            cv2.line(lines, _fixed(*start), _fixed(*end), BLACK, px, cv2.LINE_AA, SHIFT)
            for a, b in _dashes(start, end, GUIDE_DASH, unit):
                cv2.line(lines, _fixed(*a), _fixed(*b), WHITE, px, cv2.LINE_AA, SHIFT)
    cv2.addWeighted(lines, GUIDE_OPACITY, canvas, 1.0 - GUIDE_OPACITY, 0.0, dst=canvas)


def _draw_horizon(canvas: np.ndarray, anchor: Anchor, pen: _Pen, unit: float) -> None:
    height, width = canvas.shape[:2]
    left, right = (anchor.horizon_at(x, width / height) for x in (0.0, 1.0))
    if left is not None and right is not None:
        _draw_line(canvas, (0.0, left * height), (width, right * height), pen, unit, 3.0)


def _draw_line(
    canvas: np.ndarray,
    start: _Point,
    end: _Point,
    pen: _Pen,
    unit: float,
    thickness: float,
) -> None:
    pieces = [(start, end)] if pen.dash is None else _dashes(start, end, pen.dash, unit)
    for colour, px in _strokes(pen, unit, thickness):
        for a, b in pieces:
            cv2.line(canvas, _fixed(*a), _fixed(*b), colour, px, cv2.LINE_AA, SHIFT)


def _dashes(
    start: _Point, end: _Point, dash: tuple[float, float], unit: float
) -> list[tuple[_Point, _Point]]:
    length = math.dist(start, end)
    shares = np.arange(0.0, length, sum(dash) * unit) / length
    return [
        (_between(start, end, share), _between(start, end, share + dash[0] * unit / length))
        for share in shares
    ]


def _between(start: _Point, end: _Point, share: float) -> _Point:
    share = min(share, 1.0)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _draw_ring(canvas: np.ndarray, anchor: Anchor, pen: _Pen, unit: float) -> None:
    centre = _mark_centre(canvas, anchor)
    if centre is None:
        return
    radius = _fixed(16.0 * unit, 16.0 * unit)
    for colour, px in _strokes(pen, unit, 3.0):
        for angle in range(0, 360, 60):
            arc = (0, angle, angle + 38, colour, px, cv2.LINE_AA, SHIFT)
            cv2.ellipse(canvas, _fixed(*centre), radius, *arc)


def _draw_subject_line(canvas: np.ndarray, anchor: Anchor, pen: _Pen, unit: float) -> None:
    # one coordinate alone: anywhere on this column or row
    height, width = canvas.shape[:2]
    if anchor.subject_x is not None and anchor.subject_y is None:
        x = anchor.subject_x * width
        _draw_line(canvas, (x, 0.0), (x, height), pen, unit, 2.0)
    elif anchor.subject_y is not None and anchor.subject_x is None:
        y = anchor.subject_y * height
        _draw_line(canvas, (0.0, y), (width, y), pen, unit, 2.0)


def _draw_cross(canvas: np.ndarray, anchor: Anchor, pen: _Pen, unit: float) -> None:
    centre = _mark_centre(canvas, anchor)
    if centre is None:
        return
    x, y, arm = *centre, 11.0 * unit
    for colour, px in _strokes(pen, unit, 3.0):
        for side in (-1, 1):
            ends = _fixed(x - arm, y - side * arm), _fixed(x + arm, y + side * arm)
            cv2.line(canvas, *ends, colour, px, cv2.LINE_AA, SHIFT)


def _mark_centre(canvas: np.ndarray, anchor: Anchor) -> tuple[float, float] | None:
    if anchor.subject_x is None or anchor.subject_y is None:
        return None
    height, width = canvas.shape[:2]
    return anchor.subject_x * width, anchor.subject_y * height


def _draw_legend(canvas: np.ndarray, found: Anchor, wanted: Anchor | None, unit: float) -> None:
    rows = [(FOUND, f"found: {describe_anchor(found)}")]
    if wanted is not None:
        rows.insert(0, (WANTED, f"wanted: {describe_anchor(wanted)}"))
    height, width = canvas.shape[:2]
    margin, swatch = 8 * unit, 42 * unit
    scale, px = 0.5 * unit, max(1, round(unit))
    longest = max(cv2.getTextSize(text, FONT, scale, px)[0][0] for _, text in rows)
    scale *= min(1.0, (width - swatch - 4 * margin) / longest)
    row_px = 20 * unit
    panel_px = round(len(rows) * row_px + margin)
    top = _legend_top(found, wanted, height, panel_px)
    panel = canvas[top : top + panel_px]
    panel[:] = (panel * (1.0 - PANEL_OPACITY)).astype(np.uint8)
    for row, (pen, text) in enumerate(rows):
        y = top + margin / 2 + (row + 0.5) * row_px
        _draw_line(canvas, (margin, y), (margin + swatch, y), pen, unit, 3.0)
        at = round(2 * margin + swatch), round(y + 5 * unit)
        cv2.putText(canvas, text, at, FONT, scale, WHITE, px, cv2.LINE_AA)


def _legend_top(found: Anchor, wanted: Anchor | None, height: int, panel_px: int) -> int:
    # at the edge that is farther from the lines
    lines = [a.horizon for a in (found, wanted) if a is not None and a.horizon is not None]
    is_low = bool(lines) and min(lines) > 1.0 - max(lines)
    return 0 if is_low else height - panel_px


def _strokes(pen: _Pen, unit: float, thickness: float) -> list[tuple[tuple[int, int, int], int]]:
    core = max(1, round(thickness * unit))
    return [(pen.edge, core + 2 * max(1, round(1.2 * unit))), (pen.colour, core)]


def _fixed(x: float, y: float) -> tuple[int, int]:
    return round(x * 2**SHIFT), round(y * 2**SHIFT)
