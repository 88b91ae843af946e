"""Node that writes a style's file anew: under another name, with a picture, or with strengths in it."""

from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import image_to_bchw
from ...models.styleforge.components import read_strengths, weight_slices
from ...models.styleforge.files import HALVES, load_style, save_style
from ...models.styleforge.style import Style
from ..host.types import StyleSocket
from .places import style_path
from .style_set import CATEGORY


class SaveStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaSaveStyle",
            display_name="Save Style",
            category=CATEGORY,
            description=(
                "Writes a style into models/loras as an ordinary LoRA, with trigger words, description "
                "and picture in the file. Train Style saves its own already; this is for other names, "
                "strengths and pictures."
            ),
            search_aliases=["save lora", "export lora", "lora metadata", "lora thumbnail"],
            is_output_node=True,
            inputs=[
                StyleSocket.Input("style", tooltip="From Train Style."),
                io.String.Input(
                    "name",
                    default="my_style",
                    tooltip="File name in models/loras; a file there is never replaced by another style.",
                ),
                io.String.Input(
                    "components",
                    default="",
                    tooltip=(
                        "Strengths that go into the file, such as people 1, backgrounds 0.5; those not "
                        "named have 1. Every loader then applies the style like that."
                    ),
                ),
                io.String.Input(
                    "description",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="A text about the style, for other people; kept in the file.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(HALVES),
                    default="fp16",
                    advanced=True,
                    tooltip="Of the numbers in the file. fp16 is finer, bf16 wider.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Its first picture becomes the file's thumbnail.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="style_name", tooltip="The file's name, for loaders."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        style: Style,
        name: str,
        components: str,
        description: str,
        precision: str,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        path = style_path(name)
        kept = with_strengths(style, components)
        if path.exists() and load_style(path).about != kept.about:
            raise ValueError(
                f"{path.name} is there already and holds another style; choose another name"
            )
        thumbnail = None if image is None else image_to_bchw(image)[0]
        save_style(path, kept, precision, thumbnail, description.strip())
        return io.NodeOutput(path.name)


def with_strengths(style: Style, components: str) -> Style:
    """The style with these strengths in its weights; components of strength 0 are gone.

    Raises:
        ValueError: the strengths cannot be read, or are of no component.
    """
    strengths = read_strengths(components)
    if not strengths:
        return style
    tensors = weight_slices(style.tensors, style.slices, strengths)
    slices = tuple(name for name in style.slices if strengths.get(name, 1.0) != 0)
    if not slices:
        raise ValueError("components leave nothing of the style; give one a strength other than 0")
    prompts = {name: prompt for name, prompt in style.prompts.items() if name in slices}
    about = {**style.about, "strengths": strengths}
    return replace(style, tensors=tensors, slices=slices, prompts=prompts, about=about)
