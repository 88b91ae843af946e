"""A resumable training loop: AdamW or Prodigy, warm-up, EMA, clipping, validation, checkpoints.

A run that was stopped, by whatever, goes on exactly: weights, optimiser, averages, schedule and
both random generators (the loop's own, and torch's global one, which layers such as dropout use)
are those of the last finished step. The order of the data follows, as it is drawn from them.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .processes import ALONE, Processes
from .training_files import (
    BEST,
    CHECKPOINT,
    LOG,
    Best,
    forget_later,
    read_best,
    read_checkpoint,
    read_log,
    save_best,
    save_checkpoint,
)
from .training_judge import Judge
from .training_learner import Learner
from .training_random import own_global_generators
from .training_recipe import Group, Recipe, Step

__all__ = [
    "BEST",
    "CHECKPOINT",
    "LOG",
    "Best",
    "Group",
    "Recipe",
    "Step",
    "Trained",
    "fit",
    "peak_bytes",
    "read_best",
    "read_checkpoint",
    "read_log",
]

MAY_CHANGE = (  # when a run is continued
    "steps",
    "warmup",
    "save_every",
    "log_every",
    "keep_last",
    "validate_every",
    "patience",
)

Trained = nn.Module | Mapping[str, nn.Parameter]
Measure = Callable[[], Mapping[str, float]]


def fit(  # noqa: PLR0913  all but the first four are neutral when left out
    trained: Trained,
    recipe: Recipe,
    loss_of: Callable[[Generator], Tensor],
    folder: Path,
    on_step: Callable[[Step], None] | None = None,
    *,
    measure: Measure | None = None,
    about: Mapping[str, Any] | None = None,
    groups: Mapping[str, Group] | None = None,
    validate: Measure | None = None,
    score: str = "score",
    processes: Processes | None = None,
) -> int:
    """Train to the end of the recipe, going on from the last checkpoint if there is one.

    Whatever leaves the loop early (an error, an interrupt), the finished steps are saved first.

    Args:
        trained: a network, whose parameters that require gradients are trained, or parameters by
            name. Left with the averaged (EMA) weights at the end; early leaving leaves raw ones.
        recipe: a checkpoint may be continued with other `MAY_CHANGE` numbers, on the new schedule.
        loss_of: draws a batch with the generator and returns its loss. Of several processes each
            draws the whole batch and returns the mean loss of its own rows, `processes.share`.
        folder: gets checkpoint.pt, best.pt and log.jsonl; of several processes all must see it.
        on_step: called after every step; what it raises ends the run.
        measure: gives further numbers for the log, on logged steps; must draw nothing.
        about: what else must be the same for a checkpoint to be continued, JSON-like: the data,
            the base, the options.
        groups: parameters that have a learning rate of their own; the others have the recipe's.
        validate: called every recipe.validate_every steps and after the last, with the averaged
            weights in place; whatever it draws from torch's generators is put back. The step with
            the largest `score` is the best; `read_best` gives its weights.
        score: name of the number of `validate` that counts.
        processes: that train together; the first alone writes, measures, validates and tells.

    Returns:
        Steps done: more than the recipe's where the checkpoint was past its end already, fewer
        where recipe.patience ended the run.

    Raises:
        ValueError: nothing to train; the checkpoint is of another run or cannot be read; the loss
            is no longer a finite number; groups and parameters do not fit; validate gives no score.
        ImportError: the recipe's optimiser is not installed.
        OSError: the disk is full; the checkpoint before is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes, groups = processes or ALONE, groups or {}
    named, network = _parameters(trained), trained if isinstance(trained, nn.Module) else None
    with ExitStack() as stack:
        stack.enter_context(own_global_generators(named.values(), recipe.seed))
        learner = Learner(named, recipe, groups, processes)
        stack.callback(learner.release)
        judge = Judge(validate, score, network)
        run = _Run(learner, folder, _same(recipe, groups, about or {}), judge, measure)
        run.resume()
        stack.callback(run.save_if_ahead)
        if network is not None:
            network.train()
        run.catch_up()
        while learner.step < recipe.steps and not run.has_stalled:
            now = run.take_step(loss_of)
            if on_step is not None and processes.is_first:
                on_step(now)
    learner.ema.copy_to(learner.parameters)
    if network is not None:
        network.eval()
    return learner.step


