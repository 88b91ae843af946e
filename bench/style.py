"""Does dual binding learn a style better than plain LoRA?  python dev.py bench style [--steps N]

Three painted styles of the miniature, 20 StyleRef and 20 Aux pictures each; "collage" has people and
places drawn in different ways. Every method gets the same pictures, steps and rank:

base                   the miniature with the content alone in the prompt
plain LoRA             StyleRef only
DreamBooth             Aux drawn by the miniature from the class prompt itself
Single-StyleForge      Aux: people painted in oil
Multi-StyleForge       people and places as components with words and Aux of their own

Measured on the prompts of held-out scenes, all from the same noise, against the held-out pictures in
the style. `upper` is other pictures truly painted in the style. Pictures go to RUN/STYLE/METHOD.jpg:
look at them. Everything is kept under --run: a run that was stopped goes on.

    --train-judge       first of all: an image-text model that knows the styles (bench/_style_judge.py)
    --style, --method   only this one;  --measure-only: what is trained and drawn already
    --speed-only        steps per second and memory against core's trainer and diffusers' loop

The rows of earlier runs stay in bench/results/style.json until they are measured again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sample
import comfy.sd
import cv2
import torch
from einops import rearrange
from torch import Generator, Tensor

from ..mini.painter import Painting, paint
from ..mini.style_pictures import (
    HELD_OUT_FROM,
    SIZE,
    TRAINED_FROM,
    figures,
    places,
    portraits,
    style_pictures,
)
from ..mini.styles import figure_scene
from ..models.common.files import write_whole
from ..models.common.training import Step
from ..models.styleforge.components import weight_slices
from ..models.styleforge.evaluation import Estimate, clip_score, kid, leak_rate, style_gain
from ..models.styleforge.files import load_style
from ..models.styleforge.prompts import names_people, prompt_in_style
from ..models.styleforge.style import Style
from ..models.styleforge.style_set import Component, StyleSet
from ..nodes import mini
from ..nodes.style.drawing import SAMPLER, SCHEDULER, Drawing, Stack, draw
from ..nodes.style.training import Method, Options, Places, train_style
from ._rows import Row, report
from ._style_judge import Judge, train_judge

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "build" / "bench_style"
BENCHED = ("paper cut", "watercolour", "collage")
BASE, PLAIN, DREAMBOOTH = "base", "plain LoRA", "DreamBooth"
SINGLE, MULTI = "Single-StyleForge", "Multi-StyleForge"
METHODS = {
    PLAIN: Method.PLAIN,
    DREAMBOOTH: Method.DREAMBOOTH,
    SINGLE: Method.STYLEFORGE,
    MULTI: Method.STYLEFORGE,
}
PERSON = "a figure"
CFG = 4.0
SHEET_COLUMNS = 8
OTHER_FROM = HELD_OUT_FROM + 250_000  # of truly painted pictures beside the held-out ones
PARTS = ("people", "places")
PART_SCENES, PART_NOISE = 8, 0.6  # drawings that are painted over, and how far


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure style training.")
    parser.add_argument("--style", choices=BENCHED)
    parser.add_argument("--method", choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=600, help="of every training")
    parser.add_argument(
        "--rate", type=float, default=5e-4, help="learning rate; a fifth for the text"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=40, help="drawn per method, and held out")
    parser.add_argument("--draw-steps", type=int, default=16)
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--train-judge", type=int, metavar="STEPS")
    parser.add_argument("--measure-only", action="store_true")
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args()
    if options.train_judge:
        train_judge(options.run, options.train_judge)
        return
    rows: list[Row] = []
    if not options.speed_only:
        bench = Bench(options)
        for style in [options.style] if options.style else BENCHED:
            rows += bench.rows(style, [options.method] if options.method else list(METHODS))
    if options.speed_only or not (options.style or options.method or options.measure_only):
        from ._style_speed import rows as speed_rows  # loads peers

        rows += speed_rows()
    report("style", rows, keep_others=True)


def style_set(style: str, method: str) -> StyleSet:
    """What a method is given of a style."""
    people, places_drawn = figures(style, 10), places(style, 10)
    if method != MULTI:
        drawn = style_pictures([*people, *places_drawn], style)
        aux = style_pictures(_bare(portraits(20)), "Aux")
        whole = Component(name="style", trigger="ohwx", style_ref=drawn, aux=aux)
        return StyleSet(components=(whole,))
    masked = tuple(
        replace(picture, mask=_people_mask(one))
        for picture, one in zip(style_pictures(people, "people"), people, strict=True)
    )
    scenery = [paint(figure_scene(TRAINED_FROM + 700_000 + i), SIZE) for i in range(20)]
    return StyleSet(
        components=(
            Component(
                name="people", trigger="ohwx", style_ref=masked,
                aux=style_pictures(_bare(portraits(20)), "Aux"),
            ),
            Component(
                name="places", trigger="szn", style_ref=style_pictures(places_drawn, "places"),
                aux=style_pictures(_bare(scenery), "Aux"),
            ),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """Features (n d) of drawn pictures, of their prompts, of these with a person; who asked for none."""

    pictures: Tensor
    texts: Tensor
    peopled: Tensor
    free: list[int]


class Bench:
    """Trains, draws and measures, and keeps what it has done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.run = options, options.run
        with torch.inference_mode():  # as ComfyUI runs the loader
            self.stack = Stack(mini.load_model(), mini.load_clip(), mini.load_vae())
        self.judge = Judge(self.run)
        if not self.judge.knows_styles:
            print("judge: the miniature's own, which knows plain drawings alone; --train-judge 600")

    def rows(self, style: str, methods: Sequence[str]) -> list[Row]:
        held = self._held_out(style, HELD_OUT_FROM)
        contents = [one.caption for one in held]
        y = self.judge.see(_planes(held))
        truly = self._seen(_planes(self._held_out(style, OTHER_FROM)), contents)
        # other scenes than the prompts': their own captions
        own = self.judge.read([one.caption for one in self._held_out(style, OTHER_FROM)])
        truly = replace(truly, texts=own)
        base = self._seen(self._drawn(style, BASE, contents), contents)
        found: dict[str, Seen] = {}
        for method in methods:
            pictures = self._drawn(style, method, contents)
            if pictures is not None:
                found[method] = self._seen(pictures, contents)
        rows = []
        for name, seen in {BASE: base, **found}.items():
            rows += _figures(f"{style}, {name}", seen, base, truly, y)
        rows += _bars(style, found, base, y)
        return rows + (self._part_rows(style) if MULTI in found else [])

    def _held_out(self, style: str, first: int) -> list[Painting]:
        half = self.options.pictures // 2
        return [*figures(style, half, first), *places(style, half, first)]

    def _seen(self, pictures: Tensor, contents: Sequence[str]) -> Seen:
        free = [i for i, content in enumerate(contents) if not names_people(content)]
        return Seen(
            self.judge.see(pictures),
            self.judge.read(contents),
            self.judge.read([f"{PERSON} in {contents[i]}" for i in free]),
            free,
        )

    def _drawn(self, style: str, method: str, contents: Sequence[str]) -> Tensor | None:
        """Pictures (n 3 h w) of a method; None where it is not trained and shall not be."""
        folder = self.run if method == BASE else self.run / style
        path = folder / f"{method}_{len(contents)}.pt"
        if path.exists():
            return torch.load(path, weights_only=True).float() / 255
        stack, prompts = self.stack, list(contents)
        if method != BASE:
            trained = self._trained(style, method)
            if trained is None:
                return None
            stack = self._styled(trained)
            prompts = [prompt_in_style(style_set(style, method), content) for content in contents]
        how = Drawing(width=SIZE, height=SIZE, steps=self.options.draw_steps, cfg=CFG, seed=0)
        with torch.inference_mode():
            pictures = draw(
                stack, prompts, how, _Told(f"{style}, {method}", len(contents) * how.steps)
            )
        pictures = pictures.mul(255).round().byte().clone()
        write_whole(path, lambda draft: torch.save(pictures, draft))
        _sheet(pictures, path.with_suffix(".jpg"))
        return pictures.float() / 255

    def _trained(self, style: str, method: str) -> Style | None:
        folder, asked = self.run / style / method, self.options
        places = Places(run=folder, style=folder / "style.safetensors")
        if places.style.exists():
            done = load_style(places.style)
            if asked.measure_only or done.about.get("steps", 0) >= asked.steps:
                return done
        if asked.measure_only:
            return None
        options = Options(
            steps=asked.steps, method=METHODS[method], rank=asked.rank, learning_rate=asked.rate,
            text_learning_rate=asked.rate / 5, validate_every=100,
        )  # fmt: skip
        print(f"training {style}, {method}", flush=True)
        with torch.inference_mode():  # as ComfyUI runs a node
            return train_style(
                self.stack, style_set(style, method), options, places, _Watch()
            ).style

    def _styled(self, style: Style, strengths: dict[str, float] | None = None) -> Stack:
        tensors = weight_slices(style.tensors, style.slices, strengths or {})
        with torch.inference_mode():
            model, clip = comfy.sd.load_lora_for_models(
                self.stack.model, self.stack.clip, tensors, 1.0, 1.0
            )
        return Stack(model, clip, self.stack.vae)

    def _part_rows(self, style: str) -> list[Row]:
        """What a component's slice changes: held-out drawings painted over with it and without."""
        trained = self._trained(style, MULTI)
        if trained is None:
            return []
        plain = [paint(figure_scene(HELD_OUT_FROM + i), SIZE) for i in range(PART_SCENES)]
        inside = torch.stack([torch.from_numpy(one.subject_mask > 0) for one in plain])[:, None]
        asked = style_set(style, MULTI)
        prompts = [prompt_in_style(asked, one.caption) for one in plain]
        whole = self._painted_over(self._styled(trained), plain, prompts)
        rows = []
        for part in PARTS:
            without = self._painted_over(self._styled(trained, {part: 0.0}), plain, prompts)
            change = (whole - without).abs().mean(1, keepdim=True)
            ratio = float(change[inside].mean() / change[~inside].mean())
            rows.append(
                Row(
                    f"{style}, slice of {part}: change of people over change of places", ratio, None,
                    1.0, part == "people",
                )
            )  # fmt: skip
        return rows

    @torch.inference_mode()
    def _painted_over(
        self, stack: Stack, drawn: Sequence[Painting], prompts: Sequence[str]
    ) -> Tensor:
        done = []
        negative = stack.clip.encode_from_tokens_scheduled(stack.clip.tokenize(""))
        for index, (one, prompt) in enumerate(zip(drawn, prompts, strict=True)):
            latent = stack.vae.encode(torch.from_numpy(one.image)[None].float() / 255)
            positive = stack.clip.encode_from_tokens_scheduled(stack.clip.tokenize(prompt))
            z = comfy.sample.sample(
                stack.model, comfy.sample.prepare_noise(latent, index), self.options.draw_steps, CFG,
                SAMPLER, SCHEDULER, positive, negative, latent, denoise=PART_NOISE, disable_pbar=True,
                seed=index,
            )  # fmt: skip
            done.append(stack.vae.decode(z).movedim(-1, 1))
        return torch.cat(done)


