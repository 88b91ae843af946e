"""How white noise is, and steps that keep it white.

Source:  projection of the gradient's spectrum, after white-noise preconditioning (arXiv:2602.08646;
         its own blocks are not published). Blocks of magnitudes are brought to the mean and the
         energy that white noise has: mean sqrt(pi)/2, mean square 1; after Hoyer 2004 (closed form).
Symbols: m magnitudes of a block of the unitary DFT, B their number.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32  # B: coefficients of about one radius
MEAN = math.sqrt(math.pi) / 2  # of the magnitudes of white noise (Rayleigh)
RADIUS = math.sqrt(1 - math.pi / 4)  # their standard deviation
SWEEPS = 4  # of the projection, for magnitudes that came out negative
LOW, HIGH = 0.25, 0.75  # of the highest frequency


@dataclass(frozen=True)
class Whiteness:
    """1 everywhere is white noise, but for the kurtosis of 3."""

    rms: float
    low: float  # power of slow changes against white noise's
    high: float  # of fast ones
    kurtosis: float


def measure_whiteness(noise: Tensor) -> Whiteness:
    """Measure noise (b c ... h w); frames count as channels."""
    x = noise.detach().float().cpu()
    power = torch.fft.fft2(x, norm="ortho").abs().square()
    radius = _radius(*x.shape[-2:])
    slow, fast = radius <= LOW, radius >= HIGH
    slow[0, 0] = False  # the mean alone is not a change
    centred = x - x.mean()
    variance = centred.square().mean().clamp_min(1e-12)
    return Whiteness(
        rms=float(x.square().mean().sqrt()),
        low=float(power[..., slow].mean()) if bool(slow.any()) else 1.0,
        high=float(power[..., fast].mean()),
        kurtosis=float(centred.pow(4).mean() / variance.square()),
    )


def whitened(gradient: Tensor) -> Tensor:
    """A gradient with the spectrum of white noise and the phases of its own.

    Args:
        gradient: (b c ... h w); left unmodified.

    Returns:
        The same shape, root mean square 1 of each picture.
    """
    x = gradient.float()
    spectrum = torch.fft.fft2(x, norm="ortho")
    order = _radius(*x.shape[-2:]).to(x.device).flatten().argsort(stable=True)
    sorted_spectrum = spectrum.flatten(-2)[..., order]
    magnitude = sorted_spectrum.abs()
    white = torch.cat([_project(part) for part in magnitude.split(BLOCK, -1)], -1)
    phase = sorted_spectrum / magnitude.clamp_min(1e-30)
    found = torch.empty_like(sorted_spectrum)
    found[..., order] = phase * white
    return unit_rms(torch.fft.ifft2(found.unflatten(-1, x.shape[-2:]), norm="ortho").real)


def unit_rms(x: Tensor) -> Tensor:
    """Each picture (c ...) of a batch scaled to root mean square 1."""
    size = x.flatten(1).square().mean(1).sqrt().clamp_min(1e-30)
    return x / size.view(-1, *[1] * (x.ndim - 1))


def _project(magnitude: Tensor) -> Tensor:
    """Magnitudes (... B) moved to mean MEAN and standard deviation RADIUS, none below 0."""
    found = magnitude
    for _ in range(SWEEPS):
        centred = found - found.mean(-1, keepdim=True)
        spread = centred.square().mean(-1, keepdim=True).sqrt()
        found = (MEAN + RADIUS * centred / spread.clamp_min(1e-30)).clamp_min(0.0)
    return found


def _radius(height: int, width: int) -> Tensor:
    """Frequency of each coefficient (h w) as a share of the highest along an axis."""
    y, x = torch.fft.fftfreq(height).abs() * 2, torch.fft.fftfreq(width).abs() * 2
    return (y.square()[:, None] + x.square()[None]).sqrt()
