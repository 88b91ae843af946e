"""Likeness of pictures: of the whole, and inside and outside of a mask.

Source:  Wang et al. 2004 (SSIM, Gaussian window of 11 px); Zhang et al. 2018 (LPIPS),
         arXiv:1801.03924, with its AlexNet; kornia's and torchmetrics' implementations.
Differs: a region's PSNR takes its pixels alone, its SSIM the mean of the map over them; its LPIPS
         is that of pictures which are equal elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

WINDOW_PX = 11
MIN_LPIPS_PX = 32  # below it AlexNet's last layers have nothing left to look at
WHOLE, INSIDE, OUTSIDE = "whole", "inside", "outside"


class MissingMetricError(Exception):
    """Why a metric cannot be had, in a sentence for the reader of the table."""


@dataclass(frozen=True)
class Likeness:
    """Of each picture of a batch (b), float32; PSNR in dB, infinite where nothing differs."""

    mse: Tensor
    psnr: Tensor
    ssim: Tensor


def measure_likeness(
    image: Tensor, reference: Tensor, mask: Tensor | None = None
) -> dict[str, Likeness]:
    """Likeness of pictures to references, of the whole and of each side of a mask.

    Args:
        image: (b 3 h w), 0..1.
        reference: (b 3 h w) or (1 3 h w).
        mask: (b 1 h w) or (1 1 h w), 0..1; 0 is outside, all else inside. A side without pixels
            is left out, unless it has some in another picture of the batch: NaN there.

    Raises:
        ValueError: other sizes, or numbers that cannot be paired.
    """
    from kornia.metrics import ssim  # here: not before a picture is measured

    reference = paired(image, reference)
    inside = regions(image, mask)
    found = {WHOLE: torch.ones_like(inside)}
    if mask is not None:
        found |= {INSIDE: inside, OUTSIDE: ~inside}
    similarity = ssim(image, reference, WINDOW_PX, eps=0.0)
    return {
        name: _likeness(image, reference, similarity, region)
        for name, region in found.items()
        if region.any()
    }


def paired(image: Tensor, reference: Tensor, name: str = "reference") -> Tensor:
    """`reference`, repeated to one for each picture; ValueError where that cannot be."""
    if image.shape[-2:] != reference.shape[-2:]:
        sizes = [f"{x.shape[-1]} x {x.shape[-2]}" for x in (image, reference)]
        raise ValueError(
            f"image is {sizes[0]} px, {name} is {sizes[1]} px, the same size is needed; resize or "
            "crop one of them"
        )
    if len(reference) not in (1, len(image)):
        raise ValueError(
            f"{name} holds {len(reference)} pictures, image holds {len(image)}; pass one, or one "
            "per picture"
        )
    return reference.to(image).expand_as(image)


def regions(image: Tensor, mask: Tensor | None) -> Tensor:
    """What a mask lets change: (b 1 h w) of truth values, all of it without a mask."""
    shape = (len(image), 1, *image.shape[-2:])
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=image.device)
    return (mask.to(image.device) > 0).expand(shape)


def _likeness(image: Tensor, reference: Tensor, similarity: Tensor, region: Tensor) -> Likeness:
    from kornia.metrics import psnr as psnr_of  # here: not before a picture is measured

    mse, psnr, ssim = [], [], []
    for x, y, s, where in zip(image, reference, similarity, region[:, 0], strict=True):
        x, y = x[:, where], y[:, where]
        mse.append(torch.nn.functional.mse_loss(x, y))
        psnr.append(psnr_of(x, y, 1.0))
        ssim.append(s[:, where].mean())
    return Likeness(torch.stack(mse), torch.stack(psnr), torch.stack(ssim))


def measure_lpips(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """LPIPS (b) of each pair of pictures (b 3 h w), 0..1; all of them of one size.

    Raises:
        MissingMetricError: torchmetrics or the network's weights are not on this machine, or the
            pictures are too small. Nothing is downloaded.
    """
    image, reference = (torch.cat(side) for side in zip(*pairs, strict=True))
    if min(image.shape[-2:]) < MIN_LPIPS_PX:
        raise MissingMetricError(f"LPIPS needs pictures of {MIN_LPIPS_PX} px a side or more")
    try:  # heavy, and an extra
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
        from torchvision.models import AlexNet_Weights
    except ImportError:
        raise MissingMetricError(
            "LPIPS needs the package torchmetrics: pip install torchmetrics"
        ) from None
    url = AlexNet_Weights.DEFAULT.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / Path(url).name).is_file():
        raise MissingMetricError(f"LPIPS needs {Path(url).name} in {folder}, from {url}")
    scores = learned_perceptual_image_patch_similarity(
        image, reference, net_type="alex", reduction="none", normalize=True
    )
    return list(scores.reshape(-1).split([len(x) for x, _ in pairs]))


def kept_to(region: Tensor, image: Tensor, reference: Tensor) -> Tensor:
    """The pictures with the reference outside a region (b 1 h w), so that only the region differs."""
    return torch.where(region, image, reference)
