"""Nodes of StyleForge: pictures of a style, its training, its use, its measurement."""

from comfy_api.latest import io

from .aux_images import MakeAuxImages
from .evaluate import EvaluateStyle
from .load import LoadStyle
from .save import SaveStyle
from .style_set import MakeStyleSet
from .train import TrainStyle

NODES: list[type[io.ComfyNode]] = [
    MakeStyleSet,
    MakeAuxImages,
    TrainStyle,
    SaveStyle,
    LoadStyle,
    EvaluateStyle,
]
