"""A stock sampler as a differentiable function of its noise, run by ComfyUI's own guider.

Memory does not grow with the steps: a call of the model is done again when its gradient is due, one
branch of the guidance at a time. Samplers whose steps know nothing of each other are pulled back
step by step from stored states; all others run undecorated with every call recomputed. Both give
the gradient of the whole graph (research on DOODL: Wallace et al. 2023, arXiv:2303.13703).
"""

import copy
import inspect
import types
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import comfy.k_diffusion.sampling as stock
import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.quant_ops import QuantizedTensor
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...models.saliency.optimiser import Sampled
from .attention import Conditioning
from .gradients import (
    ordinary,
    ordinary_all,
    ordinary_attributes,
    ordinary_weights,
    out_of_place,
)
from .training import attend_with_pytorch, ready_for_backward

KEY = "veduta.differentiable"
BRANCHES = "sampler_calc_cond_batch_function"  # core's name for who computes all conditionings
ROOM = 4  # times what core reserves for a batch: room for what a backward pass keeps
SAME = 0.01  # of a state's size: what rounding may change when a step is done again
MEMORYLESS = {  # steps of these need no earlier one, and draw no noise unless they churn
    inspect.unwrap(step) for step in (stock.sample_euler, stock.sample_heun, stock.sample_dpm_2)
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be sampled.

    Args:
        model: left as it is.
        positive: left unmodified.
        negative: left unmodified.
        cfg: guidance scale.
        sampler: any stock SAMPLER.
        sigmas: (n+1), descending.
        latent: (b c ...) as a VAE gives it; zeros for a new picture.
        mask: of the latent, or None.
        seed: of samplers that draw noise; the same noise in every run.
        last_steps: gradients go through so many steps at the end; 0 is all.
    """

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    cfg: float
    sampler: Any
    sigmas: Tensor
    latent: Tensor
    mask: Tensor | None = None
    seed: int = 0
    last_steps: int = 0


def sample_with_gradients(
    request: Request, work: Callable[["Run"], None], beside: Sequence[ModelPatcher] = ()
) -> None:
    """Load everything once and let `work` sample as often as it likes; call inside `gradients`.

    Args:
        request: what.
        work: is given a function of the noise, which is of use until `work` returns.
        beside: networks that the work needs on the device, too.

    Raises:
        ValueError: the model is quantised or its weights are streamed, or its hooks change by step.
    """
    guider = comfy.samplers.CFGGuider(differentiable_model(request.model, beside))
    guider.set_conds(ordinary_all(request.positive), ordinary_all(request.negative))
    guider.set_cfg(request.cfg)
    _refuse_keyframes(guider)
    latent = ordinary(request.latent)
    mask = None if request.mask is None else ordinary(request.mask)
    guider.sample(
        torch.zeros_like(latent),
        latent,
        _Lent(request, work),
        ordinary(request.sigmas),
        denoise_mask=mask,
        seed=request.seed,
        disable_pbar=True,
    )


def differentiable_model(model: ModelPatcher, beside: Sequence[ModelPatcher] = ()) -> ModelPatcher:
    """A clone that stays whole on one device and whose forward pass autograd can follow.

    Raises:
        ValueError: the weights are quantised, or streamed by a loader that cannot do otherwise.
    """
    _refuse_quantised(model)
    try:
        clone = ready_for_backward(model).clone()
    except RuntimeError as error:
        raise ValueError(
            "model has streamed weights (dynamic VRAM) and its loader cannot load them whole, which a "
            "gradient needs; start ComfyUI with --disable-dynamic-vram"
        ) from error
    clone.remove_additional_models("multigpu")
    clone.set_additional_models(KEY, list(beside))
    clone.model_options["transformer_options"] = {
        **clone.model_options.get("transformer_options", {}),
        "optimized_attention_override": attend_with_pytorch,
    }
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _load_whole)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _apply_out_of_place)
    return clone


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A sampler function that records gradients, as does every function of its module it calls.

    Core's samplers are decorated with no_grad, some twice over through another one. This builds
    copies of the module's functions that see each other only; the module stays as it is.
    """
    function = inspect.unwrap(function)
    module = getattr(function, "__globals__", None)
    if module is None:
        return function
    space = dict(module)
    for name, value in module.items():
        plain = inspect.unwrap(value) if inspect.isfunction(value) else None
        if plain is not None and plain.__globals__ is module:
            space[name] = _within(plain, space)
    return _within(function, space)


class Run:
    """Noise (b c ...) of unit spread to a latent, and gradients back; made by `sample_with_gradients`."""

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        request: Request,
        extra_args: dict[str, Any],
        latent: Tensor,
        mask: Tensor | None,
        sigmas: Tensor,
    ) -> None:
        self.guider, self.request, self.sigmas = guider, request, sigmas
        self.latent, self.mask = latent, mask
        self.device = latent.device
        self._extra_args = extra_args
        self._function = undecorated(getattr(request.sampler, "sampler_function", _nothing))
        self._verified = False
        self._thrifty = not self._is_stepwise()  # recompute each branch on its own
        first = len(sigmas) - 1 - request.last_steps if request.last_steps else 0
        self._first = max(0, first)

    def __call__(self, noise: Tensor) -> Sampled:
        """Sample, so that gradients can be pulled back.

        Args:
            noise: (b c ...); left unmodified.

        Raises:
            ValueError: the sampler gives no gradient, or the model does not repeat itself.
        """
        noise = ordinary(noise.to(self.device, torch.float32))
        return self._stepwise(noise) if self._is_stepwise() else self._recorded(noise)

    def plain(self, noise: Tensor) -> Tensor:
        """The latent alone, for comparisons."""
        with torch.no_grad():
            return self._out(self._sample(noise.to(self.device, torch.float32)))

    def _is_stepwise(self) -> bool:
        sampler = self.request.sampler
        return (
            isinstance(sampler, comfy.samplers.KSAMPLER)
            and inspect.unwrap(sampler.sampler_function) in MEMORYLESS
            and not sampler.extra_options.get("s_churn")
            and self.mask is None
        )

    # every call recomputed

    def _recorded(self, noise: Tensor) -> Sampled:
        noise = noise.detach().requires_grad_()
        latent = self._out(self._sample(noise))
        if not latent.requires_grad:
            raise _no_gradient(self.request)

        def pull(cotangent: Tensor) -> Tensor:
            weighing = ordinary(cotangent.to(latent))
            (found,) = torch.autograd.grad(latent, noise, weighing, allow_unused=True)
            if found is None:
                raise _no_gradient(self.request)
            return found

        return Sampled(latent.detach(), pull)

    def _sample(self, noise: Tensor) -> Tensor:
        sampler = copy.copy(self.request.sampler)
        if isinstance(sampler, comfy.samplers.KSAMPLER):
            sampler.sampler_function = self._function
        return sampler.sample(
            self.guider, self.sigmas, self._arguments(), None, noise, self.latent, self.mask, True
        )

    def _arguments(self) -> dict[str, Any]:
        options = self._extra_args["model_options"]
        before = options.get(BRANCHES)
        options = {**options, BRANCHES: lambda call: self._branches(call, before)}
        return {**self._extra_args, "model_options": options}

    def _branches(self, call: dict[str, Any], before: Callable[..., Any] | None) -> list[Tensor]:
        """Predictions of all conditionings, one after the other, to be done again for a gradient."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        x = call["input"]
        if before is not None:  # another pack's
            return self._again(lambda y: before({**call, "input": y}), x, call["sigma"])
        return [
            torch.zeros_like(x)
            if cond is None
            else self._again(lambda y, i=i: _branch(call, i, y), x, call["sigma"])
            for i, cond in enumerate(call["conds"])
        ]

    def _again(self, function: Callable[[Tensor], Any], x: Tensor, sigma: Tensor) -> Any:
        if not torch.is_grad_enabled() or not self._thrifty:
            return function(x)
        if float(sigma.max()) > float(self.sigmas[self._first]) * (1 + 1e-6):
            with torch.no_grad():  # before the last steps
                return function(x)
        found = checkpoint(function, x, use_reentrant=False)
        if not self._verified and isinstance(found, Tensor):
            self._verified = True
            with torch.no_grad():
                _check_same(function(x), found.detach())
        return found

    # step by step

    def _stepwise(self, noise: Tensor) -> Sampled:
        states = [self._start(noise)]
        with torch.no_grad():
            for index in range(len(self.sigmas) - 1):
                comfy.model_management.throw_exception_if_processing_interrupted()
                states.append(self._step(index, states[-1]))
            latent = self._out(self._end(states[-1]))
        return Sampled(latent, lambda cotangent: self._pull(cotangent, noise, states))

    def _pull(self, cotangent: Tensor, noise: Tensor, states: list[Tensor]) -> Tensor:
        _, pulled = _vjp(lambda x: self._out(self._end(x)), states[-1], cotangent)
        exponent = 0
        for index in reversed(range(self._first, len(states) - 1)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            again, pulled = self._pull_step(index, states[index], pulled)
            _check_same(states[index + 1], again)
            pulled, moved = _scaled(pulled)
            exponent += moved
        if self._first:  # the model's answer taken as constant: x shrinks with the noise level
            pulled = pulled * (self.sigmas[self._first] / self.sigmas[0])
        _, pulled = _vjp(self._start, noise, pulled)
        return torch.ldexp(pulled, torch.tensor(exponent, device=pulled.device))

    def _pull_step(self, index: int, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        if not self._thrifty:
            try:
                return _vjp(lambda y: self._step(index, y), x, cotangent)
            except torch.cuda.OutOfMemoryError:
                self._thrifty = True  # half the memory for a third more time
            comfy.model_management.soft_empty_cache()
        return _vjp(lambda y: self._step(index, y), x, cotangent)

    def _step(self, index: int, x: Tensor) -> Tensor:
        sampler = self.request.sampler
        model = comfy.samplers.KSamplerX0Inpaint(self.guider, self.sigmas)
        arguments = {**self._arguments(), "denoise_mask": None}
        return self._function(
            model, x, self.sigmas[index : index + 2], extra_args=arguments, disable=True,
            **sampler.extra_options,
        )  # fmt: skip

    def _start(self, noise: Tensor) -> Tensor:
        most = self.request.sampler.max_denoise(self.guider, self.sigmas)
        return self._sampling.noise_scaling(self.sigmas[0], noise, self.latent, most)

    def _end(self, x: Tensor) -> Tensor:
        return self._sampling.inverse_noise_scaling(self.sigmas[-1], x)

    def _out(self, x: Tensor) -> Tensor:
        return self.guider.inner_model.process_latent_out(x.float())

    @property
    def _sampling(self) -> Any:
        return self.guider.inner_model.model_sampling


class _Lent(comfy.samplers.Sampler):
    """A sampler to core, which lends what core has made ready instead of sampling once."""

    def __init__(self, request: Request, work: Callable[[Run], None]) -> None:
        self.request, self.work = request, work

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        with ExitStack() as stack:
            for patcher in [model_wrap.model_patcher, *model_wrap.loaded_models]:
                _refuse_streamed(patcher)
                stack.enter_context(ordinary_weights(patcher.model))
            stack.enter_context(ordinary_attributes(model_wrap.inner_model.latent_format))
            request = replace(self.request, sigmas=sigmas)
            self.work(Run(model_wrap, request, extra_args, latent_image, denoise_mask, sigmas))
        return latent_image


def _nothing() -> None:
    """What a sampler that is no function of core's is made of."""


