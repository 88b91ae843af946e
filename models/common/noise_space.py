"""Noise spaces: how a model mixes picture and noise, so that one solver serves eps, v and flow models.

Source:  k-diffusion's convention of the denoiser D(x, sigma) -> x0 (after Karras et al. 2022,
         arXiv:2206.00364); flows as in Lipman et al. 2023, arXiv:2210.02747, with time 0 at the picture.
Symbols: x = alpha(sigma) x0 + sigma s n; alpha is 1 (variance exploding: eps, v, EDM) or 1 - sigma (flow);
         n unit noise, s noise_scale (1 but for some flows); d = (x - D) / sigma = dx/dsigma in both.
"""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseSpace:
    """The space in which a model's samples move.

    Args:
        flow: alpha(sigma) is 1 - sigma and sigma lies in 0..1; else alpha is 1.
        noise_scale: s.
        variance_preserving_input: the network sees x / sqrt(sigma_data^2 + sigma^2).
        sigma_data: spread of the data that the network's input assumes.
    """

    flow: bool
    noise_scale: float = 1.0
    variance_preserving_input: bool = True
    sigma_data: float = 1.0

    def alpha(self, sigma: float) -> float:
        """Share of the picture at a noise level."""
        return 1.0 - sigma if self.flow else 1.0

    def noisy(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The sample that has this much of unit noise; any equal shapes."""
        return self.alpha(sigma) * x0 + sigma * self.noise_scale * noise

    def noise_in(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """The unit noise n that x holds if `denoised` is its picture; sigma above 0."""
        return (x - self.alpha(sigma) * denoised) / (sigma * self.noise_scale)

    def slope(self, denoised: Tensor, noise: Tensor) -> Tensor:
        """dx/dsigma along the line of this picture and this unit noise."""
        return self.noise_scale * noise - denoised if self.flow else self.noise_scale * noise

    def at_level(self, x: Tensor, source: float, target: float) -> Tensor:
        """Rescale x of one noise level so that the network called at another sees the same input.

        Only a network whose input is made variance preserving needs it; else x itself comes back.
        """
        if self.flow or not self.variance_preserving_input:
            return x
        data = self.sigma_data**2
        return x * math.sqrt((data + target**2) / (data + source**2))
