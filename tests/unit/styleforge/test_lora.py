"""LoRA layers: what they add, what learns, how they are named and drawn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from veduta.models.styleforge.lora import Convolution, Layers, Lora, LoraLayer, Plan, Target


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=3):
    return torch.randn(*shape, generator=generator(seed))


def lora(targets=None, seed=0, **plan):
    targets = targets or {
        "lora_unet_a": Target(inner=6, outer=5),
        "lora_te_b": Target(inner=4, outer=4),
    }
    return Lora(targets, Plan(**{"rank": 2, **plan}), generator(seed))


def filled(own, seed=1):
    with torch.no_grad():
        for _, layer in own.named_layers():
            for up in layer.up:
                up.copy_(torch.randn(up.shape, generator=generator(seed)))
    return own


def test_two_numbers_by_hand():
    layer = LoraLayer(Target(inner=2, outer=1), 1, Plan(rank=1, alpha=3.0), 1, generator())
    with torch.no_grad():
        layer.down[0].copy_(torch.tensor([[1.0, 2.0]]))
        layer.up[0].copy_(torch.tensor([[0.5]]))
    # h = 10 + 3 * 0.5 * (1 * 3 + 2 * 4)
    assert_close(layer(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]])), torch.tensor([[26.5]]))


def test_a_new_lora_adds_nothing():
    own = lora()
    for name, layer in own.named_layers():
        base = drawn(2, 3, layer.up[0].shape[0])
        x = drawn(2, 3, layer.down[0].shape[1])
        assert torch.equal(layer(x, base), base), name


def test_a_linear_layer_is_the_merged_weight():
    own = filled(lora(alpha=3.0, slices=("shared", "people")))
    layer, tensors = own.layers["lora_unet_a"], own.tensors()
    x, weight = drawn(2, 3, 6), drawn(5, 6, seed=4)
    down, up = tensors["lora_unet_a.lora_down.weight"], tensors["lora_unet_a.lora_up.weight"]
    scale = tensors["lora_unet_a.alpha"] / down.shape[0]
    merged = F.linear(x.double(), weight.double() + scale * (up.double() @ down.double()))
    assert_close(layer(x, F.linear(x, weight)), merged.float(), rtol=1e-5, atol=1e-5)
    assert down.shape == (4, 6) and float(tensors["lora_unet_a.alpha"]) == 6.0


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2)])
def test_a_convolution_is_the_merged_weight(stride, padding, dilation):
    own = Convolution(kernel=3, stride=stride, padding=padding, dilation=dilation)
    adapter = filled(lora({"lora_unet_c": Target(inner=4, outer=6, convolution=own)}, rank=4))
    tensors = adapter.tensors()
    down, up = tensors["lora_unet_c.lora_down.weight"], tensors["lora_unet_c.lora_up.weight"]
    assert down.shape == (2, 4, 3, 3) and up.shape == (6, 2, 1, 1)  # half the rank
    x, weight = drawn(2, 4, 9, 8), drawn(6, 4, 3, 3, seed=4)
    delta = (up.flatten(1) @ down.flatten(1)).view(6, 4, 3, 3)
    rest = (None, stride, padding, dilation)
    answer = adapter.layers["lora_unet_c"](x, F.conv2d(x, weight, *rest))
    assert_close(answer, F.conv2d(x, weight + delta, *rest), rtol=1e-4, atol=1e-4)


def test_only_chosen_slices_get_gradients_and_all_of_them_act():
    own = filled(lora(slices=("shared", "people", "backgrounds")))
    layer = own.layers["lora_unet_a"]
    x, base = drawn(3, 6), drawn(3, 5, seed=4)
    before = layer(x, base).detach()
    own.learn(("shared", "people"))
    answer = layer(x, base)
    assert torch.equal(answer, before)
    answer.square().sum().backward()
    assert [up.grad is not None for up in layer.up] == [True, True, False]
    assert [down.grad is not None for down in layer.down] == [True, True, False]
    text = own.layers["lora_te_b"]
    assert len(text.up) == 1
    text(drawn(2, 4), drawn(2, 4)).sum().backward()
    assert text.up[0].grad is not None


def test_gradients_match_a_float64_loop():
    own = filled(lora()).double()
    layer = own.layers["lora_unet_a"]
    x, base = drawn(3, 6).double(), drawn(3, 5, seed=4).double()
    assert torch.autograd.gradcheck(
        lambda down, up: torch.func.functional_call(layer, {"down.0": down, "up.0": up}, (x, base)),
        (layer.down[0].detach().requires_grad_(), layer.up[0].detach().requires_grad_()),
    )


def test_dropout_is_for_training_alone():
    own = filled(lora(dropout=0.5))
    layer, x, base = own.layers["lora_unet_a"], drawn(50, 6), drawn(50, 5)
    torch.manual_seed(0)
    noisy = layer(x, base)
    own.eval()
    assert not torch.equal(noisy, layer(x, base))
    assert torch.equal(layer(x, base), layer(x, base))


def test_the_generator_alone_decides():
    torch.manual_seed(5)
    one = lora(seed=1)
    torch.manual_seed(6)
    same, other = lora(seed=1), lora(seed=2)
    key = "lora_unet_a.lora_down.weight"
    assert torch.equal(one.tensors()[key], same.tensors()[key])
    assert not torch.equal(one.tensors()[key], other.tensors()[key])


def test_half_precision_inputs_keep_their_type():
    layer = filled(lora()).layers["lora_unet_a"]
    answer = layer(drawn(3, 6).bfloat16(), drawn(3, 5).bfloat16())
    assert answer.dtype == torch.bfloat16 and isinstance(layer.down[0], nn.Parameter)
    assert layer.down[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lora(rank=9), "rank is 9, layer lora_unet_a takes 5 at most; lower rank"),
        (lambda: Lora({}, Plan(), generator()), "no layer of this model is chosen"),
        (lambda: Plan(rank=0), "rank is 0, 1 or more"),
        (lambda: Plan(dropout=1.0), "dropout is 1.0, a share"),
        (lambda: Plan(alpha=-1.0), "alpha is -1.0, 0 or more"),
    ],
)
def test_unusable_sizes_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


BLOCK = "input_blocks.1.1.transformer_blocks.0"


@pytest.mark.parametrize(
    ("path", "conv", "kinds"),
    [
        (f"{BLOCK}.attn1.to_q", False, "amc"),
        (f"{BLOCK}.attn2.to_out.0", False, "amc"),
        (f"{BLOCK}.ff.net.0.proj", False, "mc"),
        (f"{BLOCK}.ff.net.2", False, "mc"),
        ("input_blocks.1.0.in_layers.2", True, "c"),
        ("output_blocks.2.1.conv", True, "c"),
        ("input_blocks.0.0", True, ""),
        ("input_blocks.1.0.emb_layers.1", False, ""),
        ("time_embed.0", False, ""),
        ("double_blocks.0.img_attn.qkv", False, "amc"),
        ("double_blocks.0.txt_attn.proj", False, "amc"),
        ("double_blocks.0.img_mlp.0", False, "mc"),
        ("single_blocks.3.linear1", False, "amc"),
        ("double_blocks.0.img_mod.lin", False, ""),
        ("single_blocks.0.modulation.lin", False, ""),
        ("img_in", False, ""),
        ("final_layer.linear", False, ""),
        ("layers.4.attention.qkv", False, "amc"),
        ("layers.4.feed_forward.w1", False, "mc"),
        ("layers.4.adaLN_modulation.1", False, ""),
        ("blocks.0.self_attn.q", False, "amc"),
        ("transformer_blocks.7.attn.to_k", False, "amc"),
    ],
)
def test_presets_take_what_they_say(path, conv, kinds):
    presets = {"a": Layers(mlp=False), "m": Layers(), "c": Layers(convolutions=True)}
    assert "".join(kind for kind, own in presets.items() if own.takes(path, conv)) == kinds


def test_the_style_block_is_sdxls_second_of_the_way_out():
    own = Layers(mlp=False, style_block_only=True)
    assert own.takes("output_blocks.1.1.transformer_blocks.3.attn1.to_v", False)
    assert not own.takes("output_blocks.0.1.transformer_blocks.3.attn1.to_v", False)
    assert not own.takes("output_blocks.1.1.transformer_blocks.3.ff.net.2", False)
