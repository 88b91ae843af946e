"""IP-Adapter: a picture as a prompt, through decoupled cross-attention.

Source:  Ye et al. 2023, arXiv:2308.06721, Eq. 5, and the authors' released models: base, plus, plus-face
         and full-face, which differ in how a picture's features become tokens.
Symbols: k pictures, s states of a picture, f their width; n tokens, d width of the text.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from .decoupled_attention import LayerShape, Sight, TokenAdapter
from .resampler import Resampler


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What an image encoder saw, and what an `ImagePromptAdapter` is asked for; equal to itself only.

    Args:
        tensor: (k s f) states of k pictures, or their embeddings as (k 1 f), on the CPU. The tokens
            of all k pictures stand side by side.
    """

    tensor: Tensor


class ImageProjection(nn.Module):
    """Base: one embedding becomes a few tokens."""

    kind, reads_states = "base", False

    def __init__(self, in_dim: int, out_dim: int, tokens: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.proj = nn.Linear(in_dim, tokens * out_dim)
        self.norm = nn.LayerNorm(out_dim)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> "ImageProjection":
        """One of the sizes that released weights have; it does not hold them yet."""
        out_dim, (rows, in_dim) = len(state["norm.weight"]), state["proj.weight"].shape
        return cls(in_dim, out_dim, rows // out_dim)

    @property
    def feature_dim(self) -> int:
        return self.proj.in_features

    def forward(self, features: Tensor) -> Tensor:
        """(b 1 f) to (b n d)."""
        return self.norm(rearrange(self.proj(features), "b 1 (n d) -> b n d", d=self.out_dim))


class PlusProjection(Resampler):
    """Plus and plus-face: a resampler reads the states."""

    kind, reads_states = "plus", True

    @property
    def feature_dim(self) -> int:
        return self.proj_in.in_features


class FullProjection(nn.Module):
    """Full-face: every state becomes a token."""

    kind, reads_states = "full-face", True

    def __init__(self, in_dim: int, out_dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, out_dim), nn.LayerNorm(out_dim)
        )

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> "FullProjection":
        """One of the sizes that released weights have; it does not hold them yet."""
        hidden, in_dim = state["proj.0.weight"].shape
        return cls(in_dim, state["proj.2.weight"].shape[0], hidden)

    @property
    def feature_dim(self) -> int:
        return self.proj[0].in_features  # pyright: ignore[reportReturnType]

    def forward(self, features: Tensor) -> Tensor:
        """(b s f) to (b s d)."""
        return self.proj(features)


Projection = ImageProjection | PlusProjection | FullProjection


class ImagePromptAdapter(TokenAdapter):
    """Tokens of pictures; requests are `ImageFeatures`."""

    def __init__(self, projection: Projection, layers: Mapping[str, LayerShape]) -> None:
        super().__init__(layers)
        self.projection = projection

    def batch_key(self, request: Hashable) -> Hashable:
        """Those of one number of pictures have one number of tokens."""
        return tuple(_features(request).shape)

    def tokens(self, sights: Sequence[Sight], height: int, width: int, aspect: float) -> Tensor:
        weight = next(self.to_k.parameters())
        features = torch.stack([_features(sight.request) for sight in sights]).to(weight)
        tokens = self.projection(features.flatten(0, 1))
        return rearrange(tokens, "(b k) n d -> b (k n) d", b=len(sights))


def _features(request: Hashable) -> Tensor:
    assert isinstance(request, ImageFeatures)
    return request.tensor


@dataclass(frozen=True)
class Topology:
    """Cross-attention of a released family of networks.

    Args:
        name: of the family.
        depths: names of the blocks with cross-attention -> transformer layers in them, in the order
            of the files: down, up, middle.
        style: the blocks that decide palette and brush.
        composition: the blocks that decide where things are.
    """

    name: str
    depths: Mapping[str, int]
    style: frozenset[str]
    composition: frozenset[str]

    @property
    def layers(self) -> list[str]:
        return [f"{block}_{i}" for block, depth in self.depths.items() for i in range(depth)]


def _blocks(stage: str, depths: Mapping[int, int]) -> dict[str, int]:
    return {f"{stage}_{number}": depth for number, depth in depths.items()}


SD15 = Topology(
    "SD1.5",
    {
        **_blocks("input", dict.fromkeys((1, 2, 4, 5, 7, 8), 1)),
        **_blocks("output", dict.fromkeys(range(3, 12), 1)),
        "middle_0": 1,
    },
    # by resolution: the two finest levels, and the coarsest one on the way in
    style=frozenset(
        [*(f"input_{i}" for i in (1, 2, 4, 5)), *(f"output_{i}" for i in range(6, 12))]
    ),
    composition=frozenset(["input_7", "input_8"]),
)
SDXL = Topology(
    "SDXL",
    {
        **_blocks("input", {4: 2, 5: 2, 7: 10, 8: 10}),
        **_blocks("output", {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}),
        "middle_0": 10,
    },
    # Wang et al. 2024 (InstantStyle), arXiv:2404.02733, section 3.2
    style=frozenset(["output_1"]),
    composition=frozenset(["input_8"]),
)
TOPOLOGIES = (SD15, SDXL)

ALL, CONTENT, STYLE, COMPOSITION = "all", "content", "style", "composition"
PRESETS = (ALL, CONTENT, STYLE, COMPOSITION)


def preset_strengths(layers: Sequence[str], preset: str) -> dict[str, float]:
    """Zeros for the layers that a preset leaves out.

    Args:
        layers: names of all layers of an adapter.
        preset: of `PRESETS`: content is all but style.
    """
    topology = next((t for t in TOPOLOGIES if len(t.layers) == len(layers)), SD15)
    chosen = {
        ALL: lambda block: True,
        CONTENT: lambda block: block not in topology.style,
        STYLE: lambda block: block in topology.style,
        COMPOSITION: lambda block: block in topology.composition,
    }[preset]
    return {name: 0.0 for name in layers if not chosen(name.rpartition("_")[0])}
