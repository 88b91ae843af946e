"""Where an edit may change the picture: masks in the latent, found or drawn, and the way back.

Source:  places by guidance: Brack et al. 2024 (LEDITS++), arXiv:2311.16711, Eq. 10, the quantile of the
         channel-summed magnitude, smoothed; also Couairon et al. 2023 (DiffEdit), arXiv:2210.11427;
         masks by step: Levin and Fried 2023 (differential diffusion), arXiv:2306.00950, Algorithm 1.
Differs: outside comes from the stored trajectory, not from fresh noise, so it is exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .guidance import quantiles

SMOOTHING = (0.25, 0.5, 0.25)  # binomial: a gaussian of about 0.7 places


def strong_places(difference: Tensor, threshold: float) -> Tensor:
    """Mask of the places where a difference is strong.

    Args:
        difference: (b c ... h w), of two predictions.
        threshold: share of the places that are left out, the weakest first.

    Returns:
        (b 1 ... h w) of 0 and 1, like `difference`.
    """
    return _strongest(_strength(difference), threshold)


def smoothed(x: Tensor) -> Tensor:
    """(... h w), each place averaged with its neighbours, edges repeated."""
    kernel = x.new_tensor(SMOOTHING)
    planes = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (1, 1, 1, 1), mode="replicate")
    planes = F.conv2d(planes, kernel.view(1, 1, 3, 1))
    return F.conv2d(planes, kernel.view(1, 1, 1, 3)).reshape(x.shape)


def latent_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """A picture's mask (b 1 h w) on the latent's grid: a place may change as much as any of its pixels."""
    return F.adaptive_max_pool2d(mask, (height, width))


def blended(edited: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """The edited state inside a mask, the source's state outside, exactly where the mask is 0 or 1.

    Args:
        edited: (b c ... h w).
        source: the same shape.
        mask: (b 1 h w) or (1 1 h w); for video states the same on every frame.
    """
    mask = over_frames(mask.to(edited), edited.ndim)
    inside = torch.where(mask == 1, edited, mask * edited + (1 - mask) * source)
    return torch.where(mask == 0, source, inside)


def over_frames(mask: Tensor, dimensions: int) -> Tensor:
    """A mask (b 1 h w) for states of more dimensions, the same on every frame; others as they are."""
    between = [1] * (dimensions - mask.ndim)
    return mask.reshape(*mask.shape[:2], *between, *mask.shape[2:])


def mask_at(mask: Tensor, progress: float) -> Tensor:
    """A soft mask as a mask by step: what may change a little is let go late.

    Args:
        mask: 0..1; 1 may change from the first step on, 0.25 in the last quarter of the steps.
        progress: share of the steps that are done.
    """
    return ((mask > 0) & (mask >= 1.0 - progress)).to(mask)


def feathered(mask: Tensor, radius_px: int) -> Tensor:
    """A mask (b 1 h w) whose edge fades inwards, so that nothing outside of it is touched.

    Args:
        mask: 0..1.
        radius_px: half the width over which it fades; 0 leaves the mask as it is.
    """
    if radius_px == 0:
        return mask
    size = 2 * radius_px + 1
    core = -F.max_pool2d(-mask, size, stride=1, padding=radius_px)
    padded = F.pad(core, [radius_px] * 4, mode="replicate")
    return torch.minimum(mask, F.avg_pool2d(padded, size, stride=1))


def _strength(difference: Tensor) -> Tensor:
    return smoothed(difference.abs().sum(1, keepdim=True))


def _strongest(strength: Tensor, threshold: float) -> Tensor:
    least = quantiles(strength.flatten(1), threshold)
    return (strength >= least.view(-1, *[1] * (strength.ndim - 1))).to(strength)


class GatheredPlaces:
    """Where an edit and its source disagree, gathered over the steps of one run."""

    def __init__(self, threshold: float) -> None:
        """Begin.

        Args:
            threshold: share of the places that stay as in the source, those that disagree least.
        """
        self.threshold = threshold
        self.strength: Tensor | None = None

    def add(self, difference: Tensor) -> None:
        """Take in a step's difference (b c ... h w); every step weighs the same."""
        strength = _strength(difference)
        mean = strength.flatten(1).mean(1).clamp_min(torch.finfo(strength.dtype).tiny)
        strength = strength / mean.view(-1, *[1] * (strength.ndim - 1))
        self.strength = strength if self.strength is None else self.strength + strength

    def mask(self) -> Tensor:
        """(b 1 ... h w) of 0 and 1.

        Raises:
            RuntimeError: nothing has been added.
        """
        if self.strength is None:
            raise RuntimeError("no step has been added")
        return _strongest(self.strength, self.threshold)
