"""IP-Adapter files as released: .safetensors, and .bin of weights alone.

Keys: `image_proj.*` for the projection; `ip_adapter.N.to_k_ip.weight` and `..to_v_ip.weight` with odd N,
counted along the network's cross-attention layers: down, up, middle. Kind and sizes are read off the
weights. In memory the weights keep the type that they have in the file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .decoupled_attention import LayerShape
from .files import write_whole
from .image_adapter import (
    TOPOLOGIES,
    FullProjection,
    ImageProjection,
    ImagePromptAdapter,
    PlusProjection,
    Projection,
)
from .weight_files import METADATA_KEY, State, read_state

PROJECTION, ATTENTION = "image_proj", "ip_adapter"
ATTENTION_TOO = "adapter_modules"  # what some programs call it
NEEDED = "an IP-Adapter of the kind base, plus, plus-face or full-face for SD1.5 or SDXL is needed"
BASES = {("SD1.5", 768): "SD1.5", ("SD1.5", 1024): "SD2.1", ("SDXL", 2048): "SDXL"}


@dataclass(frozen=True)
class LoadedImageAdapter:
    """What a VEDUTA_IMAGE_ADAPTER socket carries.

    Args:
        adapter: on the CPU, in the file's type.
        kind: "base", "plus" (plus-face, too: the weights do not tell) or "full-face".
        base: the family of models that it was trained on, for messages.
        about: how it was trained, for the reader.
    """

    adapter: ImagePromptAdapter
    kind: str
    base: str
    about: Mapping[str, Any] = field(default_factory=dict)


def load_image_adapter(path: Path, name: str | None = None) -> LoadedImageAdapter:
    """Read a released IP-Adapter.

    Args:
        path: .safetensors or .bin.
        name: what messages call the file; its file name if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, holds more than weights, is another program's, or is an
            IP-Adapter of a kind that is not served.
    """
    name = name or path.name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is missing in {path.parent}; put an IP-Adapter there (the miniature's comes "
            "with the pack)"
        )
    state, about = read_state(path, name)
    projection, attention = _part(state, PROJECTION), _part(state, ATTENTION, ATTENTION_TOO)
    problem = _special_kind(projection, attention) or _foreign_kind(state, projection, attention)
    if problem:
        raise ValueError(f"{name} is {problem}, {NEEDED}; choose another file")
    layers, named = _layers(attention, name)
    adapter = _empty_adapter(projection, layers, name)
    _fill(adapter, {**{f"projection.{k}": x for k, x in projection.items()}, **named}, name)
    adapter.requires_grad_(False).eval()
    return LoadedImageAdapter(
        adapter, adapter.projection.kind, about.get("base") or _base(layers), about
    )


def save_image_adapter(
    path: Path, adapter: ImagePromptAdapter, base: str, about: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter in the released layout and half precision, whole or not at all.

    Args:
        path: .safetensors; one that is there is replaced.
        adapter: of one of `TOPOLOGIES`; left unmodified.
        base: such as "miniature".
        about: JSON-like; how it was trained.
    """
    state = {f"{PROJECTION}.{key}": x for key, x in adapter.projection.state_dict().items()}
    for number, layer in _numbers(len(adapter.layers)).items():
        for side, part in (("k", adapter.to_k[layer]), ("v", adapter.to_v[layer])):
            state[f"{ATTENTION}.{number}.to_{side}_ip.weight"] = part.state_dict()["weight"]
    half = {key: x.detach().half().cpu().contiguous() for key, x in state.items()}
    told = {"kind": "image adapter", "base": base, **(about or {})}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(told)}
    write_whole(path, lambda draft: save_file(half, draft, metadata))


def _part(state: State, *prefixes: str) -> State:
    return {
        key.removeprefix(f"{prefix}."): x
        for key, x in state.items()
        for prefix in prefixes
        if key.startswith(f"{prefix}.")
    }


def _special_kind(projection: State, attention: State) -> str | None:
    """What an adapter of a kind that is not served is."""
    if (
        any("lora" in key for key in attention)
        or "perceiver_resampler.proj_in.weight" in projection
    ):
        return "a FaceID adapter, which reads a face analyser's numbers and not pictures"
    if "proj.2.weight" in projection and "norm.weight" in projection:
        return "a FaceID adapter, which reads a face analyser's numbers and not pictures"
    if "proj_in.weight" in projection and projection["proj_in.weight"].shape[1] == 512:
        return "a FaceID portrait adapter, which reads a face analyser's numbers and not pictures"
    if "latents" in projection and projection["latents"].shape[-1] == 2048:
        return "a Kolors adapter, whose base has another text encoder"
    numbers = {key.partition(".")[0] for key in attention}
    if any("norm_" in key or "_stream_" in key for key in attention) or any(
        number.isdigit() and int(number) % 2 == 0 for number in numbers
    ):
        return "an adapter for a transformer such as FLUX or SD3"
    return None


