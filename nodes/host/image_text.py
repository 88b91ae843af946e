"""Core's CLIP and CLIP_VISION as the two towers of an image-text model."""

from collections.abc import Sequence
from typing import Any

import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor, nn

from ...models.common.images import bchw_to_image
from ...models.common.metrics import MissingMetricError
from .gradients import out_of_place


def picture_features(clip_vision: ClipVisionModel, planes: Tensor) -> Tensor:
    """Embeddings (b d), float32 on the CPU, of pictures (b 3 h w), 0..1; without gradients."""
    return clip_vision.encode_image(bchw_to_image(planes))["image_embeds"].float().cpu()


def text_features(clip: comfy.sd.CLIP, texts: Sequence[str]) -> Tensor:
    """Embeddings (k d), float32 on the CPU, of texts in the space of the pictures.

    Raises:
        MissingMetricError: the encoder gives none: it has no projection, or is of another kind.
    """
    # not in core's annotation: its flag takes this word, too
    unprojected: Any = "unprojected"
    answers: list[Any] = [
        clip.encode_from_tokens(clip.tokenize(text), return_pooled=unprojected) for text in texts
    ]
    answers = [pooled for _, pooled in answers]
    projection = None if answers[0] is None else _projection(clip, answers[0].shape[-1])
    if projection is None:
        raise MissingMetricError(
            "CLIP similarity to text needs a text encoder with its projection, which checkpoints "
            "leave out: load the whole CLIP-L or CLIP-G file with Load CLIP"
        )
    pooled = torch.cat(answers)
    return projection(pooled.to(clip.patcher.load_device)).float().cpu()


def embed_pixels(clip_vision: ClipVisionModel, pixels: Tensor) -> Tensor:
    """Embeddings (b d) of preprocessed pixels (b 3 s s), with gradients inside `gradients`."""
    with out_of_place():
        return clip_vision.model(pixel_values=pixels.to(clip_vision.load_device))[2]


def embed_patches(clip_vision: ClipVisionModel, pixels: Tensor) -> Tensor:
    """The same of every patch (b n d), read as core reads the class token."""
    network: Any = clip_vision.model
    with out_of_place():
        seen = network(pixel_values=pixels.to(clip_vision.load_device))[0][:, 1:]
        return network.visual_projection(network.vision_model.post_layernorm(seen))


def layer_states(clip_vision: ClipVisionModel, pixels: Tensor) -> Tensor:
    """What each layer hands on (b l n d), for preprocessed pixels; gradients as above."""
    with out_of_place():
        return clip_vision.model(
            pixel_values=pixels.to(clip_vision.load_device), intermediate_output="all"
        )[1]


def _projection(clip: comfy.sd.CLIP, width: int) -> nn.Linear | None:
    """The layer that brings a pooled text to the space of pictures; None where it does nothing."""
    unit = torch.eye(width, device=clip.patcher.load_device)
    for name, layer in clip.cond_stage_model.named_modules():
        if name.endswith("text_projection") and isinstance(layer, nn.Linear):
            fits = layer.in_features == width
            if fits and not torch.equal(layer(unit), unit):  # core starts with none
                return layer
    return None
