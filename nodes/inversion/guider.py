"""The guider of an edit: text and image apart, shaped guidance, concepts, attention of the source."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import node_helpers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.common.guidance import Branch, Plan, Scales, plan_guidance
from ...models.common.noise_space import NoiseSpace
from ...models.inversion.editing.concepts import ConceptRule, concept_term
from ...models.inversion.editing.guidance import Shaping, cfg_plus_plus_scale
from ...models.inversion.editing.masks import GatheredPlaces, latent_mask, over_frames
from ...models.inversion.editing.progress import share_done, source_state
from ...models.inversion.trajectory import Inversion, check_sigmas
from ..host.attention import Conditioning
from ..host.guiders import CONDS, Conditionings, ExtraGuider
from ..host.samplers import check_inverted_by, noise_space
from .shared_attention import SourceAttention, check_shares_attention

SOURCE = "source"
TEXTS = (Branch.BOTH, Branch.TEXT)  # of the edit; the negative never looks as the source did


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something to add to the picture, or to remove from it.

    Args:
        conditioning: its prompt.
        rule: how it acts.
        mask: (b 1 h w) of the picture, where it may act; None is everywhere.
    """

    conditioning: Conditioning
    rule: ConceptRule
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly an edit follows its prompts.

    Args:
        scales: of text and image; outside the interval both are 1.
        interval: start and end as shares of the steps.
        shaping: of the difference that guides.
        cfg_plus_plus: the scales are CFG++'s.
        share_attention: share of the steps in which the edit looks as its source did.
    """

    scales: Scales
    interval: tuple[float, float] = (0.0, 1.0)
    shaping: Shaping = field(default_factory=Shaping)
    cfg_plus_plus: bool = False
    share_attention: float = 0.0

    def __post_init__(self) -> None:
        start, end = self.interval
        if start >= end:
            raise ValueError(
                f"start_percent is {start:g}, end_percent is {end:g}, so the edit would never be guided; "
                "set start_percent below end_percent"
            )


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What an edit sees; every one has been through `with_extra` if one has.

    Args:
        seen: the edit's own.
        source: the source's prompt; None where it is not needed.
        concepts: to add and to remove.
    """

    seen: Conditionings
    source: Conditioning | None = None
    concepts: Sequence[Concept] = ()


