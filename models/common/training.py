"""A resumable training loop: AdamW, warm-up and cosine, EMA, clipping, atomic checkpoints.

A run that was stopped, by whatever, goes on exactly: weights, optimiser, averages, schedule and
both random generators (the loop's own, and torch's global one, which layers such as dropout use)
are those of the last finished step. The order of the data follows, as it is drawn from them.
"""

import json
import math
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .files import clear_drafts, write_whole

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
BETAS = (0.9, 0.99)
EMA_POWER = 0.75  # of the EMA's warm-up: decay 0.999 is reached after 10,000 steps
MAY_CHANGE = ("steps", "warmup", "save_every", "log_every")  # when a run is continued


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a network learns.

    Raises:
        ValueError: a number is out of its range.
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

    def __post_init__(self) -> None:
        for name in ("accumulation", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, 1 or more is needed")
        if self.steps < 0 or self.warmup < 0:
            raise ValueError(f"steps {self.steps} and warmup {self.warmup} must not be negative")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}, it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished step; the numbers are there on logged steps only."""

    step: int
    steps: int
    loss: float | None = None  # mean since the last logged step
    rate: float | None = None  # steps per second since then
    peak_bytes: int | None = None  # of the GPU, or else of the process
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_logged(self) -> bool:
        return self.loss is not None


Trained = nn.Module | Mapping[str, nn.Parameter]


def fit(
    trained: Trained,
    recipe: Recipe,
    loss_of: Callable[[Generator], Tensor],
    folder: Path,
    on_step: Callable[[Step], None] | None = None,
    *,
    measure: Callable[[], Mapping[str, float]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> int:
    """Train to the end of the recipe, going on from the last checkpoint if there is one.

    Whatever leaves the loop early (an error, an interrupt), the finished steps are saved first.

    Args:
        trained: a network, whose parameters that require gradients are trained, or parameters by
            name. Left with the averaged (EMA) weights at the end; early leaving leaves raw ones.
        recipe: a checkpoint may be continued with other `MAY_CHANGE` numbers, on the new schedule.
        loss_of: draws a batch with the generator and returns its loss.
        folder: gets checkpoint.pt and log.jsonl.
        on_step: called after every step; what it raises ends the run.
        measure: gives further numbers for the log, on logged steps; must draw nothing.
        about: what else must be the same for a checkpoint to be continued, JSON-like: the data,
            the base, the options.

    Returns:
        Steps done: more than the recipe's where the checkpoint was past its end already.

    Raises:
        ValueError: nothing to train; the checkpoint is of another run or cannot be read; the loss
            is no longer a finite number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_own_global_generators(_parameters(trained), recipe.seed))
        run = _Run(trained, recipe, folder, about or {})
        run.resume()
        run.trim_log()
        stack.callback(run.save_if_ahead)
        if isinstance(trained, nn.Module):
            trained.train()
        while run.step < recipe.steps:
            run.take_step(loss_of)
            numbers = run.log(measure) if run.is_due(recipe.log_every) else None
            if run.is_due(recipe.save_every):
                run.save_if_ahead()
            if on_step is not None:
                on_step(numbers or Step(step=run.step, steps=recipe.steps))
    run.ema.copy_to(run.parameters)
    if isinstance(trained, nn.Module):
        trained.eval()
    return run.step


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What the checkpoint of a folder holds, on the CPU; None without one.

    Raises:
        ValueError: the file is no checkpoint of `fit`.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise ValueError(
            f"{path.name} in {folder} ({path.stat().st_size} bytes) cannot be read as a checkpoint; "
            "remove it to start over"
        ) from error
    missing = {"model", "optimizer", "schedule", "ema", "generator", "step"} - set(state)
    if missing:
        raise ValueError(
            f"{path.name} in {folder} lacks {', '.join(sorted(missing))}, so it is another "
            "program's file; remove it to start over"
        )
    return state


