"""Train the miniature's anchor adapter on what the painter knows: python dev.py mini anchor

The labels are the painter's own, so that the adapter is judged by what it can learn, not by what the
measuring can find in a drawing of 128 px.
"""

import json
from pathlib import Path

import torch
from torch import Generator, Tensor

from ..models.anchor.adapter import AnchorAdapter
from ..models.anchor.objective import (
    GAUGE_TIMESTEP,
    Gauge,
    Objective,
    denoising_loss,
    draw_conditions,
    sample_timesteps,
)
from ..models.anchor.weights import copy_text_keys, save_adapter
from ..models.common.anchor import Anchor
from ..models.common.training import Recipe, fit
from ..nodes.host.attention import Extra, cross_attention_layers, layer_shapes
from ..nodes.host.gradients import gradients
from ..nodes.host.training import frozen_denoiser
from ..nodes.mini import load_model
from .landscapes import scene
from .painter import paint
from .terminal import tell

WEIGHTS = Path(__file__).parent / "weights" / "anchor.safetensors"
OBJECTIVE = Objective()
BATCH = 16
HELD_OUT = 64  # of the pictures, for the gauge
LABEL_PX = 64  # enough for a subject's centre


def train_anchor(run: Path, recipe: Recipe, latents: Tensor, texts: Tensor, empty: Tensor) -> None:
    """Train and write the adapter.

    Args:
        run: gets labels.json and the folder anchor.
        recipe: how long.
        latents: (n 4 h w) of the painter's scenes 0..n-1.
        texts: (n 77 d) of their captions.
        empty: (1 77 d) of the empty caption.
    """
    labels = painted_labels(run / "labels.json", len(latents))
    model = load_model()
    with gradients(), frozen_denoiser(model, [], latents[:1].float()) as frozen:
        frozen.model.model.diffusion_model.to(memory_format=torch.channels_last)
        torch.manual_seed(4)
        adapter = AnchorAdapter(layer_shapes(model))
        keys = cross_attention_layers(model)
        copy_text_keys(adapter, {name: layer.to_k.weight for name, layer in keys.items()})
        adapter.to(frozen.device)

        def denoise(x: Tensor, sigma: Tensor, context: Tensor, anchors: list[Anchor]) -> Tensor:
            extras = [None if a == Anchor() else Extra(adapter=adapter, request=a) for a in anchors]
            with torch.autocast(frozen.device.type, torch.bfloat16):
                conds = {"c_crossattn": context}
                return frozen.with_conds(x, sigma, conds, extras)

        def loss_of(generator: Generator) -> Tensor:
            picks = torch.randint(len(latents) - HELD_OUT, (BATCH,), generator=generator)
            x0 = latents[picks].float().to(frozen.device)
            anchors, keeps_text = draw_conditions(
                [labels[i] for i in picks.tolist()], generator, OBJECTIVE
            )
            kept = torch.tensor(keeps_text).view(-1, 1, 1)
            context = torch.where(kept, texts[picks], empty).float().to(frozen.device)
            sigma = frozen.sigma_of(sample_timesteps(BATCH, generator, OBJECTIVE))
            noise = torch.randn(x0.shape, generator=generator).to(frozen.device)
            x0_hat = denoise(x0 + noise * sigma.view(-1, 1, 1, 1), sigma, context, anchors)
            return denoising_loss(x0_hat, x0, sigma)

        held = range(len(latents) - HELD_OUT, len(latents))
        gauge = Gauge(
            x0=latents[held.start :].float().to(frozen.device),
            noise=torch.randn(
                HELD_OUT, *latents.shape[1:], generator=Generator().manual_seed(5)
            ).to(frozen.device),
            texts=tuple(held),
            anchors=tuple(labels[i] for i in held),
            sigma=float(frozen.sigma_of(torch.tensor([GAUGE_TIMESTEP]))),
        )

        def measure() -> dict[str, float]:
            return {
                "information_gain": gauge.read(
                    lambda x, sigma, rows, anchors: denoise(
                        x, sigma, texts[list(rows)].float().to(frozen.device), list(anchors)
                    )
                )
            }

        steps = fit(
            adapter, recipe, loss_of, run / "anchor", tell("anchor"), measure=measure,
            about={"pictures": len(latents)},
        )  # fmt: skip
        gain = measure()["information_gain"]
    about = {
        "data": f"{len(latents)} drawn scenes, the painter's own labels",
        "steps": steps, "batch": BATCH, "information_gain": round(gain, 3),
    }  # fmt: skip
    save_adapter(WEIGHTS, adapter.cpu(), "miniature", about)


def painted_labels(path: Path, count: int) -> list[Anchor]:
    """Anchors of the painter's scenes 0..count-1, kept in a file once they are known."""
    known = json.loads(path.read_text()) if path.exists() else []
    if len(known) < count:
        known += [_truth(seed) for seed in range(len(known), count)]
        path.write_text(json.dumps(known))
    return [Anchor(**parts) for parts in known[:count]]


def _truth(seed: int) -> dict[str, float | None]:
    drawn = paint(scene(seed), LABEL_PX)
    parts = {
        "horizon": drawn.horizon, "tilt_deg": drawn.tilt_deg,
        "subject_x": drawn.subject_x, "subject_y": drawn.subject_y,
    }  # fmt: skip
    return {name: None if value is None else round(value, 4) for name, value in parts.items()}
