"""The subject: a mask's centre, else the most salient region."""

import pytest
import torch
from torch import Tensor

from veduta.models.composition.subject import find_subject, subject_of_mask


def scene(x: float, y: float, side: int = 96) -> Tensor:
    """A red disc before a graded sky over green land, (3 s s)."""
    axis = (torch.arange(side) + 0.5) / side
    image = torch.stack([axis * 0.2 + 0.5, axis * 0.2 + 0.6, 0.9 - axis * 0.1])[..., None].repeat(
        1, 1, side
    )
    image[:, side // 2 :] = torch.tensor([0.3, 0.5, 0.2])[:, None, None]
    disc = (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2 < 0.07**2
    image[:, disc] = torch.tensor([0.8, 0.1, 0.1])[:, None]
    return image


@pytest.mark.parametrize(("x", "y"), [(0.3, 0.3), (0.75, 0.65), (0.12, 0.8)])
def test_disc_is_the_subject_wherever_it_is(x, y):
    found = find_subject(scene(x, y))
    assert found is not None
    assert abs(found.x - x) < 0.04
    assert abs(found.y - y) < 0.04


def test_mirroring_mirrors_the_subject():
    image = scene(0.3, 0.6)
    found, mirrored = find_subject(image), find_subject(image.flip(-1))
    assert found is not None
    assert mirrored is not None
    assert abs(found.x + mirrored.x - 1) < 0.02
    assert abs(found.y - mirrored.y) < 0.02


def test_mask_centre_by_hand():
    mask = torch.zeros(10, 20)
    mask[2:4, 10:14] = 1.0
    found = subject_of_mask(mask)
    assert found is not None
    assert (found.x, found.y, found.confidence) == pytest.approx((0.6, 0.3, 1.0))


def test_empty_mask_has_no_subject():
    assert subject_of_mask(torch.zeros(8, 8)) is None


def test_flat_picture_has_no_subject():
    assert find_subject(torch.full((3, 40, 40), 0.5)) is None
