"""Pictures as an image encoder takes them, without the rounding to 8 bits that stops gradients.

Source:  CLIP's own preprocessing (bicubic with antialiasing, crop of the middle, colour statistics);
         HPSv2's fits the longer side instead and fills up with black.
Differs: no rounding; a value that overshoots is clamped, but its gradient is not.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CROP, PAD = "crop the middle", "pad with black"


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become an encoder's input.

    Args:
        size: px a side.
        mean: of the colours, taken out.
        std: of the colours, divided by.
        fit: what becomes of a picture that is not square: `CROP` or `PAD`.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: str = CROP

    def __call__(self, image: Tensor) -> Tensor:
        """Pixels (b 3 size size) of pictures (b 3 h w), 0..1, left unmodified."""
        square = self.place(image)
        mean, std = (square.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (square - mean) / std

    def place(self, image: Tensor) -> Tensor:
        """Pictures or maps (b c h w), 0..1, where the encoder sees them: (b c size size)."""
        square = _clamped(self._fitted(image))
        if self.fit == PAD:
            height, width = square.shape[-2:]
            top, left = (self.size - height) // 2, (self.size - width) // 2
            borders = (left, self.size - width - left, top, self.size - height - top)
            square = F.pad(square, borders)
        return square

    def _fitted(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        side = max(height, width) if self.fit == PAD else min(height, width)
        scale = self.size / side
        new = (max(1, round(scale * height)), max(1, round(scale * width)))
        if new != (height, width):
            image = F.interpolate(image, new, mode="bicubic", antialias=True)
        if self.fit == PAD:
            return image
        top, left = (new[0] - self.size) // 2, (new[1] - self.size) // 2
        return image[..., top : top + self.size, left : left + self.size]


def _clamped(image: Tensor) -> Tensor:
    """0..1 on the way forward; on the way back as if nothing had been done."""
    return image + (image.clamp(0.0, 1.0) - image).detach()
