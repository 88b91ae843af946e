"""Pictures of the miniature with an anchor adapter, and what is found in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.samplers
import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..mini import networks
from ..mini.landscapes import scene
from ..mini.load import load_image_text
from ..mini.networks import normalise
from ..mini.painter import Painting, paint
from ..mini.pool import UNSEEN_FROM
from ..models.common.anchor import Anchor
from ..models.common.decoupled_attention import TokenAdapter
from ..models.common.guidance import Scales
from ..models.composition.control import PARTS, ControlStatistics
from ..models.composition.measure import measure_composition
from ..nodes import mini as nodes
from ..nodes.host.attention import Extra, attend_extra, with_extra
from ..nodes.host.guiders import Conditionings, ExtraGuider

PROMPTS = {  # and whether the subject hangs in the sky
    "a red boat on a calm sea at sunset": False,
    "a white house in a meadow under a clear blue sky": False,
    "a tree in the snow at dawn": False,
    "a rock in a desert in golden light": False,
    "a black windmill in a ploughed field under a grey sky": False,
    "a red balloon over a meadow under a clear blue sky": True,
}
BINS = np.linspace(0.15, 0.85, 9)  # of the wanted horizon: eight targets
SIZE = 128  # px; what the miniature draws best
STEPS, SAMPLER, SCHEDULER = 16, "dpmpp_2m", "karras"
TEXT_SCALE, ANCHOR_SCALE = 4.0, 4.0
FIRM_SCALE = 10.0  # for tilts, which the default follows by little more than half
HIGH, LOW = 0.38, 0.62  # beyond them the drawings' captions may say "high" or "low horizon"


@dataclass
class Cell:
    """Pictures that were asked for something, and what was found in them."""

    wanted: list[Anchor]
    found: list[Anchor]
    images: Tensor  # (n 3 h w)
    prompts: list[str]


class Bench:
    """The miniature with its adapter, ready to draw batches."""

    def __init__(self, adapter: TokenAdapter) -> None:
        self.plain, self.clip, self.vae = nodes.load_model(), nodes.load_clip(), nodes.load_vae()
        self.model = attend_extra(self.plain)
        self.adapter = adapter
        self.empty = self.encode("")

    def encode(self, prompt: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))

    def guider(
        self, prompt: str, anchors: Sequence[Anchor | None], anchor_scale: float, end: float = 1.0
    ) -> ExtraGuider:
        text = self.encode(prompt)
        extras = [a and Extra(adapter=self.adapter, request=a) for a in anchors]
        seen = Conditionings(
            positive=with_extra(text, extras),
            middle=with_extra(text, [None]),
            negative=with_extra(self.empty, [None]),
        )
        scales = Scales(text=TEXT_SCALE, extra=anchor_scale)
        return ExtraGuider(self.model, seen, scales, (0.0, end))

    def draw(
        self, prompt: str, anchors: Sequence[Anchor | None], seed: int, scale: float = ANCHOR_SCALE
    ) -> Tensor:
        """One picture (n 3 h w) for each anchor, all from the noise of one seed."""
        scale = scale if any(anchors) else 0.0
        latent = torch.zeros(len(anchors), 4, SIZE // 8, SIZE // 8)
        noise = noise_of(seed).expand_as(latent)
        sigmas = comfy.samplers.calculate_sigmas(
            self.model.get_model_object("model_sampling"), SCHEDULER, STEPS
        )
        z = self.guider(prompt, anchors, scale).sample(
            noise, latent, comfy.samplers.sampler_object(SAMPLER), sigmas, disable_pbar=True, seed=0
        )
        return self.vae.decode(z).movedim(-1, 1)


def noise_of(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=generator)


def targets(flying: bool, prompt_index: int) -> list[Painting]:
    """Unseen tilted drawings whose horizons fill the bins; each prompt gets its own."""
    free, found = list(range(len(BINS) - 1)), {}
    for seed in range(UNSEEN_FROM + 2_000 * prompt_index, UNSEEN_FROM + 2_000 * (prompt_index + 1)):
        plan = scene(seed)
        if plan.horizon is None or plan.subject is None or plan.mountains or not plan.tilt_deg:
            continue
        place = int(np.digitize(plan.horizon, BINS)) - 1
        if place in free and (plan.subject.distance < 0) == flying:
            found[place] = paint(plan, SIZE)
            free.remove(place)
    return [found[place] for place in sorted(found)]


def truth_of(painting: Painting) -> Anchor:
    return Anchor(
        horizon=painting.horizon, tilt_deg=painting.tilt_deg,
        subject_x=painting.subject_x, subject_y=painting.subject_y,
    )  # fmt: skip


def picture(painting: Painting) -> Tensor:
    return rearrange(torch.from_numpy(painting.image).float() / 255, "h w c -> 1 c h w")


def cell(asked: Sequence[tuple[str, int, list[Anchor]]], draw: Callable[..., Tensor]) -> Cell:
    pictures, wanted, prompts = [], [], []
    for prompt, seed, anchors in asked:
        pictures.append(draw(prompt, anchors, seed))
        wanted += anchors
        prompts += [prompt] * len(anchors)
    images = torch.cat(pictures)
    return Cell(wanted, measured(images), images, prompts)


def measured(images: Tensor) -> list[Anchor]:
    return [m.anchor for m in measure_composition(images.clamp(0, 1))]


def in_words(bench: Bench, prompt: str, anchors: list[Anchor], seed: int) -> Tensor:
    """The drawings' own words for where things are; equal sentences are drawn once."""
    drawn: dict[str, Tensor] = {}
    for anchor in anchors:
        words = sentence(prompt, anchor)
        if words not in drawn:
            drawn[words] = bench.draw(words, [None], seed)
    return torch.cat([drawn[sentence(prompt, anchor)] for anchor in anchors])


