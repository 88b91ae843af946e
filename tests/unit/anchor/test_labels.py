"""Labels of training views: exact arithmetic, uniform heights, and agreement with drawn pictures."""

import math

import pytest
import torch
from torch import Generator

from veduta.models.anchor.labels import (
    Label,
    View,
    cut_view,
    horizon_warning,
    label_in_view,
    plan_views,
    weight_of,
)
from veduta.models.common.anchor import Anchor


def label(width=200, height=100, sure=(0.9, 0.7), **parts):
    return Label(
        anchor=Anchor(**parts),
        horizon_confidence=sure[0],
        subject_confidence=sure[1],
        width=width,
        height=height,
    )


def level(**changes):
    return View(**{"centre_x": 100.0, "centre_y": 50.0, "side": 80.0, **changes})


def test_a_level_crop_by_hand():
    found = label_in_view(
        label(horizon=0.4, tilt_deg=0.0, subject_x=0.6, subject_y=0.7), level(centre_x=110.0)
    )
    # the crop runs from x 70 to 150 and from y 10 to 90
    assert found.horizon == pytest.approx((40 - 10) / 80)
    assert found.tilt_deg == 0.0
    assert (found.subject_x, found.subject_y) == pytest.approx(((120 - 70) / 80, (70 - 10) / 80))


def test_a_mirrored_crop_by_hand():
    whole = label(horizon=0.4, tilt_deg=5.0, subject_x=0.6, subject_y=0.7)
    plain = label_in_view(whole, level())
    mirrored = label_in_view(whole, level(is_mirrored=True))
    assert mirrored.horizon == pytest.approx(plain.horizon)
    assert mirrored.tilt_deg == -5.0
    assert mirrored.subject_x == pytest.approx(1 - plain.subject_x)
    assert mirrored.subject_y == pytest.approx(plain.subject_y)


def test_a_tilted_horizon_away_from_the_middle_by_hand():
    found = label_in_view(label(horizon=0.5, tilt_deg=10.0), level(centre_x=140.0, side=60.0))
    # 40 px to the right of the middle, the line is 40 tan(10 deg) px lower
    assert found.horizon == pytest.approx(0.5 + 40 * math.tan(math.radians(10)) / 60)
    assert found.tilt_deg == 10.0


def test_a_turn_around_the_middle_of_the_horizon_keeps_its_height():
    found = label_in_view(label(horizon=0.5, tilt_deg=2.0), level(turn_deg=10.0))
    assert found.horizon == pytest.approx(0.5)
    assert found.tilt_deg == pytest.approx(-8.0)


def test_a_quarter_turn_of_the_subject_by_hand():
    found = label_in_view(label(subject_x=0.6, subject_y=0.5), level(turn_deg=90.0))
    # turned clockwise, the view's right is the picture's down: what was right is now up
    assert (found.subject_x, found.subject_y) == pytest.approx((0.5, 0.5 - 20 / 80))


def test_marks_outside_the_view_are_none():
    whole = label(horizon=0.05, tilt_deg=0.0, subject_x=0.95, subject_y=0.5)
    assert label_in_view(whole, level()) == Anchor()


def test_parts_that_were_not_found_stay_none():
    assert label_in_view(label(), level()) == Anchor()
    assert label_in_view(label(horizon=0.5), level()).tilt_deg is None
    assert label_in_view(label(subject_x=0.5), level()) == Anchor(subject_x=0.5)
    assert label_in_view(label(subject_x=0.5), level(turn_deg=5.0)) == Anchor()


def test_the_weight_is_the_mean_confidence_of_what_is_shown():
    both = label(horizon=0.5, subject_x=0.5, subject_y=0.5)
    assert weight_of(both, both.anchor) == pytest.approx(0.8)
    assert weight_of(both, Anchor(horizon=0.5)) == pytest.approx(0.9)
    assert weight_of(both, Anchor(subject_x=0.5)) == pytest.approx(0.7)
    assert weight_of(both, Anchor()) == 1.0


