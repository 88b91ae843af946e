"""A LoRA at work on a MODEL and a CLIP while it learns; both are as before afterwards.

Factors act beside the frozen layers, through ComfyUI's own injections on clones, so no weight is
touched and any precision of the base will do, quantised ones included.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...models.styleforge.dual_binding import NoiseProcess, Prediction
from ...models.styleforge.lora import Convolution, Layers, Lora, LoraLayer, Target
from .attention import Conditioning
from .gradients import ordinary, ordinary_weights
from .training import encoded_conds, options_for_backward, ready_for_backward

INJECTION = "veduta.lora"
IMAGE, TEXT = "lora_unet_", "lora_te"  # of kohya's names
TEXT_LAYERS = "text_model_encoder_layers"  # CLIP's; other text encoders stay frozen
MEMORY_SHARE = 0.85  # of the free memory, that a step may take
SERVED = (
    comfy.model_sampling.EPS,
    comfy.model_sampling.V_PREDICTION,
    comfy.model_sampling.CONST,
)
UNSERVED = (  # kinds of noise of their own that core derives from the above
    comfy.model_sampling.X0,
    comfy.model_sampling.IMG_TO_IMG_FLOW,
)

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Place:
    """Where an adapted layer sits."""

    path: str  # below the patcher's model
    target: Target


def image_places(model: ModelPatcher, layers: Layers) -> dict[str, Place]:
    """Layers of the image model that `layers` takes, by kohya's names."""
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    names: dict[str, list[str]] = {}
    for name, key in known.items():
        if isinstance(key, str) and name.startswith(IMAGE):
            names.setdefault(key.removesuffix(".weight"), []).append(name)
    modules, found = dict(model.model.named_modules()), {}
    for path, own in names.items():
        # core also lists layers of full-size models that this one lacks
        target = _target(modules.get(path))
        inner = path.removeprefix("diffusion_model.")
        if target is not None and layers.takes(inner, target.convolution is not None):
            found[_chosen_name(own, inner, model)] = Place(path, target)
    return found


def text_places(clip: comfy.sd.CLIP) -> dict[str, Place]:
    """Attention and MLP layers of the CLIP text encoders, by kohya's names; none in T5 and others."""
    encoder = clip.cond_stage_model
    known = comfy.lora.model_lora_keys_clip(encoder, {})
    names: dict[str, list[str]] = {}
    for name, key in known.items():
        if name.startswith(TEXT) and TEXT_LAYERS in name:
            names.setdefault(key.removesuffix(".weight"), []).append(name)
    alone = len(list(encoder.children())) == 1
    modules, found = dict(encoder.named_modules()), {}
    for path, own in names.items():
        target = _target(modules.get(path))
        if target is not None:
            # kohya numbers text encoders from two on
            first = [name for name in own if name.startswith(f"{TEXT}_") == alone]
            found[(first or own)[0]] = Place(path, target)
    return found


def _chosen_name(names: Sequence[str], path: str, model: ModelPatcher) -> str:
    own = IMAGE + path.replace(".", "_")
    others = [name for name in names if name != own]
    # SD1.5 and SD2 files use diffusers' names, SDXL's and all others' the model's own
    plain = type(model.model) is comfy.model_base.BaseModel
    return others[0] if plain and others else own


def _target(module: Any) -> Target | None:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Target(inner=module.in_features, outer=module.out_features)
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.kernel_size == (3, 3):
        convolution = Convolution(
            kernel=3,
            stride=module.stride[0],
            padding=int(module.padding[0]),
            dilation=module.dilation[0],
        )
        return Target(inner=module.in_channels, outer=module.out_channels, convolution=convolution)
    return None


