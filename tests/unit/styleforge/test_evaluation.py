"""Style metrics: torchmetrics and explicit loops as references, intervals that cover, edges."""

import pytest
import torch
from torch import Generator
from torch.nn.functional import normalize

from veduta.models.common.metrics import MissingMetricError
from veduta.models.styleforge.evaluation import (
    MIN_FID,
    clip_score,
    closest_pair,
    cmmd,
    fid,
    kid,
    leak_rate,
    nearest_references,
    style_gain,
    style_similarity,
)


def draws(seed=0):
    return Generator().manual_seed(seed)


def features(n, d=16, mean=0.0, seed=1):
    return torch.randn(n, d, generator=draws(seed)) + mean


def test_kid_is_torchmetrics_on_features_of_length_root_d():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.kid import poly_mmd

    x, y = features(12), features(12, mean=0.4, seed=2)
    scaled = [normalize(z.double(), dim=1) * 4.0 for z in (x, y)]  # sqrt(16)
    assert kid(x, y, draws()).value == pytest.approx(1000 * float(poly_mmd(*scaled)), rel=1e-9)


def test_cmmd_of_unequal_sets_is_the_sum_over_pairs():
    x, y = features(5), features(7, mean=1.0, seed=2)
    a, b = (normalize(z.double(), dim=1) for z in (x, y))

    def mean(p, q, skip):
        found = [
            float((-(u - v).square().sum() / 200).exp())
            for i, u in enumerate(p)
            for j, v in enumerate(q)
            if not (skip and i == j)
        ]
        return sum(found) / len(found)

    expected = 1000 * (mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False))
    assert cmmd(x, y, draws()).value == pytest.approx(expected, rel=1e-9)


def test_sets_of_one_kind_are_at_distance_0_within_the_interval():
    found = kid(features(60), features(60, seed=2), draws())
    assert found.low < 0 < found.high
    apart = kid(features(60, mean=1.0), features(60, mean=-1.0, seed=2), draws())
    assert apart.low > found.high


def test_the_bootstrap_has_no_bias_of_repeated_pictures():
    found = kid(features(20), features(20, seed=2), draws())
    middle = (found.low + found.high) / 2
    assert abs(middle - found.value) < 0.25 * (found.high - found.low)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(40):
        found = clip_score_of_noise(seed)
        hits += found.low <= 50.0 <= found.high
    assert hits >= 33  # 38 expected; fewer than 33 in 1 of 200 such tests


def clip_score_of_noise(seed):
    """Pictures whose cosine with their text has the mean 0.5."""
    cosine = 0.5 + 0.1 * torch.randn(40, generator=draws(seed)).clamp(-2, 2)
    images = torch.stack([cosine, (1 - cosine.square()).sqrt()], 1)
    texts = torch.tensor([[1.0, 0.0]]).repeat(40, 1)
    return clip_score(images, texts, draws())


def test_clip_score_is_not_below_0():
    x = torch.eye(2)
    assert clip_score(x, x, draws()).value == 100.0
    assert clip_score(x, -x, draws()).value == 0.0


def test_style_gain_is_0_of_the_base_and_1_of_the_style():
    y = features(30, mean=1.0)
    base, style = features(30, mean=-0.5, seed=2), features(30, mean=1.0, seed=3)
    assert style_gain(base, base, y, draws()).value == 0.0
    assert style_gain(style, base, y, draws()).value == pytest.approx(1.0, abs=0.1)


def test_style_similarity_by_hand():
    x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert style_similarity(x, y).tolist() == pytest.approx([0.5])


def test_leaks_are_counted():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [1.0, 0.2]])
    people = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    without = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert leak_rate(images, people, without, draws()).value == 0.25


def test_the_nearest_reference_is_found():
    x, y = torch.tensor([[1.0, 0.1], [0.0, 1.0]]), torch.eye(2)
    found = nearest_references(x, y)
    assert [one.reference for one in found] == [0, 1]
    assert found[1].similarity == 1.0
    assert closest_pair(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])) == pytest.approx(
        0.5**0.5
    )


def test_fid_of_shifted_sets_is_the_squared_distance_of_their_means():
    pytest.importorskip("torchmetrics")
    x = features(MIN_FID, d=2)
    assert fid(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(25.0, abs=1e-2)


def test_fid_of_small_sets_is_refused():
    with pytest.raises(
        MissingMetricError, match="FID needs 2048 pictures on either side, there are 20"
    ):
        fid(features(20), features(3000))


def test_one_picture_has_no_distance():
    with pytest.raises(ValueError, match="1 drawn pictures and 5 references, two of each"):
        kid(features(1), features(5), draws())


def test_the_same_generator_gives_the_same_interval():
    x, y = features(8), features(8, seed=2)
    assert kid(x, y, draws()) == kid(x, y, draws())
    assert kid(x, y, draws()) != kid(x, y, draws(3))
