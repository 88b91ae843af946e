"""Noise spaces: the algebra of x, x0, n and the slope, by hand and back."""

import math

import pytest
import torch
from torch.testing import assert_close

from veduta.models.common.noise_space import NoiseSpace

VE, FLOW = NoiseSpace(flow=False), NoiseSpace(flow=True, variance_preserving_input=False)
SCALED = NoiseSpace(flow=True, noise_scale=0.5, variance_preserving_input=False)


def test_by_hand():
    x0, noise = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    assert_close(VE.noisy(x0, noise, 4.0), torch.tensor([[14.0]]))
    assert_close(FLOW.noisy(x0, noise, 0.25), torch.tensor([[2.25]]))
    assert_close(SCALED.noisy(x0, noise, 0.5), torch.tensor([[1.75]]))


@pytest.mark.parametrize("space", [VE, FLOW, SCALED], ids=["ve", "flow", "scaled"])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_noise_comes_back_and_the_slope_is_d(space, sigma):
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    x = space.noisy(x0, noise, sigma)
    assert_close(space.noise_in(x, x0, sigma), noise)
    assert_close(space.slope(x0, noise), (x - x0) / sigma)


def test_another_level_shows_the_network_the_same_input():
    x = torch.randn(2, 3)
    space = NoiseSpace(flow=False, sigma_data=0.5)
    moved = space.at_level(x, 0.0, 3.0)
    assert_close(moved / math.sqrt(0.25 + 9.0), x / 0.5)
    assert space.at_level(x, 2.0, 2.0).equal(x)
    assert FLOW.at_level(x, 0.1, 0.9) is x
    assert NoiseSpace(flow=False, variance_preserving_input=False).at_level(x, 1.0, 2.0) is x
