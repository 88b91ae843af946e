"""FireFlow: the midpoint rule with the slope at the start of a step taken from the middle of the one before.

Source:  Deng et al. 2024 (FireFlow), arXiv:2412.07517: m = x + h/2 d_before;
         d = d(m, sigma + h/2); x' = x + h d. Second order at one call a step, and one for the first.
Differs: for all models, in sigma space. From sigma 0 the first slope is taken at the middle level.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import AfterStep, Calls, Denoise, Method, Observe, Path, ascend, descend
from .trajectory import Inversion


class FireFlow(Method):
    name = "fireflow"

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        calls = Calls(denoise, len(sigmas), observe)
        move = _mover(calls, space)

        def step(i: int, x: Tensor) -> Tensor:
            return move(x, sigmas[i + 1], sigmas[i], i)

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
        move = _mover(Calls(denoise, inversion.steps - start + 1, observe), inversion.space)

        def step(i: int, x: Tensor) -> Tensor:
            return move(x, sigmas[i], sigmas[i + 1], i)

        return descend(inversion, step, after_step, start)


def _mover(calls: Calls, space: NoiseSpace) -> Callable[[Tensor, float, float, int], Tensor]:
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
