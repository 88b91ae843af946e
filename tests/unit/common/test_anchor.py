"""The anchor: ranges, the line it stands for, batches and presets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veduta.models.common.anchor import GOLDEN, PRESETS, Anchor, AnchorBatch


def test_every_part_may_be_open():
    assert Anchor() == Anchor(horizon=None, tilt_deg=None, subject_x=None, subject_y=None)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("horizon", 1.2, r"horizon is 1\.2, it must lie in 0\.\.1; 0 is the top edge"),
        ("horizon", -0.1, r"horizon is -0\.1"),
        ("horizon", math.nan, "horizon is nan"),
        ("tilt_deg", 31, r"tilt_deg is 31, it must lie in -30\.\.30"),
        ("tilt_deg", -math.inf, "tilt_deg is -inf"),
        ("subject_x", 2, "subject_x is 2.*left edge"),
        ("subject_y", -1, "subject_y is -1.*top edge"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(part, value, words):
    with pytest.raises(ValueError, match=words):
        Anchor(**{part: value})


def test_the_ends_of_the_ranges_are_allowed():
    Anchor(horizon=0.0, tilt_deg=-30.0, subject_x=1.0, subject_y=1.0)


def test_horizon_line_by_hand():
    # 45 degrees would rise one px per px; tan(26.565 deg) = 1/2, frame twice as wide as high
    anchor = Anchor(horizon=0.5, tilt_deg=math.degrees(math.atan(0.5)))
    heights = [anchor.horizon_at(x, aspect=2.0) for x in (0.0, 0.5, 1.0)]
    assert heights == pytest.approx([0.0, 0.5, 1.0])


def test_positive_tilt_lowers_the_right_end():
    anchor = Anchor(horizon=0.5, tilt_deg=5.0)
    assert anchor.horizon_at(1.0, 1.5) > 0.5 > anchor.horizon_at(0.0, 1.5)


def test_an_open_tilt_is_level_and_an_open_horizon_has_no_line():
    assert Anchor(horizon=0.3).horizon_at(0.9, 2.0) == 0.3
    assert Anchor(tilt_deg=5.0).horizon_at(0.9, 2.0) is None


@given(st.floats(0, 1), st.floats(-30, 30), st.floats(0.2, 5))
def test_mirroring_the_tilt_mirrors_the_line(horizon, tilt_deg, aspect):
    one, other = (
        Anchor(horizon=horizon, tilt_deg=tilt_deg),
        Anchor(horizon=horizon, tilt_deg=-tilt_deg),
    )
    assert one.horizon_at(0.2, aspect) == pytest.approx(other.horizon_at(0.8, aspect))


def test_one_anchor_serves_every_picture():
    anchor = Anchor(horizon=0.4)
    assert AnchorBatch((anchor,)).for_batch(3) == (anchor,) * 3


def test_anchors_pair_with_pictures_in_order():
    anchors = (Anchor(horizon=0.4), Anchor(horizon=0.6))
    assert AnchorBatch(anchors).for_batch(2) == anchors


def test_wrong_counts_are_refused():
    anchors = AnchorBatch((Anchor(), Anchor()))
    with pytest.raises(
        ValueError, match="anchor holds 2 anchors, image holds 3 pictures; pass one"
    ):
        anchors.for_batch(3)
    with pytest.raises(ValueError, match="the anchor batch is empty"):
        AnchorBatch(())


def test_presets_say_what_they_are():
    assert PRESETS["high horizon (upper third)"].horizon == pytest.approx(1 / 3)
    assert PRESETS["golden section, low horizon"].horizon == pytest.approx(GOLDEN)
    assert PRESETS["golden section, high horizon"].horizon == pytest.approx(1 - GOLDEN)
    assert PRESETS["low sky"].horizon < 0.25 and PRESETS["big sky"].horizon > 0.75
    assert all(preset.horizon is not None for preset in PRESETS.values())
