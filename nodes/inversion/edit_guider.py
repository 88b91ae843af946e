"""Nodes that make an edit's guider for custom sampling, and its concepts."""

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import mask_to_b1hw
from ...models.inversion.editing.concepts import ConceptRule
from ...models.inversion.trajectory import Inversion
from ..host.attention import Conditioning
from ..host.image_prompt import ZERO_PIXELS, ImageAdapter
from ..host.inputs import interval_inputs
from .edit_plan import (
    CATEGORY,
    NEGATIVE,
    ConceptsSocket,
    Edit,
    expert_inputs,
    guidance_of,
    image_condition,
    main_inputs,
    prompt_inputs,
)
from .guider import Concept


class MakeEditGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaEditGuider",
            display_name="Edit Guider (Tight Inversion)",
            category=CATEGORY,
            description=(
                "For SamplerCustomAdvanced with the noise and the empty latent of Invert Picture: follows "
                "the edit's prompt, and the picture beside it. Edit Inversion does it in one node, with "
                "masks."
            ),
            search_aliases=[
                "edit inversion",
                "guider",
                "negative prompt inversion",
                "cfg++",
                "ledits",
            ],
            inputs=[
                *main_inputs(),
                *expert_inputs(),
                *prompt_inputs("The picture for image_adapter, the source as a rule."),
            ],
            outputs=[
                io.Guider.Output(
                    display_name="guider", tooltip="For SamplerCustomAdvanced; may serve several."
                ),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The inversion's own noise levels, which the way back has to take.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        inversion: Inversion,
        negative: Conditioning,
        text_scale: float = 7.5,
        image_weight: float = 0.4,
        share_attention: float = 0.0,
        image_scale: float = 0.0,
        uncond: str = ZERO_PIXELS,
        negative_from: str = NEGATIVE,
        sharpening: float = 1.0,
        threshold: float = 0.0,
        cfg_plus_plus: bool = False,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        positive: Conditioning | None = None,
        source: Conditioning | None = None,
        concepts: tuple[Concept, ...] = (),
        image_adapter: ImageAdapter | None = None,
        clip_vision: ClipVisionModel | None = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        picture = image_condition(image_adapter, clip_vision, image, image_weight, uncond)
        guidance = guidance_of(
            text_scale, image_scale, picture is not None, start_percent, end_percent, sharpening,
            threshold, cfg_plus_plus, share_attention,
        )  # fmt: skip
        edit = Edit(
            model=model, inversion=inversion, positive=positive, negative=negative,
            guidance=guidance, source=source, concepts=concepts, picture=picture,
            negative_from=negative_from,
        )  # fmt: skip
        return io.NodeOutput(edit.guider(), torch.tensor(inversion.sigmas))


class EditConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaEditConcept",
            display_name="Edit Concept (LEDITS++)",
            category=CATEGORY,
            description=(
                "One thing to add to a picture or to remove from it, with a strength and a place of its "
                "own. Chain several; Edit Inversion and Edit Guider take them."
            ),
            search_aliases=["ledits", "semantic guidance", "sega", "add object", "remove object"],
            inputs=[
                io.Conditioning.Input("prompt", tooltip="The concept by itself: 'sunglasses'."),
                io.Float.Input(
                    "weight",
                    default=5.0,
                    min=-20.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How strongly it is added; below 0 it is removed, 0 is off.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.9,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip=(
                        "Share of the picture that it leaves alone: 0.9 changes the tenth where it matters "
                        "most, 0 all of it."
                    ),
                ),
                *interval_inputs(
                    "Share of the steps before which it waits; later keeps the layout more.",
                    "Share of the steps after which it rests.",
                    start=0.1,
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where it may act, stretched over the picture: one, or one per picture.",
                ),
                ConceptsSocket.Input(
                    "append_to", optional=True, tooltip="Concepts to put before this one."
                ),
            ],
            outputs=[
                ConceptsSocket.Output(
                    display_name="concepts", tooltip="append_to's concepts, and this one."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        prompt: Conditioning,
        weight: float = 5.0,
        threshold: float = 0.9,
        start_percent: float = 0.1,
        end_percent: float = 1.0,
        mask: Tensor | None = None,
        append_to: tuple[Concept, ...] = (),
    ) -> io.NodeOutput:
        rule = ConceptRule(
            weight=weight,
            threshold=threshold,
            start_percent=start_percent,
            end_percent=end_percent,
        )
        plane = None
        if mask is not None:
            height, width = mask.shape[-2:]
            plane = mask_to_b1hw(mask, len(mask), height, width)
        return io.NodeOutput((*append_to, Concept(conditioning=prompt, rule=rule, mask=plane)))
