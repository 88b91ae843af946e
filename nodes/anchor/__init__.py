"""Nodes of the anchor adapter."""

from comfy_api.latest import io

from .adapter import EncodeAnchor, LoadAnchorAdapter
from .sample import AnchoredGuider, AnchoredSampler
from .train import TrainAnchorAdapter

NODES: list[type[io.ComfyNode]] = [
    LoadAnchorAdapter,
    EncodeAnchor,
    AnchoredSampler,
    AnchoredGuider,
    TrainAnchorAdapter,
]
