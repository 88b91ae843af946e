"""Every key of a style is one that stock ComfyUI loads: SD1.5, SDXL and FLUX, image model and text."""

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.lora
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.text_encoders.flux
import torch
from comfy.model_patcher import ModelPatcher

from veduta.bench._topologies import FAMILIES, core_config, draw_weights
from veduta.models.styleforge.dual_binding import (
    Binding,
    Example,
    Prediction,
    dual_binding_loss,
)
from veduta.models.styleforge.lora import Layers, Lora, Plan
from veduta.nodes import mini
from veduta.nodes.host.gradients import gradients
from veduta.nodes.host.lora import adapted, image_places, noise_process, text_places
from veduta.nodes.style.training import base_name

TEXT = 192  # width of the miniature's text encoder, which reads for all of them
CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
        "num_hidden_layers": 3, "projection_dim": 32}  # fmt: skip
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 100}
NARROW = {f"clip_{kind}_model_config": CLIP for kind in "lg"} | {"t5xxl_model_config": T5}
FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": TEXT,
        "context_in_dim": TEXT, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2,
        "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}  # fmt: skip


def draw_flux(network, seed):
    """As `draw_weights`, for norms of which some have no weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        std = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        weight.normal_(std=std, generator=generator)
        if "norm" in name:
            weight.add_(1)


def image_model(family):
    """A whole but narrow network in core's own classes."""
    if family == "FLUX":
        config = comfy.supported_models.Flux(dict(FLUX))
    else:
        own = core_config(family, text=TEXT)
        if family == "SDXL":
            own["adm_in_channels"] = TEXT + 6 * 256
        config = FAMILIES[family](own)
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    base = config.get_model({}, device=device)
    with torch.no_grad():
        (draw_flux if family == "FLUX" else draw_weights)(base.diffusion_model, seed=1)
    return ModelPatcher(base, load_device=device, offload_device=device)


def text_model(family):
    """The text encoders of a family, narrow; as a CLIP as far as names go."""
    rest = {"dtype": torch.float32, "device": "cpu", "model_options": NARROW}
    if family == "SD1.5":
        encoder = comfy.sd1_clip.SD1ClipModel(**rest)
    elif family == "SDXL":
        encoder = comfy.sdxl_clip.SDXLClipModel(**rest)
    else:
        encoder = comfy.text_encoders.flux.FluxClipModel(dtype_t5=torch.float32, **rest)
    return SimpleNamespace(cond_stage_model=encoder)


@pytest.fixture(scope="module", params=["SD1.5", "SDXL", "FLUX"])
def family(request):
    with torch.inference_mode(False):
        return request.param, image_model(request.param), text_model(request.param)


PREFIXES = {
    "SD1.5": {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
              "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
              "lora_unet_up_blocks_2_upsamplers_0_conv",
              "lora_te_text_model_encoder_layers_0_self_attn_q_proj"},
    "SDXL": {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
             "lora_unet_output_blocks_1_1_transformer_blocks_9_ff_net_2",
             "lora_unet_input_blocks_3_0_op",
             "lora_te1_text_model_encoder_layers_0_mlp_fc1",
             "lora_te2_text_model_encoder_layers_1_self_attn_out_proj"},
    "FLUX": {"lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_1_linear2",
             "lora_unet_double_blocks_1_txt_mlp_2",
             "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"},
}  # fmt: skip


def spots_of(model, clip):
    return image_places(model, Layers(convolutions=True)) | text_places(clip)


def test_not_one_key_is_left_over_in_the_stock_loader(family, caplog):
    name, model, clip = family
    spots = spots_of(model, clip)
    assert PREFIXES[name] <= set(spots), sorted(PREFIXES[name] - set(spots))
    lora = Lora({key: s.target for key, s in spots.items()}, Plan(rank=2), torch.Generator())
    tensors = lora.tensors()
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    with caplog.at_level(logging.WARNING):
        loaded = comfy.lora.load_lora(tensors, known)
    assert "lora key not loaded" not in caplog.text
    assert len(loaded) == len(spots) == len(tensors) / 3
    image = model.model.state_dict()
    text = clip.cond_stage_model.state_dict()
    for key, patch in loaded.items():
        weight = image.get(key, text.get(key))
        up, down = patch.weights[0], patch.weights[1]
        assert (up.flatten(1) @ down.flatten(1)).numel() == weight.numel(), key


def test_what_should_never_learn_does_not(family):
    name, model, clip = family
    spots = spots_of(model, clip)
    bad = ("norm", "mod_lin", "modulation", "time_embed", "img_in", "final_layer", "te2_encoder",
           "te3_encoder", "emb_layers")  # fmt: skip
    if name == "SDXL":
        bad = tuple(word for word in bad if word != "te2_encoder")
    assert [key for key in spots if any(word in key for word in bad)] == []
    if name == "SDXL":
        style = image_places(model, Layers(mlp=False, style_block_only=True))
        assert len(style) == 10 * 8  # ten blocks, two attentions of four layers


def test_every_layer_of_every_family_learns(family):
    """One dual-binding step through core's own apply_model reaches each factor."""
    name, model, _ = family
    with torch.inference_mode():
        clip = mini.load_clip()
    spots = image_places(model, Layers())
    lora = Lora({key: s.target for key, s in spots.items()}, Plan(rank=2), torch.Generator())
    channels = model.model.latent_format.latent_channels
    generator = torch.Generator().manual_seed(0)
    style, aux = (
        Example(torch.randn(channels, size, 8, generator=generator), prompt)
        for prompt, size in (("a photo of zwx style", 8), ("a photo of style", 16))
    )
    assert base_name(model) in (name, "NarrowSDXL")
    binding, found = Binding(name="style", style=(style,), aux=(aux,)), []
    for recompute in (False, True):
        lora.zero_grad()
        with gradients(), adapted(model, clip, lora, spots, recompute) as work:
            generator = torch.Generator().manual_seed(1)
            dual_binding_loss(work, work.process, binding, 1, generator).backward()
        found.append({key: layer.up[0].grad.clone() for key, layer in lora.named_layers()})
    plain, recomputed = found
    assert [key for key, gradient in plain.items() if not 0 < gradient.abs().max() < 1e6] == []
    for key, gradient in plain.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-3, atol=1e-6)


def test_the_kind_of_noise_is_told_from_the_model(family):
    name, model, _ = family
    found = noise_process(model)
    wanted = Prediction.FLOW if name == "FLUX" else Prediction.NOISE
    assert found.prediction is wanted and len(found.sigmas) >= 1000
    x0, noise = torch.randn(2, 1, 4, 4, 4)
    sigma = found.sigma_at(torch.tensor([0.6]))
    core = model.model.model_sampling.noise_scaling(sigma, noise.clone(), x0)
    assert torch.allclose(found.noisy(x0, noise, sigma), core, atol=1e-5)
