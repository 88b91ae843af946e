"""A picture as a prompt: on a MODEL and its conditionings, for every node that takes one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.common.image_adapter import ALL, ImageFeatures, preset_strengths
from ...models.common.image_adapter_files import LoadedImageAdapter, load_image_adapter
from ...models.common.images import bchw_to_image, image_to_bchw, mask_to_b1hw
from .attention import Conditioning, Extra, attend_extra, check_fits, with_extra

ZERO_PIXELS, SAME_PICTURE, BLACK_PICTURE, NO_PICTURE = UNCONDS = (
    "zero pixels (paper)", "same picture in both", "black picture", "none",
)  # fmt: skip
JOINED, AVERAGE, ONE_EACH = COMBINES = (
    "all at once", "average", "one per picture of the batch",
)  # fmt: skip
PADDED, CROPPED = FITS = ("pad to a square", "crop the centre")


@dataclass(frozen=True)
class ImageAdapter:
    """What a VEDUTA_IMAGE_ADAPTER socket carries.

    Args:
        loaded: the adapter and what is known of it.
        patcher: of the adapter: through it core moves it to the device, and frees it, with the MODEL.
    """

    loaded: LoadedImageAdapter
    patcher: ModelPatcher


def open_image_adapter(path: Path, name: str | None = None) -> ImageAdapter:
    """Read an IP-Adapter file; errors as in `load_image_adapter`."""
    loaded = load_image_adapter(path, name)
    device = comfy.model_management.get_torch_device()
    if not comfy.model_management.should_use_fp16(device):
        loaded.adapter.float()
    # core's dynamic patcher streams weights to its own layers only
    patcher = ModelPatcher(
        loaded.adapter, device, offload_device=comfy.model_management.unet_offload_device()
    )
    patcher.cached_patcher_init = (_patcher_of, (path, name))
    return ImageAdapter(loaded, patcher)


def _patcher_of(path: Path, name: str | None) -> ModelPatcher:
    return open_image_adapter(path, name).patcher


@dataclass(frozen=True, kw_only=True)
class ImagePrompt:
    """How a picture acts.

    Args:
        weight: 0 is off and changes nothing, 1 as trained.
        start_percent: share of the sampling from which on it acts.
        end_percent: share of the sampling until which it acts.
        curve: factors of weight at the start and at the end of that share.
        layers: of `models.common.image_adapter.PRESETS`.
        uncond: of `UNCONDS`: what the negative sees.
        combine: of `COMBINES`: what several pictures are.
        fit: of `FITS`: what becomes of a picture that is not square.
        mask: MASK, 1 where it acts; one, or one per picture of the batch. None is everywhere.

    Raises:
        ValueError: no step lies between start_percent and end_percent.
    """

    weight: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    curve: tuple[float, float] = (1.0, 1.0)
    layers: str = ALL
    uncond: str = ZERO_PIXELS
    combine: str = JOINED
    fit: str = PADDED
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"start_percent is {self.start_percent:g}, end_percent is {self.end_percent:g}, so "
                "the picture would never act; set start_percent below end_percent"
            )


def apply_image_prompt(
    model: ModelPatcher,
    adapter: ImageAdapter,
    clip_vision: ClipVisionModel,
    image: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    settings: ImagePrompt,
) -> tuple[ModelPatcher, Conditioning, Conditioning]:
    """Let a positive see a picture, and a negative what `settings.uncond` says.

    Args:
        model: left unmodified.
        adapter: of the model's base.
        clip_vision: the encoder that the adapter was trained with.
        image: (b h w c), 0..1.
        positive: left unmodified.
        negative: left unmodified; may be [].
        settings: how the picture acts.

    Returns:
        A clone of the model, and the conditionings for it.

    Raises:
        ValueError: the adapter is of another base, the encoder of another width; the picture or the
            mask is none.
    """
    loaded = adapter.loaded
    patched = attend_extra(model)
    check_fits(loaded.adapter, model, f"adapter ({loaded.base})")
    patched.set_additional_models(f"veduta.image_adapter.{id(loaded.adapter)}", [adapter.patcher])
    planes = image_to_bchw(image, "image")
    if settings.weight == 0:
        return patched, with_extra(positive, [None]), with_extra(negative, [None])
    encoder = _Encoder(clip_vision, loaded)
    shown = _combined(encoder.encode(planes, settings.fit), settings.combine)
    unshown = _uncond(encoder, shown, settings.uncond)
    return (
        patched,
        with_extra(positive, _extras(loaded, shown, settings)),
        with_extra(negative, _extras(loaded, unshown, settings) if unshown else [None]),
    )


class _Encoder:
    """A CLIP_VISION, giving what an adapter reads."""

    def __init__(self, clip_vision: ClipVisionModel, loaded: LoadedImageAdapter) -> None:
        self.clip_vision, self.loaded = clip_vision, loaded
        self.projection = loaded.adapter.projection

    def encode(self, planes: Tensor, fit: str) -> Tensor:
        """Features (k s f) on the CPU of pictures (k 3 h w)."""
        if fit == PADDED:
            planes = _padded(planes, planes.new_tensor(self.clip_vision.image_mean))
        seen = self.clip_vision.encode_image(bchw_to_image(planes))
        features = (
            seen["penultimate_hidden_states"]
            if self.projection.reads_states
            else seen["image_embeds"][:, None]
        )
        wanted = self.projection.feature_dim
        if features.shape[-1] != wanted:
            raise ValueError(
                f"clip_vision gives features of width {features.shape[-1]}, adapter "
                f"({self.loaded.kind}, {self.loaded.base}) reads {wanted}; load the image encoder "
                "that it was trained with (ViT-H for most)"
            )
        return features.float().cpu()

    def encode_nothing(self) -> Tensor:
        """Features (1 s f) of no picture, as the adapters were trained."""
        if self.projection.reads_states:
            return zero_pixel_states(self.clip_vision)
        return torch.zeros(1, 1, self.projection.feature_dim)


def zero_pixel_states(clip_vision: ClipVisionModel) -> Tensor:
    """Penultimate states (1 s f), on the CPU, of normalised pixels that are all zero.

    No picture of 8 bits has such pixels, so the encoder's network is called itself.
    """
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    size = clip_vision.image_size
    pixels = torch.zeros(1, 3, size, size, device=clip_vision.load_device)
    return clip_vision.model(pixel_values=pixels, intermediate_output=-2)[1].float().cpu()


def _padded(planes: Tensor, colour: Tensor) -> Tensor:
    """Pictures in the middle of a square of the encoder's mean colour, which it sees as zero."""
    count, _, height, width = planes.shape
    if height == width:
        return planes
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = colour.view(1, 3, 1, 1).repeat(count, 1, side, side)
    square[:, :, top : top + height, left : left + width] = planes
    return square


