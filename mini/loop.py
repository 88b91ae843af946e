"""A resumable training loop: AdamW, warm-up and cosine, EMA, clipping, atomic checkpoints."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Generator, Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a network learns."""

    steps: int
    learning_rate: float
    warmup: int = 200
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    save_every: int = 500
    log_every: int = 50


def fit(
    model: nn.Module, recipe: Recipe, loss_of: Callable[[Generator], Tensor], folder: Path
) -> int:
    """Train to the end of the recipe, going on from the last checkpoint if there is one.

    Args:
        model: left with the averaged (EMA) weights.
        recipe: a checkpoint of another recipe length is continued on the new schedule.
        loss_of: draws a batch with the generator and returns its loss.
        folder: gets checkpoint.pt and log.jsonl.

    Returns:
        Steps done: more than the recipe's where the checkpoint was past its end already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)
    ema = EMAModel(trained, decay=recipe.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    generator = torch.Generator().manual_seed(0)
    checkpoint = folder / "checkpoint.pt"
    step = _resume(checkpoint, model, optimizer, schedule, ema, generator)
    model.train()
    began, losses = time.time(), []
    while step < recipe.steps:
        loss = loss_of(generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(trained)
        losses.append(loss.detach())
        step += 1
        if step % recipe.log_every == 0 or step == recipe.steps:
            _log(folder, step, recipe, torch.stack(losses).mean().item(), time.time() - began)
            began, losses = time.time(), []
        if step % recipe.save_every == 0 or step == recipe.steps:
            _save(checkpoint, model, optimizer, schedule, ema, generator, step)
    print()
    ema.copy_to(trained)
    model.eval()
    return step


def _resume(path, model, optimizer, schedule, ema, generator) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    ema.load_state_dict(state["ema"])
    ema.to(next(model.parameters()).device)
    generator.set_state(state["generator"])
    schedule.load_state_dict({**schedule.state_dict(), **state["schedule"]})
    return int(state["step"])


def _save(path, model, optimizer, schedule, ema, generator, step) -> None:
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    schedule_state = {
        k: v for k, v in schedule.state_dict().items() if k in ("last_epoch", "_step_count")
    }
    state = {
        "model": {k: v for k, v in model.state_dict().items() if k in trained},
        "optimizer": optimizer.state_dict(),
        "schedule": schedule_state,
        "ema": ema.state_dict(),
        "generator": generator.get_state(),
        "step": step,
    }
    draft = path.with_suffix(".tmp")
    torch.save(state, draft)
    os.replace(draft, path)


def _log(folder: Path, step: int, recipe: Recipe, loss: float, seconds: float) -> None:
    rate = recipe.log_every / max(seconds, 1e-9)
    left = (recipe.steps - step) / rate / 60
    print(
        f"\r{folder.name}: step {step}/{recipe.steps}  loss {loss:.4f}  {rate:.2f} steps/s  {left:.0f} min left   ",
        end="",
        flush=True,
    )
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "loss": round(loss, 5), "rate": round(rate, 3)}) + "\n")
