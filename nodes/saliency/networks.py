"""What the saliency sockets carry: functions of a picture, and the networks that these go through."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...models.saliency.mixing import Find
from ...models.saliency.rewards.combine import Rewards
from ...models.saliency.rewards.preprocessing import Preprocessing
from ..host.gradients import ordinary, ordinary_weights
from ..host.image_text import embed_patches, embed_pixels

CLIP_KIND = "clip_vision_model"

Patchers = tuple[ModelPatcher, ...]


@dataclass(frozen=True)
class Saliency:
    """What a VEDUTA_SALIENCY socket carries.

    Args:
        find: pictures (b 3 h w), 0..1, to maps (b 1 h w), 0..1; differentiable in the pictures.
        patchers: of its networks; inside `ready(patchers)` gradients can be taken.
        name: for the reader.
    """

    find: Find
    patchers: Patchers = ()
    name: str = ""

    def measure(self, planes: Tensor) -> Tensor:
        """Maps (b 1 h w) on the CPU, without gradients, of pictures (b 3 h w)."""
        comfy.model_management.load_models_gpu(list(self.patchers))
        device = comfy.model_management.get_torch_device()
        with torch.no_grad():
            return self.find(planes.to(device)).float().cpu()


@dataclass(frozen=True)
class RewardChain:
    """What a VEDUTA_REWARD socket carries: rewards, and the patchers of their networks."""

    rewards: Rewards = field(default_factory=Rewards)
    patchers: Patchers = ()

    def __add__(self, other: "RewardChain") -> "RewardChain":
        return RewardChain(self.rewards + other.rewards, self.patchers + other.patchers)


@contextmanager
def ready(patchers: Sequence[ModelPatcher]) -> Iterator[None]:
    """Load networks whole and let autograd read their weights; call inside `gradients`.

    Raises:
        ValueError: a network's weights are streamed, which no gradient survives.
    """
    if any(patcher.is_dynamic() for patcher in patchers):
        raise ValueError(
            "clip_vision has streamed weights (dynamic VRAM), a gradient needs them whole; start ComfyUI "
            "with --disable-dynamic-vram, or choose a reward from a file"
        )
    comfy.model_management.load_models_gpu(list(patchers), force_full_load=True)
    with ExitStack() as stack:
        for patcher in patchers:
            stack.enter_context(ordinary_weights(patcher.model))
        yield


def managed(network: nn.Module) -> ModelPatcher:
    """A network of ours, which core moves to the device and frees like any other."""
    return ModelPatcher(
        network,
        comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def kept(make: Callable[[], Tensor]) -> Tensor:
    """What a node computes once and a gradient may need later: no inference tensor."""
    found = make()
    with torch.inference_mode(False):
        return ordinary(found)


def check_kind(clip_vision: ClipVisionModel, wanted_by: str) -> None:
    """Refuse an encoder without a class token, such as SigLIP or DINO; ValueError."""
    if clip_vision.model_type != CLIP_KIND:
        raise ValueError(
            f"clip_vision is of the kind {clip_vision.model_type}, {wanted_by} needs a CLIP; load a CLIP "
            "image encoder"
        )


@dataclass(frozen=True)
class StockEncoder:
    """A CLIP_VISION as rewards take it."""

    clip_vision: ClipVisionModel

    @property
    def preprocessing(self) -> Preprocessing:
        seen = self.clip_vision
        return Preprocessing(seen.image_size, tuple(seen.image_mean), tuple(seen.image_std))

    def embed(self, pixels: Tensor) -> Tensor:
        """As in `ImageEncoder`."""
        return embed_pixels(self.clip_vision, pixels)

    def tokens(self, pixels: Tensor) -> Tensor:
        """As in `ImageEncoder`."""
        return embed_patches(self.clip_vision, pixels)
