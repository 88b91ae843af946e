"""How well a measured composition answers a wanted one: an error per part, one score, a ranking.

Source:  own. Errors: horizon |dy| at the centre column (share of the height), tilt (degrees),
         subject distance (share of the diagonal).
         Score = sum_i w_i exp(-e_i / s_i) / sum_i w_i over the parts that are asked for, 1 best.
         It never saturates, so pictures that are all far off are still put in order.
Note:    a part that is asked for but was not found counts as the worst error there is: a picture
         is not rewarded for hiding its horizon.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..common.anchor import MAX_TILT_DEG, Anchor
from .thirds import ThirdsAlignment, diagonal_distance, thirds_alignment

WORST_HORIZON = 1.0  # the whole height
WORST_TILT_DEG = 2 * MAX_TILT_DEG  # one end of the range to the other
WORST_SUBJECT = 1.0  # the whole diagonal
NOTHING_WANTED = (
    "anchor asks for nothing, horizon, tilt or subject is needed to score by; "
    "switch one of them on in the anchor"
)


@dataclass(frozen=True, kw_only=True)
class ScoreWeights:
    """Weight w of each part and the error s at which its credit has fallen to 1/e = 0.37.

    Horizon and subject count alike, tilt half: a slight roll is cropped away, a wrong horizon is
    not. The scales are two to three times the error a viewer notices.

    Raises:
        ValueError: a negative weight, no weight at all, or a scale of 0 or less.
    """

    horizon: float = 2.0
    tilt: float = 1.0
    subject: float = 2.0
    horizon_scale: float = 0.10
    tilt_scale_deg: float = 5.0
    subject_scale: float = 0.15

    def __post_init__(self) -> None:
        weights = (self.horizon, self.tilt, self.subject)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"weights are {weights}, 0 or more are needed; make one positive")
        if min(self.horizon_scale, self.tilt_scale_deg, self.subject_scale) <= 0:
            raise ValueError("a scale is 0 or less, a positive error is needed; leave the default")


@dataclass(frozen=True, kw_only=True)
class PartErrors:
    """Error per part: None where the part was not asked for, the worst where it was not found."""

    horizon: float | None = None
    tilt_deg: float | None = None
    subject: float | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompositionScore:
    """One picture against one wanted composition; `total` is 0..1, 1 is exactly as wanted."""

    wanted: Anchor
    found: Anchor
    errors: PartErrors
    thirds: ThirdsAlignment
    total: float


def part_errors(found: Anchor, wanted: Anchor, aspect: float) -> PartErrors:
    """Difference of every part that is asked for.

    Args:
        found: the measured composition; None where a part was not found.
        wanted: the target; None where a part does not matter.
        aspect: width over height of the picture.
    """
    horizon = _difference(found.horizon, wanted.horizon, WORST_HORIZON)
    tilt = _difference(found.tilt_deg, wanted.tilt_deg, WORST_TILT_DEG)
    subject = _subject_distance(found, wanted, aspect)
    asked = {"horizon": horizon, "tilt": tilt, "subject": subject}
    lost = {
        "horizon": found.horizon is None,
        "tilt": found.tilt_deg is None,
        "subject": _is_subject_lost(found, wanted),
    }
    missing = tuple(name for name, error in asked.items() if error is not None and lost[name])
    return PartErrors(horizon=horizon, tilt_deg=tilt, subject=subject, missing=missing)


def check_wanted(wanted: Sequence[Anchor]) -> None:
    """Refuse targets that nothing can be compared with, before any picture is measured.

    Raises:
        ValueError: an anchor that leaves every part open.
    """
    if any(anchor == Anchor() for anchor in wanted):
        raise ValueError(NOTHING_WANTED)


def score_composition(
    found: Anchor, wanted: Anchor, aspect: float, weights: ScoreWeights | None = None
) -> CompositionScore:
    """Score one measured composition against the wanted one.

    Args:
        found: the measured composition; None where a part was not found.
        wanted: the target; None where a part does not matter.
        aspect: width over height of the picture.
        weights: of the parts; the defaults of `ScoreWeights` if None.

    Raises:
        ValueError: `wanted` asks for nothing, or only for parts of weight 0.
    """
    weights = weights or ScoreWeights()
    errors = part_errors(found, wanted, aspect)
    parts = (
        (errors.horizon, weights.horizon, weights.horizon_scale),
        (errors.tilt_deg, weights.tilt, weights.tilt_scale_deg),
        (errors.subject, weights.subject, weights.subject_scale),
    )
    asked = [(error, weight, scale) for error, weight, scale in parts if error is not None]
    weight_sum = sum(weight for _, weight, _ in asked)
    if weight_sum == 0:
        raise ValueError(NOTHING_WANTED)
    total = sum(weight * math.exp(-error / scale) for error, weight, scale in asked) / weight_sum
    return CompositionScore(
        wanted=wanted,
        found=found,
        errors=errors,
        thirds=thirds_alignment(found, aspect),
        total=total,
    )


def rank_best_first(totals: Sequence[float]) -> tuple[int, ...]:
    """Indices of the highest total first; equal ones keep their order."""
    return tuple(sorted(range(len(totals)), key=lambda index: -totals[index]))


def _difference(found: float | None, wanted: float | None, worst: float) -> float | None:
    if wanted is None:
        return None
    return worst if found is None else abs(found - wanted)


def _subject_distance(found: Anchor, wanted: Anchor, aspect: float) -> float | None:
    if wanted.subject_x is None and wanted.subject_y is None:
        return None
    if _is_subject_lost(found, wanted):
        return WORST_SUBJECT
    dx = _difference(found.subject_x, wanted.subject_x, 1.0) or 0.0
    dy = _difference(found.subject_y, wanted.subject_y, 1.0) or 0.0
    return diagonal_distance(dx, dy, aspect)


def _is_subject_lost(found: Anchor, wanted: Anchor) -> bool:
    pairs = ((found.subject_x, wanted.subject_x), (found.subject_y, wanted.subject_y))
    return any(asked is not None and got is None for got, asked in pairs)
