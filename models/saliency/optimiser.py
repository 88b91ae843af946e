"""Optimisation of starting noise through a sampler, best iterates kept, several starts thinned out.

Source:  the loop of DOODL (arXiv:2303.13703), SGOOL (arXiv:2410.10257) and ReNO (arXiv:2406.04312);
         successive halving after Jamieson & Talwalkar 2016, arXiv:1502.07943.
Symbols: z noise (b c ...), b pictures, k kept iterates, n starts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Generator, Tensor

from .objective import Judged, Objective
from .rewards.reward import POINTS
from .steps import Rule


@dataclass(frozen=True)
class Sampled:
    """A sampler's answer to noise.

    Args:
        latent: (b c ...), without gradients.
        pull: a gradient with respect to the latent, to one with respect to the noise.
    """

    latent: Tensor
    pull: Callable[[Tensor], Tensor]


class Sample(Protocol):
    """Noise (b c ...) to a latent; the same noise always gives the same."""

    def __call__(self, noise: Tensor) -> Sampled:
        """Sample."""
        ...


Decode = Callable[[Tensor], Tensor]  # a latent to pictures (b 3 h w), with gradients


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to optimise.

    Args:
        rule: how the noise moves.
        iterations: steps in all, of all starts together; each start is sampled once more.
        scale: of the rule's steps.
        patience: steps without a gain in any picture after which it ends; 0 never.
        least_gain: points that are a gain.
        keep: best iterates of each picture.
    """

    rule: Rule
    iterations: int
    scale: float = 1.0
    patience: int = 0
    least_gain: float = 0.05
    keep: int = 1


@dataclass
class Track:
    """One start on its way; all of it goes into a checkpoint.

    Args:
        z: (b c ...) where it is.
        v: the rule's momentum.
        generator: of crops and added noise.
        kept: (k b c ...), best first; k grows up to `Settings.keep`.
        points: (k b) of these.
        found: saliency map (b 1 h w), or None.
        done: steps made.
        idle: steps since the last gain.
    """

    z: Tensor
    v: Tensor
    generator: Generator
    kept: Tensor
    points: Tensor
    found: Tensor | None = None
    done: int = 0
    idle: int = 0


@dataclass(frozen=True)
class Glance:
    """What is told after every sampling.

    Args:
        done: steps made by all starts.
        points: (b) of the pictures.
        best: (b) so far.
        image: (b 3 h w).
        found: (b 1 h w), or None.
        z: (b c ...) that gave the pictures.
    """

    done: int
    points: Tensor
    best: Tensor
    image: Tensor
    found: Tensor | None
    z: Tensor


@dataclass
class Optimisation:
    """A whole run, which can be stopped between steps and gone on with.

    Args:
        tracks: the starts that are left.
        settings: how.
        rung: how often starts have been thinned out.
        done: steps made by all starts.
    """

    tracks: list[Track]
    settings: Settings
    rung: int = 0
    done: int = 0
    starts: int = field(default=0)

    def __post_init__(self) -> None:
        self.starts = self.starts or len(self.tracks)

    @property
    def best(self) -> Track:
        """Of the starts that were looked at, the leading one of each picture.

        Raises:
            ValueError: none was.
        """
        seen = [track for track in self.tracks if len(track.points)]
        if not seen:
            raise ValueError("nothing has been sampled yet; run at least one step")
        while len(seen) > 1:
            seen = better_half(seen)
        return seen[0]

    def run(
        self,
        sample: Sample,
        decode: Decode,
        objective: Objective,
        tell: Callable[[Glance], None],
    ) -> None:
        """Go on until the steps are made or nothing is gained.

        What stops it from outside leaves a state that can be gone on with: a step is made wholly or not.

        Args:
            sample: the sampler.
            decode: the decoder.
            objective: what to raise.
            tell: is called after each sampling; whatever it raises stops the run.

        Raises:
            ValueError: a gradient is zero or not finite, or a reward gives no finite number.
        """
        while self.tracks:
            shares = rung_steps(self.settings.iterations, self.starts)
            budget = sum(shares[: self.rung + 1])
            for track in self.tracks:
                self._advance(track, budget, sample, decode, objective, tell)
            if self.rung + 1 >= len(shares):
                return
            self.tracks = better_half(self.tracks)
            self.rung += 1

    def _advance(
        self,
        track: Track,
        budget: int,
        sample: Sample,
        decode: Decode,
        objective: Objective,
        tell: Callable[[Glance], None],
    ) -> None:
        patience = self.settings.patience
        while True:
            last = track.done >= budget or bool(patience and track.idle >= patience)
            before = track.generator.get_state()
            sampled = sample(track.z)
            view = look(sampled.latent, decode, objective, track, with_gradient=not last)
            g = None if last else checked_gradient(sampled.pull(view.gradient))
            track.found = view.found
            self._remember(track, view.judged.judged)
            if last:
                track.generator.set_state(before)  # a look at the end draws nothing
            glance = Glance(
                self.done, view.judged.judged, track.points[0], view.image, view.found, track.z
            )
            if g is not None:
                self._move(track, g)
            tell(glance)
            if last:
                return

    def _move(self, track: Track, g: Tensor) -> None:
        total = max(1, self.settings.iterations - 1)
        track.z, track.v = self.settings.rule.move(
            track.z, g, track.v, min(1.0, self.done / total), self.settings.scale, track.generator
        )
        track.done += 1
        self.done += 1

    def _remember(self, track: Track, judged: Tensor) -> None:
        if bool((track.kept == track.z).flatten(2).all(2).any(0).all()):
            return  # seen before: the look at the end of a round
        before = track.points[0] if len(track.points) else torch.full_like(judged, -torch.inf)
        gained = bool((judged > before + self.settings.least_gain).any())
        track.idle = 0 if gained else track.idle + 1
        points = torch.cat([track.points, judged[None].to(track.points)])
        kept = torch.cat([track.kept, track.z[None]])
        order = torch.sort(points, dim=0, descending=True, stable=True).indices[
            : self.settings.keep
        ]
        rows = torch.arange(points.shape[1], device=order.device).expand_as(order)
        track.points, track.kept = points[order, rows], kept[order, rows]


