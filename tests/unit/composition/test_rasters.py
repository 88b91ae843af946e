"""Control pictures and masks of an anchor, against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from veduta.models.common.anchor import Anchor
from veduta.models.composition.rasters import (
    FLOATING_DEPTH,
    GROUND_RGB,
    SKY_RGB,
    SUBJECT_RGB,
    RasterStyle,
    draw_raster,
    draw_rasters,
)


def rgb(colour):
    return torch.tensor(colour) / 255.0


def test_depth_of_level_ground_by_hand():
    # 16 rows, horizon at 8 px: row 8 has its centre at 8.5, so D = 0.5 / 8, then 1.5 / 8, ...
    depth = draw_raster(Anchor(horizon=0.5), 16, 16).depth
    expected = torch.tensor([0.0] * 8 + [(0.5 + row) / 8 for row in range(8)])
    assert_close(depth[0], expected[:, None].expand(16, 16))
    assert_close(depth[0], depth[2])


def test_depth_of_tilted_ground_against_a_loop():
    anchor, width, height = Anchor(horizon=0.4, tilt_deg=10.0), 24, 18
    depth = draw_raster(anchor, width, height).depth[0]
    for column in (0, 7, 23):
        for row in (0, 6, 9, 17):
            x, v = column + 0.5, row + 0.5
            line = 0.4 * height + math.tan(math.radians(10)) * (x - width / 2)
            expected = min(max((v - line) / (height - line), 0.0), 1.0)
            assert depth[row, column].item() == pytest.approx(expected, abs=1e-5)


def test_masks_by_hand():
    # horizon at 6.4 px: row 6 spans 6..7, 0.4 of it is sky
    drawn = draw_raster(Anchor(horizon=0.4), 16, 16)
    expected = torch.tensor([1.0] * 6 + [0.4] + [0.0] * 9)
    assert_close(drawn.sky[0], expected[:, None].expand(16, 16))


def test_raster_line_is_the_anchor_line():
    anchor, width, height = Anchor(horizon=0.45, tilt_deg=-12.0), 64, 48
    sky_px = draw_raster(anchor, width, height).sky[0].sum(0)  # sky height per column
    wanted = [anchor.horizon_at((c + 0.5) / width, width / height) * height for c in range(width)]
    assert_close(sky_px, torch.tensor(wanted), atol=0.02, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(-30, 30), st.floats(0, 1), st.floats(0, 1))
def test_every_raster_is_finite_and_masks_add_up(horizon, tilt_deg, x, y):
    anchor = Anchor(horizon=horizon, tilt_deg=tilt_deg, subject_x=x, subject_y=y)
    drawn = draw_raster(anchor, 24, 20)
    assert_close(drawn.sky + drawn.ground, torch.ones(1, 20, 24))
    for name in ("depth", "segmentation", "lines", "sky", "ground", "subject"):
        values = getattr(drawn, name)
        assert values.isfinite().all() and values.min() >= 0 and values.max() <= 1


def test_horizon_at_the_bottom_edge_is_all_sky():
    drawn = draw_raster(Anchor(horizon=1.0), 16, 16)
    assert drawn.sky.min() == 1 and drawn.depth.max() == 0


def test_horizon_at_the_top_edge_is_all_ground():
    drawn = draw_raster(Anchor(horizon=0.0), 16, 16)
    assert drawn.ground.min() == 1 and drawn.depth.min() > 0


def test_segmentation_has_class_colours_only():
    style = RasterStyle(ground_class="sea", subject_class="boat")
    anchor = Anchor(horizon=0.5, tilt_deg=7.0, subject_x=0.5, subject_y=0.6)
    picture = draw_raster(anchor, 64, 64, style).segmentation
    seen = torch.unique(picture.flatten(1).T, dim=0)
    known = torch.stack([rgb(c) for c in (SKY_RGB, GROUND_RGB["sea"], SUBJECT_RGB["boat"])])
    assert len(seen) == 3
    assert all(torch.isclose(known, colour).all(1).any() for colour in seen)
    assert_close(picture[:, 0, 0], rgb(SKY_RGB))
    assert_close(picture[:, 63, 0], rgb(GROUND_RGB["sea"]))
    assert_close(picture[:, 38, 32], rgb(SUBJECT_RGB["boat"]))


def test_published_palette_entries():
    assert SKY_RGB == (6, 230, 230)
    assert GROUND_RGB["earth"] == (120, 120, 70)
    assert GROUND_RGB["sea"] == (9, 7, 230)


def test_subject_is_as_near_as_the_ground_at_its_foot():
    # 64 px, horizon 32, centre 40, height 16: foot at 48, D = (48 - 32) / (64 - 32) = 0.5
    anchor = Anchor(horizon=0.5, subject_x=0.5, subject_y=40 / 64)
    drawn = draw_raster(anchor, 64, 64, RasterStyle(subject_size=0.25))
    assert_close(drawn.depth[0, 34:46, 32], torch.full((12,), 0.5))
    assert drawn.depth[0, 34, 2] < 0.1  # beside it the ground at that row


def test_subject_area_and_centre_by_hand():
    anchor = Anchor(horizon=0.5, subject_x=0.3, subject_y=0.6)
    mask = draw_raster(anchor, 128, 128, RasterStyle(subject_size=0.5)).subject[0]
    area = math.pi * 32 * 0.6 * 32  # ellipse of half axes 32 px and 0.6 of it
    assert mask.sum().item() == pytest.approx(area, rel=0.01)
    rows, columns = torch.meshgrid(
        torch.arange(128.0) + 0.5, torch.arange(128.0) + 0.5, indexing="ij"
    )
    assert ((mask * columns).sum() / mask.sum() / 128).item() == pytest.approx(0.3, abs=0.002)
    assert ((mask * rows).sum() / mask.sum() / 128).item() == pytest.approx(0.6, abs=0.002)


def test_subject_in_the_sky_floats():
    anchor = Anchor(horizon=0.9, subject_x=0.5, subject_y=0.3)
    drawn = draw_raster(anchor, 64, 64, RasterStyle(subject_size=0.2))
    assert drawn.depth[0, 19, 32].item() == pytest.approx(FLOATING_DEPTH)


def test_no_subject_leaves_its_mask_black():
    drawn = draw_raster(Anchor(horizon=0.5), 32, 32)
    assert drawn.subject.max() == 0


def test_an_open_column_is_the_middle_one():
    one = draw_raster(Anchor(horizon=0.4, subject_y=0.6), 32, 32)
    other = draw_raster(Anchor(horizon=0.4, subject_x=0.5, subject_y=0.6), 32, 32)
    assert_close(one.subject, other.subject)


def test_an_open_height_stands_half_way_down_the_ground():
    # 100 px, horizon at 40: the foot stands at 70
    mask = draw_raster(Anchor(horizon=0.4, subject_x=0.5), 100, 100).subject[0]
    rows = (mask > 0.5).any(1).nonzero().flatten()
    assert rows.max().item() + 1 == 70


def test_an_open_tilt_is_level():
    one = draw_raster(Anchor(horizon=0.4), 32, 32)
    assert_close(one.sky, draw_raster(Anchor(horizon=0.4, tilt_deg=0.0), 32, 32).sky)


def test_line_lies_on_the_horizon_and_grows_with_the_picture():
    for size, thickness in ((128, 1), (512, 4)):
        column = draw_raster(Anchor(horizon=0.5), size, size).lines[0, :, 0]
        assert column.sum().item() == pytest.approx(thickness, abs=0.01)
        assert (column * (torch.arange(size) + 0.5)).sum() / column.sum() == size / 2


def test_the_subject_hides_the_horizon():
    anchor = Anchor(horizon=0.5, subject_x=0.5, subject_y=0.5)
    lines = draw_raster(anchor, 128, 128).lines[0]
    assert lines[62:66, 64].max() == 0 and lines[62:66, 2].max() > 0.4


def test_several_anchors_give_a_batch_in_order():
    anchors = (Anchor(horizon=0.25), Anchor(horizon=0.75))
    drawn = draw_rasters(anchors, 20, 16)
    assert drawn.depth.shape == (2, 3, 16, 20) and drawn.sky.shape == (2, 1, 16, 20)
    assert_close(drawn.sky.mean((1, 2, 3)), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: draw_raster(Anchor(tilt_deg=1.0), 32, 32),
            "anchor leaves the horizon open.*use_horizon",
        ),
        (lambda: draw_raster(Anchor(horizon=0.5), 8, 32), r"the size is 8 x 32 px.*16\.\.16384"),
        (lambda: draw_raster(Anchor(horizon=0.5), 32, 20000), "32 x 20000 px"),
        (lambda: draw_rasters((), 32, 32), "anchor holds no anchors"),
        (lambda: RasterStyle(subject_size=2.0), "subject_size is 2.*share of the picture"),
        (lambda: RasterStyle(subject_size=math.nan), "subject_size is nan"),
        (lambda: RasterStyle(ground_class="lava"), "ground_class is 'lava', one of earth"),
        (lambda: RasterStyle(subject_class="ufo"), "subject_class is 'ufo', one of tree"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
