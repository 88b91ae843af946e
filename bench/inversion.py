"""How near does the way back come?  python dev.py bench inversion [--scenes N] [--oracle-only]

First mixtures of Gaussians, where every error is the method's own; then the miniature: PSNR against calls for every
method on unseen drawings and on photographs that installed packages carry, by the words alone and with the picture
in the prompt; then the paper's first experiment, in which the condition gets tighter and the method stays DDIM;
then edits (`editing`). All pictures are 128 px; PSNR of latents is over the range of the clean ones.
Curves go to build/bench_inversion_calls.png and build/bench_inversion_tightness.png: look at them.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..mini.landscapes import scene
from ..mini.painter import paint
from ..mini.pool import UNSEEN_FROM
from ..models.common.images import bchw_to_image
from ..models.common.metrics import WHOLE, MissingMetricError, measure_likeness, measure_lpips
from ..models.inversion.methods import METHODS
from ..nodes import mini as nodes
from ..nodes.host.attention import Conditioning
from ..nodes.host.image_prompt import (
    ONE_EACH,
    ImageAdapter,
    ImagePrompt,
    apply_image_prompt,
    open_image_adapter,
)
from ..nodes.host.samplers import replay
from ..nodes.inversion.pictures import decode, encode
from ..nodes.inversion.run import Settings, invert_latent, source_guider
from ._inversion_oracle import oracle_rows
from ._inversion_plots import draw_calls, draw_tightness
from ._rows import Row, report
from .editing import editing_rows

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = ROOT / "mini" / "weights" / "image_prompt.safetensors"
SIZE, CHUNK = 128, 10  # px; pictures at once
CALLS = (10, 20, 50)  # of the way up, about
IMAGE_WEIGHT = 0.4  # the paper's
DEFAULT, DDIM, ITERATIVE = "uni-inv", "ddim (paper)", "fixed point"
CALLS_A_STEP = {"midpoint": 2, ITERATIVE: 3}  # this with two iterations
EXACT_STEPS = 20
TEXT, IMAGE = "words", "words and picture"
PACKAGES = {"skimage": "data", "sklearn": "datasets/images"}
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "brick.png", "grass.png",
    "gravel.png", "moon.png", "motorcycle_left.png", "china.jpg", "flower.jpg", "coins.png",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Pictures that are measured together."""

    name: str
    planes: Tensor  # (b 3 h w)
    captions: list[str]


@dataclass(frozen=True)
class Point:
    """Means over a group."""

    calls: int
    latent_db: float
    picture_db: float
    bound_db: float
    mse: float
    ssim: float
    lpips: float | None


