"""What a reward is: points for each picture, higher is better, with a gradient.

Points are 100 times a cosine wherever a picture is compared with something, as CLIP score, HPSv2
and PickScore are usually told, so that rewards of one weight count about the same.
"""

from typing import Protocol

from torch import Tensor

WHOLE, SALIENT = PARTS = ("whole", "salient")  # what a picture that is scored is of the whole one
POINTS = 100.0


class Reward(Protocol):
    """Scores pictures; differentiable in them."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def weight(self) -> float:
        """Of its points in the total; below 0 the picture is to keep away from what it rewards."""
        ...

    def score(self, image: Tensor, part: str = WHOLE) -> Tensor:
        """Points (b) of pictures (b 3 h w), 0..1.

        `part` says what they are: whole pictures, or their salient part alone (a crop, or all else
        masked), for which a reward may want something else.
        """
        ...