def _foreign_kind(state: State, projection: State, attention: State) -> str | None:
    shown = ", ".join(sorted(state)[:2]) or "nothing"
    if any("double_blocks." in key for key in state):
        return "an adapter for a transformer such as FLUX or SD3"
    if not projection and not attention:
        return f"another program's file (it holds {shown})"
    if not projection:
        return f"an IP-Adapter without its projection (no {PROJECTION}.*)"
    if not attention:
        return f"an IP-Adapter without its attention (no {ATTENTION}.*)"
    return None


def _numbers(count: int) -> dict[int, str]:
    """Number in the files -> layer, of the topology of so many layers; none for another count."""
    for topology in TOPOLOGIES:
        if len(topology.layers) == count:
            return {2 * i + 1: layer for i, layer in enumerate(topology.layers)}
    return {}


def _layers(attention: State, name: str) -> tuple[dict[str, LayerShape], State]:
    keys = {key for key in attention if key.endswith(".to_k_ip.weight")}
    layers, named = {}, {}
    numbers = _numbers(len(keys))
    for number, layer in numbers.items():
        for side in ("k", "v"):
            key = f"{number}.to_{side}_ip.weight"
            if key not in attention:
                raise ValueError(
                    f"{name} lacks {ATTENTION}.{key}, all {len(numbers)} layers are needed; copy it "
                    "again"
                )
            named[f"to_{side}.{layer}.weight"] = attention[key]
        inner_dim, context_dim = attention[f"{number}.to_k_ip.weight"].shape
        layers[layer] = LayerShape(context_dim, inner_dim)
    if not numbers or len(named) != len(attention):
        known = " or ".join(str(len(topology.layers)) for topology in TOPOLOGIES)
        raise ValueError(
            f"{name} holds keys and values in {len(attention)} weights for {len(keys)} layers, {known} "
            "layers of two weights each are needed; choose an IP-Adapter for SD1.5 or SDXL, or copy "
            "it again"
        )
    return layers, named


def _empty_adapter(
    projection: State, layers: dict[str, LayerShape], name: str
) -> ImagePromptAdapter:
    kinds: dict[str, type[Projection]] = {
        "latents": PlusProjection, "proj.3.weight": FullProjection, "norm.weight": ImageProjection,
    }  # fmt: skip
    kind = next((kind for key, kind in kinds.items() if key in projection), None)
    try:
        if kind is None:
            raise KeyError("latents")
        with torch.device("meta"):
            made = kind.like(projection)
            return ImagePromptAdapter(made, layers)  # pyright: ignore[reportArgumentType]
    except KeyError as error:
        raise ValueError(
            f"{name} lacks {PROJECTION}.{error.args[0]}, {NEEDED}; copy it again or choose another "
            "file"
        ) from error


def _fill(adapter: ImagePromptAdapter, state: State, name: str) -> None:
    wanted = {key: x.shape for key, x in adapter.state_dict().items()}
    wrong = [key for key in (*wanted, *state) if key not in state or key not in wanted]
    wrong += [key for key in wanted if not wrong and state[key].shape != wanted[key]]
    if wrong:
        key = wrong[0]
        came = tuple(state[key].shape) if key in state else "missing"
        need = tuple(wanted[key]) if key in wanted else "nothing of that name"
        raise ValueError(
            f"{name}: {key} is {came}, its other weights need {need}; copy it again or choose another "
            "file"
        )
    dtype = (
        torch.float16 if all(x.dtype == torch.float16 for x in state.values()) else torch.float32
    )
    adapter.load_state_dict({key: x.to(dtype) for key, x in state.items()}, assign=True)


def _base(layers: Mapping[str, LayerShape]) -> str:
    topology = next(t.name for t in TOPOLOGIES if len(t.layers) == len(layers))
    context_dim = next(iter(layers.values())).context_dim
    return BASES.get((topology, context_dim), f"{topology} with text of width {context_dim}")
