"""The composition anchor: where the horizon and the subject are wanted, or were found.

Source:  four numbers in the spirit of arXiv:2606.07638, with its confidence and saliency entries
         replaced by tilt and subject position, and with every part allowed to be "don't care".
Symbols: horizon height at the centre column (0 top edge, 1 bottom edge); tilt in degrees, positive
         when the right end of the horizon is the lower one; subject centre x (0 left, 1 right), y.
"""

import math
from dataclasses import dataclass

MAX_TILT_DEG = 30.0  # beyond it a horizon is no longer what a viewer reads as one


def _check_part(name: str, value: float | None, low: float, high: float, meaning: str) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value:g}, it must lie in {low:g}..{high:g}; {meaning}")


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """One wanted or measured composition; None in a part means "don't care" or "not found".

    Raises:
        ValueError: a part is not a finite number in its range.
    """

    horizon: float | None = None
    tilt_deg: float | None = None
    subject_x: float | None = None
    subject_y: float | None = None

    def __post_init__(self) -> None:
        _check_part("horizon", self.horizon, 0.0, 1.0, "0 is the top edge and 1 the bottom edge")
        _check_part(
            "tilt_deg", self.tilt_deg, -MAX_TILT_DEG, MAX_TILT_DEG, "give degrees from level"
        )
        _check_part(
            "subject_x", self.subject_x, 0.0, 1.0, "0 is the left edge and 1 the right edge"
        )
        _check_part(
            "subject_y", self.subject_y, 0.0, 1.0, "0 is the top edge and 1 the bottom edge"
        )

    def horizon_at(self, x: float, aspect: float) -> float | None:
        """Height of the horizon line at a column.

        Args:
            x: column as a share of the width, 0 left and 1 right.
            aspect: width over height of the frame.

        Returns:
            Share of the height from the top, outside 0..1 where the line leaves the frame;
            None without a horizon. A missing tilt counts as level.
        """
        if self.horizon is None:
            return None
        slope = math.tan(math.radians(self.tilt_deg or 0.0))
        return self.horizon + slope * (x - 0.5) * aspect


@dataclass(frozen=True)
class AnchorBatch:
    """What a VEDUTA_ANCHOR socket carries: one anchor, or one per picture of a batch.

    Raises:
        ValueError: no anchor at all.
    """

    anchors: tuple[Anchor, ...]

    def __post_init__(self) -> None:
        if not self.anchors:
            raise ValueError("the anchor batch is empty, one anchor at least is needed; add one")

    def for_batch(
        self, count: int, name: str = "anchor", pictures: str = "image"
    ) -> tuple[Anchor, ...]:
        """The anchors of `count` pictures: one for all of them, or exactly one each.

        Args:
            count: how many pictures there are.
            name: the user's name of these anchors, for the error.
            pictures: the user's name of the pictures, for the error.

        Raises:
            ValueError: neither one anchor nor `count` of them.
        """
        if len(self.anchors) == 1:
            return self.anchors * count
        if len(self.anchors) != count:
            raise ValueError(
                f"{name} holds {len(self.anchors)} anchors, {pictures} holds {count} "
                f"picture{'' if count == 1 else 's'}; pass one anchor, or one per picture"
            )
        return self.anchors


THIRD = 1.0 / 3.0
GOLDEN = 2.0 / (1.0 + math.sqrt(5.0))  # 0.618, the longer part of a golden section

PRESETS: dict[str, Anchor] = {
    "high horizon (upper third)": Anchor(horizon=THIRD, tilt_deg=0.0),
    "low horizon (lower third)": Anchor(horizon=2 * THIRD, tilt_deg=0.0),
    "upper third, subject left": Anchor(
        horizon=THIRD, tilt_deg=0.0, subject_x=THIRD, subject_y=2 * THIRD
    ),
    "upper third, subject right": Anchor(
        horizon=THIRD, tilt_deg=0.0, subject_x=2 * THIRD, subject_y=2 * THIRD
    ),
    "lower third, subject left": Anchor(
        horizon=2 * THIRD, tilt_deg=0.0, subject_x=THIRD, subject_y=2 * THIRD
    ),
    "lower third, subject right": Anchor(
        horizon=2 * THIRD, tilt_deg=0.0, subject_x=2 * THIRD, subject_y=2 * THIRD
    ),
    "golden section, high horizon": Anchor(horizon=1.0 - GOLDEN, tilt_deg=0.0),
    "golden section, low horizon": Anchor(horizon=GOLDEN, tilt_deg=0.0),
    "centred": Anchor(horizon=0.5, tilt_deg=0.0, subject_x=0.5, subject_y=0.5),
    "low sky": Anchor(horizon=0.18, tilt_deg=0.0),
    "big sky": Anchor(horizon=0.82, tilt_deg=0.0),
}
