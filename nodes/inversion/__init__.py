"""Nodes of Tight Inversion."""

from comfy_api.latest import io

from .edit import EditInversion
from .edit_guider import EditConcept, MakeEditGuider
from .files import LoadInversion, SaveInversion
from .flow_edit import FlowEdit
from .invert import Invert

NODES: list[type[io.ComfyNode]] = [
    Invert,
    EditInversion,
    MakeEditGuider,
    EditConcept,
    FlowEdit,
    SaveInversion,
    LoadInversion,
]
