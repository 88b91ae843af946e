"""What every inversion method offers: the way up into noise, and the way down that belongs to it.

Symbols: i counts levels as a sampler does, 0 the noisiest; sigma_0 > sigma_1 > ... > sigma_{s-1}, the
         last one 0; x_i the state at sigma_i; h = sigma' - sigma the length of a step (below 0 going down);
         D(x, sigma) the denoiser; d = (x - D) / sigma.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..common.noise_space import NoiseSpace
from .trajectory import Inversion

Denoise = Callable[[Tensor, float], Tensor]  # denoise(x, sigma) -> x0, (b c ...) both
# observe(step, denoised, x, calls done, calls in all), after every call of the network
Observe = Callable[[int, Tensor, Tensor, int, int], None]
# after_step(i, x) -> x, for every new state x at sigmas[i] going down
AfterStep = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Path:
    """What inverting finds; fields as in `Inversion`."""

    states: Tensor
    calls: int
    second: Tensor | None = None
    maps: Tensor | None = None
    residuals: Tensor | None = None


class Method(ABC):
    """A solver of the way up, with the sampler of the way down.

    Class attributes:
        name: key in METHODS.
        exact: with the same denoiser the way down ends at the clean latent up to rounding.
        stochastic: draws noise from the seed.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False

    @abstractmethod
    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        """Find the noise that the way down turns into `clean`.

        Args:
            denoise: the denoiser, with the condition of the source.
            clean: (b c ...) float32 or float64, left unmodified.
            sigmas: descending, the last one 0.
            space: of the denoiser.
            seed: of the method's own noise.
            observe: told after every call.

        Returns:
            The path, in the type of `clean`; its states, maps and second end on the CPU.

        Raises:
            ValueError: `sigmas` do not descend to 0.
        """

    @abstractmethod
    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        """Walk down from an inversion, with its own denoiser or an edit's.

        Args:
            denoise: the denoiser.
            inversion: of this method, left unmodified; `Inversion.on` the denoiser's device.
            after_step: may change every new state.
            observe: told after every call.
            start: level to start from; above 0 the inversion needs its states.

        Returns:
            (b c ...) in the type and on the device of the inversion's noise.

        Raises:
            ValueError: the state at `start` was not kept.
        """


class Calls:
    """A denoiser that counts its calls and tells of them."""

    def __init__(self, denoise: Denoise, total: int, observe: Observe | None) -> None:
        self.denoise, self.total, self.observe = denoise, total, observe
        self.done = 0

    def __call__(self, x: Tensor, sigma: float, step: int) -> Tensor:
        """D(x, sigma); `step` is what the observer is told."""
        denoised = self.denoise(x, sigma)
        self.done += 1
        if self.observe is not None:
            self.observe(step, denoised, x, self.done, max(self.total, self.done))
        return denoised

    def told(self, step: int) -> Denoise:
        """Itself as a plain denoiser, for a method inside a method."""
        return lambda x, sigma: self(x, sigma, step)

    def slope(self, x: Tensor, sigma: float, step: int) -> Tensor:
        """d(x, sigma); sigma above 0."""
        return (x - self(x, sigma, step)) / sigma


def ascend(clean: Tensor, sigmas: Sequence[float], step: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Walk up from clean; step(i, x) takes x from sigmas[i + 1] to sigmas[i].

    Returns:
        The states (s b c ...) on the CPU, noisiest first.

    Raises:
        ValueError: as `check_descending`.
    """
    check_descending(sigmas)
    x, states = clean, [clean.cpu()]
    for i in reversed(range(len(sigmas) - 1)):
        x = step(i, x)
        states.append(x.cpu())
    return torch.stack(states[::-1])


def descend(
    inversion: Inversion,
    step: Callable[[int, Tensor], Tensor],
    after_step: AfterStep | None,
    start: int,
) -> Tensor:
    """Walk down; step(i, x) takes x from sigmas[i] to sigmas[i + 1].

    Returns:
        The state at the clean end.
    """
    x = inversion.state(start).to(inversion.noise)
    for i in range(start, inversion.steps):
        x = step(i, x)
        if after_step is not None:
            x = after_step(i + 1, x)
    return x


def check_descending(sigmas: Sequence[float]) -> None:
    """Refuse noise levels that do not descend to 0.

    Raises:
        ValueError: they rise or stand still, or end above 0, or there is no step.
    """
    if len(sigmas) < 2:
        raise ValueError("sigmas hold no step, one at least is needed; raise steps or strength")
    if any(low >= high for high, low in itertools.pairwise(sigmas)):
        raise ValueError(
            "sigmas do not descend; pass them as a sampler takes them, noisiest first, and not flipped"
        )
    if sigmas[-1] != 0:
        raise ValueError(
            f"sigmas end at {sigmas[-1]:.4g}, 0 is needed, because the picture is clean; use the whole end "
            "of the schedule"
        )


def draw_noise(like: Tensor, seed: int, count: int) -> list[Tensor]:
    """Unit noise for every sample of a batch from a generator of its own, seed + index, on the CPU.

    Returns:
        `count` tensors of the shape, type and device of `like`; the same for a sample alone or in a batch.
    """
    generators = [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(len(like))]
    return [
        torch.stack([
            torch.randn(like.shape[1:], generator=generator, dtype=torch.float32)
            for generator in generators
        ]).to(like)
        for _ in range(count)
    ]  # fmt: skip
