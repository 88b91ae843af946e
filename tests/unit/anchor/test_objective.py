"""What an anchor adapter is trained on: shares that are drawn as told, and losses by hand."""

import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from veduta.models.anchor.objective import (
    Gauge,
    Objective,
    denoising_loss,
    draw_conditions,
    information_gain,
    sample_timesteps,
    shuffled,
)
from veduta.models.common.anchor import Anchor

FULL = Anchor(horizon=0.5, tilt_deg=3.0, subject_x=0.2, subject_y=0.8)
KEEP = Objective(drop_text=0, drop_anchor=0, drop_both=0, drop_part=0, label_noise=0)


def generator(seed=0):
    return Generator().manual_seed(seed)


def test_most_steps_are_noisy_and_evenly_so():
    t = sample_timesteps(20_000, generator(), Objective())
    assert t.min() >= 0 and t.max() <= 999
    assert float((t < 400).float().mean()) == pytest.approx(0.1, abs=0.01)
    counts = torch.histc(t[t >= 400].float(), 6, 400, 1000)
    assert_close(counts / counts.mean(), torch.ones(6), rtol=0, atol=0.06)


def test_the_whole_range_can_be_drawn_evenly():
    t = sample_timesteps(20_000, generator(), Objective(noisy_range=1.0))
    assert float((t < 400).float().mean()) == pytest.approx(0.4, abs=0.02)


def test_nothing_is_dropped_where_all_shares_are_zero():
    anchors, keep = draw_conditions([FULL] * 50, generator(), KEEP)
    assert anchors == [FULL] * 50 and keep == [True] * 50


def test_conditions_are_dropped_as_often_as_told():
    objective = Objective(drop_text=0.2, drop_anchor=0.3, drop_both=0.1, drop_part=0, label_noise=0)
    anchors, keep = draw_conditions([FULL] * 10_000, generator(), objective)
    gone = torch.tensor([anchor == Anchor() for anchor in anchors])
    kept = torch.tensor(keep)
    assert float((gone & ~kept).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert float((gone & kept).float().mean()) == pytest.approx(0.3, abs=0.015)
    assert float((~gone & ~kept).float().mean()) == pytest.approx(0.2, abs=0.015)


def test_every_part_is_dropped_on_its_own():
    objective = Objective(drop_text=0, drop_anchor=0, drop_both=0, drop_part=0.2, label_noise=0)
    anchors, _ = draw_conditions([FULL] * 5_000, generator(), objective)
    has = torch.tensor([[a.horizon is not None, a.tilt_deg is not None, a.subject_x is not None,
                         a.subject_y is not None] for a in anchors]).float()  # fmt: skip
    assert_close(has.mean(0), torch.full((4,), 0.8), rtol=0, atol=0.02)
    assert torch.corrcoef(has.T).fill_diagonal_(0).abs().max() < 0.05


def test_label_noise_has_its_size_and_stays_in_range():
    objective = Objective(drop_text=0, drop_anchor=0, drop_both=0, drop_part=0)
    edge = Anchor(horizon=0.5, tilt_deg=30.0, subject_x=0.0, subject_y=1.0)
    anchors, _ = draw_conditions([edge] * 5_000, generator(), objective)
    heights = torch.tensor([anchor.horizon for anchor in anchors])
    assert float(heights.std()) == pytest.approx(0.01, rel=0.1)
    assert max(anchor.tilt_deg for anchor in anchors) == 30.0  # Anchor itself refuses more
    assert min(anchor.subject_x for anchor in anchors) == 0.0


def test_open_parts_stay_open():
    anchors, _ = draw_conditions([Anchor(horizon=0.5)] * 20, generator(), Objective())
    assert all(anchor.subject_x is None and anchor.tilt_deg is None for anchor in anchors)


def test_the_loss_is_in_units_of_the_noise():
    x0 = torch.zeros(2, 4, 2, 2)
    x0_hat = torch.tensor([1.0, 4.0])[:, None, None, None].expand(2, 4, 2, 2)
    sigma = torch.tensor([1.0, 2.0])
    assert float(denoising_loss(x0_hat, x0, sigma)) == pytest.approx((1 + 4) / 2)
    weight = torch.tensor([1.0, 0.5])
    assert float(denoising_loss(x0_hat, x0, sigma, weight)) == pytest.approx((1 + 2) / 2)


def test_information_gain_by_hand():
    assert information_gain(1.5, 1.0) == pytest.approx(0.5)
    assert information_gain(1.0, 1.0) == 0.0


def test_shuffling_moves_every_anchor_to_another_picture():
    anchors = tuple(Anchor(horizon=y) for y in (0.9, 0.1, 0.5, 0.3, 0.7))
    moved = shuffled(anchors)
    assert sorted(a.horizon for a in moved) == sorted(a.horizon for a in anchors)
    assert all(abs(a.horizon - b.horizon) > 0.3 for a, b in zip(anchors, moved, strict=True))


def test_the_gauge_tells_a_denoiser_that_heeds_anchors_from_one_that_does_not():
    heights = (0.2, 0.4, 0.6, 0.8)
    x0 = torch.tensor(heights)[:, None, None, None].expand(4, 4, 2, 2)
    gauge = Gauge(
        x0=x0, noise=torch.randn(x0.shape, generator=generator()), texts=(0,) * 4,
        anchors=tuple(Anchor(horizon=y) for y in heights), sigma=5.0, chunk=3,
    )  # fmt: skip

    def heeds(x, sigma, texts, anchors):
        guess = torch.tensor([anchor.horizon for anchor in anchors])[:, None, None, None]
        return guess.expand_as(x) + 0.1

    assert gauge.read(heeds) > 5
    assert gauge.read(lambda x, sigma, texts, anchors: x * 0.5) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"drop_text": 1.5}, "drop_text is 1.5, a share of 0 to 1"),
        ({"drop_text": 0.6, "drop_anchor": 0.6}, "the three drops add up to 1.25"),
    ],
)
def test_impossible_shares_are_refused(shares, words):
    with pytest.raises(ValueError, match=words):
        Objective(**shares)
