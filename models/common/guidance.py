"""Guidance by a text and by something more, each with a scale of its own.

Source:  Brooks et al. 2023 (InstructPix2Pix), arXiv:2211.09800, Eq. 3, the text first here:
         e(n,0) + s_t [e(t,0) - e(n,0)] + s_x [e(t,x) - e(t,0)]
Differs: written as plain CFG, u + s [c - u], with c = e(t,0) + s_x/s_t [e(t,x) - e(t,0)], u = e(n,0)
         and s = s_t, so that whatever acts on plain CFG acts on the whole of it.
         Predictions that the scales make unneeded are left out.
Symbols: e prediction; n negative text, t text; x what is attended to besides the text, 0 nothing (or
         what to keep away from); s_t, s_x scales.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class Branch(Enum):
    """A prediction of the network."""

    BOTH = "text and extra"  # e(t,x)
    TEXT = "text"  # e(t,0)
    NEGATIVE = "negative"  # e(n,0)


@dataclass(frozen=True, kw_only=True)
class Scales:
    """How strongly to follow what.

    Args:
        text: s_t.
        extra: s_x; unused if `joint`.
        joint: one scale for both, e(n,0) + s_t [e(t,x) - e(n,0)].
    """

    text: float
    extra: float = 0.0
    joint: bool = False


@dataclass(frozen=True)
class Plan:
    """The guidance of one step as plain CFG.

    Args:
        branches: predictions to evaluate, the conditional one first and the other second as in
            plain CFG; None for one that plain CFG leaves out. A third is text alone.
        scale: of plain CFG.
        ratio: s_x/s_t; only with three branches.
        around: where the difference between the first branch and text alone is added; only with
            three branches.
    """

    branches: tuple[Branch | None, ...]
    scale: float
    ratio: float = 1.0
    around: Branch = Branch.TEXT

    def fold(self, predictions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The two predictions of plain CFG.

        Args:
            predictions: one for each of `branches`, any equal shapes; left unmodified.

        Returns:
            Conditional and unconditional prediction, c and u.
        """
        if len(predictions) == 2:
            return predictions[0], predictions[1]
        both, negative, text = predictions
        base = negative if self.around is Branch.NEGATIVE else text
        return base + self.ratio * (both - text), negative


def plan_guidance(scales: Scales, *, extra_holds: bool = True, keep_negative: bool = False) -> Plan:
    """Choose what to evaluate in a step, and how it makes plain CFG.

    Args:
        scales: s_t and s_x.
        extra_holds: False outside the interval of the extra: text and negative only.
        keep_negative: evaluate the negative even where s_t = 1 makes it unneeded.
    """
    text = scales.text
    extra = (text if scales.joint else scales.extra) if extra_holds else 0.0
    unneeded_negative = math.isclose(text, 1.0) and not keep_negative
    if extra == 0 or math.isclose(extra, text):
        first = Branch.TEXT if extra == 0 else Branch.BOTH
        return Plan((first, None if unneeded_negative else Branch.NEGATIVE), text)
    if unneeded_negative:
        return Plan((Branch.BOTH, Branch.TEXT), extra)
    three = (Branch.BOTH, Branch.NEGATIVE, Branch.TEXT)
    if text == 0:
        return Plan(three, extra, around=Branch.NEGATIVE)
    return Plan(three, text, extra / text)
