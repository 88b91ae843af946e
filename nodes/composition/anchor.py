"""Nodes that make an anchor and draw it; the methods are in `models/composition`."""

from comfy_api.latest import io

from ...models.common.anchor import MAX_TILT_DEG, PRESETS, Anchor, AnchorBatch
from ...models.common.images import bchw_to_image
from ...models.composition.rasters import GROUND_RGB, SUBJECT_RGB, RasterStyle, draw_rasters
from ..host.types import AnchorSocket

CATEGORY = "Veduta/Composition"
CUSTOM = "custom"


class DefineAnchor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaAnchor",
            display_name="Composition Anchor",
            category=CATEGORY,
            description=(
                "Says where the horizon and the subject of a picture are wanted. Every part can "
                "be left open. Measure, Score and Raster nodes take the anchor."
            ),
            search_aliases=["horizon", "rule of thirds", "composition", "golden section", "tilt"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[CUSTOM, *PRESETS],
                    default=CUSTOM,
                    tooltip=(
                        "custom uses the numbers and switches below. Any other preset is used "
                        "as it is: the numbers and switches below then have no effect."
                    ),
                ),
                io.Float.Input(
                    "horizon",
                    default=0.335,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip=(
                        "Height of the horizon in the middle of the picture: 0 top edge, 1 bottom "
                        "edge. 0.335 leaves a third to the sky."
                    ),
                ),
                io.Boolean.Input(
                    "use_horizon", default=True, tooltip="Off: the horizon may be anywhere."
                ),
                io.Float.Input(
                    "tilt_deg",
                    default=0.0,
                    min=-MAX_TILT_DEG,
                    max=MAX_TILT_DEG,
                    step=0.5,
                    tooltip=(
                        "Tilt of the horizon in degrees: 0 level, positive when its right end is "
                        "the lower one."
                    ),
                ),
                io.Boolean.Input("use_tilt", default=True, tooltip="Off: any tilt will do."),
                io.Float.Input(
                    "subject_x",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="Centre of the subject across: 0 left edge, 1 right edge.",
                ),
                io.Boolean.Input(
                    "use_subject_x", default=False, tooltip="Off: the subject may be on any column."
                ),
                io.Float.Input(
                    "subject_y",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="Centre of the subject down: 0 top edge, 1 bottom edge.",
                ),
                io.Boolean.Input(
                    "use_subject_y", default=False, tooltip="Off: the subject may be at any height."
                ),
                AnchorSocket.Input(
                    "append_to",
                    optional=True,
                    tooltip=(
                        "Anchors to put before this one. Chain nodes to make a list with one "
                        "anchor per picture of a batch."
                    ),
                ),
            ],
            outputs=[
                AnchorSocket.Output(
                    display_name="anchor",
                    tooltip="This anchor alone, or append_to's anchors followed by this one.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        horizon: float,
        use_horizon: bool,
        tilt_deg: float,
        use_tilt: bool,
        subject_x: float,
        use_subject_x: bool,
        subject_y: float,
        use_subject_y: bool,
        append_to: AnchorBatch | None = None,
    ) -> io.NodeOutput:
        if preset == CUSTOM:
            anchor = Anchor(
                horizon=horizon if use_horizon else None,
                tilt_deg=tilt_deg if use_tilt else None,
                subject_x=subject_x if use_subject_x else None,
                subject_y=subject_y if use_subject_y else None,
            )
        elif preset in PRESETS:
            anchor = PRESETS[preset]
        else:
            raise ValueError(f"preset is {preset!r}, custom or {', '.join(PRESETS)} is needed")
        before = append_to.anchors if append_to is not None else ()
        return io.NodeOutput(AnchorBatch((*before, anchor)))


class AnchorRaster(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaAnchorRaster",
            display_name="Anchor to Control Pictures and Masks",
            category=CATEGORY,
            description=(
                "Draws an anchor as depth, segmentation and line pictures for ControlNets, and as "
                "sky, ground and subject masks for regional prompts. Several anchors give a batch. "
                "The anchor needs a horizon."
            ),
            search_aliases=["depth map", "controlnet", "sky mask", "regional prompt", "horizon"],
            inputs=[
                AnchorSocket.Input(
                    "anchor",
                    tooltip=(
                        "What to draw; the horizon must be on. An open tilt is level. The subject "
                        "is drawn when its x or y is on: an open x is the middle, an open y "
                        "stands it half way down the ground."
                    ),
                ),
                _side_input("width"),
                _side_input("height"),
                io.Float.Input(
                    "subject_size",
                    default=0.25,
                    min=0.02,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Height of the subject as a share of the picture's height.",
                ),
                io.Combo.Input(
                    "ground_class",
                    options=list(GROUND_RGB),
                    default="earth",
                    advanced=True,
                    tooltip="What the ground is in the segmentation picture (ADE20K colours).",
                ),
                io.Combo.Input(
                    "subject_class",
                    options=list(SUBJECT_RGB),
                    default="tree",
                    advanced=True,
                    tooltip="What the subject is in the segmentation picture (ADE20K colours).",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="depth",
                    tooltip="Flat ground, near is white; for depth ControlNets at low strength.",
                ),
                io.Image.Output(
                    display_name="segmentation",
                    tooltip="ADE20K colours; for segmentation ControlNets.",
                ),
                io.Image.Output(
                    display_name="lines",
                    tooltip="White on black: horizon and subject outline; for scribble ControlNets.",
                ),
                io.Mask.Output(display_name="sky", tooltip="White above the horizon."),
                io.Mask.Output(display_name="ground", tooltip="White below the horizon: 1 - sky."),
                io.Mask.Output(
                    display_name="subject", tooltip="White on the subject; black without one."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        anchor: AnchorBatch,
        width: int,
        height: int,
        subject_size: float = 0.25,
        ground_class: str = "earth",
        subject_class: str = "tree",
    ) -> io.NodeOutput:
        style = RasterStyle(
            subject_size=subject_size, ground_class=ground_class, subject_class=subject_class
        )
        drawn = draw_rasters(anchor.anchors, width, height, style)
        pictures = (drawn.depth, drawn.segmentation, drawn.lines)
        masks = (drawn.sky, drawn.ground, drawn.subject)
        return io.NodeOutput(*map(bchw_to_image, pictures), *(mask[:, 0] for mask in masks))


def _side_input(name: str) -> io.Int.Input:
    tip = f"{name.capitalize()} in px; that of the picture to make."
    return io.Int.Input(name, default=512, min=16, max=16384, step=8, tooltip=tip)
