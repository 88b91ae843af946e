"""EDICT: two coupled states, each moved with the other's noise, so that every step can be undone by algebra.

Source:  Wallace et al. 2022 (EDICT), arXiv:2211.12446, p = 0.93, in sigma space:
         X = x + h d(y);  Y = y + h d(X);  x' = p X + (1 - p) Y;  y' = p Y + (1 - p) x'
         Both slopes belong to the noisier level. Way up: the same solved backwards. The two states take
         turns in moving first, without which they drift apart.
Differs: the second slope's input is rescaled to its level, which is what the paper's
         variance-preserving form does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import AfterStep, Calls, Denoise, Method, Observe, Path, check_descending
from .trajectory import Inversion


@dataclass(frozen=True)
class Edict(Method):
    """Args: p, the mixing weight of the paper; 1 leaves the states apart."""

    name = "edict (exact)"
    exact = True
    p: float = 0.93

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
        calls = Calls(denoise, 2 * (len(sigmas) - 1), observe)
        x, y, p, states = clean, clean, self.p, [clean.cpu()]
        for i in reversed(range(len(sigmas) - 1)):
            noisy, h = sigmas[i], sigmas[i + 1] - sigmas[i]
            x, y = _in_turn(x, y, i)
            y = (y - (1 - p) * x) / p
            x = (x - (1 - p) * y) / p
            y = y - h * calls.slope(space.at_level(x, sigmas[i + 1], noisy), noisy, i)
            x = x - h * calls.slope(y, noisy, i)
            x, y = _in_turn(x, y, i)
            states.append(x.cpu())
        return Path(states=torch.stack(states[::-1]), second=y.cpu(), calls=calls.done)

    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        if start or inversion.second is None:
            raise ValueError(
                f"start is {start}, inversion's method '{self.name}' keeps its second state at the noisy end "
                "only; start at 0, or invert with a lower strength"
            )
        sigmas, space, p = inversion.sigmas, inversion.space, self.p
        calls = Calls(denoise, 2 * inversion.steps, observe)
        x, y = inversion.noise, inversion.second.to(inversion.noise)
        for i in range(inversion.steps):
            noisy, h = sigmas[i], sigmas[i + 1] - sigmas[i]
            x, y = _in_turn(x, y, i)
            x = x + h * calls.slope(y, noisy, i)
            y = y + h * calls.slope(space.at_level(x, sigmas[i + 1], noisy), noisy, i)
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
            x, y = _in_turn(x, y, i)
            if after_step is not None:
                x, y = after_step(i + 1, x), after_step(i + 1, y)
        return x


def _in_turn(x: Tensor, y: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """The state that moves first in step i, then the other; also undoes itself."""
    return (y, x) if i % 2 else (x, y)
