"""Inversion methods as ComfyUI samplers, so that any GUIDER of the user's graph is the denoiser.

Core's KSAMPLER would add noise, heed the latent's mask and divide by 1 - sigma at the end of a flow; these
classes do none of it, and so start at the clean latent and reach sigma 1 safely.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.common.noise_space import NoiseSpace
from ...models.inversion.method import AfterStep, Denoise, Method, Observe, Path
from ...models.inversion.methods import method_of
from ...models.inversion.trajectory import Inversion, check_model, check_sigmas

FIGURES = 8  # of the weights, to tell checkpoints apart
UNSERVED = (
    comfy.model_sampling.IMG_TO_IMG,
    comfy.model_sampling.IMG_TO_IMG_FLOW,
    comfy.model_sampling.V_PREDICTION_DDPM,
)
logger = logging.getLogger("veduta")


def noise_space(model: ModelPatcher) -> NoiseSpace:
    """How a MODEL mixes picture and noise.

    Raises:
        ValueError: in a way of its own.
    """
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, UNSERVED) or not isinstance(
        sampling,
        comfy.model_sampling.EPS | comfy.model_sampling.CONST | comfy.model_sampling.COSMOS_RFLOW,
    ):
        kinds = ", ".join(base.__name__ for base in type(sampling).__bases__)
        raise ValueError(
            f"model's noise is of the kind {kinds}, eps, v or flow is needed to invert; use another model"
        )
    return NoiseSpace(
        flow=isinstance(sampling, comfy.model_sampling.CONST),
        noise_scale=float(getattr(sampling, "noise_scale", 1.0)),
        variance_preserving_input=isinstance(sampling, comfy.model_sampling.EPS),
        sigma_data=float(getattr(sampling, "sigma_data", 1.0)),
    )


def model_figures(model: ModelPatcher) -> tuple[str, tuple[float, ...]]:
    """The family of a MODEL, and a few figures of weights that LoRAs leave alone."""
    base = model.model
    weights = {name: p for name, p in base.diffusion_model.named_parameters() if p.ndim == 1}
    names = sorted(weights)
    chosen = names[:: max(1, len(names) // FIGURES)][:FIGURES]
    figures = tuple(float(weights[name].detach().float().abs().mean()) for name in chosen)
    return type(base.model_config).__name__, figures


def check_inverted_by(inversion: Inversion, model: ModelPatcher) -> None:
    """Refuse an inversion of another model; ValueError."""
    check_model(inversion, *model_figures(model))


class InversionSampler(comfy.samplers.Sampler):
    """Goes up from the latent image instead of down from the noise; takes sigmas as samplers do.

    Nothing of a run is kept: what it finds goes to `deliver`.
    """

    def __init__(self, method: Method, seed: int, deliver: Callable[[Path], None]) -> None:
        self.method, self.seed, self.deliver = method, seed, deliver

    def sample(
        self,
        model_wrap: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[int, Tensor, Tensor, int], None] | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        _warn_of_keyframes(model_wrap)
        path = self.method.invert(
            _denoiser(model_wrap, extra_args),
            latent_image,
            sigmas.tolist(),
            noise_space(model_wrap.model_patcher),
            self.seed,
            _observer(callback),
        )
        self.deliver(path)
        return path.states[0].to(latent_image)


class ReplaySampler(comfy.samplers.Sampler):
    """Walks down from an inversion by its own method, with whatever guider it is given."""

    def __init__(
        self, inversion: Inversion, after_step: AfterStep | None = None, start: int = 0
    ) -> None:
        self.inversion, self.after_step, self.start = inversion, after_step, start

    def sample(
        self,
        model_wrap: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[int, Tensor, Tensor, int], None] | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        check_sigmas(self.inversion, sigmas.tolist())
        return method_of(self.inversion.method).sample(
            _denoiser(model_wrap, extra_args),
            self.inversion.for_batch(len(latent_image)).on(latent_image.device),
            self.after_step,
            _observer(callback),
            self.start,
        )


class InversionNoise:
    """A NOISE with which stock samplers start at an inversion's noise; the latent has to be empty."""

    def __init__(self, inversion: Inversion, model: ModelPatcher) -> None:
        self.seed = inversion.source.seed
        self.inversion = inversion
        sampling: Any = model.get_model_object("model_sampling")
        sigma, top = inversion.sigmas[0], float(sampling.sigma_max)
        # what core multiplies with: Sampler.max_denoise and the noise_scaling of each kind
        if inversion.space.flow:
            self.scale = sigma * inversion.space.noise_scale
        elif sigma > top or math.isclose(sigma, top, rel_tol=1e-5):
            self.scale = math.sqrt(1 + sigma**2)
        else:
            self.scale = sigma

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """The noise (b c ...).

        Raises:
            ValueError: the latent holds a picture, or is of another size.
        """
        latent = input_latent["samples"]
        inversion = self.inversion.for_batch(len(latent))
        if latent.shape != inversion.noise.shape:
            raise ValueError(
                f"latent_image has the shape {tuple(latent.shape)}, the inverted noise "
                f"{tuple(inversion.noise.shape)}; connect an empty latent of the picture's size"
            )
        if bool(latent.count_nonzero()):
            raise ValueError(
                "latent_image holds a picture, an empty latent is needed, because the inverted noise holds "
                "the picture already; connect an empty latent of the same size"
            )
        return inversion.noise / self.scale


