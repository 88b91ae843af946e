"""Low-rank adaptation (LoRA) of frozen layers, on the activation side, in slices of rank.

Source:  Hu et al. 2021, arXiv:2106.09685, section 4.1: h = W0 x + (alpha / r) B A x, A drawn, B zero.
         Layer presets: attention as there; B-LoRA's style block (arXiv:2403.14572, Fig. 3).
Differs: A and B are cut into slices of rank, each with its own parameters, so that a step can teach
         some of them; all of them always act. A whole file is one LoRA of the summed rank.
Symbols: down = A (r in [kh kw]), up = B (out r [1 1]), scale = alpha / r, the same for every slice.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .components import merge_slices

TEXT_PREFIX = "lora_te"  # of the text encoders' layers in kohya's names
SHARED = "shared"  # the slice that every component learns

_NUMBERED = re.compile(r"\.\d+\.")
_NEVER = re.compile(r"(^|[._])(mod|modulation|norm\w*|\w*embed\w*|adaln\w*)([._]|\d|$)", re.I)
_CONVOLUTION = re.compile(r"\.(in_layers\.2|out_layers\.3|op|conv)$")  # residual, down, up
_ATTENTION = re.compile(r"attn|attention|(^|\.)to_[qkv]\b|qkv|single_blocks\.\d+\.linear[12]$")
_MLP = re.compile(r"(^|[._])(ff|ffn|mlp|feed_forward|img_mlp|txt_mlp)([._]|$)")
_STYLE_BLOCK = re.compile(r"output_blocks\.1\.1\.transformer_blocks\.")  # up_blocks.0.attentions.1


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """How a convolution moves over its input; both axes are alike."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """A frozen layer that is adapted: (... inner) to (... outer), or channels of (b c h w)."""

    inner: int
    outer: int
    convolution: Convolution | None = None

    @property
    def greatest_rank(self) -> int:
        kernel = self.convolution.kernel if self.convolution else 1
        return min(self.inner * kernel * kernel, self.outer)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large a LoRA is.

    Args:
        rank: of every slice of a linear layer; convolutions get half of it.
        alpha: scale times rank; 0 is the rank itself, a scale of 1.
        dropout: share of the low-rank activations that a training step drops, 0..1.
        slices: of the image model's layers, by name; text layers have one.

    Raises:
        ValueError: a number is out of its range.
    """

    rank: int = 16
    alpha: float = 0.0
    dropout: float = 0.0
    slices: tuple[str, ...] = (SHARED,)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}, 1 or more is needed")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}, a share from 0 to below 1 is needed")
        if self.alpha < 0 or not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha}, 0 or more is needed (0: as large as rank)")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.alpha else 1.0


class LoraLayer(nn.Module):
    """The factors of one layer.

    Args:
        target: the layer's shape.
        rank: of every slice.
        plan: scale and dropout.
        slices: how many.
        generator: draws the down factors.
    """

    def __init__(
        self, target: Target, rank: int, plan: Plan, slices: int, generator: Generator
    ) -> None:
        super().__init__()
        self.convolution = target.convolution
        self.scale, self.dropout = plan.scale, plan.dropout
        kernel = (self.convolution.kernel,) * 2 if self.convolution else ()
        ones = (1,) * len(kernel)
        downs = [torch.empty(rank, target.inner, *kernel) for _ in range(slices)]
        for down in downs:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.ParameterList(downs)
        self.up = nn.ParameterList([torch.zeros(target.outer, rank, *ones) for _ in range(slices)])
        self.learning: tuple[int, ...] = tuple(range(slices))

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """`base`, the frozen layer's answer to `x`, with what was learned added.

        Args:
            x: (... inner), or (b inner h w) for a convolution.
            base: (... outer), or (b outer h w).
        """
        down = self._joined(self.down, 0).to(x.dtype)
        up = self._joined(self.up, 1).to(x.dtype)
        if self.convolution is None:
            low = F.dropout(F.linear(x, down), self.dropout, self.training)
            flat = torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up.T, alpha=self.scale)
            return flat.view(base.shape)
        own = self.convolution
        low = F.conv2d(x, down, None, own.stride, own.padding, own.dilation)
        low = F.dropout(low, self.dropout, self.training)
        return torch.add(base, F.conv2d(low, up), alpha=self.scale)

    def _joined(self, factors: Iterable[Tensor], axis: int) -> Tensor:
        seen = [
            factor if index in self.learning else factor.detach()
            for index, factor in enumerate(factors)
        ]
        return seen[0] if len(seen) == 1 else torch.cat(seen, axis)


