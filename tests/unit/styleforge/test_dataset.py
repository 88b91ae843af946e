"""Aspect buckets: sizes by hand, shapes kept, pictures that fit already left alone."""

import pytest
import torch

from veduta.models.styleforge.dataset import (
    fit_to_bucket,
    nearest_bucket,
    style_picture,
    training_side,
)


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("sizes", "resolution", "side"),
    [
        ([(2000, 3000)], 0, 512),
        ([(2000, 3000)], 1024, 1024),
        ([(300, 400), (200, 900)], 0, 192),
        ([(128, 128)], 0, 128),
        ([(40, 40)], 0, 64),
        ([(800, 800)], 700, 640),
    ],
)
def test_the_side_is_what_was_asked_for_or_what_small_pictures_allow(sizes, resolution, side):
    assert training_side(sizes, resolution) == side


@pytest.mark.parametrize(
    ("width", "height", "side", "bucket"),
    [
        (1000, 1000, 512, (512, 512)),
        (1600, 900, 512, (640, 384)),
        (900, 1600, 512, (384, 640)),
        (5000, 100, 512, (640, 384)),
        (128, 128, 128, (128, 128)),
        (160, 96, 128, (160, 96)),
    ],
)
def test_a_bucket_has_the_pictures_shape_and_no_more_area(width, height, side, bucket):
    found = nearest_bucket(width, height, side)
    assert found[0] * found[1] <= side * side
    assert found == bucket


def test_a_picture_of_the_buckets_size_keeps_every_value():
    pixels = (noise(3, 64, 96) * 255).round().byte()
    assert torch.equal(fit_to_bucket(pixels.float() / 255, (96, 64)), pixels)


def test_what_juts_out_is_cut_the_same_on_both_sides():
    wide = torch.zeros(1, 64, 192)
    wide[..., 64:128] = 1.0  # the middle third
    assert (fit_to_bucket(wide, (64, 64)) == 255).all()


def test_the_mask_goes_the_way_of_its_picture():
    planes, mask = noise(3, 150, 300), torch.zeros(1, 150, 300)
    mask[..., 150:] = 1.0
    one = style_picture(planes, 128, "a boat", mask, "boat.jpg")
    assert one.mask is not None and one.mask.shape[1:] == one.pixels.shape[1:]
    assert one.pixels.dtype == one.mask.dtype == torch.uint8
    width = one.pixels.shape[-1]
    assert one.mask[..., : width // 2 - 2].max() == 0
    assert one.mask[..., width // 2 + 2 :].min() == 255
    assert one.original_size == (300, 150)


def test_pictures_are_left_unmodified():
    planes = noise(3, 100, 130)
    before = planes.clone()
    style_picture(planes, 64)
    assert torch.equal(planes, before)
