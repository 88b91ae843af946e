"""Which step of a training is the best, by a validation that leaves no trace in it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .training_learner import Learner


@dataclass
class Judge:
    """Tells how good the averaged weights are, and remembers which step was best."""

    validate: Callable[[], Mapping[str, float]] | None
    score: str
    network: nn.Module | None  # in eval mode while it is validated
    at: int = 0  # the last validated step
    best_step: int | None = None
    best_score: float = -math.inf
    without_better: int = 0  # validations since

    def look(self, learner: Learner) -> dict[str, float]:
        """Validate, and leave everything as it was.

        Raises:
            ValueError: the score is not among the numbers.
        """
        assert self.validate is not None
        with learner.averaged():
            if self.network is not None:
                self.network.eval()
            numbers = {name: float(value) for name, value in self.validate().items()}
            if self.network is not None:
                self.network.train()
        if self.score not in numbers:
            raise ValueError(
                f"validate gives {', '.join(numbers) or 'nothing'}, score is {self.score!r}; name "
                "one of its numbers"
            )
        return numbers

    def take(self, step: int, numbers: Mapping[str, float]) -> bool:
        """Whether this step is the best so far."""
        self.at = step
        is_best = numbers[self.score] > self.best_score
        if is_best:
            self.best_step, self.best_score, self.without_better = step, numbers[self.score], 0
        else:
            self.without_better += 1
        return is_best

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        names = ("at", "best_step", "best_score", "without_better")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any], kept: int | None) -> None:
        """Be as when `state` was taken.

        Args:
            state: none of it before the first checkpoint.
            kept: step of the best weights on disk; where it is not that of the state, the choice
                begins anew.
        """
        if state.get("best_step") != kept:
            state = {"at": state.get("at", 0)}
        for name, value in state.items():
            setattr(self, name, value)
