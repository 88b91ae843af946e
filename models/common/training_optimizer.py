"""Optimisers and schedules by the names of a recipe, for parameters in groups."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .training_recipe import Group, Recipe

BETAS = (0.9, 0.99)


def make_optimizer(
    named: Mapping[str, nn.Parameter], recipe: Recipe, groups: Mapping[str, Group]
) -> torch.optim.Optimizer:
    """The recipe's optimiser, with one group of its own for all parameters that no group names.

    Raises:
        ValueError: a group names what is not there or in another group, all of them stop before
            the end, or have rates of their own where the optimiser knows one alone.
        ImportError: the optimiser's package is not installed.
    """
    _check(named, recipe, groups)
    grouped = {name for group in groups.values() for name in group.names}
    rest = [parameter for name, parameter in named.items() if name not in grouped]
    sets: list[dict[str, Any]] = [{"params": rest}] if rest else []
    sets += [
        {"params": [named[name] for name in group.names], "lr": group.learning_rate}
        for group in groups.values()
    ]
    if recipe.optimizer == "prodigy":
        return _prodigy(sets, recipe)
    return torch.optim.AdamW(
        sets,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=BETAS,
        fused=next(iter(named.values())).device.type in ("cpu", "cuda"),
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe
) -> torch.optim.lr_scheduler.LambdaLR:
    """The recipe's schedule, the same factor for all groups."""
    # loading diffusers takes a second, which a start of the host must not pay
    from diffusers.optimization import (
        get_constant_schedule_with_warmup,
        get_cosine_schedule_with_warmup,
    )

    if recipe.schedule == "constant":
        return get_constant_schedule_with_warmup(optimizer, recipe.warmup)
    return get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)


def _check(named: Mapping[str, nn.Parameter], recipe: Recipe, groups: Mapping[str, Group]) -> None:
    seen: dict[str, str] = {}
    for title, group in groups.items():
        for name in group.names:
            if name not in named:
                raise ValueError(
                    f"group {title!r} names {name}, which is none of the {len(named)} trained "
                    "parameters; leave it out"
                )
            if name in seen:
                raise ValueError(f"{name} is in the groups {seen[name]!r} and {title!r}; keep one")
            seen[name] = title
        if recipe.optimizer == "prodigy" and group.learning_rate != recipe.learning_rate:
            raise ValueError(
                f"group {title!r} has learning_rate {group.learning_rate} and the rest "
                f"{recipe.learning_rate}, prodigy knows one; give the same, or take adamw"
            )
    stops = [group.stop_step for group in groups.values() if group.names]
    ends = max((recipe.steps if stop is None else stop for stop in stops), default=recipe.steps)
    if len(seen) == len(named) and ends < recipe.steps:
        raise ValueError(
            f"all parameters stop learning by step {ends} of {recipe.steps}; lower steps or leave "
            "a stop_step out"
        )


def _prodigy(sets: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise ImportError(
            "optimizer 'prodigy' needs the package prodigyopt, which is not installed; run "
            "`pip install prodigyopt`, or take adamw"
        ) from error
    return Prodigy(
        [{**one, "lr": recipe.learning_rate} for one in sets],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,  # pyright: ignore[reportArgumentType]  declared an int
        betas=BETAS,
        decouple=True,
        use_bias_correction=True,
        safeguard_warmup=True,
    )