def read_log(folder: Path) -> list[dict[str, float]]:
    """The logged lines of a run: step, loss, rate and what else was measured."""
    path = folder / LOG
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class _Run:
    """All that changes while a network learns."""

    def __init__(
        self, trained: Trained, recipe: Recipe, folder: Path, about: Mapping[str, Any]
    ) -> None:
        # loading diffusers takes a second, which a start of the host must not pay
        from diffusers.optimization import get_cosine_schedule_with_warmup
        from diffusers.training_utils import EMAModel

        self.recipe, self.folder = recipe, folder
        self.named = _parameters(trained)
        self.parameters = list(self.named.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=BETAS,
            fused=self.parameters[0].device.type in ("cpu", "cuda"),
        )
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, recipe.warmup, recipe.steps)
        self.ema = EMAModel(
            self.parameters,
            decay=recipe.ema_decay,
            use_ema_warmup=True,
            power=EMA_POWER,
            foreach=True,
        )
        self.generator = Generator().manual_seed(recipe.seed)
        self.same = _same(self.named, recipe, about)
        self.step = self.saved_step = 0
        self.is_whole = True  # no step is half done
        self.random = self._random()
        self.losses: list[Tensor] = []
        self.began, self.began_at = time.perf_counter(), 0

    @property
    def path(self) -> Path:
        return self.folder / CHECKPOINT

    def take_step(self, loss_of: Callable[[Generator], Tensor]) -> None:
        for _ in range(self.recipe.accumulation):
            loss = loss_of(self.generator) / self.recipe.accumulation
            loss.backward()
            self.losses.append(loss.detach())
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.is_whole = False
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        self.step += 1
        self.random = self._random()
        self.is_whole = True

    def is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.steps

    def log(self, measure: Callable[[], Mapping[str, float]] | None) -> Step:
        steps = self.step - self.began_at
        loss = float(torch.stack(self.losses).sum()) / steps
        self._check(loss)
        rate = steps / max(time.perf_counter() - self.began, 1e-9)
        numbers = {} if measure is None else dict(measure())
        peak = peak_bytes(self.parameters[0].device)
        row = {"step": self.step, "loss": round(loss, 5), "rate": round(rate, 3)}
        row |= {} if peak is None else {"peak_mib": peak >> 20}
        row |= {name: round(value, 5) for name, value in numbers.items()}
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        # what `measure` took is no part of the rate
        self.losses, self.began, self.began_at = [], time.perf_counter(), self.step
        return Step(
            step=self.step,
            steps=self.recipe.steps,
            loss=loss,
            rate=rate,
            peak_bytes=peak,
            numbers=numbers,
        )

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.saved_step = self.step  # these weights are not worth keeping
            raise ValueError(
                f"the loss is {loss} after step {self.step}, a finite number is needed; lower "
                "learning_rate and start over"
            )

    def save_if_ahead(self) -> None:
        if not self.is_whole or self.step == self.saved_step:
            return
        if self.losses:
            self._check(float(self.losses[-1]))
        write_whole(self.path, lambda path: torch.save(self._state(), path))
        self.saved_step = self.step

    def _state(self) -> dict[str, Any]:
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
            "same": self.same,
        }

    def _random(self) -> tuple[Tensor, dict[str, Tensor]]:
        cuda = _cuda_devices(self.parameters)
        rng = {f"cuda:{index}": torch.cuda.get_rng_state(index) for index in cuda}
        return self.generator.get_state(), {"cpu": torch.get_rng_state(), **rng}

    def resume(self) -> None:
        clear_drafts(self.path)
        state = read_checkpoint(self.folder)
        if state is None:
            return
        self._check_same(state)
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.parameters[0].device)
        self.generator.set_state(state["generator"])
        for device, rng in state.get("global_generators", {}).items():
            _set_global_generator(device, rng)
        self.schedule.load_state_dict({**self.schedule.state_dict(), **state["schedule"]})
        self.step = self.saved_step = self.began_at = int(state["step"])
        self.random = self._random()

    def _check_same(self, state: Mapping[str, Any]) -> None:
        here = {name: list(parameter.shape) for name, parameter in self.named.items()}
        there = {name: list(value.shape) for name, value in state["model"].items()}
        if here != there:
            differing = sorted(
                name for name in {*here, *there} if here.get(name) != there.get(name)
            )
            raise ValueError(
                f"the checkpoint in {self.folder} is of another network: {differing[0]} is "
                f"{there.get(differing[0], 'absent')} there and {here.get(differing[0], 'absent')} "
                "here; choose another name or folder, or remove it to start over"
            )
        before = state.get("same", {})  # older checkpoints do not say, or say more
        differing = [
            name for name in self.same if name in before and before[name] != self.same[name]
        ]
        if differing:
            told = ", ".join(
                f"{name} was {before[name]} and is {self.same.get(name)}" for name in differing[:4]
            )
            raise ValueError(
                f"the checkpoint in {self.folder} is of another run: {told}; choose another name or "
                "folder, set it back, or remove the checkpoint to start over"
            )

    def trim_log(self) -> None:
        """Drop the log's lines after the step that is gone on from, and a last one cut short."""
        path = self.folder / LOG
        if not path.exists():
            return
        kept = [
            line for line in path.read_text(encoding="utf-8").splitlines() if self._is_past(line)
        ]
        text = "".join(f"{line}\n" for line in kept)
        write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))

    def _is_past(self, line: str) -> bool:
        try:
            return json.loads(line)["step"] <= self.step
        except (json.JSONDecodeError, KeyError, TypeError):
            return False


def _parameters(trained: Trained) -> dict[str, nn.Parameter]:
    named = trained.named_parameters() if isinstance(trained, nn.Module) else trained.items()
    found = {name: parameter for name, parameter in named if parameter.requires_grad}
    if not found:
        raise ValueError(
            "the network has no parameter that requires gradients, one at least is needed; "
            "unfreeze what is to be trained"
        )
    return found


def _same(
    named: Mapping[str, nn.Parameter], recipe: Recipe, about: Mapping[str, Any]
) -> dict[str, Any]:
    numbers = {name: value for name, value in asdict(recipe).items() if name not in MAY_CHANGE}
    return {**numbers, **json.loads(json.dumps(dict(about)))}


@contextmanager
def _own_global_generators(named: Mapping[str, nn.Parameter], seed: int) -> Iterator[None]:
    cuda = _cuda_devices(named.values())
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def _cuda_devices(parameters: Iterable[nn.Parameter]) -> list[int]:
    devices = {parameter.device for parameter in parameters if parameter.is_cuda}
    return sorted(torch.cuda.current_device() if d.index is None else d.index for d in devices)


def _set_global_generator(device: str, state: Tensor) -> None:
    if device == "cpu":
        torch.set_rng_state(state)
    elif (
        torch.cuda.is_available() and int(device.removeprefix("cuda:")) < torch.cuda.device_count()
    ):
        torch.cuda.set_rng_state(state, device)


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
