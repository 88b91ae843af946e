"""How much a picture is its own mirror image.

Source:  DOODL, Wallace et al. 2023, arXiv:2303.13703, which optimises horizontal symmetry; there as a
         loss on pixels.
Differs: in points: 100 minus 100 times the root of the mean squared difference.
"""

from dataclasses import dataclass

from torch import Tensor

from .reward import POINTS, WHOLE

LEAST = 1e-12  # so that the root has a gradient in a symmetric picture


@dataclass(frozen=True, kw_only=True)
class SymmetryReward:
    """Symmetry of left and right: 100 where both halves mirror each other."""

    name: str = "symmetry"
    weight: float = 1.0

    def score(self, image: Tensor, part: str = WHOLE) -> Tensor:
        """As in `Reward`; every part is treated alike."""
        error = (image - image.flip(-1)).square().mean((1, 2, 3))
        return POINTS * (1 - (error + LEAST).sqrt())
