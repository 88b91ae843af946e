"""Gradients inside ComfyUI: the frozen model as a function, and everything as before afterwards."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.model_management
import torch
from torch.testing import assert_close

import nodes as core
from veduta.models.anchor.adapter import AnchorAdapter
from veduta.models.common.anchor import Anchor
from veduta.nodes import mini
from veduta.nodes.host.attention import Extra, layer_shapes
from veduta.nodes.host.gradients import gradients, ordinary, ordinary_weights
from veduta.nodes.host.training import frozen_denoiser


@pytest.fixture(scope="module")
def stack():
    with torch.inference_mode():  # as ComfyUI runs the loader
        model, clip = mini.load_model(), mini.load_clip()
        texts = [core.CLIPTextEncode().encode(clip, text)[0] for text in ("a red boat", "")]
        for parameter in model.model.parameters():  # as core leaves those that it assigns
            parameter.data = parameter.data.clone()
    return model, texts


def picture(stack):
    model, (positive, negative) = stack
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    with torch.inference_mode():
        answer = core.KSampler().sample(
            model, 1, 2, 4.0, "euler", "normal", positive, negative, latent
        )
    return answer[0]["samples"]


def new_adapter(model, std=0.05):
    torch.manual_seed(0)
    adapter = AnchorAdapter(layer_shapes(model))
    for projection in adapter.to_v.values():
        torch.nn.init.normal_(projection.weight, std=std)
    return adapter


ANCHORS = (Anchor(horizon=0.3), Anchor(horizon=0.7))


def a_loss(denoise, adapter, anchors=ANCHORS):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    sigma = denoise.sigma_of(torch.tensor([700, 850]))
    extras = [
        None if anchor is None else Extra(adapter=adapter, request=anchor) for anchor in anchors
    ]
    return denoise(x * sigma[:, None, None, None], sigma, (0, 1), extras).square().mean()


def test_keys_values_and_encoder_get_gradients_and_the_base_none(stack):
    model, texts = stack
    with torch.inference_mode(), gradients():
        adapter = new_adapter(model)
        with frozen_denoiser(model, texts, torch.zeros(1, 4, 8, 8)) as denoise:
            a_loss(denoise, adapter).backward()
        assert all(float(p.weight.grad.abs().sum()) > 0 for p in adapter.to_k.values())
        assert all(float(p.weight.grad.abs().sum()) > 0 for p in adapter.to_v.values())
        assert float(adapter.encoder.horizon[0].weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in model.model.parameters())


@pytest.mark.parametrize("path", ["to_k", "to_v"])
def test_the_gradient_is_that_of_finite_differences(stack, path):
    model, texts = stack
    with torch.inference_mode(), gradients():
        adapter = new_adapter(model, std=0.5)
        weight = list(getattr(adapter, path).values())[-1].weight  # large effect, little rounding
        with frozen_denoiser(model, texts, torch.zeros(1, 4, 8, 8)) as denoise:
            a_loss(denoise, adapter).backward()
            step = weight.grad * (0.01 / weight.grad.norm())
            losses = []
            for side in (1, -1):
                with torch.no_grad():
                    weight += side * step
                    losses.append(float(a_loss(denoise, adapter)))
                    weight -= side * step
        expected = 0.02 * float(weight.grad.norm())
        assert losses[0] - losses[1] == pytest.approx(expected, rel=0.01)


def test_a_row_without_extras_is_stock(stack):
    model, texts = stack
    with torch.inference_mode(), gradients(), torch.no_grad():
        adapter = new_adapter(model)
        with frozen_denoiser(model, texts, torch.zeros(1, 4, 8, 8)) as denoise:
            alone = a_loss(denoise, adapter, (None, None))
            off = a_loss(denoise, new_adapter(model, std=0.0))
    assert_close(alone, off)


def test_texts_of_several_lengths_are_batched(stack):
    model, _ = stack
    with torch.inference_mode():
        clip = mini.load_clip()
        long = core.CLIPTextEncode().encode(clip, "a tree on a green hill " * 20)[0]
        short = core.CLIPTextEncode().encode(clip, "a tree")[0]
        assert long[0][0].shape[1] > short[0][0].shape[1]
        with gradients(), frozen_denoiser(model, [short, long], torch.zeros(1, 4, 8, 8)) as denoise:
            assert a_loss(denoise, None, (None, None)).isfinite()


@pytest.mark.parametrize(
    "stop", [None, ValueError, comfy.model_management.InterruptProcessingException]
)
def test_stock_pictures_are_bit_equal_before_and_after_training(stack, stop):
    model, texts = stack
    before = picture(stack)
    parameters = dict(model.model.named_parameters())
    try:
        with torch.inference_mode(), gradients():
            adapter = new_adapter(model)
            with frozen_denoiser(model, texts, torch.zeros(1, 4, 8, 8)) as denoise:
                optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.01)
                a_loss(denoise, adapter).backward()
                optimizer.step()
                if stop is not None:
                    raise stop
    except (ValueError, comfy.model_management.InterruptProcessingException):
        pass
    assert torch.equal(picture(stack), before)
    assert not comfy.model_management.in_training
    now = dict(model.model.named_parameters())
    assert all(now[name] is parameter for name, parameter in parameters.items())
    assert model.model.current_patcher is None


def test_gradients_restores_the_modes_after_an_error():
    with torch.inference_mode():
        with pytest.raises(KeyError), gradients():
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            assert comfy.model_management.in_training
            raise KeyError
        assert torch.is_inference_mode_enabled()
    assert not comfy.model_management.in_training


def test_inference_tensors_become_ordinary_and_others_stay():
    with torch.inference_mode():
        frozen = torch.ones(2)
    plain = torch.ones(2)
    assert not ordinary(frozen).is_inference()
    assert ordinary(plain) is plain


def test_weights_made_in_inference_mode_are_lent_as_views_of_the_same_memory():
    with torch.inference_mode():
        layer = torch.nn.Linear(2, 2)
    before = layer.weight
    x = torch.ones(1, 2, requires_grad=True)
    with ordinary_weights(layer):
        assert layer.weight.data_ptr() == before.data_ptr()
        assert not layer.weight.requires_grad
        layer(x).sum().backward()
    assert layer.weight is before
    assert x.grad is not None


def test_weights_that_required_gradients_do_so_again():
    layer = torch.nn.Linear(2, 2)
    with ordinary_weights(layer):
        assert not layer.weight.requires_grad
    assert layer.weight.requires_grad


def test_several_entries_are_refused(stack):
    model, (positive, negative) = stack
    with (
        pytest.raises(ValueError, match="a conditioning has 2 entries, training takes one"),
        gradients(),
        frozen_denoiser(model, [positive + negative], torch.zeros(1, 4, 8, 8)),
    ):
        pass
