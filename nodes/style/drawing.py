"""Pictures of many prompts, drawn as KSampler draws them, under one progress bar."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..host.vae import decode

SAMPLER, SCHEDULER = "dpmpp_2m", "karras"
SEED_BITS = 64


@dataclass(frozen=True)
class Stack:
    """What draws; all of it stays as it is."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn; picture i of a list starts from the noise of seed + i."""

    width: int
    height: int
    steps: int
    cfg: float
    seed: int
    negative: str = ""


def draw(
    stack: Stack, prompts: Sequence[str], how: Drawing, bar: comfy.utils.ProgressBar
) -> Tensor:
    """One picture for each prompt: (b 3 h w), 0..1, on the CPU."""
    negative = _encode(stack.clip, how.negative)
    drawn = []
    for index, prompt in enumerate(prompts):
        comfy.model_management.throw_exception_if_processing_interrupted()
        compression: Any = stack.vae.spacial_compression_encode()
        latent = torch.zeros(1, 4, how.height // compression, how.width // compression)
        latent = comfy.sample.fix_empty_latent_channels(stack.model, latent)
        seed = (how.seed + index) % 2**SEED_BITS
        samples = comfy.sample.sample(
            stack.model,
            comfy.sample.prepare_noise(latent, seed),
            how.steps,
            how.cfg,
            SAMPLER,
            SCHEDULER,
            _encode(stack.clip, prompt),
            negative,
            latent,
            callback=lambda *_: bar.update(1),
            disable_pbar=True,
            seed=seed,
        )
        drawn.append(decode(stack.vae, samples, (how.height, how.width)).cpu())
    return torch.cat(drawn)


def digest(stack: Stack) -> str:
    """A short name for the weights of model, CLIP and VAE, the same in every session.

    A MODEL with patches is told apart within a session only.
    """
    found = hashlib.sha256()
    for patcher in (stack.model, stack.clip.patcher, stack.vae.patcher):
        for name, value in sorted(patcher.model.state_dict().items()):
            few = value.detach().flatten()[:8].float().cpu()
            found.update(f"{name}{tuple(value.shape)}".encode() + few.numpy().tobytes())
        if patcher.patches:
            found.update(str(patcher.patches_uuid).encode())
    return found.hexdigest()[:16]


def _encode(clip: comfy.sd.CLIP, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