@dataclass(frozen=True)
class View:
    """One look at a latent."""

    judged: Judged
    gradient: Tensor  # of the loss with respect to the latent
    image: Tensor
    found: Tensor | None


def look(
    latent: Tensor, decode: Decode, objective: Objective, track: Track, with_gradient: bool
) -> View:
    """Decode and judge a latent; the loss is 1 minus a hundredth of the points."""
    latent = latent.detach().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient):
        image = decode(latent)
        found = objective.found(image, track.found, track.done)
        judged = objective.judge(image, found, track.generator)
        gradient = latent.detach()
        if with_gradient:
            if not judged.points.requires_grad:
                raise ValueError(
                    "reward gives points without a gradient, so nothing can be optimised; take one of "
                    "Reward"
                )
            (gradient,) = torch.autograd.grad(-judged.points.sum() / POINTS, latent)
    judged = Judged(judged.points.detach(), judged.judged.float())
    return View(judged, gradient, image.detach(), found)


def checked_gradient(g: Tensor) -> Tensor:
    """The gradient itself.

    Raises:
        ValueError: it is not finite, or zero for one of the pictures.
    """
    if not bool(torch.isfinite(g).all()):
        raise ValueError(
            "the gradient holds NaN or infinite values, finite ones are needed; load model and vae in "
            "bf16 or fp32, or set last_steps to a few"
        )
    empty = int((g.flatten(1).abs().amax(1) == 0).sum())
    if empty:
        raise ValueError(
            f"the gradient of {empty} of {len(g)} pictures is zero, so nothing would be optimised; choose "
            "another sampler (euler, dpmpp_2m), last_steps 0, or another reward"
        )
    return g.detach()


def new_track(z: Tensor, seed: int) -> Track:
    """A start at noise z (b c ...)."""
    return Track(
        z=z,
        v=torch.zeros_like(z),
        generator=torch.Generator().manual_seed(seed % 2**64),
        kept=z.new_empty(0, *z.shape),
        points=z.new_empty(0, len(z)),
    )


def rung_steps(iterations: int, starts: int) -> list[int]:
    """Steps that each start is given in every round of successive halving; rounds cost the same."""
    counts = [starts]
    while counts[-1] > 1:
        counts.append((counts[-1] + 1) // 2)
    shares = [iterations // (len(counts) * count) for count in counts]
    spent = sum(share * count for share, count in zip(shares, counts, strict=True))
    shares[-1] += max(0, iterations - spent)
    return shares


def better_half(tracks: list[Track]) -> list[Track]:
    """The better half of the starts, chosen for each picture of the batch by itself."""
    points = torch.stack([track.points[0] for track in tracks])  # n b
    order = torch.sort(points, dim=0, descending=True, stable=True).indices[
        : (len(tracks) + 1) // 2
    ]
    picture = torch.arange(points.shape[1], device=points.device)
    depth = min(len(track.points) for track in tracks)
    chosen = []
    for index, row in enumerate(order):

        def of(tensors: list[Tensor], batch: int, row: Tensor = row) -> Tensor:
            stacked = torch.stack(tensors).movedim(batch + 1, 1)
            found = stacked[row.to(stacked.device), picture.to(stacked.device)]
            return found.movedim(0, batch)

        found = [track.found for track in tracks if track.found is not None]
        chosen.append(
            Track(
                z=of([track.z for track in tracks], 0),
                v=of([track.v for track in tracks], 0),
                generator=tracks[index].generator,
                kept=of([track.kept[:depth] for track in tracks], 1),
                points=of([track.points[:depth] for track in tracks], 1),
                found=of(found, 0) if len(found) == len(tracks) else None,
                done=tracks[0].done,
            )
        )
    return chosen
