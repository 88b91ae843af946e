"""The anchor as each place sees it: distances by hand, symmetries, parts that are not asked for."""

import math

import pytest
import torch
from torch.testing import assert_close

from veduta.models.anchor.encoder import BANDS, TOKENS, AnchorEncoder, anchor_numbers
from veduta.models.common.anchor import Anchor
from veduta.models.common.decoupled_attention import place_centres

WIDTH = 16


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return AnchorEncoder(WIDTH).double().requires_grad_(False)


def seen(encoder, anchor, places, aspect=1.0):
    """What goes into the perceptrons of horizon and subject, and the tokens that come out."""
    numbers = anchor_numbers(anchor) if isinstance(anchor, Anchor) else torch.tensor(anchor)
    inputs = []
    hooks = [
        part.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
        for part in (encoder.horizon, encoder.subject)
    ]
    places = torch.as_tensor(places, dtype=torch.float64).reshape(1, -1, 2)
    tokens = encoder(numbers.double()[None], places, aspect)
    for hook in hooks:
        hook.remove()
    return (*inputs, tokens[0])


def distances(encoder, anchor, places, aspect=1.0):
    return seen(encoder, anchor, places, aspect)[0][:, 0]


def offsets(encoder, anchor, places, aspect=1.0):
    return seen(encoder, anchor, places, aspect)[1][:, [0, 1 + 2 * BANDS]]


def close(found, *expected):
    assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_numbers_of_an_anchor_and_which_are_asked_for():
    numbers = anchor_numbers(Anchor(horizon=0.25, tilt_deg=30.0, subject_y=0.75))
    assert_close(numbers, torch.tensor([0.25, math.pi / 6, 0.0, 0.75, 1.0, 1.0, 0.0, 1.0]))


def test_distance_to_a_level_horizon_is_the_height_below_it(encoder):
    close(
        distances(encoder, Anchor(horizon=0.4), [[0.1, 0.4], [0.9, 0.9], [0.5, 0.0]]), 0, 0.5, -0.4
    )


def test_distance_to_a_diagonal_by_hand(encoder):
    diagonal = [
        0.5,
        math.pi / 4,
        0.0,
        0.0,
        1.0,
        1.0,
        0.0,
        0.0,
    ]  # steeper than an `Anchor` may ask for
    places = [[0.75, 0.75], [1.0, 0.0], [0.0, 1.0], [0.5, 0.0]]
    found = distances(encoder, diagonal, places)
    close(found, 0.0, -math.sqrt(0.5), math.sqrt(0.5), -0.5 * math.sqrt(0.5))


