"""Node that edits without inverting (FlowEdit)."""

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import mask_to_b1hw
from ...models.inversion.editing.flow_edit import flow_edit
from ...models.inversion.editing.masks import blended, latent_mask
from ...models.inversion.method import AfterStep
from ..host.attention import Conditioning
from ..host.samplers import checked_latent, noise_space, run_sampler
from .edit_plan import CATEGORY
from .run import AUTO, schedule

BRANCH_KEY = "veduta.flow_edit.branch"  # of transformer_options
SOURCE, TARGET = "source", "positive"
SCALES = {SOURCE: "source_scale", TARGET: "text_scale"}


class FlowEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaFlowEdit",
            display_name="Edit without Inversion (FlowEdit)",
            category=CATEGORY,
            description=(
                "Carries a picture from its own prompt to another without going through noise. Made for "
                "flow models such as SD3 and FLUX; eps and v models follow the same rule."
            ),
            search_aliases=["flowedit", "inversion free", "edit image", "flux edit"],
            inputs=_inputs(),
            outputs=[io.Latent.Output(display_name="latent", tooltip="The edited picture.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        source: Conditioning,
        positive: Conditioning,
        negative: Conditioning,
        seed: int,
        steps: int = 24,
        strength: float = 0.85,
        source_scale: float = 1.5,
        text_scale: float = 5.5,
        scheduler: str = AUTO,
        draws: int = 1,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        samples = checked_latent(latent["samples"])
        guider = PairGuider(model, source, positive, negative, (source_scale, text_scale))
        sampler = FlowEditSampler(seed, draws, _latent_mask(mask, samples))
        sigmas = schedule(model, steps, scheduler, strength)
        return io.NodeOutput({**latent, "samples": run_sampler(guider, samples, sampler, sigmas)})


class PairGuider(comfy.samplers.CFGGuider):
    """Plain CFG for the source's prompt or for the edit's, whichever the options name."""

    def __init__(
        self,
        model: ModelPatcher,
        source: Conditioning,
        positive: Conditioning,
        negative: Conditioning,
        scales: tuple[float, float],
    ) -> None:
        super().__init__(model)
        self.scales = dict(zip((SOURCE, TARGET), scales, strict=True))
        # core tells the network which prompt is the negative one, and by its name only
        named = node_helpers.conditioning_set_values(source, {"prompt_type": "positive"})
        self.inner_set_conds({TARGET: positive, SOURCE: named, "negative": negative})

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        options = model_options or {}
        branch = options["transformer_options"].get(BRANCH_KEY, TARGET)
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds["negative"],
            self.conds[branch],
            self.scales[branch],
            model_options=options,
            seed=seed,
        )


class FlowEditSampler(comfy.samplers.Sampler):
    """Carries the latent image from the source's prompt to the edit's, under a PairGuider."""

    def __init__(self, seed: int, draws: int, mask: Tensor | None) -> None:
        self.seed, self.draws, self.mask = seed, draws, mask

    def sample(
        self,
        model_wrap: PairGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[int, Tensor, Tensor, int], None] | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        calls, total = 0, 2 * self.draws * (len(sigmas) - 1)

        def predict(branch: str, x: Tensor, sigma: float) -> Tensor:
            nonlocal calls
            comfy.model_management.throw_exception_if_processing_interrupted()
            options = extra_args["model_options"]
            inner = {**options["transformer_options"], BRANCH_KEY: branch}
            arguments = {**extra_args, "model_options": {**options, "transformer_options": inner}}
            denoised = model_wrap(x, torch.full((len(x),), sigma, device=x.device), **arguments)
            calls += 1
            if callback is not None and branch == TARGET:
                callback(calls, denoised, x, total)
            return denoised

        return flow_edit(
            lambda x, sigma: predict(SOURCE, x, sigma),
            lambda x, sigma: predict(TARGET, x, sigma),
            latent_image,
            sigmas.tolist(),
            noise_space(model_wrap.model_patcher),
            self.seed,
            self.draws,
            self._keeping(latent_image),
        )

    def _keeping(self, clean: Tensor) -> AfterStep | None:
        mask = self.mask
        return None if mask is None else lambda _, x: blended(x, clean, mask)


def _latent_mask(mask: Tensor | None, samples: Tensor) -> Tensor | None:
    if mask is None:
        return None
    height, width = mask.shape[-2:]
    planes = mask_to_b1hw(mask, len(samples), height, width)
    return latent_mask(planes, samples.shape[-2], samples.shape[-1])


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="It stays as it is."),
        io.Latent.Input(
            "latent", tooltip="The picture, encoded by the model's VAE; its mask is ignored."
        ),
        io.Conditioning.Input("source", tooltip="What the picture shows now."),
        io.Conditioning.Input("positive", tooltip="What it is to show."),
        io.Conditioning.Input(
            "negative", tooltip="What to keep away from; unused where both scales are 1."
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of the noise that source and edit share.",
        ),
        io.Int.Input(
            "steps", default=24, min=1, max=1000, tooltip="FLUX 24, SD3 33; two calls each."
        ),
        io.Float.Input(
            "strength",
            default=0.85,
            min=0.05,
            max=1.0,
            step=0.01,
            tooltip="How far into noise it reaches: FLUX 0.85, SD3 0.66; less keeps more.",
        ),
        io.Float.Input(
            "source_scale",
            default=1.5,
            min=0.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip=(
                "How strongly the source's prompt holds. SD3 3.5. A FLUX with guidance built in: 1, and "
                "1.5 in its guidance node."
            ),
        ),
        io.Float.Input(
            "text_scale",
            default=5.5,
            min=0.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip=(
                "How strongly the edit's prompt holds. SD3 13.5. A FLUX with guidance built in: 1, and "
                "5.5 in its guidance node."
            ),
        ),
        io.Combo.Input(
            "scheduler",
            options=[AUTO, *comfy.samplers.KSampler.SCHEDULERS],
            default=AUTO,
            advanced=True,
            tooltip="auto: simple for flow models, ddim_uniform for others.",
        ),
        io.Int.Input(
            "draws",
            default=1,
            min=1,
            max=16,
            advanced=True,
            tooltip="Noises per step whose changes are averaged; two calls each.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="1 where the picture may change, stretched over it; outside the latent stays.",
        ),
    ]
