"""Train the horizon networks on pictures drawn by this repository alone.

    python dev.py mini horizon            draw the pool, describe it, train both, write the weights
    python dev.py mini horizon --views 2  describe every picture in two random framings

Drawing and describing go on from where they stopped (mini/runs/horizon).
The line network trains in a minute or two, because it sees the evidence for lines; the pixel
network takes half an hour on one core.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from ..models.composition.horizon import picture_features
from ..models.composition.horizon_lines import candidate_lines
from ..models.composition.horizon_network import HorizonNetwork, HorizonScores
from ..models.composition.horizon_pixels import HorizonPixels, pixels_of
from ..models.composition.weights import SHIPPED, SHIPPED_PIXELS, load_network
from .horizon_views import random_view
from .photolike.pool import load, render

HERE = Path(__file__).parent
RUN = HERE / "runs" / "horizon"
PICTURES = 12_000
BATCH = 48
EPOCHS = 30
PIXEL_STEPS = 7_000
SOME_LINES = 140  # scored per step of the line network; all of them when it is used
SPREAD = 0.025  # of the soft target around the true edge heights
LEARNING_RATE = 2e-3


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="dev.py mini horizon", description="Train the horizon networks."
    )
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--pixel-steps", type=int, default=PIXEL_STEPS)
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument(
        "--as-drawn", action="store_true", help="use the pool as far as it is drawn"
    )
    parser.add_argument(
        "--go-on",
        action="store_true",
        help="start the line network from the weights that are there",
    )
    options = parser.parse_args(argv)
    if not options.as_drawn:
        render(options.run / "pool", options.pictures)
    if options.epochs:
        describe(options.run / "pool", options.run / "features", options.views)
        features = load_features(options.run / "features")
        model = load_network() if options.go_on else new_network(*features[:2])
        save(train(model, *features, options.epochs), SHIPPED, options)
    if options.pixel_steps:
        save(train_pixels(options.run, options.pixel_steps), SHIPPED_PIXELS, options)


def describe(pool: Path, folder: Path, views: int) -> None:
    """Measure the pool's pictures, part by part, in `views` random framings each."""
    folder.mkdir(parents=True, exist_ok=True)
    for view in range(views):
        for path in sorted(pool.glob("part????????.npz")):
            target = folder / f"view{view}_{path.stem}.pt"
            if not target.exists():
                torch.save(_describe_part(path, view), target.with_suffix(".tmp"))
                target.with_suffix(".tmp").replace(target)
                print(f"\rdescribed {target.stem}", end="", flush=True)
    print()


def _describe_part(path: Path, view: int) -> dict[str, Tensor]:
    part = np.load(path)
    images, labels = torch.from_numpy(part["images"]), torch.from_numpy(part["labels"])
    generator = Generator().manual_seed(int(path.stem[4:]) * 10 + view)
    rows = []
    for image, label in zip(images.split(25), labels.split(25), strict=True):
        picture, label, weight = random_view(image, label, generator)
        lines, frame = picture_features(picture)
        rows.append((lines.half(), frame, label, weight))
    names = ("lines", "frame", "labels", "weight")
    return {
        name: torch.cat(columns)
        for name, columns in zip(names, zip(*rows, strict=True), strict=True)
    }


def load_features(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of lines and frames, labels and weights of everything described so far."""
    parts = [torch.load(path, weights_only=True) for path in sorted(folder.glob("view*.pt"))]
    return tuple(
        torch.cat([part[name] for part in parts]) for name in ("lines", "frame", "labels", "weight")
    )  # type: ignore[return-value]


def new_network(lines: Tensor, frame: Tensor) -> HorizonNetwork:
    """An untrained network that knows the spread of every feature."""
    torch.manual_seed(0)
    model = HorizonNetwork(lines.shape[-1])
    sample = lines[::7].float()
    model.shift.copy_(torch.cat([sample.mean((0, 1)), frame.mean(0)]))
    model.scale.copy_(1 / torch.cat([sample.std((0, 1)), frame.std(0)]).clamp_min(1e-2))
    return model


def train(
    model: HorizonNetwork, lines: Tensor, frame: Tensor, labels: Tensor, weight: Tensor, epochs: int
) -> HorizonNetwork:
    """Fit the line network to described pictures."""
    per_epoch = len(lines) // BATCH
    generator = Generator().manual_seed(0)
    order = torch.randperm(len(lines), generator=generator)

    def loss_of(step: int) -> Tensor:
        nonlocal order
        if step % per_epoch == 0:
            order = torch.randperm(len(lines), generator=generator)
        rows = order[(step * BATCH) % (len(lines) - BATCH) :][:BATCH]
        some = torch.randperm(lines.shape[1], generator=generator)[:SOME_LINES]
        evidence, whole = lines[rows][:, some].float(), frame[rows]
        scores = model(
            evidence + 0.05 * torch.randn_like(evidence), whole + 0.1 * torch.randn_like(whole)
        )
        return horizon_loss(scores, labels[rows], weight[rows], candidate_lines()[some])

    one_cycle(model, epochs * per_epoch, 0.02, loss_of)
    return model.eval()


def train_pixels(run: Path, steps: int) -> HorizonPixels:
    """Fit the pixel network to the pool, every picture in a new view each time."""
    images, labels = (torch.from_numpy(array) for array in load(run / "pool"))
    torch.manual_seed(0)
    model = HorizonPixels()
    generator = Generator().manual_seed(0)

    def loss_of(_: int) -> Tensor:
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        picture, truth, weight = random_view(images[rows], labels[rows], generator)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(pixels_of(picture))
        scores = HorizonScores(*(score.float() for score in scores))
        return horizon_loss(scores, truth, weight, candidate_lines())

    one_cycle(model, steps, 0.05, loss_of)
    return model.eval()


def one_cycle(
    model: nn.Module, steps: int, weight_decay: float, loss_of: Callable[[int], Tensor]
) -> None:
    """AdamW with a one-cycle learning rate."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"\rstep {step}/{steps}  loss {loss.item():.3f}   ", end="", flush=True)
    print()


def horizon_loss(scores: HorizonScores, labels: Tensor, weight: Tensor, lines: Tensor) -> Tensor:
    """Presence, and the distribution over lines where there is a horizon.

    Args:
        scores: of a batch b and the lines n.
        labels: (b 2) true edge heights, NaN without a horizon.
        weight: (b) 0 where the label is unsure.
        lines: (n 2) that were scored.
    """
    present = ~labels[:, 0].isnan()
    presence = F.binary_cross_entropy_with_logits(
        scores.presence, present.float() * 0.96 + 0.02, weight, reduction="sum"
    ) / weight.sum().clamp_min(1)
    rows = present & (weight > 0)
    gap = (labels[rows][:, None] - lines).abs().amax(-1)  # (b n)
    target = torch.softmax(-0.5 * (gap / SPREAD) ** 2, 1)
    return presence + 0.4 * F.cross_entropy(scores.lines[rows], target)


def save(model: nn.Module, path: Path, options: argparse.Namespace) -> None:
    """Write the weights in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    lengths = {name: value for name, value in vars(options).items() if name != "run"}
    card = {"data": "pictures of mini/photolike and mini/landscapes", **lengths}
    save_file(state, path, {"veduta": json.dumps(card)})


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
