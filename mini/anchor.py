"""Train the miniature's anchor adapter on what the painter knows: python dev.py mini anchor

The labels are the painter's own, so that the adapter is judged by what it can learn, not by what the
measuring can find in a drawing of 128 px.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
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
from ..models.anchor.weights import copy_text_keys, load_adapter, save_adapter
from ..models.common.anchor import Anchor
from ..models.common.decoupled_attention import TokenAdapter
from ..models.common.training import Recipe, fit
from ..nodes.host.attention import Extra, cross_attention_layers, layer_shapes
from ..nodes.host.gradients import gradients
from ..nodes.host.training import FrozenDenoiser, frozen_denoiser
from ..nodes.mini import load_model
from .landscapes import scene
from .painter import paint
from .terminal import tell

WEIGHTS = Path(__file__).parent / "weights" / "anchor.safetensors"
# A tilt of 2 to 5 degrees moves a latent by 3 to 6, so it shows at sigmas up to there: t = 250 to 850.
# Below, nothing is left to place.
OBJECTIVE = Objective(noisy_range=0.75, light_share=0.05)
TILTED_SHARE = 0.6  # of a batch at least; of all scenes it is 0.36
BATCH = 16
HELD_OUT = 64  # of the pictures, for the gauge
LABEL_PX = 64  # enough for a subject's centre


@dataclass(frozen=True)
class Drawings:
    """The painter's scenes 0..n-1: latents (n 4 h w), captions (n 77 d), the empty one (1 77 d)."""

    latents: Tensor
    texts: Tensor
    empty: Tensor
    labels: list[Anchor]


def labelled(run: Path, latents: Tensor, texts: Tensor, empty: Tensor) -> Drawings:
    """Cached scenes with their labels, which are kept in labels.json of the run."""
    return Drawings(latents, texts, empty, painted_labels(run / "labels.json", len(latents)))


def train_anchor(run: Path, recipe: Recipe, drawings: Drawings, go_on: bool = False) -> None:
    """Train and write the adapter.

    Args:
        run: gets the folder anchor, or anchor_from_N where the shipped weights have N steps.
        recipe: how long.
        drawings: the last `HELD_OUT` are for the gauge.
        go_on: start from the shipped weights.
    """
    model, folder, before = load_model(), run / "anchor", 0
    torch.manual_seed(4)
    adapter = new_adapter(model)
    if go_on:
        shipped = load_adapter(WEIGHTS)
        adapter.load_state_dict(shipped.adapter.state_dict())
        before = shipped.about["steps"]
        folder = run / f"anchor_from_{before}"
    steps, gain = fit_adapter(adapter, model, drawings, recipe, folder)
    about = {
        "data": f"{len(drawings.labels)} drawn scenes, the painter's own labels",
        "steps": before + steps, "batch": BATCH, "information_gain": round(gain, 3),
    }  # fmt: skip
    save_adapter(WEIGHTS, adapter, "miniature", about)


def new_adapter(model: ModelPatcher) -> AnchorAdapter:
    adapter = AnchorAdapter(layer_shapes(model))
    layers = cross_attention_layers(model)
    copy_text_keys(adapter, {name: layer.to_k.weight for name, layer in layers.items()})
    return adapter


def fit_adapter(
    adapter: TokenAdapter,
    model: ModelPatcher,
    drawings: Drawings,
    recipe: Recipe,
    folder: Path,
    scenes: Sequence[int] | None = None,
) -> tuple[int, float]:
    """Train any adapter of anchors on the miniature; it is left on the CPU.

    Args:
        adapter: of the MODEL's layers.
        model: the miniature, left as it is.
        drawings: what it learns from.
        recipe: how long.
        folder: gets the checkpoint and the log.
        scenes: those that training may see; all but the held-out ones if None.

    Returns:
        Steps done, and the information gain on the held-out drawings.
    """
    scenes = range(len(drawings.labels) - HELD_OUT) if scenes is None else scenes
    with gradients(), frozen_denoiser(model, [], drawings.latents[:1].float()) as frozen:
        frozen.model.model.diffusion_model.to(memory_format=torch.channels_last)
        trainer = _Trainer(frozen, adapter.to(frozen.device), drawings, scenes)
        about = {
            "pictures": len(drawings.labels), "scenes": len(scenes),
            "tilted_share": TILTED_SHARE, **asdict(OBJECTIVE),
        }  # fmt: skip
        steps = fit(
            adapter, recipe, trainer.loss_of, folder, tell(folder.name),
            measure=trainer.measure, about=about,
        )  # fmt: skip
        gain = trainer.measure()["information_gain"]
    adapter.cpu()
    return steps, gain


