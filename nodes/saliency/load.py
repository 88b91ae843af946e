"""Node that loads a saliency network."""

from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from torch import Tensor

from ...models.saliency.clip_attention import Tower, attention_saliency
from ...models.saliency.spectral import spectral_saliency
from ...models.saliency.weights import load_saliency_network
from ..host.folders import register_folder
from ..host.image_text import layer_states
from ..host.types import SaliencySocket
from .networks import Saliency, check_kind, managed

CATEGORY = "Veduta/Saliency"
FOLDER = "saliency"
SPECTRAL = "spectral residual (needs no file)"
ATTENTION = "attention of clip_vision"

register_folder(FOLDER, {".safetensors", ".pth", ".pt"})


class LoadSaliencyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaLoadSaliencyModel",
            display_name="Load Saliency Model (TranSalNet, UNISAL)",
            category=CATEGORY,
            description=(
                "Chooses what finds where people look in a picture: TranSalNet or UNISAL from "
                "models/saliency, the attention of a CLIP image encoder, or spectral residual, which "
                "needs no file."
            ),
            search_aliases=["gaze prediction", "eye tracking", "attention map", "salience"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=[SPECTRAL, ATTENTION, *folder_paths.get_filename_list(FOLDER)],
                    default=SPECTRAL,
                    tooltip=(
                        "A file in models/saliency as its authors released it; which network it is, is "
                        "read off its weights. Or one of the two that need none."
                    ),
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image encoder whose attention is shown; for that choice only.",
                ),
            ],
            outputs=[
                SaliencySocket.Output(
                    display_name="saliency", tooltip="For Saliency Map and Optimize Latent."
                )
            ],
        )

    @classmethod
    def execute(cls, model_name: str, clip_vision: ClipVisionModel | None = None) -> io.NodeOutput:
        if model_name == SPECTRAL:
            return io.NodeOutput(spectral())
        if model_name == ATTENTION:
            return io.NodeOutput(_attention(clip_vision))
        return io.NodeOutput(_from_file(model_name))

    @classmethod
    def fingerprint_inputs(cls, model_name: str, clip_vision: Any = None) -> list[Any]:
        if model_name in (SPECTRAL, ATTENTION):
            return [model_name]
        stat = _path_of(model_name).stat()
        return [stat.st_mtime_ns, stat.st_size]


def spectral() -> Saliency:
    """What is there without a file."""
    return Saliency(spectral_saliency, name="spectral residual")


def _path_of(model_name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(FOLDER, model_name))


def _from_file(model_name: str) -> Saliency:
    with torch.inference_mode(False):  # so that gradients can go through its weights
        loaded = load_saliency_network(_path_of(model_name), model_name)
    return Saliency(loaded.find, (managed(loaded.network),), loaded.kind)


def _attention(clip_vision: ClipVisionModel | None) -> Saliency:
    if clip_vision is None:
        raise ValueError(
            f"model_name is {ATTENTION!r} and clip_vision is not connected; connect a CLIP image encoder "
            "or choose another model"
        )
    check_kind(clip_vision, "its attention")
    tower = Tower(
        lambda pixels: layer_states(clip_vision, pixels),
        list(clip_vision.model.vision_model.encoder.layers),
        clip_vision.config["num_attention_heads"],
        clip_vision.image_size,
        clip_vision.image_mean,
        clip_vision.image_std,
    )

    def find(image: Tensor) -> Tensor:
        return attention_saliency(tower, image).to(image)

    return Saliency(find, (clip_vision.patcher,), "attention of clip_vision")
