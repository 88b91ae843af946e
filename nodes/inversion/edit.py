"""Node that edits a picture from its inversion."""

from dataclasses import dataclass
from typing import Any

import comfy.sd
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import bchw_to_image
from ...models.common.metrics import OUTSIDE, WHOLE, Likeness, measure_likeness
from ...models.inversion.editing.masks import GatheredPlaces
from ...models.inversion.editing.tune import least_reaching
from ...models.inversion.trajectory import Inversion
from ..host.attention import Conditioning
from ..host.image_prompt import ZERO_PIXELS, ImageAdapter
from ..host.samplers import check_inverted_by, replay
from ..host.vae import decode
from .edit_plan import (
    CATEGORY,
    NEGATIVE,
    Edit,
    expert_inputs,
    guidance_of,
    image_condition,
    main_inputs,
    prompt_inputs,
)
from .edit_region import BLEND, KEEPS, PIXELS, SOFTS, Region, checked_mask
from .guider import Concept
from .pictures import checked_pictures

MAX_WEIGHT = 1.5  # of the picture where it is searched for; beyond it pictures burn


class EditInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaEdit",
            display_name="Edit Inversion (Tight Inversion)",
            category=CATEGORY,
            description=(
                "Changes an inverted picture by a prompt, and keeps the rest: by the picture as part of "
                "the prompt, by a mask, by the source's attention. Without positive it rebuilds the "
                "picture."
            ),
            search_aliases=[
                "edit image",
                "prompt to prompt",
                "real image editing",
                "ledits",
                "masked edit",
                "inpaint",
            ],
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE."),
                *main_inputs(),
                *_region_choices(),
                *expert_inputs(),
                *_expert_choices(),
                *prompt_inputs(
                    "The source picture, in the size that was inverted. Without it the VAE's version of "
                    "it is what image_adapter sees and what is kept outside."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 where the picture may change, in its proportions: one, or one per picture.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The edit before decoding."),
                io.Image.Output(
                    display_name="image", tooltip="The edit, in the size of the source picture."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How close it is to the source, outside the mask too, and what was used.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        vae: comfy.sd.VAE,
        model: ModelPatcher,
        inversion: Inversion,
        negative: Conditioning,
        text_scale: float = 7.5,
        image_weight: float = 0.4,
        share_attention: float = 0.0,
        keep_outside: str = PIXELS,
        auto_mask: float = 0.0,
        image_scale: float = 0.0,
        uncond: str = ZERO_PIXELS,
        negative_from: str = NEGATIVE,
        sharpening: float = 1.0,
        threshold: float = 0.0,
        cfg_plus_plus: bool = False,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        soft_mask: str = BLEND,
        feather_px: int = 4,
        wanted_psnr: float = 0.0,
        positive: Conditioning | None = None,
        source: Conditioning | None = None,
        concepts: tuple[Concept, ...] = (),
        image_adapter: ImageAdapter | None = None,
        clip_vision: ClipVisionModel | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        check_inverted_by(inversion, model)
        inversion = inversion.for_batch(max(_targets(positive), len(inversion.clean)))
        planes = _source_planes(vae, model, inversion, image)
        picture = image_condition(
            image_adapter, clip_vision, bchw_to_image(planes), image_weight, uncond
        )
        guidance = guidance_of(
            text_scale, image_scale, picture is not None, start_percent, end_percent, sharpening,
            threshold, cfg_plus_plus, share_attention,
        )  # fmt: skip
        edit = Edit(
            model=model, inversion=inversion, positive=positive, negative=negative,
            guidance=guidance, source=source, concepts=concepts, picture=picture,
            negative_from=negative_from,
        )  # fmt: skip
        run = EditRun(
            vae=vae, source=planes, mask=_mask_for(mask, planes, inversion), auto_mask=auto_mask,
            keep=keep_outside, soft=soft_mask, feather_px=feather_px,
        )  # fmt: skip
        if wanted_psnr > 0:
            edited, note = _tuned(run, edit, wanted_psnr)
        else:
            edited, note = run(edit), _note(picture and picture.weight)
        return io.NodeOutput(
            {"samples": edited.latent},
            bchw_to_image(edited.composite),
            _report(inversion, edited, planes, note),
        )


@dataclass(frozen=True, kw_only=True)
class Edited:
    """What came of an edit.

    Args:
        latent: (b c ...) as a VAE takes it.
        planes: (b 3 h w) decoded.
        composite: (b 3 h w) with the source's pixels outside, if that is wanted.
        region: (b 1 h w) where it might change; None is everywhere.
    """

    latent: Tensor
    planes: Tensor
    composite: Tensor
    region: Tensor | None


@dataclass(frozen=True, kw_only=True)
class EditRun:
    """Walks edits down and decodes them.

    Args:
        vae: of the model.
        source: (b 3 h w) pictures that were inverted.
        mask: (b 1 h w), 1 where they may change; None is everywhere.
        auto_mask: share of the picture that stays, found by where edit and source differ; 0 is off.
        keep: as in `Region`.
        soft: as in `Region`.
        feather_px: as in `Region`.
    """

    vae: comfy.sd.VAE
    source: Tensor
    mask: Tensor | None = None
    auto_mask: float = 0.0
    keep: str = PIXELS
    soft: str = BLEND
    feather_px: int = 4

    def __call__(self, edit: Edit) -> Edited:
        """Walk one edit down."""
        compression: Any = self.vae.spacial_compression_encode()
        px = int(compression)
        region = Region(
            mask=self.mask,
            places=GatheredPlaces(self.auto_mask) if self.auto_mask > 0 else None,
            keep=self.keep,
            soft=self.soft,
            feather_px=self.feather_px,
        )
        after_step = region.after_step(edit.inversion, px)
        latent = replay(edit.guider(region.places), edit.path, after_step)
        planes = decode(self.vae, latent, edit.inversion.source.size_px).to(self.source)
        return Edited(
            latent=latent,
            planes=planes,
            composite=region.composite(planes, self.source, px),
            region=region.in_pixels(planes.shape[-2], planes.shape[-1], px),
        )


def _targets(positive: Conditioning | None) -> int:
    return max((len(tensor) for tensor, _ in positive or []), default=1)


def _source_planes(
    vae: comfy.sd.VAE, model: ModelPatcher, inversion: Inversion, image: Tensor | None
) -> Tensor:
    """The pictures that were inverted: one for each edit, of a video one for each frame."""
    size_px, is_video = inversion.source.size_px, inversion.clean.ndim > 4

    def decoded() -> Tensor:
        return decode(vae, model.model.process_latent_out(inversion.clean), size_px)

    if image is None:
        return decoded()
    planes = checked_pictures(image)
    count = len(decoded()) if is_video else len(inversion.clean)
    height, width = size_px or planes.shape[-2:]
    if planes.shape[-2:] != (height, width):
        raise ValueError(
            f"image is {planes.shape[-1]} x {planes.shape[-2]} px, the inverted picture is {width} x "
            f"{height} px; connect the picture that was inverted"
        )
    if len(planes) not in (1, count):
        raise ValueError(
            f"image holds {len(planes)} pictures, inversion holds {count}; connect those that were inverted"
        )
    return planes.expand(count, -1, -1, -1)


def _mask_for(mask: Tensor | None, planes: Tensor, inversion: Inversion) -> Tensor | None:
    if mask is None:
        return None
    checked = checked_mask(mask, len(planes), *planes.shape[-2:])
    if inversion.clean.ndim > 4 and len(checked) > 1:
        raise ValueError(
            f"mask holds {len(checked)} masks and inversion a video, one for all of its frames is needed; "
            "pass one mask"
        )
    return checked


def _tuned(run: EditRun, edit: Edit, wanted: float) -> tuple[Edited, str]:
    """The edit with the least weight of the picture that keeps the background well enough."""
    if edit.picture is None:
        raise ValueError(
            f"wanted_psnr is {wanted:g} and image_adapter is not connected, its weight is what is "
            "searched for; connect it, or set wanted_psnr to 0"
        )
    tried: dict[float, Edited] = {}

    def background(weight: float) -> float:
        tried[weight] = run(edit.with_weight(weight))
        found = measure_likeness(tried[weight].planes, run.source, run.mask)
        return float(found.get(OUTSIDE, found[WHOLE]).psnr.min())

    weight, reached = least_reaching(background, wanted, 0.0, MAX_WEIGHT)
    told = "reaches" if reached >= wanted else "is the most, and reaches"
    return tried[weight], (
        f"image_weight {weight:.3g} {told} {reached:.2f} dB in the background, {wanted:g} dB were wanted"
    )


def _note(weight: float | None) -> str:
    return "no picture in the prompt" if weight is None else f"image_weight {weight:g}"


def _report(inversion: Inversion, edited: Edited, source: Tensor, note: str) -> str:
    found = measure_likeness(edited.composite, source, edited.region)
    lines = [f"{inversion.method}, {inversion.steps} steps; {note}", "against the source:"]
    return "\n".join([*lines, *(_line(name, one) for name, one in found.items())])


def _line(name: str, found: Likeness) -> str:
    return f"  {name:8} PSNR {found.psnr.nanmean():.2f} dB, SSIM {found.ssim.nanmean():.4f}"


def _region_choices() -> list[io.Input]:
    return [
        io.Combo.Input(
            "keep_outside",
            options=list(KEEPS),
            default=PIXELS,
            tooltip=(
                "What is restored outside mask and auto_mask: the source's states while sampling, and its "
                "pixels at the end. off: the mask only measures."
            ),
        ),
        io.Float.Input(
            "auto_mask",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            tooltip=(
                "Share of the picture that stays, where edit and source prompt differ least. Needs "
                "source; a prediction more per step. 0 is off."
            ),
        ),
    ]


def _expert_choices() -> list[io.Input]:
    return [
        io.Combo.Input(
            "soft_mask",
            options=list(SOFTS),
            default=BLEND,
            advanced=True,
            tooltip=(
                "What grey in the mask means: a mixture, or by step: 0.25 may change in the last quarter "
                "of the steps only, so its layout stays."
            ),
        ),
        io.Int.Input(
            "feather_px",
            default=4,
            min=0,
            max=256,
            advanced=True,
            tooltip="Over which edit and source mix at the mask's edge, inside of it.",
        ),
        io.Float.Input(
            "wanted_psnr",
            default=0.0,
            min=0.0,
            max=60.0,
            step=0.5,
            advanced=True,
            tooltip=(
                "Above 0: searches the least image_weight with which the background (the whole picture "
                "without a mask) keeps so many dB; eight edits. For keep_outside off."
            ),
        ),
    ]
