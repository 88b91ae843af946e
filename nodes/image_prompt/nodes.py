"""Nodes that load an IP-Adapter, and that put a picture into conditionings."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.common.image_adapter import ALL, PRESETS
from ..host.attention import Conditioning
from ..host.folders import register_folder
from ..host.image_prompt import (
    COMBINES,
    FITS,
    JOINED,
    PADDED,
    ZERO_PIXELS,
    ImageAdapter,
    ImagePrompt,
    apply_image_prompt,
    open_image_adapter,
)
from ..host.inputs import interval_inputs, uncond_input
from ..host.types import ImageAdapterSocket

CATEGORY = "Veduta/Inversion"
FOLDER = "ipadapter"  # as other packs name it
MINIATURE = "miniature (comes with the pack)"
MINIATURE_FILE = (
    Path(__file__).resolve().parents[2] / "mini" / "weights" / "image_prompt.safetensors"
)
CURVES = {"constant": (1.0, 1.0), "falling": (1.0, 0.0), "rising": (0.0, 1.0)}
CONSTANT = next(iter(CURVES))

register_folder(FOLDER, {".safetensors", ".bin"})


class LoadImageAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaLoadImageAdapter",
            display_name="Load Image Adapter (IP-Adapter)",
            category=CATEGORY,
            description=(
                "Loads an IP-Adapter, the small network that lets a model take a picture as a prompt: "
                "base, plus, plus-face and full-face for SD1.5 and SDXL. The miniature's comes with "
                "the pack, others lie in models/ipadapter."
            ),
            search_aliases=["ipadapter", "ip-adapter", "image prompt adapter", "style reference"],
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=[MINIATURE, *folder_paths.get_filename_list(FOLDER)],
                    default=MINIATURE,
                    tooltip=(
                        "A .safetensors or .bin file in models/ipadapter; its kind and base are read "
                        "off its weights."
                    ),
                )
            ],
            outputs=[
                ImageAdapterSocket.Output(
                    display_name="adapter", tooltip="For Apply Image Adapter and Invert."
                )
            ],
        )

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        return io.NodeOutput(open_image_adapter(_path_of(adapter_name)))

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str) -> list[Any]:
        stat = _path_of(adapter_name).stat()
        return [stat.st_mtime_ns, stat.st_size]


def _path_of(adapter_name: str) -> Path:
    if adapter_name == MINIATURE:
        return MINIATURE_FILE
    return Path(folder_paths.get_full_path_or_raise(FOLDER, adapter_name))


class ApplyImageAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaApplyImageAdapter",
            display_name="Apply Image Adapter (IP-Adapter)",
            category=CATEGORY,
            description=(
                "Lets a model take a picture as a prompt beside the text, with any sampler. Several "
                "of these nodes in a row add up, and branches of a workflow never disturb each other."
            ),
            search_aliases=["ipadapter", "image prompt", "apply ip-adapter", "reference picture"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base that the adapter was trained for. The model itself stays as it is.",
                ),
                ImageAdapterSocket.Input("adapter", tooltip="From Load Image Adapter."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip=(
                        "The image encoder that the adapter was trained with: ViT-H for most, the "
                        "miniature's for the miniature. From Load CLIP Vision."
                    ),
                ),
                io.Image.Input("image", tooltip="The picture, or several of them as a batch."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the picture shows. Areas, masks and schedules are kept.",
                ),
                io.Conditioning.Input("negative", tooltip="What to keep away from."),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip=(
                        "0 is off and changes nothing, 1 as trained. 0.4 to 0.8 leaves the prompt "
                        "more to say."
                    ),
                ),
                *interval_inputs(
                    "Share of the sampling from which on the picture acts; 0 is the first step.",
                    "Share of the sampling until which the picture acts.",
                    advanced=False,
                ),
                io.Combo.Input(
                    "layers",
                    options=list(PRESETS),
                    default=ALL,
                    advanced=True,
                    tooltip=(
                        "all as trained; style takes palette and brush from the picture, composition "
                        "where things are; content is all but style."
                    ),
                ),
                uncond_input(
                    "What the negative sees. zero pixels: cfg strengthens text and picture; same picture "
                    "in both: cfg strengthens the text alone."
                ),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINES),
                    default=JOINED,
                    advanced=True,
                    tooltip=(
                        "What several pictures are: all at once, their average, or one for each "
                        "picture of the latent batch."
                    ),
                ),
                io.Combo.Input(
                    "weight_curve",
                    options=list(CURVES),
                    default=CONSTANT,
                    advanced=True,
                    tooltip=(
                        "How weight changes from start_percent to end_percent: constant, falling to "
                        "0, or rising from 0."
                    ),
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=PADDED,
                    advanced=True,
                    tooltip=(
                        "What becomes of a picture that is not square: padded it is seen whole, "
                        "cropped only its middle."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Where the picture acts: 1 there, 0 elsewhere, soft edges are fine. It is "
                        "stretched over the frame. One, or one per picture of the latent batch."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="Use it with both conditionings; it heeds them."
                ),
                io.Conditioning.Output(
                    display_name="positive", tooltip="positive that sees the picture."
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="negative that sees what uncond says."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        adapter: ImageAdapter,
        clip_vision: ClipVisionModel,
        image: Tensor,
        positive: Conditioning,
        negative: Conditioning,
        weight: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        layers: str = ALL,
        uncond: str = ZERO_PIXELS,
        combine: str = JOINED,
        weight_curve: str = CONSTANT,
        fit: str = PADDED,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        settings = ImagePrompt(
            weight=weight,
            start_percent=start_percent,
            end_percent=end_percent,
            curve=CURVES[weight_curve],
            layers=layers,
            uncond=uncond,
            combine=combine,
            fit=fit,
            mask=mask,
        )
        return io.NodeOutput(
            *apply_image_prompt(model, adapter, clip_vision, image, positive, negative, settings)
        )