def sentence(prompt: str, anchor: Anchor) -> str:
    x, y = anchor.subject_x or 0.5, anchor.horizon or 0.5
    side = "on the left" if x < HIGH else "on the right" if x > LOW else "in the middle"
    height = ", high horizon" if y < HIGH else ", low horizon" if y > LOW else ""
    return f"{prompt}, {side}{height}"


def better_seed(asked: Sequence[tuple[str, int, list[Anchor]]], pool: dict) -> Cell:
    """For every target the better of two seeds, by the measured distance to the whole anchor."""
    found = {key: measured(image)[0] for key, image in pool.items()}
    wanted, chosen, images, prompts = [], [], [], []
    for prompt, seed, anchors in asked:
        for anchor in anchors:
            keys = [(prompt, 2 * seed), (prompt, 2 * seed + 1)]
            best = min(keys, key=lambda key: distance(found[key], anchor))
            wanted.append(anchor)
            chosen.append(found[best])
            images.append(pool[best])
            prompts.append(prompt)
    return Cell(wanted, chosen, torch.cat(images), prompts)


def distance(found: Anchor, wanted: Anchor) -> float:
    pairs = [
        (getattr(found, part), getattr(wanted, part), 30.0 if part == "tilt_deg" else 1.0)
        for part in PARTS
    ]
    return sum(1.0 if f is None else abs(f - w) / span for f, w, span in pairs if w is not None)


def cross_talk(cell: Cell) -> np.ndarray:
    """Least-squares coefficients (4 4) of every measured part on all the parts asked for."""
    spans = np.array([1.0, 20.0, 1.0, 1.0])
    rows = [
        ([getattr(w, p) for p in PARTS], [getattr(f, p) for p in PARTS])
        for w, f in zip(cell.wanted, cell.found, strict=True)
    ]
    whole = [(w, f) for w, f in rows if None not in w and None not in f]
    asked, found = (np.array(side, float) / spans for side in zip(*whole, strict=True))
    design = np.c_[asked, np.ones(len(asked))]
    return np.linalg.lstsq(design, found, rcond=None)[0][:4].T


def clip_score(cell: Cell) -> float:
    """Mean cosine of picture and prompt in the miniature's own image-text model."""
    judge = load_image_text()
    x = normalise(cell.images.clamp(0, 1))
    out = judge(input_ids=networks.tokenize(cell.prompts), pixel_values=x)
    return float((out.image_embeds * out.text_embeds).sum(-1).mean())


def table(control: dict[str, ControlStatistics]) -> str:
    lines = [f"{'part':10} {'gain':>7} {'rho':>7} {'MAE':>7} {'p':>8} {'none':>6}"]
    for part, s in control.items():
        figures = (s.gain, s.rho, s.mean_error, s.shuffled_p)
        told = " ".join("      -" if f is None else f"{f:7.3f}" for f in figures)
        lines.append(f"{part:10} {told}  {s.abstention:5.2f}")
    return "\n".join(lines)


def show(cell: Cell, path: Path) -> None:
    """A row of eight targets for the first seed of every prompt."""
    per_prompt = len(cell.images) // len(PROMPTS)
    firsts = torch.cat([
        cell.images[start : start + len(BINS) - 1]
        for start in range(0, len(cell.images), per_prompt)
    ])  # fmt: skip
    sheet = rearrange(firsts.clamp(0, 1), "(r c) k h w -> (r h) (c w) k", r=len(PROMPTS))
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), (sheet.numpy()[..., ::-1] * 255).round())
