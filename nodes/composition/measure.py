"""Nodes that measure and rank pictures; the methods are in `models/composition`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

from ...models.common.anchor import Anchor, AnchorBatch
from ...models.common.images import bchw_to_image, image_to_bchw, mask_to_b1hw
from ...models.composition.control import control_by_part
from ...models.composition.score import (
    CompositionScore,
    check_wanted,
    rank_best_first,
    score_composition,
)
from ...models.composition.tables import control_table, measure_table, ranking_table
from ..host.progress import progress_steps
from ..host.types import AnchorSocket
from .anchor import CATEGORY

if TYPE_CHECKING:
    from ...models.composition.measure import Measurement

MIN_CONFIDENCE = 0.5
GUIDES = ["thirds", "golden section", "none"]

SKY_MASK_TIP = (
    "White where the sky is. Replaces the search for the horizon by a line fitted to the mask's "
    "edge. One mask, or one per picture; another size is resized to the picture."
)
SUBJECT_MASK_TIP = (
    "White where the subject is. Replaces the search for the subject. One mask, or one per "
    "picture; another size is resized to the picture."
)
MIN_CONFIDENCE_TIP = (
    "A horizon or subject found with less confidence than this counts as not found. 0 accepts "
    "every guess, 1 only certain answers."
)


class MeasureComposition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaMeasureComposition",
            display_name="Measure Composition",
            category=CATEGORY,
            description=(
                "Finds the horizon and the subject of each picture, says how sure it is, and draws "
                "them over the picture. Works on generated pictures and photographs, without a "
                "download. Where it is not sure it answers none."
            ),
            search_aliases=["horizon", "rule of thirds", "find horizon", "composition overlay"],
            inputs=[
                io.Image.Input("image", tooltip="Pictures to measure, 16 to 16384 px a side."),
                AnchorSocket.Input(
                    "anchor",
                    optional=True,
                    tooltip=(
                        "What was wanted: drawn beside what was found, with the errors in the "
                        "report. One anchor, or one per picture."
                    ),
                ),
                io.Mask.Input("sky_mask", optional=True, tooltip=SKY_MASK_TIP),
                io.Mask.Input("subject_mask", optional=True, tooltip=SUBJECT_MASK_TIP),
                io.Combo.Input(
                    "guides",
                    options=GUIDES,
                    default=GUIDES[0],
                    advanced=True,
                    tooltip="Thin helping lines in the overlay.",
                ),
                _min_confidence_input(),
            ],
            outputs=[
                AnchorSocket.Output(
                    display_name="measured",
                    tooltip="What was found, one anchor per picture; parts not found are open.",
                ),
                io.Image.Output(
                    display_name="overlay",
                    tooltip=(
                        "The pictures with wanted (yellow, dashed, ring) and found (blue, solid, "
                        "cross) drawn on them; small ones are enlarged to 512 px."
                    ),
                ),
                io.String.Output(
                    display_name="report", tooltip="A table with one line per picture."
                ),
                io.Float.Output(
                    display_name="horizon_confidence",
                    is_output_list=True,
                    tooltip="0..1 for each picture's horizon.",
                ),
                io.Float.Output(
                    display_name="subject_confidence",
                    is_output_list=True,
                    tooltip="0..1 for each picture's subject.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        anchor: AnchorBatch | None = None,
        sky_mask: Tensor | None = None,
        subject_mask: Tensor | None = None,
        guides: str = GUIDES[0],
        min_confidence: float = MIN_CONFIDENCE,
    ) -> io.NodeOutput:
        # cv2 behind it takes 0.1 s to load, which ComfyUI's start must not pay
        from ...models.composition.overlay import draw_overlays

        planes = image_to_bchw(image)
        wanted = None if anchor is None else _wanted(anchor, planes)
        advance = progress_steps(2 * len(planes))
        measured = _measure(planes, sky_mask, subject_mask, min_confidence, advance)
        found = [measurement.anchor for measurement in measured]
        overlay = draw_overlays(planes, found, wanted, guides, advance)
        scores = None if wanted is None else _scores(found, wanted, planes)
        horizon_confidence = [measurement.horizon_confidence for measurement in measured]
        subject_confidence = [measurement.subject_confidence for measurement in measured]
        confidences = list(zip(horizon_confidence, subject_confidence, strict=True))
        return io.NodeOutput(
            AnchorBatch(tuple(found)),
            bchw_to_image(overlay),
            measure_table(found, confidences, scores),
            horizon_confidence,
            subject_confidence,
        )


class ScoreComposition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaScoreComposition",
            display_name="Score Composition (Best of a Batch)",
            category=CATEGORY,
            description=(
                "Ranks pictures by how well they answer an anchor and hands on the best ones. "
                "Make many pictures, keep those with the horizon where it should be."
            ),
            search_aliases=["rank images", "best of batch", "seed ranking", "select best"],
            inputs=[
                io.Image.Input("image", tooltip="Pictures to rank, 16 to 16384 px a side."),
                AnchorSocket.Input(
                    "anchor",
                    tooltip=(
                        "What is wanted: one anchor, or one per picture. With different anchors "
                        "the table also tells how far the pictures follow them."
                    ),
                ),
                io.Int.Input(
                    "best_count",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="How many of the best pictures to hand on; all if there are fewer.",
                ),
                io.Mask.Input("sky_mask", optional=True, tooltip=SKY_MASK_TIP),
                io.Mask.Input("subject_mask", optional=True, tooltip=SUBJECT_MASK_TIP),
                _min_confidence_input(),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The best pictures, best first."),
                io.Int.Output(
                    display_name="best_index",
                    is_output_list=True,
                    tooltip="Where each of them was in the batch, counted from 0.",
                ),
                io.Float.Output(
                    display_name="score",
                    is_output_list=True,
                    tooltip="Score of each of them: 1 exactly as wanted, 0 nothing of it found.",
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="The ranking of all pictures with the error of every part.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        anchor: AnchorBatch,
        best_count: int,
        sky_mask: Tensor | None = None,
        subject_mask: Tensor | None = None,
        min_confidence: float = MIN_CONFIDENCE,
    ) -> io.NodeOutput:
        planes = image_to_bchw(image)
        wanted = _wanted(anchor, planes)
        advance = progress_steps(len(planes))
        measured = _measure(planes, sky_mask, subject_mask, min_confidence, advance)
        found = [measurement.anchor for measurement in measured]
        scores = _scores(found, wanted, planes)
        order = rank_best_first([score.total for score in scores])
        best = list(order[:best_count])
        table = ranking_table(scores, order)
        control = control_by_part(wanted, found)
        if control:
            table += "\n\ndo the pictures follow the anchors?\n\n" + control_table(control)
        return io.NodeOutput(image[best], best, [scores[index].total for index in best], table)


def _min_confidence_input() -> io.Float.Input:
    return io.Float.Input(
        "min_confidence",
        default=MIN_CONFIDENCE,
        min=0.0,
        max=1.0,
        step=0.01,
        advanced=True,
        tooltip=MIN_CONFIDENCE_TIP,
    )


def _wanted(anchor: AnchorBatch, planes: Tensor) -> tuple[Anchor, ...]:
    wanted = anchor.for_batch(len(planes))
    check_wanted(wanted)
    return wanted


def _scores(
    found: Sequence[Anchor], wanted: Sequence[Anchor], planes: Tensor
) -> list[CompositionScore]:
    aspect = planes.shape[-1] / planes.shape[-2]
    return [score_composition(*pair, aspect) for pair in zip(found, wanted, strict=True)]


def _measure(
    planes: Tensor,
    sky_mask: Tensor | None,
    subject_mask: Tensor | None,
    min_confidence: float,
    advance: Callable[[], None],
) -> "list[Measurement]":
    # cv2 behind it takes 0.1 s to load, which ComfyUI's start must not pay
    from ...models.composition.measure import measure_composition

    batch, _, height, width = planes.shape
    sky = subject = None
    if sky_mask is not None:
        sky = mask_to_b1hw(sky_mask, batch, height, width, "sky_mask").to(planes.device)
    if subject_mask is not None:
        subject = mask_to_b1hw(subject_mask, batch, height, width, "subject_mask")
        subject = subject.to(planes.device)
    return measure_composition(planes, sky, subject, min_confidence, advance)
