"""SD1.5 and SDXL, whole but narrow, as core and as diffusers build them.

Every block and layer number is as released; channels, heads and text are narrow and the weights
random. Both networks of a pair hold the same weights, moved by core's own table of names.
"""

import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..nodes.host.attention import CONDS_KEY

TEXT, CHANNELS = 24, 32  # widths of the text and of the first level
HEAD, TIME, POOLED = 16, 8, 10  # SDXL: channels of a head, of a time number, of the pooled text


class NarrowSDXL(comfy.supported_models.SDXL):
    """SDXL whose attention heads may be narrow."""

    unet_extra_config = {}  # noqa: RUF012  as core has it


FAMILIES = {"SD1.5": comfy.supported_models.SD15, "SDXL": NarrowSDXL}


def core_config(family: str, channels: int = CHANNELS, text: int = TEXT) -> dict:
    shared = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels,
        "context_dim": text, "use_spatial_transformer": True, "legacy": False,
        "use_temporal_attention": False,
    }  # fmt: skip
    if family == "SD1.5":
        return shared | {
            "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1, "num_heads": 8, "num_head_channels": -1,
            "use_linear_in_transformer": False, "adm_in_channels": None,
        }  # fmt: skip
    return shared | {
        "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10, "num_heads": -1, "num_head_channels": HEAD,
        "use_linear_in_transformer": True, "num_classes": "sequential",
        "adm_in_channels": POOLED + 6 * TIME,
    }  # fmt: skip


def diffusers_config(family: str, channels: int = CHANNELS, text: int = TEXT) -> dict:
    levels = (channels, 2 * channels, 4 * channels)
    if family == "SD1.5":
        return {
            "cross_attention_dim": text, "block_out_channels": (*levels, levels[-1]),
            "attention_head_dim": 8,
        }  # fmt: skip
    return {
        "cross_attention_dim": text, "block_out_channels": levels,
        "attention_head_dim": tuple(level // HEAD for level in levels),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": TIME,
        "projection_class_embeddings_input_dim": POOLED + 6 * TIME,
    }  # fmt: skip


@torch.no_grad()
def build_pair(
    family: str, channels: int = CHANNELS, text: int = TEXT
) -> tuple[ModelPatcher, UNet2DConditionModel]:
    """The same network as a MODEL of core's and as diffusers has it."""
    config = FAMILIES[family](core_config(family, channels, text))
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    base = config.get_model({}, device=device)
    draw_weights(base.diffusion_model, seed=1)
    model = ModelPatcher(base, load_device=device, offload_device=device)
    other = UNet2DConditionModel(**diffusers_config(family, channels, text)).eval()
    names = comfy.utils.unet_to_diffusers(core_config(family, channels, text))
    own = base.diffusion_model.state_dict()
    other.load_state_dict({key: own[names[key]] for key in other.state_dict()})
    return model, other.requires_grad_(False)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_weights(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.normal_(std=0.1, generator=generator)
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm):
            part.weight.add_(1)


def diffusers_names(model: ModelPatcher) -> dict[str, str]:
    """Layer name here -> processor name in diffusers, both counted along the table of weights."""
    config = model.model.model_config.unet_config
    table = comfy.utils.unet_to_diffusers(config)
    found = {}
    for theirs, ours in table.items():
        if ours.endswith("attn2.to_q.weight"):
            parts = ours.split(".")
            stage, number = parts[0].removesuffix("_block").removesuffix("_blocks"), parts[1]
            name = f"{stage}_{0 if stage == 'middle' else number}_{parts[-4]}"
            found[name] = theirs.replace("to_q.weight", "processor")
    return found


def extra_conds(other: UNet2DConditionModel, batch: int) -> tuple[dict, dict]:
    """SDXL's further conditions, as the keywords of core and of diffusers."""
    if other.config.addition_embed_type is None:
        return {}, {}
    pooled, times = drawn(batch, POOLED, seed=8), drawn(batch, 6, seed=9).abs() * 100
    embedded = other.add_time_proj(times.flatten()).reshape(batch, -1)
    added = {"text_embeds": pooled, "time_ids": times}
    return {"y": torch.cat([pooled, embedded], -1)}, {"added_cond_kwargs": added}


def predict(
    model: ModelPatcher, rows: tuple, x: Tensor, sigma: Tensor, text: Tensor, conds: dict
) -> tuple[Tensor, Tensor]:
    """The network's own output (the model's is x - sigma * that), and what the network saw."""
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
    x0 = model.model.apply_model(
        x, sigma, c_crossattn=text, transformer_options=options, **{CONDS_KEY: rows}, **conds
    )
    scale = sigma[:, None, None, None]
    return (x - x0) / scale, x / (scale.square() + 1).sqrt()
