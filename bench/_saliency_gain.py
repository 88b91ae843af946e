"""Does optimisation beat picking, in the same time?  Part of `dev.py bench saliency`.

Seconds are turned into counts once, from times measured at the start: every method gets as many steps,
or noises, as fit in them. Results are kept under --run, one line each.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.samplers
import torch
from torch import Generator, Tensor

from ..mini.landscapes import scene
from ..mini.pool import UNSEEN_FROM
from ..models.saliency.crops import masked_image
from ..models.saliency.objective import WHOLE_PICTURE, Objective
from ..models.saliency.optimiser import Optimisation, Settings, new_track
from ..models.saliency.presets import DEFAULT, DOODL, PRESETS, SGOOL
from ..models.saliency.rewards.clip_reward import ClipReward
from ..models.saliency.rewards.combine import Rewards
from ..models.saliency.rewards.image_text import ImageText, load_miniature
from ..models.saliency.rewards.reward import WHOLE as WHOLE_PART
from ..models.saliency.spectral import spectral_saliency
from ..nodes.host.differentiable import Request, Run, sample_with_gradients
from ..nodes.host.differentiable_vae import DifferentiableDecoder
from ..nodes.host.gradients import gradients
from ..nodes.saliency.networks import RewardChain, kept, managed
from ..nodes.saliency.reward import MINIATURE_FOLDER, read_texts
from ._miniature import Miniature
from ._rows import Row

NONE, BEST_OF_N, WHOLE = "none", "best of n", "default without saliency"
METHODS = (NONE, BEST_OF_N, DOODL, SGOOL, DEFAULT, WHOLE)
CFG = 4.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    prompts: int = 100
    seeds: int = 2
    seconds: float = 8.0
    steps: int = 8
    side: int = 16  # latent px
    run: Path = Path()
    second: str = "image_text_seed1"


def gain_rows(bench: Miniature, sizes: Sizes) -> list[Row]:
    """Measure what is missing, and compare."""
    work = _Work(bench, sizes)
    judged = sizes.second if work.second else "alone"
    path = sizes.run / f"gain_{sizes.side}_{sizes.steps}_{sizes.seconds:g}_{judged}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(one["prompt"], one["seed"], one["method"]) for one in known}
    counts = path.with_suffix(".counts.json")
    if counts.exists():  # one machine's times hold for the whole run
        work.counts = json.loads(counts.read_text())
    for prompt in range(sizes.prompts):
        for seed in range(sizes.seeds):
            missing = [m for m in METHODS if (prompt, seed, m) not in done]
            for entry in work.measure(prompt, seed, missing) if missing else []:
                known.append(entry)
                with path.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            counts.write_text(json.dumps(work.counts))
        print(f"prompt {prompt + 1} of {sizes.prompts}", flush=True)
    return rows_of(known, sizes)


def rows_of(known: Sequence[dict], sizes: Sizes) -> list[Row]:
    """Paired differences over prompts and seeds, with intervals."""
    by_method = {
        method: {
            (one["prompt"], one["seed"]): one
            for one in known
            if one["method"] == method and one["prompt"] < sizes.prompts
        }
        for method in METHODS
    }

    def gap(a: str, b: str, figure: str) -> tuple[float, tuple[float, float]]:
        keys = sorted(by_method[a].keys() & by_method[b].keys())
        values = [by_method[a][k][figure] - by_method[b][k][figure] for k in keys]
        return _mean(torch.tensor(values, dtype=torch.float64))

    rows = []
    for method, other, figure, name in (
        (SGOOL, NONE, "points", "reward: SGOOL preset over none"),
        (DOODL, NONE, "points", "reward: DOODL preset over none"),
        (DEFAULT, NONE, "points", "reward: default over none"),
        (DEFAULT, BEST_OF_N, "points", "reward: default over best of n"),
        (SGOOL, BEST_OF_N, "points", "reward: SGOOL preset over best of n"),
        (DEFAULT, BEST_OF_N, "held_out", "held-out reward: default over best of n"),
        (DEFAULT, NONE, "held_out", "held-out reward: default over none"),
    ):
        value, interval = gap(method, other, figure)
        if math.isnan(value):  # there is no second model
            continue
        rows.append(Row(f"{name} ({sizes.seconds:g} s each)", value, 0.0, 0.0, interval=interval))
    for method in (DEFAULT, WHOLE):
        told = "on" if method == DEFAULT else "off"
        for figure in ("inside", "outside"):
            value, interval = gap(method, NONE, figure)
            rows.append(
                Row(f"gain {figure} the salient region, saliency {told}", value, interval=interval)
            )
    return rows


class _Work:
    """Everything loaded once; counts from seconds."""

    def __init__(self, bench: Miniature, sizes: Sizes) -> None:
        self.bench, self.sizes = bench, sizes
        self.first = load_miniature(MINIATURE_FOLDER)
        has_second = (MINIATURE_FOLDER / f"{sizes.second}.safetensors").is_file()
        self.second = load_miniature(MINIATURE_FOLDER, sizes.second) if has_second else None
        self.decoder = DifferentiableDecoder(bench.vae)
        self.counts: dict[str, int] = {}

    def measure(self, prompt: int, seed: int, methods: Sequence[str]) -> list[dict]:
        caption = scene(UNSEEN_FROM + prompt).caption
        chains = [None if x is None else self._chain(x, caption) for x in (self.first, self.second)]
        reward = chains[0]
        assert reward is not None
        judges = [chain for chain in chains if chain is not None]
        patchers = [self.decoder.patcher, *(p for chain in judges for p in chain.patchers)]
        found: list[dict] = []

        def work(run: Run) -> None:
            z = torch.randn(1, 4, self.sizes.side, self.sizes.side, generator=_seeded(prompt, seed))
            if not self.counts:
                self._count(run, z, reward.rewards)
            start = self._picture(run, z)
            for method in methods:
                noise = self._found(method, run, z, reward.rewards, 1000 * prompt + seed)
                image = self._picture(run, noise)
                told = self._figures(image, start, [chain.rewards for chain in judges])
                found.append({"prompt": prompt, "seed": seed, "method": method, **told})

        with torch.inference_mode(), gradients():
            sample_with_gradients(self._request(caption), work, patchers)
        return found

    def _request(self, caption: str) -> Request:
        sampling = self.bench.model.get_model_object("model_sampling")
        return Request(
            model=self.bench.model, positive=self.bench.text([caption]), negative=self.bench.text([""]),
            cfg=CFG, sampler=comfy.samplers.sampler_object("euler"),
            sigmas=comfy.samplers.calculate_sigmas(sampling, "normal", self.sizes.steps),
            latent=torch.zeros(1, 4, self.sizes.side, self.sizes.side),
        )  # fmt: skip

    def _chain(self, model: ImageText, caption: str) -> RewardChain:
        wanted = kept(lambda: read_texts(model, [caption]))
        reward = ClipReward(name="miniature", encoder=model.encoder, wanted={WHOLE_PART: wanted})
        return RewardChain(Rewards((reward,)), (managed(model.encoder.tower),))

    def _count(self, run: Run, z: Tensor, rewards: Rewards) -> None:
        """How many noises, and how many steps of each preset, fit into the seconds."""
        self._picture(run, z)
        once = _timed(lambda: rewards.total(self._picture(run, z)))
        self.counts = {BEST_OF_N: max(1, int(self.sizes.seconds / once))}
        for method in METHODS[2:]:
            two, four = (
                _timed(lambda n=n, m=method: self._optimise(m, run, z, rewards, 0, n))
                for n in (2, 4)
            )
            step = max((four - two) / 2, once)
            self.counts[method] = max(1, int((self.sizes.seconds - once) / step))
        print("counts", self.counts, flush=True)

    def _picture(self, run: Run, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.decoder(run.plain(z)).clamp(0.0, 1.0)

    def _found(self, method: str, run: Run, z: Tensor, rewards: Rewards, seed: int) -> Tensor:
        if method == NONE:
            return z
        if method == BEST_OF_N:
            return self._best_of(run, z, rewards, seed)
        return self._optimise(method, run, z, rewards, seed, self.counts[method])

    def _best_of(self, run: Run, z: Tensor, rewards: Rewards, seed: int) -> Tensor:
        generator = Generator().manual_seed(seed)
        others = [
            torch.randn(z.shape, generator=generator) for _ in range(self.counts[BEST_OF_N] - 1)
        ]
        with torch.no_grad():
            points = [float(rewards.total(self._picture(run, one))) for one in (z, *others)]
        return (z, *others)[points.index(max(points))]

    def _optimise(
        self, method: str, run: Run, z: Tensor, rewards: Rewards, seed: int, iterations: int
    ) -> Tensor:
        preset = PRESETS[DEFAULT if method == WHOLE else method]
        objective = Objective(
            rewards=rewards, find=spectral_saliency, strength=preset.strength, crops=preset.crops,
            use=WHOLE_PICTURE if method == WHOLE else preset.use, refresh=preset.refresh,
            inertia=preset.inertia,
        )  # fmt: skip
        optimisation = Optimisation(
            [new_track(z, seed)], Settings(rule=preset.rule, iterations=iterations)
        )
        optimisation.run(run, self.decoder, objective, lambda _: None)
        return optimisation.best.kept[0]

    def _figures(self, image: Tensor, start: Tensor, judges: Sequence[Rewards]) -> dict[str, float]:
        with torch.no_grad():
            found = spectral_saliency(start)  # where the picture without optimisation drew the eye
            told = {
                "points": judges[0].total(image),
                "inside": judges[0].total(masked_image(image, found)),
                "outside": judges[0].total(masked_image(image, 1 - found)),
                "held_out": judges[-1].total(image) if len(judges) > 1 else torch.tensor(torch.nan),
            }
        return {name: float(value) for name, value in told.items()}


def _seeded(prompt: int, seed: int) -> Generator:
    return Generator().manual_seed(1_000_003 * seed + prompt)


def _mean(values: Tensor) -> tuple[float, tuple[float, float]]:
    """Mean and its 95 % interval."""
    mean = float(values.mean())
    error = 1.96 * float(values.std(correction=1)) / max(1, len(values)) ** 0.5
    return mean, (mean - error, mean + error)


def _timed(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started
