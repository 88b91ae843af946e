"""Decoupled cross-attention on a MODEL: the conditioning says what to attend to, the model attends.

How it hangs together: `with_extra` puts an `ExtraCond` into the conditioning's `model_conds`, from
where core hands it, row by row, to the model in whatever order and split it batches. `attend_extra`
gives the model three things that any number of adapters share:

- an OUTER_SAMPLE wrapper: one `Run` for each sampling, which keeps keys and values and is dropped;
- an APPLY_MODEL wrapper: takes the rows out of the model's keywords, leaves out those without effect;
- a pair of attn2 patches: the first keeps the query's input, the second adds the attention.

Both patches join core's lists, so other packs' patches work beside them. Nothing is keyed by the
order or the number of conditionings.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from comfy.ldm.modules.attention import CrossAttention, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...models.common.decoupled_attention import (
    WHOLE_FRAME,
    Box,
    LayerShape,
    Sight,
    TokenAdapter,
    decoupled_attention,
)

CONDS_KEY = "veduta_extra_attention"  # of model_conds: has to be a keyword
RUN_KEY = "veduta.extra_attention.run"  # these three: of transformer_options
FORWARD_KEY = "veduta.extra_attention.forward"
QUERY_KEY = "veduta.extra_attention.query"

Conditioning = list[list[Any]]


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What a picture attends to besides its text.

    Args:
        adapter: makes the tokens.
        request: what the adapter is asked for; equal requests share keys and values.
        strength: 0 is off and costs nothing, 1 as trained.
        start_percent: share of the sampling from which on it holds.
        end_percent: share of the sampling until which it holds.
        layer_strengths: factors of single layers by name; 1 for those not named.
    """

    adapter: TokenAdapter
    request: Any
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    layer_strengths: Mapping[str, float] = field(default_factory=dict)

    def strength_at(self, sigma: float, model_sampling: Any) -> float:
        start = model_sampling.percent_to_sigma(self.start_percent)
        end = model_sampling.percent_to_sigma(self.end_percent)
        return self.strength if end <= sigma <= start else 0.0


Extras = tuple[Extra, ...]


@dataclass(frozen=True)
class Row:
    """One row of the network's batch: its extras, and its area in latent px if it is a part."""

    extras: Extras
    area: tuple[int, ...] | None = None  # core's order: height, width, top, left


class ExtraCond:
    """Core's model-cond interface, holding the extras of one picture or of each of a batch.

    It moves no tensors, so it batches with any other and survives areas, masks and schedules.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)

    def process_cond(
        self, batch_size: int, area: Sequence[int] | None = None, **_: Any
    ) -> "ExtraCond":
        where = None if area is None else tuple(area)
        count = len(self.rows)
        return ExtraCond([replace(self.rows[i % count], area=where) for i in range(batch_size)])

    def can_concat(self, other: object) -> bool:
        return isinstance(other, ExtraCond)

    def concat(self, others: Sequence["ExtraCond"]) -> tuple[Row, ...]:
        return sum((other.rows for other in others), self.rows)

    def size(self) -> list[int]:
        return [len(self.rows)]


def with_extra(conditioning: Conditioning, extras: Sequence[Extra | None]) -> Conditioning:
    """Let a conditioning attend to more; what it attends to already stays.

    Args:
        conditioning: left unmodified.
        extras: one for all pictures of a batch, or one for each; None is nothing. A conditioning
            that is to be batched with an anchored one needs this call, too, with None.
    """
    rows = [Row(() if extra is None else (extra,)) for extra in extras]
    result = []
    for tensor, options in conditioning:
        conds = options.get("model_conds", {})
        merged = _joined(conds[CONDS_KEY].rows, rows) if CONDS_KEY in conds else rows
        conds = {**conds, CONDS_KEY: ExtraCond(merged)}
        result.append([tensor, {**options, "model_conds": conds}])
    return result


def _joined(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    count = max(len(old), len(new))
    pairs = ((old[i % len(old)], new[i % len(new)]) for i in range(count))
    return [Row(before.extras + after.extras) for before, after in pairs]


def cross_attention_layers(model: ModelPatcher) -> dict[str, CrossAttention]:
    """The text-reading attention layers of a MODEL by name, in the order in which they run.

    Raises:
        ValueError: the model is no UNet of the SD1.5 or SDXL kind.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, UNetModel):
        raise ValueError(
            f"model is a {type(model.model).__name__} with a {type(network).__name__}, extra attention "
            "needs a UNet with cross-attention (SD1.5, SDXL, the miniature); load such a checkpoint"
        )
    return _layers_of(network)


