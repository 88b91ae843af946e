"""Node that gathers the pictures a style is learned from, and says what is wrong with them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.sd1_clip
from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import mask_to_b1hw
from ...models.styleforge.dataset import style_picture, training_side
from ...models.styleforge.set_report import set_report
from ...models.styleforge.style_set import CLASS_WORD, Component, StylePicture, StyleSet
from ...models.styleforge.tokens import Split, check_trigger
from ..host.pictures import (
    SUFFIXES,
    Picture,
    batch_pictures,
    caption_lines,
    folder_pictures,
    picture_paths,
    read_picture,
    training_folder,
)
from ..host.types import StyleSetSocket

CATEGORY = "Veduta/Style"
STYLE_REF, AUX = "StyleRef", "Aux"
EXAMPLES = Path(__file__).resolve().parents[2] / "mini" / "style_example"
EXAMPLE_PREFIX = "veduta:"  # of a folder that comes with the pack
NAME = re.compile(r"[^\W_][\w -]*")
PICTURES_OF_OTHER_KINDS = {".gif", ".heic", ".heif", ".avif", ".psd", ".svg", ".jxl", ".apng"}


class MakeStyleSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaStyleSet",
            display_name="Style Set",
            category=CATEGORY,
            description=(
                "Gathers pictures for training a style and tells what is wrong with them: how many, "
                "how large, people and backgrounds, near-duplicates, the trigger word's tokens. Chain "
                "several for Aux pictures and for components with words of their own."
            ),
            search_aliases=["style dataset", "lora dataset", "training pictures", "styleforge"],
            inputs=[*_picture_inputs(), *_role_inputs(), *_expert_inputs()],
            outputs=[
                StyleSetSocket.Output(
                    display_name="style_set", tooltip="All pictures so far, with their roles."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Counts, sizes, the trigger's tokens, and a warning for each weakness.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        folder: str,
        role: str,
        component: str,
        trigger: str,
        caption: str,
        resolution: int,
        class_word: str,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        style_set: StyleSet | None = None,
    ) -> io.NodeOutput:
        base = StyleSet(components=()) if style_set is None else style_set
        named = _named_component(base, component, trigger, class_word)
        given = gather(images, mask, folder, caption)
        pictures = _at_training_size(given.pictures, resolution)
        added = (
            replace(named, style_ref=(*named.style_ref, *pictures))
            if role == STYLE_REF
            else replace(
                named,
                aux=(*named.aux, *pictures),
                aux_origin="folder" if folder.strip() else "images",
            )
        )
        found = with_component(base, added)
        report = "\n".join([set_report(found, clip_split()), *given.notes])
        found = replace(found, report=report)
        return io.NodeOutput(found, report)

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: Any) -> list[Any]:
        if not folder.strip():
            return []
        root = style_folder(folder)
        files = sorted(
            path for path in root.rglob("*") if path.suffix.lower() in {*SUFFIXES, ".txt"}
        )
        return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]


def _picture_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "images", optional=True, tooltip="Pictures, beside or instead of those of folder."
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip=(
                "Where the pictures of images count in training, 1 in full: one mask, or one each. In a "
                "folder, boat.mask.png is the mask of boat.jpg."
            ),
        ),
        StyleSetSocket.Input(
            "style_set", optional=True, tooltip="Pictures so far; these are added to them."
        ),
        io.String.Input(
            "folder",
            default="",
            tooltip=(
                "Folder of pictures inside ComfyUI's input directory, or its whole path. veduta:style, "
                "veduta:style/figures, veduta:style/places and veduta:aux come with the pack. A .txt of "
                "the same name is a picture's caption."
            ),
        ),
    ]


def _role_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "role",
            options=[STYLE_REF, AUX],
            default=STYLE_REF,
            tooltip=(
                "StyleRef: 15 to 20 pictures of the style, people and backgrounds both. Aux: as many of "
                "another style, best digital paintings of people; they settle the plain word style."
            ),
        ),
        io.String.Input(
            "component",
            default="style",
            tooltip=(
                "Name of the part that these pictures belong to. One for a whole style; figures and "
                "places, say, to learn them apart."
            ),
        ),
        io.String.Input(
            "trigger",
            default="ohwx",
            tooltip=(
                "One rare word that will call this component: ohwx, szn and bnha are one token each. "
                "For Aux of a component that is there already it is not read."
            ),
        ),
        io.String.Input(
            "caption",
            default="",
            multiline=True,
            tooltip=(
                "For pictures without a caption of their own: one line for all, or one line each, of "
                "images first. What is to be seen, never the style."
            ),
        ),
    ]


def _expert_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "resolution",
            default=0,
            min=0,
            max=2048,
            step=64,
            advanced=True,
            tooltip=(
                "Side of the square bucket in px; other shapes get as much area. 0 takes 512, or the "
                "shortest side of smaller pictures; SDXL wants 1024."
            ),
        ),
        io.String.Input(
            "class_word",
            default=CLASS_WORD,
            advanced=True,
            tooltip="The plain word behind the trigger, which Aux pictures are trained under.",
        ),
    ]


@dataclass(frozen=True)
class Given:
    """Pictures of a node's inputs with their masks, and what is to be said of them."""

    pictures: list[tuple[Picture, Callable[[Tensor], Tensor | None]]]
    notes: list[str]


