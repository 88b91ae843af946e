"""Tiny copies of every family of models whose gradients are promised, with random weights."""

import comfy.model_patcher
import comfy.samplers
import comfy.supported_models as families
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..nodes.host.differentiable import Request, Run, sample_with_gradients
from ..nodes.host.gradients import gradients

TEXT, POOLED = 12, 8  # widths
AXES = [4, 6, 6]  # of a head of 16
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "context_dim": TEXT,
    "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1,
}  # fmt: skip
FLUX = {
    "context_in_dim": TEXT, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
    "depth_single_blocks": 1, "axes_dim": AXES, "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "txt_ids_dims": [],
}  # fmt: skip
NEXT_DIT = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 32, "n_layers": 1,
    "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "multiple_of": 8, "ffn_dim_multiplier": 1.0,
    "qk_norm": True, "cap_feat_dim": TEXT, "axes_dims": AXES, "axes_lens": [64, 64, 64],
}  # fmt: skip


class NarrowSDXL(families.SDXL):
    """SDXL whose attention heads may be narrow."""

    unet_extra_config = {}  # noqa: RUF012  as core has it


FAMILIES: dict[str, tuple[type, tuple[int, ...], dict]] = {
    "SD1.5": (families.SD15, (4,), {
        **UNET, "num_heads": 2, "num_head_channels": -1, "use_linear_in_transformer": False,
        "adm_in_channels": None,
    }),
    "SDXL": (NarrowSDXL, (4,), {
        **UNET, "num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True,
        "num_classes": "sequential", "adm_in_channels": POOLED + 6 * 256,
    }),
    "SD3": (families.SD3, (16,), {
        "in_channels": 16, "patch_size": 2, "depth": 1, "input_size": None, "num_patches": 16,
        "pos_embed_max_size": 4, "adm_in_channels": POOLED, "qk_norm": "rms",
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 64},
        },
    }),
    "FLUX": (families.Flux, (16,), {
        **FLUX, "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED,
        "guidance_embed": True,
    }),
    "Chroma": (families.Chroma, (16,), {
        **FLUX, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64,
        "out_dim": 32, "hidden_dim": 16, "n_layers": 2, "vec_in_dim": None,
    }),
    "Lumina 2": (families.Lumina2, (16,), NEXT_DIT),
    "Z-Image": (families.ZImage, (16,), {
        **NEXT_DIT, "dim": 256, "n_heads": 16, "n_kv_heads": 16, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
    }),
    "Qwen-Image": (families.QwenImage, (16, 1), {
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 1,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": TEXT,
        "axes_dims_rope": tuple(AXES),
    }),
    "Wan": (families.WAN21_T2V, (16, 1), {
        "image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 48, "freq_dim": 16,
        "text_dim": TEXT, "text_len": 8, "num_heads": 2, "num_layers": 1,
    }),
    "AuraFlow": (families.AuraFlow, (4,), {
        "cond_seq_dim": TEXT, "dim": 32, "n_layers": 2, "n_double_layers": 1, "n_heads": 2,
        "global_conddim": 32, "max_seq": 16,
    }),
}  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Noise of a seed."""
    with torch.inference_mode(False):  # so that a gradient can start there
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny(family: str) -> ModelPatcher:
    """A MODEL of a family, float32 on the CPU, its weights random, as core's loaders leave it."""
    kind, _, unet = FAMILIES[family]
    config = kind(dict(unet))
    config.set_inference_dtype(torch.float32, None)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        model = config.get_model({}, device=torch.device("cpu"))
        for name, weight in model.diffusion_model.named_parameters():
            spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
            if weight.ndim == 1 and name.endswith("weight"):  # of a norm
                weight.add_(1.0)
        for buffer in model.diffusion_model.buffers():
            if buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
                buffer.zero_()
    device = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


def texts() -> list[list]:
    """A positive and a negative that every family takes."""
    return [
        [[drawn(1, 5, TEXT, seed=seed), {"pooled_output": drawn(1, POOLED, seed=seed)}]]
        for seed in (3, 4)
    ]


def gradient_error(family: str, turn: float = 0.02) -> tuple[float, float]:
    """How far a pulled-back gradient is off a finite difference, as a share, and its size.

    Two Euler steps with guidance, through ComfyUI's own guider; call in inference mode, as a prompt runs.
    """
    channels = FAMILIES[family][1]
    noise, weighing, aside = (drawn(1, *channels, 8, 8, seed=seed) for seed in range(3))
    model, found = tiny(family), []

    def work(run: Run) -> None:
        pulled = run(noise).pull(weighing)
        along = pulled / pulled.norm() + aside / aside.norm()
        rise = run.plain(noise + turn * along) - run.plain(noise - turn * along)
        finite = float((rise * weighing).double().sum()) / (2 * turn)
        expected = float((pulled * along).double().sum())
        found.extend([abs(expected - finite) / abs(finite), abs(expected)])

    sampling = model.get_model_object("model_sampling")
    positive, negative = texts()
    request = Request(
        model=model, positive=positive, negative=negative, cfg=2.0,
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "simple", 2),
        latent=torch.zeros(1, *channels, 8, 8),
    )  # fmt: skip
    with gradients():
        sample_with_gradients(request, work)
    return found[0], found[1]
