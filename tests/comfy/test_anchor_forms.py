"""The forms that ours is compared with: neutral when new, trained alike; the second detector."""

import math
from dataclasses import replace

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.samplers
import torch
from torch import Generator, nn
from torch.testing import assert_close

from veduta.bench import _anchor_forms as forms
from veduta.bench import _anchor_probe as probes
from veduta.mini import anchor as mini_anchor
from veduta.mini.anchor import Drawings
from veduta.mini.landscapes import scene
from veduta.models.common.anchor import Anchor
from veduta.models.common.decoupled_attention import LayerShape, Sight, decoupled_attention
from veduta.models.common.training import read_log
from veduta.nodes.host.attention import Extra, attend_extra, with_extra
from veduta.nodes.mini import load_clip, load_model

LAYERS = {"input_1_0": LayerShape(16, 8), "middle_0_0": LayerShape(16, 24)}
ASKED = Anchor(horizon=0.3, tilt_deg=4.0, subject_x=0.7, subject_y=0.6)
COUNT, HELD = 12, 4


@pytest.fixture(scope="module")
def model(comfyui):
    return load_model()


@pytest.fixture
def drawings(monkeypatch):
    for module in (mini_anchor, forms, probes):
        monkeypatch.setattr(module, "HELD_OUT", HELD)
    monkeypatch.setattr(mini_anchor, "BATCH", 2)
    generator = Generator().manual_seed(0)
    latents = torch.randn(COUNT, 4, 16, 16, generator=generator).half()
    texts = torch.randn(COUNT + 1, 77, 192, generator=generator).half()
    labels = [Anchor(horizon=0.2 + i / 20, tilt_deg=float(i % 2)) for i in range(COUNT)]
    return Drawings(latents, texts[1:], texts[:1], labels)


def attend(adapter, asked=ASKED, layer="input_1_0", size=(4, 6)):
    sights = [Sight(asked)]
    tokens = adapter.tokens(sights, *size, size[1] / size[0])
    k, v = adapter.keys_values(layer, tokens)
    q = torch.ones(1, size[0] * size[1], k.shape[-1])
    term = adapter.query_term(layer, sights, *size)
    return decoupled_attention(q if term is None else q + term, [k], [v], 2)


def wake(adapter):
    """Give a new form's zero weights values."""
    for name, parameter in adapter.named_parameters():
        if name.startswith(("to_v", "to_place")):
            nn.init.normal_(parameter, generator=Generator().manual_seed(1))
    return adapter


@pytest.mark.parametrize("form", [forms.GlobalTokens, forms.Field])
def test_a_new_form_adds_nothing_and_its_values_can_learn(form):
    out = attend(adapter := form(LAYERS))
    assert not out.any()
    (out - 1).square().sum().backward()
    assert adapter.to_v["input_1_0"].weight.grad.any()


@pytest.mark.parametrize("form", [forms.GlobalTokens, forms.Field])
def test_what_is_added_depends_on_place_and_request(form):
    adapter = wake(form(LAYERS))
    out = attend(adapter)
    assert out[0].std(0).max() > 0.01
    for other in (replace(ASKED, subject_x=None), replace(ASKED, tilt_deg=-4.0), Anchor()):
        assert (attend(adapter, other) - out).abs().max() > 1e-3


def test_without_places_in_the_queries_global_tokens_say_the_same_everywhere():
    adapter = wake(forms.GlobalTokens(LAYERS))
    nn.init.zeros_(adapter.to_place["input_1_0"].weight)
    out = attend(adapter)
    assert_close(out, out[:, :1].expand_as(out))


def test_the_field_by_hand():
    asked = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    numbers = torch.tensor([[0.25, math.radians(10), 0.5, 0.9]])
    places = torch.tensor([[[1.0, 0.75], [0.5, 0.1]]])
    right, centre = forms.draw_field(numbers, asked, places, aspect=2.0)[0]
    rise = math.tan(math.radians(10))  # the right edge is one height from the centre
    assert float(right[0]) == pytest.approx((0.5 - rise) * math.cos(math.radians(10)), abs=1e-6)
    assert float(centre[1]) == 1.0  # y is open: the blob is a band
    assert float(right[1]) == pytest.approx(math.exp(-1 / (2 * forms.SUBJECT_SIZE**2)), abs=1e-6)
    assert centre[2:].tolist() == pytest.approx([1 / 3, 1, 1, 1, 0], abs=1e-6)


def test_a_field_of_nothing_is_zero():
    places = torch.rand(1, 5, 2)
    assert not forms.draw_field(torch.rand(1, 4), torch.zeros(1, 4), places, 1.0).any()


def test_the_host_adds_the_places_to_the_queries(model):
    adapter = forms.FORMS["8 tokens"](model)
    for projection in adapter.to_v.values():
        nn.init.normal_(projection.weight, std=0.1, generator=Generator().manual_seed(1))
    patched, clip = attend_extra(model), load_clip()
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a tree"))

    def predict():
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(with_extra(text, [Extra(adapter=adapter, request=ASKED)]), text)
        guider.set_cfg(1.0)
        z = torch.zeros(1, 4, 8, 8)
        noise = torch.randn(z.shape, generator=Generator().manual_seed(2))
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, z, euler, torch.tensor([7.0, 0.0]), disable_pbar=True)

    with torch.inference_mode():
        before = predict()
        adapter.query_term = lambda *_: None
        without = predict()
        del adapter.query_term
        for projection in adapter.to_place.values():
            nn.init.normal_(projection.weight, std=3.0, generator=Generator().manual_seed(3))
        assert torch.equal(before, without)  # new queries are the network's own
        assert (predict() - before).abs().max() > 1e-3


def test_subsets_of_one_ground_and_of_all_are_equally_large():
    one, mixed = (forms.scenes_of(name, 300) for name in ("homogeneous", "mixed"))
    assert len(one) == len(mixed) == len(set(mixed)) > 30
    assert {scene(i).ground for i in one} == {forms.GROUND}
    assert len({scene(i).ground for i in mixed}) > 4
    assert max(mixed) < 300
    assert list(forms.scenes_of("ours", 300)) == list(range(300))


@pytest.mark.parametrize("name", ["one token", "8 tokens", "field"])
def test_a_form_is_trained_kept_and_read(name, model, drawings, tmp_path):
    forms.train_form(name, model, drawings, 2, tmp_path)
    adapter, steps = forms.load_form(name, model, tmp_path)
    assert steps == 2
    assert any(weight.any() for key, weight in adapter.state_dict().items() if "to_v" in key)
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    forms.train_form(name, model, drawings, 3, tmp_path)  # goes on
    assert forms.load_form(name, model, tmp_path)[1] == 3


def test_the_second_detector_learns_and_answers(drawings, tmp_path, monkeypatch):
    assert probes.second_detector(tmp_path) is None
    monkeypatch.setattr(probes, "RECIPE", replace(probes.RECIPE, steps=30, log_every=10))
    probes.train_probe(drawings, tmp_path)
    losses = [row["loss"] for row in read_log(tmp_path / "forms" / "probe")]
    assert losses[-1] < losses[0]
    found = probes.second_detector(tmp_path)(torch.rand(3, 3, 128, 128))
    assert len(found) == 3
    assert all(None not in vars(anchor).values() for anchor in found)
