"""IP-Adapter files against diffusers' own loader and processors: SD1.5 and SDXL, whole but narrow."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import torch
from safetensors.torch import save_file
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
from veduta.models.common.image_adapter import (
    TOPOLOGIES,
    FullProjection,
    ImageFeatures,
    ImageProjection,
    PlusProjection,
)
from veduta.models.common.image_adapter_files import load_image_adapter
from veduta.nodes.host.attention import Extra, Row, attend_extra, check_fits, layer_shapes

WIDTH, SCALE, SIZE = 20, 0.7, (8, 12)  # of the features; strength; of the latent
TIMESTEP = 500
KINDS = {
    "base": (lambda: ImageProjection(WIDTH, TEXT, 4), 1),  # and states of a picture
    "plus": (lambda: PlusProjection(WIDTH, TEXT, dim=64, queries=16, depth=4), 9),
    "full-face": (lambda: FullProjection(WIDTH, TEXT, hidden=WIDTH), 257),
}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["SD1.5", "SDXL"])
def pair(request, comfyui):
    return build_pair(request.param)


def released(kind, model):
    """Random weights under the released keys, numbered along the processors of diffusers."""
    projection = KINDS[kind][0]()
    draw_weights(projection, seed=2)
    names = diffusers_names(model)
    order = sorted(names, key=lambda name: _place(names[name]))
    attention = {}
    for i, name in enumerate(order):
        shape = layer_shapes(model)[name]
        for j, side in enumerate("kv"):
            weight = drawn(shape.inner_dim, TEXT, seed=10 + 2 * i + j) * TEXT**-0.5
            attention[f"{2 * i + 1}.to_{side}_ip.weight"] = weight
    return {"image_proj": projection.state_dict(), "ip_adapter": attention}


def _place(processor):
    """Down, up, middle; numbers as numbers."""
    stage, rest = processor.split("_", 1)
    numbers = [int(part) for part in rest.split(".") if part.isdigit()]
    return ("down", "up", "mid").index(stage), numbers


def flat(state):
    return {f"{part}.{key}": x for part, own in state.items() for key, x in own.items()}


def written(state, path):
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        save_file(flat(state), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_output_equals_diffusers(pair, kind, tmp_path):
    model, other = pair
    state = released(kind, model)
    suffix = ".bin" if kind == "plus" else ".safetensors"
    loaded = load_image_adapter(written(state, tmp_path / f"a{suffix}"))
    assert loaded.kind == kind
    check_fits(loaded.adapter, model)
    pictures = 1 if kind == "base" else 2
    features = drawn(2, pictures, KINDS[kind][1], WIDTH, seed=3)  # two rows
    x, text = drawn(2, 4, *SIZE, seed=5), drawn(2, 7, TEXT, seed=6)
    sigma = model.model.model_sampling.sigmas[[TIMESTEP] * 2]
    ours, theirs = extra_conds(other, 2)
    rows = tuple(
        Row((Extra(adapter=loaded.adapter, request=ImageFeatures(one), strength=SCALE),))
        for one in features
    )
    found, scaled = predict(attend_extra(model), rows, x, sigma, text, ours)
    plain, _ = predict(attend_extra(model), (), x, sigma, text, ours)

    processors = other.attn_processors
    try:
        other._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
        for processor in other.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [SCALE]
        given = features[:, :, 0] if kind == "base" else features
        added = {**theirs.get("added_cond_kwargs", {}), "image_embeds": [given]}
        expected = other(
            scaled, torch.tensor([TIMESTEP] * 2), text, added_cond_kwargs=added
        ).sample  # fmt: skip
    finally:
        other.encoder_hid_proj = None
        other.config.encoder_hid_dim_type = None
        other.set_attn_processor(processors)
    assert_close(found, expected, rtol=0, atol=1e-4)
    assert (plain - expected).abs().max() > 0.01  # the adapter matters here


def test_layers_are_numbered_along_the_network_of_the_family(pair):
    model, _ = pair
    shapes = layer_shapes(model)
    topology = next(t for t in TOPOLOGIES if len(t.layers) == len(shapes))
    names = diffusers_names(model)
    assert topology.layers == sorted(names, key=lambda name: _place(names[name]))
    assert len(shapes) in (16, 70)
