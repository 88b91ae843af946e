"""Anchor adapter files: safetensors whose metadata says what they are and what they fit.

Half precision on disk, float32 in memory: the rounding (a relative 2^-11) is no more than what sampling
in half precision does to every weight anyway, and files are half as large.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..common.decoupled_attention import LayerShape, TokenAdapter
from ..common.files import write_whole
from ..common.weight_files import read_safetensors
from .adapter import AnchorAdapter

METADATA_KEY = "veduta"
KIND, FORMAT, FORM = "anchor adapter", 1, "position"
HALF_MAX = 65504.0  # the largest number of half precision


@dataclass(frozen=True)
class LoadedAdapter:
    """What a VEDUTA_ANCHOR_ADAPTER socket carries.

    Args:
        adapter: in float32, on the CPU.
        base: the family of models that it was trained on, for messages.
        form: how it makes its tokens: "position", or another pack's form.
        about: how it was trained, for the reader.
    """

    adapter: TokenAdapter
    base: str
    form: str
    about: Mapping[str, Any] = field(default_factory=dict)


def save_adapter(
    path: Path, adapter: AnchorAdapter, base: str, about: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter's file, whole or not at all.

    Args:
        path: .safetensors; one that is there is replaced.
        adapter: left unmodified.
        base: such as "miniature", "SD1.5", "SDXL".
        about: JSON-like; how it was trained.

    Raises:
        ValueError: a weight is not finite or too large for half precision.
    """
    state = {}
    for name, value in adapter.state_dict().items():
        if not bool((value.abs() <= HALF_MAX).all()):
            raise ValueError(
                f"weight {name} of the adapter is not finite or above {HALF_MAX:g}, so it cannot be "
                "saved; train again with a lower learning_rate"
            )
        state[name] = value.detach().half().cpu().contiguous()
    layers = {name: [s.context_dim, s.inner_dim] for name, s in adapter.layers.items()}
    told = {
        "kind": KIND, "format": FORMAT, "form": FORM, "base": base, "layers": layers,
        "about": dict(about or {}),
    }  # fmt: skip
    metadata = {"format": "pt", METADATA_KEY: json.dumps(told)}
    write_whole(path, lambda draft: save_file(state, draft, metadata))


def load_adapter(path: Path, name: str | None = None) -> LoadedAdapter:
    """Read an adapter's file.

    Args:
        path: .safetensors.
        name: what messages call the file; its file name if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, another program's, of a newer format, or its weights do
            not have the shapes that it tells.
    """
    name = name or path.name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is missing in {path.parent}; put an anchor adapter there, or train one"
        )
    state, metadata = read_safetensors(path, name)
    told = _description(metadata, state, name)
    layers = _layers(told, name)
    adapter = _empty_adapter(layers)
    _check_state(state, adapter.state_dict(), name)
    adapter.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    adapter.requires_grad_(False).eval()
    return LoadedAdapter(adapter, str(told.get("base", "?")), FORM, told.get("about", {}))


def _description(
    metadata: Mapping[str, str], state: Mapping[str, Tensor], name: str
) -> dict[str, Any]:
    needed = "an anchor adapter made by Veduta is needed"
    if METADATA_KEY not in metadata:
        raise ValueError(f"{name} is {_foreign_kind(state)}, {needed}; choose another file")
    try:
        told = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the description in {name} is damaged ({error}), {needed}; copy the file again"
        ) from error
    kind = told.get("kind") if isinstance(told, dict) else None
    if kind != KIND:
        raise ValueError(
            f"{name} holds weights of the kind {kind!r}, {needed}; choose another file"
        )
    if told.get("format") != FORMAT or told.get("form") != FORM:
        raise ValueError(
            f"{name} is of format {told.get('format')}, form {told.get('form')!r}; this version reads "
            f"format {FORMAT}, form {FORM!r}; update Veduta"
        )
    return told


def _foreign_kind(state: Mapping[str, Tensor]) -> str:
    groups = {key.partition(".")[0] for key in state}
    if {"image_proj", "ip_adapter"} & groups:
        return "an IP-Adapter (it reads pictures)"
    if any("lora_" in key or ".lora" in key for key in state):
        return "a LoRA"
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.")) for key in state):
        return "a checkpoint"
    shown = ", ".join(sorted(state)[:2]) or "nothing"
    return f"another program's file (it holds {shown})"


def _layers(told: Mapping[str, Any], name: str) -> dict[str, LayerShape]:
    found = told.get("layers")
    try:
        layers = {key: LayerShape(int(c), int(d)) for key, (c, d) in dict(found or {}).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the layers in {name} are damaged ({error}); copy the file again"
        ) from error
    if not layers:
        raise ValueError(f"{name} names no layers, one at least is needed; copy the file again")
    return layers


def _empty_adapter(layers: Mapping[str, LayerShape]) -> AnchorAdapter:
    with torch.device("meta"):
        return AnchorAdapter(layers)


def _check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        told = [f"lacks {', '.join(missing[:3])}"] if missing else []
        told += [f"has the unknown {', '.join(unknown[:3])}"] if unknown else []
        raise ValueError(f"{name} {' and '.join(told)}; copy the file again or train a new one")
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise ValueError(
                f"{key} in {name} has the shape {tuple(state[key].shape)}, its layers need "
                f"{tuple(value.shape)}; copy the file again or train a new one"
            )


def copy_text_keys(adapter: TokenAdapter, text_keys: Mapping[str, Tensor]) -> None:
    """Let the adapter's keys start as the text's.

    Args:
        adapter: a new one; its to_k weights are overwritten.
        text_keys: for every layer of the adapter, (inner context) weight of the network's to_k.

    Raises:
        ValueError: a layer is missing or of another shape.
    """
    for name, projection in adapter.to_k.items():
        weight, own = text_keys.get(name), projection.weight
        assert isinstance(own, Tensor)
        if weight is None or weight.shape != own.shape:
            came = "nothing" if weight is None else f"a weight of shape {tuple(weight.shape)}"
            raise ValueError(
                f"layer {name} of the base gives {came}, the adapter needs {tuple(own.shape)}; make "
                "the adapter from this base's layers"
            )
        with torch.no_grad():
            own.copy_(weight)
