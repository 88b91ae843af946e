"""How near does the way back come?  python dev.py bench inversion [--only PART ...] [--scenes N] [--few N]

oracle: mixtures of Gaussians, where every error is the method's own.
drawings, photographs: the miniature on unseen drawings and on photographs that installed packages carry: PSNR
    against calls for every method, by the words alone and with the picture in the prompt. The default and
    DDIM at most calls are measured on all pictures, the other points on the first few.
tightness: the paper's first experiment, in which the condition gets tighter and the method stays DDIM.
edits: see `editing`. memory: what the way up needs beyond a stock sampler.
All pictures are 128 px; PSNR of latents is over the range of the clean ones.
Curves go to build/bench_inversion_calls_*.png and build/bench_inversion_tightness.png: look at them.
"""

import argparse
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..mini.landscapes import scene
from ..mini.painter import paint
from ..mini.pool import UNSEEN_FROM
from ..models.common.metrics import WHOLE, MissingMetricError, measure_likeness, measure_lpips
from ..models.inversion.methods import METHODS
from ..nodes.host.samplers import replay
from ..nodes.host.vae import decode, encode
from ..nodes.inversion.run import Settings, invert_latent, source_guider
from ._inversion_oracle import oracle_rows
from ._inversion_plots import draw_calls, draw_tightness
from ._memory import memory_rows
from ._miniature import ADAPTER, Miniature
from ._rows import Row, report
from .editing import editing_rows

ROOT = Path(__file__).resolve().parent.parent
SIZE, CHUNK = 128, 20  # px; pictures at once
CALLS = (10, 20, 50)  # of the way up
IMAGE_WEIGHT = 0.4  # the paper's
DEFAULT, DDIM, ITERATIVE = "uni-inv", "ddim (paper)", "fixed point"
CALLS_A_STEP = {"midpoint": 2, ITERATIVE: 3}  # this with two iterations
CALLS_BESIDE = {DEFAULT: 1, "fireflow": 1}  # of the first slope
EXACT_STEPS = 20
TIGHTNESS_SCENES = 25
TEXT, IMAGE = "words", "words and picture"
PACKAGES = {"skimage": "data", "sklearn": "datasets/images"}
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "brick.png", "grass.png",
    "gravel.png", "moon.png", "motorcycle_left.png", "china.jpg", "flower.jpg", "coins.png",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Group:
    """Pictures that are measured together."""

    name: str
    planes: Tensor  # (b 3 h w)
    captions: tuple[str, ...]

    def first(self, count: int) -> "Group":
        return Group(self.name, self.planes[:count], self.captions[:count])


@dataclass(frozen=True, eq=False)
class Point:
    """What was found of each picture of a group, by figure (b)."""

    calls: int
    found: Mapping[str, Tensor]

    def first(self, count: int) -> "Point":
        return Point(self.calls, {name: values[:count] for name, values in self.found.items()})

    def mean(self, figure: str) -> float:
        return float(self.found[figure].mean())

    @property
    def latent_db(self) -> float:
        return self.mean("latent_db")

    @property
    def picture_db(self) -> float:
        return self.mean("picture_db")

    @property
    def bound_db(self) -> float:
        return self.mean("bound_db")


