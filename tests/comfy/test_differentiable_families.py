"""The gradient through a stock sampler is true for every family of models: tiny copies, random weights."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.model_management
import torch

from veduta.bench._families import FAMILIES, gradient_error


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_finite_differences(family):
    with torch.inference_mode():
        off, size = gradient_error(family)
    assert size > 0.1  # it reaches the noise
    assert off < 0.005
    assert not comfy.model_management.in_training
