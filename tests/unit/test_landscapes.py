"""The painter's ground truth: exact, reproducible, and true at every size."""

import numpy as np
import pytest

from veduta.mini.landscapes import CLOSE_UPS, Scene, Subject, scene
from veduta.mini.painter import paint

SEA = Scene(seed=1, caption="a calm sea", sky="clear", ground="sea", horizon=0.4, tilt_deg=0.0)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another():
    first, again, other = (paint(scene(seed), 64) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.caption == again.caption
    assert (first.image != other.image).any()


def test_sky_ends_at_the_horizon_row():
    painting = paint(SEA, 100)
    assert painting.sky_mask[:40].all()
    assert not painting.sky_mask[40:].any()


def test_tilt_lowers_the_right_end_by_its_tangent():
    tilted = Scene(**{**SEA.__dict__, "tilt_deg": 10.0})
    mask = paint(tilted, 200, 100).sky_mask
    heights = (mask > 0).sum(0)  # of the sky, px, column by column
    # 199 columns apart: 199 tan(10 deg) = 35.1 px
    assert heights[-1] - heights[0] == pytest.approx(35.1, abs=1.5)
    assert heights[99:101].mean() == pytest.approx(40, abs=1)


def test_sky_is_brighter_than_the_sea_on_both_sides_of_the_line():
    rows = paint(SEA, 128).image.mean((1, 2))
    assert rows[45] > rows[58] + 20


def test_subject_centre_is_the_centroid_of_its_mask():
    sun = Subject(kind="sun", colour=(0, 0, 0), colour_word="", x=0.25, distance=-0.2, height=0.2)
    painting = paint(Scene(**{**SEA.__dict__, "subject": sun}), 200)
    assert painting.subject_x == pytest.approx(0.25, abs=0.005)
    assert painting.subject_y == pytest.approx(0.2, abs=0.005)
    area = (painting.subject_mask > 0).mean()
    assert area == pytest.approx(np.pi * 0.1**2, rel=0.05)


def test_truth_does_not_depend_on_the_size():
    small, large = paint(scene(17), 96), paint(scene(17), 320)
    assert small.horizon == large.horizon
    if small.subject_x is not None:
        assert large.subject_x == pytest.approx(small.subject_x, abs=0.02)
        assert large.subject_y == pytest.approx(small.subject_y, abs=0.02)


def test_scenes_cover_what_they_promise():
    scenes = [scene(seed) for seed in range(600)]
    horizons = [s.horizon for s in scenes if s.horizon is not None]
    assert 0.85 < len(horizons) / len(scenes) < 0.95
    assert min(horizons) < 0.16
    assert max(horizons) > 0.84
    assert {s.close_up for s in scenes if s.close_up} == set(CLOSE_UPS)
    assert max(abs(s.tilt_deg or 0) for s in scenes) <= 10
    assert any(s.mountains for s in scenes)
    assert any(s.haze for s in scenes)


def test_close_ups_have_no_horizon_no_sky_and_no_subject():
    plan = next(scene(seed) for seed in range(200) if scene(seed).close_up)
    painting = paint(plan, 64)
    assert painting.horizon is None
    assert painting.subject_x is None
    assert not painting.sky_mask.any()


def test_captions_name_what_is_there():
    for seed in range(200):
        plan = scene(seed)
        if plan.subject:
            assert plan.subject.kind in plan.caption
        if plan.horizon is not None and "low horizon" in plan.caption:
            assert plan.horizon > 0.62


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (31, 77)])
def test_any_frame(size):
    painting = paint(scene(3), *size)
    assert painting.image.shape == (size[1], size[0], 3)
    assert painting.image.std() > 5
