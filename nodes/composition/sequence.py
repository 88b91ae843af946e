"""Node that moves an anchor from key frame to key frame; the method is in `models/common`."""

from comfy_api.latest import io

from ...models.common.anchor import AnchorBatch
from ...models.common.anchor_sequence import EASINGS, anchor_sequence
from ..host.types import AnchorSocket
from .anchor import CATEGORY


class AnchorSequence(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaAnchorSequence",
            display_name="Anchor Sequence (Key Frames)",
            category=CATEGORY,
            description=(
                "Moves an anchor from key frame to key frame and gives one anchor per picture of a "
                "batch, for a horizon that rises or a subject that walks through the frame."
            ),
            search_aliases=["animation", "keyframe", "schedule", "interpolate anchors", "travel"],
            inputs=[
                AnchorSocket.Input(
                    "anchor",
                    tooltip=(
                        "The key frames in order, two at least: chain Composition Anchor nodes "
                        "through append_to. They are set at equal distances."
                    ),
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=2,
                    max=4096,
                    tooltip=(
                        "How many anchors to make: the batch size of the latent. As many as there "
                        "are key frames at least."
                    ),
                ),
                io.Combo.Input(
                    "easing",
                    options=list(EASINGS),
                    default="linear",
                    tooltip="linear moves evenly; smooth starts and ends gently at every key frame.",
                ),
            ],
            outputs=[
                AnchorSocket.Output(
                    display_name="anchor",
                    tooltip=(
                        "One anchor per frame; the first and the last are key frames exactly. A part "
                        "that one of two neighbouring key frames leaves open is open between them."
                    ),
                )
            ],
        )

    @classmethod
    def execute(cls, anchor: AnchorBatch, frames: int, easing: str = "linear") -> io.NodeOutput:
        return io.NodeOutput(AnchorBatch(anchor_sequence(anchor.anchors, frames, easing)))
