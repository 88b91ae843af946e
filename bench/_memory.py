"""Does an inversion need more of the device than sampling does?  Part of `dev.py bench inversion`."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ..nodes.inversion.run import Settings, invert_latent, schedule, source_guider
from ._miniature import Miniature
from ._rows import Row

SIDE, BATCH, STEPS = 32, 2, 6  # latent px; what is kept of a step weighs little beside a call
METHOD = "stored residual (exact)"  # keeps the most: every state and every map


@torch.inference_mode()
def memory_rows(bench: Miniature) -> list[Row]:
    """Most bytes at once of an inversion as a share of a stock sampler's, and where its states lie."""
    guider = source_guider(bench.model, bench.text([""]))
    latent = torch.randn(BATCH, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    sigmas = schedule(bench.model, STEPS, "normal", 1.0)
    euler = comfy.samplers.sampler_object("euler")

    def sample() -> Tensor:
        return guider.sample(latent, torch.zeros_like(latent), euler, sigmas, disable_pbar=True)

    def invert() -> None:
        settings = Settings(method=METHOD, steps=STEPS, scheduler="normal")
        kept.append(invert_latent(guider, latent, settings))

    kept = []
    sample()  # loads the model
    stock, ours = most_bytes(sample), most_bytes(invert)
    carried = [x for x in (kept[0].states, kept[0].maps) if x is not None]
    on_cpu = all(x.device.type == "cpu" for x in carried)
    return [
        Row("memory: most bytes of an inversion, as a share of sampling's", ours / stock, 1.0, 1.05, False),
        Row("memory: states and maps are on the CPU", float(on_cpu), bound=1.0),
        Row("memory: MiB carried by an inversion", sum(x.nbytes for x in carried) / 2**20),
        Row("memory: most MiB of sampling", stock / 2**20),
    ]  # fmt: skip


def most_bytes(run: Callable[[], object]) -> int:
    """Most memory that was allocated at once during a run, beyond what was there before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    assert told.profiler is not None and told.profiler.kineto_results is not None
    events: list[Any] = told.profiler.kineto_results.events()  # annotated without its sizes
    changes = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    most = now = 0
    for change in changes:
        now += change.nbytes()
        most = max(most, now)
    return most
