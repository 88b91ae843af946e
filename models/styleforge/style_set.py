"""What a style is learned from: pictures of the style, and Aux pictures that settle its word.

Source:  Park et al. 2024 (StyleForge), arXiv:2404.05256: StyleRef pictures are bound to
         "[V] style", Aux pictures to the bare "style"; Multi-StyleForge has one token a component.
"""

from dataclasses import dataclass, field

from torch import Tensor

CLASS_WORD = "style"


@dataclass(frozen=True, kw_only=True)
class StylePicture:
    """One picture, already at the size that it is trained at (its aspect bucket)."""

    pixels: Tensor  # (3 h w) uint8 RGB on the CPU; sides are multiples of 64 px, or of 32 below 256
    caption: str = ""  # what is to be seen, never the style; may be empty
    mask: Tensor | None = None  # (1 h w) uint8: where this picture's loss counts, 255 in full
    source: str = ""  # file name, or "image 3", for messages
    original_size: tuple[int, int] | None = None  # width and height before, px


@dataclass(frozen=True, kw_only=True)
class Component:
    """A part of the style with a word of its own, such as its people or its backgrounds."""

    name: str
    trigger: str  # "[V]": one rare word that becomes this component's name
    class_word: str = CLASS_WORD
    style_ref: tuple[StylePicture, ...] = ()
    aux: tuple[StylePicture, ...] = ()  # empty: plain LoRA, nothing settles the class word
    aux_weight: float = 1.0  # lambda
    aux_origin: str = ""  # "folder", "painted portraits", "literal prompt": for report and file

    @property
    def style_prompt(self) -> str:
        return f"a photo of {self.trigger} {self.class_word}"

    @property
    def aux_prompt(self) -> str:
        return f"a photo of {self.class_word}"


@dataclass(frozen=True, kw_only=True)
class StyleSet:
    """Everything that one style is trained on; `report` is for a person."""

    components: tuple[Component, ...]
    report: str = field(default="", compare=False)
