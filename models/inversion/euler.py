"""Way down by Euler steps, which are deterministic DDIM steps; what most solvers of the way up invert.

Source:  Song et al. 2021 (DDIM), arXiv:2010.02502, Eq. 12 with sigma_t = 0, in sigma space:
         x_{i+1} = x_i + (sigma_{i+1} - sigma_i) d(x_i, sigma_i)
"""

from torch import Tensor

from .method import AfterStep, Calls, Denoise, Method, Observe, descend
from .trajectory import Inversion


class EulerDown(Method):
    """A method whose way down is any stock Euler sampler's."""

    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        sigmas = inversion.sigmas
        calls = Calls(denoise, inversion.steps - start, observe)

        def step(i: int, x: Tensor) -> Tensor:
            return x + (sigmas[i + 1] - sigmas[i]) * calls.slope(x, sigmas[i], i)

        return descend(inversion, step, after_step, start)
