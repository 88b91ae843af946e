"""Style files: one ordinary LoRA in kohya's names, with metadata that other tools read.

Source:  kohya-ss/sd-scripts' names and `ss_*` entries; ModelSpec 1.0.1 (Stability AI); the hashes that
         model managers look files up by: SHA-256 of the tensors' bytes, whatever the metadata.
Differs: a `veduta` entry holds what only this pack reads: the slices and what calls them.
"""

import base64
import hashlib
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ..common.files import write_whole
from ..common.weight_files import read_safetensors
from .components import ALPHA, DOWN, IMAGE_PREFIX, UP, layer_names
from .style import Style

METADATA_KEY, KIND, FORMAT = "veduta", "style", 1
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
THUMBNAIL_PX, THUMBNAIL_QUALITY = 256, 85
LEGACY_OFFSET = 0x100000  # of the first hash that web UIs had, cut to 8 digits
LEGACY_LENGTH = 0x10000


@dataclass(frozen=True)
class Family:
    """What other tools call a family of models."""

    architecture: str  # ModelSpec's
    version: str  # kohya's


FAMILIES = {
    "SD1.5": Family("stable-diffusion-v1/lora", "sd_v1"),
    "SD2": Family("stable-diffusion-v2-512/lora", "sd_v2"),
    "SDXL": Family("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
    "FLUX": Family("flux-1-dev/lora", "flux1"),
}


def save_style(
    path: Path,
    style: Style,
    precision: str = "fp16",
    thumbnail: Tensor | None = None,
    description: str = "",
) -> None:
    """Write a style's file, whole or not at all.

    Args:
        path: .safetensors; one that is there is replaced.
        style: left unmodified.
        precision: of the file: fp16 or bf16.
        thumbnail: (3 h w) in 0..1, kept in the metadata as a small JPEG.
        description: for people.

    Raises:
        ValueError: a weight is not finite or too large for the precision.
        OSError: the file cannot be written; one that was there is as before.
    """
    dtype = HALVES[precision]
    state = {name: _rounded(name, value, dtype) for name, value in style.tensors.items()}
    metadata = _metadata(replace(style, name=path.stem), state, precision, description)
    if thumbnail is not None:
        metadata["modelspec.thumbnail"] = _data_uri(thumbnail)
    written = save(state, {**metadata, **_hashes(state, metadata)})
    try:
        write_whole(path, lambda draft: draft.write_bytes(written))
    except OSError as error:
        raise OSError(
            f"{path.name} ({len(written) >> 10} KiB) cannot be written to {path.parent} ({error}); "
            "make room there, what was there before is as it was"
        ) from error


def load_style(path: Path, name: str | None = None) -> Style:
    """Read a style's file.

    Args:
        path: .safetensors.
        name: what messages call the file; its file name if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, another program's, of a newer format, or damaged.
    """
    name = name or path.name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is missing in {path.parent}; train or save a style there")
    state, metadata = read_safetensors(path, name)
    told = _description(metadata, state, name)
    _check_layers(state, name)
    return Style(
        tensors={key: value.float() for key, value in state.items()},
        slices=tuple(told["slices"]),
        prompts=dict(told["prompts"]),
        base=str(told.get("base", "?")),
        name=path.stem,
        about=told.get("about", {}),
    )


def tensor_hash(path: Path) -> str:
    """SHA-256 of the tensors' bytes in a safetensors file."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        file.seek(8 + header)
        return hashlib.sha256(file.read()).hexdigest()


def _rounded(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if name.endswith(ALPHA):
        return value.detach().float().cpu()
    half = value.detach().to(dtype).cpu().contiguous()
    if not bool(torch.isfinite(half).all()):
        raise ValueError(
            f"weight {name} of the style is not finite or too large for {dtype}, so it cannot be "
            "saved; train again with a lower learning_rate"
        )
    return half


def _metadata(
    style: Style, state: Mapping[str, Tensor], precision: str, description: str
) -> dict[str, str]:
    about = style.about
    family = FAMILIES.get(style.base, Family(f"{style.base.lower()}/lora", style.base.lower()))
    side = about.get("resolution", 512)
    told = {
        "kind": KIND, "format": FORMAT, "base": style.base, "slices": list(style.slices),
        "prompts": dict(style.prompts), "about": dict(about),
    }  # fmt: skip
    entries: dict[str, Any] = {
        "format": "pt",
        METADATA_KEY: json.dumps(told),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "Veduta",
        "modelspec.title": style.name,
        "modelspec.resolution": side if "x" in str(side) else f"{side}x{side}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "modelspec.trigger_phrase": style.trigger,
        "modelspec.usage_hint": "Style",
        "modelspec.tags": "style",
        "modelspec.description": description or _default_description(style),
        **_kohya_entries(style, state, family, precision),
    }
    if "prediction" in about:
        entries["modelspec.prediction_type"] = about["prediction"]
    return {key: str(value) for key, value in entries.items()}


def _default_description(style: Style) -> str:
    calls = "; ".join(f"{name}: {prompt}" for name, prompt in style.prompts.items())
    return f"A style trained with Veduta. Begin the prompt with what calls it. {calls}"


def _kohya_entries(
    style: Style, state: Mapping[str, Tensor], family: Family, precision: str
) -> dict[str, Any]:
    about = style.about
    layers = [layer for layer in layer_names(state) if layer.startswith(IMAGE_PREFIX)]
    ranks = [state[layer + DOWN].shape[0] for layer in layers]
    first = layers[ranks.index(max(ranks))] if layers else None
    frequency = {prompt: about.get("pictures", 1) for prompt in style.prompts.values()}
    subsets = [{"class_tokens": prompt} for prompt in style.prompts.values()]
    entries = {
        "ss_output_name": style.name,
        "ss_base_model_version": family.version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": max(ranks, default=0),
        "ss_network_alpha": float(state[first + ALPHA]) if first else 0.0,
        "ss_network_dropout": about.get("dropout"),
        "ss_tag_frequency": json.dumps({"style": frequency}),
        "ss_datasets": json.dumps([{"subsets": subsets}]),
        "ss_mixed_precision": precision,
        "ss_learning_rate": about.get("learning_rate"),
        "ss_unet_lr": about.get("learning_rate"),
        "ss_text_encoder_lr": about.get("text_learning_rate"),
        "ss_optimizer": about.get("optimizer"),
        "ss_lr_scheduler": about.get("schedule"),
        "ss_steps": about.get("steps"),
        "ss_max_train_steps": about.get("planned_steps"),
        "ss_seed": about.get("seed"),
        "ss_num_train_images": about.get("pictures"),
        "ss_num_reg_images": about.get("aux_pictures"),
        "ss_prior_loss_weight": about.get("aux_weight"),
        "ss_min_snr_gamma": about.get("min_snr_gamma"),
        "ss_training_comment": about.get("method"),
        "ss_training_started_at": about.get("started_at"),
        "ss_training_finished_at": about.get("finished_at"),
    }
    return {key: value for key, value in entries.items() if value is not None}


def _hashes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    plain = save(dict(state), {k: v for k, v in metadata.items() if k.startswith("ss_")})
    start = 8 + int.from_bytes(plain[:8], "little")
    whole = hashlib.sha256(plain[start:]).hexdigest()
    legacy = hashlib.sha256(plain[LEGACY_OFFSET : LEGACY_OFFSET + LEGACY_LENGTH]).hexdigest()
    return {
        "modelspec.hash_sha256": f"0x{whole}",
        "sshs_model_hash": whole,
        "sshs_legacy_hash": legacy[:8],
    }


def _data_uri(picture: Tensor) -> str:
    pixels = picture.detach().cpu().clamp(0, 1).mul(255).round().byte().movedim(0, -1).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _description(
    metadata: Mapping[str, str], state: Mapping[str, Tensor], name: str
) -> dict[str, Any]:
    needed = "a style trained by Veduta is needed"
    if METADATA_KEY not in metadata:
        raise ValueError(f"{name} is {_foreign_kind(state)}, {needed}; {_advice(state)}")
    try:
        told = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the description in {name} is damaged ({error}), {needed}; copy the file again"
        ) from error
    if not isinstance(told, dict) or told.get("kind") != KIND:
        kind = told.get("kind") if isinstance(told, dict) else None
        raise ValueError(
            f"{name} holds weights of the kind {kind!r}, {needed}; choose another file"
        )
    if told.get("format") != FORMAT:
        raise ValueError(
            f"{name} is of format {told.get('format')}, this version reads format {FORMAT}; update "
            "Veduta"
        )
    if not told.get("slices") or not isinstance(told.get("prompts"), dict):
        raise ValueError(f"the description in {name} lacks its components; copy the file again")
    return told


def _advice(state: Mapping[str, Tensor]) -> str:
    if any("lora" in key for key in state):
        return "load it with ComfyUI's Load LoRA"
    return "choose another file"


def _foreign_kind(state: Mapping[str, Tensor]) -> str:
    if any(key.endswith(UP) for key in state):
        return "a LoRA of another tool"
    if any("lora_" in key or ".lora" in key for key in state):
        return "a LoRA in the names of another tool"
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.")) for key in state):
        return "a checkpoint"
    shown = ", ".join(sorted(state)[:2]) or "nothing"
    return f"another program's file (it holds {shown})"


def _check_layers(state: Mapping[str, Tensor], name: str) -> None:
    layers = layer_names(state)
    if not layers:
        raise ValueError(f"{name} holds no layer, one at least is needed; copy the file again")
    for layer in layers:
        down, up = state[layer + DOWN], state.get(layer + UP)
        if up is None or layer + ALPHA not in state or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"layer {layer} in {name} is incomplete or its factors do not fit each other; copy "
                "the file again"
            )
