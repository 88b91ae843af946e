"""Loader of the miniature: a whole latent-diffusion stack small enough to come with the pack."""

from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from .host.files import load_weights

WEIGHTS = Path(__file__).resolve().parent.parent / "mini" / "weights"
UNET_PREFIX = "model.diffusion_model."
VISION = {"model_type": "clip_vision_model", "num_channels": 3}  # what core asks for besides sizes
VISION_PREFIXES = ("vision_model.", "visual_projection.")


class MiniLatent(comfy.latent_formats.LatentFormat):
    """Latents of unit spread, with the colours of their channels for core's cheap preview."""

    def __init__(self, rgb: list[list[float]] | None = None) -> None:
        if rgb:
            *self.latent_rgb_factors, self.latent_rgb_factors_bias = rgb


class MiniModel(comfy.supported_models.SD15):
    """SD1 layout at the miniature's widths, which core's detection does not list."""

    latent_format = MiniLatent
    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012  all of it is in the weights' metadata


class LoadMini(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaLoadMini",
            display_name="Load Miniature (Veduta)",
            category="Veduta",
            description=(
                "The miniature landscape model that comes with the pack: a small SD1-style MODEL with "
                "its CLIP, VAE and CLIP_VISION. Use it to try every Veduta workflow at once, without a "
                "download; then put your own checkpoint loader in its place."
            ),
            search_aliases=["miniature", "demo model", "test checkpoint", "tiny model"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="Denoiser, for any stock sampler."),
                io.Clip.Output(
                    tooltip="Text encoder; it knows the words of drawn landscapes only."
                ),
                io.Vae.Output(tooltip="Autoencoder, 8 px a latent."),
                io.ClipVision.Output(
                    display_name="clip_vision",
                    tooltip="Image encoder, for the miniature's image adapter.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_model(), load_clip(), load_vae(), load_clip_vision())


def load_model(
    model_options: dict[str, Any] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The miniature's denoiser as a MODEL; what it takes is core's, for its own deep clones."""
    state, metadata = load_weights(WEIGHTS / "unet.safetensors")
    config = MiniModel(metadata["config"])
    device = comfy.model_management.get_torch_device()
    dtype = (model_options or {}).get("dtype") or comfy.model_management.unet_dtype(
        device=device, supported_dtypes=config.supported_inference_dtypes
    )
    config.set_inference_dtype(
        dtype,
        comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes),
    )
    # core's base class, too, turns this class attribute into an object of the instance
    config.latent_format = MiniLatent(metadata["latent_rgb_factors"])  # pyright: ignore[reportAttributeAccessIssue]
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model({}, device=offload_device)
    kind: Any = comfy.model_patcher.CoreModelPatcher
    if disable_dynamic:
        kind = comfy.model_patcher.ModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload_device)
    prefixed = {UNET_PREFIX + key: value for key, value in state.items()}
    model.load_model_weights(prefixed, UNET_PREFIX, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_model, (model_options,))
    return patcher


def load_clip() -> comfy.sd.CLIP:
    """The miniature's text encoder as a CLIP, behind the stock SD1 tokenizer."""
    state, metadata = load_weights(WEIGHTS / "text_encoder.safetensors")
    config = metadata["config"]
    state["text_model.embeddings.token_embedding.weight"] = _token_table(
        config["vocab_size"], config["hidden_size"], **metadata["token_table"]
    )
    target = comfy.supported_models_base.ClipTarget(
        comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel
    )
    return comfy.sd.CLIP(
        target,
        state_dict={f"clip_l.transformer.{key}": value for key, value in state.items()},
        model_options={"clip_l_model_config": config},
    )


def load_vae() -> comfy.sd.VAE:
    """The miniature's autoencoder as a VAE."""
    state, _ = load_weights(WEIGHTS / "vae.safetensors")
    vae = comfy.sd.VAE(sd=state)
    vae.patcher.cached_patcher_init = (_load_vae_patcher, ())
    return vae


def _load_vae_patcher(**_: Any) -> comfy.model_patcher.ModelPatcher:
    """What core calls for a deep clone, which makes it one of the kind it needs."""
    return load_vae().patcher


def load_clip_vision() -> comfy.clip_vision.ClipVisionModel:
    """The vision tower of the miniature's image-text model as a CLIP_VISION."""
    state, metadata = load_weights(WEIGHTS / "image_text.safetensors")
    encoder = comfy.clip_vision.ClipVisionModel({**VISION, **metadata["vision_config"]})
    encoder.load_sd({key: x for key, x in state.items() if key.startswith(VISION_PREFIXES)})
    return encoder


def _token_table(vocabulary: int, width: int, seed: int, std: float) -> Tensor:
    # frozen and drawn from a seed, so 19 MB need not be shipped; numpy's stream is fixed for ever
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((vocabulary, width), dtype=np.float32) * std)


NODES: list[type[io.ComfyNode]] = [LoadMini]
