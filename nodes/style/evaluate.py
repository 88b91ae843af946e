"""Node that measures how well a model draws a style, next to the model without it."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.sd
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from ...models.common.images import bchw_to_image, image_to_bchw
from ...models.common.metrics import MissingMetricError
from ...models.styleforge.evaluation import (
    Estimate,
    clip_score,
    closest_pair,
    cmmd,
    fid,
    kid,
    leak_rate,
    nearest_references,
    style_gain,
)
from ...models.styleforge.prompts import names_people, prompt_in_style
from ...models.styleforge.style_set import StyleSet
from ..host.image_text import picture_features, text_features
from ..host.types import StyleSetSocket
from .drawing import Drawing, Stack, draw
from .style_set import CATEGORY

PROMPTS = """\
portrait of a woman with red hair
a man reading a newspaper on a bench
two children playing with a ball
a lighthouse on a cliff above the sea
an empty street at night
mountains behind a lake in the morning
a teapot and two cups on a table
an old bicycle against a wall"""
NEAREST_TOLD = 3


class EvaluateStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaEvaluateStyle",
            display_name="Evaluate Style (KID, CMMD, CLIP)",
            category=CATEGORY,
            description=(
                "Draws the same prompts from the same noise with and without a style and measures both: "
                "nearness to the style's pictures, nearness to the prompts, people that nobody asked "
                "for, and copies of training pictures."
            ),
            search_aliases=["kid", "fid", "cmmd", "clip score", "compare lora", "measure style"],
            inputs=[*_model_inputs(), *_measure_inputs(), *_drawing_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: comfy.sd.CLIP,
        vae: comfy.sd.VAE,
        styled_model: ModelPatcher,
        styled_clip: comfy.sd.CLIP,
        style_set: StyleSet,
        clip_vision: ClipVisionModel,
        prompts: str,
        count: int,
        seed: int,
        steps: int,
        cfg: float,
        person: str,
        references: Tensor | None = None,
        judge_clip: comfy.sd.CLIP | None = None,
    ) -> io.NodeOutput:
        contents = [line.strip() for line in prompts.splitlines() if line.strip()] * count
        if len(contents) < 2:
            raise ValueError(
                f"prompts and count make {len(contents)} pictures, 2 at least are needed; write more "
                "prompts, one a line"
            )
        wanted = _references(style_set, references)
        how = Drawing(width=wanted.width, height=wanted.height, steps=steps, cfg=cfg, seed=seed)
        bar = comfy.utils.ProgressBar(2 * len(contents) * steps)
        base = draw(Stack(model, clip, vae), contents, how, bar)
        asked = [prompt_in_style(style_set, content) for content in contents]
        styled = draw(Stack(styled_model, styled_clip, vae), asked, how, bar)
        judge = Judge(clip_vision, judge_clip or clip, person)
        report = Report(judge, contents, wanted)
        found = report.measure(base, styled)
        pairs = torch.stack([base, styled], 1).flatten(0, 1)
        return io.NodeOutput(
            "\n".join(found.lines), bchw_to_image(pairs), found.kid, found.clip_score, found.gain
        )


def _model_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The base, without the style."),
        io.Clip.Input("clip", tooltip="Its text encoder, without the style."),
        io.Vae.Input("vae", tooltip="VAE of the base."),
        io.Model.Input(
            "styled_model", tooltip="The same with the style: from Load Style or any LoRA loader."
        ),
        io.Clip.Input("styled_clip", tooltip="The text encoder with the style."),
        StyleSetSocket.Input(
            "style_set", tooltip="What the style was trained on: its pictures and trigger words."
        ),
    ]


def _measure_inputs() -> list[io.Input]:
    return [
        io.ClipVision.Input(
            "clip_vision",
            tooltip="Looks at the pictures: ViT-L or larger from Load CLIP Vision; the miniature's own.",
        ),
        io.Image.Input(
            "references",
            optional=True,
            tooltip=(
                "Pictures of the style that were not trained on, the honest comparison. Without them the "
                "StyleRef pictures serve, and the report says so."
            ),
        ),
        io.Clip.Input(
            "judge_clip",
            optional=True,
            tooltip=(
                "Text encoder that was trained with clip_vision, projection and all (a whole CLIP-L file "
                "in Load CLIP). Without it clip is asked, which checkpoints ship without a projection."
            ),
        ),
    ]


def _drawing_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "prompts",
            default=PROMPTS,
            multiline=True,
            tooltip=(
                "One a line, without the style's words, which are put in front. Prompts that name no "
                "person test whether people appear all the same."
            ),
        ),
        io.Int.Input(
            "count",
            default=4,
            min=1,
            max=1000,
            tooltip="Pictures for each prompt, with and without the style. More narrow the intervals.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip="Of the noise, which is the same with and without the style.",
        ),
        io.Int.Input(
            "steps", default=20, min=1, max=200, advanced=True, tooltip="Denoising steps."
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
            "person",
            default="a person",
            advanced=True,
            tooltip="What a person is called in the test for people that nobody asked for.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.String.Output(
            display_name="report", tooltip="Every number with its interval, base and style."
        ),
        io.Image.Output(
            display_name="images", tooltip="Pairs from the same noise: base, style, base, style."
        ),
        io.Float.Output(
            display_name="kid", tooltip="Distance to the style's pictures, x 1000; 0 is alike."
        ),
        io.Float.Output(
            display_name="clip_score",
            tooltip="Nearness of styled pictures to their prompts, 0 to 100; nan where it is missing.",
        ),
        io.Float.Output(
            display_name="style_gain",
            tooltip="0 is as the base draws, 1 as alike as the style's pictures are among themselves.",
        ),
    ]


@dataclass(frozen=True)
class References:
    """Pictures of the style (b 3 h w) with their names, and the size at which it is drawn."""

    planes: Tensor
    names: list[str]
    trained: Tensor
    width: int
    height: int
    is_held_out: bool


def _references(style_set: StyleSet, references: Tensor | None) -> References:
    pictures = [one for component in style_set.components for one in component.style_ref]
    if len(pictures) < 2:
        raise ValueError(
            f"style_set holds {len(pictures)} StyleRef pictures, 2 at least are needed to compare with; "
            "connect the set that the style was trained on"
        )
    height, width = pictures[0].pixels.shape[-2:]
    trained = torch.cat([
        interpolate(one.pixels[None].float() / 255, (height, width), mode="area")
        for one in pictures
    ])  # fmt: skip
    held_out = None if references is None else image_to_bchw(references, "references")
    if held_out is not None and len(held_out) < 2:
        raise ValueError("references holds 1 picture, 2 at least are needed; give more or none")
    return References(
        planes=trained if held_out is None else held_out,
        names=[one.source for one in pictures],
        trained=trained,
        width=width,
        height=height,
        is_held_out=held_out is not None,
    )


@dataclass(frozen=True)
class Judge:
    """The networks that look and read."""

    clip_vision: ClipVisionModel
    clip: comfy.sd.CLIP
    person: str

    def see(self, planes: Tensor) -> Tensor:
        return picture_features(self.clip_vision, planes)

    def read(self, texts: list[str], width: int) -> Tensor:
        known = {text: text_features(self.clip, [text])[0] for text in dict.fromkeys(texts)}
        features = torch.stack([known[text] for text in texts])
        if features.shape[1] != width:
            raise MissingMetricError(
                f"CLIP score needs a pair trained together: the text encoder gives width "
                f"{features.shape[1]}, clip_vision {width}; connect judge_clip"
            )
        return features


@dataclass(frozen=True)
class Found:
    """What the node hands on."""

    lines: list[str]
    kid: float
    clip_score: float
    gain: float


@dataclass(frozen=True)
class Report:
    """Measures pairs of pictures."""

    judge: Judge
    contents: list[str]
    wanted: References

    def measure(self, base: Tensor, styled: Tensor) -> Found:
        seen, before = self.judge.see(styled), self.judge.see(base)
        y = self.judge.see(self.wanted.planes)
        distance = kid(seen, y, _draws())
        gain = style_gain(seen, before, y, _draws())
        lines = [
            f"{len(seen)} pictures of {len(set(self.contents))} prompts against {len(y)} "
            + (
                "references"
                if self.wanted.is_held_out
                else "StyleRef pictures, which were trained on"
            ),
            _row("", "style (95 % interval)", "base (95 % interval)"),
            _row("KID x 1000, 0 is alike", distance, kid(before, y, _draws())),
            _row("CMMD, 0 is alike", cmmd(seen, y, _draws()), cmmd(before, y, _draws())),
            _row("style gained over the base, 1 is full", gain, ""),
        ]
        notes: list[str] = []
        score = _try(lambda: self._clip_lines(lines, seen, before), notes)
        _try(
            lambda: lines.append(_row("FID", f"{fid(seen, y):.2f}", f"{fid(before, y):.2f}")), notes
        )
        lines += [*self._copies(seen), *notes]
        return Found(lines, distance.value, float("nan") if score is None else score, gain.value)

    def _clip_lines(self, lines: list[str], seen: Tensor, before: Tensor) -> float:
        texts = self.judge.read(self.contents, seen.shape[1])
        score = clip_score(seen, texts, _draws())
        lines.append(_row("CLIP score of the prompts", score, clip_score(before, texts, _draws())))
        free = [i for i, content in enumerate(self.contents) if not names_people(content)]
        if free:
            peopled = [f"{self.judge.person} in {self.contents[i]}" for i in free]
            with_people = self.judge.read(peopled, seen.shape[1])
            leaks = [leak_rate(x[free], with_people, texts[free], _draws()) for x in (seen, before)]
            lines.append(_row(f"people in {len(free)} pictures without them", *leaks))
        return score.value

    def _copies(self, seen: Tensor) -> list[str]:
        """The drawn pictures that are nearest to a picture that was trained on."""
        trained = self.judge.see(self.wanted.trained)
        limit = closest_pair(trained)
        matches = nearest_references(seen, trained)
        order = sorted(range(len(matches)), key=lambda i: -matches[i].similarity)
        told = [
            f"{i + 1} to {self.wanted.names[matches[i].reference]} ({matches[i].similarity:.3f})"
            for i in order[:NEAREST_TOLD]
        ]
        copies = sum(match.similarity > limit for match in matches)
        lines = [
            f"nearest to a trained picture: {', '.join(told)}; StyleRef among themselves {limit:.3f}"
        ]
        if copies:
            lines.append(
                f"warning: {copies} of {len(matches)} pictures are nearer to a trained picture than any two "
                "of these are to each other; look whether they are copies"
            )
        return lines


def _draws() -> Generator:
    return Generator().manual_seed(0)  # the bootstrap's: the same for what is compared


def _row(name: str, styled: Estimate | str, base: Estimate | str) -> str:
    return f"{name:40}{styled!s:>34}{base!s:>34}".rstrip()


def _try(measure: Callable[[], float | None], notes: list[str]) -> float | None:
    """A measurement, or None and a note on why there is none."""
    try:
        return measure()
    except MissingMetricError as error:
        notes.append(f"{error}.")
        return None
