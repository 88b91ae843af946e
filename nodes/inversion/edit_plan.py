"""What the edit nodes have in common: inputs, and the guider made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.common.guidance import Scales
from ...models.inversion.editing.guidance import Shaping
from ...models.inversion.editing.masks import GatheredPlaces
from ...models.inversion.stored_residual import StoredResidual
from ...models.inversion.trajectory import Inversion
from ..host.attention import Conditioning, with_extra
from ..host.guiders import Conditionings
from ..host.image_prompt import (
    ONE_EACH,
    ZERO_PIXELS,
    ImageAdapter,
    ImagePrompt,
    apply_image_prompt,
)
from ..host.inputs import interval_inputs, picture_inputs, uncond_input
from ..host.types import InversionSocket
from .guider import Concept, EditGuider, Guidance, Prompts

CATEGORY = "Veduta/Inversion"
ConceptsSocket = io.Custom("VEDUTA_EDIT_CONCEPTS")  # carries tuple[guider.Concept, ...]
NEGATIVE, NEGATIVE_SOURCE = NEGATIVES = ("negative", "source")


@dataclass(frozen=True, kw_only=True)
class ImageCondition:
    """A picture that is part of the edit's prompt."""

    adapter: ImageAdapter
    clip_vision: ClipVisionModel
    image: Tensor  # (b h w c)
    weight: float
    uncond: str = ZERO_PIXELS


@dataclass(frozen=True, kw_only=True)
class Edit:
    """All that an edit follows.

    Args:
        model: left unmodified.
        inversion: of the source.
        positive: the edit's prompt; None keeps the source's and guides by concepts alone.
        negative: what to keep away from.
        guidance: how strongly.
        source: the prompt of the inversion.
        concepts: to add and to remove.
        picture: part of the prompt.
        negative_from: of NEGATIVES: which prompt the edit is led away from.
    """

    model: ModelPatcher
    inversion: Inversion
    positive: Conditioning | None
    negative: Conditioning
    guidance: Guidance
    source: Conditioning | None = None
    concepts: Sequence[Concept] = ()
    picture: ImageCondition | None = None
    negative_from: str = NEGATIVE

    def __post_init__(self) -> None:
        if self.positive is None and self.source is None:
            raise ValueError(
                "neither positive nor source is connected, one prompt is needed; connect the edit's as "
                "positive, or the inversion's as source to rebuild the picture"
            )
        if self.negative_from == NEGATIVE_SOURCE and self.source is None:
            raise ValueError(
                "negative_from is source and source is not connected; connect the prompt of the "
                "inversion, or set negative_from to negative"
            )

    @property
    def rebuilds(self) -> bool:
        """Whether nothing is to change."""
        return self.positive is None and not self.concepts

    @property
    def path(self) -> Inversion:
        """What to walk down: stored residuals belong to the source alone, edits leave them out."""
        if self.inversion.method == StoredResidual.name and not self.rebuilds:
            return replace(self.inversion, maps=None)
        return self.inversion

    def with_weight(self, weight: float) -> "Edit":
        """The same edit with another weight of the picture."""
        assert self.picture is not None
        return replace(self, picture=replace(self.picture, weight=weight))

    def guider(self, places: GatheredPlaces | None = None) -> EditGuider:
        """The guider; `places` as there."""
        positive = self.source if self.positive is None else self.positive
        negative = self.source if self.negative_from == NEGATIVE_SOURCE else self.negative
        assert positive is not None and negative is not None
        guidance = self.guidance
        if self.positive is None:
            guidance = replace(guidance, scales=Scales(text=1.0, joint=True))
        model, shown, unshown = self._conditioned(
            [positive, self.source or []], [negative, *(one.conditioning for one in self.concepts)]
        )
        middle = shown[0] if self.picture is None else with_extra(positive, [None])
        prompts = Prompts(
            seen=Conditionings(positive=shown[0], middle=middle, negative=unshown[0]),
            source=shown[1] or None,
            concepts=[
                replace(one, conditioning=seen)
                for one, seen in zip(self.concepts, unshown[1:], strict=True)
            ],
        )
        return EditGuider(model, self.path, prompts, guidance, places)

    def _conditioned(
        self, shown: list[Conditioning], unshown: list[Conditioning]
    ) -> tuple[ModelPatcher, list[Conditioning], list[Conditioning]]:
        """Prompts that see the picture, and prompts that see what the negative sees."""
        picture = self.picture
        if picture is None:
            return self.model, shown, unshown
        settings = ImagePrompt(weight=picture.weight, uncond=picture.uncond, combine=ONE_EACH)
        model, positive, negative = apply_image_prompt(
            self.model, picture.adapter, picture.clip_vision, picture.image,
            list(chain(*shown)), list(chain(*unshown)), settings,
        )  # fmt: skip
        return model, _split(positive, shown), _split(negative, unshown)


def _split(entries: Conditioning, like: Sequence[Conditioning]) -> list[Conditioning]:
    parts, start = [], 0
    for one in like:
        parts.append(entries[start : start + len(one)])
        start += len(one)
    return parts


