"""Several saliency maps as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .maps import resized_map, unit_map

MEAN, MAXIMUM, PRODUCT = MIXES = ("weighted mean", "maximum", "product")
LEAST = 1e-6  # so that a power of a map has a gradient where the map is 0

Find = Callable[[Tensor], Tensor]  # pictures (b 3 h w), 0..1, to maps (b 1 h w), 0..1


def mix_maps(maps: Sequence[Tensor], weights: Sequence[float], how: str = MEAN) -> Tensor:
    """Join maps of one size.

    Args:
        maps: (b 1 h w) or (1 1 h w), 0..1; left unmodified.
        weights: of each map, 0 and up; 0 leaves the map out.
        how: of `MIXES`: the mean by weight; the highest of map times weight, divided by the greatest
            weight; or the product of the maps, each to the power of its weight.

    Raises:
        ValueError: every weight is 0, one is negative, or `how` is another word.
    """
    if min(weights) < 0 or max(weights) == 0:
        raise ValueError(
            f"the weights of the maps are {', '.join(f'{w:g}' for w in weights)}, one at least must be "
            "above 0 and none below; raise the weight of a map that is connected"
        )
    used = [(found, weight) for found, weight in zip(maps, weights, strict=True) if weight > 0]
    if how == MEAN:
        total = sum(weight for _, weight in used)
        return torch.stack(_together([found * (weight / total) for found, weight in used])).sum(0)
    if how == MAXIMUM:
        most = max(weight for _, weight in used)
        return torch.stack(_together([found * (weight / most) for found, weight in used])).amax(0)
    if how == PRODUCT:
        powers = [
            found if weight == 1 else found.clamp_min(LEAST) ** weight for found, weight in used
        ]
        return torch.stack(_together(powers)).prod(0)
    raise ValueError(f"combine is {how!r}, one of {', '.join(MIXES)} is needed")


@dataclass(frozen=True)
class FixedMap:
    """A painted or given mask as a finder: the same map whatever the picture shows.

    Args:
        planes: (b 1 h w) or (1 1 h w), 0..1.
    """

    planes: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        planes = self.planes.to(image)
        return resized_map(planes, *image.shape[-2:]).expand(len(image), -1, -1, -1)


@dataclass(frozen=True)
class Mixture:
    """Several finders as one.

    Args:
        parts: finder and weight of each.
        how: of `MIXES`.
    """

    parts: tuple[tuple[Find, float], ...]
    how: str = MEAN

    def __call__(self, image: Tensor) -> Tensor:
        """Maps (b 1 h w), 0..1 with 1 at the top; ValueError where nothing is salient in one."""
        weights = [weight for _, weight in self.parts]
        mixed = mix_maps([find(image) for find, _ in self.parts], weights, self.how)
        if not bool((mixed.detach().amax((1, 2, 3)) > 0).all()):
            raise ValueError(
                f"the joined map ({self.how}) is 0 everywhere, a place that all agree on is needed; take "
                "another way to combine them"
            )
        return unit_map(mixed)


def _together(maps: list[Tensor]) -> list[Tensor]:
    return list(torch.broadcast_tensors(*maps))
