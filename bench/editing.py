"""Is an edit with the picture in the prompt better at the same price?  Part of `dev.py bench inversion`.

Unseen drawings, half of them given another sky and half a subject of another colour, by the words
alone. The price is what the edit does to the rest: PSNR outside the mask of what was to change. The gain is
CLIP similarity of the edited part, seen in place, to the new words. Every method walks a curve by the scale
of the text, without the picture in the prompt and with several weights of it, the same weight both ways.
The points go to bench/results/editing_points.json and to build/bench_editing.png: look at it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..mini import networks
from ..mini.landscapes import COLOURS, SKIES, Scene, scene
from ..mini.load import load_image_text
from ..mini.painter import paint
from ..mini.pool import UNSEEN_FROM
from ..models.common.guidance import Scales
from ..models.common.images import bchw_to_image
from ..models.common.metrics import OUTSIDE, measure_likeness
from ..models.inversion.trajectory import Inversion
from ..nodes.host.vae import decode, encode
from ..nodes.inversion.edit import EditRun
from ..nodes.inversion.edit_plan import Edit, ImageCondition
from ..nodes.inversion.edit_region import LATENT, OFF, PIXELS
from ..nodes.inversion.guider import Guidance
from ..nodes.inversion.run import Settings, invert_latent, source_guider
from ._miniature import ADAPTER, Miniature
from ._rows import RESULTS, Row

ROOT = Path(__file__).resolve().parent.parent
SCENES, SIZE, STEPS = 6, 128, 20  # px a side; steps of each way
METHODS = ("uni-inv", "ddim (paper)", "edit-friendly ddpm (exact)")
WEIGHTS = (0.2, 0.4, 0.8)
TEXT_SCALES = (1.5, 3.0, 5.0, 8.0)
LEVELS = 9  # of the background, at which two curves are compared
EXACT = "stored residual (exact)"


@dataclass(frozen=True)
class Task:
    """A drawing, what it shows, what it is to show, and where it has to change for that."""

    image: np.ndarray  # (h w 3) 0..255
    mask: np.ndarray  # (h w) 0..255
    caption: str
    wanted: str


@dataclass(frozen=True, eq=False)
class Tasks:
    """Several, as a batch."""

    image: Tensor  # (b 3 h w)
    mask: Tensor  # (b 1 h w)
    captions: list[str]
    wanted: list[str]


@dataclass(frozen=True)
class Point:
    """Means over the tasks."""

    method: str
    weight: float
    text_scale: float
    background_db: float
    clip: float


def tasks(number: int) -> Tasks:
    """The first unseen scenes that can be edited either way, in turns."""
    found: list[Task] = []
    for seed in count(UNSEEN_FROM):
        plan = scene(seed)
        task = _other_colour(plan) if len(found) % 2 else _other_sky(plan)
        if task is not None:
            found.append(task)
        if len(found) == number:
            break
    image = torch.from_numpy(np.stack([task.image for task in found]))
    mask = torch.from_numpy(np.stack([task.mask for task in found]))
    return Tasks(
        image.float().movedim(-1, 1) / 255, mask.float()[:, None] / 255,
        [task.caption for task in found], [task.wanted for task in found],
    )  # fmt: skip


def _other_sky(plan: Scene) -> Task | None:
    words = SKIES[plan.sky].words
    if plan.horizon is None or not 0.3 < plan.horizon < 0.7 or words not in plan.caption:
        return None
    skies = list(SKIES)
    other = SKIES[skies[(skies.index(plan.sky) + 2) % len(skies)]].words
    painting = paint(plan, SIZE)
    wanted = plan.caption.replace(words, other)
    return Task(painting.image, painting.sky_mask, plan.caption, wanted)


def _other_colour(plan: Scene) -> Task | None:
    subject = plan.subject
    if subject is None or not subject.colour_word or subject.height < 0.15:
        return None
    colours = list(COLOURS)
    other = colours[(colours.index(subject.colour_word) + 2) % len(colours)]
    painting = paint(plan, SIZE)
    mask = cv2.dilate(painting.subject_mask, np.ones((9, 9), np.uint8))
    wanted = plan.caption.replace(
        f"{subject.colour_word} {subject.kind}", f"{other} {subject.kind}"
    )
    return Task(painting.image, mask, plan.caption, wanted)


class Editor:
    """Inverts and edits tasks with the miniature, and judges what comes of it."""

    def __init__(self, bench: Miniature) -> None:
        self.bench, self.judge = bench, load_image_text()

    def invert(self, todo: Tasks, method: str, weight: float) -> Inversion:
        model, positive = self.bench.condition(todo.captions, todo.image, weight)
        latent = encode(self.bench.vae, todo.image)
        settings = Settings(method=method, steps=STEPS, seed=1)
        return invert_latent(source_guider(model, positive), latent, settings, size_px=(SIZE, SIZE))

    def edit(self, todo: Tasks, inversion: Inversion, weight: float, text_scale: float) -> Edit:
        picture = None
        if weight:
            assert self.bench.adapter is not None
            picture = ImageCondition(
                adapter=self.bench.adapter, clip_vision=self.bench.clip_vision,
                image=bchw_to_image(todo.image), weight=weight,
            )  # fmt: skip
        return Edit(
            model=self.bench.model, inversion=inversion, positive=self.bench.text(todo.wanted),
            negative=self.bench.text([""]), picture=picture,
            guidance=Guidance(scales=Scales(text=text_scale, joint=True)),
        )  # fmt: skip

    def run(self, todo: Tasks, keep: str) -> EditRun:
        return EditRun(
            vae=self.bench.vae, source=todo.image, mask=todo.mask, keep=keep, feather_px=0
        )

    def similarity(self, image: Tensor, words: list[str]) -> float:
        """100 times the cosine of pictures (b 3 h w) and their words, mean."""
        seen = self.judge.get_image_features(pixel_values=networks.normalise(image))
        read = self.judge.get_text_features(input_ids=networks.tokenize(words))
        return 100 * float(cosine_similarity(_features(seen), _features(read)).mean())


def _features(answer) -> Tensor:
    return getattr(answer, "pooler_output", answer)  # newer transformers wrap them


@torch.inference_mode()
def editing_rows(bench: Miniature) -> list[Row]:
    """Edits by the words alone, then with a mask."""
    editor, todo = Editor(bench), tasks(SCENES)
    points = [
        point
        for method in METHODS
        for weight in (0.0, *(WEIGHTS if bench.adapter else ()))
        for point in curve(editor, todo, method, weight)
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = json.dumps([asdict(point) for point in points], indent=1)
    (RESULTS / "editing_points.json").write_text(table + "\n")
    draw_points(points, ROOT / "build" / "bench_editing.png")
    if bench.adapter is None:
        return [
            Row(f"edits with the picture: {ADAPTER.name} is missing", 0.0),
            *masked_rows(editor, todo),
        ]
    return [*_curve_rows(points), *masked_rows(editor, todo)]


def curve(editor: Editor, todo: Tasks, method: str, weight: float) -> list[Point]:
    """One point for each scale of the text."""
    inversion, points = editor.invert(todo, method, weight), []
    for text_scale in TEXT_SCALES:
        edit = editor.edit(todo, inversion, weight, text_scale)
        edited = editor.run(todo, OFF)(edit).planes
        background = measure_likeness(edited, todo.image, todo.mask)[OUTSIDE].psnr.mean()
        in_place = torch.where(todo.mask > 0, edited, todo.image)
        clip = editor.similarity(in_place, todo.wanted)
        points.append(Point(method, weight, text_scale, float(background), clip))
        print(f"  {points[-1]}", flush=True)
    return points


def _curve_rows(points: Sequence[Point]) -> list[Row]:
    rows = []
    for method in METHODS:
        of = [point for point in points if point.method == method]
        without = [point for point in of if point.weight == 0]
        given = [point for point in of if point.weight > 0]
        worst = min(least_gain(without, given), default=float("nan"))
        name = f"edits, {method}: CLIP gained by the picture, worst background level"
        rows.append(Row(name, worst, bound=0.0 if method == METHODS[0] else None))
    return rows


def least_gain(without: Sequence[Point], given: Sequence[Point]) -> list[float]:
    """How much further up the curves with the picture reach, at each background level of the one without."""
    backgrounds = [point.background_db for point in without]
    levels = np.linspace(min(backgrounds), max(backgrounds), LEVELS)
    return [_height(given, level) - _height(without, level) for level in levels]


def _height(points: Sequence[Point], level: float) -> float:
    """Of the highest curve of one weight that keeps so much of the background, straight between points."""
    heights = []
    for weight in {point.weight for point in points}:
        line = sorted((p.background_db, p.clip) for p in points if p.weight == weight)
        if line[-1][0] >= level - 1e-9:
            backgrounds, similarities = np.array(line).T
            heights.append(float(np.interp(level, backgrounds, similarities)))
    return max(heights, default=float("-inf"))


def masked_rows(editor: Editor, todo: Tasks) -> list[Row]:
    """What masked edits change outside, next to what the VAE alone does there."""
    inversion = editor.invert(todo, EXACT, 0.0)
    edit = editor.edit(todo, inversion, 0.0, TEXT_SCALES[-1])
    decoded = decode(editor.bench.vae, encode(editor.bench.vae, todo.image), None)
    kept, bound = (
        float(measure_likeness(picture, todo.image, todo.mask)[OUTSIDE].psnr.mean())
        for picture in (editor.run(todo, LATENT)(edit).composite, decoded)
    )
    restored = editor.run(todo, PIXELS)(edit).composite
    changed = ((restored - todo.image).abs() * (todo.mask == 0)).max()
    return [
        Row("masked edits, latent only: background PSNR, upper the VAE bound", kept, upper=bound),
        Row("masked edits with pixels: largest change outside", float(changed), bound=0.0, at_least=False),
    ]  # fmt: skip


def draw_points(points: Sequence[Point], path: Path) -> None:
    """A chart per method: background to the right, similarity upwards, a line for each weight."""
    charts = [_chart([p for p in points if p.method == method], method) for method in METHODS]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(charts, axis=1)[..., ::-1])


def _chart(points: Sequence[Point], title: str) -> np.ndarray:
    side, margin = 420, 50
    canvas = np.full((side, side, 3), 255, np.uint8)
    x = _scale([p.background_db for p in points], margin, side - 20)
    y = _scale([p.clip for p in points], side - margin, 40)
    ink, font = (40, 40, 40), cv2.FONT_HERSHEY_SIMPLEX
    colours = ((120, 120, 120), (86, 180, 233), (0, 114, 178), (213, 94, 0))
    for colour, weight in zip(colours, (0.0, *WEIGHTS), strict=True):
        line = [(x(p.background_db), y(p.clip)) for p in points if p.weight == weight]
        cv2.polylines(
            canvas, [np.array(line, np.int32).reshape(-1, 1, 2)], False, colour, 2, cv2.LINE_AA
        )
        for place in line:
            cv2.circle(canvas, place, 4, colour, -1, cv2.LINE_AA)
        if line:
            cv2.putText(canvas, f"{weight:g}", line[0], font, 0.5, colour, 1, cv2.LINE_AA)
    low, high = (f(p.background_db for p in points) for f in (min, max))
    told = f"background {low:.1f} .. {high:.1f} dB"
    cv2.putText(canvas, title, (margin, 24), font, 0.5, ink, 1, cv2.LINE_AA)
    cv2.putText(canvas, told, (margin, side - 16), font, 0.45, ink, 1, cv2.LINE_AA)
    low, high = (f(p.clip for p in points) for f in (min, max))
    cv2.putText(
        canvas, f"CLIP {low:.1f} .. {high:.1f}", (margin, 44), font, 0.45, ink, 1, cv2.LINE_AA
    )
    return canvas


def _scale(values: Sequence[float], first: int, last: int):
    low, high = min(values), max(values)
    return lambda value: round(first + (last - first) * (value - low) / max(high - low, 1e-6))
