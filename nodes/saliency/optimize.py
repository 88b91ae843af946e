"""Node that optimises the noise a picture starts from; the work is in `optimize_run` beside it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sd
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Generator, Tensor

from ...models.common.images import bchw_to_image, mask_to_b1hw
from ...models.saliency.mixing import FixedMap
from ...models.saliency.objective import EYE, Objective
from ...models.saliency.optimiser import Settings
from ...models.saliency.presets import DEFAULT, PRESETS
from ..host.attention import Conditioning
from ..host.differentiable import Request
from ..host.differentiable_vae import DifferentiableDecoder
from ..host.samplers import checked_latent
from .load import CATEGORY, spectral
from .networks import RewardChain, Saliency, kept
from .optimize_inputs import (
    AS_PRESET,
    OWN,
    choice_inputs,
    expert_inputs,
    result_outputs,
    source_inputs,
)
from .optimize_report import Picture, draw_curve, report_of
from .optimize_run import Done, Task, optimise_noise

SEEDS = 2**64
RUNS = Path("veduta", "optimisation")  # below ComfyUI's output directory
NAME = re.compile(r"[\w][\w .()-]*")
OF_AN_EMPTY_LATENT = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # core's own keys


class OptimizeLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaOptimizeLatent",
            display_name="Optimize Latent (SGOOL)",
            category=CATEGORY,
            description=(
                "Moves the noise that a picture starts from until the picture earns more reward, mostly "
                "where people look: by the true gradient through model, sampler and VAE, in constant "
                "memory. Each iterate is shown; Cancel keeps the best so far."
            ),
            search_aliases=[
                "noise optimization",
                "doodl",
                "reno",
                "initno",
                "latent optimization",
                "reward guidance",
            ],
            inputs=[*source_inputs(), *choice_inputs(), *expert_inputs()],
            outputs=result_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: Conditioning,
        negative: Conditioning,
        vae: comfy.sd.VAE,
        latent_image: dict[str, Any],
        sampler: Any,
        sigmas: Tensor,
        seed: int,
        cfg: float,
        preset: str = DEFAULT,
        iterations: int = 0,
        use_saliency: str = AS_PRESET,
        starts: int = 1,
        compare: bool = False,
        strength: float = OWN,
        step_scale: float = 1.0,
        last_steps: int = 0,
        patience: int = OWN,
        keep: int = 1,
        add_noise: bool = True,
        keep_on_cancel: bool = True,
        check_gradient: bool = False,
        resume_name: str = "",
        reward: RewardChain | None = None,
        saliency: Saliency | None = None,
        mask: Tensor | None = None,
        held_out: RewardChain | None = None,
        noise: Any = None,
        gradient_vae: comfy.sd.VAE | None = None,
    ) -> io.NodeOutput:
        store = _store(resume_name)
        latent, noises = _start(model, latent_image, sigmas, noise, add_noise, seed, starts)
        count = len(latent["samples"])
        _check_batch(positive, "positive", count)
        _check_batch(negative, "negative", count)
        request = Request(
            model=model, positive=positive, negative=negative, cfg=cfg, sampler=sampler,
            sigmas=checked_sigmas(sigmas), latent=latent["samples"], mask=latent.get("noise_mask"),
            seed=seed, last_steps=last_steps,
        )  # fmt: skip
        decoder = DifferentiableDecoder(vae if gradient_vae is None else gradient_vae)
        chosen = PRESETS[preset]
        use = chosen.use if use_saliency == AS_PRESET else use_saliency
        finder = _finder(saliency, mask, use, count)
        chain = reward or RewardChain()
        objective = Objective(
            rewards=chain.rewards, find=finder.find, use=use,
            strength=chosen.strength if strength == OWN else strength,
            target=_target(mask, latent["samples"], vae) if use == EYE else None,
            crops=chosen.crops, refresh=chosen.refresh, inertia=chosen.inertia,
        )  # fmt: skip
        settings = Settings(
            rule=chosen.rule, iterations=iterations or chosen.iterations, scale=step_scale,
            patience=chosen.patience if patience == OWN else patience, keep=keep,
        )  # fmt: skip
        done = optimise_noise(
            Task(
                request=request, noises=noises, decoder=decoder, objective=objective, settings=settings,
                patchers=(*chain.patchers, *finder.patchers), held_out=held_out, compare=compare,
                check=check_gradient, keeps_on_cancel=keep_on_cancel, store=store, seed=seed,
            )
        )  # fmt: skip
        return _answer(_Result(request, latent, vae, done), chain, held_out, preset, use)


@dataclass(frozen=True)
class OptimizedNoise:
    """A NOISE that was optimised: (k*b c ...), the best of every picture first."""

    seed: int
    noise: Tensor

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """The noise for a latent of the optimised size; ValueError for another one."""
        shape = input_latent["samples"].shape
        if shape[1:] != self.noise.shape[1:] or shape[0] > len(self.noise):
            raise ValueError(
                f"latent_image has the shape {tuple(shape)}, the optimised noise "
                f"{tuple(self.noise.shape)}; connect the latent that was optimised"
            )
        return self.noise[: shape[0]].to(input_latent["samples"].dtype)


class _Result:
    """Pictures of noises, by the stock sampler and the full VAE."""

    def __init__(
        self, request: Request, latent: dict[str, Any], vae: comfy.sd.VAE, done: Done
    ) -> None:
        self.request, self.latent, self.vae, self.done = request, latent, vae, done

    def latents(self, noise: Tensor) -> Tensor:
        asked = self.request
        return comfy.sample.sample_custom(
            asked.model, noise, asked.cfg, asked.sampler, asked.sigmas, asked.positive,
            asked.negative, asked.latent, noise_mask=asked.mask, disable_pbar=True, seed=asked.seed,
        )  # fmt: skip

    def planes(self, samples: Tensor) -> Tensor:
        image = self.vae.decode(samples)
        image = image.flatten(0, 1) if image.ndim == 5 else image
        return image.movedim(-1, 1).float()


def checked_sigmas(sigmas: Tensor) -> Tensor:
    """The sigmas themselves.

    Raises:
        ValueError: no step, not descending, or not finite.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2 or not bool(torch.isfinite(sigmas).all()):
        raise ValueError(
            f"sigmas hold {sigmas.numel()} levels, two finite ones at least are needed; connect a scheduler "
            "with one step or more"
        )
    if bool((sigmas.diff() >= 0).any()):
        raise ValueError(
            f"sigmas go from {float(sigmas[0]):g} to {float(sigmas[-1]):g} and rise in between, falling "
            "ones are needed; connect a scheduler as it is"
        )
    return sigmas


