"""The miniature as the inversion benches use it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..models.common.images import bchw_to_image
from ..nodes import mini as nodes
from ..nodes.host.attention import Conditioning
from ..nodes.host.image_prompt import (
    ONE_EACH,
    ImageAdapter,
    ImagePrompt,
    apply_image_prompt,
    open_image_adapter,
)

ADAPTER = Path(__file__).resolve().parents[1] / "mini" / "weights" / "image_prompt.safetensors"


class Miniature:
    """All of its parts, and its image adapter if that has been trained."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = nodes.load_model(), nodes.load_clip(), nodes.load_vae()
        self.clip_vision = nodes.load_clip_vision()
        self.adapter: ImageAdapter | None = None
        if ADAPTER.is_file():
            self.adapter = open_image_adapter(ADAPTER)

    def text(self, captions: Sequence[str]) -> Conditioning:
        """One conditioning with a caption for each picture of the batch."""
        encoded = [
            self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))[0]
            for caption in captions
        ]
        pooled = torch.cat([extras["pooled_output"] for _, extras in encoded])
        return [[torch.cat([text for text, _ in encoded]), {"pooled_output": pooled}]]

    def condition(
        self, captions: Sequence[str], planes: Tensor, weight: float
    ) -> tuple[ModelPatcher, Conditioning]:
        """Model and positive of captions, with each picture (b 3 h w) in its own prompt above weight 0."""
        positive = self.text(captions)
        if weight == 0:
            return self.model, positive
        assert self.adapter is not None
        model, positive, _ = apply_image_prompt(
            self.model, self.adapter, self.clip_vision, bchw_to_image(planes), positive, [],
            ImagePrompt(weight=weight, combine=ONE_EACH),
        )  # fmt: skip
        return model, positive