def drawn(whole):
    """Sky 0, ground 1, and a red disc at the subject: every pixel from the label's own formula."""
    y, x = torch.meshgrid(torch.arange(whole.height), torch.arange(whole.width), indexing="ij")
    x, y = x + 0.5, y + 0.5
    slope = math.tan(math.radians(whole.anchor.tilt_deg))
    ground = (y > whole.anchor.horizon * whole.height + slope * (x - whole.width / 2)).float()
    disc = (x - whole.anchor.subject_x * whole.width).square()
    disc = (disc + (y - whole.anchor.subject_y * whole.height).square() < 36).float()
    return torch.stack([disc, ground, torch.zeros_like(ground)])


@pytest.mark.parametrize("turn_deg", [0.0, -9.0, 11.0])
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("size", [48, 120])
def test_labels_agree_with_what_is_seen_in_the_cut(turn_deg, is_mirrored, size):
    whole = label(width=240, height=160, horizon=0.45, tilt_deg=4.0, subject_x=0.55, subject_y=0.7)
    view = View(
        centre_x=130.0, centre_y=88.0, side=100.0, turn_deg=turn_deg, is_mirrored=is_mirrored
    )
    said = label_in_view(whole, view)
    disc, ground, _ = cut_view(drawn(whole), view, size)
    columns = 1 - ground.mean(0)  # share of sky in every column: height of the line
    middle = columns[size // 2 - 1 : size // 2 + 1].mean()
    assert float(middle) == pytest.approx(said.horizon, abs=0.01)
    slope = float(columns[-1] - columns[0]) / (1 - 1 / size)
    assert math.degrees(math.atan(slope)) == pytest.approx(said.tilt_deg, abs=0.7)
    places = (torch.arange(size) + 0.5) / size
    assert float((disc.sum(0) * places).sum() / disc.sum()) == pytest.approx(
        said.subject_x, abs=0.01
    )
    assert float((disc.sum(1) * places).sum() / disc.sum()) == pytest.approx(
        said.subject_y, abs=0.01
    )


def pile(count=40):
    """Photographs as they are: horizons between a quarter and the middle."""
    heights = torch.linspace(0.25, 0.6, count).tolist()
    return [label(width=300, height=200, horizon=y, tilt_deg=1.0, subject_x=0.5, subject_y=0.6)
            for y in heights]  # fmt: skip


def test_planned_heights_are_uniform():
    labels = pile()
    planned = plan_views(labels, 8, Generator().manual_seed(1))
    heights = torch.tensor([one.anchor.horizon for one in planned])
    counts = torch.histc(heights, 8, 0.1, 0.9)
    assert len(planned) > 0.9 * 8 * len(labels)
    assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean()


def test_planned_views_lie_inside_their_pictures_and_bear_their_labels():
    labels = [*pile(), label(), label(width=64, height=90, subject_x=0.2, subject_y=0.3)]
    planned = plan_views(labels, 4, Generator().manual_seed(2))
    assert {one.picture for one in planned} == set(range(len(labels)))
    for one in planned:
        whole = labels[one.picture]
        assert one.anchor == label_in_view(whole, one.view)
        assert one.view.reach <= one.view.centre_x + 1e-6
        assert one.view.reach <= one.view.centre_y + 1e-6
        assert one.view.centre_x + one.view.reach <= whole.width + 1e-6
        assert one.view.centre_y + one.view.reach <= whole.height + 1e-6
        assert one.weight == weight_of(whole, one.anchor)


def test_planned_views_are_mirrored_and_turned_both_ways():
    planned = plan_views(pile(), 4, Generator().manual_seed(3))
    tilts = [one.anchor.tilt_deg for one in planned]
    assert min(tilts) < -4 and max(tilts) > 4
    assert 0.3 < sum(one.view.is_mirrored for one in planned) / len(planned) < 0.7


def test_the_plan_follows_the_seed():
    plans = [plan_views(pile(6), 3, Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_no_pictures_give_no_views():
    assert plan_views([], 8, Generator()) == []


def test_few_horizons_are_warned_of():
    assert horizon_warning([label(horizon=0.5), label()]) is None
    warning = horizon_warning([label(horizon=0.5), label(), label()])
    assert warning.startswith("warning: no horizon was found in 2 of 3 pictures")
