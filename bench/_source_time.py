"""The way up as FlipSigmas and Unsampler take it, for comparison: each step with the slope at its start."""

from collections.abc import Sequence

from torch import Tensor

from ..models.common.noise_space import NoiseSpace
from ..models.inversion.euler import EulerDown
from ..models.inversion.method import Calls, Denoise, Observe, Path, ascend

FIRST = 1e-4  # what both put in the place of sigma 0


class SourceTime(EulerDown):
    name = "source-time euler"

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
            source = sigmas[i + 1] or FIRST
            return x + (sigmas[i] - source) * calls.slope(x, source, i)

        return Path(states=ascend(clean, sigmas, step), calls=calls.done)
