"""Pictures and masks at the border between the host and the methods: checks and conversions.

Host side: image (b h w c) and mask (b h w), 0..1. Inside: image (b 3 h w), mask (b 1 h w), float32.
Every check raises ValueError in one sentence: what arrived, what was needed; what to do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE_PX = 16  # below it there is no picture to measure
MAX_SIDE_PX = 16384  # an 8k picture is 7680 px wide; beyond 16k memory runs out before the method
BACKDROP = 1.0  # white: what is transparent shows the paper


def image_to_bchw(image: Tensor, name: str = "image") -> Tensor:
    """Turn the host's picture batch into checked RGB planes.

    Grey is repeated to three channels. Alpha (a second or fourth channel) is composited over
    white, as on paper or in a browser, because colours under transparent pixels are arbitrary.
    Values outside 0..1 are clamped.

    Args:
        image: (b h w c) floating point, c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
            Left unmodified.
        name: the input's name in error messages.

    Returns:
        (b 3 h w) float32 in 0..1 on the device of `image`. May share memory with `image`:
        read it only.

    Raises:
        ValueError: another rank, channel count or type; no picture; a side under 16 px or over
            16384 px; NaN or infinite values.
    """
    _check_layout(image, name)
    planes = image.movedim(-1, 1).float()
    low, high = planes.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(
            f"{name} holds NaN or infinite values, numbers from 0 to 1 are needed; look at the "
            "node that made it (a VAE in half precision does this, try another precision)"
        )
    if low < 0 or high > 1:
        planes = planes.clamp(0.0, 1.0)
    channels = planes.shape[1]
    if channels in (2, 4):
        colour, alpha = planes[:, :-1], planes[:, -1:]
        planes = torch.lerp(torch.full_like(colour, BACKDROP), colour, alpha)
    return planes.expand(-1, 3, -1, -1) if planes.shape[1] == 1 else planes


def bchw_to_image(planes: Tensor) -> Tensor:
    """Turn (b c h w) planes into the host's contiguous (b h w c) picture batch."""
    return planes.movedim(1, -1).contiguous()


def mask_to_b1hw(mask: Tensor, batch: int, height: int, width: int, name: str = "mask") -> Tensor:
    """Turn the host's mask into checked planes of a picture's size.

    A mask of another size is resized to the picture (bilinear, antialiased when it shrinks);
    values outside 0..1 are clamped.

    Args:
        mask: (b h w), (h w) or (b 1 h w), any real type. Left unmodified.
        batch: pictures in the batch it belongs to.
        height: of the pictures, px.
        width: of the pictures, px.
        name: the input's name in error messages.

    Returns:
        (b 1 h w) or (1 1 h w) float32 in 0..1 on the device of `mask`. May share memory with
        `mask`: read it only.

    Raises:
        ValueError: another rank; neither one mask nor `batch` of them; no pixels; NaN or
            infinite values.
    """
    planes = _mask_planes(mask, name)
    if planes.shape[0] not in (1, batch):
        raise ValueError(
            f"{name} holds {planes.shape[0]} masks, image holds {batch} pictures; "
            "pass one mask, or one per picture"
        )
    low, high = planes.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(
            f"{name} holds NaN or infinite values, numbers from 0 to 1 are needed; "
            "look at the node that made it"
        )
    if low < 0 or high > 1:
        planes = planes.clamp(0.0, 1.0)
    if planes.shape[-2:] != (height, width):
        planes = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return planes


def _check_layout(image: Tensor, name: str) -> None:
    shape = tuple(image.shape)
    if image.ndim != 4 or shape[-1] not in (1, 2, 3, 4):
        raise ValueError(
            f"{name} has the shape {shape}, (pictures, height, width, 1 to 4 channels) is needed; "
            "connect an IMAGE"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"{name} holds numbers of type {image.dtype}, floating point from 0 to 1 is needed; "
            "divide 8-bit values by 255"
        )
    count, height, width, _ = shape
    if count == 0:
        raise ValueError(
            f"{name} is a batch of 0 pictures, one at least is needed; "
            "look at the node that selects or splits the batch"
        )
    if min(height, width) < MIN_SIDE_PX or max(height, width) > MAX_SIDE_PX:
        raise ValueError(
            f"{name} is {width} x {height} px, each side must lie in {MIN_SIDE_PX}..{MAX_SIDE_PX} "
            "px; resize it first"
        )


def _mask_planes(mask: Tensor, name: str) -> Tensor:
    shape = tuple(mask.shape)
    if mask.ndim == 4 and shape[1] == 1:
        mask = mask[:, 0]
    elif mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3:
        raise ValueError(
            f"{name} has the shape {shape}, (masks, height, width) is needed; connect a MASK"
        )
    if mask.numel() == 0:
        raise ValueError(
            f"{name} has the shape {shape} and so no pixel, one mask of at least one pixel is "
            "needed; look at the node that made it"
        )
    return mask[:, None].float()
