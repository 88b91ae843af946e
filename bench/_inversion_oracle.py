"""Inversion methods on mixtures of Gaussians in float64, where every error is the method's own."""

import math

import torch
from torch import Tensor

from ..models.common.noise_space import NoiseSpace
from ..models.inversion.fixed_point import FixedPoint
from ..models.inversion.method import Denoise
from ..models.inversion.methods import METHODS
from ._mixture import Mixture, inverted
from ._rows import Row
from ._source_time import SourceTime

SIZE, COMPONENTS, STD = 64, 24, 0.45
SAMPLES, STEPS = 96, 20
NARROW_STD, OFF_BY = 0.15, 0.1  # of the condition that is tight but a little wrong
SPACES = {
    "VE": NoiseSpace(flow=False),
    "flow": NoiseSpace(flow=True, variance_preserving_input=False),
}
ORDERS = {"ddim (paper)": 1, "uni-inv": 2, "midpoint": 3, "fireflow": 3}  # of the round trip
EXACT_DB = 250.0
CONDITIONS = ("loose", "tight", "tighter")


def oracle_rows() -> list[Row]:
    print(
        f"\n{'round trip in dB, ' + str(STEPS) + ' steps':28} {'space':5}",
        *(f"{c:>8}" for c in CONDITIONS),
        "   calls  std",
    )
    rows = [*order_rows(), *guard_rows()]
    for space_name, space in SPACES.items():
        clean, denoisers = _problem(space)
        for method in (SourceTime(), *METHODS.values()):
            decibels, calls, std = [], 0, 0.0
            for denoise in denoisers:
                inversion = inverted(method, denoise, clean, _sigmas(space, STEPS), space)
                trip = method.sample(denoise, inversion)
                decibels.append(_decibels(trip, clean))
                calls = inversion.calls
                if denoise is denoisers[0]:
                    std = space.noise_in(inversion.noise, clean, inversion.sigmas[0]).std().item()
            print(
                f"{method.name:28} {space_name:5}",
                *(f"{db:8.1f}" for db in decibels),
                f"{calls:8} {std:.2f}",
            )
            bound = EXACT_DB if method.exact else None
            rows += [
                Row(
                    f"oracle, {space_name}, {condition}: {method.name}, dB",
                    min(db, 999.0),
                    None,
                    bound,
                )
                for condition, db in zip(CONDITIONS, decibels, strict=True)
            ]
    return rows


def order_rows() -> list[Row]:
    """How many times smaller the error of the round trip is with twice the steps, as a power of 2."""
    generator = torch.Generator().manual_seed(0)
    oracle = Mixture(torch.randn(3, 4, generator=generator, dtype=torch.float64), 0.5)
    clean, _ = oracle.draw(16, 1)
    rows = []
    for space_name, space in SPACES.items():
        denoise = oracle.denoiser(space)
        for name, order in ORDERS.items():
            coarse, fine = (
                _rms(METHODS[name].sample(denoise, made) - clean)
                for n in (64, 128)
                for made in [inverted(METHODS[name], denoise, clean, _sigmas(space, n), space)]
            )
            found = math.log2(coarse / fine)
            rows.append(Row(f"oracle, {space_name}: order of {name}", found, order, order - 0.2))
    return rows


def guard_rows() -> list[Row]:
    """The largest of what a step misses over what its first iterate misses, of all samples and steps."""
    rows = []
    for space_name, space in SPACES.items():
        clean, denoisers = _problem(space)
        sigmas, worst = _sigmas(space, STEPS), 0.0
        for denoise in denoisers:
            inversion = inverted(FixedPoint(), denoise, clean, sigmas, space)
            for i in range(STEPS):
                x, high, h = inversion.state(i + 1), sigmas[i], sigmas[i] - sigmas[i + 1]

                def image(y: Tensor, x=x, high=high, h=h, denoise=denoise) -> Tensor:
                    return x + h * (y - denoise(y, high)) / high

                first = image(space.at_level(x, sigmas[i + 1], high))
                missed = (image(first) - first).square().mean(1)
                assert inversion.residuals is not None
                worst = max(worst, (inversion.residuals[i] / missed).max().item())
        rows.append(
            Row(
                f"oracle, {space_name}: guard, worst over first iterate",
                worst,
                1.0,
                1 + 1e-9,
                False,
            )
        )
    return rows


def _problem(space: NoiseSpace) -> tuple[Tensor, list[Denoise]]:
    """Samples and their denoisers under the three conditions."""
    generator = torch.Generator().manual_seed(0)
    means = 0.9 * torch.randn(COMPONENTS, SIZE, generator=generator, dtype=torch.float64)
    oracle = Mixture(means, STD)
    clean, picked = oracle.draw(SAMPLES, 1)
    wrong = OFF_BY * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    tighter = Mixture(clean + wrong, NARROW_STD)
    return clean, [
        oracle.denoiser(space),
        oracle.denoiser(space, picked),
        tighter.denoiser(space, torch.arange(SAMPLES)),
    ]


def _sigmas(space: NoiseSpace, steps: int) -> list[float]:
    shares = [1 - i / steps for i in range(steps + 1)]
    return shares if space.flow else [8.0 * share**2 for share in shares]


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _decibels(x: Tensor, reference: Tensor) -> float:
    return -20 * math.log10(max(_rms(x - reference), 1e-300) / _rms(reference))
