"""The work behind Optimize Latent: everything loaded once, the loop watched, an honest comparison."""

import hashlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from ...models.saliency.checkpoint import Stored, load_optimisation, save_optimisation
from ...models.saliency.heat_map import draw_heat_map
from ...models.saliency.objective import Objective
from ...models.saliency.optimiser import Glance, Optimisation, Settings, look, new_track
from ...models.saliency.whiteness import measure_whiteness
from ..host.differentiable import Request, Run, sample_with_gradients
from ..host.differentiable_vae import DifferentiableDecoder
from ..host.gradients import gradients
from ..host.pictures import as_pil
from .networks import RewardChain

PREVIEW_PX = 640
COST = 3.3  # samplings that a step costs: forward, again, and back
CHECK_TURN = 0.002  # of the noise, to either side, for a finite difference
CHECK_LIMIT = 0.05  # how far the gradient may be off
logger = logging.getLogger("veduta")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One optimisation.

    Args:
        request: what is sampled.
        noises: one start each: (b c ...).
        decoder: of pictures that are judged.
        objective: what to raise.
        settings: how.
        patchers: networks of rewards and saliency.
        held_out: rewards that are told but not raised.
        compare: spend the same seconds on random noises.
        check: compare the first gradient with a finite difference.
        keeps_on_cancel: end with the best so far.
        store: file of the state, for going on later.
        seed: of crops, added noise, and the comparison.
    """

    request: Request
    noises: list[Tensor]
    decoder: DifferentiableDecoder
    objective: Objective
    settings: Settings
    patchers: tuple[ModelPatcher, ...] = ()
    held_out: RewardChain | None = None
    compare: bool = False
    check: bool = False
    keeps_on_cancel: bool = True
    store: Path | None = None
    seed: int = 0


@dataclass
class Done:
    """What came of it; noise on the CPU.

    Args:
        first: (b c ...) where it began.
        kept: (k b c ...), best first.
        points: (k b) of these.
        rows: step, mean points, mean best, mean held-out points, low-frequency power: one per sampling.
        seconds: of the optimisation.
        steps: made.
        notes: for the report.
        compared: best noise of the comparison, or None.
        tried: how many noises the comparison had time for.
    """

    first: Tensor
    kept: Tensor = field(default_factory=lambda: torch.empty(0))
    points: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    compared: Tensor | None = None
    tried: int = 0


def optimise_noise(task: Task) -> Done:
    """Do it.

    Raises:
        ValueError: what is connected cannot be differentiated or gives no finite number.
        InterruptProcessingException: cancelled, and nothing is to be kept or there is nothing yet.
    """
    done = Done(first=task.noises[0].cpu())
    held_out = () if task.held_out is None else task.held_out.patchers
    with gradients():
        sample_with_gradients(
            task.request,
            lambda run: _work(task, run, done),
            list(dict.fromkeys([task.decoder.patcher, *task.patchers, *held_out])),
        )
    return done


def _work(task: Task, run: Run, done: Done) -> None:
    _estimate(task, run, done)
    optimisation, watch = _open(task, run.device, done)
    if task.check:
        done.notes.append(_check_gradient(task, run))
    try:
        optimisation.run(run, task.decoder, task.objective, watch.tell)
    except comfy.model_management.InterruptProcessingException:
        if not (task.keeps_on_cancel and watch.rows):
            raise
        done.notes.append(f"cancelled at step {optimisation.done}; the best so far is kept")
    except torch.cuda.OutOfMemoryError:
        if not watch.rows:
            raise
        done.notes.append(f"out of memory at step {optimisation.done}; the best so far is kept")
    else:
        if task.store is not None:
            task.store.unlink(missing_ok=True)
    best = optimisation.best
    done.kept, done.points = best.kept.cpu(), best.points.cpu()
    done.rows, done.seconds, done.steps = watch.rows, watch.seconds, optimisation.done
    if task.compare:
        _compare(task, run, done)


def _open(task: Task, device: torch.device, done: Done) -> "tuple[Optimisation, _Watch]":
    mark = fingerprint(task)
    if task.store is not None and task.store.is_file():
        optimisation, stored = load_optimisation(task.store, task.settings, mark, device)
        done.notes.append(f"gone on with {task.store.stem} at step {optimisation.done}")
        rows, seconds = [list(row) for row in stored.rows], stored.seconds
    else:
        noises = [noise.to(device, torch.float32) for noise in task.noises]
        tracks = [new_track(z, task.seed + index) for index, z in enumerate(noises)]
        optimisation, rows, seconds = Optimisation(tracks, task.settings), [], 0.0
    return optimisation, _Watch(task, optimisation, mark, rows, seconds)


def fingerprint(task: Task) -> str:
    """Of what a state that is gone on with has to have in common."""
    request, objective = task.request, task.objective
    told = [
        task.settings, request.cfg, request.seed, request.last_steps, request.sigmas.tolist(),
        getattr(request.sampler, "sampler_function", type(request.sampler)).__name__, task.seed,
        objective.use, objective.strength, objective.crops, objective.refresh, objective.inertia,
        [(reward.name, reward.weight) for reward in objective.rewards.rewards],
    ]  # fmt: skip
    digest = hashlib.sha256(repr(told).encode())
    for tensor in (*task.noises, request.latent):
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Watch:
    """Progress bar, preview, curve and state of a run."""

    def __init__(
        self,
        task: Task,
        optimisation: Optimisation,
        mark: str,
        rows: list[list[float]],
        seconds: float,
    ) -> None:
        self.task, self.optimisation, self.mark = task, optimisation, mark
        self.rows, self.before = rows, seconds
        self.started = time.perf_counter()
        self.total = task.settings.iterations
        self.bar = comfy.utils.ProgressBar(self.total + 1)

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def tell(self, glance: Glance) -> None:
        with torch.no_grad():
            image = glance.image.clamp(0.0, 1.0)
            held_out = float("nan")
            if self.task.held_out is not None:
                held_out = float(self.task.held_out.rewards.total(image).mean())
            low = measure_whiteness(glance.z).low
            points = [float(x.mean()) for x in (glance.points, glance.best)]
            self.rows.append([glance.done, *points, held_out, low])
            shown = image[:1].cpu()
            if glance.found is not None:
                shown = torch.cat([shown, draw_heat_map(shown, glance.found[:1].cpu())], -1)
        self.bar.update_absolute(glance.done + 1, preview=("JPEG", as_pil(shown[0]), PREVIEW_PX))
        if self.task.store is not None:
            stored = Stored(self.mark, self.rows, self.seconds)
            save_optimisation(self.task.store, self.optimisation, stored)
        comfy.model_management.throw_exception_if_processing_interrupted()


def _estimate(task: Task, run: Run, done: Done) -> None:
    """Time and memory, told before the steps begin; one sampling is timed."""
    started = time.perf_counter()
    latent = run.plain(task.noises[0])
    once = time.perf_counter() - started
    samplings = COST * task.settings.iterations + len(task.noises)
    seconds = once * samplings * (2 if task.compare else 1)
    vae = task.decoder.vae
    bytes_needed = max(
        float(vae.memory_used_decode(latent.shape, vae.vae_dtype)),
        float(task.request.model.memory_required(list(latent.shape))) * 2,
    )
    text = (
        f"estimate: {seconds:.0f} s ({once:.2f} s a sampling), about {bytes_needed / 2**30:.1f} GiB "
        "beside the weights"
    )
    logger.info("latent optimisation, %s", text)
    done.notes.append(text)


def _check_gradient(task: Task, run: Run) -> str:
    """Compare the sampler's first gradient with a finite difference along it; ValueError apart."""
    z = task.noises[0].to(run.device, torch.float32)
    sampled = run(z)
    track = new_track(z, task.seed)
    cotangent = look(
        sampled.latent, task.decoder, task.objective, track, with_gradient=True
    ).gradient
    g = sampled.pull(cotangent)
    step = g * (CHECK_TURN * float(z.norm()) / max(float(g.norm()), 1e-30))
    rise = float(((run.plain(z + step) - run.plain(z - step)) * cotangent).sum())
    expected = 2 * float((g * step).sum())
    off = abs(rise - expected) / max(abs(expected), 1e-30)
    if not off <= CHECK_LIMIT:
        raise ValueError(
            f"the gradient is {off:.0%} off a finite difference, at most {CHECK_LIMIT:.0%} is needed; use "
            "last_steps 0 and weights of 16 or 32 bits, or switch check_gradient off to go on all the same"
        )
    return f"the first gradient is {off:.1%} off a finite difference"


def _compare(task: Task, run: Run, done: Done) -> None:
    """Best of as many random noises as there is time for, judged without crops."""
    generator = Generator().manual_seed(task.seed)
    started = time.perf_counter()
    best_points: Tensor | None = None
    noise = task.noises[0]
    try:
        while time.perf_counter() - started < done.seconds:
            points = _judged(task, run.plain(noise))
            if best_points is None:
                best_points, done.compared = points, noise.cpu().clone()
            assert done.compared is not None
            better = (points > best_points).cpu()
            done.compared[better] = noise.cpu()[better]
            best_points = torch.maximum(best_points, points)
            done.tried += 1
            noise = torch.randn(noise.shape, generator=generator)
    except comfy.model_management.InterruptProcessingException:
        if not task.keeps_on_cancel:
            raise
        done.notes.append("the comparison was cancelled")


def _judged(task: Task, latent: Tensor) -> Tensor:
    track = new_track(latent, task.seed)
    return look(latent, task.decoder, task.objective, track, with_gradient=False).judged.judged
