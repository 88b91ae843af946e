"""Extra attention against diffusers' IP-Adapter processors: SD1.5 and SDXL, whole but narrow."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import torch
from comfy.ldm.modules.attention import optimized_attention
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
)
from torch.testing import assert_close

from veduta.bench._topologies import (
    TEXT,
    build_pair,
    diffusers_names,
    draw_weights,
    drawn,
    extra_conds,
    predict,
)
from veduta.models.common.decoupled_attention import TokenAdapter
from veduta.nodes.host.attention import Extra, Row, attend_extra, layer_shapes

TOKENS, SCALE = 4, 0.6
SIZE = (8, 12)


class GivenTokens(TokenAdapter):
    """The tokens that it was given, by the number of the request."""

    def __init__(self, layers, given):
        super().__init__(layers)
        self.given = given

    def tokens(self, sights, height, width, aspect):
        return self.given[[sight.request for sight in sights]]


class GivenEverywhere(GivenTokens):
    """The same tokens, as every place's own."""

    positional = True

    def tokens(self, sights, height, width, aspect):
        tokens = super().tokens(sights, height, width, aspect)
        return tokens[:, None].expand(-1, height * width, -1, -1)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["SD1.5", "SDXL"])
def pair(request, comfyui):
    return build_pair(request.param)


def ip_adapter_numbers(layers):
    """Number of each layer's keys in an IP-Adapter file: odd, down, up, and the middle last."""
    order = [name for stage in ("input", "output", "middle") for name in layers
             if name.startswith(stage)]  # fmt: skip
    return {name: 2 * i + 1 for i, name in enumerate(order)}


def with_processors(other, names, adapter, kind):
    processors = {}
    for theirs in other.attn_processors:
        processors[theirs] = AttnProcessor2_0()
    for ours, theirs in names.items():
        shape = adapter.layers[ours]
        processor = kind(shape.inner_dim, shape.context_dim, num_tokens=(TOKENS,), scale=SCALE)
        processor.to_k_ip[0].weight.copy_(adapter.to_k[ours].weight)
        processor.to_v_ip[0].weight.copy_(adapter.to_v[ours].weight)
        processors[theirs] = processor
    other.set_attn_processor(processors)
    return other


def replaced(model):
    """A clone whose attention another pack replaces by core's own."""

    def as_core_does(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"])

    clone = model.clone()
    for name in layer_shapes(model):
        stage, number, index = name.split("_")
        clone.set_model_attn2_replace(as_core_does, stage, int(number), int(index))
    return clone


@pytest.mark.parametrize("tokens", [GivenTokens, GivenEverywhere])
@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("inside", IPAdapterAttnProcessor),
        ("inside", IPAdapterAttnProcessor2_0),
        ("behind", IPAdapterAttnProcessor2_0),  # the way round an attention that is replaced
    ],
)
def test_output_equals_diffusers(pair, where, kind, tokens):
    model, other = pair
    adapter = tokens(layer_shapes(model), drawn(2, TOKENS, TEXT, seed=2))
    draw_weights(adapter.to_k, seed=3)
    draw_weights(adapter.to_v, seed=4)
    patched = attend_extra(replaced(model) if where == "behind" else model)
    other = with_processors(other, diffusers_names(model), adapter, kind)
    x, text = drawn(2, 4, *SIZE, seed=5), drawn(2, 7, TEXT, seed=6)
    sigma = model.model.model_sampling.sigmas[[500, 500]]
    ours, theirs = extra_conds(other, 2)
    rows = tuple(Row((Extra(adapter=adapter, request=i, strength=SCALE),)) for i in (1, 0))
    found, scaled = predict(patched, rows, x, sigma, text, ours)
    tokens_of_rows = [adapter.given[[1, 0]]]
    expected = other(
        scaled, torch.tensor([500, 500]), (text, tokens_of_rows), **theirs
    ).sample  # fmt: skip
    assert_close(found, expected, rtol=0, atol=1e-4)
    plain, _ = predict(patched, (), x, sigma, text, ours)
    assert (plain - expected).abs().max() > 0.01  # the extra attention matters here


def test_layers_are_all_of_the_released_network_s(pair):
    model, other = pair
    shapes = layer_shapes(model)
    cross = [name for name in other.attn_processors if "attn2" in name]
    assert len(shapes) == len(cross) in (16, 70)
    names = diffusers_names(model)
    assert names.keys() == shapes.keys()
    assert set(names.values()) == set(cross)


def test_numbers_of_ip_adapter_files_are_places_among_all_processors(pair):
    model, other = pair
    names, processors = diffusers_names(model), list(other.attn_processors)
    for ours, number in ip_adapter_numbers(layer_shapes(model)).items():
        assert processors[number] == names[ours]
