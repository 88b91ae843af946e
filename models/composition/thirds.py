"""Rule of thirds: how near a horizon or a subject sits to the thirds of the frame.

Source:  score exp(-d^2 / (2 sigma^2)) of the distance d to the nearest third (horizon, share of the
         height) or to the nearest crossing of two thirds (subject, share of the diagonal).
Note:    a horizon at a random height is within 0.05 of a third one time in five, so a single hit
         proves nothing.
"""

import math
from dataclasses import dataclass

from ..common.anchor import THIRD, Anchor

SIGMA = 0.07  # a horizon in the middle scores 0.06, one that is off by NEAR still 0.77
NEAR = 0.05  # "on the third" in the tables
THIRDS = (THIRD, 2 * THIRD)


@dataclass(frozen=True, kw_only=True)
class ThirdsAlignment:
    """Scores of 0..1 (1 is on the third), None where nothing was found; distances as shares."""

    horizon_distance: float | None = None
    subject_distance: float | None = None

    @property
    def horizon_score(self) -> float | None:
        return None if self.horizon_distance is None else thirds_score(self.horizon_distance)

    @property
    def subject_score(self) -> float | None:
        return None if self.subject_distance is None else thirds_score(self.subject_distance)

    @property
    def is_horizon_near(self) -> bool:
        return self.horizon_distance is not None and self.horizon_distance <= NEAR

    @property
    def is_subject_near(self) -> bool:
        return self.subject_distance is not None and self.subject_distance <= NEAR


def thirds_score(distance: float) -> float:
    """Score of a distance to the nearest third: 1 on it, falling as a Gaussian of SIGMA."""
    return math.exp(-(distance**2) / (2 * SIGMA**2))


def thirds_alignment(anchor: Anchor, aspect: float) -> ThirdsAlignment:
    """Distances of a measured composition to the thirds.

    Args:
        anchor: what was found; parts that are None stay None.
        aspect: width over height of the frame.
    """
    horizon, subject = None, None
    if anchor.horizon is not None:
        horizon = min(abs(anchor.horizon - third) for third in THIRDS)
    if anchor.subject_x is not None and anchor.subject_y is not None:
        dx = min(abs(anchor.subject_x - third) for third in THIRDS)
        dy = min(abs(anchor.subject_y - third) for third in THIRDS)
        subject = diagonal_distance(dx, dy, aspect)
    return ThirdsAlignment(horizon_distance=horizon, subject_distance=subject)


def diagonal_distance(dx: float, dy: float, aspect: float) -> float:
    """Length of an offset over the frame's diagonal.

    Args:
        dx: share of the width.
        dy: share of the height.
        aspect: width over height of the frame.
    """
    return math.hypot(dx * aspect, dy) / math.hypot(aspect, 1.0)