def _start(
    model: ModelPatcher,
    latent_image: dict[str, Any],
    sigmas: Tensor,
    noise: Any,
    add_noise: bool,
    seed: int,
    starts: int,
) -> tuple[dict[str, Any], list[Tensor]]:
    """The latent to sample over, and the noises to begin with."""
    first: Any
    samples: Any = latent_image["samples"]
    if samples.is_nested:
        raise ValueError(
            "latent_image holds several tensors for each picture (a video with sound), one is needed; "
            "separate them first"
        )
    samples = comfy.sample.fix_empty_latent_channels(
        model, samples, *(latent_image.get(key) for key in OF_AN_EMPTY_LATENT)
    )
    entries = {key: x for key, x in latent_image.items() if key not in OF_AN_EMPTY_LATENT}
    if not add_noise:
        if noise is not None:
            raise ValueError(
                "noise is connected and add_noise is off, one of them says where to start; disconnect it or "
                "switch add_noise on"
            )
        first = noise_in(model, checked_latent(samples), sigmas)
        samples = torch.zeros_like(samples)
    elif noise is not None:
        first = noise.generate_noise({**entries, "samples": samples})
    else:
        first = comfy.sample.prepare_noise(samples, seed, latent_image.get("batch_index"))
    if first.shape != samples.shape:
        raise ValueError(
            f"noise has the shape {tuple(first.shape)}, latent_image {tuple(samples.shape)}; connect noise "
            "and latent of one size"
        )
    generator = Generator().manual_seed((seed + 1) % SEEDS)
    others = [torch.randn(samples.shape, generator=generator) for _ in range(starts - 1)]
    noises = [kept(lambda z=z: z.float().cpu().clone()) for z in (first, *others)]
    return {**entries, "samples": samples}, noises


