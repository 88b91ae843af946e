"""Midpoint rule both ways: second order, two calls a step.

Source:  Wang et al. 2024 (RF-Solver), arXiv:2411.04746, whose second-order Taylor step with the
         derivative by finite difference is the midpoint rule:
         m = x + h/2 d(x, sigma);  x' = x + h d(m, sigma + h/2)
Differs: for all models, in sigma space. The first step from sigma 0 takes its first slope at the middle level.
"""

from collections.abc import Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import AfterStep, Calls, Denoise, Method, Observe, Path, ascend, descend
from .trajectory import Inversion


class Midpoint(Method):
    name = "midpoint"

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        calls = Calls(denoise, 2 * (len(sigmas) - 1), observe)

        def step(i: int, x: Tensor) -> Tensor:
            return _step(calls, space, x, (sigmas[i + 1], sigmas[i]), i)

        return Path(states=ascend(clean, sigmas, step), calls=calls.done)

    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        sigmas = inversion.sigmas
        calls = Calls(denoise, 2 * (inversion.steps - start), observe)

        def step(i: int, x: Tensor) -> Tensor:
            return _step(calls, inversion.space, x, (sigmas[i], sigmas[i + 1]), i)

        return descend(inversion, step, after_step, start)


def _step(
    calls: Calls, space: NoiseSpace, x: Tensor, levels: tuple[float, float], i: int
) -> Tensor:
    source, target = levels
    middle = (source + target) / 2
    first = source or middle  # no slope at sigma 0
    d = calls.slope(space.at_level(x, source, first), first, i)
    d = calls.slope(x + (middle - source) * d, middle, i)
    return x + (target - source) * d
