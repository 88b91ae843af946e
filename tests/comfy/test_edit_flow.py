"""FlowEdit on the miniature (eps) and on the same network taken for a flow."""

from itertools import pairwise

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.samplers
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from torch.testing import assert_close

import nodes
from veduta.mini.landscapes import scene
from veduta.mini.painter import paint
from veduta.mini.pool import UNSEEN_FROM
from veduta.nodes import mini
from veduta.nodes.host.samplers import noise_space
from veduta.nodes.inversion.flow_edit import FlowEdit
from veduta.nodes.inversion.run import schedule

EQUAL = {"rtol": 0, "atol": 0}
CHOICES = {"seed": 3, "steps": 2, "strength": 0.8}


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=["eps", "flow"])
def model(comfyui, request):
    made = mini.load_model()
    return made if request.param == "eps" else ModelSamplingSD3().patch(made, shift=3.0)[0]


@pytest.fixture(scope="module")
def texts(comfyui):
    with torch.inference_mode():
        clip = mini.load_clip()
        words = ("a red boat on a calm sea", "a white house in the snow", "")
        return [nodes.CLIPTextEncode().encode(clip, text)[0] for text in words]


@pytest.fixture(scope="module")
def latent(comfyui):
    image = torch.from_numpy(paint(scene(UNSEEN_FROM), 64).image)[None].float() / 255
    with torch.inference_mode():
        return {"samples": mini.load_vae().encode(image), "batch_index": [7]}


@pytest.fixture
def edit(model, latent, texts):
    def call(source=0, positive=1, **choices):
        return FlowEdit.execute(
            model, latent, texts[source], texts[positive], texts[2], **{**CHOICES, **choices}
        ).args[0]

    return call


def test_equal_prompts_and_scales_change_nothing(edit, latent):
    found = edit(positive=0, source_scale=2.0, text_scale=2.0)
    assert_close(found["samples"], latent["samples"], rtol=0, atol=1e-4)


def test_other_prompts_change_the_picture_the_same_way_every_time(edit, latent):
    found = edit()
    assert found["batch_index"] == [7]
    assert (found["samples"] - latent["samples"]).abs().max() > 0.05
    assert_close(edit()["samples"], found["samples"], **EQUAL)
    assert (edit(seed=4)["samples"] - found["samples"]).abs().max() > 0.01
    assert (edit(draws=2)["samples"] - found["samples"]).abs().max() > 0.01


def test_it_is_the_papers_loop(edit, model, texts, latent):
    """With plain CFG guiders as its two denoisers."""
    flow = noise_space(model).flow
    sigmas = schedule(model, 2, "auto", 0.8).tolist()
    x0 = model.model.process_latent_in(latent["samples"])
    generator = torch.Generator().manual_seed(3)
    z = x0
    for high, low in pairwise(sigmas):
        n = torch.randn(x0.shape[1:], generator=generator)
        z_s = (1 - high if flow else 1) * x0 + high * n
        z_t = z + z_s - x0
        d_s, d_t = (
            (x - denoised(model, x, high, text, texts[2], scale)) / high
            for x, text, scale in ((z_s, texts[0], 1.5), (z_t, texts[1], 5.5))
        )
        z = z + (low - high) * (d_t - d_s)
    expected = model.model.process_latent_out(z)
    assert_close(edit()["samples"], expected, rtol=0, atol=1e-3)


def denoised(model, x, sigma, positive, negative, scale):
    seen = []
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(scale)

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, *_):
            seen.append(model_wrap(x, torch.tensor([sigma]), **extra_args))
            return x

    guider.sample(torch.zeros_like(x), torch.zeros_like(x), Once(), torch.tensor([sigma, 0.0]))
    return seen[0]


def test_outside_the_mask_the_latent_stays(edit, latent):
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1.0
    found = edit(mask=mask)["samples"]
    assert_close(found[..., 4:], latent["samples"][..., 4:], rtol=0, atol=1e-6)
    assert (found[..., :4] - latent["samples"][..., :4]).abs().max() > 0.02


def test_an_empty_latent_is_refused(model, texts):
    with pytest.raises(ValueError, match="latent is empty, a picture is needed"):
        FlowEdit.execute(
            model, {"samples": torch.zeros(1, 4, 8, 8)}, texts[0], texts[1], texts[2], **CHOICES
        )
