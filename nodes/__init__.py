"""Every node of the pack, in menu order."""

from comfy_api.latest import io

from . import anchor, composition, evaluate, image_prompt, inversion, mini, saliency, style

NODES: list[type[io.ComfyNode]] = [
    *mini.NODES,
    *composition.NODES,
    *anchor.NODES,
    *image_prompt.NODES,
    *inversion.NODES,
    *style.NODES,
    *saliency.NODES,
    *evaluate.NODES,
]
