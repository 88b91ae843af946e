"""Decoupled cross-attention on a MODEL: the conditioning says what to attend to, the model attends.

How it hangs together: `with_extra` puts an `ExtraCond` into the conditioning's `model_conds`, from
where core hands it, row by row, to the model in whatever order and split it batches. `attend_extra`
gives the model three things that any number of adapters share:

- an OUTER_SAMPLE wrapper: one `Run` for each sampling, which keeps keys and values and is dropped;
- an APPLY_MODEL wrapper: takes the rows out of the model's keywords, leaves out those without effect;
- a pair of attn2 patches: the first announces the layer, the second sees that it was served.

Between the two, the attention is added inside the layer, through core's hook for replacing the
attention function. Where another pack replaces the layer's attention as a whole, the second patch
adds it, at the cost of one more query and output projection. Both patches join core's lists and
the hook calls the one that was there, so other packs' patches work beside them. Nothing is keyed by
the order or the number of conditionings.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from comfy.ldm.modules.attention import (
    CrossAttention,
    SpatialTransformer,
    SpatialVideoTransformer,
)
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
    places_innermost,
    share_of_places,
)

CONDS_KEY = "veduta_extra_attention"  # of model_conds: has to be a keyword
RUN_KEY = "veduta.extra_attention.run"  # these two: of transformer_options
FORWARD_KEY = "veduta.extra_attention.forward"
OVERRIDE_KEY = "optimized_attention_override"  # core's
HALVINGS = 20  # of an interval: finer than any model's noise levels

Conditioning = list[list[Any]]
KeysValues = tuple[list[Tensor], list[Tensor]]


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
        mask: (y x) factors of places, 0..1, over the whole frame; None is everywhere.
        curve: factors of strength at the interval's start and end; between them it is straight.
    """

    adapter: TokenAdapter
    request: Any
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    layer_strengths: Mapping[str, float] = field(default_factory=dict)
    mask: Tensor | None = None
    curve: tuple[float, float] = (1.0, 1.0)

    def strength_at(self, sigma: float, model_sampling: Any) -> float:
        if not holds_at(sigma, self.start_percent, self.end_percent, model_sampling):
            return 0.0
        first, last = self.curve
        if first == last:
            return self.strength * first
        interval = (self.start_percent, self.end_percent)
        return self.strength * (first + (last - first) * _share_of(interval, sigma, model_sampling))


def holds_at(sigma: float, start_percent: float, end_percent: float, model_sampling: Any) -> bool:
    """Whether a noise level lies in an interval of the sampling, both ends included."""
    start = model_sampling.percent_to_sigma(start_percent)
    return model_sampling.percent_to_sigma(end_percent) <= sigma <= start


def _share_of(interval: tuple[float, float], sigma: float, model_sampling: Any) -> float:
    """How far an interval of the sampling is over at a noise level, 0..1."""
    low, high = interval
    for _ in range(HALVINGS):  # every model_sampling tells the way there, some tell the way back
        middle = (low + high) / 2
        if model_sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return (low - interval[0]) / (interval[1] - interval[0])


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
        if batch_size % count:
            raise ValueError(_unpaired(count, batch_size))
        return ExtraCond([replace(self.rows[i % count], area=where) for i in range(batch_size)])

    def can_concat(self, other: object) -> bool:
        return isinstance(other, ExtraCond)

    def concat(self, others: Sequence["ExtraCond"]) -> tuple[Row, ...]:
        return sum((other.rows for other in others), self.rows)

    def size(self) -> list[int]:
        return [len(self.rows)]


def _unpaired(count: int, batch_size: int) -> str:
    return (
        f"the conditioning holds {count} anchors or references, the latent batch holds {batch_size} "
        f"picture{'' if batch_size == 1 else 's'}; pass one, or one per picture"
    )


def with_extra(conditioning: Conditioning, extras: Sequence[Extra | None]) -> Conditioning:
    """Let a conditioning attend to more; what it attends to already stays.

    Args:
        conditioning: left unmodified.
        extras: one for all pictures of a batch, or one for each; None is nothing. A conditioning
            that is to be batched with an anchored one needs this call, too, with None.

    Raises:
        ValueError: the conditioning has extras already, for another number of pictures.
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
    if len(old) not in (1, count) or len(new) not in (1, count):
        raise ValueError(
            f"the conditioning holds {len(old)} anchors or references, {len(new)} are to be added; "
            "pass one, or the same number to every node"
        )
    pairs = ((old[i % len(old)], new[i % len(new)]) for i in range(count))
    return [Row(before.extras + after.extras) for before, after in pairs]


def cross_attention_layers(model: ModelPatcher) -> dict[str, CrossAttention]:
    """The text-reading attention layers of a MODEL by name, in the order in which they run.

    Raises:
        ValueError: the model is no UNet of the SD1.5 or SDXL kind; one for video is none either.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, UNetModel) or any(
        isinstance(module, SpatialVideoTransformer) for module in network.modules()
    ):
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
    clone.set_model_attn2_patch(_announce_layer)
    clone.set_model_attn2_output_patch(_add_extra_attention)
    return clone


