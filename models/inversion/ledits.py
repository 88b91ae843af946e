"""LEDITS++: noise maps of the second-order stochastic DPM-Solver++.

Source:  Brack et al. 2024 (LEDITS++), arXiv:2311.16711, section 3.1, with SDE-DPM-Solver++(2M) of Lu et al. 2022,
         arXiv:2211.01095, as diffusers has it:
         mu = first order + alpha' (1 - rho^2) / 2 (h / h_before) (D - D_before),   h = -ln rho
Differs: as edit-friendly DDPM here. First and last step are of first order. From pure noise of a flow h is
         infinite and the correction of the next step vanishes.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .edit_friendly import EditFriendly, snr_ratio


class Ledits(EditFriendly):
    name = "ledits++ (exact)"
    looks_back = True

    def mean(
        self,
        space: NoiseSpace,
        sigmas: Sequence[float],
        i: int,
        x: Tensor,
        denoised: Tensor,
        before: Tensor | None,
    ) -> Tensor:
        mean = super().mean(space, sigmas, i, x, denoised, before)
        rho = snr_ratio(space, sigmas, i)
        rho_before = 0.0 if before is None else snr_ratio(space, sigmas, i - 1)
        if before is None or rho == 0 or rho_before == 0:
            return mean
        share = 0.5 * math.log(rho) / math.log(rho_before)
        return mean + space.alpha(sigmas[i + 1]) * (1 - rho * rho) * share * (denoised - before)
