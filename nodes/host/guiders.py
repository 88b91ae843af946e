"""A guider whose positive attends to more than its text, with a scale of its own for that."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.common.guidance import Branch, Scales, plan_guidance
from .attention import Conditioning, holds_at

CONDS = {Branch.BOTH: "positive", Branch.TEXT: "middle", Branch.NEGATIVE: "negative"}
OF_AN_EMPTY_LATENT = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # core's own keys


@dataclass(frozen=True, kw_only=True)
class Conditionings:
    """What the branches see.

    Every one of them has been through `with_extra`, so that they batch together.
    """

    positive: Conditioning  # the text and the extra
    middle: Conditioning  # the same text without it
    negative: Conditioning


class ExtraGuider(comfy.samplers.CFGGuider):
    """Guides by text and extra with two scales; outside the extra's interval by text alone.

    Nothing of a run is kept here: one guider may serve several samplers.
    """

    def __init__(
        self,
        model: ModelPatcher,
        conditionings: Conditionings,
        scales: Scales,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Set up.

        Args:
            model: heeds the extras already (`attend_extra`).
            conditionings: left unmodified.
            scales: of text and extra.
            interval: of the extra: start and end as shares of the sampling.
        """
        super().__init__(model)
        self.scales = scales
        self.interval = interval
        self.cfg = scales.text  # samplers log it
        # core tells the network which prompt is the negative one, and by its name only
        prompt = {"prompt_type": "positive"}
        self.inner_set_conds(
            {
                "positive": conditionings.positive,
                "middle": node_helpers.conditioning_set_values(conditionings.middle, prompt),
                "negative": conditionings.negative,
            }
        )

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        options = model_options or {}
        plan = plan_guidance(
            self.scales,
            extra_holds=holds_at(
                float(timestep[0]), *self.interval, self.inner_model.model_sampling
            ),
            keep_negative=options.get("disable_cfg1_optimization", False),
        )
        conds = [None if branch is None else self.conds[CONDS[branch]] for branch in plan.branches]
        predictions = plan.fold(self._predictions(conds, x, timestep, options))
        cond, uncond = self._after_pre_cfg(
            list(predictions), conds[:2], plan.scale, x, timestep, options
        )
        return comfy.samplers.cfg_function(
            self.inner_model,
            cond,
            uncond,
            plan.scale,
            x,
            timestep,
            model_options=options,
            cond=conds[0],
            uncond=conds[1],
        )

    def _predictions(
        self, conds: list[Any], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        if "sampler_calc_cond_batch_function" not in options:
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)
        return options["sampler_calc_cond_batch_function"](
            {
                "conds": conds,
                "input": x,
                "sigma": timestep,
                "model": self.inner_model,
                "model_options": options,
            }
        )

    def _after_pre_cfg(
        self,
        predictions: list[Tensor],
        conds: list[Any],
        scale: float,
        x: Tensor,
        timestep: Tensor,
        options: dict[str, Any],
    ) -> list[Tensor]:
        # other packs' functions see plain CFG, as in core's sampling_function
        for function in options.get("sampler_pre_cfg_function", []):
            predictions = function(
                {
                    "conds": conds,
                    "conds_out": predictions,
                    "cond_scale": scale,
                    "timestep": timestep,
                    "input": x,
                    "sigma": timestep,
                    "model": self.inner_model,
                    "model_options": options,
                }
            )
        return predictions


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """KSampler's choices."""

    seed: int
    steps: int
    sampler_name: str
    scheduler: str
    denoise: float = 1.0


def sample_latent(
    guider: comfy.samplers.CFGGuider, latent: dict[str, Any], schedule: Schedule
) -> dict[str, Any]:
    """Do with a guider what core's KSampler does: the same noise, noise levels and previews.

    Args:
        guider: guides.
        latent: a LATENT, left unmodified; its mask and its batch indices hold.
        schedule: how.

    Returns:
        The LATENT's other entries with the new samples.
    """
    model = guider.model_patcher
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], *(latent.get(key) for key in OF_AN_EMPTY_LATENT)
    )
    steps = comfy.samplers.KSampler(
        model,
        steps=schedule.steps,
        device=model.load_device,
        sampler=schedule.sampler_name,
        scheduler=schedule.scheduler,
        denoise=schedule.denoise,
        model_options=model.model_options,
    )
    sampled = guider.sample(
        comfy.sample.prepare_noise(samples, schedule.seed, latent.get("batch_index")),
        samples,
        comfy.samplers.sampler_object(steps.sampler),
        steps.sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, schedule.steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=schedule.seed,
    )
    sampled = sampled.to(
        device=comfy.model_management.intermediate_device(),
        dtype=comfy.model_management.intermediate_dtype(),
    )
    kept = {key: value for key, value in latent.items() if key not in OF_AN_EMPTY_LATENT}
    return {**kept, "samples": sampled}
