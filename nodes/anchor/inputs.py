"""What the anchor nodes have in common: sockets, inputs, and the extras made of them."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...models.anchor.weights import LoadedAdapter
from ...models.common.anchor import AnchorBatch
from ..host.attention import Extra, attend_extra, check_fits
from ..host.types import AnchorSocket

CATEGORY = "Veduta/Composition"
AdapterSocket = io.Custom("VEDUTA_ANCHOR_ADAPTER")  # carries models.anchor.weights.LoadedAdapter

Interval = tuple[float, float]


def source_inputs() -> list[io.Input]:
    """Model, adapter, anchor and the two prompts: every node that steers begins with them."""
    return [
        io.Model.Input(
            "model",
            tooltip="The base that the adapter was trained for. The model itself stays as it is.",
        ),
        AdapterSocket.Input("adapter", tooltip="From Load Anchor Adapter or Train Anchor Adapter."),
        AnchorSocket.Input(
            "anchor",
            tooltip="Where horizon and subject are wanted: one anchor, or one per picture.",
        ),
        io.Conditioning.Input(
            "positive", tooltip="What the picture shows. Areas, masks and schedules are kept."
        ),
        io.Conditioning.Input("negative", tooltip="What to keep away from."),
    ]


def interval_inputs() -> list[io.Input]:
    """Share of the sampling in which the anchor holds."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the sampling from which on the anchor holds; 0 is the first step.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "Share of the sampling until which the anchor holds. An earlier end follows the "
                "anchor less, and is faster where the anchor needs a prediction of its own."
            ),
        ),
    ]


def checked_interval(start_percent: float, end_percent: float) -> Interval:
    """Both ends.

    Raises:
        ValueError: no step lies between them.
    """
    if start_percent >= end_percent:
        raise ValueError(
            f"start_percent is {start_percent:g}, end_percent is {end_percent:g}, so the anchor "
            "would never hold; set start_percent below end_percent"
        )
    return start_percent, end_percent


def steered_model(model: ModelPatcher, adapter: LoadedAdapter) -> ModelPatcher:
    """A clone of the MODEL that heeds anchors of the adapter.

    Raises:
        ValueError: the model is of another family, or another base than the adapter's.
    """
    steered = attend_extra(model)
    check_fits(adapter.adapter, model, f"adapter ({adapter.base})")
    return steered


def extras_of(
    adapter: LoadedAdapter,
    anchor: AnchorBatch,
    interval: Interval,
    strength: float = 1.0,
    layer_strengths: dict[str, float] | None = None,
) -> list[Extra]:
    """One extra for each anchor."""
    start_percent, end_percent = interval
    return [
        Extra(
            adapter=adapter.adapter,
            request=one,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            layer_strengths=layer_strengths or {},
        )
        for one in anchor.anchors
    ]