class _Trainer:
    """Draws batches of drawings and tells the loss."""

    def __init__(
        self,
        frozen: FrozenDenoiser,
        adapter: TokenAdapter,
        drawings: Drawings,
        scenes: Sequence[int],
    ) -> None:
        self.frozen, self.adapter, self.drawings = frozen, adapter, drawings
        self.scenes = torch.tensor(list(scenes))
        self.tilted = torch.tensor([i for i in scenes if drawings.labels[i].tilt_deg])
        self.gauge = self._gauge(range(len(drawings.labels))[-HELD_OUT:])

    def loss_of(self, generator: Generator) -> Tensor:
        """Mean loss of a batch drawn with the generator."""
        device, all_of = self.frozen.device, self.drawings
        picks = self._picks(generator)
        x0 = all_of.latents[picks].float().to(device)
        labels = [all_of.labels[i] for i in picks.tolist()]
        anchors, keeps_text = draw_conditions(labels, generator, OBJECTIVE)
        kept = torch.tensor(keeps_text).view(-1, 1, 1)
        context = torch.where(kept, all_of.texts[picks], all_of.empty).float().to(device)
        sigma = self.frozen.sigma_of(sample_timesteps(BATCH, generator, OBJECTIVE))
        noise = torch.randn(x0.shape, generator=generator).to(device)
        x = x0 + noise * sigma.view(-1, 1, 1, 1)
        return denoising_loss(self._denoise(x, sigma, context, anchors), x0, sigma)

    def _picks(self, generator: Generator) -> Tensor:
        any_of = self.scenes[torch.randint(len(self.scenes), (BATCH,), generator=generator)]
        tilted = self.tilted[torch.randint(len(self.tilted), (BATCH,), generator=generator)]
        own = len(self.tilted) / len(self.scenes)
        share = max(0.0, (TILTED_SHARE - own) / (1 - own))
        return torch.where(torch.rand(BATCH, generator=generator) < share, tilted, any_of)

    def measure(self) -> dict[str, float]:
        """The information gain on the held-out drawings."""
        return {"information_gain": self.gauge.read(self._denoise_rows)}

    def _denoise_rows(
        self, x: Tensor, sigma: Tensor, rows: Sequence[int], anchors: Sequence[Anchor]
    ) -> Tensor:
        context = self.drawings.texts[list(rows)].float().to(self.frozen.device)
        return self._denoise(x, sigma, context, anchors)

    def _denoise(
        self, x: Tensor, sigma: Tensor, context: Tensor, anchors: Sequence[Anchor]
    ) -> Tensor:
        extras = [
            None if a == Anchor() else Extra(adapter=self.adapter, request=a) for a in anchors
        ]
        with torch.autocast(self.frozen.device.type, torch.bfloat16):
            return self.frozen.with_conds(x, sigma, {"c_crossattn": context}, extras)

    def _gauge(self, held: Sequence[int]) -> Gauge:
        x0 = self.drawings.latents[list(held)].float()
        noise = torch.randn(x0.shape, generator=Generator().manual_seed(5))
        return Gauge(
            x0=x0.to(self.frozen.device),
            noise=noise.to(self.frozen.device),
            texts=tuple(held),
            anchors=tuple(self.drawings.labels[i] for i in held),
            sigma=float(self.frozen.sigma_of(torch.tensor([GAUGE_TIMESTEP]))),
        )


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
