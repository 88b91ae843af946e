"""FlowEdit: from a picture to its edit without going through noise.

Source:  Kulikov et al. 2024 (FlowEdit), arXiv:2412.08629, Algorithm 1, with n_min = 0:
         z_s = alpha x0 + sigma n, z_t = z + z_s - x0, z += dsigma (d_t(z_t) - d_s(z_s)).
Differs: alpha is the model's own, so that variance-exploding models (eps, v), which the paper leaves
         out, walk by the same rule: the edit's path is the difference of two paths that share their
         noise, whatever alpha is. Noise comes from one generator per picture, so that a batch gives what
         its pictures give one by one.
Symbols: z edited picture, x0 source; z_s, z_t noisy source and target; d = (z - D) / sigma; n noise.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...common.noise_space import NoiseSpace
from ..method import AfterStep, Denoise, check_descending, draw_noise


def flow_edit(
    source: Denoise,
    target: Denoise,
    clean: Tensor,
    sigmas: Sequence[float],
    space: NoiseSpace,
    seed: int,
    draws: int = 1,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Carry a picture from what `source` sees in it to what `target` sees.

    Args:
        source: the denoiser with the source's prompt and scale.
        target: the denoiser with the edit's.
        clean: x0 (b c ...), left unmodified.
        sigmas: descending to 0; the first one is how far into the noise the edit reaches.
        space: of the denoisers.
        seed: of the noise.
        draws: fresh noises per step, whose differences are averaged.
        after_step: may change every new z.

    Returns:
        z (b c ...), like `clean`.

    Raises:
        ValueError: `sigmas` do not descend to 0.
    """
    check_descending(sigmas)
    steps = len(sigmas) - 1
    noises = draw_noise(clean, seed, steps * draws)
    edited = clean
    for step, (high, low) in enumerate(pairwise(sigmas)):
        change = torch.zeros_like(clean)
        for draw in range(draws):
            z_s = space.noisy(clean, noises[step * draws + draw], high)
            z_t = edited + z_s - clean
            change += ((z_t - target(z_t, high)) - (z_s - source(z_s, high))) / high
        edited = edited + (low - high) * change / draws
        if after_step is not None:
            edited = after_step(step + 1, edited)
    return edited
