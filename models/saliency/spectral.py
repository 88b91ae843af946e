"""Saliency without a network: spectral residual times a centre prior.

Source:  Hou & Zhang 2007 (64 px, Gaussian smoothing of 2.5 px); people look at the middle first, so
         a Gaussian of 0.3 of each side weighs the map (research on centre bias: Tatler 2007).
Differs: the energy of the three colour channels is added up; the frame is squeezed to a square.
"""

import torch.nn.functional as F
from torch import Tensor

from ..common.spectral_residual import spectral_residual
from .maps import centre_prior, resized_map, unit_map

SIDE = 64  # px: saliency is a coarse question
SMOOTHING_PX = 2.5
WINDOW_PX = 15  # 3 standard deviations a side
CENTRE_SIGMA = 0.3


def spectral_saliency(image: Tensor) -> Tensor:
    """Where a picture departs from its own statistics, weighed towards the middle.

    Args:
        image: (b 3 h w), 0..1; left unmodified. Gradients reach it.

    Returns:
        (b 1 h w), 0..1, 1 at the most salient place. A flat picture gives the centre prior.
    """
    from kornia.filters import gaussian_blur2d  # here: not before a picture is measured

    small = F.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)
    energy = spectral_residual(small).sum(1, keepdim=True)
    smooth = gaussian_blur2d(energy, (WINDOW_PX, WINDOW_PX), (SMOOTHING_PX, SMOOTHING_PX))
    weighed = unit_map(smooth) * centre_prior(SIDE, SIDE, CENTRE_SIGMA, small)
    return unit_map(resized_map(weighed, *image.shape[-2:]))
