"""Decoupled cross-attention: extra tokens with keys, values and a softmax of their own.

Source:  Ye et al. 2023 (IP-Adapter), arXiv:2308.06721, Eq. 5:
         Z = softmax(Q K^T / sqrt d) V + s softmax(Q K'^T / sqrt d) V'
Differs: K' and V' may be another set for every query (tokens that know their position).
Symbols: Q of the frozen network; K', V' from extra tokens; s strength.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, scaled_dot_product_attention

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the frame
WHOLE_FRAME: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class LayerShape:
    """Widths of one cross-attention layer: of the text that it reads, and of its keys."""

    context_dim: int
    inner_dim: int


@dataclass(frozen=True)
class Sight:
    """What one picture of a batch asks for, and which part of the frame the network looks at."""

    request: Hashable
    crop: Box = WHOLE_FRAME


class TokenAdapter(nn.Module):
    """Makes extra tokens, and their keys and values for every layer it knows.

    Subclasses write `tokens`; those whose tokens differ from place to place set `positional`, and
    `shared_tokens` to how many of the last tokens do not.
    """

    positional = False
    shared_tokens = 0

    def __init__(self, layers: Mapping[str, LayerShape]) -> None:
        super().__init__()
        self.layers = dict(layers)
        self.to_k = nn.ModuleDict({name: _projection(shape) for name, shape in layers.items()})
        self.to_v = nn.ModuleDict({name: _projection(shape) for name, shape in layers.items()})

    def tokens(self, sights: Sequence[Sight], height: int, width: int, aspect: float) -> Tensor:
        """Tokens of each sight for an attention map of `height` x `width` places.

        Args:
            sights: one per picture.
            height: places of the map from top to bottom.
            width: places of the map from left to right.
            aspect: width over height of the whole frame.

        Returns:
            (b n d), the same for all places, or (b p n d) with p = height*width, row by row.
        """
        raise NotImplementedError

    def batch_key(self, request: Hashable) -> Hashable:
        """Requests whose keys differ are not handed to `tokens` together."""
        return None

    def query_term(
        self, layer: str, sights: Sequence[Sight], height: int, width: int
    ) -> Tensor | None:
        """What is added to a layer's queries (b p d) for these tokens alone; None is nothing."""
        return None

    def keys_values(self, layer: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """K' and V' of a layer: the shape of `tokens` with the layer's inner width at the end."""
        return self.to_k[layer](tokens), self.to_v[layer](tokens)

    def parts(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (b p n d) without the repetition: own ones, and shared ones as (b 1 n d)."""
        if tokens.ndim == 3 or not self.shared_tokens:
            return [tokens]
        own = tokens.shape[2] - self.shared_tokens
        return [tokens[:, :, :own], tokens[:, :1, own:]]


def _projection(shape: LayerShape) -> nn.Linear:
    return nn.Linear(shape.context_dim, shape.inner_dim, bias=False)


def decoupled_attention(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], heads: int
) -> Tensor:
    """The second term of Eq. 5, without its strength.

    Args:
        q: (b p d) queries of the network.
        keys: one (b n d) for all queries; or parts (b p n d) of own keys for each query, where b and
            p may be 1 for all pictures and all places.
        values: like `keys`.
        heads: attention heads that share d.

    Returns:
        (b p d).
    """
    if keys[0].ndim == 4:
        return _attention_of_own_tokens(q, keys, values, heads)
    (k,), (v,) = keys, values
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    shape = (q.shape[0], *k.shape[1:])
    attended = scaled_dot_product_attention(q, k.expand(shape), v.expand(shape))
    return rearrange(attended, "b heads n d -> b n (heads d)")


def _attention_of_own_tokens(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], heads: int
) -> Tensor:
    # a handful of tokens per query: products and sums beat a matrix product per place, most of all
    # with the places innermost
    scale = (q.shape[-1] // heads) ** -0.5
    q = rearrange(q * scale, "b p (heads d) -> b 1 heads d p", heads=heads).contiguous()
    by_token = "b p n (heads d) -> b n heads d p"
    products = [(q * rearrange(k, by_token, heads=heads)).sum(3, keepdim=True) for k in keys]
    weights = torch.cat(products, 1).softmax(1).split([k.shape[2] for k in keys], 1)
    attended = [
        (weight * rearrange(v, by_token, heads=heads)).sum(1)
        for weight, v in zip(weights, values, strict=True)
    ]
    return rearrange(sum(attended[1:], attended[0]), "b heads d p -> b p (heads d)")


def places_innermost(own: Tensor) -> Tensor:
    """The same keys or values (b p n d) in the memory order in which attention reads them fastest."""
    stored = rearrange(own, "b p n d -> b n d p").contiguous()
    return rearrange(stored, "b n d p -> b p n d")


def place_centres(height: int, width: int, crop: Box = WHOLE_FRAME) -> Tensor:
    """Centres (p 2) of a map's places, x and y as shares of the whole frame, row by row."""
    left, top, right, bottom = crop
    y = top + (torch.arange(height) + 0.5) / height * (bottom - top)
    x = left + (torch.arange(width) + 0.5) / width * (right - left)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def share_of_places(mask: Tensor, height: int, width: int, crop: Box = WHOLE_FRAME) -> Tensor:
    """How much of each place of a map a mask covers.

    Args:
        mask: (y x) of any size, 0..1; it covers the whole frame.
        height: places of the map from top to bottom.
        width: places of the map from left to right.
        crop: part of the frame that the map shows; its edges go to the mask's nearest px.

    Returns:
        (p), row by row.
    """
    rows, columns = mask.shape
    left, top, right, bottom = crop
    x, y = (min(round(left * columns), columns - 1), min(round(top * rows), rows - 1))
    part = mask[y : max(round(bottom * rows), y + 1), x : max(round(right * columns), x + 1)]
    return adaptive_avg_pool2d(part[None, None].float(), (height, width)).flatten()
