"""Every node of the pack, in menu order."""

from comfy_api.latest import io

from . import anchor, composition, mini

NODES: list[type[io.ComfyNode]] = [*mini.NODES, *composition.NODES, *anchor.NODES]
