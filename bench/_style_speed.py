"""Steps per second and memory of style training beside core's trainer and diffusers' with peft.

The same SD1.5 topology with the same random weights, the same LoRA rank, rows and precision for all, each
in a process of its own, so that the most memory of one is not another's. Core's trainer adapts every
layer and cannot be told otherwise; ours and diffusers' adapt attention and MLP.

core, default          TrainLoraNode as it comes: merged weights, the whole network computed twice
core, bypass           TrainLoraNode on the activation side, nothing computed twice
diffusers and peft     the loop of diffusers' DreamBooth LoRA example
ours                   `dual_binding_loss` on the LoRA at work
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher

from ..models.common.training import peak_bytes
from ..models.styleforge.dual_binding import Binding, Example, dual_binding_loss
from ..models.styleforge.lora import Layers, Lora, Plan
from ..nodes import mini
from ..nodes.host.gradients import gradients
from ..nodes.host.lora import Adapted, adapted, image_places
from ._rows import Row
from ._topologies import build_pair

ROOT = Path(__file__).resolve().parent.parent
CHANNELS, TEXT, SIDE = 160, 192, 32  # half of SD1.5's width; latent px; the miniature's text
RANK, PAIRS, RATE = 16, 1, 1e-4
STEPS, WARM = 6, 2
OURS = "ours"
CORE, BYPASS, PEERS = "core, default", "core, bypass", "diffusers and peft"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


def rows() -> list[Row]:
    """Ours over each of the others; those that cannot run here are left out, and it is said why."""
    found = {name: _measured(name) for name in (OURS, CORE, BYPASS, PEERS)}
    ours = found[OURS]
    if ours is None:
        return []
    told = [
        Row("training: step over frozen forward and backward", ours["overhead"], 1.0, 1.08, False),
        Row("training: steps per second", ours["rate"]),
        Row("training: most MiB of the process", ours["peak_mib"]),
    ]
    for name, bound in ((CORE, 1.3), (BYPASS, 1.0), (PEERS, 1.0)):
        other = found[name]
        if other is not None:
            told += [
                Row(f"training: speed over {name}", ours["rate"] / other["rate"], 1.0, bound),
                Row(
                    f"training: memory over {name}",
                    ours["added_mib"] / other["added_mib"],
                    1.0,
                    0.9,
                    False,
                ),
            ]
    return told


def _measured(name: str) -> dict[str, float] | None:
    command = [sys.executable, str(ROOT / "tools" / "run_module.py"), "bench._style_speed", name]
    if not torch.cuda.is_available():
        command.append("--cpu")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"{name}: skipped; {reason}")
        return None
    print(f"{name}: {lines[-1]}")
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one of them.")
    parser.add_argument("name", choices=[OURS, CORE, BYPASS, PEERS])
    parser.add_argument("--cpu", action="store_true")
    name = parser.parse_args().name
    with torch.inference_mode(False):
        model, other = build_pair("SD1.5", CHANNELS, TEXT)
    before = (peak_bytes(model.load_device) or 0) / 2**20
    work = {
        OURS: lambda: _ours(model),
        CORE: lambda: _core(model, bypass=False),
        BYPASS: lambda: _core(model, bypass=True),
        PEERS: lambda: _peers(other, model.load_device),
    }
    numbers = work[name]()
    peak = (peak_bytes(model.load_device) or 0) / 2**20
    print(json.dumps({**numbers, "peak_mib": peak, "added_mib": peak - before}))


def _ours(model: ModelPatcher) -> dict[str, float]:
    clip = mini.load_clip()
    with gradients():
        spots = image_places(model, Layers())
        targets = {name: place.target for name, place in spots.items()}
        lora = Lora(targets, Plan(rank=RANK), torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        style, aux = (
            Example(torch.randn(4, SIDE, SIDE, generator=generator), prompt)
            for prompt in ("a photo of zwx style", "a photo of style")
        )
        binding = Binding(name="style", style=(style,), aux=(aux,))
        with adapted(model, clip, lora, spots) as work:
            optimizer = torch.optim.AdamW(lora.parameters(), lr=RATE, fused=True)

            def step() -> None:
                dual_binding_loss(work, work.process, binding, PAIRS, generator).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            seconds = _seconds(step, model.load_device)
        with adapted(model, clip, lora, {}) as work:
            frozen = _seconds(_frozen_step(work, (style, aux)), model.load_device)
    return {"rate": 1 / seconds, "overhead": seconds / frozen}


def _frozen_step(work: Adapted, examples: tuple[Example, Example]) -> Callable[[], None]:
    """A forward and backward pass of the base alone, down to its input."""
    x = torch.stack([one.x0 for one in examples]).to(work.device)
    sigma = work.process.sigma_at(torch.tensor([0.5, 0.5], device=work.device))
    prompts = [one.prompt for one in examples]

    def step() -> None:
        work(x.clone().requires_grad_(True), sigma, prompts).square().mean().backward()

    return step


def _core(model: ModelPatcher, bypass: bool) -> dict[str, float]:
    from comfy_extras.nodes_train import TrainLoraNode

    # a deep clone is made through the loader
    model.cached_patcher_init = (lambda *_, **__: build_pair("SD1.5", CHANNELS, TEXT)[0], ())
    rows = 2 * PAIRS
    latents = [{"samples": torch.randn(rows, 4, SIDE, SIDE)}]
    text = [[[torch.randn(1, 77, TEXT), {"pooled_output": torch.randn(1, TEXT)}]]]

    def run(steps: int) -> float:
        began = time.perf_counter()
        TrainLoraNode.execute(
            model=[model], latents=latents, positive=text, batch_size=[rows], steps=[steps],
            grad_accumulation_steps=[1], learning_rate=[RATE], rank=[RANK], optimizer=["AdamW"],
            loss_function=["MSE"], seed=[0], training_dtype=["fp32"], lora_dtype=["fp32"],
            quantized_backward=[False], algorithm=["LoRA"], gradient_checkpointing=[not bypass],
            checkpoint_depth=[1], offloading=[False], existing_lora=["[None]"], bucket_mode=[False],
            bypass_mode=[bypass],
        )  # fmt: skip
        return time.perf_counter() - began

    few = run(WARM)  # what is set up and warmed up is in both
    return {"rate": STEPS / (run(WARM + STEPS) - few)}


def _peers(unet: torch.nn.Module, device: torch.device) -> dict[str, float]:
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    unet.requires_grad_(False).to(device).train()
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS
    )
    unet.add_adapter(config)  # pyright: ignore[reportCallIssue]
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    scheduler = DDPMScheduler()
    rows = 2 * PAIRS
    latents, text = torch.randn(rows, 4, SIDE, SIDE), torch.randn(rows, 77, TEXT)
    latents, text = latents.to(device), text.to(device)

    def step() -> None:
        noise = torch.randn_like(latents)
        times = torch.randint(1000, (rows,), device=device)
        noisy = scheduler.add_noise(latents, noise, times)
        guess = unet(noisy, times, text, return_dict=False)[0]
        style, aux = (guess - noise).square().chunk(2)
        (style.mean() + aux.mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {"rate": 1 / _seconds(step, device)}


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """Median time of a step."""
    times = []
    for _ in range(WARM + STEPS):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM:])


if __name__ == "__main__":
    main()
