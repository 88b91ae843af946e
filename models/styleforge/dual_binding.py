"""Dual binding: a style word learns the style while Aux pictures teach the bare class word.

Source:  Park et al. 2024 (StyleForge), arXiv:2404.05256: the loss of StyleRef pictures under "[V]
         style" plus lambda times the loss of Aux pictures under "style", times and noises of their own.
         Min-SNR-gamma: Hang et al. 2023, arXiv:2303.09556, Eq. 5; debiased estimation: Yu et al.
         2023, arXiv:2310.08442, Eq. 7.
Differs: the loss is read off the estimate x0_hat, which is the network's own loss for noise, velocity
         and flow models alike; pairs are drawn anew at each step; a mask weights places.
Symbols: x = alpha x0 + sigma n; alpha is 1, or 1 - sigma for flows; SNR = (alpha / sigma)^2; u in
         0..1 the place in the table of noise levels, drawn evenly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Generator, Tensor

MIN_SNR_GAMMA = 5.0  # arXiv:2303.09556, section 4
DEBIASED_MAX_SNR = 1000.0  # else the cleanest levels, whose pictures teach nothing, outweigh all
VALIDATED_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class Prediction(Enum):
    """What a network tells."""

    NOISE = "eps"
    VELOCITY = "v"
    FLOW = "flow"


class Weighting(Enum):
    """How losses of different noise levels are weighted."""

    NONE = "none"
    MIN_SNR = "min-SNR"
    DEBIASED = "debiased"


@dataclass(frozen=True, kw_only=True)
class NoiseProcess:
    """How a model is trained.

    Args:
        sigmas: (n) its noise levels, rising.
        prediction: what its network tells.
        sigma_data: spread of the data that a velocity model assumes.
        noise_scale: of the unit noise; 1 but for some flows.
    """

    sigmas: Tensor
    prediction: Prediction
    sigma_data: float = 1.0
    noise_scale: float = 1.0

    def sigma_at(self, u: Tensor) -> Tensor:
        """Noise levels (b) at places (b) of the table, from 0 its cleanest to below 1."""
        index = (u * len(self.sigmas)).long().clamp(max=len(self.sigmas) - 1)
        return self.sigmas[index]

    def noisy(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x for x0 (b ...), unit noise like it and sigma (b)."""
        sigma = sigma.view(-1, *(1,) * (x0.ndim - 1))
        return self._alpha(sigma) * x0 + sigma * self.noise_scale * noise

    def native_weight(self, sigma: Tensor) -> Tensor:
        """What turns |x0_hat - x0|^2 into the loss of the network's own output; sigma (b) above 0."""
        variance = sigma.square()
        if self.prediction is Prediction.VELOCITY:
            data = self.sigma_data**2
            return (variance + data) / (variance * data)
        return 1.0 / variance

    def snr_weight(self, sigma: Tensor, weighting: Weighting) -> Tensor:
        """Weight (b) of the native loss."""
        if weighting is Weighting.NONE:
            return torch.ones_like(sigma)
        snr = (self._alpha(sigma) * self.sigma_data / sigma).square()
        more = 1.0 if self.prediction is Prediction.VELOCITY else 0.0
        if weighting is Weighting.MIN_SNR:
            return snr.clamp(max=MIN_SNR_GAMMA) / (snr + more).clamp(min=1e-8)
        snr = snr.clamp(1e-3, DEBIASED_MAX_SNR)
        return 1.0 / (snr + more) if more else snr.rsqrt()

    def _alpha(self, sigma: Tensor) -> Tensor:
        return 1.0 - sigma if self.prediction is Prediction.FLOW else torch.ones_like(sigma)


@dataclass(frozen=True)
class Example:
    """A picture to learn from, as a latent in the model's scale.

    Args:
        x0: (c h w).
        prompt: what it is bound to.
        mask: (1 h w) in 0..1, how much each place counts; None is 1 everywhere.
    """

    x0: Tensor
    prompt: str
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Binding:
    """The two sets of a component; without Aux, or with a weight of 0, it is plain LoRA."""

    name: str
    style: tuple[Example, ...]
    aux: tuple[Example, ...] = ()
    aux_weight: float = 1.0  # lambda

    @property
    def is_dual(self) -> bool:
        return bool(self.aux) and self.aux_weight != 0


