"""What an image encoder attends to, as a saliency map.

Source:  attention rollout, Abnar & Zuidema 2020, arXiv:2005.00928: the mean of all heads, half of it
         the residual, multiplied layer by layer; the class token's row is the map.
Differs: what every patch has alike is taken off: the least value of the map is 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .maps import resized_map, unit_map

RESIDUAL = 0.5


@dataclass(frozen=True)
class Tower:
    """An image encoder of CLIP's layout with a class token.

    Args:
        states: normalised pixels (b 3 s s) to what each layer hands on, (b l n d), l >= 2.
        layers: its l layers, with `layer_norm1` and `self_attn.q_proj`, `.k_proj`.
        heads: of each layer.
        size: s, px.
        mean: of the colours, taken out.
        std: of the colours, divided by.
    """

    states: Callable[[Tensor], Tensor]
    layers: Sequence[Any]
    heads: int
    size: int
    mean: Sequence[float]
    std: Sequence[float]


def attention_saliency(tower: Tower, image: Tensor) -> Tensor:
    """Saliency (b 1 h w), 0..1 with 1 at the top, of pictures (b 3 h w), 0..1.

    The whole picture is squeezed to the encoder's square, so that no edge is cut off.
    """
    fitted = F.interpolate(image, (tower.size, tower.size), mode="bicubic", antialias=True)
    mean, std = (fitted.new_tensor(values)[:, None, None] for values in (tower.mean, tower.std))
    row = rollout(tower.states((fitted - mean) / std), tower.layers, tower.heads)
    row = row - row.amin(-1, keepdim=True)
    side = round(row.shape[-1] ** 0.5)
    return unit_map(resized_map(rearrange(row, "b (h w) -> b 1 h w", h=side), *image.shape[-2:]))


def rollout(states: Tensor, layers: Sequence[Any], heads: int) -> Tensor:
    """How much of each patch the class token holds at the end.

    Args:
        states: (b l n d), what each layer hands on; token 0 is the class token.
        layers: l of them; the first, whose input is not among the states, is left out.
        heads: of each layer.

    Returns:
        (b n - 1), 0 and up.
    """
    count = states.shape[2]
    seen = torch.eye(count, device=states.device, dtype=states.dtype)[:1]  # the class token's row
    for layer, hidden in zip(reversed(layers[1:]), reversed(states.unbind(1)[:-1]), strict=True):
        attention = attention_of(layer, hidden, heads).mean(1)
        seen = (1 - RESIDUAL) * (seen @ attention) + RESIDUAL * seen
    return seen[:, 0, 1:]


def attention_of(layer: Any, hidden: Tensor, heads: int) -> Tensor:
    """Weights (b heads n n) with which a layer's tokens attend to each other."""
    x = layer.layer_norm1(hidden)
    q, k = (
        rearrange(part(x), "b n (heads d) -> b heads n d", heads=heads)
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
