"""Node that measures how alike pictures are, and how well they show a text."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..models.common.images import image_to_bchw, mask_to_b1hw
from ..models.common.metrics import (
    OUTSIDE,
    WHOLE,
    Likeness,
    MissingMetricError,
    kept_to,
    measure_likeness,
    measure_lpips,
    paired,
    regions,
)
from .host.image_text import picture_features, text_features
from .host.vae import through_vae

Cells = list[str]


class ImageMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaImageMetrics",
            display_name="Measure Image Likeness (PSNR, SSIM, LPIPS, CLIP)",
            category="Veduta/Evaluate",
            description=(
                "Measures how close pictures are to their references, inside and outside a mask, and "
                "next to what the VAE alone can reach; with CLIP also how well they show a text."
            ),
            search_aliases=["psnr", "ssim", "lpips", "clip score", "compare images", "metrics"],
            inputs=[
                io.Image.Input("image", tooltip="The pictures to measure: edits, reconstructions."),
                io.Image.Input(
                    "reference",
                    tooltip="What they are compared with, of the same size: one, or one per picture.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 where the picture was allowed to change; measures both sides apart.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Adds the bound: how close the reference comes to itself through this VAE. No "
                        "edit in its latents can be closer."
                    ),
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Adds the CLIP similarity of picture and reference.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "Together with clip_vision and text: the text encoder that was trained with "
                        "this image encoder."
                    ),
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the pictures should show; needs clip and clip_vision.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report", tooltip="Every number as a table, and what is missing."
                ),
                io.Float.Output(
                    display_name="psnr", tooltip="Of the whole picture in dB, mean of the batch."
                ),
                io.Float.Output(
                    display_name="ssim",
                    tooltip="Of the whole picture, 1 at best, mean of the batch.",
                ),
                io.Float.Output(
                    display_name="background_psnr",
                    tooltip="Outside the mask in dB; of the whole picture without a mask.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        reference: Tensor,
        mask: Tensor | None = None,
        vae: comfy.sd.VAE | None = None,
        clip_vision: ClipVisionModel | None = None,
        clip: comfy.sd.CLIP | None = None,
        text: str = "",
    ) -> io.NodeOutput:
        planes = image_to_bchw(image)
        wanted = paired(planes, image_to_bchw(reference, "reference"))
        height, width = planes.shape[-2:]
        inside = None if mask is None else mask_to_b1hw(mask, len(planes), height, width)
        bound = None if vae is None else through_vae(vae, wanted)
        found = measure_likeness(planes, wanted, inside)
        best = None if bound is None else measure_likeness(bound, wanted, inside)
        table = [_header(found, best), *_likeness_lines(found, best)]
        notes = _add(table, _lpips_line, planes, wanted, inside, bound)
        if clip_vision is not None or clip is not None or text.strip():
            judge = Judge(clip_vision, clip, text.strip())
            notes += _add(table, judge.to_reference, planes, wanted, inside, bound)
            notes += _add(table, judge.to_text, planes, wanted, inside, bound)
        whole = found[WHOLE]
        background = found.get(OUTSIDE, whole).psnr
        return io.NodeOutput(
            "\n".join([*_aligned(table), *notes]),
            float(whole.psnr.mean()),
            float(whole.ssim.mean()),
            float(background.nanmean()),
        )


def _header(found: dict[str, Likeness], best: dict[str, Likeness] | None) -> Cells:
    return ["mean of the batch", *found, *(f"VAE bound, {name}" for name in best or {})]


def _likeness_lines(found: dict[str, Likeness], best: dict[str, Likeness] | None) -> list[Cells]:
    columns = [*found.values(), *(best or {}).values()]
    formats = {"psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".4f"), "mse": ("MSE", ".3g")}
    return [
        [name, *(f"{getattr(one, key).nanmean():{form}}" for one in columns)]
        for key, (name, form) in formats.items()
    ]


def _add(table: list[Cells], line: Callable[..., Cells], *pictures: Tensor | None) -> list[str]:
    """Append a metric's line, or hand back a note on why there is none."""
    try:
        table.append(line(*pictures))
    except MissingMetricError as error:
        return [f"{error}."]
    return []


def _sides(
    image: Tensor, reference: Tensor, inside: Tensor | None, fill: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Whole pictures, then each side of the mask with `fill` in place of the other."""
    pairs = [(image, reference)]
    if inside is not None:
        region = regions(image, inside)
        for side in (region, ~region):
            if side.any():
                pairs.append((kept_to(side, image, fill), kept_to(side, reference, fill)))
    return pairs


def _lpips_line(
    image: Tensor, reference: Tensor, inside: Tensor | None, bound: Tensor | None
) -> Cells:
    pairs = _sides(image, reference, inside, reference)
    if bound is not None:
        pairs += _sides(bound, reference, inside, reference)
    return ["LPIPS (alex)", *(f"{score.mean():.4f}" for score in measure_lpips(pairs))]


@dataclass(frozen=True)
class Judge:
    """CLIP similarity: 100 times the cosine. The other side of a mask is black, as in PIE-Bench."""

    clip_vision: ClipVisionModel | None
    clip: comfy.sd.CLIP | None
    text: str

    def to_reference(
        self, image: Tensor, reference: Tensor, inside: Tensor | None, bound: Tensor | None
    ) -> Cells:
        pairs = self._pairs(image, reference, inside, bound)
        scores = [self._cosine(self._seen(x), self._seen(y)) for x, y in pairs]
        return ["CLIP to reference", *scores]

    def to_text(
        self, image: Tensor, reference: Tensor, inside: Tensor | None, bound: Tensor | None
    ) -> Cells:
        pairs = self._pairs(image, reference, inside, bound)
        read = self._read()
        return ["CLIP to text", *(self._cosine(self._seen(x), read) for x, _ in pairs)]

    def _pairs(
        self, image: Tensor, reference: Tensor, inside: Tensor | None, bound: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        black = torch.zeros_like(image)
        pairs = _sides(image, reference, inside, black)
        return pairs if bound is None else pairs + _sides(bound, reference, inside, black)

    def _seen(self, image: Tensor) -> Tensor:
        if self.clip_vision is None:
            raise MissingMetricError("CLIP similarity needs clip_vision")
        return picture_features(self.clip_vision, image)

    def _read(self) -> Tensor:
        if self.clip is None or not self.text:
            raise MissingMetricError("CLIP similarity to text needs clip, clip_vision and text")
        return text_features(self.clip, [self.text])

    def _cosine(self, seen: Tensor, other: Tensor) -> str:
        if seen.shape[-1] != other.shape[-1]:
            raise MissingMetricError(
                f"CLIP similarity to text needs a pair trained together: clip gives width "
                f"{other.shape[-1]}, clip_vision {seen.shape[-1]}"
            )
        return f"{100 * cosine_similarity(seen, other).mean():.2f}"


def _aligned(table: list[Cells]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in table
    ]


NODES: list[type[io.ComfyNode]] = [ImageMetrics]