class Adapted:
    """A MODEL and a CLIP with a LoRA at work; made by `adapted`.

    Attributes:
        model: the clone with the LoRA, loaded, for stock samplers.
        clip: the clone with the LoRA.
        process: how the model is trained.
    """

    def __init__(self, model: ModelPatcher, clip: comfy.sd.CLIP, lora: Lora) -> None:
        self.model, self.process = model, noise_process(model)
        self.device: torch.device = model.load_device
        self.clip, self._lora = clip, lora
        self._text = [p for name, p in lora.named_parameters() if name in lora.text_parameters()]
        self._base: Any = model.model
        self._options = options_for_backward(model)
        self._known: dict[tuple[str, torch.Size], dict[str, Any]] = {}

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """Denoise.

        Args:
            x: (b c h w) noisy latents in the model's scale, on its device.
            sigma: (b).
            prompts: of each row.

        Returns:
            (b c h w) x0_hat in float32, with gradients for the LoRA alone.
        """
        own = {prompt: self._conds(prompt, x) for prompt in dict.fromkeys(prompts)}
        first, *others = (own[prompt] for prompt in prompts)
        conds = {
            name: cond.concat([other[name] for other in others]) for name, cond in first.items()
        }
        options = {**self._options, "sigmas": sigma, "cond_or_uncond": [0]}
        return self._base.apply_model(x, sigma, transformer_options=options, **conds)

    def conditioning(self, prompt: str) -> Conditioning:
        """The prompt as CLIP reads it now."""
        tokens = self.clip.tokenize(prompt)
        return [list(entry) for entry in self.clip.encode_from_tokens_scheduled(tokens)]

    def reload(self) -> None:
        """Bring the model back after sampling or a VAE may have pushed it out."""
        patchers = [self.model, self.clip.patcher] if self._text else [self.model]
        comfy.model_management.load_models_gpu(patchers, force_full_load=True)
        self.model.pre_run()

    def _conds(self, prompt: str, x: Tensor) -> dict[str, Any]:
        learning = any(p.requires_grad for p in self._text)
        # averaged weights, which are put in place to validate, read a prompt in their own way
        if self._text and (learning or not self._lora.training):
            return encoded_conds(self.model, self.conditioning(prompt), x[:1].detach())
        key = prompt, x.shape[1:]
        if key not in self._known:
            conds = encoded_conds(self.model, self.conditioning(prompt), x[:1].detach())
            self._known[key] = conds
        return self._known[key]


@contextmanager
def adapted(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    lora: Lora,
    places: Mapping[str, Place],
    recompute: bool = False,
) -> Iterator[Adapted]:
    """Lend MODEL and CLIP out with a LoRA at work; call inside `gradients`.

    Args:
        model: left as it is, whatever ends the block.
        clip: likewise.
        lora: its layers are those of `places`; it is moved to the model's device.
        places: of `image_places`, and of `text_places` where the text encoder learns.
        recompute: keep no activations within the model's blocks, compute them again on the way
            back (gradient checkpointing).
    """
    text = {name: place for name, place in places.items() if name.startswith(TEXT)}
    image = {name: place for name, place in places.items() if name not in text}
    lora.to(model.load_device)
    layers = dict(lora.named_layers())
    base = ready_for_backward(model).clone()
    network: Any = base.model.diffusion_model
    blocks = _blocks(network) if recompute else []
    base.set_injections(INJECTION, [
        *_injections(base, {place.path: layers[name] for name, place in image.items()}),
        *(_injection(norm, _on_a_copy) for norm in _overwritten_norms(network)),
        *(_injection(block, _recomputed) for block in blocks),
    ])  # fmt: skip
    reader = clip.clone(disable_dynamic=clip.patcher.is_dynamic() and bool(text))
    reader.cond_stage_model = reader.patcher.model  # another one where weights had been streamed
    norms = _overwritten_norms(reader.cond_stage_model) if text else []
    reader.patcher.set_injections(INJECTION, [
        *_injections(reader.patcher, {place.path: layers[name] for name, place in text.items()}),
        *(_injection(norm, _on_a_copy) for norm in norms),
    ])  # fmt: skip
    patchers = [base, reader.patcher] if text else [base]
    try:
        comfy.model_management.load_models_gpu(patchers, force_full_load=True)
        base.pre_run()
        with ordinary_weights(base.model), ordinary_weights(reader.cond_stage_model):
            yield Adapted(base, reader, lora)
    finally:
        base.cleanup()
        for patcher in (base, reader.patcher):
            patcher.eject_model()


