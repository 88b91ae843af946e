"""Where in an inversion a noise level lies, and the source's state there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..trajectory import Inversion

SAME_LEVEL = 1e-3  # of a step: the rounding of noise levels to float32


def share_done(sigma: float, sigmas: Sequence[float]) -> float:
    """Which share of the steps lies behind a noise level, 0..1; linear between two levels.

    Args:
        sigma: the level.
        sigmas: of the steps, descending.
    """
    if sigma >= sigmas[0]:
        return 0.0
    after = next((i for i, level in enumerate(sigmas) if level <= sigma), None)
    if after is None:
        return 1.0
    high, low = sigmas[after - 1], sigmas[after]
    return (after - 1 + (high - sigma) / (high - low)) / (len(sigmas) - 1)


def source_state(inversion: Inversion, sigma: float) -> Tensor:
    """The source's state (b c ...) at a noise level, between two kept ones by their weighted mean.

    Raises:
        ValueError: the states there were not kept.
    """
    place = share_done(sigma, inversion.sigmas) * inversion.steps
    nearest = round(place)
    if abs(place - nearest) < SAME_LEVEL:
        return inversion.state(nearest)
    before = int(place)
    return torch.lerp(inversion.state(before), inversion.state(before + 1), place - before)
