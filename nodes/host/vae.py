"""Pictures on their way into a VAE and back: padded to the grid, cropped to what they were."""

from typing import Any

import comfy.sd
import torch.nn.functional as F
from torch import Tensor

from ...models.common.images import bchw_to_image

GRID_PX = 16  # 8 px a latent and patches of 2 latents: what UNets and transformers both take


def padded(planes: Tensor, vae: comfy.sd.VAE) -> Tensor:
    """Pictures (b 3 h w) with their last row and column repeated up to the next size that fits."""
    compression: Any = vae.spacial_compression_encode()
    grid = max(GRID_PX, int(compression))
    height, width = planes.shape[-2:]
    return F.pad(planes, (0, -width % grid, 0, -height % grid), mode="replicate")


def encode(vae: comfy.sd.VAE, planes: Tensor) -> Tensor:
    """The latent (b c ...) of pictures (b 3 h w)."""
    return vae.encode(bchw_to_image(planes))


def decode(vae: comfy.sd.VAE, latent: Tensor, size_px: tuple[int, int] | None) -> Tensor:
    """The pictures (b 3 h w) of a latent, cropped to a height and width; 0..1. Frames become a batch."""
    image = vae.decode(latent)
    if image.ndim == 5:
        image = image.flatten(0, 1)
    planes = image.movedim(-1, 1).float().clamp(0.0, 1.0)
    return planes if size_px is None else planes[..., : size_px[0], : size_px[1]]


def through_vae(vae: comfy.sd.VAE, planes: Tensor) -> Tensor:
    """Pictures (b 3 h w) encoded and decoded, in their own size: the best that a latent can give."""
    height, width = planes.shape[-2:]
    return decode(vae, encode(vae, padded(planes, vae)), (height, width)).to(planes)
