"""Saliency Map, Load Saliency Model and Reward in a real ComfyUI; gradients through core's towers."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.clip_model
import comfy.model_management
import folder_paths
import numpy as np
import torch
from torch.testing import assert_close

from veduta.mini.landscapes import scene
from veduta.mini.painter import paint
from veduta.mini.pool import UNSEEN_FROM
from veduta.models.common.images import image_to_bchw
from veduta.models.saliency.mixing import PRODUCT
from veduta.models.saliency.rewards.clip_reward import GREAT_CIRCLE
from veduta.models.saliency.rewards.preprocessing import Preprocessing
from veduta.models.saliency.rewards.reward import SALIENT, WHOLE
from veduta.nodes import mini
from veduta.nodes.host.gradients import gradients, out_of_place
from veduta.nodes.saliency.load import ATTENTION, SPECTRAL, LoadSaliencyModel
from veduta.nodes.saliency.networks import ready
from veduta.nodes.saliency.reward import (
    CONNECTED,
    MINIATURE,
    PICTURE,
    SYMMETRY,
    TEXT,
    DefineReward,
)
from veduta.nodes.saliency.saliency_map import SaliencyMap


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def scenes():
    return [scene(UNSEEN_FROM + i) for i in range(4)]


@pytest.fixture(scope="module")
def images(scenes):
    painted = [paint(one, 64).image for one in scenes]
    return torch.from_numpy(np.stack(painted)).float() / 255


@pytest.fixture(scope="module")
def clip_vision(comfyui):
    with torch.inference_mode():
        return mini.load_clip_vision()


@pytest.fixture(scope="module")
def clip(comfyui):
    with torch.inference_mode():
        return mini.load_clip()


def map_of(*args, **options):
    return SaliencyMap.execute(*args, **options).args


def reward_of(kind=TEXT, model_name=MINIATURE, text="a red boat", weight=1.0, **options):
    return DefineReward.execute(kind, model_name, text, weight, **options).args[0]


def gradient_of(function, image, patchers):
    """Value and gradient of a sum, the way an optimiser takes them."""
    with gradients(), ready(patchers):
        x = image_to_bchw(image).clone().requires_grad_()
        value = function(x)
        value.sum().backward()
        return value.detach(), x.grad


def test_without_anything_connected_it_is_spectral_residual(images):
    found, heat_map, saliency = map_of(images)
    (alone,) = LoadSaliencyModel.execute(SPECTRAL).args
    assert_close(found, map_of(images, saliency=alone)[0])
    assert found.shape == (4, 64, 64) and heat_map.shape == (4, 64, 64, 3)
    assert_close(found.amax((1, 2)), torch.ones(4))
    assert float(found.std()) > 0.05
    again, gradient = gradient_of(saliency.find, images, saliency.patchers)
    assert_close(again[:, 0], found)
    assert float(gradient.abs().max()) > 0


def test_a_painted_mask_alone_is_the_map(images):
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:16, 4:12] = 0.5
    found, _, saliency = map_of(images, mask=mask)
    assert float(found[:, 20, 16].min()) == 1.0 and float(found[:, 50, 50].max()) == 0
    # the finder serves pictures of other sizes
    assert saliency.find(torch.rand(2, 3, 32, 48)).shape == (2, 1, 32, 48)


def test_a_mask_joins_what_a_model_finds(images):
    mask = torch.zeros(4, 64, 64)
    mask[:, :, :32] = 1
    (spectral,) = LoadSaliencyModel.execute(SPECTRAL).args
    alone = map_of(images)[0]
    both = map_of(images, saliency=spectral, mask=mask, combine=PRODUCT)[0]
    assert float(both[:, :, 32:].max()) == 0
    left = alone[:, :, :32]
    assert_close(both[:, :, :32], left / left.amax((1, 2), keepdim=True))
    assert_close(map_of(images, saliency=spectral, mask=mask, mask_weight=0.0)[0], alone)
    chained = map_of(images, saliency=map_of(images, mask=mask)[2], subject_mask=mask)[0]
    assert_close(chained, mask)


def test_attention_of_a_stock_encoder_finds_and_has_gradients(images, clip_vision):
    (saliency,) = LoadSaliencyModel.execute(ATTENTION, clip_vision).args
    found = map_of(images, saliency=saliency)[0]
    assert found.shape == (4, 64, 64) and float(found.std()) > 0.01
    x, gradient = gradient_of(
        lambda image: saliency.find(image).square(), images[:1], saliency.patchers
    )
    assert x.shape == (1, 1, 64, 64) and float(gradient.abs().max()) > 0


def test_a_file_in_the_folder_is_listed_and_refused_by_its_content(tmp_path, monkeypatch):
    torch.save({"unet.weight": torch.zeros(1)}, tmp_path / "other.pth")
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "saliency", ([str(tmp_path)], {".pth", ".safetensors"})
    )
    (options,) = [one for one in LoadSaliencyModel.define_schema().inputs if one.id == "model_name"]
    assert "other.pth" in options.options
    with pytest.raises(ValueError, match="other.pth is another program's file"):
        LoadSaliencyModel.execute("other.pth")


def test_the_text_of_a_picture_is_worth_more_points_than_another(images, scenes):
    chains = [reward_of(text=one.caption) for one in scenes]
    table = torch.stack([chain.rewards.total(image_to_bchw(images)) for chain in chains])
    right = table.diagonal()
    others = (table.sum(0) - right) / (len(scenes) - 1)
    assert float((right - others).min()) > 0


def test_cores_towers_judge_as_the_miniature_does(images, clip, clip_vision):
    """The same weights through transformers' classes and through core's."""
    built_in = reward_of(text="a red boat on a calm sea")
    stock = reward_of(
        model_name=CONNECTED, text="a red boat on a calm sea", clip=clip, clip_vision=clip_vision
    )
    ours, gradient = gradient_of(built_in.rewards.total, images, built_in.patchers)
    theirs, other = gradient_of(stock.rewards.total, images, stock.patchers)
    assert_close(ours, theirs, atol=0.05, rtol=0)
    assert_close(gradient, other, atol=1e-3 * float(gradient.abs().max()), rtol=0.05)
    assert float(gradient.abs().max()) > 0


def test_gradients_through_the_stock_tower_are_those_of_finite_differences(images, clip_vision):
    chain = reward_of(
        PICTURE, CONNECTED, clip_vision=clip_vision, reference=images[1:], distance=GREAT_CIRCLE
    )
    _, gradient = gradient_of(chain.rewards.total, images[:1], chain.patchers)
    step = 0.02 * gradient / gradient.norm()
    with gradients(), ready(chain.patchers), torch.no_grad():
        x = image_to_bchw(images[:1]).clone()
        sides = [float(chain.rewards.total(x + sign * step)) for sign in (1, -1)]
    assert sides[0] - sides[1] == pytest.approx(0.04 * float(gradient.norm()), rel=0.02)


def test_the_stock_encoder_is_as_before(images, clip_vision):
    before = clip_vision.encode_image(images)["image_embeds"]
    parameters = dict(clip_vision.model.named_parameters())
    chain = reward_of(PICTURE, CONNECTED, clip_vision=clip_vision, reference=images[:1])
    gradient_of(chain.rewards.total, images, chain.patchers)
    assert torch.equal(clip_vision.encode_image(images)["image_embeds"], before)
    now = dict(clip_vision.model.named_parameters())
    assert all(now[name] is parameter for name, parameter in parameters.items())
    assert not comfy.model_management.in_training


def test_preprocessing_is_cores_but_for_its_rounding():
    image = torch.rand(2, 100, 150, 3, generator=torch.Generator().manual_seed(0))
    ours = Preprocessing(64)(image_to_bchw(image))
    theirs = comfy.clip_model.clip_preprocess(image, 64)
    assert float((ours - theirs).abs().max()) <= 0.51 / 255 / 0.26
    assert float((ours - theirs).abs().max()) > 0


def test_chains_keep_order_weights_and_networks(images):
    first = reward_of(text="a tree", weight=0.5, salient_text="a boat")
    chain = reward_of(SYMMETRY, weight=-2.0, append_to=first)
    x = image_to_bchw(images)
    rows = chain.rewards.rows(x)
    assert [(row.name, row.weight) for row in rows] == [
        ("'a tree' (miniature)", 0.5), ("symmetry", -2.0),
    ]  # fmt: skip
    assert_close(chain.rewards.total(x), 0.5 * rows[0].points - 2 * rows[1].points)
    assert chain.patchers == first.patchers
    salient = first.rewards.total(x, SALIENT)
    assert_close(salient, 0.5 * reward_of(text="a boat").rewards.total(x, WHOLE))
    assert float((salient - first.rewards.total(x)).abs().max()) > 0.1


def test_out_of_place_gives_autograd_what_it_needs():
    with gradients():
        x = torch.randn(3, 4).requires_grad_()

        def residual(y):
            y = y * 1
            y += torch.nn.functional.layer_norm(y, (4,))
            return y.sum()

        with pytest.raises(RuntimeError, match="inplace"):
            residual(x).backward()
        with out_of_place():
            found = residual(x)
        expected = (x + torch.nn.functional.layer_norm(x, (4,))).sum()
        assert_close(*(torch.autograd.grad(y, x)[0] for y in (found, expected)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i, c, v: map_of(i, mask=torch.zeros(1, 8, 8)), "mask is 0 everywhere"),
        (lambda i, c, v: map_of(i, subject_mask=torch.ones(3, 8, 8)), "subject_mask holds 3 masks"),
        (lambda i, c, v: map_of(i, mask=torch.ones(1, 8, 8), mask_weight=0.0), "weights of the maps"),
        (lambda i, c, v: map_of(torch.full((1, 32, 32, 3), torch.nan)), "image holds NaN"),
        (lambda i, c, v: LoadSaliencyModel.execute(ATTENTION), "clip_vision is not connected"),
        (lambda i, c, v: reward_of(text=" "), "text is empty"),
        (lambda i, c, v: reward_of(PICTURE), "reference is not connected"),
        (lambda i, c, v: reward_of(model_name=CONNECTED), "clip_vision is not connected"),
        (lambda i, c, v: reward_of(model_name=CONNECTED, clip_vision=v), "clip is not connected"),
    ],
)  # fmt: skip
def test_refusals(images, clip, clip_vision, call, words):
    with pytest.raises(ValueError, match=words):
        call(images, clip, clip_vision)
