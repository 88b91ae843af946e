"""DDIM inversion with the time of the level that is being reached, as the paper's released code has it.

Source:  Kadosh et al. 2025 (Tight Inversion), arXiv:2502.20376, whose host method is the reversed DDIM of
         Dhariwal & Nichol 2021, arXiv:2105.05233, section F, and diffusers' DDIMInverseScheduler:
         z_i = sqrt(abar_i) (z_{i+1} - sqrt(1 - abar_{i+1}) e) / sqrt(abar_{i+1}) + sqrt(1 - abar_i) e,
         e = eps(z_{i+1}, t_i)
Differs: in sigma space, where the state is rescaled so that the network sees z_{i+1} itself.
         Flow models need no rescaling.
"""

from collections.abc import Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .euler import EulerDown
from .method import Calls, Denoise, Observe, Path, ascend


class Ddim(EulerDown):
    name = "ddim (paper)"

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

        def step(i: int, x: Tensor) -> Tensor:
            source, target = sigmas[i + 1], sigmas[i]
            d = calls.slope(space.at_level(x, source, target), target, i)
            return x + (target - source) * d

        return Path(states=ascend(clean, sigmas, step), calls=calls.done)
