"""Several rewards as one, each with its own weight."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .clip_reward import ClipReward
from .reward import SALIENT, WHOLE, Reward


@dataclass(frozen=True)
class Score:
    """What one reward gives: points (b), to be counted `weight` times."""

    name: str
    weight: float
    points: Tensor


@dataclass(frozen=True)
class Rewards:
    """A chain of rewards, in the order in which they were added."""

    rewards: tuple[Reward, ...] = ()

    def __add__(self, other: "Rewards") -> "Rewards":
        return Rewards(self.rewards + other.rewards)

    def rows(self, image: Tensor, part: str = WHOLE) -> list[Score]:
        """What each reward gives pictures (b 3 h w), 0..1, with gradients.

        Raises:
            ValueError: there is no reward, or one gives NaN or infinite points.
        """
        return self._checked(lambda reward: reward.score(image, part))

    def total(self, image: Tensor, part: str = WHOLE) -> Tensor:
        """Sum (b) of all points by weight, with gradients; errors as in `rows`."""
        return weighted_sum(self.rows(image, part))

    def pooled(self, image: Tensor, found: Tensor) -> Tensor:
        """Sum (b) of points of what is salient, by tokens pooled with the map (b 1 h w).

        Rewards without tokens score the whole picture; errors as in `rows`.
        """
        return weighted_sum(
            self._checked(
                lambda reward: (
                    reward.score_pooled(image, found)
                    if isinstance(reward, ClipReward)
                    else reward.score(image, SALIENT)
                )
            )
        )

    def _checked(self, score: Callable[[Reward], Tensor]) -> list[Score]:
        if not self.rewards:
            raise ValueError("reward is an empty chain, one reward at least is needed; add one")
        scores = [Score(x.name, x.weight, score(x)) for x in self.rewards]
        for one in scores:
            if not bool(torch.isfinite(one.points.detach()).all()):
                raise ValueError(
                    f"reward {one.name} gives {one.points.detach().cpu().tolist()} points, finite "
                    "numbers are needed; the picture holds NaN, or its model needs more precision"
                )
        return scores


def weighted_sum(scores: Sequence[Score]) -> Tensor:
    """Points (b) of all rewards together, each by its weight."""
    return torch.stack([score.weight * score.points for score in scores]).sum(0)
