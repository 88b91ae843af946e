"""Does asking move the picture? Statistics of requested against measured values.

Source:  gain (least-squares slope of measured on requested: 1 ideal, 0 no control), Spearman's rho,
         mean absolute error, and the same targets shuffled over the same pictures: p is the share
         of shufflings whose covariance is at least as large (with the true order counted in, so p
         is never 0). Comparing covariances is the same as comparing squared errors.
Note:    parts that were not found are left out of the first four and reported as abstention.
         Fewer than three pairs, or targets that do not vary, prove nothing: the values are None.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..common.anchor import Anchor

LEAST_PAIRS = 3  # two points always lie on a line
SHUFFLES = 9999  # p is resolved to 0.0001
PARTS = ("horizon", "tilt_deg", "subject_x", "subject_y")


@dataclass(frozen=True, kw_only=True)
class ControlStatistics:
    """Control over one part; None where too little was found to say anything."""

    requested: int
    abstention: float
    gain: float | None = None
    rho: float | None = None
    mean_error: float | None = None
    shuffled_p: float | None = None


def control_statistics(
    requested: Sequence[float | None], measured: Sequence[float | None], seed: int = 0
) -> ControlStatistics:
    """How far the measured values follow the requested ones.

    Args:
        requested: target per picture; None where the part does not matter (left out).
        measured: what was found per picture, in the same order; None where nothing was.
        seed: of the shuffling.

    Raises:
        ValueError: the lengths differ, or nothing is requested.
    """
    if len(requested) != len(measured):
        raise ValueError(
            f"requested holds {len(requested)} values, measured holds {len(measured)}; "
            "pass one of each per picture"
        )
    asked = [(r, m) for r, m in zip(requested, measured, strict=True) if r is not None]
    if not asked:
        raise ValueError("nothing is requested, one target at least is needed; set an anchor")
    pairs = np.array([(r, m) for r, m in asked if m is not None], np.float64).reshape(-1, 2)
    x, y = pairs.T
    counts = {"requested": len(asked), "abstention": 1.0 - len(pairs) / len(asked)}
    if len(pairs) == 0:
        return ControlStatistics(**counts)
    mean_error = float(np.abs(y - x).mean())
    if len(pairs) < LEAST_PAIRS or np.ptp(x) == 0:
        return ControlStatistics(**counts, mean_error=mean_error)
    dx = x - x.mean()
    return ControlStatistics(
        **counts,
        gain=float(dx @ (y - y.mean()) / (dx @ dx)),
        rho=_spearman(x, y),
        mean_error=mean_error,
        shuffled_p=_shuffled_p(dx, y, seed),
    )


def control_by_part(
    wanted: Sequence[Anchor], found: Sequence[Anchor], seed: int = 0
) -> dict[str, ControlStatistics]:
    """Control statistics of every part whose target differs among the pictures."""
    result = {}
    for part in PARTS:
        requested = [getattr(anchor, part) for anchor in wanted]
        if len({value for value in requested if value is not None}) > 1:
            measured = [getattr(anchor, part) for anchor in found]
            result[part] = control_statistics(requested, measured, seed)
    return result


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(y) == 0:  # equal answers to every question: no correlation to compute
        return 0.0
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _shuffled_p(dx: np.ndarray, y: np.ndarray, seed: int) -> float:
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.tile(dx, (SHUFFLES, 1)), axis=1)
    slack = 1e-12 * float(np.abs(dx).sum() * np.abs(y).max())  # equal orders sum differently
    hits = int((shuffled @ y >= dx @ y - slack).sum())
    return (1 + hits) / (1 + SHUFFLES)
