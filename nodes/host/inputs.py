"""Inputs that several nodes declare alike."""

from typing import Any

from comfy_api.latest import io

from .image_prompt import UNCONDS, ZERO_PIXELS
from .types import ImageAdapterSocket


def interval_inputs(
    start_tooltip: str, end_tooltip: str, *, start: float = 0.0, advanced: bool = True
) -> list[io.Input]:
    """start_percent and end_percent: shares of the sampling."""
    alike: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.01}
    if advanced:
        alike["advanced"] = True
    return [
        io.Float.Input("start_percent", default=start, tooltip=start_tooltip, **alike),
        io.Float.Input("end_percent", default=1.0, tooltip=end_tooltip, **alike),
    ]


def picture_inputs(tooltip: str) -> list[io.Input]:
    """image_adapter and clip_vision, which make a picture part of a prompt; both may stay empty."""
    return [
        ImageAdapterSocket.Input("image_adapter", optional=True, tooltip=tooltip),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="The image encoder that image_adapter was trained with.",
        ),
    ]


def uncond_input(tooltip: str) -> io.Input:
    """uncond: what the negative sees of a picture."""
    return io.Combo.Input(
        "uncond", options=list(UNCONDS), default=ZERO_PIXELS, advanced=True, tooltip=tooltip
    )
