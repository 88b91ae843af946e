"""How noise is moved by a gradient: three rules.

Source:  DOODL, Wallace et al. 2023, arXiv:2303.13703, as released: elements of the gradient clipped at
         1e-3, momentum 0.9, noise 1e-4, the norm kept. ReNO, Eyring et al. 2024, arXiv:2406.04312:
         Nesterov 0.9, rate 5, gradient norm clipped at 0.1, and 0.01 (|z|^2 / 2 - (d-1) ln |z|) to
         keep the norm likely. The white step on the sphere is ours; see `whiteness`.
Differs: each picture of a batch has norms of its own. DOODL's pair of latents is not needed: gradients
         come from recomputation.
Symbols: z noise, g gradient of the loss (1 minus the points' hundredth), v momentum, d size of z.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from .whiteness import unit_rms, whitened


class Rule(Protocol):
    """Moves z against g; `progress` runs from 0 to 1 and `scale` is the user's factor."""

    def move(
        self, z: Tensor, g: Tensor, v: Tensor, progress: float, scale: float, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The next z and v, both (b c ...); nothing given is modified. v starts at 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """DOODL's rule, which is SGOOL's."""

    momentum: float = 0.9
    clip: float = 1e-3  # of each element
    noise: float = 1e-4  # standard deviation of what is added

    def move(
        self, z: Tensor, g: Tensor, v: Tensor, progress: float, scale: float, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """As in `Rule`."""
        v = self.momentum * v + g.clamp(-self.clip, self.clip)
        moved = z - scale * v + self.noise * _drawn(z, generator)
        return moved * (_norm(z) / _norm(moved)), v


@dataclass(frozen=True, kw_only=True)
class Nesterov:
    """ReNO's rule."""

    rate: float = 5.0
    momentum: float = 0.9
    clip: float = 0.1  # of the gradient's norm
    likelihood: float = 0.01  # weight of the norm's own term

    def move(
        self, z: Tensor, g: Tensor, v: Tensor, progress: float, scale: float, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """As in `Rule`."""
        d = z[0].numel()
        g = g + self.likelihood * (z - (d - 1) * z / _norm(z).square())
        g = g * (self.clip / _norm(g)).clamp(max=1.0)
        v = self.momentum * v + g
        return z - scale * self.rate * (g + self.momentum * v), v


@dataclass(frozen=True, kw_only=True)
class WhiteStep:
    """A turn on the sphere towards a whitened gradient.

    Args:
        angle: of the first step, in radians.
        last_angle: of the last one; a cosine lies between.
        whiteness: 1 whitens the gradient wholly, 0 leaves it.
        momentum: share of the direction before that is kept.
    """

    angle: float = 0.1
    last_angle: float = 0.02
    whiteness: float = 1.0
    momentum: float = 0.5

    def move(
        self, z: Tensor, g: Tensor, v: Tensor, progress: float, scale: float, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """As in `Rule`."""
        v = self.momentum * v - (1 - self.momentum) * unit_rms(g)
        direction = unit_rms(v)
        if self.whiteness > 0:
            direction = torch.lerp(direction, whitened(v), self.whiteness)
        along = (direction * z).flatten(1).sum(1).view(-1, *[1] * (z.ndim - 1))
        tangent = direction - along * z / _norm(z).square()
        tangent = tangent * (_norm(z) / _norm(tangent))
        share = (1 + math.cos(math.pi * progress)) / 2
        theta = scale * (self.last_angle + (self.angle - self.last_angle) * share)
        return math.cos(theta) * z + math.sin(theta) * tangent, v


def _norm(x: Tensor) -> Tensor:
    """(b 1 ...)."""
    norm = x.flatten(1).norm(dim=1).clamp_min(1e-30)
    return norm.view(-1, *[1] * (x.ndim - 1))


def _drawn(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
