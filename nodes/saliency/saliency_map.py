"""Node that finds where people look, and joins it with masks."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import bchw_to_image, image_to_bchw, mask_to_b1hw
from ...models.saliency.heat_map import draw_heat_map
from ...models.saliency.mixing import MEAN, MIXES, Find, FixedMap, Mixture
from ..host.types import SaliencySocket
from .load import CATEGORY, spectral
from .networks import Saliency, kept


class SaliencyMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaSaliencyMap",
            display_name="Saliency Map",
            category=CATEGORY,
            description=(
                "Finds where people look in a picture, as a mask and as a heat map. A saliency model, a "
                "painted mask and a subject mask can be joined. With nothing connected, spectral "
                "residual finds what stands out, without a download."
            ),
            search_aliases=["salience", "heat map", "gaze", "attention map", "region of interest"],
            inputs=[
                io.Image.Input("image", tooltip="Pictures to look at, 16 to 16384 px a side."),
                SaliencySocket.Input(
                    "saliency",
                    optional=True,
                    tooltip=(
                        "From Load Saliency Model, or another Saliency Map to go on from. Without it, and "
                        "without a mask, spectral residual."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Painted by you: white where to look. One, or one per picture; another size is "
                        "resized."
                    ),
                ),
                io.Mask.Input(
                    "subject_mask",
                    optional=True,
                    tooltip="White on the subject, such as from Remove Background.",
                ),
                io.Combo.Input(
                    "combine",
                    options=list(MIXES),
                    default=MEAN,
                    tooltip=(
                        "How several are joined: their mean by weight, the highest of them, or their "
                        "product (only where all agree)."
                    ),
                ),
                _weight_input("saliency_weight", "saliency"),
                _weight_input("mask_weight", "mask"),
                _weight_input("subject_weight", "subject_mask"),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="0..1 of each picture, 1 at its most salient place.",
                ),
                io.Image.Output(
                    display_name="heat_map", tooltip="The map in colours over the grey picture."
                ),
                SaliencySocket.Output(
                    display_name="saliency",
                    tooltip="All of this node as one finder, for Optimize Latent or another map.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        saliency: Saliency | None = None,
        mask: Tensor | None = None,
        subject_mask: Tensor | None = None,
        combine: str = MEAN,
        saliency_weight: float = 1.0,
        mask_weight: float = 1.0,
        subject_weight: float = 1.0,
    ) -> io.NodeOutput:
        planes = image_to_bchw(image)
        masks = {
            "mask": (mask, mask_weight), "subject_mask": (subject_mask, subject_weight),
        }  # fmt: skip
        parts: list[tuple[Find, float]] = [
            (_fixed(given, planes, name), weight)
            for name, (given, weight) in masks.items()
            if given is not None
        ]
        if saliency is None and not parts:
            saliency, saliency_weight = spectral(), 1.0
        if saliency is not None:
            parts.insert(0, (saliency.find, saliency_weight))
        patchers = () if saliency is None else saliency.patchers
        mixed = Saliency(Mixture(tuple(parts), combine), patchers, "saliency map")
        found = mixed.measure(planes)
        heat_map = draw_heat_map(planes.cpu(), found)
        return io.NodeOutput(found[:, 0], bchw_to_image(heat_map), mixed)


def _weight_input(name: str, of: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=0.0,
        max=10.0,
        step=0.05,
        advanced=True,
        tooltip=f"How much {of} counts among what is connected; 0 leaves it out.",
    )


def _fixed(mask: Tensor, planes: Tensor, name: str) -> FixedMap:
    height, width = planes.shape[-2:]
    found = mask_to_b1hw(mask, len(planes), height, width, name)
    if not bool((found.amax((1, 2, 3)) > 0).all()):
        raise ValueError(
            f"{name} is 0 everywhere, some of it has to be white; paint where to look, or disconnect it"
        )
    return FixedMap(kept(lambda: torch.clone(found)))
