"""FireFlow: the midpoint rule with the slope at the start of a step taken from the middle of the one before.

Source:  Deng et al. 2024 (FireFlow), arXiv:2412.07517: m = x + h/2 d_before;
         d = d(m, sigma + h/2); x' = x + h d. Second order at one call a step, and one for the first.
Differs: for all models, in sigma space. From sigma 0 the first slope is taken at the middle level.
"""

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import Calls
from .rule import Move, RuleMethod


class FireFlow(RuleMethod):
    name = "fireflow"

    def calls_of(self, steps: int) -> int:
        return steps + 1

    def mover(self, calls: Calls, space: NoiseSpace) -> Move:
        d: Tensor | None = None

        def move(x: Tensor, source: float, target: float, i: int) -> Tensor:
            nonlocal d
            middle = (source + target) / 2
            if d is None:
                first = source or middle  # no slope at sigma 0
                d = calls.slope(space.at_level(x, source, first), first, i)
            d = calls.slope(x + (middle - source) * d, middle, i)
            return x + (target - source) * d

        return move