def _branch(call: dict[str, Any], index: int, x: Tensor) -> Tensor:
    # the others stay as empty places, since patches tell positive and negative by their place
    alone: list[Any] = [cond if i == index else None for i, cond in enumerate(call["conds"])]
    return comfy.samplers.calc_cond_batch(
        call["model"], alone, x, call["sigma"], call["model_options"]
    )[index]


def _apply_out_of_place(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return executor(*args, **kwargs)
    with out_of_place():
        return executor(*args, **kwargs)


def _load_whole(
    executor: Any, model: Any, noise_shape: Any, conds: Any, model_options: Any = None, **_: Any
) -> Any:
    room = [noise_shape[0] * ROOM, *noise_shape[1:]]
    return executor(model, room, conds, model_options=model_options, force_full_load=True)


def _within(function: types.FunctionType | Any, space: dict[str, Any]) -> Callable[..., Any]:
    made = types.FunctionType(
        function.__code__, space, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _vjp(
    function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    """A function's value, and the gradient with respect to x of its product with the cotangent."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = function(x)
    if not value.requires_grad:
        raise ValueError(
            "model gives no gradient, a part of it runs without recording; take other packs' patches "
            "off the model"
        )
    (pulled,) = torch.autograd.grad(value, x, ordinary(cotangent.to(value)))
    return value.detach(), pulled


def _scaled(cotangent: Tensor) -> tuple[Tensor, int]:
    """The cotangent at a size near 1, and the power of two that brings its own size back, exactly."""
    size = float(cotangent.square().mean().sqrt())
    if not 0 < size < float("inf"):
        return cotangent, 0
    exponent = int(torch.frexp(torch.tensor(size))[1])
    return torch.ldexp(cotangent, torch.tensor(-exponent, device=cotangent.device)), exponent


def _check_same(stored: Tensor, again: Tensor) -> None:
    apart = float((stored - again).abs().max()) / max(float(stored.abs().max()), 1e-12)
    if not apart <= SAME:  # NaN, too
        raise ValueError(
            f"a step of model done again differs by {apart:.1%} from the first time, at most {SAME:.0%} is "
            "needed for a true gradient; take caches (TeaCache, FBCache) and other packs' patches off it"
        )


def _no_gradient(request: Request) -> ValueError:
    function = getattr(request.sampler, "sampler_function", type(request.sampler))
    name = getattr(function, "__name__", "sampler").removeprefix("sample_")
    advice = " and last_steps 0" if request.last_steps else ""
    return ValueError(
        f"sampler {name} gives no gradient, one that can be differentiated is needed; choose euler, heun, "
        f"dpmpp_2m or lcm{advice}"
    )


def _refuse_quantised(model: ModelPatcher) -> None:
    for name, weight in model.model.diffusion_model.named_parameters():
        if isinstance(weight.data, QuantizedTensor) or weight.dtype.itemsize == 1:
            raise ValueError(
                f"model is quantised ({name} is {str(weight.dtype).removeprefix('torch.')}), weights of 16 "
                "or 32 bits are needed for a true gradient; load the model in full precision"
            )


def _refuse_streamed(patcher: ModelPatcher) -> None:
    if patcher.is_dynamic():
        raise ValueError(
            f"{type(patcher.model).__name__} has streamed weights (dynamic VRAM), a gradient needs them "
            "whole; start ComfyUI with --disable-dynamic-vram"
        )


def _refuse_keyframes(guider: comfy.samplers.CFGGuider) -> None:
    for conds in guider.original_conds.values():
        for cond in conds:
            hooks = cond["hooks"].hooks if cond.get("hooks") is not None else []
            if any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks):
                raise ValueError(
                    "a conditioning has hooks with keyframes, which move on once in a run and a gradient "
                    "needs many; connect one without keyframes"
                )
