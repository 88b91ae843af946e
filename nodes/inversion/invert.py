"""Node that inverts a picture: the encoder of Tight Inversion."""

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.sd
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...models.common.images import bchw_to_image
from ...models.inversion.methods import DEFAULT, METHODS
from ..host.attention import Conditioning
from ..host.image_prompt import ONE_EACH, ImageAdapter, ImagePrompt, apply_image_prompt
from ..host.inputs import picture_inputs
from ..host.samplers import InversionNoise, checked_latent, replay, stock_latent
from ..host.types import InversionSocket
from ..host.vae import decode, encode, padded
from .pictures import checked_pictures, dithered
from .report import describe
from .run import AUTO, Settings, invert_latent, source_guider

CATEGORY = "Veduta/Inversion"
ALL_STATES, END_STATE = KEEPS = ("all states", "end state only")
REBUILT = "reconstruction"
UNCHECKED = "check is off in Invert Picture, so there is no reconstruction; switch it on"


class Invert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaInvert",
            display_name="Invert Picture (Tight Inversion)",
            category=CATEGORY,
            description=(
                "Finds the noise from which the model draws your picture. With an image adapter the "
                "picture itself is part of the prompt, which makes the way back more faithful. Edit "
                "Inversion changes the picture from there; the noise also starts stock samplers."
            ),
            search_aliases=[
                "inversion",
                "unsampler",
                "ddim inversion",
                "image to noise",
                "renoise",
                "rf inversion",
            ],
            inputs=[*_choices(), *_expert_choices(), *_sources(), *_conditions()],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        vae: comfy.sd.VAE,
        method: str = DEFAULT,
        steps: int = 50,
        scheduler: str = AUTO,
        strength: float = 1.0,
        image_weight: float = 0.4,
        iterations: int = 4,
        dither: float = 0.0,
        keep: str = ALL_STATES,
        seed: int = 0,
        check: bool = True,
        image: Tensor | None = None,
        latent: dict[str, Any] | None = None,
        model: ModelPatcher | None = None,
        positive: Conditioning | None = None,
        guider: comfy.samplers.CFGGuider | None = None,
        image_adapter: ImageAdapter | None = None,
        clip_vision: ClipVisionModel | None = None,
    ) -> io.NodeOutput:
        source = _source_of(vae, image, latent, dither, seed)
        if guider is None:
            guider, note = _own_guider(
                model, positive, image_adapter, clip_vision, source.planes, image_weight
            )
        else:
            _refuse_beside_guider(
                model=model, positive=positive, image_adapter=image_adapter, clip_vision=clip_vision
            )
            note = "the guider's"
        settings = Settings(
            method=method, steps=steps, scheduler=scheduler, strength=strength,
            iterations=iterations, seed=seed, keep_states=keep == ALL_STATES,
        )  # fmt: skip
        inversion = invert_latent(guider, source.samples, settings, note, source.size_px)
        rebuilt = replay(guider, inversion) if check else None
        pictures = _pictures(vae, source, rebuilt)
        shown: Any = ExecutionBlocker(UNCHECKED)
        if rebuilt is not None:
            shown = bchw_to_image(pictures[REBUILT])
            rebuilt = guider.model_patcher.model.process_latent_in(rebuilt)
        return io.NodeOutput(
            inversion,
            {"samples": stock_latent(inversion, guider.model_patcher)},
            InversionNoise(inversion, guider.model_patcher),
            shown,
            describe(inversion, pictures, rebuilt),
        )


@dataclass(frozen=True)
class _Source:
    planes: Tensor  # (b 3 h w)
    samples: Tensor  # latent as the VAE gives it
    size_px: tuple[int, int] | None  # None where a latent came in


def _source_of(
    vae: comfy.sd.VAE,
    image: Tensor | None,
    latent: dict[str, Any] | None,
    dither: float,
    seed: int,
) -> _Source:
    if image is not None and latent is not None:
        raise ValueError(
            "both image and latent are connected, one of them is needed; disconnect the latent"
        )
    if latent is not None:
        samples = checked_latent(latent["samples"])
        return _Source(decode(vae, samples, None), samples, None)
    if image is None:
        raise ValueError(
            "neither image nor latent is connected, one of them is needed; connect the image"
        )
    planes = checked_pictures(image)
    height, width = planes.shape[-2:]
    samples = encode(vae, padded(dithered(planes, dither, seed), vae))
    return _Source(planes, samples, (height, width))


def _own_guider(
    model: ModelPatcher | None,
    positive: Conditioning | None,
    image_adapter: ImageAdapter | None,
    clip_vision: ClipVisionModel | None,
    planes: Tensor,
    image_weight: float,
) -> tuple[comfy.samplers.CFGGuider, str]:
    """A guider of text and picture without guidance, and its condition in words."""
    if model is None or positive is None:
        missing = "model" if model is None else "positive"
        raise ValueError(
            f"{missing} is not connected, model and positive are needed where there is no guider; connect "
            "them"
        )
    if image_adapter is None:
        return source_guider(model, positive), "text"
    if clip_vision is None:
        raise ValueError(
            "image_adapter is connected without clip_vision, both are needed; connect the image encoder "
            "that the adapter was trained with"
        )
    settings = ImagePrompt(weight=image_weight, combine=ONE_EACH)
    model, positive, _ = apply_image_prompt(
        model, image_adapter, clip_vision, bchw_to_image(planes), positive, [], settings
    )
    return source_guider(model, positive), f"text, and the picture with weight {image_weight:g}"


