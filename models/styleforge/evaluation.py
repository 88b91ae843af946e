"""How near drawn pictures are to a style and to their prompts, from an image-text network's features.

Source:  KID: Binkowski et al. 2018, arXiv:1801.01401, polynomial kernel, unbiased MMD.
         CMMD: Jayasumana et al. 2024, arXiv:2401.09603, Gaussian kernel on CLIP features, x 1000.
         CLIP score: Hessel et al. 2021, arXiv:2104.08718, 100 times the cosine, not below 0.
         FID is biased at small numbers (Chong & Forsyth 2020, arXiv:1911.07023): large sets only.
Differs: any network's features, brought to length sqrt(d), take Inception's place in KID, so that
         its kernel is (cosine + 1)^3; the two sets may differ in size. Intervals are of the
         bootstrap over pictures; pairs of a picture with its own copy are left out, as in the
         unbiased estimate itself. Style similarity is told relative to the base model.
Symbols: x features of drawn pictures (n d), y of reference pictures (m d).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..common.metrics import MissingMetricError

RESAMPLES = 1000
COVERED = 0.95
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # the authors' choices
MIN_FID = 2048  # pictures on either side

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Match:
    """The reference that a picture is nearest to, and the cosine of the two."""

    reference: int
    similarity: float


def kid(x: Tensor, y: Tensor, generator: Generator) -> Estimate:
    """Kernel distance (KID) of drawn pictures x (n d) to references y (m d), x 1000; 0 is alike.

    Raises:
        ValueError: fewer than two pictures on a side.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (_unit(a) @ _unit(b).T + 1) ** 3

    return _scaled(_mmd(x, y, kernel, generator), 1000.0)


def cmmd(x: Tensor, y: Tensor, generator: Generator) -> Estimate:
    """CMMD of drawn pictures x (n d) to references y (m d); 0 is alike.

    Raises:
        ValueError: fewer than two pictures on a side.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(_unit(a), _unit(b)).square() / (2 * CMMD_SIGMA**2)).exp()

    return _scaled(_mmd(x, y, kernel, generator), CMMD_SCALE)


def fid(x: Tensor, y: Tensor) -> float:
    """Frechet distance of two large sets of features.

    Raises:
        MissingMetricError: a set is too small for it, or torchmetrics is not installed.
    """
    fewest = min(len(x), len(y))
    if fewest < MIN_FID:
        raise MissingMetricError(
            f"FID needs {MIN_FID} pictures on either side, there are {fewest}; its bias is larger than "
            "what it should tell"
        )
    try:  # an extra
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise MissingMetricError(
            "FID needs the package torchmetrics: pip install torchmetrics"
        ) from None
    network = torch.nn.Identity()  # the features are there already
    network.num_features = x.shape[1]  # pyright: ignore[reportArgumentType]  what torchmetrics asks for
    metric = FrechetInceptionDistance(feature=network)
    metric.update(x, real=False)
    metric.update(y, real=True)
    return float(metric.compute())


def clip_score(images: Tensor, texts: Tensor, generator: Generator) -> Estimate:
    """100 times the mean cosine of pictures (n d) and their own texts (n d)."""
    return _mean(100 * cosine_similarity(images, texts).clamp_min(0), generator)


def style_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine (n) of each drawn picture x (n d) to all references y (m d)."""
    return (_unit(x) @ _unit(y).T).mean(1)


def style_gain(styled: Tensor, base: Tensor, y: Tensor, generator: Generator) -> Estimate:
    """Style similarity gained over the base model on the same prompts and noise.

    0 is as the base draws, 1 as alike as the references are among themselves.

    Args:
        styled: (n d) of the pictures with the style.
        base: (n d) of the same pictures without it.
        y: (m d) of the references, two at least.
        generator: of the bootstrap.
    """
    between = _unit(y) @ _unit(y).T
    own = (between.sum() - between.trace()) / (len(y) * (len(y) - 1))
    before = style_similarity(base, y)
    room = (own - before.mean()).clamp_min(1e-3)
    return _mean((style_similarity(styled, y) - before) / room, generator)


def leak_rate(
    images: Tensor, with_people: Tensor, without: Tensor, generator: Generator
) -> Estimate:
    """Share of pictures (n d) that look more like their prompt with a person in it than without.

    Args:
        images: drawn from prompts that name no person.
        with_people: (n d) texts of these prompts with a person.
        without: (n d) texts of the prompts themselves.
        generator: of the bootstrap.
    """
    leaks = cosine_similarity(images, with_people) > cosine_similarity(images, without)
    return _mean(leaks.float(), generator)


def nearest_references(x: Tensor, y: Tensor) -> list[Match]:
    """For each drawn picture x (n d) the reference of y (m d) that it is nearest to."""
    best = (_unit(x) @ _unit(y).T).max(1)
    return [Match(int(i), float(s)) for i, s in zip(best.indices, best.values, strict=True)]


def closest_pair(y: Tensor) -> float:
    """The largest cosine of two different references y (m d): nearer than that is a copy."""
    between = _unit(y) @ _unit(y).T
    return float(between.fill_diagonal_(-1).max())


def _mmd(x: Tensor, y: Tensor, kernel: Kernel, generator: Generator) -> Estimate:
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"there are {len(x)} drawn pictures and {len(y)} references, two of each are needed; draw "
            "or give more"
        )
    x, y = x.double(), y.double()
    k_xx, k_yy, k_xy = kernel(x, x), kernel(y, y), kernel(x, y)

    def distance(a: Tensor, b: Tensor) -> Tensor:  # (r n), (r m): how often each picture counts
        cross = torch.einsum("ri,ij,rj->r", a, k_xy, b) / (a.sum(1) * b.sum(1))
        return _among(k_xx, a) + _among(k_yy, b) - 2 * cross

    value = distance(x.new_ones(1, len(x)), y.new_ones(1, len(y)))
    return _interval(
        value,
        distance(_drawn_counts(len(x), generator), _drawn_counts(len(y), generator)),
    )


def _among(k: Tensor, counts: Tensor) -> Tensor:
    """Mean of a kernel over pairs of different pictures, each as often as it counts."""
    squares = counts.square()
    pairs = torch.einsum("ri,ij,rj->r", counts, k, counts) - squares @ k.diagonal()
    return pairs / (counts.sum(1).square() - squares.sum(1)).clamp_min(1)


def _drawn_counts(n: int, generator: Generator) -> Tensor:
    picks = torch.randint(n, (RESAMPLES, n), generator=generator)
    return torch.zeros(RESAMPLES, n, dtype=torch.double).scatter_add_(
        1, picks, torch.ones(RESAMPLES, n, dtype=torch.double)
    )


def _mean(values: Tensor, generator: Generator) -> Estimate:
    values = values.double().cpu()
    counts = _drawn_counts(len(values), generator)
    return _interval(values.mean()[None], counts @ values / len(values))


def _interval(value: Tensor, resampled: Tensor) -> Estimate:
    tail = (1 - COVERED) / 2
    low, high = torch.quantile(resampled, resampled.new_tensor([tail, 1 - tail]))
    return Estimate(float(value), float(low), float(high))


def _scaled(found: Estimate, scale: float) -> Estimate:
    return Estimate(found.value * scale, found.low * scale, found.high * scale)


def _unit(features: Tensor) -> Tensor:
    return normalize(features.double().cpu(), dim=-1)
