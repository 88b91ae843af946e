"""How noise-like the end of an inversion is: a picture can come back from noise that cannot be edited.

Symbols: n unit noise (b c ...), of which Gaussian white noise has mean 0, std 1, kurtosis 3, correlations 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .trajectory import Inversion


@dataclass(frozen=True, kw_only=True)
class NoiseStatistics:
    """Of each sample of a batch (b), float32.

    Args:
        mean: 0 for white noise.
        std: 1 for white noise.
        kurtosis: 3 for white noise.
        autocorrelation: of neighbouring places, mean over the last two axes.
        channel_correlation: largest absolute one between two channels.
        divergence: Kullback-Leibler, of a normal distribution of this mean and std from N(0, 1).
    """

    mean: Tensor
    std: Tensor
    kurtosis: Tensor
    autocorrelation: Tensor
    channel_correlation: Tensor
    divergence: Tensor


def end_statistics(inversion: Inversion) -> NoiseStatistics:
    """Statistics of the unit noise that an inversion's noisiest state holds beside the clean latent."""
    noise = inversion.space.noise_in(inversion.noise, inversion.clean, inversion.sigmas[0])
    return noise_statistics(noise)


def noise_statistics(noise: Tensor) -> NoiseStatistics:
    """Statistics of unit noise.

    Args:
        noise: (b c ...), at least one axis after the channels; left unmodified.
    """
    noise = noise.float()
    flat = noise.flatten(1)
    mean, std = flat.mean(1), flat.std(1, correction=0)
    unit = (flat - mean[:, None]) / std.clamp(min=torch.finfo(std.dtype).tiny)[:, None]
    unit = unit.view_as(noise)
    return NoiseStatistics(
        mean=mean,
        std=std,
        kurtosis=unit.flatten(1).pow(4).mean(1),
        autocorrelation=_neighbours(unit),
        channel_correlation=_channels(unit),
        divergence=0.5 * (std.square() + mean.square() - 1 - std.square().log()),
    )


def _neighbours(unit: Tensor) -> Tensor:
    axes = [axis for axis in range(max(2, unit.ndim - 2), unit.ndim) if unit.shape[axis] > 1]
    if not axes:
        return torch.zeros(len(unit), device=unit.device)
    found = [
        (unit.narrow(axis, 1, unit.shape[axis] - 1) * unit.narrow(axis, 0, unit.shape[axis] - 1))
        .flatten(1)
        .mean(1)
        for axis in axes
    ]
    return torch.stack(found).mean(0)


def _channels(unit: Tensor) -> Tensor:
    planes = unit.flatten(2)
    planes = planes - planes.mean(2, keepdim=True)
    planes = torch.nn.functional.normalize(planes, dim=2)
    correlation = planes @ planes.mT  # (b c c)
    apart = 1 - torch.eye(correlation.shape[-1], device=unit.device)
    return (correlation * apart).abs().flatten(1).amax(1)
