"""A picture as what is wanted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip_reward import ImageEncoder


def embed_reference(encoder: ImageEncoder, image: Tensor) -> Tensor:
    """What several pictures have in common: the mean (1 d) of their unit embeddings.

    Args:
        encoder: the one that will see the pictures to score.
        image: (b 3 h w), 0..1.
    """
    with torch.no_grad():
        embeddings = F.normalize(encoder.embed(encoder.preprocessing(image)).float(), dim=-1)
    return embeddings.mean(0, keepdim=True)
