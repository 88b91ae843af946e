"""How a network is to learn, and what is told while it does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

OPTIMIZERS = ("adamw", "prodigy")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a network learns.

    "adamw" is torch's. "prodigy" (arXiv:2306.06101, package prodigyopt) finds the rate itself, and
    learning_rate is then what its finding is multiplied by: 1.0, seldom another number.

    "cosine" falls to 0 at the last step, "constant" stays; both rise over the first `warmup` steps.

    Raises:
        ValueError: a number is out of its range, a name is unknown.
    """

    steps: int
    learning_rate: float
    warmup: int = 200
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clip: float = 1.0  # greatest norm of the gradient
    accumulation: int = 1  # losses drawn per step
    seed: int = 0
    save_every: int = 500
    log_every: int = 50
    optimizer: str = "adamw"
    keep_last: int = 1  # checkpoints: checkpoint.pt, and before it checkpoint_000100.pt and so on
    validate_every: int = 0  # steps; 0: never
    patience: int = 0  # validations without a better one that end the run; 0: none do
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("accumulation", "save_every", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, 1 or more is needed")
        if self.steps < 0 or self.warmup < 0:
            raise ValueError(f"steps {self.steps} and warmup {self.warmup} must not be negative")
        for name in ("validate_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, 0 or more is needed")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, {' or '.join(known)} is needed"
                )
        _check_rate(self.learning_rate)


@dataclass(frozen=True)
class Group:
    """Parameters that learn at their own rate, and no more from `stop_step` on.

    From then on, while the run lasts, they do not require gradients, so that nothing is computed
    for them and what they make can be cached; their average is what they are.

    Raises:
        ValueError: the rate is not above 0, stop_step is negative.
    """

    names: tuple[str, ...]
    learning_rate: float
    stop_step: int | None = None

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        if self.stop_step is not None and self.stop_step < 0:
            raise ValueError(f"stop_step is {self.stop_step}, 0 or more is needed")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished step; the numbers are there on logged steps only."""

    step: int
    steps: int
    loss: float | None = None  # mean since the last logged step
    rate: float | None = None  # steps per second since then
    peak_bytes: int | None = None  # of the GPU, or else of the process
    numbers: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)  # on validated steps only
    best_step: int | None = None  # of the validated ones so far
    seconds_left: float | None = None  # validations and all, if the run is not ended early

    @property
    def is_logged(self) -> bool:
        return self.loss is not None


def _check_rate(learning_rate: float) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}, it must be above 0")
