"""OpenCLIP's layout of an image-text model, in which HPSv2.1 is released, as transformers'.

Query, key and value weights are one matrix there; projections are multiplied from the right.
"""

import re
from collections.abc import Mapping

from torch import Tensor

MARK = "visual.conv1.weight"  # no other layout has it
WHOLE_KEYS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelled so there
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
BLOCK_PARTS = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
JOINED = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}


def open_clip_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under transformers' names; keys of neither tower keep theirs."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, _, end = key.rpartition(".")
        block = BLOCK.fullmatch(key)
        if key in WHOLE_KEYS:
            found[WHOLE_KEYS[key]] = value
        elif key in TURNED:
            found[TURNED[key]] = value.t().contiguous()
        elif stem in NORMS:
            found[f"{NORMS[stem]}.{end}"] = value
        elif block:
            visual, number, part = block.groups()
            tower = "vision_model" if visual else "text_model"
            found.update(_block_part(f"{tower}.encoder.layers.{number}", part, value))
        else:
            found[key] = value
    return found


def _block_part(prefix: str, part: str, value: Tensor) -> dict[str, Tensor]:
    if part in JOINED:
        names = (f"{prefix}.self_attn.{letter}_proj.{JOINED[part]}" for letter in "qkv")
        return dict(zip(names, value.chunk(3), strict=True))
    stem, _, end = part.rpartition(".")
    return {f"{prefix}.{BLOCK_PARTS.get(stem, stem)}.{end}": value}
