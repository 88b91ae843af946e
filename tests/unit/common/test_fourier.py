"""Fourier features by hand."""

import torch
from torch.testing import assert_close

from veduta.models.common.fourier import fourier_features


def test_numbers_then_sines_then_cosines_at_half_turns():
    features = fourier_features(torch.tensor([[0.5, 1.0]]), 2)
    numbers, sines, cosines = [0.5, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, -1.0, -1.0, 1.0]
    assert_close(features, torch.tensor([[*numbers, *sines, *cosines]]), atol=1e-6, rtol=0)


def test_shape_dtype_and_input_are_kept():
    numbers = torch.rand(3, 4, 5, dtype=torch.float64)
    before = numbers.clone()
    features = fourier_features(numbers, 6)
    assert features.shape == (3, 4, 5 * 13)
    assert features.dtype == torch.float64
    assert torch.equal(numbers, before)


def test_no_band_leaves_the_numbers():
    numbers = torch.rand(2, 3)
    assert torch.equal(fourier_features(numbers, 0), numbers)


def test_the_highest_band_has_its_half_turns():
    step = 1 / 2**5  # half a turn of the sixth band
    angles = fourier_features(torch.tensor([[0.0], [step], [2 * step]]), 6)[:, -1]
    assert_close(angles, torch.tensor([1.0, -1.0, 1.0]), atol=1e-5, rtol=0)
