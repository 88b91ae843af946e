"""Extra attention against diffusers' IP-Adapter processors: SD1.5 and SDXL, whole but narrow.

Every block and layer number is as released; channels, heads and text are narrow and the weights
random. Both networks hold the same weights, moved by core's own table of names.
"""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
)
from torch.testing import assert_close

from veduta.models.common.decoupled_attention import TokenAdapter
from veduta.nodes.host.attention import CONDS_KEY, Extra, Row, attend_extra, layer_shapes

TEXT, TOKENS, SCALE = 24, 4, 0.6
SIZE = (8, 12)
HEAD, TIME, POOLED = 16, 8, 10  # SDXL: channels of a head, of a time number, of the pooled text
CORE = {
    "SD1.5": {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
        "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1, "num_heads": 8, "num_head_channels": -1,
        "context_dim": TEXT, "use_spatial_transformer": True, "use_linear_in_transformer": False,
        "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
    },
    "SDXL": {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
        "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10, "num_heads": -1, "num_head_channels": HEAD,
        "context_dim": TEXT, "use_spatial_transformer": True, "use_linear_in_transformer": True,
        "legacy": False, "num_classes": "sequential", "adm_in_channels": POOLED + 6 * TIME,
        "use_temporal_attention": False,
    },
}  # fmt: skip
DIFFUSERS = {
    "SD1.5": {"block_out_channels": (32, 64, 128, 128), "attention_head_dim": 8},
    "SDXL": {
        "block_out_channels": (32, 64, 128), "attention_head_dim": (2, 4, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": TIME,
        "projection_class_embeddings_input_dim": POOLED + 6 * TIME,
    },
}  # fmt: skip


class NarrowSDXL(comfy.supported_models.SDXL):
    """SDXL whose attention heads may be narrow."""

    unet_extra_config = {}  # noqa: RUF012  as core has it


FAMILIES = {"SD1.5": comfy.supported_models.SD15, "SDXL": NarrowSDXL}


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


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_weights(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.normal_(std=0.1, generator=generator)
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm):
            part.weight.add_(1)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["SD1.5", "SDXL"])
def pair(request, comfyui):
    """The same network as a MODEL of core's and as diffusers has it."""
    with torch.no_grad():
        config = FAMILIES[request.param](dict(CORE[request.param]))
        config.set_inference_dtype(torch.float32, None)
        base = config.get_model({}, device=torch.device("cpu"))
        draw_weights(base.diffusion_model, seed=1)
        device = torch.device("cpu")
        model = comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=device)
        other = UNet2DConditionModel(cross_attention_dim=TEXT, **DIFFUSERS[request.param]).eval()
        names = comfy.utils.unet_to_diffusers(CORE[request.param])
        own = base.diffusion_model.state_dict()
        other.load_state_dict({key: own[names[key]] for key in other.state_dict()})
    return model, other


def diffusers_names(model):
    """Layer name here -> processor name in diffusers, both counted along the table of weights."""
    config = model.model.model_config.unet_config
    table = comfy.utils.unet_to_diffusers(config)
    found = {}
    for theirs, ours in table.items():
        if ours.endswith("attn2.to_q.weight"):
            parts = ours.split(".")
            stage, number = parts[0].removesuffix("_block").removesuffix("_blocks"), parts[1]
            name = f"{stage}_{0 if stage == 'middle' else number}_{parts[-4]}"
            found[name] = theirs.replace("to_q.weight", "processor")
    return found


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


def extra_conds(other, batch):
    if other.config.addition_embed_type is None:
        return {}, {}
    pooled, times = drawn(batch, POOLED, seed=8), drawn(batch, 6, seed=9).abs() * 100
    embedded = other.add_time_proj(times.flatten()).reshape(batch, -1)
    added = {"text_embeds": pooled, "time_ids": times}
    return {"y": torch.cat([pooled, embedded], -1)}, {"added_cond_kwargs": added}


def predict(model, rows, x, sigma, text, conds):
    """The network's own output: the model's is x - sigma * that."""
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
    x0 = model.model.apply_model(
        x, sigma, c_crossattn=text, transformer_options=options, **{CONDS_KEY: rows}, **conds
    )
    scale = sigma[:, None, None, None]
    return (x - x0) / scale, x / (scale.square() + 1).sqrt()


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
