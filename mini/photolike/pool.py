"""A pool of labelled pictures on disk: photolike scenes and the miniature's drawings, in parts."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from ..landscapes import scene
from ..painter import paint
from .noise import Array
from .scene import SIDE_PX, draw

PART = 250
DRAWING_EVERY = 4  # one picture in four is a drawing of the miniature
LEAST_VISIBLE = 0.25  # a horizon hidden beyond this is neither a positive nor a negative


def render(folder: Path, count: int, workers: int | None = None) -> None:
    """Draw pictures 0..count into `folder`; parts that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"part{start:08d}.npz", start) for start in range(0, count, PART)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(_render_part, jobs), 1):
            print(f"\rdrawn {done * PART} of {count} pictures", end="", flush=True)
    print()


def load(folder: Path) -> tuple[Array, Array]:
    """All parts drawn so far.

    Returns:
        images (n side side 3) uint8, and labels (n 2): heights at the left and right edge, or NaN.
    """
    parts = [np.load(path) for path in sorted(folder.glob("part????????.npz"))]
    images = np.concatenate([part["images"] for part in parts])
    return images, np.concatenate([part["labels"] for part in parts])


def labelled_picture(seed: int) -> tuple[Array, float, float] | None:
    """Picture and edge heights of a seed, NaN without a horizon; None where the label is unsure."""
    if seed % DRAWING_EVERY == 0:
        painting = paint(scene(seed), SIDE_PX)
        if painting.horizon is None:
            return painting.image, np.nan, np.nan
        rise = np.tan(np.radians(painting.tilt_deg or 0.0)) / 2
        return painting.image, painting.horizon - rise, painting.horizon + rise
    picture = draw(seed)
    if picture.left is None or picture.right is None:
        return picture.image, np.nan, np.nan
    if picture.visible < LEAST_VISIBLE:
        return None
    return picture.image, picture.left, picture.right


def _render_part(job: tuple[Path, int]) -> None:
    path, start = job
    if path.exists():
        return
    cv2.setNumThreads(1)
    rows = [row for row in map(labelled_picture, range(start, start + PART)) if row is not None]
    draft = path.with_suffix(".tmp.npz")
    np.savez(
        draft,
        images=np.stack([row[0] for row in rows]),
        labels=np.array([row[1:] for row in rows], np.float32),
    )
    draft.replace(path)
