"""A frozen MODEL as a plain function, through which gradients reach what it attends to besides."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .attention import CONDS_KEY, Conditioning, Extra, Row, attend_extra
from .gradients import ordinary, ordinary_weights


class FrozenDenoiser:
    """x, sigma, texts and extras to the estimate of x0; made by `frozen_denoiser`."""

    def __init__(self, model: ModelPatcher, texts: Sequence[dict[str, Any]]) -> None:
        self.model = model
        self.device: torch.device = model.load_device
        self._texts = list(texts)
        self._base: Any = model.model
        self._options = options_for_backward(model)

    @property
    def text_count(self) -> int:
        return len(self._texts)

    @property
    def model_sampling(self) -> Any:
        return self._base.model_sampling

    def sigma_of(self, timesteps: Tensor) -> Tensor:
        """Noise levels (b) of trained indices 0..999 (b), on the model's device."""
        sigmas = self.model_sampling.sigmas
        return sigmas[timesteps.to(sigmas.device)].float().to(self.device)

    def scaled(self, samples: Tensor) -> Tensor:
        """LATENT samples in the scale in which the model works, float32, on its device."""
        return ordinary(self._base.process_latent_in(ordinary(samples).float())).to(self.device)

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        texts: Sequence[int],
        extras: Sequence[Extra | None],
    ) -> Tensor:
        """Denoise.

        Args:
            x: (b c h w) noisy latents, x0 + sigma * noise, in the model's scale.
            sigma: (b).
            texts: index of each row's conditioning.
            extras: what each row attends to besides; None is nothing.

        Returns:
            (b c h w) x0_hat in float32, with gradients for the extras' adapters alone.
        """
        return self.with_conds(x, sigma, self._batched(texts), extras)

    def with_conds(
        self, x: Tensor, sigma: Tensor, conds: dict[str, Any], extras: Sequence[Extra | None]
    ) -> Tensor:
        """The same for conditions that the caller has batched, by the names of `apply_model`."""
        rows = tuple(Row(() if extra is None else (extra,)) for extra in extras)
        options = {**self._options, "sigmas": sigma, "cond_or_uncond": [0]}
        return self._base.apply_model(
            x, sigma, transformer_options=options, **conds, **{CONDS_KEY: rows}
        )

    def _batched(self, texts: Sequence[int]) -> dict[str, Any]:
        first, *others = (self._texts[index] for index in texts)
        return {
            name: cond.concat([other[name] for other in others]) for name, cond in first.items()
        }


@contextmanager
def frozen_denoiser(
    model: ModelPatcher, conditionings: Sequence[Conditioning], latent: Tensor
) -> Iterator[FrozenDenoiser]:
    """Load the MODEL whole and lend it out for training; call inside `gradients`.

    Args:
        model: left as it is; it must be a UNet of the SD1.5 or SDXL kind.
        conditionings: CLIP's answers, encoded for this model once; texts are their indices.
        latent: (1 c h w), of the size that will be trained.

    Raises:
        ValueError: the model is of another family, or a conditioning has several entries.
    """
    clone = attend_extra(ready_for_backward(model))
    comfy.model_management.load_models_gpu([clone], force_full_load=True)
    clone.pre_run()
    try:
        with ordinary_weights(clone.model):
            latent = torch.zeros_like(ordinary(latent), device=clone.load_device)
            texts = [encoded_conds(clone, conditioning, latent) for conditioning in conditionings]
            yield FrozenDenoiser(clone, texts)
    finally:
        clone.cleanup()


def ready_for_backward(model: ModelPatcher) -> ModelPatcher:
    """The MODEL, or a clone of it that stays loaded and computes in a precision fit to learn in."""
    if model.is_dynamic():  # streamed weights are gone when the backward pass needs them
        model = model.clone(disable_dynamic=True)
    dtype = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
    if dtype == torch.float16:
        # small gradients vanish in half precision
        model = model.clone()
        wide = comfy.model_management.should_use_bf16(model.load_device)
        model.set_model_compute_dtype(torch.bfloat16 if wide else torch.float32)
    return model


def options_for_backward(model: ModelPatcher) -> dict[str, Any]:
    """The `transformer_options` of a MODEL, with an attention that has a backward pass."""
    options = dict(model.model_options.get("transformer_options", {}))
    options["wrappers"] = comfy.patcher_extension.copy_nested_dicts(model.wrappers)
    options["callbacks"] = comfy.patcher_extension.copy_nested_dicts(model.callbacks)
    # not every attention that a user may have chosen has a backward pass
    options["optimized_attention_override"] = attend_with_pytorch
    return options


def attend_with_pytorch(_: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


def encoded_conds(
    model: ModelPatcher, conditioning: Conditioning, latent: Tensor
) -> dict[str, Any]:
    """What `apply_model` is given for a CONDITIONING, by its names; gradients go through.

    Args:
        model: a loaded one.
        conditioning: of one entry.
        latent: (1 c h w), of the size that the model is shown.

    Raises:
        ValueError: the conditioning has several entries.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"a conditioning has {len(conditioning)} entries, training takes one; connect a plain "
            "text encode"
        )
    entries = comfy.sampler_helpers.convert_cond(conditioning)
    entries = comfy.samplers.encode_model_conds(
        model.model.extra_conds, entries, latent, model.load_device, "positive"
    )
    found = {}
    for name, cond in entries[0]["model_conds"].items():
        if name != CONDS_KEY:
            cond = cond.process_cond(batch_size=1, area=None, device=model.load_device)
            found[name] = _placed(cond, model)
    return found


def _placed(cond: Any, model: ModelPatcher) -> Any:
    if not isinstance(getattr(cond, "cond", None), Tensor):
        return cond
    value = ordinary(cond.cond).to(model.load_device)
    return cond._copy_with(value)
