"""What does the image prompt cost a step?  python dev.py bench image_prompt

The same IP-Adapter "plus" file on the same SD1.5 network, here and in diffusers, run in turns; channels
are narrower than SD1.5's, which makes the adapter's share of a step larger, not smaller.
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models.common.decoupled_attention import LayerShape
from ..models.common.image_adapter import SD15, ImageFeatures, ImagePromptAdapter, PlusProjection
from ..nodes.host.attention import RUN_KEY, Extra, Row, Run, attend_extra, layer_shapes
from ._rows import Row as BenchRow
from ._rows import report
from ._topologies import build_pair, draw_weights, drawn, predict

CHANNELS, TEXT, SIZE = 64, 768, 32  # of the first level, of the text; latent px a side
FEATURES, STATES = 1280, 257  # of ViT-H
ROUNDS = 9


@torch.inference_mode()
def main() -> None:
    report("image_prompt", adapter_rows())


@torch.no_grad()
def adapter_rows() -> list[BenchRow]:
    """Time that the adapter adds to a step, as a share of the step without it: ours, diffusers'."""
    calls = _calls()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.process_time()  # what else the machine does is not counted
            call()
            times[name].append(time.process_time() - began)
    ours, theirs = (
        statistics.median(
            with_it / without - 1
            for with_it, without in zip(
                times[f"{side} with"][1:], times[f"{side} without"][1:], strict=True
            )
        )
        for side in ("ours", "theirs")
    )
    return [
        BenchRow(
            "image adapter's share of a step (baseline: diffusers)", ours, theirs, theirs, False
        )
    ]


def _calls() -> dict[str, Callable[[], object]]:
    """One pass through the network each."""
    model, plain = build_pair("SD1.5", CHANNELS, TEXT)
    adapter = _adapter(layer_shapes(model))
    adapted = copy.deepcopy(plain)
    adapted._load_ip_adapter_weights([_released(adapter)], low_cpu_mem_usage=False)
    patched = attend_extra(model)
    patched.model_options["transformer_options"][RUN_KEY] = Run(frame=(SIZE, SIZE))  # of a sampling
    x, text, features = _inputs()
    timesteps = torch.tensor([500, 500])
    sigma = model.model.model_sampling.sigmas[timesteps]
    rows = tuple(Row((Extra(adapter=adapter, request=ImageFeatures(one)),)) for one in features)
    pictures = {"image_embeds": [features]}
    return {
        "ours without": lambda: predict(patched, (), x, sigma, text, {}),
        "ours with": lambda: predict(patched, rows, x, sigma, text, {}),
        "theirs without": lambda: plain(x, timesteps, text),
        "theirs with": lambda: adapted(x, timesteps, text, added_cond_kwargs=pictures),
    }


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    return (
        drawn(2, 4, SIZE, SIZE, seed=1),
        drawn(2, 77, TEXT, seed=2),
        drawn(2, 1, STATES, FEATURES, seed=3),
    )


def _adapter(shapes: dict[str, LayerShape]) -> ImagePromptAdapter:
    projection = PlusProjection(FEATURES, TEXT, dim=TEXT, queries=16, depth=4)
    adapter = ImagePromptAdapter(projection, shapes)
    draw_weights(adapter, seed=4)
    return adapter


def _released(adapter: ImagePromptAdapter) -> dict[str, dict[str, Any]]:
    attention = {
        f"{2 * i + 1}.to_{side}_ip.weight": part[layer].weight
        for i, layer in enumerate(SD15.layers)
        for side, part in (("k", adapter.to_k), ("v", adapter.to_v))
    }
    return {"image_proj": adapter.projection.state_dict(), "ip_adapter": attention}


if __name__ == "__main__":
    main()
