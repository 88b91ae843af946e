"""The miniature's networks, built from ComfyUI's and transformers' own classes, ready to train.

Every size is here and travels with the weights as metadata; the loader node reads it from there.
"""

import numpy as np
import torch
from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()  # before anything of ComfyUI asks for its device

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.ops import disable_weight_init  # noqa: E402
from comfy.sd1_clip import SD1Tokenizer  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from einops import rearrange  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import CLIPConfig, CLIPModel  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

TEXT_WIDTH = 192
VOCABULARY = 49408  # of the stock CLIP tokenizer
TOKEN_TABLE_SEED = 20260722
TOKEN_STD = 0.5  # per entry; position embeddings start far smaller

# SD1 layout: blocks and layer numbers as released, narrow channels; wide heads, since attention of
# many narrow ones is what a CPU spends its time on
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 2, 3],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": -1,
    "num_head_channels": 64,
    "context_dim": TEXT_WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}

TEXT_CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": TEXT_WIDTH,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}

VISION_CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": 128,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
    "projection_dim": TEXT_WIDTH,
}


def initialise(module: nn.Module, seed: int) -> nn.Module:
    """Give every layer its usual random start; ComfyUI's classes leave weights uninitialised."""
    torch.manual_seed(seed)  # own process: nothing else draws from the global generator
    layers = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    for layer in module.modules():
        for kind in layers:
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
    return module.float().requires_grad_(True)


def build_vae(seed: int) -> TAESD:
    """TAESD-layout autoencoder of 4 latent channels, 8 times smaller a side."""
    vae = TAESD(latent_channels=4)
    initialise(vae, seed)
    vae.vae_scale.requires_grad_(False)
    vae.vae_shift.requires_grad_(False)
    return vae


def build_unet(seed: int) -> UNetModel:
    """SD1-layout UNet; the last layer of every residual branch starts at zero."""
    unet = UNetModel(**UNET_CONFIG, dtype=torch.float32, operations=disable_weight_init)
    initialise(unet, seed)
    ends = ("out_layers.3", "proj_out", "out.2")
    for name, layer in unet.named_modules():
        if name.endswith(ends):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return unet


def build_image_text(seed: int) -> CLIPModel:
    """Small image-text model in transformers' CLIP layout, with a frozen token table."""
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=TEXT_CONFIG, vision_config=VISION_CONFIG, projection_dim=TEXT_WIDTH
    )
    model = CLIPModel(config)
    table = model.text_model.embeddings.token_embedding
    table.weight.requires_grad_(False)
    table.weight.copy_(token_table())
    return model


def token_table() -> Tensor:
    """Frozen token embeddings (VOCABULARY TEXT_WIDTH), the same on every machine."""
    rng = np.random.default_rng(TOKEN_TABLE_SEED)
    table = rng.standard_normal((VOCABULARY, TEXT_WIDTH), dtype=np.float32)
    return torch.from_numpy(table * TOKEN_STD)


def tokenize(captions: list[str]) -> Tensor:
    """Token ids (n 77) of the stock SD1 tokenizer, padded with the end token."""
    tokenizer = SD1Tokenizer().clip_l
    rows = [[int(token) for token, _ in tokenizer.tokenize_with_weights(c)[0]] for c in captions]
    return torch.tensor(rows)


def to_tensor(images: Tensor) -> Tensor:
    """(b h w 3) 0..255 to (b 3 h w) 0..1 on the training device."""
    return rearrange(images.to(DEVICE), "b h w c -> b c h w").float() / 255


def normalise(images: Tensor) -> Tensor:
    """CLIP's colour statistics taken out."""
    mean = images.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = images.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (images - mean) / std
