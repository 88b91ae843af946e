"""What gradients cost: memory over steps, time against sampling, DOODL's scheme.  Part of `bench saliency`."""

import time
from collections.abc import Callable

import comfy.samplers
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..nodes.host.differentiable import Request, Run, sample_with_gradients
from ..nodes.host.gradients import gradients
from ._families import FAMILIES, drawn, gradient_error
from ._memory import most_bytes
from ._miniature import Miniature
from ._rows import Row

SAMPLERS = (
    "euler", "heun", "dpmpp_2m", "dpmpp_2s_ancestral", "euler_ancestral", "lcm", "ddpm",
)  # fmt: skip
SIDE = 16  # latent px
MIXING = 0.93  # EDICT's p
REPEATS = 3


class FullGraph(Run):
    """Keeps every activation: the graph that recomputation stands in for."""

    def __call__(self, noise: Tensor):
        self._thrifty = False
        return self._recorded(noise)


@torch.inference_mode()
def gradient_rows(bench: Miniature) -> list[Row]:
    """Recomputed against the full graph, and against finite differences for every family."""
    equal = [_is_equal(bench, name) for name in SAMPLERS]
    worst = max(gradient_error(family)[0] for family in FAMILIES)
    return [
        Row(f"gradients: samplers of {len(SAMPLERS)} equal to the full graph's last bit", float(sum(equal)), bound=float(len(SAMPLERS))),
        Row(f"gradients: per cent off a finite difference, worst of {len(FAMILIES)} families", 100 * worst, bound=0.5, at_least=False),
    ]  # fmt: skip


@torch.inference_mode()
def cost_rows(bench: Miniature) -> list[Row]:
    """Memory of 50 steps against 10, time of an iteration against sampling and against DOODL's scheme."""
    few, many = (_pull_bytes(bench, steps) for steps in (10, 50))
    once, pulled, doodl = _seconds(bench, steps=20)
    return [
        Row("memory: most bytes of 50 steps as a share of 10 steps'", many / few, bound=1.1, at_least=False),
        Row("memory: most MiB of a gradient, 10 steps", few / 2**20),
        Row("time: an iteration as samplings, 20 steps", pulled / once, bound=3.3, at_least=False),
        Row("time: an iteration as a share of DOODL's scheme (EDICT)", pulled / doodl, 1.0, 0.5, False),
    ]  # fmt: skip


def request_of(bench: Miniature, steps: int, name: str = "euler", side: int = SIDE) -> Request:
    sampling = bench.model.get_model_object("model_sampling")
    return Request(
        model=bench.model, positive=bench.text(["a red boat on a calm sea"]), negative=bench.text([""]),
        cfg=4.0, sampler=comfy.samplers.sampler_object(name),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "normal", steps),
        latent=torch.zeros(1, 4, side, side),
    )  # fmt: skip


def _is_equal(bench: Miniature, name: str) -> bool:
    noise, weighing, found = drawn(1, 4, 8, 8), drawn(1, 4, 8, 8, seed=1), []

    def work(run: Run) -> None:
        full = FullGraph(run.guider, run.request, run._extra_args, run.latent, run.mask, run.sigmas)
        found.extend(each(noise).pull(weighing) for each in (run, full))

    with gradients():
        sample_with_gradients(request_of(bench, 4, name, 8), work)
    return torch.equal(found[0], found[1]) and bool(found[0].count_nonzero())


def _pull_bytes(bench: Miniature, steps: int) -> int:
    noise, weighing, found = drawn(1, 4, SIDE, SIDE), drawn(1, 4, SIDE, SIDE, seed=1), []

    def work(run: Run) -> None:
        run(noise).pull(weighing)  # warm
        found.append(most_bytes(lambda: run(noise).pull(weighing)))

    with gradients():
        sample_with_gradients(request_of(bench, steps), work)
    return found[0]


def _seconds(bench: Miniature, steps: int) -> tuple[float, float, float]:
    """Of one sampling, of a gradient as ours, and of one as DOODL's."""
    noise, weighing = drawn(1, 4, SIDE, SIDE), drawn(1, 4, SIDE, SIDE, seed=1)
    found: list[float] = []

    def work(run: Run) -> None:
        ways: tuple[Callable[[], object], ...] = (
            lambda: run.plain(noise),
            lambda: run(noise).pull(weighing),
            lambda: _edict_gradient(run, noise, weighing),
        )
        for way in ways:
            way()
        found.extend(min(_timed(way) for _ in range(REPEATS)) for way in ways)

    with gradients():
        sample_with_gradients(request_of(bench, steps), work)
    return found[0], found[1], found[2]


def _edict_gradient(run: Run, noise: Tensor, weighing: Tensor) -> Tensor:
    """DOODL's: a pair of latents, two calls a step, each done again on the way back (its keep_input)."""
    options = run._extra_args["model_options"]

    def eps(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - run.guider(x, sigma.expand(len(x)), model_options=options, seed=0)) / sigma

    def again(x: Tensor, sigma: Tensor) -> Tensor:
        return checkpoint(eps, x, sigma, use_reentrant=False)  # pyright: ignore[reportReturnType]

    start = noise.clone().requires_grad_()
    x = y = start * run.sigmas[0]
    for here, there in zip(run.sigmas[:-2], run.sigmas[1:-1], strict=True):
        x = x + (there - here) * again(y, here)
        y = y + (there - here) * again(x, here)
        x = MIXING * x + (1 - MIXING) * y
        y = MIXING * y + (1 - MIXING) * x
    x = x - run.sigmas[-2] * again(y, run.sigmas[-2])
    y = y - run.sigmas[-2] * again(x, run.sigmas[-2])
    return torch.autograd.grad((x + y) / 2, start, weighing)[0]


def _timed(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
