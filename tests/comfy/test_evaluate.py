"""Measure Image Likeness: the numbers in its table, CLIP against transformers, what is missing."""

import math
import re

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from veduta.mini import networks
from veduta.mini.landscapes import scene
from veduta.mini.load import load_image_text
from veduta.mini.painter import paint
from veduta.mini.pool import UNSEEN_FROM
from veduta.nodes import mini
from veduta.nodes.evaluate import ImageMetrics

TEXT = "a red boat on a calm sea"


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def images():
    painted = [paint(scene(UNSEEN_FROM + i), 128).image for i in range(2)]
    return torch.from_numpy(np.stack(painted)).float() / 255


@pytest.fixture(scope="module")
def clip(comfyui):
    return mini.load_clip()


@pytest.fixture(scope="module")
def clip_vision(comfyui):
    return mini.load_clip_vision()


def measured(*args, **options):
    return ImageMetrics.execute(*args, **options).args


def numbers(report, name):
    (line,) = [line for line in report.splitlines() if line.startswith(name)]
    return [
        float(cell) for cell in re.findall(r"-?(?:\d+\.?\d*(?:e-?\d+)?|inf|nan)", line[len(name) :])
    ]


def test_a_tenth_everywhere_is_20_db():
    image = torch.full((1, 64, 64, 3), 0.6)
    report, psnr, _, background = measured(image, torch.full((1, 64, 64, 3), 0.5))
    assert psnr == background == pytest.approx(20.0, abs=1e-3)
    assert numbers(report, "PSNR, dB") == [20.0]
    assert numbers(report, "MSE") == [0.01]


def test_both_sides_of_a_mask_and_the_bound(images, comfyui):
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1.0
    edited = images.clone()
    edited[:, :, :64] = 1 - edited[:, :, :64]
    vae = mini.load_vae()
    report, psnr, ssim, background = measured(edited, images, mask=mask, vae=vae)
    assert background == math.inf
    assert psnr < 20 and ssim < 0.9
    whole, inside, outside, *bound = numbers(report, "PSNR, dB")
    assert whole == pytest.approx(psnr, abs=0.01)
    assert whole == pytest.approx(inside + 10 * math.log10(2), abs=0.6)
    assert outside == math.inf
    assert len(bound) == 3 and min(bound) > 20


def test_a_picture_of_odd_size_goes_through_the_vae(images, comfyui):
    cut = images[:1, :100, :90]
    report = measured(cut, cut, vae=mini.load_vae())[0]
    assert numbers(report, "PSNR, dB")[1] > 20


def test_clip_similarity_is_transformers(images, clip, clip_vision):
    other = images.flip(0)
    report = measured(images, other, clip=clip, clip_vision=clip_vision, text=TEXT)[0]
    judge = load_image_text()
    pixels = networks.normalise(images.movedim(-1, 1))
    seen = judge.get_image_features(pixel_values=pixels)
    read = judge.get_text_features(input_ids=networks.tokenize([TEXT]))
    seen, read = (getattr(x, "pooler_output", x) for x in (seen, read))
    (to_text,) = numbers(report, "CLIP to text")
    (to_other,) = numbers(report, "CLIP to reference")
    assert to_text == pytest.approx(100 * float(cosine_similarity(seen, read).mean()), abs=0.3)
    expected = 100 * float(cosine_similarity(seen, seen.flip(0)).mean())
    assert to_other == pytest.approx(expected, abs=0.3)


def test_what_is_missing_is_told(images, clip, clip_vision, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    report = measured(images, images, clip_vision=clip_vision)[0]
    assert "LPIPS needs alexnet" in report
    assert "CLIP similarity to text needs clip, clip_vision and text" in report
    assert numbers(report, "CLIP to reference") == [100.0]
    assert "needs clip_vision" in measured(images, images, clip=clip, text=TEXT)[0]
    assert "CLIP" not in measured(images, images)[0]


def test_a_text_encoder_without_projection_is_told(images, clip, clip_vision):
    import copy

    bare = copy.copy(clip)
    bare.cond_stage_model = copy.deepcopy(clip.cond_stage_model)
    projection = bare.cond_stage_model.clip_l.transformer.text_projection
    projection.weight = torch.nn.Parameter(torch.eye(*projection.weight.shape))
    bare.patcher = clip.patcher.clone()
    bare.patcher.model = bare.cond_stage_model
    report = measured(images, images, clip=bare, clip_vision=clip_vision, text=TEXT)[0]
    assert "needs a text encoder with its projection" in report


@pytest.mark.parametrize(
    ("image", "reference", "words"),
    [
        (
            torch.rand(1, 64, 64, 3),
            torch.rand(1, 32, 64, 3),
            "image is 64 x 64 px, reference is 64 x 32",
        ),
        (
            torch.rand(3, 64, 64, 3),
            torch.rand(2, 64, 64, 3),
            "reference holds 2 pictures, image holds 3",
        ),
        (torch.full((1, 64, 64, 3), torch.nan), torch.rand(1, 64, 64, 3), "image holds NaN"),
    ],
)
def test_refusals(image, reference, words):
    with pytest.raises(ValueError, match=words):
        measured(image, reference)


def test_one_colour_pictures_are_measured():
    black, white = torch.zeros(1, 64, 64, 3), torch.ones(1, 64, 64, 3)
    _, psnr, ssim, _ = measured(black, white)
    assert psnr == pytest.approx(0.0, abs=1e-4)
    assert 0 <= ssim < 0.01
