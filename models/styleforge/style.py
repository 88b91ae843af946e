"""A trained style: its LoRA by kohya's names, its components, and the words that call it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Style:
    """What a VEDUTA_STYLE socket carries.

    Args:
        tensors: lora_down (r in [kh kw]), lora_up (out r [1 1]) and alpha by layer, float32, on
            the CPU. The rank of each lora_unet layer is cut into equal slices.
        slices: names of these slices in their order: "shared" and the components, or the only one.
        prompts: what calls each component, such as "a photo of zwx style".
        base: the family of models that it was trained on, such as "SD1.5".
        name: of its file, without folder and suffix.
        about: how it was trained, JSON-like, for the reader and for other tools.
    """

    tensors: Mapping[str, Tensor]
    slices: tuple[str, ...]
    prompts: Mapping[str, str]
    base: str
    name: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trigger(self) -> str:
        """The beginning of a prompt that calls the whole style."""
        return ", ".join(self.prompts.values())