def noise_in(model: ModelPatcher, samples: Tensor, sigmas: Tensor) -> Tensor:
    """The noise that a latent holds already, such as an inverted one: what stock samplers start from.

    Args:
        model: with the noise schedule.
        samples: (b c ...) as a VAE gives it.
        sigmas: (n+1); the first counts.
    """
    sampling: Any = model.get_model_object("model_sampling")
    clean = model.model.process_latent_in(samples.float())
    sigma, top = sigmas[0].cpu(), float(sampling.sigma_max)
    at_top = float(sigma) > top or math.isclose(float(sigma), top, rel_tol=1e-5)
    nothing = torch.zeros_like(clean)
    carried = sampling.noise_scaling(sigma, nothing, clean, at_top)
    if not bool(carried.count_nonzero()):  # a flow at its very start lets no latent through
        carried = clean
    return carried / sampling.noise_scaling(sigma, torch.ones_like(clean), nothing, at_top)


def _finder(saliency: Saliency | None, mask: Tensor | None, use: str, count: int) -> Saliency:
    """What finds the salient part: a mask before a model, unless the mask is the goal."""
    if mask is None or use == EYE:
        return saliency or spectral()
    height, width = mask.shape[-2:]
    planes = mask_to_b1hw(mask, count, height, width)
    _refuse_empty(planes)
    return Saliency(FixedMap(kept(lambda: planes.cpu().clone())), name="mask")


def _target(mask: Tensor | None, samples: Tensor, vae: comfy.sd.VAE) -> Tensor | None:
    if mask is None:
        return None
    compression: Any = vae.spacial_compression_decode()
    height, width = (side * int(compression) for side in samples.shape[-2:])
    planes = mask_to_b1hw(mask, len(samples), height, width)
    _refuse_empty(planes)
    return kept(lambda: planes.clone())


def _refuse_empty(planes: Tensor) -> None:
    if not bool((planes.amax((1, 2, 3)) > 0).all()):
        raise ValueError(
            "mask is 0 everywhere, some of it has to be white; paint where people should look, or "
            "disconnect it"
        )


def _check_batch(conditioning: Conditioning, name: str, count: int) -> None:
    for text, _ in conditioning:
        if text is not None and len(text) not in (1, count):
            raise ValueError(
                f"{name} holds {len(text)} prompts, latent_image {count} pictures; connect one prompt, or "
                "one for each picture"
            )


def _store(name: str) -> Path | None:
    if not name.strip():
        return None
    if not NAME.fullmatch(name.strip()) or name.strip().endswith("."):
        raise ValueError(
            f"resume_name is {name!r}, a file name of letters, digits, spaces and ( ) . _ - is needed, "
            "without folders"
        )
    folder = Path(folder_paths.get_output_directory()) / RUNS
    return folder / f"{name.strip()}.safetensors"


def _answer(
    result: _Result, reward: RewardChain, held_out: RewardChain | None, preset: str, use: str
) -> io.NodeOutput:
    done = result.done
    found = [result.latents(noise) for noise in done.kept]
    before = result.planes(result.latents(done.first))
    pictures = {"before": before, "after": result.planes(found[0])}
    if done.compared is not None:
        pictures[f"best of {done.tried}"] = result.planes(result.latents(done.compared))
    scored = {
        name: Picture(_points(reward, planes), _points(held_out, planes))
        for name, planes in pictures.items()
    }
    shown = torch.cat([result.planes(samples) for samples in found])
    samples = torch.cat(found)
    entries = {key: x for key, x in result.latent.items() if key != "batch_index"}
    return io.NodeOutput(
        {**entries, "samples": samples},
        OptimizedNoise(result.request.seed, done.kept.flatten(0, 1)),
        bchw_to_image(shown),
        bchw_to_image(before),
        bchw_to_image(draw_curve(done.rows)[None]),
        report_of(done, scored, preset, use),
    )


def _points(chain: RewardChain | None, planes: Tensor) -> list[float]:
    """Of the whole pictures; [] without rewards."""
    if chain is None or not chain.rewards.rewards:
        return []
    comfy.model_management.load_models_gpu(list(chain.patchers))
    with torch.no_grad():
        return chain.rewards.total(planes.to(comfy.model_management.get_torch_device())).tolist()
