"""An inversion: the way of a picture into noise, and what it takes to walk it back."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..common.noise_space import NoiseSpace

WEIGHT_TOLERANCE = 0.01  # the same weights in another precision differ less
SIGMA_TOLERANCE = 1e-4  # relative; the same schedule on another device differs less


@dataclass(frozen=True, kw_only=True)
class Source:
    """Of what, and with what, an inversion was made.

    Args:
        model: class of the base model.
        weights: a few figures of its weights, to tell it from another of its class.
        latent: checksum of the clean latent.
        seed: of the method's own noise.
        note: the condition in words, for the report.
        size_px: height and width of the pictures before padding; None for a latent.
    """

    model: str
    weights: tuple[float, ...]
    latent: str
    seed: int = 0
    note: str = ""
    size_px: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """States of a batch of pictures from noise to clean, float32 on the CPU.

    All latents are in the model's own latent space. Axes: s levels, b c and any others of a sample.

    Args:
        method: key of METHODS.
        space: of the model.
        sigmas: noise levels, descending, s of them; the last is the clean end.
        noise: (b c ...) the state at sigmas[0].
        clean: (b c ...) the state at sigmas[-1].
        states: (s b c ...), or None where only the ends were kept.
        second: (b c ...) the second end state of methods that walk with two.
        maps: ((s-1) b c ...) what such methods add after each step down.
        calls: of the network, for the whole batch.
        source: of what it is.
        residuals: (s-1 b) mean square of what a step down misses, where the method measures it.
    """

    method: str
    space: NoiseSpace
    sigmas: tuple[float, ...]
    noise: Tensor
    clean: Tensor
    calls: int
    source: Source
    states: Tensor | None = None
    second: Tensor | None = None
    maps: Tensor | None = None
    residuals: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def state(self, level: int) -> Tensor:
        """The state (b c ...) at sigmas[level].

        Raises:
            ValueError: it was not kept.
        """
        if self.states is not None:
            return self.states[level]
        if level in (0, self.steps):
            return self.noise if level == 0 else self.clean
        raise ValueError(
            f"inversion keeps its end state only, the state of step {level} is needed; invert again "
            "with keep set to 'all states'"
        )

    def on(self, device: torch.device | str) -> "Inversion":
        """With its ends on a device, for a walk down there; states and maps stay where they are."""
        second = None if self.second is None else self.second.to(device)
        return replace(
            self, noise=self.noise.to(device), clean=self.clean.to(device), second=second
        )

    def for_batch(self, count: int) -> "Inversion":
        """The inversion of one picture repeated for `count` targets.

        Raises:
            ValueError: it holds several pictures, another number than `count`.
        """
        batch = self.noise.shape[0]
        if count == batch:
            return self
        if batch != 1:
            raise ValueError(
                f"inversion holds {batch} pictures, {count} are wanted; edit as many as were inverted, "
                "or invert one picture for many targets"
            )
        return replace(
            self,
            noise=_repeated(self.noise, 0, count),
            clean=_repeated(self.clean, 0, count),
            **{
                name: value if value is None else _repeated(value, axis, count)
                for name, axis in (("states", 1), ("second", 0), ("maps", 1), ("residuals", 1))
                for value in (getattr(self, name),)
            },
        )


def check_model(inversion: Inversion, model: str, weights: Sequence[float]) -> None:
    """Refuse another model than the inversion's.

    Args:
        inversion: made before.
        model: class of the base model that is to use it.
        weights: the same figures of its weights as in `Source.weights`.

    Raises:
        ValueError: another class, or other weights.
    """
    source = inversion.source
    if model != source.model:
        raise ValueError(
            f"inversion was made with a model of the family {source.model}, model is {model}; connect "
            "the model that inverted, or invert again with this one"
        )
    same = len(weights) == len(source.weights) and all(
        math.isclose(ours, theirs, rel_tol=WEIGHT_TOLERANCE, abs_tol=1e-6)
        for ours, theirs in zip(weights, source.weights, strict=True)
    )
    if not same:
        raise ValueError(
            f"inversion was made with another {model} checkpoint than model is; connect the one that "
            "inverted, or invert again with this one"
        )


def check_sigmas(inversion: Inversion, sigmas: Sequence[float]) -> None:
    """Refuse other noise levels than the inversion's.

    Raises:
        ValueError: another number of steps, or another level.
    """
    ours = inversion.sigmas
    if len(sigmas) != len(ours):
        raise ValueError(
            f"sigmas hold {len(sigmas) - 1} steps, inversion has {len(ours) - 1}; use the inversion's own "
            "steps, scheduler and strength"
        )
    for step, (theirs, own) in enumerate(zip(sigmas, ours, strict=True)):
        if not math.isclose(theirs, own, rel_tol=SIGMA_TOLERANCE, abs_tol=SIGMA_TOLERANCE):
            raise ValueError(
                f"sigmas have {theirs:.4g} at step {step}, inversion has {own:.4g}; use the inversion's "
                "own scheduler, strength and model sampling"
            )


def latent_checksum(latent: Tensor) -> str:
    """A short name of a latent's content."""
    data = latent.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def _repeated(value: Tensor, axis: int, count: int) -> Tensor:
    return value.repeat_interleave(count, dim=axis)
