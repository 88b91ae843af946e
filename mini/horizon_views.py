"""Random views of drawn pictures for the horizon networks; labels stay true while frames move."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

VIEW_PX = 128


def random_view(
    image: Tensor, labels: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures in another framing, partly covered, in other colours.

    Args:
        image: (b h w 3) bytes; left unmodified.
        labels: (b 2) heights of the horizon at the left and right edge, NaN where there is none.
        generator: draws the view.

    Returns:
        Pictures (b 3 s s), 0..1, their labels, and weights (b): 0 where the label is unsure.
    """
    picture = image.permute(0, 3, 1, 2).float() / 255
    picture, labels, weight = move_frame(picture, labels, generator)
    return recolour(paste(picture, labels, generator), generator), labels, weight


def move_frame(
    image: Tensor, labels: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop, stretch, turn and mirror; a horizon that leaves the frame becomes "none"."""
    b = len(image)
    u = lambda low, high: low + (high - low) * torch.rand(b, generator=generator)  # noqa: E731
    width, height = u(0.5, 1.0), u(0.5, 1.0)
    width = torch.where(u(0, 1) < 0.3, torch.ones(b), width)
    height = torch.where(u(0, 1) < 0.3, torch.ones(b), height)
    turn = torch.where(u(0, 1) < 0.3, u(-0.14, 0.14), u(-0.02, 0.02))
    cx, cy = u(-1, 1) * (1 - width), u(-1, 1) * (1 - height)
    flip = torch.where(u(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(turn), torch.sin(turn)
    # output (x, y) in -1..1 reads the source at A (x, y) + c
    a00, a01, a10, a11 = flip * width * cos, -height * sin, flip * width * sin, height * cos
    theta = torch.stack([a00, a01, cx, a10, a11, cy], 1).view(b, 2, 3)
    grid = F.affine_grid(theta, [b, 3, VIEW_PX, VIEW_PX], align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    # the line  y = p + q x  of the source (in -1..1), seen from the output
    p, q = labels.mean(1) * 2 - 1, (labels[:, 1] - labels[:, 0])
    bottom = a11 - q * a01
    p_new, q_new = (p + q * cx - cy) / bottom, (q * a00 - a10) / bottom
    heights = torch.stack([(p_new - q_new + 1) / 2, (p_new + q_new + 1) / 2], 1)
    gone = ((heights < -0.02) | (heights > 1.02)).all(1)
    centre = heights.mean(1)
    unsure = ~gone & ((centre < 0.04) | (centre > 0.96))
    heights[gone] = math.nan
    return moved, heights, torch.where(unsure, 0.0, 1.0)


def paste(image: Tensor, labels: Tensor, generator: Generator) -> Tensor:
    """Lay a round piece of a picture without a horizon over some of the others."""
    b, _, h, w = image.shape
    donors = torch.nonzero(labels[:, 0].isnan()).flatten()
    if not len(donors):
        return image
    pick = donors[torch.randint(len(donors), (b,), generator=generator)]
    u = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)  # noqa: E731
    y = torch.linspace(0, 1, h).view(1, 1, h, 1)
    x = torch.linspace(0, 1, w).view(1, 1, 1, w)
    radius = torch.where(u(0, 1) < 0.15, u(0.05, 0.3), torch.zeros(1))
    power = u(1, 4)
    distance = ((x - u(0, 1)).abs() ** power + (y - u(0, 1.1)).abs() ** power) ** (1 / power)
    return torch.lerp(image, image[pick], ((radius - distance) * 40).clamp(0, 1))


def recolour(image: Tensor, generator: Generator) -> Tensor:
    """Shake colours, contrast, sharpness and grain."""
    b = len(image)
    u = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)  # noqa: E731
    if torch.rand((), generator=generator) < 0.25:
        small = F.avg_pool2d(image, 2)
        soft = F.interpolate(small, scale_factor=2, mode="bilinear")
        image = torch.where(u(0, 1) < 0.4, soft, image)
    mixing = torch.eye(3) + 0.12 * torch.randn(b, 3, 3, generator=generator)
    swap = (torch.rand(b, generator=generator) < 0.15).nonzero().flatten()
    for row in swap.tolist():
        mixing[row] = mixing[row][torch.randperm(3, generator=generator)]
    coloured = torch.einsum("bij,bjhw->bihw", mixing, image).clamp(0.001, 1)
    grey = coloured.mean(1, keepdim=True)
    keep = torch.where(u(0, 1) < 0.12, torch.zeros(1), u(0.5, 1.5))
    image = (grey + (coloured - grey) * keep).clamp(0.001, 1) ** torch.exp(u(-0.5, 0.5))
    image = torch.where(u(0, 1) < 0.03, 1 - image, image)
    grain = torch.randn(image.shape, generator=generator) * 10 ** u(-3, -1.3)
    return (image + torch.where(u(0, 1) < 0.4, grain, torch.zeros(1))).clamp(0, 1)
