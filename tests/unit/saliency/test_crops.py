"""Masked pictures and crops that fall where people look."""

import pytest
import torch
from torch.testing import assert_close

from veduta.models.saliency.crops import (
    BLACK,
    BLURRED,
    LEAST_SIDE,
    MEAN_COLOUR,
    density_crops,
    draw_square,
    gated,
    masked_image,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masked_by_hand():
    image = torch.tensor([0.2, 0.8]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    saliency = torch.tensor([1.0, 0.25]).reshape(1, 1, 1, 2)
    assert_close(masked_image(image, saliency)[0, 0, 0], torch.tensor([0.2, 0.2]))
    filled = masked_image(image, saliency, MEAN_COLOUR)[0, 0, 0]
    assert_close(filled, torch.tensor([0.2, 0.25 * 0.8 + 0.75 * 0.5]))
    assert_close(masked_image(image, torch.ones_like(saliency)), image)


def test_without_a_share_they_are_even():
    saliency = torch.zeros(40, 60)
    saliency[:8, :12] = 1
    one = generator()
    squares = [draw_square(saliency, 0.0, one) for _ in range(2000)]
    sides = torch.tensor([side for *_, side in squares]).float()
    # the mean of u^0.3 is 1 / 1.3
    assert float(sides.mean()) == pytest.approx(40 * (LEAST_SIDE + (1 - LEAST_SIDE) / 1.3), abs=0.6)
    small = [left + side / 2 for _, left, side in squares if side < 25]
    assert sum(x < 30 for x in small) / len(small) == pytest.approx(0.5, abs=0.1)


def test_a_seed_repeats():
    saliency = torch.rand(40, 60, generator=generator())
    assert draw_square(saliency, 0.5, generator(3)) == draw_square(saliency, 0.5, generator(3))
    assert draw_square(saliency, 0.5, generator(3)) != draw_square(saliency, 0.5, generator(4))


def test_squares_follow_the_map():
    saliency = torch.zeros(40, 60)
    saliency[8, 50] = 1.0
    drawn = [draw_square(saliency, 1.0, generator(i)) for i in range(20)]
    assert all(t <= 8 < t + s and le <= 50 < le + s and t + s <= 40 for t, le, s in drawn)
    anywhere = [draw_square(saliency, 0.0, generator(i)) for i in range(60)]
    assert any(not (le <= 50 < le + s) for _, le, s in anywhere)


def test_crops_are_pieces_of_their_picture():
    image = torch.stack([torch.full((3, 32, 48), 0.2), torch.full((3, 32, 48), 0.7)])
    found = torch.ones(2, 1, 32, 48)
    views = density_crops(image, found, 3, 0.5, generator())
    assert views.shape == (6, 3, 32, 32)
    assert_close(views.mean((1, 2, 3)), torch.tensor([0.2, 0.7] * 3))


def test_masks_fill_as_they_say():
    image, found = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    found[..., :16] = 1
    for fill in (BLACK, MEAN_COLOUR, BLURRED):
        seen = masked_image(image, found, fill)
        assert_close(seen[..., :16], image[..., :16])
        assert not torch.equal(seen[..., 16:], image[..., 16:])
    assert float(masked_image(image, found)[..., 16:].abs().max()) == 0
    with pytest.raises(ValueError, match="fill is 'red', one of"):
        masked_image(image, found, "red")


def test_the_gate_changes_the_gradient_alone():
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    found = torch.zeros(1, 1, 8, 8)
    found[..., :4] = 1
    through = gated(image, found, 0.75)
    assert_close(through, image)
    through.sum().backward()
    assert_close(image.grad[..., :4], torch.ones(1, 3, 8, 4))
    assert_close(image.grad[..., 4:], torch.full((1, 3, 8, 4), 0.25))
