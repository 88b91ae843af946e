"""Train the horizon network on pictures drawn by this repository alone.

    python dev.py mini horizon            draw the pool, describe it, train, write the weights
    python dev.py mini horizon --views 2  describe every picture in two random framings

Drawing and describing go on from where they stopped (mini/runs/horizon); training itself takes a
minute or two, because the network sees the evidence for lines, not pixels.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor

from ..models.composition.horizon import picture_features
from ..models.composition.horizon_lines import candidate_lines
from ..models.composition.horizon_network import HorizonNetwork
from ..models.composition.weights import load_network
from .photolike.pool import render

HERE = Path(__file__).parent
RUN = HERE / "runs" / "horizon"
WEIGHTS = HERE.parent / "models" / "composition" / "weights" / "horizon.safetensors"
PICTURES = 12_000
VIEW_PX = 128
BATCH = 48
EPOCHS = 30
SOME_LINES = 140  # scored per step; all of them when the network is used
SPREAD = 0.025  # of the soft target around the true edge heights


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="dev.py mini horizon", description="Train the horizon network."
    )
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument(
        "--as-drawn", action="store_true", help="use the pool as far as it is drawn"
    )
    parser.add_argument(
        "--go-on", action="store_true", help="start from the weights that are there"
    )
    options = parser.parse_args(argv)
    if not options.as_drawn:
        render(RUN / "pool", options.pictures)
    describe(RUN / "pool", RUN / "features", options.views)
    features = load_features(RUN / "features")
    model = load_network(WEIGHTS) if options.go_on else new_network(*features[:2])
    save(train(model, *features, options.epochs), options)


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
        picture = image.permute(0, 3, 1, 2).float() / 255
        picture, label, weight = move_frame(picture, label, generator)
        picture = recolour(paste(picture, label, generator), generator)
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
    """Fit the network with AdamW and a one-cycle learning rate."""
    model.train()
    steps = epochs * (len(lines) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    generator = Generator().manual_seed(0)
    order = torch.randperm(len(lines), generator=generator)
    for step in range(steps):
        if step % (len(lines) // BATCH) == 0:
            order = torch.randperm(len(lines), generator=generator)
        rows = order[(step * BATCH) % (len(lines) - BATCH) :][:BATCH]
        some = torch.randperm(lines.shape[1], generator=generator)[:SOME_LINES]
        loss = loss_of(
            model, lines[rows][:, some].float(), frame[rows], labels[rows], weight[rows], some
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"\rstep {step}/{steps}  loss {loss.item():.3f}   ", end="", flush=True)
    print()
    return model.eval()


def loss_of(
    model: HorizonNetwork,
    lines: Tensor,
    frame: Tensor,
    labels: Tensor,
    weight: Tensor,
    some: Tensor,
) -> Tensor:
    """Presence, and the distribution over lines where there is a horizon."""
    scores = model(lines + 0.05 * torch.randn_like(lines), frame + 0.1 * torch.randn_like(frame))
    present = ~labels[:, 0].isnan()
    presence = F.binary_cross_entropy_with_logits(
        scores.presence, present.float() * 0.96 + 0.02, weight, reduction="sum"
    ) / weight.sum().clamp_min(1)
    rows = present & (weight > 0)
    gap = (labels[rows][:, None] - candidate_lines()[some]).abs().amax(-1)  # (b n)
    target = torch.softmax(-0.5 * (gap / SPREAD) ** 2, 1)
    return presence + 0.4 * F.cross_entropy(scores.lines[rows], target)


def save(model: HorizonNetwork, options: argparse.Namespace) -> None:
    """Write the weights in half precision."""
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    card = {"data": "pictures of mini/photolike and mini/landscapes", **vars(options)}
    save_file(state, WEIGHTS, {"veduta": json.dumps(card)})


def move_frame(
    image: Tensor, labels: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop, stretch, turn and mirror; a horizon that leaves the frame becomes "none"."""
    b = len(image)
    u = lambda low, high: low + (high - low) * torch.rand(b, generator=generator)  # noqa: E731
    width, height = u(0.5, 1.0), u(0.5, 1.0)
    width = torch.where(u(0, 1) < 0.3, torch.ones(b), width)
    height = torch.where(u(0, 1) < 0.3, torch.ones(b), height)
    turn = torch.where(u(0, 1) < 0.3, u(-0.14, 0.14), u(-0.02, 0.02))
    cx, cy = u(-1, 1) * (1 - width), u(-1, 1) * (1 - height)
    flip = torch.where(u(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(turn), torch.sin(turn)
    # output (x, y) in -1..1 reads the source at A (x, y) + c
    a00, a01, a10, a11 = flip * width * cos, -height * sin, flip * width * sin, height * cos
    theta = torch.stack([a00, a01, cx, a10, a11, cy], 1).view(b, 2, 3)
    grid = F.affine_grid(theta, [b, 3, VIEW_PX, VIEW_PX], align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    # the line  y = p + q x  of the source (in -1..1), seen from the output
    p, q = labels.mean(1) * 2 - 1, (labels[:, 1] - labels[:, 0])
    bottom = a11 - q * a01
    p_new, q_new = (p + q * cx - cy) / bottom, (q * a00 - a10) / bottom
    heights = torch.stack([(p_new - q_new + 1) / 2, (p_new + q_new + 1) / 2], 1)
    gone = ((heights < -0.02) | (heights > 1.02)).all(1)
    centre = heights.mean(1)
    unsure = ~gone & ((centre < 0.04) | (centre > 0.96))
    heights[gone] = math.nan
    return moved, heights, torch.where(unsure, 0.0, 1.0)


def paste(image: Tensor, labels: Tensor, generator: Generator) -> Tensor:
    """Lay a round piece of a picture without a horizon over some of the others."""
    b, _, h, w = image.shape
    donors = torch.nonzero(labels[:, 0].isnan()).flatten()
    if not len(donors):
        return image
    pick = donors[torch.randint(len(donors), (b,), generator=generator)]
    u = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)  # noqa: E731
    y = torch.linspace(0, 1, h).view(1, 1, h, 1)
    x = torch.linspace(0, 1, w).view(1, 1, 1, w)
    radius = torch.where(u(0, 1) < 0.15, u(0.05, 0.3), torch.zeros(1))
    power = u(1, 4)
    distance = ((x - u(0, 1)).abs() ** power + (y - u(0, 1.1)).abs() ** power) ** (1 / power)
    return torch.lerp(image, image[pick], ((radius - distance) * 40).clamp(0, 1))


def recolour(image: Tensor, generator: Generator) -> Tensor:
    """Shake colours, contrast, sharpness and grain."""
    b = len(image)
    u = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)  # noqa: E731
    if torch.rand((), generator=generator) < 0.25:
        small = F.avg_pool2d(image, 2)
        soft = F.interpolate(small, scale_factor=2, mode="bilinear")
        image = torch.where(u(0, 1) < 0.4, soft, image)
    mixing = torch.eye(3) + 0.12 * torch.randn(b, 3, 3, generator=generator)
    swap = (torch.rand(b, generator=generator) < 0.15).nonzero().flatten()
    for row in swap.tolist():
        mixing[row] = mixing[row][torch.randperm(3, generator=generator)]
    coloured = torch.einsum("bij,bjhw->bihw", mixing, image).clamp(0.001, 1)
    grey = coloured.mean(1, keepdim=True)
    keep = torch.where(u(0, 1) < 0.12, torch.zeros(1), u(0.5, 1.5))
    image = (grey + (coloured - grey) * keep).clamp(0.001, 1) ** torch.exp(u(-0.5, 0.5))
    image = torch.where(u(0, 1) < 0.03, 1 - image, image)
    grain = torch.randn(image.shape, generator=generator) * 10 ** u(-3, -1.3)
    return (image + torch.where(u(0, 1) < 0.4, grain, torch.zeros(1))).clamp(0, 1)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
