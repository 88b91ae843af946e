"""Self-attention that an edit shares with its source (prompt-to-prompt), on UNets.

Source:  Hertz et al. 2022 (prompt-to-prompt), arXiv:2208.01626, section 3.2, with the released code's
         rule: only maps of a quarter of the latent's places or fewer are shared.
How:     one pass of the source keeps what its self-attention layers ask with; in the edit's pass the
         chosen rows ask with that, so that their attention maps are the source's, of their own values.
         Both passes get their patch through copied options: nothing of the model is touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

COARSEST_OF_THE_FINE = 4  # places of the latent for one of a map that is still shared

Patch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], tuple[Tensor, Tensor, Tensor]]


def check_shares_attention(model: ModelPatcher, share: float) -> None:
    """Refuse a model whose self-attention cannot be shared.

    Raises:
        ValueError: share is above 0 and the model is no UNet.
    """
    network = model.get_model_object("diffusion_model")
    if share > 0 and not isinstance(network, UNetModel):
        raise ValueError(
            f"share_attention is {share:g} and model is a {type(model.model).__name__}, a UNet is needed "
            "(SD1.5, SDXL, the miniature); set share_attention to 0"
        )


@dataclass
class SourceAttention:
    """What the self-attention layers asked with in one pass of the source: queries' and keys' inputs."""

    frame: tuple[int, int]  # latent px: height, width
    kept: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def recording(self, options: dict[str, Any]) -> dict[str, Any]:
        """Model options for the source's pass."""
        return _patched(options, self._record)

    def sharing(self, options: dict[str, Any], conds: Sequence[int]) -> dict[str, Any]:
        """Model options for the edit's pass, in which the conds of these indices look as the source did."""

        def share(
            n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]
        ) -> tuple[Tensor, Tensor, Tensor]:
            kept = self.kept.get(_layer(extra)) if self._is_shared(n, extra) else None
            rows = _rows(extra["cond_or_uncond"], conds, len(n))
            if kept is None or not rows:
                return n, context, value
            n, context = n.clone(), context.clone()
            for chunk in rows:
                n[chunk], context[chunk] = kept
            return n, context, value

        return _patched(options, share)

    def _record(
        self, n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._is_shared(n, extra):
            count = len(n) // len(extra["cond_or_uncond"])  # the first entry of the conditioning
            self.kept.setdefault(_layer(extra), (n[:count], context[:count]))
        return n, context, value

    def _is_shared(self, n: Tensor, extra: dict[str, Any]) -> bool:
        whole = tuple(extra["original_shape"][-2:]) == self.frame  # no area of the frame
        height, width = self.frame
        return whole and n.shape[1] * COARSEST_OF_THE_FINE <= height * width


def _layer(extra: dict[str, Any]) -> tuple[Any, ...]:
    return (*extra["block"], extra["block_index"])


def _rows(cond_or_uncond: Sequence[int], conds: Sequence[int], batch: int) -> list[slice]:
    count = batch // len(cond_or_uncond)
    return [
        slice(place * count, (place + 1) * count)
        for place, cond in enumerate(cond_or_uncond)
        if cond in conds
    ]


def _patched(options: dict[str, Any], patch: Patch) -> dict[str, Any]:
    inner = options.get("transformer_options", {})
    patches = inner.get("patches", {})
    patches = {**patches, "attn1_patch": [*patches.get("attn1_patch", []), patch]}
    return {**options, "transformer_options": {**inner, "patches": patches}}
