"""Pictures of a style brought to the sizes that they are trained at: aspect buckets.

Source:  aspect-ratio bucketing as trainers of diffusion models do it (NovelAI 2022): a few sizes
         of about the same area; each picture takes the one nearest to its own shape.
Differs: the authors of StyleForge crop squares at random; a bucket keeps nearly the whole picture.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .style_set import StylePicture

DEFAULT_PX = 512  # what SD1.5 draws; larger pictures are brought to it unless asked otherwise
SMALL_PX = 256  # below it sides are multiples of 32 px instead of 64
MIN_PX = 64
LONGEST_SHAPE = 2.0  # of a bucket: no side is longer than twice the other


def training_side(sizes: Sequence[tuple[int, int]], resolution: int = 0) -> int:
    """The side of the square bucket.

    Args:
        sizes: width and height of each picture, px.
        resolution: as asked for; 0 takes 512, or the shortest side among smaller pictures.

    Returns:
        A multiple of 64 px, or of 32 below 256; never under 64.
    """
    side = resolution or min(DEFAULT_PX, *(min(size) for size in sizes))
    return max(side // _step(side) * _step(side), MIN_PX)


def nearest_bucket(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of the bucket for a picture: of its shape, of at most `side` squared px."""
    step = _step(side)
    shape = min(max(width / height, 1 / LONGEST_SHAPE), LONGEST_SHAPE)

    def fits(wide: int) -> tuple[int, int]:
        return wide, max(side * side // wide // step * step, step)

    widths = range(step, int(side * LONGEST_SHAPE) + 1, step)
    buckets = [size for size in map(fits, widths) if _within(size)]
    return min(buckets, key=lambda size: max(size[0] / size[1] / shape, shape * size[1] / size[0]))


def fit_to_bucket(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize until the bucket is covered, then cut what juts out, the same on both sides.

    Args:
        planes: (c h w), 0..1; left unmodified.
        size: width and height, px.

    Returns:
        (c height width) uint8; a picture of exactly that size keeps its values.
    """
    width, height = size
    scale = max(width / planes.shape[-1], height / planes.shape[-2])
    grown = [max(round(n * scale), least) for n, least in zip(planes.shape[-2:], (height, width), strict=True)]  # fmt: skip
    if grown != list(planes.shape[-2:]):
        planes = F.interpolate(planes[None], grown, mode="bicubic", antialias=True)[0]
    top, left = (grown[0] - height) // 2, (grown[1] - width) // 2
    cut = planes[:, top : top + height, left : left + width]
    return cut.clamp(0, 1).mul(255).round().byte().cpu().contiguous()


def style_picture(
    planes: Tensor, side: int, caption: str = "", mask: Tensor | None = None, source: str = ""
) -> StylePicture:
    """A picture of a set, at its bucket's size.

    Args:
        planes: (3 h w), 0..1.
        side: as from `training_side`.
        caption: what is to be seen.
        mask: (1 h w) of the picture's size, 0..1.
        source: what messages call it.
    """
    height, width = planes.shape[-2:]
    size = nearest_bucket(width, height, side)
    return StylePicture(
        pixels=fit_to_bucket(planes, size),
        caption=caption,
        mask=None if mask is None else fit_to_bucket(mask, size),
        source=source,
        original_size=(width, height),
    )


def _step(side: int) -> int:
    return 64 if side >= SMALL_PX else 32


def _within(size: tuple[int, int]) -> bool:
    return max(size) <= LONGEST_SHAPE * min(size)
