"""Measure the composition measuring: python dev.py bench composition [--photos DIR] [--scenes N]

One line per bar: what, ours, baseline, bound, and whether it holds; the same as JSON in bench/results.
The drawings are seeds that no training uses. The photographs are not part of this repository: DIR
holds pictures and labels.json, {"file": {"left": y, "right": y} or null}, heights as shares.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..mini.landscapes import scene
from ..mini.painter import paint
from ..mini.photolike.indoors import texture
from ..mini.pool import UNSEEN_FROM
from ..models.composition.horizon_lines import candidate_lines, square_of
from ..models.composition.horizon_voters import find_segments, vote_segments
from ..models.composition.measure import Measurement, measure_composition
from ._rows import Row, report

BASELINE_LEAST = 0.5  # share of the width that segments must cover for the plain vote to answer
Edges = tuple[float, float]


@dataclass
class Case:
    """A picture's truth and the two answers, lines as edge heights, None for "no horizon"."""

    truth: Edges | None
    line: Edges | None
    best_guess: Edges | None
    baseline: Edges | None
    baseline_guess: Edges | None


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the composition measuring.")
    parser.add_argument("--photos", type=Path, help="folder with pictures and labels.json")
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = [*drawing_rows(options.scenes), speed_row()]
    if options.photos:
        rows += photo_rows(options.photos)
    else:
        print("photographs: skipped; give --photos DIR with pictures and labels.json")
    report("composition", rows)


def drawing_rows(count: int) -> list[Row]:
    """Unseen drawings with exact truth, and textures."""
    cases, tilts, base_tilts, subjects = [], [], [], []
    for seed in range(UNSEEN_FROM, UNSEEN_FROM + count):
        painting = paint(scene(seed), 256)
        image = to_tensor(painting.image)
        truth = None
        if painting.horizon is not None:
            rise = np.tan(np.radians(painting.tilt_deg)) / 2
            truth = (painting.horizon - rise, painting.horizon + rise)
        measured, case = measure_case(image, truth)
        cases.append(case)
        if truth is not None:
            tilts.append(abs(measured.candidate.tilt_deg - painting.tilt_deg))
            base_tilts.append(abs(tilt_of(case.baseline_guess) - painting.tilt_deg))
        if painting.subject_x is not None:
            found = measured.candidate
            subjects.append(
                np.hypot(found.subject_x - painting.subject_x, found.subject_y - painting.subject_y)
            )
    for seed in range(UNSEEN_FROM, UNSEEN_FROM + count // 4):
        cases.append(measure_case(to_tensor(draw_texture(seed)), None)[1])
    return [
        Row(
            "drawings: share of horizons within 0.05",
            within(cases),
            within(cases, base=True),
            0.95,
            True,
        ),
        Row(
            "drawings and textures: false positives",
            false_positives(cases),
            false_positives(cases, base=True),
            0.05,
            False,
        ),
        Row(
            "drawings: median tilt error (degrees)",
            float(np.median(tilts)),
            float(np.median(base_tilts)),
            1.0,
            False,
        ),
        Row(
            "drawings: share of subjects within 0.08 (baseline: chance)",
            float(np.mean(np.array(subjects) <= 0.08)),
            np.pi * 0.08**2,
            0.9,
            True,
        ),
    ]


def photo_rows(folder: Path) -> list[Row]:
    """Labelled photographs and other people's pictures."""
    labels = json.loads((folder / "labels.json").read_text())
    cases = []
    for name, label in labels.items():
        image = cv2.imread(str(folder / name), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(
                f"{name} is no readable picture, labels.json names it; remove it there or mend it"
            )
        truth = None if label is None else (label["left"], label["right"])
        cases.append(measure_case(to_tensor(image[..., ::-1].copy()), truth)[1])
    return [
        Row(
            f"photographs ({len(cases)}): area to 0.25",
            area(cases),
            area(cases, base=True),
            0.80,
            True,
        ),
        Row(
            "photographs: false positives",
            false_positives(cases),
            false_positives(cases, base=True),
            0.10,
            False,
        ),
        Row(
            "photographs: share of horizons within 0.05",
            within(cases),
            within(cases, base=True),
            0.75,
            True,
        ),
        Row(
            "photographs: the same, best guess without abstaining",
            within(cases, guess=True),
            within(cases, base=True, guess=True),
            0.75,
            True,
        ),
    ]


def speed_row() -> Row:
    image = to_tensor(cv2.resize(paint(scene(UNSEEN_FROM + 1), 256).image, (1024, 1024)))
    measure_composition(image)
    times = []
    for _ in range(15):
        began = time.perf_counter()
        measure_composition(image)
        times.append((time.perf_counter() - began) * 1e3)
    return Row(
        "1024 x 1024 picture, one thread (ms, median)", float(np.median(times)), None, 60.0, False
    )


def measure_case(image: Tensor, truth: Edges | None) -> tuple[Measurement, Case]:
    measured = measure_composition(image)[0]
    aspect = image.shape[-1] / image.shape[-2]
    guess, covered = plain_vote(image)
    return measured, Case(
        truth,
        edges_of(measured.anchor, aspect),
        edges_of(measured.candidate, aspect),
        guess if covered >= BASELINE_LEAST else None,
        guess,
    )


def plain_vote(image: Tensor) -> tuple[Edges, float]:
    """The baseline: the line that most length of segments lies on, and the share of the width."""
    lines = candidate_lines()
    votes = vote_segments(find_segments(square_of(image, 384)[0]), lines)
    best = lines[votes.argmax()]
    return (float(best[0]), float(best[1])), float(votes.max())


def edges_of(anchor, aspect: float) -> Edges | None:
    left, right = anchor.horizon_at(0.0, aspect), anchor.horizon_at(1.0, aspect)
    return None if left is None or right is None else (left, right)


def errors(cases: list[Case], base: bool, guess: bool) -> np.ndarray:
    """The largest gap at the frame's edges, over the pictures with a horizon; 1 for no answer."""
    answer = {(0, 0): "line", (0, 1): "best_guess", (1, 0): "baseline", (1, 1): "baseline_guess"}[
        base, guess
    ]
    found = [(case.truth, getattr(case, answer)) for case in cases if case.truth is not None]
    return np.array(
        [1.0 if b is None else max(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in found]
    )


def within(cases: list[Case], base: bool = False, guess: bool = False) -> float:
    return float((errors(cases, base, guess) <= 0.05).mean())


def area(cases: list[Case], base: bool = False) -> float:
    """Area under the cumulative error curve up to 0.25, of the best guesses, over its largest value."""
    return float(np.clip(1 - errors(cases, base, guess=True) / 0.25, 0, 1).mean())


def false_positives(cases: list[Case], base: bool = False) -> float:
    answers = [case.baseline if base else case.line for case in cases if case.truth is None]
    return float(np.mean([answer is not None for answer in answers]))


def tilt_of(edges: Edges) -> float:
    return float(np.degrees(np.arctan(edges[1] - edges[0])))


def draw_texture(seed: int) -> np.ndarray:
    axis = ((np.arange(192) + 0.5) / 192).astype(np.float32)
    grid = (np.tile(axis, (192, 1)), np.tile(axis[:, None], (1, 192)))
    canvas = np.zeros((192, 192, 3), np.float32)
    texture(np.random.default_rng(seed), canvas, grid)
    return (canvas.clip(0, 1) * 255).astype(np.uint8)


def to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


if __name__ == "__main__":
    main()
