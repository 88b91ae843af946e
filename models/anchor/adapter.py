"""Anchor adapter: the encoder, and keys and values of its tokens for every cross-attention layer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..common.anchor import Anchor
from ..common.decoupled_attention import LayerShape, Sight, TokenAdapter, place_centres
from .encoder import REGISTERS, AnchorEncoder, anchor_numbers


class AnchorAdapter(TokenAdapter):
    """Position-relative anchor tokens; requests are `Anchor` objects.

    A new adapter changes nothing: its values are zero until they are trained.
    """

    positional = True
    shared_tokens = REGISTERS

    def __init__(self, layers: Mapping[str, LayerShape]) -> None:
        super().__init__(layers)
        widths = {shape.context_dim for shape in layers.values()}
        if len(widths) != 1:
            raise ValueError(
                f"the layers read text of {len(widths)} widths {sorted(widths)}, one is needed; "
                "choose a base whose cross-attention layers all read the same text"
            )
        self.encoder = AnchorEncoder(widths.pop())
        for projection in self.to_v.values():
            nn.init.zeros_(projection.weight)  # pyright: ignore[reportArgumentType]

    def tokens(self, sights: Sequence[Sight], height: int, width: int, aspect: float) -> Tensor:
        anchors = torch.stack([anchor_numbers(_anchor_of(sight)) for sight in sights])
        places = torch.stack([place_centres(height, width, sight.crop) for sight in sights])
        device = self.encoder.nulls.device
        return self.encoder(anchors.to(device), places.to(device), aspect)


def _anchor_of(sight: Sight) -> Anchor:
    assert isinstance(sight.request, Anchor)
    return sight.request
