"""Inverting and rebuilding as functions, for every node that does it."""

import dataclasses
from dataclasses import dataclass

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.inversion.fixed_point import FixedPoint
from ...models.inversion.method import Method
from ...models.inversion.methods import DEFAULT, method_of
from ...models.inversion.trajectory import Inversion, Source, latent_checksum
from ..host.attention import Conditioning
from ..host.samplers import model_figures, noise_space, run_inversion

AUTO = "auto"
SCHEDULERS = {False: "ddim_uniform", True: "simple"}  # by whether the model is a flow


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to invert.

    Args:
        method: key of METHODS.
        steps: of the schedule.
        scheduler: one of core's, or AUTO.
        strength: share of the whole schedule, from its clean end.
        iterations: of the method "fixed point".
        seed: of the method's own noise.
        keep_states: all of them, or the ends only.
    """

    method: str = DEFAULT
    steps: int = 50
    scheduler: str = AUTO
    strength: float = 1.0
    iterations: int = 4
    seed: int = 0
    keep_states: bool = True


def source_guider(model: ModelPatcher, positive: Conditioning) -> comfy.samplers.CFGGuider:
    """A guider that predicts under a conditioning alone, without guidance."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    return guider


def invert_latent(
    guider: comfy.samplers.CFGGuider,
    latent: Tensor,
    settings: Settings,
    note: str = "",
    size_px: tuple[int, int] | None = None,
) -> Inversion:
    """Invert a latent under a guider.

    Args:
        guider: as for `run_inversion`.
        latent: (b c ...) as a VAE gives it; left unmodified.
        settings: how.
        note: the condition in words.
        size_px: height and width of the pictures before padding.

    Raises:
        ValueError: as `run_inversion`, or a model whose noise is unknown.
    """
    model = guider.model_patcher
    space = noise_space(model)
    sigmas = schedule(model, settings.steps, settings.scheduler, settings.strength)
    path = run_inversion(guider, latent, _method(settings), sigmas, settings.seed)
    family, weights = model_figures(model)
    return Inversion(
        method=settings.method,
        space=space,
        sigmas=tuple(sigmas.tolist()),
        noise=path.states[0],
        clean=path.states[-1],
        states=path.states if settings.keep_states else None,
        second=path.second,
        maps=path.maps,
        residuals=path.residuals,
        calls=path.calls,
        source=Source(
            model=family,
            weights=weights,
            latent=latent_checksum(path.states[-1]),
            seed=settings.seed,
            note=note,
            size_px=size_px,
        ),
    )


def schedule(model: ModelPatcher, steps: int, scheduler: str, strength: float) -> Tensor:
    """Noise levels as KSampler makes them: `steps` of them at the clean end of a longer schedule."""
    if scheduler == AUTO:
        scheduler = SCHEDULERS[noise_space(model).flow]
    return comfy.samplers.KSampler(
        model,
        steps=steps,
        device=model.load_device,
        sampler="euler",
        scheduler=scheduler,
        denoise=strength,
        model_options=model.model_options,
    ).sigmas


def _method(settings: Settings) -> Method:
    method = method_of(settings.method)
    if isinstance(method, FixedPoint):
        return dataclasses.replace(method, iterations=settings.iterations)
    return method
