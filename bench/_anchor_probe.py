"""A second detector, which shares nothing with the pack's: it reads latents, and learned the painter's truth.

It always answers, so that its control statistics must vanish where there is nothing to find.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from ..mini.anchor import HELD_OUT, Drawings
from ..mini.load import load_vae
from ..mini.terminal import tell
from ..models.common.anchor import MAX_TILT_DEG, Anchor
from ..models.common.files import write_whole
from ..models.common.training import Recipe, fit
from ..models.composition.control import PARTS

SPANS = torch.tensor([1.0, MAX_TILT_DEG, 1.0, 1.0])  # of horizon, tilt, subject x, y
RECIPE = Recipe(steps=2_000, learning_rate=2e-3, ema_decay=0.99, save_every=500, log_every=200)
BATCH = 64
NOISE = 0.1  # added to latents of unit spread: what a denoiser leaves


class Probe(nn.Module):
    """Latents (b 4 16 16) to horizon, tilt, subject x, y (b 4), each as a share of its span."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, 2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 96, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(96, 96, 3, 2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(96 * 16, 192),
            nn.SiLU(),
            nn.Linear(192, 4),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def train_probe(drawings: Drawings, run: Path) -> None:
    """Train it, or go on, and write RUN/forms/probe.safetensors."""
    torch.manual_seed(6)
    probe = Probe()
    latents = drawings.latents[:-HELD_OUT]
    truth = torch.tensor([
        [float("nan") if (part := getattr(anchor, name)) is None else part for name in PARTS]
        for anchor in drawings.labels[:-HELD_OUT]
    ]) / SPANS  # fmt: skip

    def loss_of(generator: Generator) -> Tensor:
        picks = torch.randint(len(latents), (BATCH,), generator=generator)
        x, wanted = latents[picks].float(), truth[picks]
        flipped = torch.rand(BATCH, generator=generator) < 0.5
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        mirrored = wanted * wanted.new_tensor([1, -1, -1, 1]) + wanted.new_tensor([0, 0, 1, 0])
        wanted = torch.where(flipped[:, None], mirrored, wanted)
        x = x + NOISE * torch.randn(x.shape, generator=generator)
        return (probe(x) - wanted)[wanted.isfinite()].abs().mean()

    fit(probe, RECIPE, loss_of, run / "forms" / "probe", tell("probe"))
    write_whole(_weights(run), lambda draft: save_file(probe.state_dict(), draft))


class SecondDetector:
    """Pictures of the bench to anchors; None of its parts is ever open."""

    def __init__(self, run: Path) -> None:
        self.probe, self.vae = Probe(), load_vae()
        self.probe.load_state_dict(load_file(_weights(run)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Anchor]:
        parts = [self.probe(self.vae.encode(x.clamp(0, 1) * 2 - 1)) for x in images.split(16)]
        found = torch.cat(parts).clamp(-1, 1) * SPANS
        found[:, [0, 2, 3]] = found[:, [0, 2, 3]].clamp(0, 1)
        return [Anchor(**dict(zip(PARTS, row, strict=True))) for row in found.tolist()]


def second_detector(run: Path) -> SecondDetector | None:
    return SecondDetector(run) if _weights(run).exists() else None


def _weights(run: Path) -> Path:
    return run / "forms" / "probe.safetensors"
