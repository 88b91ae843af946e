"""Edit-friendly DDPM: noisy states drawn apart from each other, and the noise maps that lead through them.

Source:  Huberman-Spiegelglas et al. 2024, arXiv:2304.06140, with eta 1:
         x_i = alpha_i x0 + sigma_i n_i;  m_i = x_{i+1} - mu(x_i)
Differs: with any alpha, so for flows too. With rho = sigma' alpha / (sigma alpha'):
         mu = rho sigma'/sigma x + alpha' (1 - rho^2) D; the noise of the step has spread sigma' sqrt(1 - rho^2).
         Maps are kept undivided. The last one, where the paper has 0, holds what that step misses, so that
         the way down ends at the picture exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.noise_space import NoiseSpace
from .maps import MapMethod
from .method import Calls, Denoise, Observe, Path, check_descending, draw_noise


class EditFriendly(MapMethod):
    name = "edit-friendly ddpm (exact)"
    stochastic = True

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        check_descending(sigmas)
        calls = Calls(denoise, len(sigmas) - 1, observe)
        noises = draw_noise(clean, seed, len(sigmas) - 1)
        noisy = [
            space.noisy(clean, n, sigma).cpu() for n, sigma in zip(noises, sigmas[:-1], strict=True)
        ]
        states = torch.stack([*noisy, clean.cpu()])
        maps = self.maps_of(calls, states, sigmas, space, clean)
        return Path(states=states, maps=maps, calls=calls.done)

    def mean(
        self,
        space: NoiseSpace,
        sigmas: Sequence[float],
        i: int,
        x: Tensor,
        denoised: Tensor,
        before: Tensor | None,
    ) -> Tensor:
        rho = snr_ratio(space, sigmas, i)
        return (
            rho * sigmas[i + 1] / sigmas[i] * x
            + space.alpha(sigmas[i + 1]) * (1 - rho * rho) * denoised
        )


def snr_ratio(space: NoiseSpace, sigmas: Sequence[float], i: int) -> float:
    """rho of the step from level i: 0 from pure noise and to the clean picture."""
    high, low = sigmas[i], sigmas[i + 1]
    return low * space.alpha(high) / (high * space.alpha(low))