class Bench:
    """The miniature, and its image adapter if that has been trained."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = nodes.load_model(), nodes.load_clip(), nodes.load_vae()
        self.adapter: ImageAdapter | None = None
        if ADAPTER.is_file():
            self.adapter, self.vision = open_image_adapter(ADAPTER), nodes.load_clip_vision()

    def text(self, captions: Sequence[str]) -> Conditioning:
        """One conditioning with a caption for each picture of the batch."""
        encoded = [
            self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))[0]
            for caption in captions
        ]
        pooled = torch.cat([extras["pooled_output"] for _, extras in encoded])
        return [[torch.cat([text for text, _ in encoded]), {"pooled_output": pooled}]]

    def points(self, group: Group, settings: Settings, weight: float = 0.0) -> Point:
        """Invert and rebuild a group."""
        found = [
            self._point(group, start, settings, weight)
            for start in range(0, len(group.planes), CHUNK)
        ]
        shares = [min(CHUNK, len(group.planes) - i * CHUNK) for i in range(len(found))]
        lpips = [point.lpips for point in found]
        return Point(
            calls=found[0].calls,
            **{
                name: float(np.average([getattr(point, name) for point in found], weights=shares))
                for name in ("latent_db", "picture_db", "bound_db", "mse", "ssim")
            },
            lpips=None
            if None in lpips
            else float(np.average(np.array(lpips, float), weights=shares)),
        )

    def _point(self, group: Group, start: int, settings: Settings, weight: float) -> Point:
        planes = group.planes[start : start + CHUNK]
        model, positive = self.model, self.text(group.captions[start : start + CHUNK])
        if weight:
            assert self.adapter is not None
            chosen = ImagePrompt(weight=weight, combine=ONE_EACH)
            model, positive, _ = apply_image_prompt(
                model, self.adapter, self.vision, bchw_to_image(planes), positive, [], chosen
            )
        guider, latent = source_guider(model, positive), encode(self.vae, planes)
        inversion = invert_latent(guider, latent, settings)
        rebuilt = replay(guider, inversion)
        pictures, bound = (decode(self.vae, z, (SIZE, SIZE)) for z in (rebuilt, latent))
        likeness = measure_likeness(pictures, planes)[WHOLE]
        span = (latent.amax() - latent.amin()).square()
        missed = (rebuilt - latent).flatten(1).square().mean(1).clamp(min=1e-15)
        return Point(
            calls=inversion.calls,
            latent_db=(10 * (span / missed).log10()).mean().item(),
            picture_db=likeness.psnr.mean().item(),
            bound_db=measure_likeness(bound, planes)[WHOLE].psnr.mean().item(),
            mse=likeness.mse.mean().item(),
            ssim=likeness.ssim.mean().item(),
            lpips=_lpips(pictures, planes),
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the inversion methods.")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--oracle-only", action="store_true")
    options = parser.parse_args()
    rows = oracle_rows()
    if not options.oracle_only:
        bench = Bench()
        for group in (drawings(options.scenes), photographs()):
            if group is not None:
                rows += curve_rows(bench, group)
        rows += tightness_rows(bench, drawings(options.scenes))
        rows += editing_rows()
    report("inversion", rows, keep_others=options.oracle_only)


def curve_rows(bench: Bench, group: Group) -> list[Row]:
    """PSNR against calls, and the bars."""
    conditions = {TEXT: 0.0} | ({IMAGE: IMAGE_WEIGHT} if bench.adapter else {})
    curves: dict[tuple[str, str], list[Point]] = {}
    rows = (
        []
        if bench.adapter
        else [Row(f"{group.name}: {ADAPTER.name} is missing, so not {IMAGE}", 0.0)]
    )
    for condition, weight in conditions.items():
        for name, method in METHODS.items():
            counts = (EXACT_STEPS,) if method.exact or method.stochastic else CALLS
            for calls in counts:
                steps = max(2, calls // CALLS_A_STEP.get(name, 1))
                point = bench.points(
                    group, Settings(method=name, steps=steps, iterations=2), weight
                )
                curves.setdefault((name, condition), []).append(point)
                told = f"{group.name}, {condition}: {name}, {point.calls} calls"
                print(f"{told}: latent {point.latent_db:.1f} dB, picture {point.picture_db:.2f} dB")
                rows.append(Row(f"{told}, latent dB", point.latent_db))
                rows.append(
                    Row(f"{told}, picture dB", point.picture_db, None, upper=point.bound_db)
                )
    draw_calls(ROOT / "build" / f"bench_inversion_calls_{group.name}.png", curves)
    return rows + bar_rows(group.name, curves)


def bar_rows(group: str, curves: dict[tuple[str, str], list[Point]]) -> list[Row]:
    rows = []
    for (name, condition), points in curves.items():
        if METHODS[name].exact:
            lost = points[-1].bound_db - points[-1].picture_db
            rows.append(
                Row(f"{group}, {condition}: {name}, dB below the VAE bound", lost, None, 0.1, False)
            )
    for name in (DDIM, ITERATIVE, DEFAULT):
        pairs = zip(curves[name, TEXT], curves.get((name, IMAGE), []), strict=False)
        rows += [
            Row(
                f"{group}: latent dB that the picture in the prompt adds to {name}, {loose.calls} calls",
                tight.latent_db - loose.latent_db,
                None,
                0.0,
            )
            for loose, tight in pairs
        ]
    ours, ddim = curves[DEFAULT, TEXT][-1], curves[DDIM, TEXT][-1]
    return [
        *rows,
        Row(
            f"{group}: latent dB of {DEFAULT} over ddim, {ddim.calls} calls",
            ours.latent_db - ddim.latent_db,
            None,
            8.0,
        ),
        Row(
            f"{group}: {DEFAULT}, dB below the VAE bound",
            ours.bound_db - ours.picture_db,
            None,
            1.0,
            False,
        ),
    ]


def tightness_rows(bench: Bench, group: Group) -> list[Row]:
    """The paper's first experiment: DDIM under conditions that pin the picture down more and more."""
    captions: dict[str, Callable[[str], str]] = {
        "null": lambda caption: "",
        "short caption": lambda caption: " ".join(caption.split()[:3]),
        "full caption": lambda caption: caption,
    }
    settings = Settings(method=DDIM, steps=50)
    found = {
        name: bench.points(Group(name, group.planes, [made(c) for c in group.captions]), settings)
        for name, made in captions.items()
    }
    if bench.adapter:
        found["picture"] = bench.points(group, settings, IMAGE_WEIGHT)
    draw_tightness(ROOT / "build" / "bench_inversion_tightness.png", found)
    rows, before = [], None
    print(f"\n{'DDIM, 50 steps':16} {'PSNR':>7} {'L2':>9} {'SSIM':>7} {'LPIPS':>7} {'latent':>7}")
    for name, point in found.items():
        lpips = "-" if point.lpips is None else f"{point.lpips:.4f}"
        print(
            f"{name:16} {point.picture_db:7.2f} {point.mse:9.6f} {point.ssim:7.4f} {lpips:>7} {point.latent_db:7.2f}"
        )
        looser = None if before is None else before.latent_db
        rows += [
            Row(
                f"tightness, {name}: latent dB (bound: the looser one's)",
                point.latent_db,
                looser,
                looser,
            ),
            Row(f"tightness, {name}: PSNR", point.picture_db, upper=point.bound_db),
            Row(f"tightness, {name}: L2", point.mse),
            Row(f"tightness, {name}: SSIM", point.ssim),
        ]
        if point.lpips is not None:
            rows.append(Row(f"tightness, {name}: LPIPS", point.lpips))
        before = point
    return rows