class _Run:
    """What is logged, validated and kept of a learner's steps."""

    def __init__(
        self,
        learner: Learner,
        folder: Path,
        same: Mapping[str, Any],
        judge: Judge,
        measure: Measure | None,
    ) -> None:
        self.learner, self.recipe, self.processes = learner, learner.recipe, learner.processes
        self.folder, self.same, self.judge, self.measure = folder, same, judge, measure
        self.saved_step = 0
        self.losses: list[Tensor] = []
        self.began = self.logged = time.perf_counter()
        self.began_at = self.logged_at = 0

    @property
    def has_stalled(self) -> bool:
        return 0 < self.recipe.patience <= self.judge.without_better

    def take_step(self, loss_of: Callable[[Generator], Tensor]) -> Step:
        self.losses += self.learner.take_step(loss_of)
        validates = self._is_validated()
        if validates or self._is_due(self.recipe.log_every):
            now = self._log(validates)
        else:
            now = Step(
                step=self.learner.step, steps=self.recipe.steps, best_step=self.judge.best_step
            )
        if self._is_due(self.recipe.save_every) or self.judge.best_step == self.learner.step:
            self.save_if_ahead()
        return now

    def _is_due(self, every: int) -> bool:
        return self.learner.step % every == 0 or self.learner.step == self.recipe.steps

    def _is_validated(self) -> bool:
        every = self.recipe.validate_every
        return self.judge.validate is not None and every > 0 and self._is_due(every)

    def catch_up(self) -> None:
        """Validate the step gone on from, where the run was stopped before it could be."""
        if self.learner.step > self.judge.at and self._is_validated():
            self._validate()
            self._save()

    def _validate(self) -> dict[str, float]:
        numbers = self.processes.from_first(lambda: self.judge.look(self.learner))
        is_best = self.judge.take(self.learner.step, numbers)
        if is_best and self.processes.is_first:
            save_best(
                self.folder,
                Best(self.learner.step, self.judge.best_score, self.learner.averages()),
            )
        return numbers

    def _log(self, validates: bool) -> Step:
        step, steps = self.learner.step, self.learner.step - self.logged_at
        loss = float(torch.stack(self.losses).sum()) / steps
        self._check(loss)
        rate = steps / max(time.perf_counter() - self.logged, 1e-9)
        is_first = self.processes.is_first
        numbers = dict(self.measure()) if self.measure is not None and is_first else {}
        validation = self._validate() if validates else {}
        now = Step(
            step=step,
            steps=self.recipe.steps,
            loss=loss,
            rate=rate,
            peak_bytes=peak_bytes(self.learner.parameters[0].device),
            numbers=numbers,
            validation=validation,
            best_step=self.judge.best_step,
            seconds_left=self._seconds_left(),
        )
        if is_first:
            with (self.folder / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps(_row(now)) + "\n")
        # what `measure` and `validate` took is no part of the rate
        self.losses, self.logged, self.logged_at = [], time.perf_counter(), step
        return now

    def _seconds_left(self) -> float:
        done, left = self.learner.step - self.began_at, self.recipe.steps - self.learner.step
        return (time.perf_counter() - self.began) / done * left

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.saved_step = self.learner.step  # these weights are not worth keeping
            raise ValueError(
                f"the loss is {loss} after step {self.learner.step}, a finite number is needed; lower "
                "learning_rate and start over"
            )

    def save_if_ahead(self) -> None:
        if not self.learner.is_whole or self.learner.step == self.saved_step:
            return
        if self.losses:
            self._check(float(self.losses[-1]))
        self._save()

    def _save(self) -> None:
        if self.processes.is_first:
            state = {**self.learner.state(), "same": self.same, "validation": self.judge.state()}
            save_checkpoint(self.folder, state, self.saved_step, self.recipe.keep_last)
        self.saved_step = self.learner.step

    def resume(self) -> None:
        state = read_checkpoint(self.folder)
        if state is not None:
            _check_same(state, self.learner, self.same, self.folder)
            self.learner.restore(state)
        step = self.learner.step
        self.saved_step = self.began_at = self.logged_at = step
        self._check_together()
        judged = {} if state is None else state.get("validation", {})
        self.judge.restore(judged, self.processes.from_first(lambda: _best_step(self.folder)))
        if self.processes.is_first:
            forget_later(self.folder, step, self.judge.best_step)

    def _check_together(self) -> None:
        steps = self.processes.from_all(self.learner.step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes would go on from the steps {steps}, one step is needed; give a folder "
                "that all of them see"
            )


def _best_step(folder: Path) -> int | None:
    best = read_best(folder)
    return None if best is None else best.step


def _row(now: Step) -> dict[str, float]:
    row = {"step": now.step, "loss": round(now.loss or 0.0, 5), "rate": round(now.rate or 0.0, 3)}
    row |= {} if now.peak_bytes is None else {"peak_mib": now.peak_bytes >> 20}
    row |= {name: round(value, 5) for name, value in now.numbers.items()}
    return row | {f"validation_{name}": round(value, 5) for name, value in now.validation.items()}


def _check_same(
    state: Mapping[str, Any], learner: Learner, same: Mapping[str, Any], folder: Path
) -> None:
    here = {name: list(parameter.shape) for name, parameter in learner.named.items()}
    there = {name: list(value.shape) for name, value in state["model"].items()}
    if here != there:
        differing = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
        raise ValueError(
            f"the checkpoint in {folder} is of another network: {differing[0]} is "
            f"{there.get(differing[0], 'absent')} there and {here.get(differing[0], 'absent')} "
            "here; choose another name or folder, or remove it to start over"
        )
    before = state.get("same", {})  # older checkpoints do not say, or say more
    differing = [name for name in same if name in before and before[name] != same[name]]
    if differing:
        told = ", ".join(f"{name} was {before[name]} and is {same[name]}" for name in differing[:4])
        raise ValueError(
            f"the checkpoint in {folder} is of another run: {told}; choose another name or "
            "folder, set it back, or remove the checkpoint to start over"
        )


def _parameters(trained: Trained) -> dict[str, nn.Parameter]:
    named = trained.named_parameters() if isinstance(trained, nn.Module) else trained.items()
    found = {name: parameter for name, parameter in named if parameter.requires_grad}
    if not found:
        raise ValueError(
            "the network has no parameter that requires gradients, one at least is needed; "
            "unfreeze what is to be trained"
        )
    return found


def _same(recipe: Recipe, groups: Mapping[str, Group], about: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: value for name, value in asdict(recipe).items() if name not in MAY_CHANGE}
    rates = {
        name: [len(group.names), group.learning_rate, group.stop_step]
        for name, group in groups.items()
    }
    return {**numbers, "groups": rates, **json.loads(json.dumps(dict(about)))}


def peak_bytes(device: torch.device) -> int | None:
    """The most memory used so far: of the CUDA device by tensors, or else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