def stock_latent(inversion: Inversion, model: ModelPatcher) -> Tensor:
    """An inversion's noise (b c ...) as a latent from which stock samplers go on without adding noise.

    Of flows core multiplies it by 1 - sigma, so it is divided by that; where that is 0 no latent can
    carry the noise, and it comes undivided.
    """
    share = inversion.space.alpha(inversion.sigmas[0])
    return model.model.process_latent_out(inversion.noise / (share or 1.0))


def run_inversion(
    guider: comfy.samplers.CFGGuider,
    latent: Tensor,
    method: Method,
    sigmas: Tensor,
    seed: int = 0,
) -> Path:
    """Invert a latent under a guider, with previews, progress and the cancel button.

    Args:
        guider: predicts; its condition should be the source's, without guidance.
        latent: (b c ...) as a VAE gives it; left unmodified.
        method: how.
        sigmas: descending to 0.
        seed: of the method's own noise.

    Returns:
        The path in the model's latent space, float32 on the CPU.

    Raises:
        ValueError: an empty latent, numbers that are not finite, or what the method refuses.
    """
    checked_latent(latent)
    found: list[Path] = []
    run_sampler(guider, latent, InversionSampler(method, seed, found.append), sigmas)
    return found[0]


def replay(
    guider: comfy.samplers.CFGGuider,
    inversion: Inversion,
    after_step: AfterStep | None = None,
    start: int = 0,
) -> Tensor:
    """Walk down from an inversion under a guider, with previews, progress and the cancel button.

    Args:
        guider: predicts; its model has to be the inversion's.
        inversion: left unmodified; one sample for each of the guider's.
        after_step: as in `Method.sample`.
        start: as in `Method.sample`.

    Returns:
        The latent (b c ...) as a VAE takes it, float32.

    Raises:
        ValueError: another model.
    """
    check_inverted_by(inversion, guider.model_patcher)
    clean = guider.model_patcher.model.process_latent_out(inversion.clean)
    sampler = ReplaySampler(inversion, after_step, start)
    return run_sampler(guider, clean, sampler, torch.tensor(inversion.sigmas))


def run_sampler(
    guider: comfy.samplers.CFGGuider,
    latent: Tensor,
    sampler: comfy.samplers.Sampler,
    sigmas: Tensor,
) -> Tensor:
    """Run a sampler that starts at the latent, with previews, progress and the cancel button.

    Args:
        guider: predicts.
        latent: (b c ...) as a VAE gives it; left unmodified.
        sampler: ignores the noise, which is none.
        sigmas: handed to the sampler.

    Returns:
        What the sampler ends at, as a VAE takes it.
    """
    model = guider.model_patcher
    return guider.sample(
        torch.zeros_like(latent),
        latent,
        sampler,
        sigmas,
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=0,
    )


def checked_latent(latent: Tensor) -> Tensor:
    """The latent itself.

    Raises:
        ValueError: it is nested, not finite, or empty.
    """
    if latent.is_nested:
        raise ValueError(
            "latent holds several tensors for each picture (a video with sound), one is needed; separate "
            "them first"
        )
    if not bool(torch.isfinite(latent).all()):
        raise ValueError(
            "latent holds NaN or infinite values; look at the node that made it (a VAE in half precision "
            "does this, try another precision)"
        )
    if not bool(latent.count_nonzero()):
        raise ValueError(
            "latent is empty, a picture is needed; connect the latent of a VAE encoder"
        )
    return latent


def _denoiser(guider: comfy.samplers.CFGGuider, extra_args: dict[str, Any]) -> Denoise:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return guider(x, torch.full((len(x),), sigma, device=x.device), **extra_args)

    return denoise


def _observer(callback: Callable[[int, Tensor, Tensor, int], None] | None) -> Observe | None:
    if callback is None:
        return None
    # the bar counts calls; the preview is of the denoised picture
    return lambda step, denoised, x, done, total: callback(done - 1, denoised, x, total)


def _warn_of_keyframes(guider: comfy.samplers.CFGGuider) -> None:
    hooks = [
        hook
        for conds in guider.conds.values()
        for cond in conds
        if cond.get("hooks") is not None
        for hook in cond["hooks"].hooks
    ]
    if any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks):
        logger.warning(
            "the conditioning has hooks with keyframes, which only move on as noise falls; while inverting "
            "they stay at their last one"
        )