def _sample_with_run(
    executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    _check_pictures(executor.class_obj.conds, noise.shape[0])
    options = executor.class_obj.model_options.setdefault("transformer_options", {})
    options[RUN_KEY] = Run(frame=(noise.shape[-2], noise.shape[-1]))
    try:
        return executor(noise, latent_image, *args, **kwargs)
    finally:
        del options[RUN_KEY]


def _check_pictures(conds: Mapping[str, Sequence[Mapping[str, Any]]], batch_size: int) -> None:
    # before a model is loaded, not in the middle of the first step
    for cond in (cond for entries in conds.values() for cond in entries):
        extra = cond["model_conds"].get(CONDS_KEY)
        if extra is not None and len(extra.rows) not in (1, batch_size):
            raise ValueError(_unpaired(len(extra.rows), batch_size))


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
        forward = Forward(run, rows, float(t[0]), executor.class_obj)
        if forward.groups:
            forward.hook_into(options)
    return executor(x, t, c_concat, c_crossattn, control, options, **conds)


def _announce_layer(
    n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    forward: Forward | None = extra_options.get(FORWARD_KEY)
    if forward is not None:
        forward.waiting = Layer(n, extra_options)
    return n, context, value


def _add_extra_attention(n: Tensor, extra_options: dict[str, Any]) -> Tensor:
    forward: Forward | None = extra_options.get(FORWARD_KEY)
    return n if forward is None else forward.add_to_output(n)


@dataclass
class Run:
    """What one sampling keeps from step to step: tokens, keys and values, placed adapters."""

    frame: tuple[int, int]  # latent px: height, width
    kept: dict[Any, Any] = field(default_factory=dict)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def is_empty(self, mask: "Mask") -> bool:
        """Whether nothing of a row is covered."""
        key = ("empty", id(mask.values), mask.crop)
        return self.keep(key, lambda: not share_of_places(mask.values, 1, 1, mask.crop).any())

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
class Mask:
    """A mask (y x) of the whole frame, and the part of the frame that a row shows."""

    values: Tensor
    crop: Box


@dataclass(frozen=True)
class Group:
    """Rows of the batch that attend through the same adapter with the same layer strengths."""

    adapter: TokenAdapter
    spans: list[tuple[int, int]]  # first row and number of rows
    sights: tuple[Sight, ...]  # one for each row, or one for all of them
    strengths: tuple[float, ...]
    layer_strengths: Mapping[str, float]
    masks: tuple[Mask | None, ...]  # one for each row
    kept: dict[Any, KeysValues]  # outlive the pass

    def rows_of(self, x: Tensor) -> Tensor:
        """The group's rows of a batch."""
        parts = [x.narrow(0, first, count) for first, count in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def added(self, part: Tensor, total: Tensor) -> Tensor:
        """A batch, with `part` added to the group's rows."""
        if self.spans == [(0, len(total))]:
            return total + part
        total = total.clone()
        parts = part.split([count for _, count in self.spans])
        for (first, count), piece in zip(self.spans, parts, strict=True):
            total.narrow(0, first, count).add_(piece)
        return total


def _spans(rows: Sequence[int]) -> list[tuple[int, int]]:
    """First row and number of rows of each stretch of neighbours."""
    spans: list[tuple[int, int]] = []
    for row in rows:
        first, count = spans[-1] if spans else (row, 0)
        if row == first + count:
            spans[-1:] = [(first, count + 1)]
        else:
            spans.append((row, 1))
    return spans


class Layer:
    """A cross-attention layer in the middle of its pass."""

    def __init__(self, query_input: Tensor, extra_options: Mapping[str, Any]) -> None:
        stage, number = extra_options["block"]
        self.name = f"{stage}_{number}_{extra_options['block_index']}"
        self.size: tuple[int, int] = tuple(extra_options["activations_shape"][-2:])
        self.query_input = query_input


class Forward:
    """One pass through the network: which rows attend to what, how strongly."""

    def __init__(self, run: Run, rows: Sequence[Row], sigma: float, base_model: Any) -> None:
        self.run = run
        self.network: UNetModel = base_model.diffusion_model
        self.layers = run.keep(("layers", id(self.network)), lambda: _layers_of(self.network))
        self.groups = _groups(run, rows, sigma, base_model.model_sampling)
        self.tokens: dict[Any, list[Tensor]] = {}  # keys and values outlive the pass, these do not
        self.waiting: Layer | None = None
        self.override: Callable[..., Tensor] | None = None

    def hook_into(self, options: dict[str, Any]) -> None:
        """Have the layers of a pass with these transformer_options served."""
        options[FORWARD_KEY] = self
        if options.get("patches_replace", {}).get("attn2"):
            return  # who replaces the attention may call core's for anything
        self.override = options.get(OVERRIDE_KEY)
        options[OVERRIDE_KEY] = self._attend

    def _attend(
        self, attention: Callable[..., Tensor], q: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        # in place of `attention`, for self-attention, too, before which no layer is announced
        layer, self.waiting = self.waiting, None
        if self.override is None:
            own = attention(q, *args, **kwargs)
        else:
            own = self.override(attention, q, *args, **kwargs)
        return own if layer is None else self._extended(own, layer, q)

    def add_to_output(self, n: Tensor) -> Tensor:
        """Add to the output (b p d) of a layer whose attention did not come by."""
        layer, self.waiting = self.waiting, None
        if layer is None:
            return n
        projections = self.layers[layer.name]
        q = projections.to_q(layer.query_input)
        nothing = torch.zeros_like(q)
        extra = self._extended(nothing, layer, q)
        if extra is nothing:
            return n
        return n + (projections.to_out(extra) - self._bias(layer.name, extra))

    def _extended(self, attended: Tensor, layer: Layer, q: Tensor) -> Tensor:
        """Attention (b p d), before the output projection, with all that its rows attend to besides."""
        for group in self.groups:
            factor = group.layer_strengths.get(layer.name, 1.0)
            if layer.name in group.adapter.layers and factor != 0:
                part = self._of_group(group, layer, group.rows_of(q), factor)
                attended = group.added(part, attended)
        return attended

    def _of_group(self, group: Group, layer: Layer, q: Tensor, factor: float) -> Tensor:
        keys, values = self._keys_values(group, layer, q)
        term = self._placed(group.adapter, q.device).query_term(
            layer.name, group.sights, *layer.size
        )
        q = q if term is None else q + term.to(q.dtype)
        attended = decoupled_attention(q, keys, values, self.layers[layer.name].heads)
        strengths = [strength * factor for strength in group.strengths]
        if any(strength != 1 for strength in strengths):
            attended = attended * attended.new_tensor(strengths)[:, None, None]
        if any(group.masks):
            attended = attended * self._shares(group, layer, attended)
        return attended

    def _shares(self, group: Group, layer: Layer, like: Tensor) -> Tensor:
        """(b p 1) of each row's places that its mask covers."""
        height, width = layer.size

        def of(mask: Mask | None) -> Tensor:
            if mask is None:
                return like.new_ones(height * width)
            key = ("mask", id(mask.values), mask.crop, layer.size, like.device, like.dtype)
            return self.run.keep(
                key, lambda: share_of_places(mask.values, height, width, mask.crop).to(like)
            )

        return torch.stack([of(mask) for mask in group.masks])[..., None]

    def _keys_values(self, group: Group, layer: Layer, like: Tensor) -> KeysValues:
        # tokens that are not positional are the same on every map
        size = layer.size if group.adapter.positional else (1, 1)
        key = (layer.name, size, like.device, like.dtype)
        if key not in group.kept:
            adapter = self._placed(group.adapter, like.device)
            parts = self._tokens(adapter, group.sights, size)
            pairs = [adapter.keys_values(layer.name, part) for part in parts]
            keys, values = (
                [_stored(x.to(like.dtype)) for x in side] for side in zip(*pairs, strict=True)
            )
            group.kept[key] = (keys, values)
        return group.kept[key]

    def _tokens(
        self, adapter: TokenAdapter, sights: tuple[Sight, ...], size: tuple[int, int]
    ) -> list[Tensor]:
        key = (adapter, sights, size)
        if key not in self.tokens:
            tokens = adapter.tokens(sights, *size, self.run.aspect)
            # apart once, not for every layer, whose backward passes would each fill the whole again
            self.tokens[key] = [part.contiguous() for part in adapter.parts(tokens)]
        return self.tokens[key]

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


def _stored(x: Tensor) -> Tensor:
    return places_innermost(x) if x.ndim == 4 else x


def _groups(run: Run, rows: Sequence[Row], sigma: float, model_sampling: Any) -> list[Group]:
    found: dict[Any, list[tuple[int, Sight, float, Mask | None]]] = {}
    sources: dict[Any, Extra] = {}
    for index, row in enumerate(rows):
        for extra in row.extras:
            strength = extra.strength_at(sigma, model_sampling)
            crop = run.crop_of(row)
            mask = None if extra.mask is None else Mask(extra.mask, crop)
            if strength == 0 or (mask is not None and run.is_empty(mask)):
                continue
            adapter = extra.adapter
            key = (
                id(adapter),
                tuple(extra.layer_strengths.items()),
                adapter.batch_key(extra.request),
            )
            sources[key] = extra
            sight = Sight(extra.request, crop if adapter.positional else WHOLE_FRAME)
            found.setdefault(key, []).append((index, sight, strength, mask))
    return [_group(run, sources[key], members) for key, members in found.items()]


def _group(
    run: Run, source: Extra, members: Sequence[tuple[int, Sight, float, Mask | None]]
) -> Group:
    rows, sights, strengths, masks = zip(*members, strict=True)
    if len(set(sights)) == 1:
        sights = sights[:1]
    return Group(
        adapter=source.adapter,
        spans=_spans(rows),
        sights=sights,
        strengths=strengths,
        layer_strengths=source.layer_strengths,
        masks=masks,
        kept=run.keep(("keys and values", source.adapter, sights), dict),
    )


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
