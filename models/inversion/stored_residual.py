"""Inversion by stored residuals: what each Euler step down misses of the way up is kept and added back.

Source:  Ju et al. 2024 (Direct Inversion, PnP Inversion), arXiv:2310.01506.
Differs: the way up is Uni-Inv instead of DDIM, which leaves smaller residuals. They are taken at every state
         of the way up under the source's own condition; an edit may leave them out (`maps=None`).
"""

from collections.abc import Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .maps import MapMethod, map_energy
from .method import Calls, Denoise, Observe, Path
from .uni_inv import UniInv


class StoredResidual(MapMethod):
    name = "stored residual (exact)"

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        steps = len(sigmas) - 1
        calls = Calls(denoise, 2 * steps + 1, observe)
        states = UniInv().invert(calls.told(0), clean, sigmas, space).states
        maps = self.maps_of(calls, states, sigmas, space, clean)
        return Path(states=states, maps=maps, residuals=map_energy(maps), calls=calls.done)

    def mean(
        self,
        space: NoiseSpace,
        sigmas: Sequence[float],
        i: int,
        x: Tensor,
        denoised: Tensor,
        before: Tensor | None,
    ) -> Tensor:
        return x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i]
