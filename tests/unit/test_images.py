"""Border conversions: what arrives in a graph, and what a person reads when it cannot be used."""

import pytest
import torch
from torch.testing import assert_close

from veduta.models.common.images import bchw_to_image, image_to_bchw, mask_to_b1hw


def picture(batch=1, height=16, width=20, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, height, width, channels, generator=generator)


def test_rgb_moves_its_channels_and_nothing_else():
    image = picture(2)
    assert_close(image_to_bchw(image), image.permute(0, 3, 1, 2))


def test_there_and_back_is_the_same_picture():
    image = picture(3)
    assert_close(bchw_to_image(image_to_bchw(image)), image)


def test_grey_is_repeated():
    planes = image_to_bchw(picture(channels=1))
    assert planes.shape == (1, 3, 16, 20)
    assert_close(planes[:, 0], planes[:, 2])


def test_alpha_shows_white_paper():
    image = torch.zeros(1, 16, 16, 4)
    image[..., :3] = 0.2
    image[0, 0, 0, 3], image[0, 0, 1, 3], image[0, 0, 2, 3] = 0.0, 0.5, 1.0
    row = image_to_bchw(image)[0, 1, 0, :3]
    assert_close(row, torch.tensor([1.0, 0.6, 0.2]))  # 1, the mean of 1 and 0.2, 0.2


def test_grey_with_alpha_gives_three_channels():
    assert image_to_bchw(picture(channels=2)).shape == (1, 3, 16, 20)


def test_values_are_clamped():
    image = picture() * 4 - 2
    planes = image_to_bchw(image)
    assert planes.min() == 0 and planes.max() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(dtype):
    assert image_to_bchw(picture().to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_given_picture_is_left_alone(channels):
    image = picture(channels=channels) * 3 - 1
    before = image.clone()
    image_to_bchw(image)
    assert torch.equal(image, before)


def test_an_8k_picture_is_taken_without_a_copy():
    image = torch.zeros(1, 1, 1, 1).expand(1, 4320, 7680, 3)
    assert image_to_bchw(image).shape == (1, 3, 4320, 7680)
    small = picture()
    assert image_to_bchw(small).data_ptr() == small.data_ptr()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(0, 16, 16, 3), "image is a batch of 0 pictures, one at least is needed"),
        (torch.zeros(1, 1, 1, 3), r"image is 1 x 1 px, each side must lie in 16\.\.16384 px"),
        (torch.zeros(1, 0, 0, 3), "image is 0 x 0 px"),
        (torch.zeros(1, 16, 15, 3), "image is 15 x 16 px"),
        (torch.zeros(1, 1, 1, 3).expand(1, 16, 16385, 3), "image is 16385 x 16 px"),
        (torch.zeros(16, 16, 3), r"the shape \(16, 16, 3\).*connect an IMAGE"),
        (torch.zeros(1, 16, 16, 5), "1 to 4 channels"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), "torch.uint8.*divide 8-bit values by 255"),
        (torch.full((1, 16, 16, 3), float("nan")), "image holds NaN or infinite values"),
        (torch.full((1, 16, 16, 3), float("inf")), "image holds NaN or infinite values"),
    ],
)
def test_unusable_pictures_are_refused_in_one_sentence(image, words):
    with pytest.raises(ValueError, match=words):
        image_to_bchw(image)


def test_one_bad_pixel_is_enough():
    image = picture(2)
    image[1, 3, 4, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        image_to_bchw(image)


def test_the_message_carries_the_name_of_the_input():
    with pytest.raises(ValueError, match=r"^reference is a batch of 0"):
        image_to_bchw(torch.zeros(0, 16, 16, 3), "reference")


@pytest.mark.parametrize("shape", [(16, 20), (1, 16, 20), (1, 1, 16, 20)])
def test_every_layout_of_a_mask_is_taken(shape):
    assert mask_to_b1hw(torch.ones(shape), 3, 16, 20).shape == (1, 1, 16, 20)


def test_a_mask_of_another_size_keeps_its_border():
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1.0  # upper half
    resized = mask_to_b1hw(mask, 1, 32, 48)[0, 0]
    assert resized.shape == (32, 48)
    assert resized[:14].min() == 1 and resized[18:].max() == 0


def test_a_shrunk_mask_keeps_its_area():
    mask = (torch.arange(64) % 2 == 0).float().expand(1, 64, 64)  # fine stripes, half covered
    inner = mask_to_b1hw(mask, 1, 16, 16)[..., 2:-2]
    assert_close(inner, torch.full_like(inner, 0.5), atol=0.02, rtol=0)


def test_one_mask_per_picture_stays_apart():
    masks = torch.stack([torch.zeros(16, 16), torch.ones(16, 16)])
    assert mask_to_b1hw(masks, 2, 16, 16).mean((1, 2, 3)).tolist() == [0.0, 1.0]


def test_mask_values_are_clamped_and_the_mask_left_alone():
    mask = torch.full((1, 4, 4), 7.0)
    assert mask_to_b1hw(mask, 1, 4, 4).max() == 1
    assert mask.max() == 7


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(2, 4, 4), "sky_mask holds 2 masks, image holds 3 pictures; pass one mask"),
        (torch.zeros(0, 4, 4), "sky_mask has the shape .* no pixel"),
        (torch.zeros(1, 0, 4), "sky_mask has the shape .* no pixel"),
        (torch.zeros(4), r"sky_mask has the shape \(4,\).*connect a MASK"),
        (torch.zeros(1, 4, 4, 3), "connect a MASK"),
        (torch.full((1, 4, 4), float("nan")), "sky_mask holds NaN"),
    ],
)
def test_unusable_masks_are_refused_in_one_sentence(mask, words):
    with pytest.raises(ValueError, match=words):
        mask_to_b1hw(mask, 3, 16, 16, "sky_mask")
