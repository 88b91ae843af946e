"""Fourier features of bounded numbers.

Source:  Tancik et al. 2020, arXiv:2006.10739, with the octave bands of Mildenhall et al. 2020 (NeRF),
         arXiv:2003.08934, Eq. 4, and the number itself kept in front.
"""

import math

import torch
from torch import Tensor


def fourier_features(numbers: Tensor, bands: int) -> Tensor:
    """Give each number, and its sine and cosine at 1, 2, 4 ... half turns per unit.

    Args:
        numbers: (... n), of size about 1.
        bands: octaves; the highest has 2^(bands - 1) half turns per unit.

    Returns:
        (... n*(1 + 2*bands)): the numbers, then all sines, then all cosines.
    """
    turns = math.pi * 2.0 ** torch.arange(bands, dtype=numbers.dtype, device=numbers.device)
    angles = (numbers[..., None] * turns).flatten(-2)
    return torch.cat([numbers, angles.sin(), angles.cos()], -1)