def test_distance_is_euclidean_in_units_of_the_height_on_a_wide_frame(encoder):
    # a frame of 2 x 1 whose line through (1, 0.5) falls by 3 for every 4 to the right
    tilt = math.atan2(3, 4)
    anchor = [0.5, tilt, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    # 0.8 to the right and 0.6 down along the line; then 0.3 off it at a right angle: (-0.18, 0.24)
    on = ((1 + 0.4) / 2, 0.5 + 0.3)
    off = ((1 + 0.4 - 0.18) / 2, 0.5 + 0.3 + 0.24)
    close(distances(encoder, anchor, [on, off], aspect=2.0), 0.0, 0.3)


def test_distance_agrees_with_the_height_of_the_line(encoder):
    anchor = Anchor(horizon=0.3, tilt_deg=12.0)
    xs = (0.1, 0.5, 0.8)
    places = [[x, anchor.horizon_at(x, 1.7)] for x in xs]
    close(distances(encoder, anchor, places, aspect=1.7), 0.0, 0.0, 0.0)


def test_offset_to_the_subject_is_in_heights(encoder):
    found = offsets(encoder, Anchor(subject_x=0.25, subject_y=0.5), [[0.75, 0.25]], aspect=2.0)
    close(found[0], 1.0, -0.25)


def test_equal_distances_in_px_look_equal_on_any_frame(encoder):
    tall, wide = place_centres(8, 4), place_centres(8, 32)
    anchor = Anchor(horizon=0.5, subject_x=0.5, subject_y=0.5)
    narrow = seen(encoder, anchor, tall, 4 / 8)[2].reshape(8, 4, TOKENS, WIDTH)
    broad = seen(encoder, anchor, wide, 32 / 8)[2].reshape(8, 32, TOKENS, WIDTH)
    assert_close(broad[:, 14:18], narrow, atol=1e-6, rtol=0)


def test_a_mirrored_anchor_is_seen_the_same_from_mirrored_places(encoder):
    places = place_centres(4, 6).double()
    mirrored = torch.stack([1 - places[:, 0], places[:, 1]], -1)
    left = Anchor(horizon=0.3, tilt_deg=9.0, subject_x=0.2, subject_y=0.6)
    right = Anchor(horizon=0.3, tilt_deg=-9.0, subject_x=0.8, subject_y=0.6)
    assert_close(distances(encoder, left, places, 1.5), distances(encoder, right, mirrored, 1.5))
    one, other = offsets(encoder, left, places, 1.5), offsets(encoder, right, mirrored, 1.5)
    assert_close(one * torch.tensor([-1.0, 1.0]), other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("part", range(4))
def test_the_number_of_a_part_that_is_not_asked_for_means_nothing(encoder, part):
    places = place_centres(3, 3)
    asked = [float(i != part) for i in range(4)]
    numbers = [[0.4, 0.1, 0.3, 0.6, *asked] for _ in range(2)]
    numbers[1][part] = 0.25
    assert torch.equal(seen(encoder, numbers[0], places)[2], seen(encoder, numbers[1], places)[2])


@pytest.mark.parametrize("part", ["horizon", "tilt_deg", "subject_x", "subject_y"])
def test_asking_for_zero_differs_from_not_asking(encoder, part):
    places = place_centres(2, 2)
    asked, open_ = (
        seen(encoder, Anchor(**{part: 0.0}), places)[2],
        seen(encoder, Anchor(), places)[2],
    )
    token = 0 if part in ("horizon", "tilt_deg") else 1
    others = [i for i in range(TOKENS) if i != token]
    assert (asked[:, token] - open_[:, token]).abs().max() > 1e-3
    assert torch.equal(asked[:, others], open_[:, others])


def test_nothing_asked_for_looks_the_same_from_everywhere(encoder):
    tokens = seen(encoder, Anchor(), place_centres(3, 5), 5 / 3)[2]
    assert torch.equal(tokens, tokens[:1].expand_as(tokens))


def test_tokens_have_no_mean_and_unit_spread(encoder):
    tokens = seen(encoder, Anchor(horizon=0.4, subject_x=0.1, subject_y=0.9), place_centres(3, 3))[
        2
    ]
    assert tokens.shape == (9, TOKENS, WIDTH)
    assert tokens.mean(-1).abs().max() < 1e-6
    assert_close(tokens.std(-1, correction=0), torch.ones(9, TOKENS).double(), atol=0.05, rtol=0)


def test_pictures_of_a_batch_do_not_see_each_other_and_share_places_if_there_is_one_set(encoder):
    anchors = [Anchor(horizon=0.2), Anchor(), Anchor(tilt_deg=5.0, subject_x=0.7)]
    places = place_centres(2, 3).double()
    numbers = torch.stack([anchor_numbers(anchor) for anchor in anchors]).double()
    together = encoder(numbers, places[None], 1.5)
    assert together.shape == (3, 6, TOKENS, WIDTH)
    for i, anchor in enumerate(anchors):
        assert_close(together[i], seen(encoder, anchor, places, 1.5)[2])


def test_every_weight_can_learn():
    torch.manual_seed(0)
    encoder = AnchorEncoder(WIDTH)
    asked = Anchor(horizon=0.4, tilt_deg=3.0, subject_x=0.2, subject_y=0.7)
    numbers = torch.stack([anchor_numbers(anchor) for anchor in (asked, Anchor())])
    target = torch.randn(2, 4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    (encoder(numbers, place_centres(2, 2)[None], 1.0) - target).square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name
