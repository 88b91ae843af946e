"""Nodes that sample with a scale for the text and a scale for the anchor."""

from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...models.anchor.weights import LoadedAdapter
from ...models.common.anchor import AnchorBatch
from ...models.common.guidance import Scales
from ..host.attention import Conditioning, with_extra
from ..host.guiders import Conditionings, ExtraGuider, Schedule, sample_latent
from ..host.types import AnchorSocket
from .inputs import (
    CATEGORY,
    Interval,
    checked_interval,
    extras_of,
    interval_inputs,
    source_inputs,
    steered_model,
)

APART = "text and anchor apart"
JOINT = "joint"


class AnchoredGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaAnchoredGuider",
            display_name="Anchored Guider",
            category=CATEGORY,
            description=(
                "For SamplerCustomAdvanced: follows the prompt with one scale and the composition "
                "anchor with another. Anchored Sampler does the same in one node."
            ),
            search_aliases=[
                "dual cfg",
                "anchor guidance",
                "horizon guidance",
                "three way guidance",
            ],
            inputs=[*source_inputs(), *_scale_inputs(), *interval_inputs(), *_expert_inputs()],
            outputs=[
                io.Guider.Output(
                    display_name="guider", tooltip="For SamplerCustomAdvanced; may serve several."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        adapter: LoadedAdapter,
        anchor: AnchorBatch,
        positive: Conditioning,
        negative: Conditioning,
        text_scale: float = 4.0,
        anchor_scale: float = 4.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        mode: str = APART,
        negative_anchor: AnchorBatch | None = None,
    ) -> io.NodeOutput:
        interval = checked_interval(start_percent, end_percent)
        scales = Scales(text=text_scale, extra=anchor_scale, joint=mode == JOINT)
        steered = steered_model(model, adapter)
        seen = _conditionings(
            adapter, anchor, negative_anchor, positive, negative, scales, interval
        )
        return io.NodeOutput(ExtraGuider(steered, seen, scales, interval))


class AnchoredSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaAnchoredSampler",
            display_name="Anchored Sampler",
            category=CATEGORY,
            description=(
                "KSampler that makes the picture obey a composition anchor: the prompt has one "
                "scale, the anchor another. With anchor_scale 0 it gives KSampler's picture, bit "
                "for bit."
            ),
            search_aliases=["ksampler", "sample", "horizon", "composition", "rule of thirds"],
            inputs=[
                *source_inputs(),
                *_ksampler_inputs(),
                *_scale_inputs(),
                *interval_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "1 makes a new picture; less keeps more of latent_image, its composition too."
                    ),
                ),
                *_expert_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        adapter: LoadedAdapter,
        anchor: AnchorBatch,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        sampler_name: str,
        scheduler: str,
        text_scale: float = 4.0,
        anchor_scale: float = 4.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        denoise: float = 1.0,
        mode: str = APART,
        negative_anchor: AnchorBatch | None = None,
    ) -> io.NodeOutput:
        pictures = latent_image["samples"].shape[0]
        anchor.for_batch(pictures, pictures="latent_image")
        if negative_anchor is not None:
            negative_anchor.for_batch(pictures, "negative_anchor", "latent_image")
        (guider,) = AnchoredGuider.execute(
            model, adapter, anchor, positive, negative, text_scale, anchor_scale, start_percent,
            end_percent, mode, negative_anchor,
        ).args  # fmt: skip
        schedule = Schedule(
            seed=seed, steps=steps, sampler_name=sampler_name, scheduler=scheduler, denoise=denoise
        )
        return io.NodeOutput(sample_latent(guider, latent_image, schedule))


def _conditionings(
    adapter: LoadedAdapter,
    anchor: AnchorBatch,
    negative_anchor: AnchorBatch | None,
    positive: Conditioning,
    negative: Conditioning,
    scales: Scales,
    interval: Interval,
) -> Conditionings:
    away = [None]
    if negative_anchor is not None and (scales.joint or scales.extra != 0):
        away = extras_of(adapter, negative_anchor, interval)
    return Conditionings(
        positive=with_extra(positive, extras_of(adapter, anchor, interval)),
        middle=with_extra(positive, away),
        negative=with_extra(negative, away),
    )


def _ksampler_inputs() -> list[io.Input]:
    return [
        io.Latent.Input(
            "latent_image",
            tooltip="The latent to denoise: an empty one for a new picture. Its mask holds.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of the starting noise; the same seed gives the same picture.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps."),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="euler",
            tooltip="How a step is made, as in KSampler.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default="normal",
            tooltip="How the noise levels are spread over the steps, as in KSampler.",
        ),
    ]


def _scale_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "text_scale",
            default=4.0,
            min=0.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly to follow the prompt: the cfg of plain samplers.",
        ),
        io.Float.Input(
            "anchor_scale",
            default=4.0,
            min=0.0,
            max=20.0,
            step=0.1,
            round=0.01,
            tooltip=(
                "How strongly to follow the anchor; 0 switches it off. Equal to text_scale it costs "
                "no more time than plain sampling, else a third prediction per step."
            ),
        ),
    ]


def _expert_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode",
            options=[APART, JOINT],
            default=APART,
            advanced=True,
            tooltip="joint lets text_scale hold for text and anchor together; anchor_scale is unused.",
        ),
        AnchorSocket.Input(
            "negative_anchor",
            optional=True,
            tooltip=(
                "A composition to keep away from, for instance a centred one: one anchor, or one "
                "per picture. Without effect where anchor_scale switches the anchor off."
            ),
        ),
    ]
