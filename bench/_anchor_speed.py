"""What anchored sampling and training cost beside the stock model's."""

import statistics
import time
from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..models.anchor.adapter import AnchorAdapter
from ..models.anchor.objective import denoising_loss
from ..models.common.anchor import Anchor
from ..models.common.training import peak_bytes
from ..nodes.host.attention import Conditioning, Extra, layer_shapes
from ..nodes.host.gradients import gradients
from ..nodes.host.training import frozen_denoiser
from ._anchor_draw import (
    ANCHOR_SCALE,
    PROMPTS,
    SAMPLER,
    SCHEDULER,
    SIZE,
    STEPS,
    TEXT_SCALE,
    Bench,
    noise_of,
)
from ._rows import Row
from ._topologies import FAMILIES, core_config, draw_weights

TIMED_PAIRS = 7
TRAINED_BATCH = 4
FULL_WIDTH_LATENT, FULL_WIDTH_PAIRS = 32, 3
FULL_WIDTH_GIB = 8  # 3.4 of weights, as much of what the backward pass needs


def speed_rows(bench: Bench) -> list[Row]:
    """Seconds of anchored sampling over those of the stock guider, run in turns."""
    latent = torch.zeros(1, 4, SIZE // 8, SIZE // 8)
    noise = noise_of(0)
    sampler = comfy.samplers.sampler_object(SAMPLER)
    sigmas = comfy.samplers.calculate_sigmas(
        bench.model.get_model_object("model_sampling"), SCHEDULER, STEPS
    )
    prompt, anchor = next(iter(PROMPTS)), Anchor(horizon=0.3, tilt_deg=0.0, subject_x=0.6)
    stock = comfy.samplers.CFGGuider(bench.plain)
    stock.set_conds(bench.encode(prompt), bench.empty)
    stock.set_cfg(TEXT_SCALE)
    two = bench.guider(prompt, [anchor], TEXT_SCALE)  # equal scales: text and anchor in one branch
    three = bench.guider(prompt, [anchor], ANCHOR_SCALE + 1.0, end=0.4)

    def run(guider: comfy.samplers.CFGGuider) -> Callable[[], Tensor]:
        return lambda: guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=0)

    return [
        Row(
            "time over stock, text and anchor in one branch",
            ratio(run(two), run(stock)),
            1.0,
            1.05,
            False,
        ),
        Row(
            "time over stock, anchor apart in 40 % of the run",
            ratio(run(three), run(stock)),
            1.0,
            1.25,
            False,
        ),
    ]


def training_rows(bench: Bench) -> list[Row]:
    """Seconds of a training step over those of a forward and backward pass of the frozen model."""
    text = bench.encode(next(iter(PROMPTS)))
    overhead, rate = training_cost(bench.plain, text, TRAINED_BATCH, SIZE // 8, TIMED_PAIRS)
    peak = (peak_bytes(bench.plain.load_device) or 0) / 2**20
    return [
        Row("training step over a plain forward and backward", overhead, 1.0, 1.10, False),
        Row(f"training steps a second, batch of {TRAINED_BATCH}, {SIZE} px", rate),
        Row("peak memory of the process in MiB", peak),
    ]


def full_width_rows() -> list[Row]:
    """The same at the widths that artists train: SD1.5's, with random weights."""
    free = comfy.model_management.get_free_memory(torch.device("cpu")) / 2**30
    if free < FULL_WIDTH_GIB:
        print(
            f"full width: skipped; {free:.1f} GiB of memory are free, {FULL_WIDTH_GIB} are needed"
        )
        return []
    with torch.inference_mode(False):
        config = FAMILIES["SD1.5"](core_config("SD1.5", channels=320, text=768))
        config.set_inference_dtype(torch.float32, None)
        device = torch.device("cpu")
        base = config.get_model({}, device=device)
        with torch.no_grad():
            draw_weights(base.diffusion_model, seed=1)
        model = ModelPatcher(base, load_device=device, offload_device=device)
        text = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(2)), {}]]
    overhead, rate = training_cost(model, text, 1, FULL_WIDTH_LATENT, FULL_WIDTH_PAIRS)
    name = f"SD1.5 widths, random weights, {8 * FULL_WIDTH_LATENT} px, batch of 1: "
    return [
        Row(f"{name}training step over plain", overhead, 1.0, 1.10, False),
        Row(f"{name}training steps a second", rate),
    ]


def training_cost(
    model: ModelPatcher, text: Conditioning, batch: int, side: int, pairs: int
) -> tuple[float, float]:
    """Time of a step over that of a plain forward and backward pass, and steps a second."""
    shape, generator = (batch, 4, side, side), torch.Generator().manual_seed(0)
    anchors = [
        Anchor(horizon=0.3 + 0.1 * i, tilt_deg=2.0, subject_x=0.4, subject_y=0.6)
        for i in range(batch)
    ]
    with gradients():
        x0, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        adapter = AnchorAdapter(layer_shapes(model))
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3, fused=True)
        with frozen_denoiser(model, [text], x0[:1]) as frozen:
            sigma = frozen.sigma_of(torch.full((batch,), 700))
            noisy = x0 + noise * sigma.view(-1, 1, 1, 1)
            rows = [0] * batch

            def train() -> None:
                extras = [Extra(adapter=adapter, request=anchor) for anchor in anchors]
                denoising_loss(frozen(noisy, sigma, rows, extras), x0, sigma).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            def plain() -> None:
                x = noisy.clone().requires_grad_(True)
                denoising_loss(frozen(x, sigma, rows, [None] * batch), x0, sigma).backward()

            overhead = ratio(train, plain, pairs)
            began = time.perf_counter()
            train()
            return overhead, 1 / (time.perf_counter() - began)


def ratio(
    ours: Callable[[], object], peer: Callable[[], object], pairs: int = TIMED_PAIRS
) -> float:
    """Median of the ratios of neighbouring runs; the first pair warms up."""
    ratios = []
    for _ in range(pairs + 1):
        times = []
        for work in (ours, peer):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        ratios.append(times[0] / times[1])
    low, high = min(ratios[1:]), max(ratios[1:])
    middle = statistics.median(ratios[1:])
    print(f"time ratio {middle:.3f} ({low:.3f} to {high:.3f})")
    return middle
