"""A LoRA as the sum of its components, each a slice of the rank: join, cut, weight.

Source:  follows from block matrices: [B0 | B1] [A0; A1] = B0 A0 + B1 A1, so a file of the summed rank
         adds all components up wherever a LoRA can be loaded, and here each has its own strength.
Symbols: A lora_down (r in ...), B lora_up (out r ...), scale = alpha / r.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
IMAGE_PREFIX = "lora_unet"

_STRENGTH = re.compile(r"^(.+?)[\s:=]+([-+]?\d*\.?\d+)$")


def merge_slices(parts: Sequence[Tensors]) -> dict[str, Tensor]:
    """One LoRA that acts like all of them together.

    Args:
        parts: LoRAs by kohya's names; a layer may be missing in some. A part's scale that differs
            from the first's is put into its up factor.
    """
    merged: dict[str, Tensor] = {}
    for layer in dict.fromkeys(name for part in parts for name in layer_names(part)):
        own = [part for part in parts if layer + DOWN in part]
        scale = _scale(own[0], layer)
        downs = [part[layer + DOWN] for part in own]
        ups = [_rescaled(part, layer, scale) for part in own]
        rank = sum(down.shape[0] for down in downs)
        merged[layer + DOWN] = torch.cat(downs)
        merged[layer + UP] = torch.cat(ups, 1)
        merged[layer + ALPHA] = torch.tensor(scale * rank)
    return merged


def split_slices(tensors: Tensors, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Every component as a LoRA of its own; the text encoders' layers belong to none.

    Args:
        tensors: a LoRA by kohya's names, the rank of its image layers cut into equal slices.
        names: of the slices, in their order.

    Raises:
        ValueError: a rank cannot be cut into that many slices.
    """
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for layer in layer_names(tensors):
        if not layer.startswith(IMAGE_PREFIX):
            continue
        rank = tensors[layer + DOWN].shape[0]
        if rank % len(names):
            raise ValueError(
                f"layer {layer} has rank {rank}, which cannot be cut into {len(names)} slices "
                f"({', '.join(names)}); the file is damaged, copy it again"
            )
        scale, size = _scale(tensors, layer), rank // len(names)
        for index, name in enumerate(names):
            own = slice(index * size, (index + 1) * size)
            parts[name][layer + DOWN] = tensors[layer + DOWN][own]
            parts[name][layer + UP] = tensors[layer + UP][:, own]
            parts[name][layer + ALPHA] = torch.tensor(scale * size)
    return parts


def weight_slices(
    tensors: Tensors, names: Sequence[str], strengths: Mapping[str, float]
) -> dict[str, Tensor]:
    """The LoRA with each component at its own strength.

    Args:
        tensors: as in `split_slices`; left unmodified.
        names: of the slices, in their order.
        strengths: by name; 1 for those that are not named. All 1 gives the same numbers back, 0
            leaves the slice out.

    Raises:
        ValueError: a strength is of no component.
    """
    unknown = [name for name in strengths if name not in names]
    if unknown:
        raise ValueError(
            f"components name {unknown[0]!r}, this style has {', '.join(names)}; name one of these"
        )
    kept = []
    for name, part in split_slices(tensors, names).items():
        strength = strengths.get(name, 1.0)
        if strength:
            kept.append({
                key: value * strength if key.endswith(UP) else value for key, value in part.items()
            })  # fmt: skip
    text = {key: value for key, value in tensors.items() if not key.startswith(IMAGE_PREFIX)}
    return {**merge_slices(kept), **text}


def read_strengths(text: str) -> dict[str, float]:
    """Strengths that a user writes: "people 1, backgrounds 0.5", also on lines of their own.

    Raises:
        ValueError: a part is not a name and a number.
    """
    found = {}
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        match = _STRENGTH.match(part)
        if match is None:
            raise ValueError(
                f"components hold {part!r}, a name and a number are needed; write for instance "
                "people 1, backgrounds 0.5"
            )
        found[match[1]] = float(match[2])
    return found


def layer_names(tensors: Tensors) -> list[str]:
    """Kohya's prefixes of the layers, in their order."""
    return [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]


def _scale(tensors: Tensors, layer: str) -> float:
    rank = tensors[layer + DOWN].shape[0]
    return float(tensors[layer + ALPHA]) / rank if layer + ALPHA in tensors else 1.0


def _rescaled(part: Tensors, layer: str, scale: float) -> Tensor:
    own = _scale(part, layer)
    up = part[layer + UP]
    return up if own == scale else up * (own / scale)
