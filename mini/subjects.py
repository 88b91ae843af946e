"""Subjects of a landscape as a few flat shapes, drawn upright on the tilted ground.

Shapes are in the subject's own units: x to the right, y upwards, the foot at (0, 0), the top at 1.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .landscapes import Rgb, Scene, Subject

Points = list[tuple[float, float]]
Shape = tuple[Points, Rgb]
Array = NDArray[np.float32]

SUBPIXEL_BITS = 4  # cv2 takes polygon corners in 1/16 px


def draw_subject(canvas: Array, scene: Scene, light: Rgb) -> tuple[Array, NDArray[np.uint8]]:
    """Draw the scene's subject.

    Args:
        canvas: (h w 3) picture so far, 0..255; left unmodified.
        scene: must have a subject.
        light: tint of the light; lamps of the sky (sun, moon) are not tinted.

    Returns:
        The picture with the subject, and the subject's mask (h w), 0 or 255.
    """
    subject = scene.subject
    if subject is None:
        raise ValueError("the scene has no subject to draw")
    canvas, mask = canvas.copy(), np.zeros(canvas.shape[:2], np.uint8)
    if subject.kind in ("sun", "moon"):
        canvas = _glow(canvas, scene, subject)
    tint = (1.0, 1.0, 1.0) if subject.kind in ("sun", "moon") else _lifted(light)
    for points, rgb in _SHAPES[subject.kind](subject.colour):
        corners = _to_canvas(points, scene, subject, canvas.shape)
        fixed = np.round(corners * 2**SUBPIXEL_BITS).astype(np.int32)
        colour = tuple(float(c * t) for c, t in zip(rgb, tint, strict=True))
        cv2.fillPoly(canvas, [fixed], colour, cv2.LINE_8, SUBPIXEL_BITS)
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_8, SUBPIXEL_BITS)
    return canvas, mask


def _lifted(light: Rgb) -> Rgb:
    # a subject keeps some light of its own: it shall be seen at night too
    return (0.3 + 0.7 * light[0], 0.3 + 0.7 * light[1], 0.3 + 0.7 * light[2])


def _to_canvas(points: Points, scene: Scene, subject: Subject, shape: tuple[int, ...]) -> Array:
    height, width = shape[:2]
    tilt = math.radians(scene.tilt_deg or 0.0)
    local = np.asarray(points, np.float32) * subject.height
    if subject.distance < 0:
        local[:, 1] -= subject.height / 2  # a flying subject is placed by its centre
    turned_x = local[:, 0] * math.cos(tilt) + local[:, 1] * math.sin(tilt)
    turned_y = local[:, 0] * math.sin(tilt) - local[:, 1] * math.cos(tilt)
    foot_y = (scene.horizon or 0.0) + math.tan(tilt) * (subject.x - 0.5) * width / height
    foot_y += subject.distance
    return np.stack([subject.x * width + turned_x * height, (foot_y + turned_y) * height], axis=1)


def _glow(canvas: Array, scene: Scene, subject: Subject) -> Array:
    height, width = canvas.shape[:2]
    center = _to_canvas([(0.0, 0.5)], scene, subject, canvas.shape)[0]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot(x - center[0], y - center[1]) / height
    halo = (np.exp(-distance / (0.7 * subject.height)) * 0.55)[..., None]
    warm = np.asarray((255, 236, 190) if subject.kind == "sun" else (190, 200, 220), np.float32)
    return canvas + (warm - canvas) * halo


def _circle(x: float, y: float, radius: float, squeeze: float = 1.0) -> Points:
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return [(x + radius * math.cos(a), y + radius * squeeze * math.sin(a)) for a in angles]


def _box(left: float, bottom: float, right: float, top: float) -> Points:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _darker(rgb: Rgb, share: float = 0.65) -> Rgb:
    return (rgb[0] * share, rgb[1] * share, rgb[2] * share)


WOOD: Rgb = (92, 62, 40)
STONE: Rgb = (112, 108, 104)
LEAF: Rgb = (40, 92, 44)
SKIN: Rgb = (226, 180, 150)
CLOTH: Rgb = (238, 234, 224)


def _boat(rgb: Rgb) -> list[Shape]:
    return [
        ([(-0.42, 0.22), (0.42, 0.22), (0.3, 0.0), (-0.3, 0.0)], rgb),
        (_box(-0.02, 0.2, 0.02, 1.0), WOOD),
        ([(0.05, 0.98), (0.05, 0.3), (0.4, 0.3)], CLOTH),
        ([(-0.05, 0.86), (-0.05, 0.3), (-0.32, 0.3)], _darker(CLOTH, 0.86)),
    ]


def _tree(rgb: Rgb) -> list[Shape]:
    return [
        (_box(-0.06, 0.0, 0.06, 0.45), WOOD),
        (_circle(0.0, 0.66, 0.33), LEAF),
        (_circle(-0.2, 0.52, 0.2), _darker(LEAF, 0.85)),
        (_circle(0.21, 0.54, 0.19), (58, 116, 56)),
    ]


def _house(rgb: Rgb) -> list[Shape]:
    return [
        (_box(-0.5, 0.0, 0.5, 0.58), rgb),
        ([(-0.6, 0.56), (0.6, 0.56), (0.0, 1.0)], _darker(rgb, 0.5)),
        (_box(-0.1, 0.0, 0.1, 0.36), WOOD),
        (_box(-0.4, 0.24, -0.2, 0.44), (250, 228, 150)),
        (_box(0.2, 0.24, 0.4, 0.44), (250, 228, 150)),
    ]


def _figure(rgb: Rgb) -> list[Shape]:
    return [
        (_box(-0.1, 0.0, -0.01, 0.45), (52, 52, 66)),
        (_box(0.01, 0.0, 0.1, 0.45), (52, 52, 66)),
        ([(-0.17, 0.4), (0.17, 0.4), (0.12, 0.78), (-0.12, 0.78)], rgb),
        (_circle(0.0, 0.89, 0.11), SKIN),
        ([(-0.115, 0.9), (0.115, 0.9), (0.07, 1.0), (-0.07, 1.0)], WOOD),
    ]


def _rock(rgb: Rgb) -> list[Shape]:
    outline = [(-0.62, 0.0), (-0.5, 0.5), (-0.16, 0.92), (0.18, 1.0), (0.48, 0.56), (0.62, 0.0)]
    face = [(-0.16, 0.92), (0.18, 1.0), (0.1, 0.4), (-0.2, 0.0), (-0.5, 0.5)]
    return [(outline, _darker(STONE, 0.8)), (face, STONE)]


def _lighthouse(rgb: Rgb) -> list[Shape]:
    bands: list[Shape] = []
    for i in range(5):
        low, high = 0.12 + 0.13 * i, 0.25 + 0.13 * i
        wide, slim = 0.17 - 0.07 * low, 0.17 - 0.07 * high
        corners = [(-wide, low), (wide, low), (slim, high), (-slim, high)]
        bands.append((corners, rgb if i % 2 else CLOTH))
    base: Shape = ([(-0.4, 0.0), (0.4, 0.0), (0.24, 0.14), (-0.24, 0.14)], STONE)
    lamp: Shape = (_box(-0.08, 0.77, 0.08, 0.9), (255, 236, 150))
    roof: Shape = ([(-0.12, 0.88), (0.12, 0.88), (0.0, 1.0)], _darker(rgb))
    return [base, *bands, lamp, roof]


def _tent(rgb: Rgb) -> list[Shape]:
    return [
        ([(-0.75, 0.0), (0.75, 0.0), (0.0, 1.0)], rgb),
        ([(-0.22, 0.0), (0.22, 0.0), (0.0, 0.7)], _darker(rgb, 0.4)),
    ]


def _cactus(rgb: Rgb) -> list[Shape]:
    body, dark = (58, 110, 62), (46, 92, 52)
    return [
        (_box(-0.09, 0.0, 0.09, 1.0), body),
        (_box(-0.32, 0.4, -0.09, 0.5), dark),
        (_box(-0.32, 0.4, -0.21, 0.76), dark),
        (_box(0.09, 0.3, 0.32, 0.4), dark),
        (_box(0.21, 0.3, 0.32, 0.66), dark),
    ]


def _cow(rgb: Rgb) -> list[Shape]:
    legs: list[Shape] = [
        (_box(x, 0.0, x + 0.1, 0.4), (236, 232, 226)) for x in (-0.5, -0.3, 0.2, 0.4)
    ]
    return [
        *legs,
        (_circle(0.0, 0.6, 0.56, 0.5), (238, 234, 228)),
        (_circle(-0.2, 0.66, 0.2, 0.7), (50, 44, 42)),
        (_circle(0.24, 0.56, 0.17, 0.8), (50, 44, 42)),
        (_circle(0.62, 0.8, 0.19), (238, 234, 228)),
    ]


def _windmill(rgb: Rgb) -> list[Shape]:
    blades: list[Shape] = []
    for quarter in range(4):
        angle = math.radians(20 + 90 * quarter)
        c, s = math.cos(angle), math.sin(angle)
        blade = [(0.0, -0.03), (0.34, -0.05), (0.34, 0.05), (0.0, 0.03)]
        blades.append(([(x * c - y * s, 0.66 + x * s + y * c) for x, y in blade], CLOTH))
    tower: Shape = ([(-0.2, 0.0), (0.2, 0.0), (0.12, 0.7), (-0.12, 0.7)], rgb)
    cap: Shape = ([(-0.14, 0.68), (0.14, 0.68), (0.0, 0.84)], _darker(rgb, 0.5))
    return [tower, cap, *blades]


def _tower(rgb: Rgb) -> list[Shape]:
    windows: list[Shape] = [
        (_box(x, y, x + 0.06, y + 0.06), (250, 228, 150))
        for y in (0.18, 0.34, 0.5, 0.66)
        for x in (-0.11, 0.05)
    ]
    roof: Shape = ([(-0.2, 0.8), (0.2, 0.8), (0.0, 1.0)], _darker(rgb, 0.5))
    return [(_box(-0.18, 0.0, 0.18, 0.82), rgb), roof, *windows]


def _balloon(rgb: Rgb) -> list[Shape]:
    return [
        ([(-0.12, 0.3), (0.12, 0.3), (0.07, 0.12), (-0.07, 0.12)], _darker(CLOTH, 0.5)),
        (_circle(0.0, 0.64, 0.36), rgb),
        (_circle(0.0, 0.64, 0.14, 2.55), _darker(rgb, 0.8)),
        (_box(-0.09, 0.0, 0.09, 0.13), WOOD),
    ]


def _sun(rgb: Rgb) -> list[Shape]:
    return [(_circle(0.0, 0.5, 0.5), (255, 232, 150))]


def _moon(rgb: Rgb) -> list[Shape]:
    return [
        (_circle(0.0, 0.5, 0.5), (232, 232, 220)),
        (_circle(0.15, 0.6, 0.12), (204, 204, 196)),
        (_circle(-0.18, 0.35, 0.09), (204, 204, 196)),
    ]


_SHAPES = {
    "boat": _boat,
    "tree": _tree,
    "house": _house,
    "figure": _figure,
    "rock": _rock,
    "lighthouse": _lighthouse,
    "tent": _tent,
    "cactus": _cactus,
    "cow": _cow,
    "windmill": _windmill,
    "tower": _tower,
    "balloon": _balloon,
    "sun": _sun,
    "moon": _moon,
}