def _combined(features: Tensor, combine: str) -> list[ImageFeatures]:
    """One request for all pictures of the batch, or one for each."""
    if combine == ONE_EACH:
        return [ImageFeatures(one[None]) for one in features]
    if combine == AVERAGE:
        features = features.mean(0, keepdim=True)
    return [ImageFeatures(features)]


def _uncond(encoder: _Encoder, shown: list[ImageFeatures], uncond: str) -> list[ImageFeatures]:
    if uncond == SAME_PICTURE:
        return shown
    if uncond == NO_PICTURE:
        return []
    if uncond == BLACK_PICTURE:
        side = encoder.clip_vision.image_size
        features = encoder.encode(torch.zeros(1, 3, side, side), CROPPED)
    else:
        features = encoder.encode_nothing()
    # as often as the positive has pictures, so that both run in one pass
    return [ImageFeatures(features.expand_as(shown[0].tensor))]


def _extras(
    loaded: LoadedImageAdapter, requests: Sequence[ImageFeatures], settings: ImagePrompt
) -> list[Extra]:
    """One for all pictures of the batch, or one for each where requests or masks differ."""
    masks = _masks(settings.mask, len(requests))
    return [
        Extra(
            adapter=loaded.adapter,
            request=requests[i % len(requests)],
            strength=settings.weight,
            start_percent=settings.start_percent,
            end_percent=settings.end_percent,
            layer_strengths=preset_strengths(list(loaded.adapter.layers), settings.layers),
            mask=masks[i % len(masks)],
            curve=settings.curve,
        )
        for i in range(max(len(requests), len(masks)))
    ]


def _masks(mask: Tensor | None, requests: int) -> Sequence[Tensor | None]:
    if mask is None:
        return [None]
    count = requests if requests > 1 else mask.shape[0]
    height, width = mask.shape[-2:]
    return [plane[0].cpu() for plane in mask_to_b1hw(mask, count, height, width)]
