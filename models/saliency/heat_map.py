"""A saliency map drawn over its picture.

Source:  the colours of matplotlib's inferno at five places: lightness rises steadily, so that the
         map reads in grey and by colour-blind people.
"""

import torch
from torch import Tensor

STOPS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
OPACITY = 0.6
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def draw_heat_map(image: Tensor, found: Tensor) -> Tensor:
    """Lay the map's colours over a grey copy of the picture.

    Args:
        image: (b 3 h w), 0..1; left unmodified.
        found: (b 1 h w), 0..1.

    Returns:
        (b 3 h w), 0..1.
    """
    grey = (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    return torch.lerp(grey.expand_as(image), _colours(found[:, 0]), OPACITY)


def _colours(found: Tensor) -> Tensor:
    """Colours (b 3 h w) of values (b h w)."""
    stops = found.new_tensor(STOPS) / 255.0
    place = found.clamp(0.0, 1.0) * (len(STOPS) - 1)
    lower = place.floor().clamp(max=len(STOPS) - 2)
    index = lower.long()
    mixed = torch.lerp(stops[index], stops[index + 1], (place - lower)[..., None])
    return mixed.movedim(-1, 1)