def noise_process(model: ModelPatcher) -> NoiseProcess:
    """How a MODEL is trained.

    Raises:
        ValueError: in a way of its own.
    """
    sampling = model.get_model_object("model_sampling")
    table: Tensor = getattr(sampling, "sigmas", torch.empty(0))
    if not isinstance(sampling, SERVED) or isinstance(sampling, UNSERVED) or not len(table):
        kinds = ", ".join(base.__name__ for base in type(sampling).__bases__)
        raise ValueError(
            f"model's noise is of the kind {kinds}, eps, v or flow is needed to train a style; use "
            "another model"
        )
    prediction = Prediction.NOISE
    if isinstance(sampling, comfy.model_sampling.CONST):
        prediction = Prediction.FLOW
    elif isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        prediction = Prediction.VELOCITY
    return NoiseProcess(
        sigmas=ordinary(table).float().to(model.load_device),
        prediction=prediction,
        sigma_data=float(getattr(sampling, "sigma_data", 1.0)),
        noise_scale=float(getattr(sampling, "noise_scale", 1.0)),
    )


def kept_bytes(run: Callable[[], Tensor], network: nn.Module) -> int:
    """Memory that a forward pass keeps for its backward pass, the network's own weights aside."""
    own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        answer = run()
    total = sum(kept.values())
    del answer  # until here nothing that is kept may be given back and counted twice
    return total


def free_bytes(device: torch.device) -> int:
    """Memory that a training step may take."""
    free: Any = comfy.model_management.get_free_memory(device)
    return int(MEMORY_SHARE * free)


def _injections(patcher: ModelPatcher, layers: Mapping[str, LoraLayer]) -> list[PatcherInjection]:
    return [
        _injection(comfy.utils.get_attr(patcher.model, path), _beside(layer))
        for path, layer in layers.items()
    ]


def _injection(module: nn.Module, wrap: Callable[[Forward], Forward]) -> PatcherInjection:
    """Replaces a module's forward on the object itself, and gives back what was there."""
    kept: dict[str, Any] = {}

    def inject(_: ModelPatcher) -> None:
        if not kept:
            kept["before"] = vars(module).get("forward")
            kept["own"] = module.forward = wrap(module.forward)

    def eject(_: ModelPatcher) -> None:
        if kept and vars(module).get("forward") is kept["own"]:
            if kept["before"] is None:
                del module.forward
            else:
                module.forward = kept["before"]
        kept.clear()

    return PatcherInjection(inject, eject)


def _beside(layer: LoraLayer) -> Callable[[Forward], Forward]:
    def wrap(own: Forward) -> Forward:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return layer(x, own(x, *args, **kwargs))

        return forward

    return wrap


def _overwritten_norms(network: nn.Module) -> list[nn.Module]:
    """Norms whose input core's transformers add to in place before the way back reads it."""
    if isinstance(network, UNetModel):  # adds out of place
        return []
    return [one for one in network.modules() if isinstance(one, nn.LayerNorm | nn.RMSNorm)]


def _on_a_copy(own: Forward) -> Forward:
    return lambda x, *args, **kwargs: own(x.clone(), *args, **kwargs)


def _recomputed(own: Forward) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        # blocks count themselves in core's options and may overwrite their input: the second pass
        # has to see what the first saw
        return own(*map(_copied, args), **{name: _copied(x) for name, x in kwargs.items()})

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        kept: list[Any] = [dict(x) if isinstance(x, dict) else x for x in args]
        named: dict[str, Any] = {
            name: dict(x) if isinstance(x, dict) else x for name, x in kwargs.items()
        }
        return checkpoint(run, *kept, use_reentrant=False, **named)

    return forward


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return value.clone() if isinstance(value, Tensor) else value


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules of parts inside the network's numbered lists."""
    found: list[nn.Module] = []

    def collect(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList | nn.Sequential):
                collect(child)
            elif list(child.children()):
                found.append(child)

    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            collect(child)
    return found
