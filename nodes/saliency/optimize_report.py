"""What Optimize Latent tells: a curve, and the figures in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...models.saliency.objective import EYE
from ...models.saliency.whiteness import Whiteness, measure_whiteness
from .optimize_run import Done


@dataclass(frozen=True)
class Picture:
    """Points of each picture of the batch by the full VAE; held_out may be []."""

    points: Sequence[float]
    held_out: Sequence[float]


def draw_curve(rows: Sequence[Sequence[float]]) -> Tensor:
    """Points over steps (3 h w), beside the held-out ones, or the slow part of the noise."""
    from ...models.common.charts import Curve, draw_curves  # cv2: 0.1 s, which a start must not pay

    steps = [row[0] for row in rows]
    held_out = [row[3] for row in rows]
    if all(math.isfinite(value) for value in held_out):
        right = Curve("held-out points", steps, held_out)
    else:
        right = Curve("slow part of the noise (1 is white)", steps, [row[4] for row in rows])
    return draw_curves(Curve("points", steps, [row[1] for row in rows]), right, int(steps[-1]))


def report_of(done: Done, pictures: Mapping[str, Picture], preset: str, use: str) -> str:
    """The figures in words; points are means over the batch."""
    lines = [
        f"{preset}; saliency: {use}",
        f"{done.steps} steps in {done.seconds:.1f} s",
        f"objective: {done.rows[0][1]:.2f} at first, {float(done.points[0].mean()):.2f} at best",
    ]
    for name, picture in pictures.items():
        told = [f"{_mean(picture.points):.2f} points"] if picture.points else []
        if picture.held_out:
            told.append(f"{_mean(picture.held_out):.2f} held out")
        if told:
            lines.append(f"{name}: {', '.join(told)}")
    if done.compared is not None:
        lines.append(f"{done.tried} random noises were judged in the same seconds")
    before, after = measure_whiteness(done.first), measure_whiteness(done.kept[0])
    lines.append(f"noise before: {_whiteness(before)}")
    lines.append(f"noise after: {_whiteness(after)}")
    if use == EYE:
        lines.append("the objective counts 100 where the saliency map is the mask's own shape")
    return "\n".join([*lines, *done.notes])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _whiteness(found: Whiteness) -> str:
    return (
        f"rms {found.rms:.3f}, slow part {found.low:.2f}, fast part {found.high:.2f}, "
        f"kurtosis {found.kurtosis:.2f}"
    )