def _refuse_beside_guider(**inputs: object) -> None:
    for name, value in inputs.items():
        if value is not None:
            raise ValueError(
                f"{name} is connected beside guider, which brings model and condition of its own; "
                "disconnect one of the two"
            )


def _pictures(vae: comfy.sd.VAE, source: _Source, rebuilt: Tensor | None) -> dict[str, Tensor]:
    pictures = {"source": source.planes}
    if source.size_px is not None:  # else the source has been through the VAE already
        pictures["VAE bound"] = decode(vae, source.samples, source.size_px)
    if rebuilt is not None:
        pictures[REBUILT] = decode(vae, rebuilt, source.size_px)
    return pictures


def _choices() -> list[io.Input]:
    return [
        io.Vae.Input("vae", tooltip="The model's VAE."),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=DEFAULT,
            tooltip=(
                "uni-inv is the best for its calls and any Euler sampler can follow. exact ones rebuild "
                "the picture up to the VAE: stored residual for masked edits, ddpm and ledits++ for free ones. "
                "ddim is the paper's."
            ),
        ),
        io.Int.Input(
            "steps",
            default=50,
            min=1,
            max=1000,
            tooltip="Steps of the way into noise; the way back has as many. Few-step models: 4.",
        ),
        io.Combo.Input(
            "scheduler",
            options=[AUTO, *comfy.samplers.KSampler.SCHEDULERS],
            default=AUTO,
            tooltip=(
                "How the noise levels are spread over the steps. auto takes ddim_uniform, and simple for "
                "flow models such as FLUX and SD3."
            ),
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.05,
            max=1.0,
            step=0.01,
            tooltip=(
                "How far into noise: 1 all the way, which lets an edit change everything; less keeps "
                "the layout whatever the edit."
            ),
        ),
        io.Float.Input(
            "image_weight",
            default=0.4,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip=(
                "How much the picture itself is part of the prompt; needs image_adapter. More rebuilds "
                "better and resists edits. The edit has a weight of its own."
            ),
        ),
    ]


def _expert_choices() -> list[io.Input]:
    return [
        io.Int.Input(
            "iterations",
            default=4,
            min=1,
            max=20,
            advanced=True,
            tooltip="Of the method fixed point: at most so many refinements of each step, a call each.",
        ),
        io.Float.Input(
            "dither",
            default=0.0,
            min=0.0,
            max=0.25,
            step=0.001,
            round=0.0001,
            advanced=True,
            tooltip=(
                "Spread of normal noise added to the picture before encoding. Very smooth pictures "
                "invert badly; 0.0686 (17.5 of 255 grey levels) helps them."
            ),
        ),
        io.Combo.Input(
            "keep",
            options=list(KEEPS),
            default=ALL_STATES,
            advanced=True,
            tooltip="Masked edits need all states. The end state only saves memory, for videos above all.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            advanced=True,
            tooltip="Of dither and of the noise that ddpm, ledits++ and rf-inversion draw; others draw none.",
        ),
        io.Boolean.Input(
            "check",
            default=True,
            advanced=True,
            tooltip="Walk back and measure. Off saves that time; there is no reconstruction then.",
        ),
    ]


def _sources() -> list[io.Input]:
    return [
        io.Image.Input(
            "image",
            optional=True,
            tooltip=(
                "The picture, or several. Any size from 16 to 3072 px: it is padded to the model's grid, "
                "never cropped, and given back in its own size."
            ),
        ),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="Instead of image: an encoded picture. Its mask is ignored.",
        ),
    ]


def _conditions() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            optional=True,
            tooltip="The model that is to draw the picture. It stays as it is.",
        ),
        io.Conditioning.Input(
            "positive",
            optional=True,
            tooltip="What the picture shows, in words; an empty prompt will do. No guidance is applied.",
        ),
        io.Guider.Input(
            "guider",
            optional=True,
            tooltip=(
                "Instead of model and positive: any guider, with Redux, ReferenceLatent, ControlNet tile "
                "or another tight condition in it. Set its cfg to 1."
            ),
        ),
        *picture_inputs("Makes the picture itself part of the prompt."),
    ]


def _outputs() -> list[io.Output]:
    return [
        InversionSocket.Output(
            display_name="inversion",
            tooltip="For Edit Inversion, and to save. It holds the whole way.",
        ),
        io.Latent.Output(
            display_name="latent",
            tooltip=(
                "The noisy end, for KSampler (Advanced) with add_noise off and the same steps and scheduler. "
                "A flow model at strength 1 needs noise instead."
            ),
        ),
        io.Noise.Output(
            display_name="noise",
            tooltip="For SamplerCustomAdvanced with an empty latent of the picture's size.",
        ),
        io.Image.Output(
            display_name="reconstruction", tooltip="The picture as the way back rebuilds it."
        ),
        io.String.Output(
            display_name="report",
            tooltip=(
                "PSNR and SSIM next to what the VAE alone costs, latent error, how noise-like the end is, "
                "and the calls used."
            ),
        ),
    ]
