"""Pictures that are to be inverted: checked, dithered."""

from torch import Tensor

from ...models.common.images import image_to_bchw
from ...models.inversion.method import draw_noise

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


def dithered(planes: Tensor, std: float, seed: int) -> Tensor:
    """Pictures with normal noise of this spread added, each with its own; 0..1 still."""
    if std == 0:
        return planes
    return (planes + std * draw_noise(planes, seed, 1)[0]).clamp(0.0, 1.0)
