"""Perceiver resampler: a few learned queries read a whole picture's states.

Source:  Ye et al. 2023 (IP-Adapter), arXiv:2308.06721, the "plus" models as released; the attention is
         that of Flamingo, arXiv:2204.14198, section 3.1: keys and values of states and queries both.
Symbols: n queries, s states, d width inside.
"""

from itertools import count

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

HEAD_DIM = 64  # of all released files; they do not tell it


class Resampler(nn.Module):
    """States of any number to tokens of a fixed number; parameters are named as released."""

    def __init__(self, in_dim: int, out_dim: int, dim: int, queries: int, depth: int) -> None:
        """Set up.

        Args:
            in_dim: width of the states.
            out_dim: width of the tokens.
            dim: width inside, a multiple of `HEAD_DIM`.
            queries: number of tokens.
            depth: layers.
        """
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, queries, dim) * dim**-0.5)
        self.proj_in = nn.Linear(in_dim, dim)
        self.proj_out = nn.Linear(dim, out_dim)
        self.norm_out = nn.LayerNorm(out_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim), _feed_forward(dim)]) for _ in range(depth)
        )

    @classmethod
    def like(cls, state: dict[str, Tensor]) -> "Resampler":
        """One of the sizes that released weights have; it does not hold them yet."""
        return cls(
            in_dim=state["proj_in.weight"].shape[1],
            out_dim=state["proj_out.weight"].shape[0],
            dim=state["latents"].shape[2],
            queries=state["latents"].shape[1],
            depth=next(i for i in count() if f"layers.{i}.0.to_q.weight" not in state),
        )

    def forward(self, states: Tensor) -> Tensor:
        """Read states (b s in_dim) into tokens (b n out_dim)."""
        x = self.proj_in(states)
        # a host that loads layer by layer may have left this one weight elsewhere
        latents = self.latents.to(x).expand(len(x), -1, -1)
        for attention, feed_forward in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            latents = latents + attention(x, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    """Queries attend to the states and to themselves."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        states, latents = self.norm1(states), self.norm2(latents)
        k, v = self.to_kv(torch.cat([states, latents], 1)).chunk(2, -1)
        q, k, v = (
            rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)
            for x in (self.to_q(latents), k, v)
        )
        read = scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(read, "b heads n d -> b n (heads d)"))


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 4 * dim, bias=False),
        nn.GELU(),
        nn.Linear(4 * dim, dim, bias=False),
    )
