"""What an edit does to the difference between two predictions before it is scaled and added.

Source:  sharpening: the released demo of Kadosh et al. 2025 (Tight Inversion), arXiv:2502.20376,
         sign(d) (|d|/m)^p m;
         threshold: Han et al. 2023 (proximal negative-prompt inversion), arXiv:2306.05414, with its
         hard threshold at a quantile;
         CFG++: Chung et al. 2024, arXiv:2406.08070, Algorithm 2: x0 from the guided prediction, the
         direction from the unguided one.
Differs: m and the quantile are of each picture, not of the batch, so that a batch gives what its
         pictures give one by one. CFG++ is written as plain CFG of another scale, exact for an
         Euler step: D' (1 - r) + r x has to be a' D_g + r (x - a D_u), so with D_g = D_u + w d
         it is D' = D_u + w a' / (1 - r) d. One sampler serves both.
Symbols: d difference of two predictions of x0; m its largest magnitude, p power; D_u, D_g unguided and
         guided prediction; w scale; a alpha, r ratio of noise levels, a prime marks the next step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """How the difference that guides is changed; the defaults leave it as it is.

    Args:
        power: p of the sharpening, 1 and more; larger ones keep the strongest places alone.
        threshold: share of each picture's numbers that are set to zero, the smallest first.
    """

    power: float = 1.0
    threshold: float = 0.0

    @property
    def is_neutral(self) -> bool:
        return self.power == 1.0 and self.threshold == 0.0

    def __call__(self, difference: Tensor) -> Tensor:
        """The changed difference (b ...); the input is left unmodified."""
        if self.power != 1.0:
            difference = sharpened(difference, self.power)
        if self.threshold > 0.0:
            difference = strongest(difference, self.threshold)
        return difference


def sharpened(difference: Tensor, power: float) -> Tensor:
    """Numbers (b ...) with their spread of magnitudes raised to a power, the largest kept."""
    magnitude = difference.abs()
    largest = _per_picture(magnitude.flatten(1).amax(1), magnitude)
    share = magnitude / largest.clamp_min(torch.finfo(magnitude.dtype).tiny)
    return difference.sign() * share**power * largest


def strongest(difference: Tensor, threshold: float) -> Tensor:
    """Numbers (b ...) with a share of them, the smallest by magnitude, set to zero."""
    magnitude = difference.abs()
    least = _per_picture(quantiles(magnitude.flatten(1), threshold), magnitude)
    return torch.where(magnitude >= least, difference, 0.0)


def quantiles(rows: Tensor, share: float) -> Tensor:
    """The number below which a share of each row (b n) lies; rows may be longer than torch allows."""
    count = rows.shape[1]
    rank = min(int(share * count), count - 1)
    return rows.kthvalue(rank + 1, dim=1).values


def cfg_plus_plus_scale(scale: float, ratio: float, alpha_next: float = 1.0) -> float:
    """The scale of plain CFG that makes an Euler step one of CFG++.

    Args:
        scale: w of CFG++, 0..1 as a rule.
        ratio: r, the next noise level as a share of this one, below 1.
        alpha_next: a', 1 on variance-exploding models, 1 - sigma on flow models.
    """
    return scale * alpha_next / (1.0 - ratio)


def _per_picture(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
