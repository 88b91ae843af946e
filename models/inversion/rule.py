"""Methods whose way up and way down step by one and the same rule."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor

from ..common.noise_space import NoiseSpace
from .method import AfterStep, Calls, Denoise, Method, Observe, Path, ascend, descend
from .trajectory import Inversion

# move(x, source, target, i) -> x at the noise level target; i is the level that observers are told of
Move = Callable[[Tensor, float, float, int], Tensor]


class RuleMethod(Method):
    """A method of one rule."""

    @abstractmethod
    def mover(self, calls: Calls, space: NoiseSpace) -> Move:
        """The rule of one run, which may keep what it needs from step to step."""

    @abstractmethod
    def calls_of(self, steps: int) -> int:
        """How many calls so many steps take."""

    def invert(
        self,
        denoise: Denoise,
        clean: Tensor,
        sigmas: Sequence[float],
        space: NoiseSpace,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> Path:
        calls = Calls(denoise, self.calls_of(len(sigmas) - 1), observe)
        move = self.mover(calls, space)

        def step(i: int, x: Tensor) -> Tensor:
            return move(x, sigmas[i + 1], sigmas[i], i)

        return Path(states=ascend(clean, sigmas, step), calls=calls.done)

    def sample(
        self,
        denoise: Denoise,
        inversion: Inversion,
        after_step: AfterStep | None = None,
        observe: Observe | None = None,
        start: int = 0,
    ) -> Tensor:
        sigmas = inversion.sigmas
        calls = Calls(denoise, self.calls_of(inversion.steps - start), observe)
        move = self.mover(calls, inversion.space)

        def step(i: int, x: Tensor) -> Tensor:
            return move(x, sigmas[i], sigmas[i + 1], i)

        return descend(inversion, step, after_step, start)
