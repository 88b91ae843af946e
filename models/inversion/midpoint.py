"""Midpoint rule both ways: second order, two calls a step.

Source:  Wang et al. 2024 (RF-Solver), arXiv:2411.04746, whose second-order Taylor step with the
         derivative by finite difference is the midpoint rule:
         m = x + h/2 d(x, sigma);  x' = x + h d(m, sigma + h/2)
Differs: for all models, in sigma space. The first step from sigma 0 takes its first slope at the middle level.
"""

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import Calls
from .rule import Move, RuleMethod


class Midpoint(RuleMethod):
    name = "midpoint"

    def calls_of(self, steps: int) -> int:
        return 2 * steps

    def mover(self, calls: Calls, space: NoiseSpace) -> Move:
        def move(x: Tensor, source: float, target: float, i: int) -> Tensor:
            middle = (source + target) / 2
            first = source or middle  # no slope at sigma 0
            d = calls.slope(space.at_level(x, source, first), first, i)
            d = calls.slope(x + (middle - source) * d, middle, i)
            return x + (target - source) * d

        return move