class EditGuider(ExtraGuider):
    """Guides an edit down from an inversion; with neutral choices it is plain CFG."""

    def __init__(
        self,
        model: ModelPatcher,
        inversion: Inversion,
        prompts: Prompts,
        guidance: Guidance,
        places: GatheredPlaces | None = None,
    ) -> None:
        """Set up.

        Args:
            model: heeds the extras of the prompts.
            inversion: of the source.
            prompts: what is seen.
            guidance: how strongly.
            places: gathers where edit and source differ; belongs to a single run.

        Raises:
            ValueError: another model than the inversion's, attention to share on no UNet, states that
                were not kept, or no prompt of the source where one is needed.
        """
        check_inverted_by(inversion, model)
        check_shares_attention(model, guidance.share_attention)
        _check_source(prompts, inversion, guidance, places is not None)
        super().__init__(model, prompts.seen, guidance.scales)
        self.inversion, self.guidance, self.places = inversion, guidance, places
        self.space: NoiseSpace = noise_space(model)
        self.concepts = list(prompts.concepts)
        more = {_concept_key(i): one.conditioning for i, one in enumerate(self.concepts)}
        if prompts.source is not None:
            more[SOURCE] = prompts.source
        # core tells the network which prompt is the negative one, and by its name only
        values = {"prompt_type": "positive"}
        self.inner_set_conds(
            {
                name: node_helpers.conditioning_set_values(conditioning, values)
                for name, conditioning in more.items()
            }
        )

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        check_sigmas(self.inversion, sigmas.tolist())
        return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        options = model_options or {}
        sigma = float(timestep[0])
        sigmas = options["transformer_options"]["sample_sigmas"].tolist()
        done = share_done(sigma, sigmas)
        acting = [i for i, one in enumerate(self.concepts) if one.rule.acts_at(done)]
        plan = self._plan(sigma, sigmas, options, bool(acting))
        names = [None if branch is None else CONDS[branch] for branch in plan.branches]
        own = len(names)
        names += [_concept_key(i) for i in acting]
        if self.places is not None:
            names.append(SOURCE)
        if done < self.guidance.share_attention:
            options = self._looking_as_source(x, timestep, options, plan)
        conds = [None if name is None else self.conds[name] for name in names]
        predictions = self._predictions(conds, x, timestep, options)
        cond, uncond = plan.fold(predictions[:own])
        if self.places is not None:
            self.places.add(cond - predictions[-1])
        if not self.guidance.shaping.is_neutral:
            cond = uncond + self.guidance.shaping(cond - uncond)
        cond, uncond_seen = self._after_pre_cfg(
            [cond, uncond], conds[:2], plan.scale, x, timestep, options
        )
        denoised = comfy.samplers.cfg_function(
            self.inner_model, cond, uncond_seen, plan.scale, x, timestep,
            model_options=options, cond=conds[0], uncond=conds[1],
        )  # fmt: skip
        for index, seen in zip(acting, predictions[own:], strict=False):
            denoised = denoised + self._term(self.concepts[index], seen, uncond)
        return denoised

    def _plan(
        self, sigma: float, sigmas: Sequence[float], options: dict[str, Any], concepts: bool
    ) -> Plan:
        guidance = self.guidance
        start, end = guidance.interval
        scales = guidance.scales
        if not start <= share_done(sigma, sigmas) <= end:
            scales = replace(scales, text=1.0, extra=1.0)
        elif guidance.cfg_plus_plus:
            following = next((level for level in sigmas if level < sigma * (1 - 1e-6)), 0.0)
            factor = cfg_plus_plus_scale(1.0, following / sigma, self.space.alpha(following))
            scales = replace(scales, text=scales.text * factor, extra=scales.extra * factor)
        needed = (
            concepts
            or not guidance.shaping.is_neutral
            or options.get("disable_cfg1_optimization", False)
        )
        return plan_guidance(scales, keep_negative=needed)

    def _looking_as_source(
        self, x: Tensor, timestep: Tensor, options: dict[str, Any], plan: Plan
    ) -> dict[str, Any]:
        """The options with which the edit's pass looks as the source's, which is done here."""
        state = source_state(self.inversion, float(timestep[0])).to(x)
        attention = SourceAttention(frame=(x.shape[-2], x.shape[-1]))
        source = [self.conds[SOURCE]]
        self._predictions(source, state.expand_as(x), timestep, attention.recording(options))
        texts = [i for i, branch in enumerate(plan.branches) if branch in TEXTS]
        return attention.sharing(options, texts)

    def _term(self, concept: Concept, seen: Tensor, without: Tensor) -> Tensor:
        mask = concept.mask
        if mask is not None:
            mask = latent_mask(mask, seen.shape[-2], seen.shape[-1])
            mask = over_frames(mask, seen.ndim)
        return concept_term(seen, without, concept.rule, mask)


def _concept_key(index: int) -> str:
    return f"concept {index}"


def _check_source(
    prompts: Prompts, inversion: Inversion, guidance: Guidance, gathers: bool
) -> None:
    if prompts.source is None and (gathers or guidance.share_attention > 0):
        what = "auto_mask is on" if gathers else f"share_attention is {guidance.share_attention:g}"
        raise ValueError(
            f"{what} and source is not connected, the prompt of the inversion is needed; connect it, or "
            "switch that off"
        )
    if guidance.share_attention > 0 and inversion.states is None:
        raise ValueError(
            f"share_attention is {guidance.share_attention:g} and inversion keeps its end state only; "
            "invert again with keep set to 'all states', or set share_attention to 0"
        )
