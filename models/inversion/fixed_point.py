"""Guarded fixed point: each step up solves the implicit Euler equation, and keeps the best it has found.

Source:  Garibi et al. 2024 (ReNoise), arXiv:2403.14602, and Pan et al. 2023 (AIDI):
         x <- g(x) = x_{i+1} + h d(x, sigma_i), whose fixed point the Euler step down takes back to x_{i+1};
         averaging of successive iterates.
Differs: what an iterate misses, g(x) - x, is exactly what its step down would miss; it is measured per sample.
         An iterate that misses more than the best one is averaged with that. The best one counts in the end,
         so never a worse one than the first. Without ReNoise's regularisers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.noise_space import NoiseSpace
from .euler import EulerDown
from .method import Calls, Denoise, Observe, Path, ascend

Image = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FixedPoint(EulerDown):
    """Args: iterations, at most, after the first iterate; tolerance, relative, at which they end."""

    name = "fixed point"
    iterations: int = 4
    tolerance: float = 1e-5

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        calls = Calls(denoise, (1 + self.iterations) * (len(sigmas) - 1), observe)
        residuals: list[Tensor] = []

        def step(i: int, x: Tensor) -> Tensor:
            source, target = sigmas[i + 1], sigmas[i]

            def image(y: Tensor) -> Tensor:
                return x + (target - source) * calls.slope(y, target, i)

            first = image(space.at_level(x, source, target))
            found, missed = self._best(image, first)
            residuals.append(missed.cpu())
            return found

        states = ascend(clean, sigmas, step)
        return Path(states=states, residuals=torch.stack(residuals[::-1]), calls=calls.done)

    def _best(self, image: Image, first: Tensor) -> tuple[Tensor, Tensor]:
        """The iterate that misses least, and the mean square of what it misses (b)."""
        best, iterate = first, first
        least = torch.full((len(first),), torch.inf, dtype=first.dtype, device=first.device)
        for _ in range(self.iterations):
            found = image(iterate)
            missed = _mean_square(found - iterate)
            better = missed < least
            best = _where(better, iterate, best)
            least = torch.where(better, missed, least)
            if bool((least <= self.tolerance**2 * _mean_square(best)).all()):
                break
            iterate = _where(better, found, (iterate + best) / 2)
        return best, least


def _mean_square(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1)


def _where(chosen: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x, y)
