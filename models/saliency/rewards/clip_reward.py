"""Closeness of a picture to a text or another picture in an image-text model's space.

Source:  CLIP, Radford et al. 2021, arXiv:2103.00020 (cosine); squared great-circle distance as in
         DOODL, Wallace et al. 2023, arXiv:2303.13703: d(a, b) = 2 asin(|a - b| / 2)^2.
Symbols: a embedding of the picture, b the wanted embedding, both of length 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .preprocessing import Preprocessing
from .reward import POINTS, SALIENT, WHOLE

COSINE, GREAT_CIRCLE = DISTANCES = ("cosine", "great circle")
LEAST = 1e-6  # from both ends of a chord's length, where it or its arc has no gradient


class ImageEncoder(Protocol):
    """The image tower of an image-text model."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How it was trained to see pictures."""
        ...

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings (b d), of any length, of preprocessed pixels; on the encoder's device."""
        ...

    def tokens(self, pixels: Tensor) -> Tensor:
        """The same of every patch (b n d), row by row."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClipReward:
    """How close pictures come to what is wanted.

    Args:
        name: what tables call it.
        encoder: sees the pictures.
        wanted: for the whole picture, and for the salient part if that is to be something else:
            (1 d) of any length, of the encoder's own space.
        weight: of its points in the total.
        distance: of `DISTANCES`. The great circle pulls harder the farther the picture is.

    Raises:
        ValueError: nothing is wanted of the whole picture, or `distance` is another word.
    """

    name: str
    encoder: ImageEncoder
    wanted: Mapping[str, Tensor]
    weight: float = 1.0
    distance: str = COSINE

    def __post_init__(self) -> None:
        if WHOLE not in self.wanted:
            raise ValueError(f"{self.name} wants nothing of the whole picture; give it a text")
        if self.distance not in DISTANCES:
            raise ValueError(
                f"distance is {self.distance!r}, one of {', '.join(DISTANCES)} is needed; choose one"
            )

    def score(self, image: Tensor, part: str = WHOLE) -> Tensor:
        """As in `Reward`: 100 cos(a, b), or 100 (1 - d(a, b))."""
        return self._points(self.encoder.embed(self.encoder.preprocessing(image)), part, image)

    def score_pooled(self, image: Tensor, found: Tensor) -> Tensor:
        """Points (b) of the salient part: of patch tokens, each as much as the map (b 1 h w) says."""
        tokens = self.encoder.tokens(self.encoder.preprocessing(image))
        side = round(tokens.shape[1] ** 0.5)
        share = F.adaptive_avg_pool2d(self.encoder.preprocessing.place(found), side).flatten(1)
        share = share / share.sum(1, keepdim=True).clamp_min(LEAST)
        return self._points((tokens * share[..., None].to(tokens)).sum(1), SALIENT, image)

    def _points(self, embedding: Tensor, part: str, image: Tensor) -> Tensor:
        a = F.normalize(embedding.float(), dim=-1)
        b = F.normalize(self.wanted.get(part, self.wanted[WHOLE]).to(a), dim=-1)
        if self.distance == COSINE:
            return POINTS * (a * b).sum(-1).to(image.device)
        return POINTS * (1 - squared_great_circle(a, b)).to(image.device)


def squared_great_circle(a: Tensor, b: Tensor) -> Tensor:
    """d(a, b) (b) of unit vectors (b d): half the square of the angle between them."""
    chord = (a - b).square().sum(-1).clamp_min(LEAST**2).sqrt()
    return 2 * torch.asin((chord / 2).clamp(max=1 - LEAST)).square()
