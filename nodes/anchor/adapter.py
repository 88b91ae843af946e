"""Nodes that load an anchor adapter, and that put an anchor into conditionings."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...models.anchor.paper import load_paper_adapter
from ...models.anchor.weights import LoadedAdapter, load_adapter
from ...models.common.anchor import AnchorBatch
from ..host.attention import Conditioning, with_extra
from ..host.folders import register_folder
from .inputs import (
    CATEGORY,
    AdapterSocket,
    checked_interval,
    extras_of,
    interval_inputs,
    source_inputs,
    steered_model,
)

FOLDER = "anchor_adapters"
MINIATURE = "miniature (comes with the pack)"
MINIATURE_FILE = Path(__file__).resolve().parents[2] / "mini" / "weights" / "anchor.safetensors"
PAPER_SUFFIX = ".pt"
PAPER_PROJECTOR = "anchor_proj.pt"  # the paper's second file, beside the one that is chosen
ALL_LAYERS = "all"
LAYOUT_LAYERS = "layout only (coarsest input blocks)"

register_folder(FOLDER, {".safetensors", PAPER_SUFFIX})


class LoadAnchorAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaLoadAnchorAdapter",
            display_name="Load Anchor Adapter",
            category=CATEGORY,
            description=(
                "Loads the small network that makes a model obey a composition anchor. It fits the "
                "base that it was trained for: the miniature's comes with the pack, others lie in "
                "models/anchor_adapters."
            ),
            search_aliases=["horizon adapter", "composition adapter", "anchor weights"],
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=[MINIATURE, *_file_names()],
                    default=MINIATURE,
                    tooltip=(
                        "A .safetensors file in models/anchor_adapters, or the paper's "
                        "ip_adapter.pt with its anchor_proj.pt in the same folder."
                    ),
                )
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter",
                    tooltip="For Anchored Sampler, Guider and Encode Anchor.",
                )
            ],
        )

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        path = _path_of(adapter_name)
        if path.suffix == PAPER_SUFFIX:
            return io.NodeOutput(load_paper_adapter(path.with_name(PAPER_PROJECTOR), path))
        return io.NodeOutput(load_adapter(path))

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str) -> list[Any]:
        path = _path_of(adapter_name)
        pair = [path, path.with_name(PAPER_PROJECTOR)] if path.suffix == PAPER_SUFFIX else [path]
        return [(one.stat().st_mtime_ns, one.stat().st_size) for one in pair]


def _file_names() -> list[str]:
    names = folder_paths.get_filename_list(FOLDER)
    return [name for name in names if Path(name).name != PAPER_PROJECTOR]


def _path_of(adapter_name: str) -> Path:
    if adapter_name == MINIATURE:
        return MINIATURE_FILE
    return Path(folder_paths.get_full_path_or_raise(FOLDER, adapter_name))


class EncodeAnchor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaEncodeAnchor",
            display_name="Encode Anchor (for stock samplers)",
            category=CATEGORY,
            description=(
                "Puts an anchor into the positive conditioning, for KSampler and every other stock "
                "sampler. The sampler's cfg is then the scale of text and anchor together. For "
                "scales of their own use Anchored Sampler."
            ),
            search_aliases=["apply anchor", "horizon conditioning", "composition conditioning"],
            inputs=[
                *source_inputs(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="0 is off and changes nothing, 1 as trained.",
                ),
                *interval_inputs(),
                io.Combo.Input(
                    "layers",
                    options=[ALL_LAYERS, LAYOUT_LAYERS],
                    default=ALL_LAYERS,
                    advanced=True,
                    tooltip=(
                        "all as trained; layout only lets the anchor act in the coarsest blocks on the "
                        "way in and leaves the other layers to the prompt."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="Use it with both conditionings; it heeds them."
                ),
                io.Conditioning.Output(
                    display_name="positive", tooltip="positive that asks for the anchor."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="negative, marked as unanchored so that both run in one pass.",
                ),
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
        strength: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        layers: str = ALL_LAYERS,
    ) -> io.NodeOutput:
        interval = checked_interval(start_percent, end_percent)
        steered = steered_model(model, adapter)
        names = list(adapter.adapter.layers)
        quiet = [] if layers == ALL_LAYERS else [x for x in names if x not in layout_layers(names)]
        extras = extras_of(adapter, anchor, interval, strength, dict.fromkeys(quiet, 0.0))
        return io.NodeOutput(steered, with_extra(positive, extras), with_extra(negative, [None]))


def layout_layers(names: list[str]) -> set[str]:
    """Those on the way in, of the lowest resolution that has cross-attention.

    Blocks without attention lie between two resolutions: the lowest is the last run of numbers.
    """
    numbers = sorted({int(name.split("_")[1]) for name in names if name.startswith("input_")})
    last_run: set[int] = set()
    for number in reversed(numbers):
        if last_run and number + 1 not in last_run:
            break
        last_run.add(number)
    return {
        name for name in names if name.startswith("input_") and int(name.split("_")[1]) in last_run
    }
