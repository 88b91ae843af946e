"""Measuring whole batches: masks, invariances, edges, contract."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from veduta.models.composition.measure import Measurement, measure_composition


def landscape(left: float, right: float, height: int = 120, width: int = 180) -> Tensor:
    """Graded sky over grainy land with a red disc, (1 3 h w)."""
    y, x = (torch.arange(height) + 0.5)[:, None] / height, (torch.arange(width) + 0.5)[None] / width
    edge = left + (right - left) * x
    sky = torch.stack([0.5 + 0.3 * y / edge, 0.65 + 0.2 * y / edge, 0.95 - 0.05 * y / edge])
    noise = torch.rand(height, width, generator=torch.Generator().manual_seed(3))
    land = torch.tensor([0.3, 0.4, 0.15])[:, None, None] * (0.8 + 0.4 * noise)
    image = torch.where(y > edge, land, sky)
    disc = (x - 0.3) ** 2 * (width / height) ** 2 + (y - 0.75) ** 2 < 0.06**2
    return torch.where(disc, torch.tensor([0.85, 0.1, 0.1])[:, None, None], image)[None]


def numbers(m: Measurement) -> Tensor:
    c = m.candidate
    values = [
        c.horizon,
        c.tilt_deg,
        c.subject_x,
        c.subject_y,
        m.horizon_confidence,
        m.subject_confidence,
    ]
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def test_height_and_tilt_of_a_known_line():
    measured = measure_composition(landscape(0.4, 0.5))[0]
    tilt = math.degrees(math.atan(0.1 * 120 / 180))  # rise of 0.1 heights over the width
    assert measured.anchor.horizon == pytest.approx(0.45, abs=0.02)
    assert measured.anchor.tilt_deg == pytest.approx(tilt, abs=1.0)
    assert measured.candidate.subject_x == pytest.approx(0.3, abs=0.05)
    assert measured.candidate.subject_y == pytest.approx(0.75, abs=0.05)


def test_mirroring_negates_the_tilt():
    image = landscape(0.4, 0.5)
    one, other = measure_composition(torch.cat([image, image.flip(-1)]))
    assert one.candidate.tilt_deg == pytest.approx(-other.candidate.tilt_deg, abs=0.7)
    assert one.candidate.subject_x == pytest.approx(1 - other.candidate.subject_x, abs=0.03)


def test_lower_line_is_measured_lower():
    heights = [measure_composition(landscape(y, y))[0].candidate.horizon for y in (0.3, 0.45, 0.6)]
    assert heights == pytest.approx([0.3, 0.45, 0.6], abs=0.02)


def test_batch_equals_singles():
    images = torch.cat([landscape(0.3, 0.35), landscape(0.6, 0.6), torch.rand(1, 3, 120, 180)])
    together = measure_composition(images)
    apart = [measure_composition(image[None])[0] for image in images]
    for a, b in zip(together, apart, strict=True):
        assert_close(numbers(a), numbers(b), equal_nan=True, atol=1e-4, rtol=1e-4)


def test_sky_mask_beats_the_picture():
    mask = (((torch.arange(120) + 0.5) / 120)[:, None] < 0.7).float().expand(120, 180)[None, None]
    measured = measure_composition(landscape(0.4, 0.4), sky_mask=mask)[0]
    assert measured.anchor.horizon == pytest.approx(0.7, abs=0.01)
    assert measured.horizon_confidence > 0.95


def test_subject_mask_beats_the_picture():
    mask = torch.zeros(1, 1, 120, 180)
    mask[..., 20:40, 100:120] = 1
    measured = measure_composition(landscape(0.4, 0.4), subject_mask=mask)[0]
    assert measured.anchor.subject_x == pytest.approx(110 / 180)
    assert measured.anchor.subject_y == pytest.approx(30 / 120)


def test_parts_below_the_least_confidence_are_none_but_stay_candidates():
    measured = measure_composition(landscape(0.4, 0.4), min_confidence=1.1)[0]
    assert measured.anchor.horizon is None
    assert measured.anchor.subject_x is None
    assert measured.candidate.horizon is not None


@pytest.mark.parametrize("size", [(16, 16), (16, 300), (90, 33)])
def test_small_and_narrow_pictures_pass(size):
    measured = measure_composition(torch.rand(2, 3, *size))
    assert len(measured) == 2


def test_flat_and_black_pictures_measure_none():
    for value in (0.0, 0.5, 1.0):
        measured = measure_composition(torch.full((1, 3, 40, 60), value))[0]
        assert measured.anchor.horizon is None
        assert measured.anchor.subject_x is None


def test_inputs_are_left_alone_and_every_picture_is_announced():
    image, calls = landscape(0.4, 0.5).repeat(5, 1, 1, 1), []
    before = image.clone()
    measure_composition(image, advance=lambda: calls.append(1))
    assert_close(image, before, atol=0, rtol=0)
    assert len(calls) == 5
