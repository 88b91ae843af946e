"""Node that makes the Aux pictures of a style set with the user's own model."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...models.common.images import bchw_to_image
from ...models.styleforge.aux_prompts import AUX_PROMPTS, is_literal, prompts_for
from ...models.styleforge.set_report import set_report
from ...models.styleforge.style_set import Component, StylePicture, StyleSet
from ..host.pictures import rgb_bytes
from ..host.types import StyleSetSocket
from .drawing import Drawing, Stack, digest, draw
from .style_set import CATEGORY, clip_split, with_component

CACHE = Path("veduta", "aux")  # below ComfyUI's output directory
PAINTED, LITERAL = "painted portraits", "literal prompt"


class MakeAuxImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaAuxImages",
            display_name="Make Aux Pictures",
            category=CATEGORY,
            description=(
                "Draws the Aux pictures of a style set with your own model: paintings of people, which "
                "are then trained under the bare class word and give it a better meaning. Components "
                "that have Aux pictures already keep them. Drawn once, kept on disk."
            ),
            search_aliases=["regularization images", "class images", "prior preservation"],
            inputs=[
                io.Model.Input("model", tooltip="Draws the pictures; the one you will train."),
                io.Clip.Input("clip", tooltip="Text encoder of this model."),
                io.Vae.Input("vae", tooltip="VAE of this model."),
                StyleSetSocket.Input(
                    "style_set", tooltip="The set whose components lack Aux pictures."
                ),
                io.String.Input(
                    "prompts",
                    default="\n".join(AUX_PROMPTS),
                    multiline=True,
                    tooltip=(
                        "One prompt a line, taken in turns: people, painted, not in your style. They "
                        "only draw the pictures; training says the class word. The bare class word here "
                        "is DreamBooth, which learns worse."
                    ),
                ),
                io.Int.Input(
                    "count",
                    default=20,
                    min=1,
                    max=200,
                    tooltip="Pictures for each component; 15 to 20 are asked for.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Of the noise; other pictures with another seed.",
                ),
                io.Int.Input(
                    "steps", default=25, min=1, max=200, advanced=True, tooltip="Denoising steps."
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    advanced=True,
                    tooltip="How strongly to follow the prompts.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    advanced=True,
                    tooltip="What the pictures should not show.",
                ),
            ],
            outputs=[
                StyleSetSocket.Output(
                    display_name="style_set", tooltip="The set with Aux for every component."
                ),
                io.Image.Output(display_name="images", tooltip="The Aux pictures, for a look."),
                io.String.Output(display_name="report", tooltip="The set's report, renewed."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: comfy.sd.CLIP,
        vae: comfy.sd.VAE,
        style_set: StyleSet,
        prompts: str,
        count: int,
        seed: int,
        steps: int,
        cfg: float,
        negative: str,
    ) -> io.NodeOutput:
        lacking = [one for one in style_set.components if not one.aux]
        if not style_set.components:
            raise ValueError("style_set has no component; connect a Style Set with pictures first")
        stack, bar = Stack(model, clip, vae), comfy.utils.ProgressBar(len(lacking) * count * steps)
        found = style_set
        for index, component in enumerate(lacking):
            width, height = _common_size(component)
            how = Drawing(
                width=width, height=height, steps=steps, cfg=cfg, seed=seed + index * count,
                negative=negative,
            )  # fmt: skip
            found = with_component(found, _with_aux(component, stack, prompts, count, how, bar))
        report = set_report(found, clip_split())
        found = replace(found, report=report)
        return io.NodeOutput(found, bchw_to_image(_shown(found)), report)


def _with_aux(
    component: Component,
    stack: Stack,
    prompts: str,
    count: int,
    how: Drawing,
    bar: comfy.utils.ProgressBar,
) -> Component:
    lines = prompts_for(prompts, count)
    folder = _cache_folder(stack, lines, how)
    if not folder.is_dir():
        _keep(draw(stack, lines, how, bar), lines, folder)
    literal = all(is_literal(line, component.class_word) for line in lines)
    return replace(component, aux=_read(folder), aux_origin=LITERAL if literal else PAINTED)


def _common_size(component: Component) -> tuple[int, int]:
    if not component.style_ref:
        raise ValueError(
            f"component {component.name!r} has no StyleRef picture, whose size Aux pictures take; add "
            "them with Style Set"
        )
    sizes = Counter((one.pixels.shape[-1], one.pixels.shape[-2]) for one in component.style_ref)
    return sizes.most_common(1)[0][0]


def _cache_folder(stack: Stack, prompts: list[str], how: Drawing) -> Path:
    asked = json.dumps([digest(stack), prompts, how.__dict__], sort_keys=True)
    name = hashlib.sha256(asked.encode()).hexdigest()[:16]
    return Path(folder_paths.get_output_directory()) / CACHE / name


def _keep(pictures: Tensor, prompts: list[str], folder: Path) -> None:
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was ended
    draft.mkdir(parents=True)
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        path = draft / f"{index:03}.png"
        Image.fromarray(rgb_bytes(picture)).save(path)
        path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
    draft.rename(folder)


def _read(folder: Path) -> tuple[StylePicture, ...]:
    """Aux without captions: they are trained under the class word alone."""
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as file:
            pixels = torch.frombuffer(bytearray(file.convert("RGB").tobytes()), dtype=torch.uint8)
            pixels = pixels.view(file.height, file.width, 3).movedim(-1, 0).contiguous()
        found.append(StylePicture(pixels=pixels, source=f"Aux {path.stem}"))
    return tuple(found)


def _shown(style_set: StyleSet) -> Tensor:
    """Every component's Aux (b 3 h w); those of another size than the first are brought to it."""
    planes = [one.pixels.float() / 255 for c in style_set.components for one in c.aux]
    size = planes[0].shape[-2:]
    return torch.cat([
        one[None] if one.shape[-2:] == size
        else torch.nn.functional.interpolate(one[None], size, mode="area")
        for one in planes
    ])  # fmt: skip
