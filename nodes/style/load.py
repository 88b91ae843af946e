"""Node that puts a style on a model, each component at its own strength."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.styleforge.components import (
    DOWN,
    UP,
    layer_names,
    read_strengths,
    weight_slices,
)
from ...models.styleforge.files import load_style
from ...models.styleforge.lora import is_text
from ...models.styleforge.style import Style
from ..host.types import StyleSocket
from .places import FOLDER
from .style_set import CATEGORY
from .training import base_name

CONNECTED = "(the connected style)"


class LoadStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaLoadStyle",
            display_name="Load Style",
            category=CATEGORY,
            description=(
                "Puts a trained style on a model, each component at its own strength, and gives the "
                "words that call it. For a part of the picture alone, use hooks with a masked "
                "conditioning instead of model and clip."
            ),
            search_aliases=["load lora", "apply style", "style strength", "component strength"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: comfy.sd.CLIP,
        style_name: str,
        strength: float,
        components: str,
        text_strength: float,
        style: Style | None = None,
    ) -> io.NodeOutput:
        style = _chosen(style_name, style)
        check_fits(style, model, clip)
        strengths = read_strengths(components)
        tensors = weight_slices(style.tensors, style.slices, strengths)
        styled, reader = comfy.sd.load_lora_for_models(
            model, clip, tensors, strength, text_strength
        )
        hooks = comfy.hooks.create_hook_lora(tensors, strength, text_strength)
        return io.NodeOutput(styled, reader, trigger_of(style, strengths), hooks)

    @classmethod
    def fingerprint_inputs(cls, style_name: str, **_: Any) -> list[Any]:
        if style_name == CONNECTED:
            return []
        path = Path(folder_paths.get_full_path_or_raise(FOLDER, style_name))
        return [path.stat().st_mtime_ns, path.stat().st_size]


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="The base that the style was trained for, or one made of it."
        ),
        io.Clip.Input("clip", tooltip="Its text encoder."),
        io.Combo.Input(
            "style_name",
            options=[CONNECTED, *folder_paths.get_filename_list(FOLDER)],
            default=CONNECTED,
            tooltip="A style's file in models/loras, made by Train Style; or the connected one.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=-4.0,
            max=4.0,
            step=0.05,
            tooltip="Of the whole style in the model: 0 is off, 1 as trained.",
        ),
        io.String.Input(
            "components",
            default="",
            tooltip=(
                "Strength of single components, such as people 1, backgrounds 0.5. Those not named have "
                "1; shared is what they have in common."
            ),
        ),
        io.Float.Input(
            "text_strength",
            default=1.0,
            min=-4.0,
            max=4.0,
            step=0.05,
            advanced=True,
            tooltip="Of the style in the text encoder, where it was trained: 0 is off, 1 as trained.",
        ),
        StyleSocket.Input(
            "style", optional=True, tooltip="A style straight from Train Style, instead of a file."
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output(display_name="model", tooltip="The model with the style."),
        io.Clip.Output(display_name="clip", tooltip="The text encoder with the style."),
        io.String.Output(
            display_name="trigger",
            tooltip="What calls the components that are on; put it at the beginning of the prompt.",
        ),
        io.Hooks.Output(
            display_name="hooks",
            tooltip=(
                "The same as hooks, for conditionings that shall have the style alone: with a mask, or "
                "for some of the steps."
            ),
        ),
    ]


def trigger_of(style: Style, strengths: Mapping[str, float]) -> str:
    """What calls the components whose strength is not 0."""
    return ", ".join(
        prompt for name, prompt in style.prompts.items() if strengths.get(name, 1.0) != 0
    )


def check_fits(style: Style, model: ModelPatcher, clip: comfy.sd.CLIP) -> None:
    """Refuse a style of another base.

    Raises:
        ValueError: a layer of the style is not in the model or in clip, or has another size there.
    """
    shapes = _weight_shapes(model, clip)
    layers = layer_names(style.tensors)
    absent = [layer for layer in layers if layer not in shapes]
    told = f"style {style.name or 'connected'} is for {style.base}, model is {base_name(model)}"
    if absent:
        where = "clip" if is_text(absent[0]) else "model"
        raise ValueError(
            f"{told}: {len(absent)} of {len(layers)} layers are not in {where}, {absent[0]} for one; "
            "load the base that it was trained for"
        )
    for layer in layers:
        own = _own_size(style.tensors, layer)
        if own != shapes[layer]:
            raise ValueError(
                f"{told}: layer {layer} is {own} in the style and {shapes[layer]} in the model; load "
                "the base that it was trained for"
            )


def _weight_shapes(model: ModelPatcher, clip: comfy.sd.CLIP) -> dict[str, tuple[int, int]]:
    """Outer and inner size of every layer that ComfyUI finds for a LoRA, by its names for it."""
    encoder = clip.cond_stage_model
    networks = [
        (model.model, comfy.lora.model_lora_keys_unet(model.model, {})),
        (encoder, comfy.lora.model_lora_keys_clip(encoder, {})),
    ]
    found = {}
    for network, names in networks:
        modules = dict(network.named_modules())
        for name, key in names.items():
            layer = modules.get(str(key).removesuffix(".weight"))
            # core also lists layers that this model lacks, or has as an Identity
            if name.startswith("lora_") and hasattr(layer, "weight"):
                found[name] = _layer_size(layer)
    return found


def _layer_size(layer: Any) -> tuple[int, int]:
    if hasattr(layer, "in_features"):  # quantised weights have another shape
        return layer.out_features, layer.in_features
    return layer.weight.shape[0], layer.weight[0].numel()


def _own_size(tensors: Mapping[str, Tensor], layer: str) -> tuple[int, int]:
    return tensors[layer + UP].shape[0], tensors[layer + DOWN][0].numel()


def _chosen(style_name: str, style: Style | None) -> Style:
    if style_name == CONNECTED:
        if style is None:
            raise ValueError(
                "no style is chosen and none is connected; choose a file in style_name or connect "
                "Train Style"
            )
        return style
    return load_style(Path(folder_paths.get_full_path_or_raise(FOLDER, style_name)), style_name)
