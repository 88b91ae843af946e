"""What an anchor adapter is trained on: noisy steps, dropped conditions, a weighted loss, a gauge.

Source:  noisy-step bias after T2I-Adapter (arXiv:2302.08453, section 3.3), whose cubic schedule is
         replaced by a uniform one over the noisiest steps; dropout of conditions as in
         InstructPix2Pix (arXiv:2211.09800, section 3.2.1), with every part of the anchor on its
         own besides.
Symbols: t trained index 0..999, sigma its noise level; x0 clean latent, x0_hat the model's estimate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..common.anchor import MAX_TILT_DEG, Anchor

TIMESTEPS = 1000
GAUGE_TIMESTEP = 850  # layout is decided there
PARTS = ("horizon", "tilt_deg", "subject_x", "subject_y")
RANGES = {
    "horizon": (0.0, 1.0),
    "tilt_deg": (-MAX_TILT_DEG, MAX_TILT_DEG),
    "subject_x": (0.0, 1.0),
    "subject_y": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How training draws its noise levels and conditions; shares are 0..1.

    Raises:
        ValueError: a share is not in 0..1, or the drops add up to more than 1.
    """

    noisy_range: float = 0.6  # the noisiest part of all steps, drawn evenly
    light_share: float = 0.1  # of the draws, that fall on the other steps
    drop_text: float = 0.10
    drop_anchor: float = 0.10
    drop_both: float = 0.05
    drop_part: float = 0.20  # every part of an anchor on its own
    label_noise: float = 0.01  # standard deviation, shares of the frame; tilt: of its range

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}, a share of 0 to 1 is needed")
        drops = self.drop_text + self.drop_anchor + self.drop_both
        if drops > 1.0:
            raise ValueError(f"the three drops add up to {drops:g}, at most 1 is possible")


def sample_timesteps(count: int, generator: Generator, objective: Objective) -> Tensor:
    """Draw trained indices (b), mostly of the noisy steps.

    Args:
        count: b.
        generator: of the CPU.
        objective: its noisy_range and light_share.
    """
    first_noisy = round(TIMESTEPS * (1.0 - objective.noisy_range))
    where, light = torch.rand(2, count, generator=generator)
    noisy = first_noisy + (where * (TIMESTEPS - first_noisy)).long()
    if first_noisy == 0:
        return noisy.clamp(max=TIMESTEPS - 1)
    rest = (where * first_noisy).long()
    return torch.where(light < objective.light_share, rest, noisy).clamp(max=TIMESTEPS - 1)


def draw_conditions(
    anchors: Sequence[Anchor], generator: Generator, objective: Objective
) -> tuple[list[Anchor], list[bool]]:
    """Drop and blur conditions for one batch.

    Args:
        anchors: one per picture; left unmodified.
        generator: of the CPU.
        objective: its drops and label_noise.

    Returns:
        The anchors to show, Anchor() where all of it is dropped, and for each picture whether its
        text is kept.
    """
    b = len(anchors)
    which = torch.rand(b, generator=generator).tolist()
    drops = torch.rand(b, len(PARTS), generator=generator).tolist()
    noise = torch.randn(b, len(PARTS), generator=generator).tolist()
    both = objective.drop_both
    text = both + objective.drop_text
    anchor = text + objective.drop_anchor
    shown = []
    for label, u, drop, blur in zip(anchors, which, drops, noise, strict=True):
        gone = u < both or text <= u < anchor
        shown.append(Anchor() if gone else _blurred(label, drop, blur, objective))
    return shown, [u >= text for u in which]


def _blurred(
    label: Anchor, drop: Sequence[float], blur: Sequence[float], objective: Objective
) -> Anchor:
    parts = {}
    for part, u, noise in zip(PARTS, drop, blur, strict=True):
        value = getattr(label, part)
        if value is None or u < objective.drop_part:
            parts[part] = None
            continue
        low, high = RANGES[part]
        value += noise * objective.label_noise * (high - low)
        parts[part] = min(max(value, low), high)
    return Anchor(**parts)


def denoising_errors(x0_hat: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Mean of |x0_hat - x0|^2 / sigma^2 over each picture: the error in units of the noise.

    Args:
        x0_hat: (b c h w).
        x0: (b c h w).
        sigma: (b).

    Returns:
        (b) in float32.
    """
    return (x0_hat.float() - x0.float()).square().mean((1, 2, 3)) / sigma.float().square()


def denoising_loss(
    x0_hat: Tensor, x0: Tensor, sigma: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Mean of `denoising_errors` over the batch, each picture times its weight (b), 1 if None."""
    errors = denoising_errors(x0_hat, x0, sigma)
    return errors.mean() if weight is None else (errors * weight.to(errors)).mean()


def information_gain(loss_shuffled: float, loss_true: float) -> float:
    """How much worse the loss gets with other pictures' anchors: 0 where anchors are ignored."""
    return loss_shuffled / loss_true - 1.0 if loss_true > 0 else math.nan


Denoise = Callable[[Tensor, Tensor, Sequence[int], Sequence[Anchor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A held-out batch with fixed noise, on which the information gain is read.

    Args:
        x0: (b c h w) clean latents.
        noise: like `x0`.
        texts: index of each picture's text.
        anchors: each picture's own.
        sigma: noise level of `GAUGE_TIMESTEP`.
        chunk: pictures per pass.
    """

    x0: Tensor
    noise: Tensor
    texts: tuple[int, ...]
    anchors: tuple[Anchor, ...]
    sigma: float
    chunk: int = 8

    @torch.no_grad()
    def read(self, denoise: Denoise) -> float:
        """Information gain of `denoise(x, sigma, texts, anchors) -> x0_hat`."""
        loss_true = self._loss(denoise, self.anchors)
        return information_gain(self._loss(denoise, shuffled(self.anchors)), loss_true)

    def _loss(self, denoise: Denoise, anchors: Sequence[Anchor]) -> float:
        errors = []
        for start in range(0, len(self.x0), self.chunk):
            part = slice(start, start + self.chunk)
            x0 = self.x0[part]
            sigma = x0.new_full((len(x0),), self.sigma)
            x0_hat = denoise(
                x0 + self.noise[part] * self.sigma, sigma, self.texts[part], anchors[part]
            )
            errors.append(denoising_errors(x0_hat, x0, sigma))
        return float(torch.cat(errors).mean())


def shuffled(anchors: Sequence[Anchor]) -> tuple[Anchor, ...]:
    """The same anchors, each at another picture, far from its own in the order of horizons."""
    order = sorted(range(len(anchors)), key=lambda i: _sort_key(anchors[i]))
    half = len(order) // 2
    moved = list(anchors)
    for place, index in enumerate(order):
        moved[index] = anchors[order[(place + half) % len(order)]]
    return tuple(moved)


def _sort_key(anchor: Anchor) -> tuple[float, float]:
    parts = (anchor.horizon, anchor.subject_x)
    height, across = (0.5 if part is None else part for part in parts)
    return height, across
