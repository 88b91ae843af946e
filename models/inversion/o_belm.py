"""O-BELM: a two-step sampler of second order that can be solved for its noisier state, so it runs back exactly.

Source:  Wang et al. 2024 (BELM), arXiv:2410.07273, O-BELM, in sigma space with h_i the length of the step
         below level i and h_{i-1} of the one above:
         x_{i+1} = r^2 x_{i-1} + (1 - r^2) x_i - (h_i + h_{i-1}) r d(x_i, sigma_i),   r = h_i / h_{i-1}
Differs: from the clean state to the first noisy one target-time DDIM leads.
         The two noisiest states are kept; the walk down from above level 0 takes them from the states.
"""

from collections.abc import Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import AfterStep, Calls, Denoise, Method, Observe, Path, ascend
from .trajectory import Inversion


class OBelm(Method):
    name = "o-belm (exact)"
    exact = True

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        if len(sigmas) < 3:
            raise ValueError(
                f"method is '{self.name}' and there is {len(sigmas) - 1} step, its sampler needs two at least; "
                "raise steps or strength, or take another method"
            )
        calls = Calls(denoise, len(sigmas) - 1, observe)
        cleaner: Tensor | None = None

        def step(i: int, x: Tensor) -> Tensor:
            nonlocal cleaner
            if cleaner is None:
                source, target = sigmas[i + 1], sigmas[i]
                d = calls.slope(space.at_level(x, source, target), target, i)
                found = x + (target - source) * d
            else:
                r, span = _ratio(sigmas, i + 1)
                d = calls.slope(x, sigmas[i + 1], i + 1)
                found = (cleaner - (1 - r * r) * x + span * r * d) / (r * r)
            cleaner = x
            return found

        states = ascend(clean, sigmas, step)
        return Path(states=states, second=states[1].clone(), calls=calls.done)

    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        sigmas = inversion.sigmas
        calls = Calls(denoise, inversion.steps - start - 1, observe)
        noisier = inversion.state(start).to(inversion.noise)
        second = inversion.second if start == 0 else None
        x = (inversion.state(start + 1) if second is None else second).to(noisier)
        for i in range(start + 1, inversion.steps):
            r, span = _ratio(sigmas, i)
            d = calls.slope(x, sigmas[i], i)
            noisier, x = x, r * r * noisier + (1 - r * r) * x - span * r * d
            if after_step is not None:
                x = after_step(i + 1, x)
        return x


def _ratio(sigmas: Sequence[float], i: int) -> tuple[float, float]:
    """r and h_i + h_{i-1} around level i."""
    below, above = sigmas[i] - sigmas[i + 1], sigmas[i - 1] - sigmas[i]
    return below / above, below + above
