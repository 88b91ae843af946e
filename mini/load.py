"""The miniature's trained parts outside ComfyUI's nodes, for training the next part and measuring."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel

from . import networks
from .networks import TAESD

WEIGHTS = Path(__file__).parent / "weights"


def load_vae() -> TAESD:
    vae = networks.build_vae(seed=0)
    vae.load_state_dict(read_weights("vae")[0])
    return vae.float().eval().requires_grad_(False)


def load_text_encoder() -> CLIPTextModel:
    return load_image_text().text_model


def load_image_text() -> CLIPModel:
    model = networks.build_image_text(seed=0)
    model.load_state_dict(
        {**read_weights("text_encoder")[0], **read_weights("image_text")[0]}, strict=False
    )
    return model.float().eval().requires_grad_(False)


def read_weights(name: str) -> tuple[dict[str, Tensor], dict]:
    with safe_open(WEIGHTS / f"{name}.safetensors", "pt") as file:
        state = {key: file.get_tensor(key).to(torch.float32) for key in file.keys()}  # noqa: SIM118
        return state, json.loads(file.metadata()["veduta"])
