"""Uni-Inv: each step up is predicted with the slope before it and made with the slope found there.

Source:  Jiao et al. 2025 (UniEdit-Flow), arXiv:2504.13109, Uni-Inv:
         p = x_{i+1} + h d_before;  d = d(p, sigma_i);  x_i = x_{i+1} + h d
Differs: also for eps and v models, in sigma space. Before the first step the slope is that of target-time
         DDIM, because at sigma 0 there is none: one call more than there are steps.
"""

from collections.abc import Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .euler import EulerDown
from .method import Calls, Denoise, Observe, Path, ascend


class UniInv(EulerDown):
    name = "uni-inv"

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
        d: Tensor | None = None

        def step(i: int, x: Tensor) -> Tensor:
            nonlocal d
            source, target = sigmas[i + 1], sigmas[i]
            if d is None:
                d = calls.slope(space.at_level(x, source, target), target, i)
            d = calls.slope(x + (target - source) * d, target, i)
            return x + (target - source) * d

        return Path(states=ascend(clean, sigmas, step), calls=calls.done)
