"""RF-Inversion: the way up is pulled towards drawn noise, the way down towards the picture.

Source:  Rout et al. 2024 (RF-Inversion), arXiv:2410.10792, Eq. 8 (up), and its controlled reverse ODE (down):
         up    d = v + gamma ((n1 - x) / (1 - sigma) - v)
         down  d = v + eta ((x - x0) / sigma - v), which is D towards x0 by eta
Differs: the network is called at the very level of the step (at sigma 0 at the next one); the community
         pipeline calls it at another. For eps and v models, where noise lies at infinity, the pull up is
         towards the slope n1 itself: the same rule after the change of variables x / (1 + sigma).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import (
    AfterStep,
    Calls,
    Denoise,
    Method,
    Observe,
    Path,
    ascend,
    descend,
    draw_noise,
)
from .trajectory import Inversion


@dataclass(frozen=True)
class RfInversion(Method):
    """Args: the pulls gamma and eta, and from which to which share of the steps down eta holds."""

    name = "rf-inversion"
    stochastic = True
    gamma: float = 0.5
    eta: float = 0.9
    start_percent: float = 0.0
    end_percent: float = 0.25

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        calls = Calls(denoise, len(sigmas) - 1, observe)
        (noise,) = draw_noise(clean, seed, 1)

        def step(i: int, x: Tensor) -> Tensor:
            source, target = sigmas[i + 1], sigmas[i]
            at = source or target  # no slope at sigma 0
            d = calls.slope(space.at_level(x, source, at), at, i)
            return x + (target - source) * d.lerp(_slope_to(space, x, noise, source), self.gamma)

        return Path(states=ascend(clean, sigmas, step), calls=calls.done)

    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        sigmas, steps = inversion.sigmas, inversion.steps
        calls = Calls(denoise, steps - start, observe)

        def step(i: int, x: Tensor) -> Tensor:
            denoised = calls(x, sigmas[i], i)
            if self.start_percent * steps <= i < self.end_percent * steps:
                denoised = denoised.lerp(inversion.clean.to(denoised), self.eta)
            return x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i]

        return descend(inversion, step, after_step, start)


def _slope_to(space: NoiseSpace, x: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the line from x at sigma to this unit noise."""
    whole = space.noise_scale * noise
    return (whole - x) / (1 - sigma) if space.flow else whole
