"""Nodes of the composition system."""

from comfy_api.latest import io

from .anchor import AnchorRaster, DefineAnchor
from .measure import MeasureComposition, ScoreComposition
from .sequence import AnchorSequence

NODES: list[type[io.ComfyNode]] = [
    DefineAnchor,
    MeasureComposition,
    ScoreComposition,
    AnchorRaster,
    AnchorSequence,
]
