"""Decoding with gradients: whole, in blocks that are done again when their gradient is due."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .gradients import out_of_place


class DifferentiableDecoder:
    """A VAE's decoder as a function of the latent, with gradients where core's node has none.

    Core's own rounds nothing but clamps, and falls back to tiles, which pass no gradient. Here the
    clamp is one on the way forward only, so that pixels beyond black and white can come back.
    """

    def __init__(self, vae: comfy.sd.VAE) -> None:
        """Set up.

        Args:
            vae: left as it is; TAESD and the like will do.

        Raises:
            ValueError: it decodes in tiles of its own, or its weights are streamed for good.
        """
        _refuse_tiles(vae)
        self.vae = vae
        self.patcher: ModelPatcher = _whole(vae.patcher)
        self._network: Any = self.patcher.model

    def __call__(self, latent: Tensor) -> Tensor:
        """Pictures (b 3 h w), about 0..1, of a latent (b c ...); frames become a batch.

        Call inside `gradients`, with `patcher` loaded and its weights ordinary.

        Raises:
            ValueError: the latent has other channels, or the decoder passes no gradient.
        """
        if latent.ndim == 5 and self.vae.latent_dim == 2:
            latent = latent[:, :, 0]
        if latent.shape[1] != self.vae.latent_channels:
            raise ValueError(
                f"vae reads latents of {self.vae.latent_channels} channels, model makes "
                f"{latent.shape[1]}; connect the VAE that belongs to the model"
            )
        with out_of_place(), recomputed_blocks(self._network):
            decoded = self._network.decode(latent.to(self.patcher.load_device, self.vae.vae_dtype))
        if latent.requires_grad and not decoded.requires_grad:
            raise ValueError(
                "vae passes no gradient, as if it decoded in tiles; connect a plain VAE, or TAESD"
            )
        planes = self._finished(decoded.float())
        return planes if planes.ndim == 4 else planes.transpose(1, 2).flatten(0, 1)

    def _finished(self, decoded: Tensor) -> Tensor:
        """What core does at the end, straight through the clamp on the way back."""
        low, high = (
            float(self.vae.process_output(decoded.detach().new_full((1, 3, 1, 1), value)).mean())
            for value in (0.0, 0.5)  # inside of every clamp
        )
        straight = low + (high - low) / 0.5 * decoded
        clamped = self.vae.process_output(decoded.detach().clone())
        return straight + (clamped - straight).detach()


@contextmanager
def recomputed_blocks(network: nn.Module) -> Iterator[None]:
    """Keep a network's activations between its blocks only, for the context.

    Blocks are what stands in lists and sequences, the outermost ones; the network is the same after.
    """
    blocks = list(_blocks(network))
    for block in blocks:
        vars(block)["forward"] = _recomputed(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        is_container = type(child) is nn.Module or isinstance(child, nn.ModuleList | nn.Sequential)
        if listed and not is_container and any(True for _ in child.parameters()):
            if "forward" not in vars(child):
                yield child
        else:
            yield from _blocks(child)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        plain = all(arg is None or isinstance(arg, Tensor) for arg in (*args, *kwargs.values()))
        if not (plain and torch.is_grad_enabled()):  # video decoders hand lists from call to call
            return forward(*args, **kwargs)

        def again(*given: Any) -> Any:
            with out_of_place():  # which does not reach the backward pass
                return forward(*given, **kwargs)

        return checkpoint(again, *args, use_reentrant=False)

    return run


def _whole(patcher: ModelPatcher) -> ModelPatcher:
    if not patcher.is_dynamic():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            "vae has streamed weights (dynamic VRAM) and its loader cannot load them whole, which a "
            "gradient needs; start ComfyUI with --disable-dynamic-vram"
        ) from error


def _refuse_tiles(vae: comfy.sd.VAE) -> None:
    if vae.handles_tiling or "decode" in vars(vae) or "decode" in vars(vae.first_stage_model):
        raise ValueError(
            "vae decodes in tiles or was changed by another pack, a whole picture is needed for its "
            "gradient; connect a plain VAE, or TAESD"
        )