def layer_shapes(model: ModelPatcher) -> dict[str, LayerShape]:
    """Names and widths of the MODEL's cross-attention layers, for making an adapter."""
    layers = cross_attention_layers(model)
    return {
        name: LayerShape(layer.to_k.in_features, layer.to_k.out_features)
        for name, layer in layers.items()
    }


def _layers_of(network: UNetModel) -> dict[str, CrossAttention]:
    stages: dict[str, Any] = {
        "input": network.input_blocks,
        "middle": [network.middle_block],
        "output": network.output_blocks,
    }
    return {
        f"{stage}_{number}_{index}": cast(CrossAttention, block.attn2)
        for stage, blocks in stages.items()
        for number, modules in enumerate(blocks)
        for transformer in modules
        if isinstance(transformer, SpatialTransformer)
        for index, block in enumerate(transformer.transformer_blocks)
    }


def attend_extra(model: ModelPatcher) -> ModelPatcher:
    """A clone of the MODEL that heeds `with_extra`; one that does already is cloned as it is."""
    cross_attention_layers(model)  # refuses other families
    clone = model.clone()
    if clone.get_wrappers(WrappersMP.APPLY_MODEL, CONDS_KEY):
        return clone
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, CONDS_KEY, _sample_with_run)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, CONDS_KEY, _apply_with_rows)
    clone.set_model_attn2_patch(_keep_query_input)
    clone.set_model_attn2_output_patch(_add_extra_attention)
    return clone


