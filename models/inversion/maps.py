"""Ways down that add a stored map after every step, and so end exactly where they are meant to.

A map is what the mean of a step misses: m_i = x_{i+1} - mu(x_i). Divided by the spread of the step's noise
it is the "noise map" of edit-friendly DDPM and LEDITS++; of an Euler step it is the residual of Direct Inversion.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import AfterStep, Calls, Denoise, Method, Observe, descend
from .trajectory import Inversion


class MapMethod(Method):
    """A method with maps. An inversion whose maps are None is walked down without them.

    Class attributes:
        looks_back: the mean of a step needs the denoised picture of the one before.
    """

    exact = True
    looks_back: ClassVar[bool] = False

    @abstractmethod
    def mean(
        self,
        space: NoiseSpace,
        sigmas: Sequence[float],
        i: int,
        x: Tensor,
        denoised: Tensor,
        before: Tensor | None,
    ) -> Tensor:
        """mu: where the step from level i leads without its map.

        Args:
            space: of the samples.
            sigmas: descending.
            i: level of x.
            x: (b c ...).
            denoised: D(x, sigma_i).
            before: D of level i - 1, None at the first step.
        """

    def maps_of(
        self, calls: Calls, states: Tensor, sigmas: Sequence[float], space: NoiseSpace, like: Tensor
    ) -> Tensor:
        """The maps ((s-1) b c ...) on the CPU that lead through the states (s b c ...)."""
        maps, before = [], None
        for i in range(len(sigmas) - 1):
            x, following = states[i].to(like), states[i + 1].to(like)
            denoised = calls(x, sigmas[i], i)
            missed = following - self.mean(space, sigmas, i, x, denoised, before)
            maps.append(missed.cpu())
            before = denoised
        return torch.stack(maps)

    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        sigmas, maps = inversion.sigmas, inversion.maps
        look_back = self.looks_back and start > 0
        calls = Calls(denoise, inversion.steps - start + look_back, observe)
        before: Tensor | None = None
        if look_back:
            noisier = inversion.state(start - 1).to(inversion.noise)
            before = calls(noisier, sigmas[start - 1], start - 1)

        def step(i: int, x: Tensor) -> Tensor:
            nonlocal before
            denoised = calls(x, sigmas[i], i)
            mean = self.mean(inversion.space, sigmas, i, x, denoised, before)
            before = denoised
            return mean if maps is None else mean + maps[i].to(mean)

        return descend(inversion, step, after_step, start)


def map_energy(maps: Tensor) -> Tensor:
    """Mean square ((s-1) b) of maps ((s-1) b c ...)."""
    return maps.flatten(2).square().mean(2)