@dataclass(frozen=True)
class Draw:
    """An example with its own place in time and its own noise."""

    example: Example
    u: Tensor  # ()
    noise: Tensor  # like x0


Denoise = Callable[
    [Tensor, Tensor, Sequence[str]], Tensor
]  # x (b ...), sigma (b), prompts -> x0_hat


def dual_binding_loss(
    denoise: Denoise,
    process: NoiseProcess,
    binding: Binding,
    pairs: int,
    generator: Generator,
    weighting: Weighting = Weighting.NONE,
    share: slice = slice(None),
) -> Tensor:
    """Mean loss of StyleRef pictures plus lambda times that of Aux pictures, in one pass.

    Args:
        denoise: the model with what it has learned so far.
        process: the model's.
        binding: StyleRef and Aux of one component.
        pairs: StyleRef pictures per call, and as many Aux pictures.
        generator: of the CPU; draws pictures, times and noises, those of StyleRef first.
        weighting: of the noise levels.
        share: of the pairs, that this process computes; all are drawn.
    """
    draws = _drawn(binding.style, pairs, generator)[share]
    own = len(draws)
    if binding.is_dual:
        draws += _drawn(binding.aux, pairs, generator)[share]
    errors = native_errors(denoise, process, draws, weighting)
    loss = errors[:own].mean()
    return loss + binding.aux_weight * errors[own:].mean() if binding.is_dual else loss


def native_errors(
    denoise: Denoise,
    process: NoiseProcess,
    draws: Sequence[Draw],
    weighting: Weighting = Weighting.NONE,
) -> Tensor:
    """The network's own loss of every draw (b), float32; one pass for each size of latents."""
    by_shape: dict[torch.Size, list[int]] = {}
    for index, draw in enumerate(draws):
        by_shape.setdefault(draw.example.x0.shape, []).append(index)
    parts = [
        _errors(denoise, process, [draws[i] for i in rows], weighting) for rows in by_shape.values()
    ]
    order = torch.tensor([index for rows in by_shape.values() for index in rows])
    return torch.cat(parts)[order.argsort().to(parts[0].device)]


def _errors(
    denoise: Denoise, process: NoiseProcess, draws: Sequence[Draw], weighting: Weighting
) -> Tensor:
    device = process.sigmas.device
    x0 = torch.stack([draw.example.x0 for draw in draws]).to(device)
    noise = torch.stack([draw.noise for draw in draws]).to(device)
    sigma = process.sigma_at(torch.stack([draw.u for draw in draws]).to(device))
    x0_hat = denoise(
        process.noisy(x0, noise, sigma), sigma, [draw.example.prompt for draw in draws]
    )
    errors = (x0_hat.float() - x0).square()
    masks = [draw.example.mask for draw in draws]
    if any(mask is not None for mask in masks):
        whole = torch.ones_like(draws[0].example.x0[:1])
        errors = errors * torch.stack([whole if m is None else m for m in masks]).to(device)
    return errors.flatten(1).mean(1) * (
        process.native_weight(sigma) * process.snr_weight(sigma, weighting)
    )


def _drawn(examples: Sequence[Example], count: int, generator: Generator) -> list[Draw]:
    picks = torch.randint(len(examples), (count,), generator=generator).tolist()
    return [_with_noise(examples[pick], None, generator) for pick in picks]


def _with_noise(example: Example, u: float | None, generator: Generator) -> Draw:
    place = torch.rand((), generator=generator) if u is None else torch.tensor(u)
    noise = torch.randn(example.x0.shape, generator=generator)
    return Draw(example, place, noise)


def validation_draws(examples: Sequence[Example], seed: int) -> list[Draw]:
    """Each picture at the same few times with fixed noises, so that losses can be compared."""
    generator = Generator().manual_seed(seed)
    return [_with_noise(example, u, generator) for example in examples for u in VALIDATED_TIMES]