def _sample_with_run(
    executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    options = executor.class_obj.model_options.setdefault("transformer_options", {})
    options[RUN_KEY] = Run(frame=(noise.shape[-2], noise.shape[-1]))
    try:
        return executor(noise, latent_image, *args, **kwargs)
    finally:
        del options[RUN_KEY]


def _apply_with_rows(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **conds: Any,
) -> Tensor:
    options = dict(transformer_options or {})
    rows: tuple[Row, ...] = conds.pop(CONDS_KEY, ())
    if any(row.extras for row in rows):
        run = options.get(RUN_KEY) or Run(frame=(x.shape[-2], x.shape[-1]))
        options[FORWARD_KEY] = Forward(run, rows, float(t[0]), executor.class_obj)
    return executor(x, t, c_concat, c_crossattn, control, options, **conds)


def _keep_query_input(
    n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    # extra_options lives for one pass of one block; the output patch of that block reads it
    extra_options[QUERY_KEY] = n
    return n, context, value


def _add_extra_attention(n: Tensor, extra_options: dict[str, Any]) -> Tensor:
    forward: Forward | None = extra_options.get(FORWARD_KEY)
    return n if forward is None else forward.add(n, extra_options)


@dataclass
class Run:
    """What one sampling keeps from step to step: tokens, keys and values, placed adapters."""

    frame: tuple[int, int]  # latent px: height, width
    kept: dict[Any, Any] = field(default_factory=dict)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    @property
    def aspect(self) -> float:
        return self.frame[1] / self.frame[0]

    def crop_of(self, row: Row) -> Box:
        if row.area is None:
            return WHOLE_FRAME
        height, width, top, left = row.area
        frame_height, frame_width = self.frame
        return (
            left / frame_width,
            top / frame_height,
            (left + width) / frame_width,
            (top + height) / frame_height,
        )


@dataclass(frozen=True)
class Group:
    """Rows of the batch that attend through the same adapter with the same layer strengths."""

    adapter: TokenAdapter
    rows: tuple[int, ...]
    sights: tuple[Sight, ...]
    strengths: tuple[float, ...]
    layer_strengths: Mapping[str, float]


class Forward:
    """One pass through the network: which rows attend to what, how strongly."""

    def __init__(self, run: Run, rows: Sequence[Row], sigma: float, base_model: Any) -> None:
        self.run = run
        self.network: UNetModel = base_model.diffusion_model
        self.layers = run.keep(("layers", id(self.network)), lambda: _layers_of(self.network))
        self.groups = _groups(run, rows, sigma, base_model.model_sampling)

    def add(self, n: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """Add to a layer's output (b p d) what its rows attend to besides."""
        stage, number = extra_options["block"]
        name = f"{stage}_{number}_{extra_options['block_index']}"
        size = tuple(extra_options["activations_shape"][-2:])
        query_input = extra_options[QUERY_KEY]
        for group in self.groups:
            if name not in group.adapter.layers:
                continue
            factor = group.layer_strengths.get(name, 1.0)
            if factor != 0:
                n = self._add_group(n, query_input, group, name, size, factor)
        return n

    def _add_group(
        self, n: Tensor, query_input: Tensor, group: Group, name: str, size: Any, factor: float
    ) -> Tensor:
        layer = self.layers[name]
        every_row = group.rows == tuple(range(n.shape[0]))
        chosen = query_input if every_row else query_input[list(group.rows)]
        q = layer.to_q(chosen)
        k, v = self._keys_values(group, name, size, q)
        attended = layer.to_out(decoupled_attention(q, k, v, layer.heads)) - self._bias(name, q)
        strengths = [strength * factor for strength in group.strengths]
        if any(strength != 1 for strength in strengths):
            attended = attended * attended.new_tensor(strengths)[:, None, None]
        if every_row:
            return n + attended
        return n.index_add(0, torch.tensor(group.rows, device=n.device), attended.to(n.dtype))

    def _keys_values(
        self, group: Group, name: str, size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not group.adapter.positional:
            size = (1, 1)  # the same tokens on every map
        place = (like.device, like.dtype)
        adapter = self._placed(group.adapter, like.device)
        sights = group.sights[:1] if len(set(group.sights)) == 1 else group.sights

        def make_tokens() -> Tensor:
            return adapter.tokens(sights, *size, self.run.aspect)

        def make() -> tuple[Tensor, Tensor]:
            tokens = self.run.keep(("tokens", adapter, sights, size), make_tokens)
            k, v = adapter.keys_values(name, tokens)
            return k.to(like.dtype), v.to(like.dtype)

        return self.run.keep(("kv", adapter, name, sights, size, place), make)

    def _placed(self, adapter: TokenAdapter, device: torch.device) -> TokenAdapter:
        if next(adapter.parameters()).device == device:
            return adapter
        return self.run.keep(
            ("adapter", adapter, device), lambda: copy.deepcopy(adapter).to(device)
        )

    def _bias(self, name: str, like: Tensor) -> Tensor:
        # the output projection's own bias is in the text's attention already
        def make() -> Tensor:
            return self.layers[name].to_out(like.new_zeros(1, 1, like.shape[-1]))

        return self.run.keep(("bias", id(self.network), name, like.device, like.dtype), make)


def _groups(run: Run, rows: Sequence[Row], sigma: float, model_sampling: Any) -> list[Group]:
    found: dict[Any, list[tuple[int, Sight, float]]] = {}
    sources: dict[Any, Extra] = {}
    for index, row in enumerate(rows):
        for extra in row.extras:
            strength = extra.strength_at(sigma, model_sampling)
            if strength == 0:
                continue
            key = (id(extra.adapter), tuple(extra.layer_strengths.items()))
            sources[key] = extra
            sight = Sight(extra.request, run.crop_of(row))
            found.setdefault(key, []).append((index, sight, strength))
    return [
        Group(
            adapter=sources[key].adapter,
            rows=tuple(index for index, _, _ in members),
            sights=tuple(sight for _, sight, _ in members),
            strengths=tuple(strength for _, _, strength in members),
            layer_strengths=sources[key].layer_strengths,
        )
        for key, members in found.items()
    ]


def check_fits(adapter: TokenAdapter, model: ModelPatcher, name: str = "adapter") -> None:
    """See that the adapter was made for a network of the MODEL's layers and widths.

    Raises:
        ValueError: the model has other layers, or layers of other widths.
    """
    shapes = layer_shapes(model)
    foreign = [layer for layer, shape in adapter.layers.items() if shapes.get(layer) != shape]
    if foreign:
        first = foreign[0]
        raise ValueError(
            f"{name} was made for {_told(adapter.layers)}, model has {_told(shapes)}; "
            f"load the adapter of this base (the first layer that differs is {first})"
        )


def _told(shapes: Mapping[str, LayerShape]) -> str:
    widths = sorted({shape.context_dim for shape in shapes.values()})
    inner = sorted({shape.inner_dim for shape in shapes.values()})
    return f"{len(shapes)} layers of widths {inner} that read text of width {widths}"
