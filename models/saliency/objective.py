"""Points of a picture whose salient part counts by itself.

Source:  SGOOL, Wang et al. 2024, arXiv:2410.10257: a CLIP loss of the whole picture and of its salient
         part. Weight, mask and refresh are not published; presets say what they take.
Differs: besides the masked picture there are crops by density, tokens pooled by the map, a gate on the
         gradient, and the map itself as the goal (as GazeFusion, arXiv:2407.04191, but untrained).
         The map passes no gradient but where it is the goal, or the loss would fall by moving it.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .crops import BLACK, density_crops, gated, masked_image
from .maps import resized_map
from .mixing import Find
from .rewards.combine import Rewards
from .rewards.reward import POINTS, SALIENT

WHOLE_PICTURE, MASKED, CROPS, TOKENS, GATE, EYE = USES = (
    "off: the whole picture", "masked picture (SGOOL)", "crops where people look",
    "pooled tokens", "only the salient part may change", "draw the eye to the mask",
)  # fmt: skip
EMPTY_CHAIN = Rewards()


@dataclass(frozen=True)
class Judged:
    """What pictures are worth.

    Args:
        points: (b) with gradients, to be raised.
        judged: (b) the same without chance: of no crops but the whole picture.
    """

    points: Tensor
    judged: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Rewards and saliency as one number.

    Args:
        rewards: may be empty where the eye is drawn.
        find: of saliency maps; None where the map is not used.
        use: of `USES`.
        strength: weight of the salient part beside the whole picture's 1; for crops the share of
            their centres that follow the map, for the gate how firmly it shuts.
        target: (b 1 h w) or (1 1 h w), 0..1: where the eye is to go.
        crops: of each picture and iteration.
        fill: of a masked picture.
        refresh: iterations after which the map is found again.
        inertia: share of the map before that is kept then.

    Raises:
        ValueError: nothing to reward, or no map to use.
    """

    rewards: Rewards = EMPTY_CHAIN
    find: Find | None = None
    use: str = WHOLE_PICTURE
    strength: float = 1.0
    target: Tensor | None = None
    crops: int = 4
    fill: str = BLACK
    refresh: int = 5
    inertia: float = 0.8

    def __post_init__(self) -> None:
        if self.use not in USES:
            raise ValueError(f"use_saliency is {self.use!r}, one of {', '.join(USES)} is needed")
        if self.use == EYE and self.target is None:
            raise ValueError(
                f"use_saliency is {EYE!r} and mask is not connected; paint where people should look"
            )
        if self.use != EYE and not self.rewards.rewards:
            raise ValueError("reward is not connected, something to make better is needed; add one")

    @property
    def has_map(self) -> bool:
        """Whether saliency matters at all."""
        return self.use != WHOLE_PICTURE

    def found(self, image: Tensor, before: Tensor | None, iteration: int) -> Tensor | None:
        """The map (b 1 h w) to use in an iteration, without gradients."""
        if not self.has_map or self.find is None:
            return None
        if before is not None and iteration % self.refresh:
            return before
        with torch.no_grad():
            now = self.find(image.detach())
        return now if before is None else torch.lerp(now, before.to(now), self.inertia)

    def judge(self, image: Tensor, found: Tensor | None, generator: Generator) -> Judged:
        """Score pictures (b 3 h w), about 0..1, with gradients; errors as in `Rewards.rows`."""
        if self.use == EYE:
            points = self._drawn_eye(image)
            return Judged(points, points.detach())
        if found is None:
            points = self.rewards.total(image)
            return Judged(points, points.detach())
        if self.use == GATE:
            points = self.rewards.total(gated(image, found, min(self.strength, 1.0)))
            return Judged(points, points.detach())
        whole = self.rewards.total(image)
        if self.use == CROPS:
            views = density_crops(image, found, self.crops, self.strength, generator)
            parts = self.rewards.total(views, SALIENT).view(self.crops, -1)
            return Judged((whole + parts.sum(0)) / (1 + self.crops), whole.detach())
        if self.use == TOKENS:
            part = self.rewards.pooled(image, found)
        else:
            part = self.rewards.total(masked_image(image, found, self.fill), SALIENT)
        points = (whole + self.strength * part) / (1 + self.strength)
        return Judged(points, points.detach())

    def _drawn_eye(self, image: Tensor) -> Tensor:
        assert self.find is not None and self.target is not None
        found = self.find(image)
        target = resized_map(self.target.to(found), *found.shape[-2:])
        drawn = POINTS * correlation(found, target)
        if not self.rewards.rewards:
            return drawn
        return (self.rewards.total(image) + self.strength * drawn) / (1 + self.strength)


def correlation(found: Tensor, target: Tensor) -> Tensor:
    """How alike two maps (b 1 h w) are: Pearson's CC (b), the saliency benchmarks' measure."""
    a, b = (x - x.mean((1, 2, 3), keepdim=True) for x in (found, target))
    sizes = a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))
    return (a * b).sum((1, 2, 3)) / sizes.clamp_min(1e-12).sqrt()
