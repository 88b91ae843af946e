"""Spectral residual: what a smooth log spectrum does not predict stands out.

Source:  Hou & Zhang 2007, Eq. 1 to 5: with A the amplitude and P the phase of the spectrum,
         S = |F^-1[exp(log A - h * log A + i P)]|^2, h a mean of 3 x 3.
Differs: written as |F^-1[spectrum / exp(h * log(A + e))]|^2, which needs no angle and so has a
         gradient everywhere; where A is far above e it is the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_AMPLITUDE = 1e-4


def spectral_residual(channels: Tensor) -> Tensor:
    """Energy that the spectrum's neighbourhood does not predict, before any smoothing.

    Args:
        channels: (b c h w) real, each plane by itself; a side of 64 px is usual. Left unmodified.

    Returns:
        (b c h w), 0 and up, with the input's dtype and device.
    """
    spectrum = torch.fft.fft2(channels)
    log_amplitude = torch.log(spectrum.abs() + LEAST_AMPLITUDE)
    predicted = F.avg_pool2d(F.pad(log_amplitude, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    residual = torch.fft.ifft2(spectrum * torch.exp(-predicted))
    return residual.real.square() + residual.imag.square()