def _figures(name: str, seen: Seen, base: Seen, truly: Seen, y: Tensor) -> list[Row]:
    x = seen.pictures
    distance = [kid(one.pictures, y, _draws()) for one in (seen, base, truly)]
    score = [clip_score(one.pictures, one.texts, _draws()) for one in (seen, base, truly)]
    leaks = [_leak(one) for one in (seen, base)]
    gain = style_gain(x, base.pictures, y, _draws())
    return [
        _row(f"{name}: KID x 1000", *distance),
        _row(f"{name}: CLIP score", *score),
        _row(f"{name}: style gained", gain),
        _row(f"{name}: people where none were asked for", *leaks),
    ]


def _bars(style: str, found: dict[str, Seen], base: Seen, y: Tensor) -> list[Row]:
    """The figures that have a bound, of the StyleForge rows."""

    def distance(seen: Seen) -> float:
        return kid(seen.pictures, y, _draws()).value

    def score(seen: Seen) -> float:
        return clip_score(seen.pictures, seen.texts, _draws()).value

    rows = []
    for method in (SINGLE, MULTI):
        if method in found:
            gone = 1 - distance(found[method]) / distance(base)
            lost = 1 - score(found[method]) / score(base)
            rows += [
                Row(f"{style}, {method}: share of the base's KID that is gone", gone, None, 0.6),
                Row(
                    f"{style}, {method}: share of the base's CLIP score lost",
                    lost,
                    None,
                    0.05,
                    False,
                ),
            ]
    if len(found) == len(METHODS):
        others = {name: seen for name, seen in found.items() if name != SINGLE}
        best = min(map(distance, others.values()))
        rows.append(
            Row(f"{style}: Single-StyleForge's KID over the best other's", distance(found[SINGLE]) / best, None, 1.0, False)
        )  # fmt: skip
        best = max(score(seen) for name, seen in found.items() if name != MULTI)
        rows.append(
            Row(f"{style}: Multi-StyleForge's CLIP score over the best other's", score(found[MULTI]) / best, None, 1.0)
        )  # fmt: skip
    return rows