def drawings(count: int) -> Group:
    paintings = [paint(scene(UNSEEN_FROM + i), SIZE) for i in range(count)]
    planes = torch.from_numpy(np.stack([painting.image for painting in paintings]))
    return Group("drawings", planes.movedim(-1, 1).float() / 255, [p.caption for p in paintings])


def photographs() -> Group | None:
    """Squares cut from photographs that come with installed packages, 20 at most."""
    cut: list[np.ndarray] = []
    for package, folder in PACKAGES.items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            print(f"no photographs of {package}, it is not installed")
            continue
        files = [Path(found.origin).parent / folder / name for name in PHOTOGRAPHS]
        for path in filter(Path.is_file, files):
            cut += _squares(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])
    if not cut:
        return None
    planes = torch.from_numpy(np.stack(cut[:20])).movedim(-1, 1).float() / 255
    return Group("photographs", planes, [""] * len(planes))


def _squares(picture: np.ndarray) -> list[np.ndarray]:
    """Both ends of a wide or tall picture, or the whole of a square one."""
    side = min(picture.shape[:2])
    parts = [picture[:side, :side]]
    if max(picture.shape[:2]) > 1.2 * side:
        parts.append(picture[-side:, -side:])
    return [cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for part in parts]


def _lpips(pictures: Tensor, planes: Tensor) -> float | None:
    try:
        return measure_lpips([(pictures, planes)])[0].mean().item()
    except MissingMetricError:
        return None


if __name__ == "__main__":
    main()
