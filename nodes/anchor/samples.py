"""Sample pictures of an adapter that is being trained."""

from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.sd
import torch
from torch import Tensor

from ...models.anchor.adapter import AnchorAdapter
from ...models.common.anchor import Anchor
from ..host.attention import Conditioning, Extra, with_extra
from ..host.training import FrozenDenoiser

STEPS, SAMPLER, SCHEDULER, SCALE = 16, "dpmpp_2m", "karras", 4.0


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to draw: one picture per anchor, all from the same noise."""

    vae: comfy.sd.VAE
    positive: Conditioning
    negative: Conditioning
    anchors: tuple[Anchor, ...]
    latent_shape: tuple[int, ...]  # c h w
    seed: int


@torch.no_grad()
def draw_samples(frozen: FrozenDenoiser, adapter: AnchorAdapter, request: SampleRequest) -> Tensor:
    """Pictures (b 3 h w) by stock sampling with the adapter as it is now."""
    count = len(request.anchors)
    extras = [Extra(adapter=adapter, request=anchor) for anchor in request.anchors]
    generator = torch.Generator().manual_seed(request.seed)
    noise = torch.randn(1, *request.latent_shape, generator=generator).repeat(count, 1, 1, 1)
    try:
        latent = comfy.sample.sample(
            frozen.model,
            noise,
            STEPS,
            SCALE,
            SAMPLER,
            SCHEDULER,
            with_extra(request.positive, extras),
            with_extra(request.negative, [None]),
            torch.zeros_like(noise),
            seed=request.seed,
            disable_pbar=True,
        )
        images = request.vae.decode(latent)
    finally:  # sampling has let go of the model, decoding may have pushed it out
        comfy.model_management.load_models_gpu([frozen.model], force_full_load=True)
        frozen.model.pre_run()
    return images[..., :3].movedim(-1, 1).float().cpu().clamp(0.0, 1.0)