def _leak(seen: Seen) -> Estimate:
    free = seen.free
    return leak_rate(seen.pictures[free], seen.peopled, seen.texts[free], _draws())


def _row(
    what: str, ours: Estimate, base: Estimate | None = None, upper: Estimate | None = None
) -> Row:
    return Row(
        what,
        ours.value,
        None if base is None else base.value,
        upper=None if upper is None else upper.value,
        interval=(ours.low, ours.high),
    )


def _draws() -> Generator:
    return Generator().manual_seed(0)  # the bootstrap's: the same for what is compared


def _planes(drawn: Sequence[Painting]) -> Tensor:
    return torch.stack([torch.from_numpy(one.image).movedim(-1, 0) for one in drawn]).float() / 255


def _bare(drawn: Sequence[Painting]) -> list[Painting]:
    return [replace(one, caption="") for one in drawn]  # trained under the class word alone


def _people_mask(one: Painting) -> Tensor:
    """The person with the rim that the style draws around it."""
    grown = cv2.dilate(one.subject_mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
    return torch.from_numpy(grown)[None]


def _sheet(pictures: Tensor, path: Path) -> None:
    columns = min(len(pictures), SHEET_COLUMNS)
    few = pictures[: len(pictures) // columns * columns].numpy()
    sheet = rearrange(few, "(r c) k h w -> (r h) (c w) k", c=columns)
    cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


class _Told:
    """A progress bar on the terminal, for `draw`."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0

    def update(self, count: int) -> None:
        self.done += count
        print(f"\rdrawing {self.name}: {100 * self.done // self.total} %", end="", flush=True)
        if self.done == self.total:
            print()


class _Watch:
    """Tells a training's progress."""

    def picture_done(self) -> None:
        pass

    def step_done(self, now: Step, curve: Tensor | None, samples: Tensor | None) -> None:
        if now.is_logged:
            print(f"  step {now.step}/{now.steps}  loss {now.loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
