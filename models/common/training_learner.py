"""All that changes while a network learns, step by step, and how it is kept and put back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .processes import Processes
from .training_optimizer import make_optimizer, make_schedule
from .training_random import (
    cuda_devices,
    global_generators,
    mixed_seed,
    seed_global_generators,
    set_global_generators,
)
from .training_recipe import Group, Recipe

EMA_POWER = 0.75  # of the EMA's warm-up: decay 0.999 is reached after 10,000 steps


class Learner:
    """Weights, optimiser, schedule, averages and generators."""

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        recipe: Recipe,
        groups: Mapping[str, Group],
        processes: Processes,
    ) -> None:
        from diffusers.training_utils import EMAModel  # as in `make_schedule`

        self.recipe, self.processes = recipe, processes
        self.named = named
        self.parameters = list(named.values())
        self.stops = [
            (group.stop_step, group.names)
            for group in groups.values()
            if group.stop_step is not None
        ]
        self.cuda = cuda_devices(self.parameters)
        self.optimizer = make_optimizer(named, recipe, groups)
        self.schedule = make_schedule(self.optimizer, recipe)
        processes.share_weights(self.parameters)
        self.ema = EMAModel(
            self.parameters,
            decay=recipe.ema_decay,
            use_ema_warmup=True,
            power=EMA_POWER,
            foreach=True,
        )
        self.generator = Generator().manual_seed(recipe.seed)
        self.step = 0
        self.is_whole = True  # no step is half done
        self.random = self._random()

    def take_step(self, loss_of: Callable[[Generator], Tensor]) -> list[Tensor]:
        """Learn from `accumulation` losses, and return them (scalars, their sum is the step's)."""
        self._stop_groups()
        if self.processes.count > 1:  # masks of dropout differ, and are the same again on resuming
            seed = mixed_seed(self.recipe.seed, self.step, self.processes.rank)
            seed_global_generators(self.cuda, seed)
        losses = []
        for _ in range(self.recipe.accumulation):
            loss = loss_of(self.generator) / self.recipe.accumulation
            loss.backward()
            losses.append(loss.detach())
        losses = self.processes.share_gradients(self.parameters, losses)
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.is_whole = False
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        self.step += 1
        self.random = self._random()
        self.is_whole = True
        return losses

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averaged weights in place, and no random generator moved."""
        raw = [parameter.detach().clone() for parameter in self.parameters]
        with torch.random.fork_rng(self.cuda):
            self.ema.copy_to(self.parameters)
            try:
                yield
            finally:
                with torch.no_grad():
                    for parameter, value in zip(self.parameters, raw, strict=True):
                        parameter.copy_(value)

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(zip(self.named, self.ema.shadow_params, strict=True))

    def release(self) -> None:
        """Let parameters whose group has stopped require gradients again, as they came."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on exactly."""
        schedule = self.schedule.state_dict()
        generator, rng = self.random
        return {
            "model": {name: parameter.detach() for name, parameter in self.named.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": {name: schedule[name] for name in ("last_epoch", "_step_count")},
            "ema": self.ema.state_dict(),
            "generator": generator,
            "global_generators": rng,
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be as when `state` was taken."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.parameters[0].device)
        self.generator.set_state(state["generator"])
        set_global_generators(state.get("global_generators", {}))  # older checkpoints lack it
        self.schedule.load_state_dict({**self.schedule.state_dict(), **state["schedule"]})
        self.step = int(state["step"])
        self.random = self._random()

    def _stop_groups(self) -> None:
        for stop in [one for one in self.stops if one[0] <= self.step]:
            self.stops.remove(stop)
            for name in stop[1]:
                self.named[name].requires_grad_(False)

    def _random(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.generator.get_state(), global_generators(self.cuda)