class Bench(Miniature):
    """Measures groups."""

    def __init__(self, few: int) -> None:
        super().__init__()
        self.few = few
        self.known: dict[tuple[str, tuple[str, ...], str, int, float], Point] = {}

    def measure(self, group: Group, method: str, steps: int, weight: float = 0.0) -> Point:
        """Invert and rebuild a group; what is known already is not done again."""
        key = (group.name, group.captions, method, steps, weight)
        if key not in self.known:
            settings = Settings(method=method, steps=steps, iterations=2)
            chunks = [
                self._measure(Group(group.name, *chunk), settings, weight)
                for chunk in zip(
                    group.planes.split(CHUNK), _split(group.captions, CHUNK), strict=True
                )
            ]
            found = {
                name: torch.cat([chunk.found[name] for chunk in chunks]) for name in chunks[0].found
            }
            self.known[key] = Point(chunks[0].calls, found)
        return self.known[key]

    def _measure(self, group: Group, settings: Settings, weight: float) -> Point:
        model, positive = self.condition(group.captions, group.planes, weight)
        guider, latent = source_guider(model, positive), encode(self.vae, group.planes)
        inversion = invert_latent(guider, latent, settings)
        rebuilt = replay(guider, inversion)
        pictures, bound = (decode(self.vae, z, (SIZE, SIZE)) for z in (rebuilt, latent))
        likeness = measure_likeness(pictures, group.planes)[WHOLE]
        span = (latent.amax() - latent.amin()).square()
        missed = (rebuilt - latent).flatten(1).square().mean(1).clamp(min=1e-15)
        return Point(
            inversion.calls,
            {
                "latent_db": 10 * (span / missed).log10(),
                "picture_db": likeness.psnr,
                "bound_db": measure_likeness(bound, group.planes)[WHOLE].psnr,
                "mse": likeness.mse,
                "ssim": likeness.ssim,
                **_lpips(pictures, group.planes),
            },
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the inversion methods.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--cpu", action="store_true", help="heeded before this module runs")
    options = parser.parse_args()
    bench = Bench(options.few)
    for part in options.only:
        report("inversion", PARTS[part](bench, options.scenes), keep_others=True)


def curve_rows(bench: Bench, group: Group | None) -> list[Row]:
    """PSNR against calls, and the bars."""
    if group is None:
        return []
    rows = [Row(f"{group.name}: pictures of {DEFAULT} and {DDIM} at {CALLS[-1]} calls", len(group.captions)),
            Row(f"{group.name}: pictures of the other points", min(bench.few, len(group.captions)))]  # fmt: skip
    conditions = {TEXT: 0.0}
    if bench.adapter:
        conditions[IMAGE] = IMAGE_WEIGHT
    else:
        rows.append(Row(f"{group.name}: {ADAPTER.name} is missing, so not {IMAGE}", 0.0))
    curves: dict[tuple[str, str], list[Point]] = {}
    for condition, weight in conditions.items():
        for name, calls in _points():
            whole = name in (DEFAULT, DDIM) and calls == CALLS[-1]
            point = bench.measure(
                group if whole else group.first(bench.few), name, _steps(name, calls), weight
            )
            curves.setdefault((name, condition), []).append(point)
            told = f"{group.name}, {condition}: {name}, {point.calls} calls"
            print(
                f"{told}: latent {point.latent_db:.1f} dB, picture {point.picture_db:.2f} dB",
                flush=True,
            )
            rows.append(Row(f"{told}, latent dB", point.latent_db))
            rows.append(Row(f"{told}, picture dB", point.picture_db, None, upper=point.bound_db))
    alike = {key: [point.first(bench.few) for point in curve] for key, curve in curves.items()}
    draw_calls(ROOT / "build" / f"bench_inversion_calls_{group.name}.png", alike)
    return rows + bar_rows(group.name, curves)


def _points() -> list[tuple[str, int]]:
    """Methods, and about how many calls each is to take on its way up."""
    return [
        (name, calls)
        for name, method in METHODS.items()
        for calls in ((EXACT_STEPS,) if method.exact or method.stochastic else CALLS)
    ]


def _steps(name: str, calls: int) -> int:
    return max(2, (calls - CALLS_BESIDE.get(name, 0)) // CALLS_A_STEP.get(name, 1))


def bar_rows(group: str, curves: Mapping[tuple[str, str], Sequence[Point]]) -> list[Row]:
    rows = []
    for (name, condition), points in curves.items():
        if METHODS[name].exact:
            lost = (points[-1].found["bound_db"] - points[-1].found["picture_db"]).max()
            told = f"{group}, {condition}: {name}, dB below the VAE bound, worst picture"
            rows.append(Row(told, float(lost), None, 0.1, False))
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
    part = group.first(TIGHTNESS_SCENES)
    looser = {
        "null": ("",) * len(part.captions),
        "short caption": tuple(" ".join(caption.split()[:3]) for caption in part.captions),
    }
    found = {
        name: bench.measure(Group(part.name, part.planes, captions), DDIM, CALLS[-1])
        for name, captions in looser.items()
    }
    # of all pictures, because the curves need them, too
    found["full caption"] = bench.measure(group, DDIM, CALLS[-1]).first(len(part.captions))
    if bench.adapter:
        tight = bench.measure(group, DDIM, CALLS[-1], IMAGE_WEIGHT)
        found["picture"] = tight.first(len(part.captions))
    draw_tightness(ROOT / "build" / "bench_inversion_tightness.png", found)
    rows, before = [], None
    for name, point in found.items():
        for figure, (told, at_least) in TIGHTER.items():
            if figure in point.found:
                bound = None if before is None else before.mean(figure)
                rows.append(
                    Row(f"tightness, {name}: {told}", point.mean(figure), bound, bound, at_least)
                )
        before = point
    missing = _missing_lpips()
    return (
        rows if missing is None else [*rows, Row(f"tightness: no LPIPS. {missing}", float("nan"))]
    )


def drawings(count: int) -> Group:
    paintings = [paint(scene(UNSEEN_FROM + i), SIZE) for i in range(count)]
    planes = torch.from_numpy(np.stack([painting.image for painting in paintings]))
    captions = tuple(painting.caption for painting in paintings)
    return Group("drawings", planes.movedim(-1, 1).float() / 255, captions)


def photographs(count: int) -> Group | None:
    """Squares cut from photographs that come with installed packages, so many at most."""
    cut: list[np.ndarray] = []
    for package, folder in PACKAGES.items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            print(f"no photographs of {package}, it is not installed")
            continue
        files = [Path(found.origin).parent / folder / name for name in PHOTOGRAPHS]
        for path in filter(Path.is_file, files):
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            assert picture is not None
            cut += _squares(picture[..., ::-1])
    if not cut:
        return None
    planes = torch.from_numpy(np.stack(cut[:count])).movedim(-1, 1).float() / 255
    return Group("photographs", planes, ("",) * len(planes))


def _squares(picture: np.ndarray) -> list[np.ndarray]:
    """Both ends of a wide or tall picture, or the whole of a square one."""
    side = min(picture.shape[:2])
    parts = [picture[:side, :side]]
    if max(picture.shape[:2]) > 1.2 * side:
        parts.append(picture[-side:, -side:])
    return [cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for part in parts]


def _split(captions: tuple[str, ...], count: int) -> list[tuple[str, ...]]:
    return [captions[start : start + count] for start in range(0, len(captions), count)]


def _lpips(pictures: Tensor, planes: Tensor) -> dict[str, Tensor]:
    try:
        return {"lpips": measure_lpips([(pictures, planes)])[0]}
    except MissingMetricError:
        return {}


def _missing_lpips() -> str | None:
    """Why it cannot be had."""
    grey = torch.zeros(1, 3, SIZE, SIZE)
    try:
        measure_lpips([(grey, grey)])
    except MissingMetricError as error:
        return str(error)


TIGHTER = {  # what tells how near the way back comes: its name, and whether more is nearer
    "latent_db": ("latent dB", True),
    "picture_db": ("PSNR", True),
    "mse": ("L2", False),
    "ssim": ("SSIM", True),
    "lpips": ("LPIPS", False),
}
PARTS: dict[str, Callable[[Bench, int], list[Row]]] = {
    "oracle": lambda bench, scenes: oracle_rows(),
    "memory": lambda bench, scenes: memory_rows(bench),
    "photographs": lambda bench, scenes: curve_rows(bench, photographs(scenes)),
    "drawings": lambda bench, scenes: curve_rows(bench, drawings(scenes)),
    "tightness": lambda bench, scenes: tightness_rows(bench, drawings(scenes)),
    "edits": lambda bench, scenes: editing_rows(bench),
}


if __name__ == "__main__":
    main()
