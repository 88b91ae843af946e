"""Nodes of the saliency system."""

from comfy_api.latest import io

from .load import LoadSaliencyModel
from .optimize import OptimizeLatent
from .reward import DefineReward
from .saliency_map import SaliencyMap

NODES: list[type[io.ComfyNode]] = [LoadSaliencyModel, SaliencyMap, DefineReward, OptimizeLatent]
