"""Pools of painted scenes on disk: rendered once, in parallel, resumable."""

import json
import multiprocessing
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .landscapes import scene
from .painter import paint

CHUNK = 250  # scenes a worker draws before it reports
SCENES, UNSEEN = 20_000, 1_000  # how many the miniature is trained on, and measured on
UNSEEN_FROM = 10_000_000  # seeds from here on are never trained on


def render_pool(folder: Path, first_seed: int, count: int, size: int) -> Path:
    """Draw `count` scenes, `size` px square, from `first_seed` on; what is there already is kept.

    Returns:
        The folder: images.npy (n h w 3) uint8 and captions.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        (
            folder / f"part{start:08d}_{size}.npz",
            start,
            min(CHUNK, first_seed + count - start),
            size,
        )
        for start in range(first_seed, first_seed + count, CHUNK)
    ]
    if not (folder / "captions.json").exists():
        with _workers() as workers:
            for done, _ in enumerate(workers.imap_unordered(_render_part, parts), 1):
                print(f"\rpainted {min(done * CHUNK, count)} of {count} scenes", end="", flush=True)
        print()
        _join([part[0] for part in parts], folder)
    return folder


def load_pool(folder: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Pictures (n h w 3), read from disk as needed, and their captions."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    return images, json.loads((folder / "captions.json").read_text())


def _workers():
    # forked processes know this package by its alias; where there is no fork, threads must do
    if "fork" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("fork").Pool()
    return ThreadPool()


def _render_part(part: tuple[Path, int, int, int]) -> None:
    path, start, count, size = part
    if path.exists():
        return
    paintings = [paint(scene(seed), size) for seed in range(start, start + count)]
    draft = path.with_suffix(".tmp.npz")
    np.savez(
        draft,
        images=np.stack([painting.image for painting in paintings]),
        captions=np.array([painting.caption for painting in paintings]),
    )
    draft.replace(path)


def _join(parts: list[Path], folder: Path) -> None:
    loaded = [np.load(path) for path in parts]
    np.save(folder / "images.npy", np.concatenate([part["images"] for part in loaded]))
    captions = [str(caption) for part in loaded for caption in part["captions"]]
    (folder / "captions.json").write_text(json.dumps(captions))
    for path in parts:
        path.unlink()
