"""Anchors between key anchors."""

import pytest

from veduta.models.common.anchor import Anchor
from veduta.models.common.anchor_sequence import EASINGS, anchor_sequence

LOW = Anchor(horizon=0.2, tilt_deg=-10.0, subject_x=0.1, subject_y=0.9)
HIGH = Anchor(horizon=0.8, tilt_deg=10.0, subject_x=0.7, subject_y=0.3)


def test_the_middle_frame_lies_half_way():
    middle = anchor_sequence([LOW, HIGH], 3, "linear")[1]
    assert middle.horizon == pytest.approx(0.5)
    assert middle.tilt_deg == pytest.approx(0.0)
    assert middle.subject_x == pytest.approx(0.4)
    assert middle.subject_y == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("easing", "heights"), [("linear", [0.2, 0.35, 0.5, 0.65, 0.8]),
                            ("smooth", [0.2, 0.29375, 0.5, 0.70625, 0.8])],
)  # fmt: skip
def test_horizons_by_hand(easing: str, heights: list[float]):
    made = anchor_sequence([LOW, HIGH], 5, easing)
    assert [anchor.horizon for anchor in made] == pytest.approx(heights)


@pytest.mark.parametrize("easing", EASINGS)
@pytest.mark.parametrize("frames", [3, 4, 7, 8, 4096])
def test_first_and_last_are_the_keys_themselves(easing: str, frames: int):
    keys = [LOW, Anchor(horizon=0.31), HIGH]
    made = anchor_sequence(keys, frames, easing)
    assert len(made) == frames
    assert made[0] is keys[0] and made[-1] is keys[-1]


def test_keys_lie_at_equal_distances():
    keys = [LOW, Anchor(horizon=0.5), HIGH, LOW]
    made = anchor_sequence(keys, 10, "smooth")
    assert [made[index] for index in (0, 3, 6, 9)] == keys


def test_as_many_frames_as_keys_are_the_keys():
    assert anchor_sequence([LOW, HIGH, LOW], 3, "linear") == (LOW, HIGH, LOW)


def test_an_open_part_is_open_up_to_the_next_key_that_has_it():
    keys = [Anchor(horizon=0.2, tilt_deg=0.0), Anchor(horizon=0.4), Anchor(horizon=0.4, tilt_deg=8)]
    made = anchor_sequence(keys, 5, "linear")
    assert [anchor.tilt_deg for anchor in made] == [0.0, None, None, None, 8]
    assert [anchor.horizon for anchor in made] == pytest.approx([0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("easing", EASINGS)
def test_a_moving_part_never_turns_back(easing: str):
    heights = [anchor.horizon for anchor in anchor_sequence([LOW, HIGH], 50, easing)]
    assert heights == sorted(heights)


def test_one_key_is_too_few():
    with pytest.raises(ValueError, match="anchor holds 1 key frame, two at least are needed"):
        anchor_sequence([LOW], 4, "linear")


def test_fewer_frames_than_keys_are_refused():
    with pytest.raises(ValueError, match="frames is 2, anchor holds 3 key frames"):
        anchor_sequence([LOW, HIGH, LOW], 2, "linear")