def gather(images: Tensor | None, mask: Tensor | None, folder: str, caption: str) -> Given:
    """The pictures of the batch, then those of the folder.

    Raises:
        ValueError: neither is given, or one of them cannot be used.
    """
    root = style_folder(folder) if folder.strip() else None
    in_batch = 0 if images is None else len(images)
    in_folder = 0 if root is None else len(picture_paths(root))
    lines = caption_lines(caption, in_batch + in_folder)
    found: list[tuple[Picture, Callable[[Tensor], Tensor | None]]] = []
    notes: list[str] = []
    if images is not None:
        batch = batch_pictures(images, "\n".join(lines[:in_batch]))
        found += [(one, _mask_of_batch(mask, index, in_batch)) for index, one in enumerate(batch)]
    elif mask is not None:
        raise ValueError(
            "mask is given without images, it belongs to them; connect images, or put masks beside the "
            "folder's pictures (boat.mask.png beside boat.jpg)"
        )
    if root is not None:
        pictures = folder_pictures(root, "", "\n".join(lines[in_batch:]))
        found += [(one, _mask_of_file(one.mask)) for one in pictures]
        notes = _left_out(root)
    if not found:
        raise ValueError(
            "neither images nor folder is given, pictures are needed to learn from; connect images or "
            "name a folder"
        )
    return Given(found, notes)


def style_folder(folder: str) -> Path:
    """A folder as a user names it, or one that comes with the pack.

    Raises:
        ValueError: there is no such folder.
    """
    name = folder.strip()
    if not name.startswith(EXAMPLE_PREFIX):
        return training_folder(folder)
    known = sorted(p.relative_to(EXAMPLES).as_posix() for p in EXAMPLES.rglob("*") if p.is_dir())
    inside = name.removeprefix(EXAMPLE_PREFIX)
    if inside not in known:
        raise ValueError(
            f"folder is {name!r}, the pack comes with {', '.join(EXAMPLE_PREFIX + one for one in known)}; "
            "name one of these, or a folder of your own"
        )
    return EXAMPLES / inside


def with_component(style_set: StyleSet, component: Component) -> StyleSet:
    """The set with a component in place of the one of its name, or as a further one."""
    names = [one.name for one in style_set.components]
    if component.name not in names:
        return replace(style_set, components=(*style_set.components, component))
    components = [component if one.name == component.name else one for one in style_set.components]
    return replace(style_set, components=tuple(components))


def clip_split() -> Split:
    """How CLIP's tokenizer splits a word, the one of SD1.5, SDXL and FLUX alike."""
    tokenizer = comfy.sd1_clip.SDTokenizer().tokenizer
    return tokenizer.tokenize


def _named_component(style_set: StyleSet, name: str, trigger: str, class_word: str) -> Component:
    name = name.strip()
    if not NAME.fullmatch(name):
        raise ValueError(
            f"component is {name!r}, a name of letters, digits, spaces, - and _ is needed; write one"
        )
    for one in style_set.components:
        if one.name == name:
            return one
    word = class_word.strip()
    trigger = check_trigger(trigger, word)
    for one in style_set.components:
        if one.trigger == trigger:
            raise ValueError(
                f"trigger {trigger!r} is that of component {one.name!r} already, each needs its own; "
                f"choose another word for {name!r}"
            )
    if not word:
        raise ValueError("class_word is empty, a plain word is needed; the method's is 'style'")
    return Component(name=name, trigger=trigger, class_word=word)


def _at_training_size(
    pictures: Sequence[tuple[Picture, Callable[[Tensor], Tensor | None]]], resolution: int
) -> list[StylePicture]:
    loaded = [(one, one.load(), mask_of) for one, mask_of in pictures]
    side = training_side([(x.shape[-1], x.shape[-2]) for _, x, _ in loaded], resolution)
    return [
        style_picture(planes, side, one.caption, mask_of(planes), one.name)
        for one, planes, mask_of in loaded
    ]


def _mask_of_batch(
    mask: Tensor | None, index: int, count: int
) -> Callable[[Tensor], Tensor | None]:
    def of(planes: Tensor) -> Tensor | None:
        if mask is None:
            return None
        height, width = planes.shape[-2:]
        fitted = mask_to_b1hw(mask, count, height, width)
        return fitted[index if len(fitted) > 1 else 0]

    return of


def _mask_of_file(path: Path | None) -> Callable[[Tensor], Tensor | None]:
    def of(planes: Tensor) -> Tensor | None:
        if path is None:
            return None
        height, width = planes.shape[-2:]
        return mask_to_b1hw(read_picture(path)[:1], 1, height, width, path.name)[0]

    return of


def _left_out(root: Path) -> list[str]:
    files = sorted(p.name for p in root.rglob("*") if p.suffix.lower() in PICTURES_OF_OTHER_KINDS)
    if not files:
        return []
    kinds = ", ".join(sorted(SUFFIXES))
    return [f"\nleft out, not of a kind that is read ({kinds}): {', '.join(files)}"]
