"""Pictures on their way into a VAE and back: padded to the grid, dithered, cropped to what they were."""

from typing import Any

import comfy.sd
import torch.nn.functional as F
from torch import Tensor

from ...models.common.images import bchw_to_image, image_to_bchw
from ...models.inversion.method import draw_noise

GRID_PX = 16  # 8 px a latent and patches of 2 latents: what UNets and transformers both take
MAX_SIDE_PX = 3072  # models know no larger pictures, and attention would fill the memory


def checked_pictures(image: Tensor) -> Tensor:
    """The planes (b 3 h w) of an IMAGE.

    Raises:
        ValueError: no IMAGE, too small, or too large to invert.
    """
    planes = image_to_bchw(image)
    height, width = planes.shape[-2:]
    if max(height, width) > MAX_SIDE_PX:
        raise ValueError(
            f"image is {width} x {height} px, at most {MAX_SIDE_PX} px a side can be inverted; resize it to "
            "the size that the model draws"
        )
    return planes


def padded(planes: Tensor, vae: comfy.sd.VAE) -> Tensor:
    """Pictures (b 3 h w) with their last row and column repeated up to the next size that fits."""
    compression: Any = vae.spacial_compression_encode()
    grid = max(GRID_PX, int(compression))
    height, width = planes.shape[-2:]
    return F.pad(planes, (0, -width % grid, 0, -height % grid), mode="replicate")


def dithered(planes: Tensor, std: float, seed: int) -> Tensor:
    """Pictures with normal noise of this spread added, each with its own; 0..1 still."""
    if std == 0:
        return planes
    return (planes + std * draw_noise(planes, seed, 1)[0]).clamp(0.0, 1.0)


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