class Lora(nn.Module):
    """All adapted layers of a base, by kohya's names.

    Args:
        targets: layers by kohya's prefix, such as lora_unet_down_blocks_0_..._to_q.
        plan: sizes.
        generator: of the CPU; the same one gives the same LoRA.

    Raises:
        ValueError: no layer, or a layer smaller than the rank.
    """

    def __init__(self, targets: Mapping[str, Target], plan: Plan, generator: Generator) -> None:
        super().__init__()
        if not targets:
            raise ValueError(
                "no layer of this model is chosen, one at least is needed; choose other layers"
            )
        self.plan = plan
        self.layers = nn.ModuleDict()
        for name, target in targets.items():
            rank = plan.rank if target.convolution is None else max(plan.rank // 2, 1)
            if rank > target.greatest_rank:
                raise ValueError(
                    f"rank is {plan.rank}, layer {name} takes {target.greatest_rank} at most; lower "
                    "rank"
                )
            slices = 1 if is_text(name) else len(plan.slices)
            self.layers[name] = LoraLayer(target, rank, plan, slices, generator)

    def learn(self, slices: Sequence[str]) -> None:
        """From now on only these slices of the image model get gradients; the text's always do."""
        chosen = tuple(self.plan.slices.index(name) for name in slices)
        for name, layer in self.named_layers():
            if not is_text(name):
                layer.learning = chosen

    def named_layers(self) -> list[tuple[str, LoraLayer]]:
        return [
            (name, layer) for name, layer in self.layers.items() if isinstance(layer, LoraLayer)
        ]

    def text_parameters(self) -> tuple[str, ...]:
        """Names of the text encoders' parameters."""
        return tuple(
            name for name, _ in self.named_parameters() if is_text(name.removeprefix("layers."))
        )

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds, float32 on the CPU: lora_down, lora_up and alpha by layer."""
        found: dict[str, Tensor] = {}
        for name, layer in self.named_layers():
            pairs = zip(layer.down, layer.up, strict=True)
            parts = [
                {
                    f"{name}.lora_down.weight": down.detach().cpu().clone(),
                    f"{name}.lora_up.weight": up.detach().cpu().clone(),
                    f"{name}.alpha": torch.tensor(layer.scale * down.shape[0]),
                }
                for down, up in pairs
            ]
            found |= merge_slices(parts)
        return found


def is_text(prefix: str) -> bool:
    """Whether a kohya name is of a text encoder's layer."""
    return prefix.startswith(TEXT_PREFIX)


@dataclass(frozen=True)
class Layers:
    """Which kinds of layers of the image model learn."""

    mlp: bool = True
    convolutions: bool = False
    style_block_only: bool = False

    def takes(self, path: str, is_convolution: bool) -> bool:
        """Whether the layer of this path in the network, such as "input_blocks.1.1...to_q", learns.

        Norms, embeddings, modulations, and what lies outside the numbered blocks never do.
        """
        if not _NUMBERED.search(f"{path}.") or _NEVER.search(path):
            return False
        if self.style_block_only and not _STYLE_BLOCK.search(path):
            return False
        if is_convolution:
            return self.convolutions and bool(_CONVOLUTION.search(path))
        if _MLP.search(path):
            return self.mlp
        return bool(_ATTENTION.search(path))
