"""Views of a picture that a saliency map chooses: crops by density, and the masked picture.

Source:  crops as in DOODL, Wallace et al. 2023, arXiv:2303.13703: squares of side u^0.3 between a least
         share of the shorter side and all of it. Masked pictures as SGOOL's (arXiv:2410.10257).
Differs: DOODL's centres are uniform; here a share of them follows the map, so that the encoder sees
         natural pixels of the salient part. The mean over crops is scored, not the best of them.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

LEAST_SIDE = 0.35  # of the shorter side
SIDE_POWER = 0.3
VIEW_PX = 224  # crops are brought to one size, at most this
BLACK, MEAN_COLOUR, BLURRED = FILLS = ("black", "mean colour", "blurred")
BLUR_SHARE = 16  # a blurred surrounding is this many times smaller


def density_crops(
    image: Tensor, found: Tensor, count: int, share: float, generator: Generator
) -> Tensor:
    """Cut squares out, many where people look.

    Args:
        image: (b 3 h w); gradients go through.
        found: saliency (b 1 h w), 0..1.
        count: crops of each picture.
        share: of the centres that follow the map; the others lie anywhere.
        generator: on the CPU.

    Returns:
        (count*b 3 s s): the first crop of every picture, then the second, and so on.
    """
    short = min(image.shape[-2:])
    side = min(short, VIEW_PX)
    views = []
    for _ in range(count):
        for picture, saliency in zip(image, found, strict=True):
            top, left, size = draw_square(saliency[0], share, generator)
            cut = picture[None, :, top : top + size, left : left + size]
            views.append(F.interpolate(cut, (side, side), mode="bilinear", antialias=True))
    return torch.cat(views)


def draw_square(saliency: Tensor, share: float, generator: Generator) -> tuple[int, int, int]:
    """Top, left and side, px, of a square inside a map (h w) whose centre was drawn from it."""
    height, width = saliency.shape
    short = min(height, width)
    u, which, where = torch.rand(3, generator=generator).tolist()
    size = max(1, round(short * (LEAST_SIDE + (1 - LEAST_SIDE) * u**SIDE_POWER)))
    weights = saliency.detach().double().cpu().flatten()
    if which < share and float(weights.sum()) > 0:
        index = int(torch.searchsorted(weights.cumsum(0), where * weights.sum()))
    else:
        index = int(where * len(weights))
    y, x = divmod(min(index, len(weights) - 1), width)
    top = min(max(0, y - size // 2), height - size)
    left = min(max(0, x - size // 2), width - size)
    return top, left, size


def masked_image(image: Tensor, found: Tensor, fill: str = BLACK) -> Tensor:
    """The salient part of pictures (b 3 h w); the map (b 1 h w) fades all else into the fill."""
    if fill == BLACK:
        return image * found
    if fill == MEAN_COLOUR:
        around = image.detach().mean((-2, -1), keepdim=True).expand_as(image)
    elif fill == BLURRED:
        small = [max(1, side // BLUR_SHARE) for side in image.shape[-2:]]
        around = F.interpolate(image.detach(), small, mode="bilinear", antialias=True)
        around = F.interpolate(around, image.shape[-2:], mode="bilinear")
    else:
        raise ValueError(f"fill is {fill!r}, one of {', '.join(FILLS)} is needed")
    return torch.lerp(around, image, found)


def gated(image: Tensor, found: Tensor, strength: float) -> Tensor:
    """The picture itself; its gradient counts by 1 - strength + strength times the map."""
    share = 1 - strength + strength * found
    return image * share + (image * (1 - share)).detach()
