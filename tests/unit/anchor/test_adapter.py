"""The anchor adapter: neutral when new, places follow the crop, requests do not mix."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from veduta.models.anchor.adapter import AnchorAdapter
from veduta.models.common.anchor import Anchor
from veduta.models.common.decoupled_attention import LayerShape, Sight, decoupled_attention

LAYERS = {"input_1_0": LayerShape(16, 8), "middle_0_0": LayerShape(16, 24)}
ASKED = Anchor(horizon=0.3, tilt_deg=4.0, subject_x=0.7, subject_y=0.6)


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    return AnchorAdapter(LAYERS)


@pytest.fixture
def trained(adapter):
    generator = torch.Generator().manual_seed(1)
    for projection in adapter.to_v.values():
        nn.init.normal_(projection.weight, generator=generator)
    return adapter


def attend(adapter, layer="input_1_0", size=(4, 6)):
    tokens = adapter.tokens([Sight(ASKED)], *size, size[1] / size[0])
    k, v = adapter.keys_values(layer, tokens)
    q = torch.ones(1, size[0] * size[1], k.shape[-1])
    return decoupled_attention(q, [k], [v], 2)


def test_a_new_adapter_adds_nothing_and_its_values_can_learn(adapter):
    out = attend(adapter)
    assert not out.any()
    (out - 1).square().sum().backward()
    assert adapter.to_v["input_1_0"].weight.grad.any()
    assert not adapter.to_k["input_1_0"].weight.grad.any()  # values are zero as yet


def test_keys_and_encoder_learn_as_soon_as_values_are_not_zero(trained):
    (attend(trained) - 1).square().sum().backward()
    assert trained.to_k["input_1_0"].weight.grad.any()
    assert trained.encoder.horizon[0].weight.grad.any()
    assert trained.encoder.registers.grad.any()
    assert trained.to_k["middle_0_0"].weight.grad is None  # a layer that was not asked


def test_widths_of_every_layer(trained):
    tokens = trained.tokens([Sight(ASKED)] * 2, 3, 5, 5 / 3)
    assert tokens.shape == (2, 15, 4, 16)
    for name, shape in LAYERS.items():
        k, v = trained.keys_values(name, tokens)
        assert k.shape == v.shape == (2, 15, 4, shape.inner_dim)


def test_equal_queries_get_another_answer_at_another_place(trained):
    out = attend(trained)[0].reshape(4, 6, 8)
    assert (out[0] - out[-1]).abs().max() > 0.1
    assert (out[:, 0] - out[:, -1]).abs().max() > 0.1


def test_places_of_a_crop_are_those_of_the_frame(trained):
    whole = trained.tokens([Sight(ASKED)], 8, 12, 1.5).reshape(8, 12, 4, 16)
    part = trained.tokens([Sight(ASKED, (0.5, 0.25, 1.0, 0.75))], 4, 6, 1.5).reshape(4, 6, 4, 16)
    assert_close(part, whole[2:6, 6:], atol=1e-5, rtol=0)


def test_a_coarser_map_looks_from_the_middles_of_its_own_places(trained):
    middle = trained.tokens([Sight(ASKED, (0.25, 0.25, 0.75, 0.75))], 1, 1, 1.0)
    assert_close(trained.tokens([Sight(ASKED)], 1, 1, 1.0), middle)
    assert not torch.equal(trained.tokens([Sight(ASKED)], 2, 2, 1.0)[:, :1], middle)


def test_every_sight_has_its_own_tokens(trained):
    sights = [Sight(ASKED), Sight(Anchor()), Sight(ASKED, (0.0, 0.0, 0.5, 1.0))]
    together = trained.tokens(sights, 2, 3, 1.5)
    for i, sight in enumerate(sights):
        assert_close(together[i], trained.tokens([sight], 2, 3, 1.5)[0])
    assert not torch.equal(together[0], together[2])


def test_weights_come_back_from_their_state(trained):
    other = AnchorAdapter(LAYERS)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(attend(other), attend(trained))


def test_layers_that_read_different_texts_are_refused():
    layers = {**LAYERS, "output_3_0": LayerShape(32, 8)}
    with pytest.raises(ValueError, match=r"text of 2 widths \[16, 32\], one is needed"):
        AnchorAdapter(layers)


def test_parts_hold_every_token_and_repeat_none(trained):
    tokens = trained.tokens([Sight(ASKED)], 3, 5, 5 / 3)
    own, shared = trained.parts(tokens)
    assert shared.shape[1] == 1
    whole = torch.cat([own, shared.expand(-1, own.shape[1], -1, -1)], 2)
    assert torch.equal(whole, tokens)