def image_condition(
    adapter: ImageAdapter | None,
    clip_vision: ClipVisionModel | None,
    image: Tensor | None,
    weight: float,
    uncond: str,
) -> ImageCondition | None:
    """The picture as part of the prompt, if an adapter is connected.

    Raises:
        ValueError: the adapter's encoder or the picture is missing.
    """
    if adapter is None:
        return None
    for name, value in {"clip_vision": clip_vision, "image": image}.items():
        if value is None:
            raise ValueError(
                f"image_adapter is connected and {name} is not, both are needed; connect {name}, or "
                "disconnect image_adapter"
            )
    assert clip_vision is not None and image is not None
    return ImageCondition(
        adapter=adapter, clip_vision=clip_vision, image=image, weight=weight, uncond=uncond
    )


def guidance_of(
    text_scale: float,
    image_scale: float,
    has_picture: bool,
    start_percent: float,
    end_percent: float,
    sharpening: float,
    threshold: float,
    cfg_plus_plus: bool,
    share_attention: float,
) -> Guidance:
    """The guidance of an edit's widgets; image_scale 0 is one scale for both."""
    joint = image_scale == 0 or not has_picture
    return Guidance(
        scales=Scales(text=text_scale, extra=image_scale, joint=joint),
        interval=(start_percent, end_percent),
        shaping=Shaping(power=sharpening, threshold=threshold),
        cfg_plus_plus=cfg_plus_plus,
        share_attention=share_attention,
    )


def main_inputs() -> list[io.Input]:
    """What every edit takes."""
    return [
        io.Model.Input(
            "model", tooltip="The model that inverted, LoRAs included. It stays as it is."
        ),
        InversionSocket.Input("inversion", tooltip="From Invert Picture or Load Inversion."),
        io.Conditioning.Input(
            "negative", tooltip="What to keep away from; an empty prompt will do."
        ),
        io.Float.Input(
            "text_scale",
            default=7.5,
            min=0.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip=(
                "How strongly to follow the edit's prompt: the cfg of plain samplers. Less keeps more of "
                "the picture; 1 with the source's prompt rebuilds it."
            ),
        ),
        io.Float.Input(
            "image_weight",
            default=0.4,
            min=0.0,
            max=3.0,
            step=0.05,
            tooltip=(
                "How much the picture is part of the edit's prompt; needs image_adapter. More keeps the "
                "picture and resists the edit. The inversion has a weight of its own."
            ),
        ),
        io.Float.Input(
            "share_attention",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip=(
                "Share of the steps in which the edit looks where its source looked, which keeps shapes "
                "(prompt-to-prompt). Needs source and a UNet; a call more per step. 0.4 to 0.8."
            ),
        ),
    ]


def expert_inputs() -> list[io.Input]:
    """How the prompts act, for those who know."""
    return [
        io.Float.Input(
            "image_scale",
            default=0.0,
            min=0.0,
            max=20.0,
            step=0.1,
            round=0.01,
            advanced=True,
            tooltip=(
                "A scale of its own for the picture, at a prediction more per step. 0: text_scale serves "
                "both, as in the paper."
            ),
        ),
        uncond_input(
            "What the negative sees of the picture. zero pixels: text_scale strengthens text and picture; "
            "same picture in both: the text alone."
        ),
        io.Combo.Input(
            "negative_from",
            options=list(NEGATIVES),
            default=NEGATIVE,
            advanced=True,
            tooltip=(
                "source leads away from the inversion's own prompt (negative-prompt inversion): what both "
                "prompts share stays."
            ),
        ),
        io.Float.Input(
            "sharpening",
            default=1.0,
            min=1.0,
            max=4.0,
            step=0.05,
            advanced=True,
            tooltip="Above 1 the guidance keeps to the places where it is strong; 1 is plain cfg.",
        ),
        io.Float.Input(
            "threshold",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            advanced=True,
            tooltip="Share of the guidance that is dropped, the weakest first; 0.7 is usual, 0 is off.",
        ),
        io.Boolean.Input(
            "cfg_plus_plus",
            default=False,
            advanced=True,
            tooltip="CFG++: text_scale then counts from 0 to 1; 0.6 is usual. For Euler ways down.",
        ),
        *interval_inputs(
            "Share of the steps from which on the scales hold; before it they are 1.",
            "Share of the steps until which the scales hold; after it they are 1.",
        ),
    ]


def prompt_inputs(image_tooltip: str) -> list[io.Input]:
    """Sockets that may stay empty."""
    return [
        io.Conditioning.Input(
            "positive",
            optional=True,
            tooltip="What the edited picture shows. Left empty, source is used, without guidance.",
        ),
        io.Conditioning.Input(
            "source",
            optional=True,
            tooltip="The prompt of the inversion, for what compares the edit with its source.",
        ),
        ConceptsSocket.Input(
            "concepts",
            optional=True,
            tooltip="From Edit Concept: what to add and to remove besides.",
        ),
        *picture_inputs("Makes the picture part of the edit's prompt."),
        io.Image.Input("image", optional=True, tooltip=image_tooltip),
    ]
