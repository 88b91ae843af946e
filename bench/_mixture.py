"""Mixtures of Gaussians, whose denoiser is known in closed form: the oracle of the inversion methods."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.common.noise_space import NoiseSpace
from ..models.inversion.method import Denoise, Method, Observe
from ..models.inversion.trajectory import Inversion, Source


@dataclass(frozen=True)
class Mixture:
    """Equal shares of Gaussians with means (k d) and one spread, float64."""

    means: Tensor
    std: float

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Samples (n d) and the component of each."""
        generator = torch.Generator().manual_seed(seed)
        picked = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[picked] + self.std * noise, picked

    def denoiser(self, space: NoiseSpace, picked: Tensor | None = None) -> Denoise:
        """E[x0 | x]; of the whole mixture, or for each sample of one component."""

        def denoise(x: Tensor, sigma: float) -> Tensor:
            flat, alpha = x.flatten(1), space.alpha(sigma)
            variance = (alpha * self.std) ** 2 + (sigma * space.noise_scale) ** 2
            if picked is None:
                distance = (flat[:, None] - alpha * self.means).square().sum(-1)
                shares = (-distance / (2 * variance)).softmax(1)
                mean = shares @ self.means
            else:
                mean = self.means[picked]
            gain = alpha * self.std**2 / variance
            return (mean + gain * (flat - alpha * mean)).view_as(x).to(x)

        return denoise


def inverted(
    method: Method,
    denoise: Denoise,
    clean: Tensor,
    sigmas: list[float],
    space: NoiseSpace,
    seed: int = 0,
    observe: Observe | None = None,
) -> Inversion:
    """What the nodes make of a method's path, without ComfyUI."""
    path = method.invert(denoise, clean, sigmas, space, seed, observe)
    return Inversion(
        method=method.name,
        space=space,
        sigmas=tuple(sigmas),
        noise=path.states[0],
        clean=path.states[-1],
        states=path.states,
        second=path.second,
        maps=path.maps,
        residuals=path.residuals,
        calls=path.calls,
        source=Source(model="oracle", weights=(), latent=""),
    )
