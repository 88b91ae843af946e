"""Errors, thirds, score, ranking, control statistics and the tables that show them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from veduta.models.common.anchor import Anchor
from veduta.models.composition.control import control_by_part, control_statistics
from veduta.models.composition.score import (
    ScoreWeights,
    check_wanted,
    part_errors,
    rank_best_first,
    score_composition,
)
from veduta.models.composition.tables import (
    control_table,
    describe_anchor,
    format_table,
    measure_table,
    ranking_table,
)
from veduta.models.composition.thirds import thirds_alignment, thirds_score

SQUARE = 1.0
WANTED = Anchor(horizon=0.4, tilt_deg=0.0, subject_x=0.5, subject_y=0.5)


def test_errors_by_hand():
    found = Anchor(horizon=0.45, tilt_deg=-3.0, subject_x=0.8, subject_y=0.9)
    errors = part_errors(found, WANTED, aspect=SQUARE)
    assert errors.horizon == pytest.approx(0.05)
    assert errors.tilt_deg == pytest.approx(3.0)
    assert errors.subject == pytest.approx(0.5 / math.sqrt(2))  # 3-4-5 over the diagonal
    assert errors.missing == ()


def test_subject_distance_is_measured_in_the_real_shape_of_the_picture():
    wide = part_errors(Anchor(subject_x=0.6, subject_y=0.5), WANTED, aspect=3.0).subject
    assert wide == pytest.approx(0.3 / math.sqrt(10))


def test_parts_not_asked_for_have_no_error():
    errors = part_errors(WANTED, Anchor(horizon=0.4), SQUARE)
    assert (errors.tilt_deg, errors.subject) == (None, None)


def test_a_column_alone_ignores_the_height():
    errors = part_errors(Anchor(subject_x=0.5, subject_y=0.9), Anchor(subject_x=0.5), SQUARE)
    assert errors.subject == 0.0


def test_what_was_not_found_is_the_worst_error():
    errors = part_errors(Anchor(), WANTED, SQUARE)
    assert (errors.horizon, errors.tilt_deg, errors.subject) == (1.0, 60.0, 1.0)
    assert errors.missing == ("horizon", "tilt", "subject")


def test_hiding_the_horizon_never_pays():
    far = Anchor(horizon=1.0, tilt_deg=30.0, subject_x=0.0, subject_y=0.0)
    wanted = Anchor(horizon=0.0, tilt_deg=-30.0, subject_x=1.0, subject_y=1.0)
    hidden = score_composition(Anchor(), wanted, SQUARE).total
    assert hidden <= score_composition(far, wanted, SQUARE).total + 1e-12


def test_exactly_as_wanted_scores_one():
    assert score_composition(WANTED, WANTED, SQUARE).total == 1.0


def test_score_by_hand():
    # horizon off by one scale (weight 2), tilt exact (1), subject exact (2)
    found = Anchor(horizon=0.5, tilt_deg=0.0, subject_x=0.5, subject_y=0.5)
    assert score_composition(found, WANTED, SQUARE).total == pytest.approx((2 / math.e + 3) / 5)


def test_weights_are_used():
    found = Anchor(horizon=0.5, tilt_deg=0.0)
    wanted = Anchor(horizon=0.4, tilt_deg=0.0)
    only_tilt = ScoreWeights(horizon=0.0)
    assert score_composition(found, wanted, SQUARE, only_tilt).total == 1.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_nearer_is_never_worse(one, other):
    wanted = Anchor(horizon=0.4)
    near, far = sorted((one, other), key=lambda y: abs(y - 0.4))
    scores = [score_composition(Anchor(horizon=y), wanted, SQUARE).total for y in (near, far)]
    assert scores[0] >= scores[1]


def test_asking_for_nothing_is_refused():
    with pytest.raises(ValueError, match=r"anchor asks for nothing.*switch one of them on"):
        score_composition(WANTED, Anchor(), SQUARE)


def test_one_open_anchor_among_several_is_refused_at_once():
    check_wanted([WANTED, Anchor(tilt_deg=0.0)])
    with pytest.raises(ValueError, match="anchor asks for nothing"):
        check_wanted([WANTED, Anchor()])


@pytest.mark.parametrize(
    "weights",
    [{"horizon": -1.0}, {"horizon": 0.0, "tilt": 0.0, "subject": 0.0}, {"subject_scale": 0.0}],
)
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="needed"):
        ScoreWeights(**weights)


def test_ranking_is_best_first_and_stable():
    assert rank_best_first([0.2, 0.9, 0.2, 0.5]) == (1, 3, 0, 2)


def test_thirds_by_hand():
    assert thirds_score(0.0) == 1.0
    assert thirds_score(0.07) == pytest.approx(math.exp(-0.5))
    found = thirds_alignment(Anchor(horizon=0.6, subject_x=0.3, subject_y=0.7), SQUARE)
    assert found.horizon_distance == pytest.approx(2 / 3 - 0.6)
    assert found.subject_distance == pytest.approx(1 / 30)
    assert (found.is_horizon_near, found.is_subject_near) == (False, True)


def test_a_centred_horizon_is_the_farthest_from_the_thirds():
    centred = thirds_alignment(Anchor(horizon=0.5), SQUARE)
    assert centred.horizon_distance == pytest.approx(1 / 6)
    assert centred.horizon_score == pytest.approx(math.exp(-(1 / 36) / (2 * 0.07**2)))


def test_nothing_found_is_not_on_a_third():
    found = thirds_alignment(Anchor(), SQUARE)
    assert found.horizon_score is None and found.subject_score is None
    assert not found.is_horizon_near and not found.is_subject_near


TARGETS = list(np.linspace(0.15, 0.85, 12))


def test_perfect_control():
    control = control_statistics(TARGETS, TARGETS)
    assert control.gain == pytest.approx(1.0)
    assert control.rho == pytest.approx(1.0)
    assert control.mean_error == pytest.approx(0.0)
    assert control.shuffled_p == 1 / 10000  # no shuffling is as good
    assert control.abstention == 0.0


def test_gain_rho_and_error_against_independent_references():
    generator = np.random.default_rng(3)
    measured = 0.3 + 0.5 * np.array(TARGETS) + generator.normal(0, 0.1, len(TARGETS))
    control = control_statistics(TARGETS, list(measured))
    assert control.gain == pytest.approx(np.polyfit(TARGETS, measured, 1)[0])
    assert control.rho == pytest.approx(stats.spearmanr(TARGETS, measured).statistic)
    assert control.mean_error == pytest.approx(np.mean(np.abs(measured - TARGETS)))


def test_permutation_p_against_all_orders():
    # four pictures, 24 orders: only the true one is as large, so p is near 1 in 24
    control = control_statistics([0.2, 0.4, 0.6, 0.8], [0.1, 0.5, 0.55, 0.9])
    assert control.shuffled_p == pytest.approx(1 / 24, abs=0.01)


def test_pictures_that_ignore_the_anchor_have_no_control():
    control = control_statistics(TARGETS, [0.5] * 12)
    assert (control.gain, control.rho) == (0.0, 0.0)
    assert control.shuffled_p == 1.0


def test_control_the_wrong_way_round_is_not_control():
    assert control_statistics(TARGETS, TARGETS[::-1]).shuffled_p > 0.99


def test_a_constant_offset_does_not_hide_control():
    control = control_statistics(
        [0.1, 0.15, 0.2, 0.25, 0.3, 0.05], [0.8, 0.85, 0.9, 0.95, 1.0, 0.75]
    )
    assert control.gain == pytest.approx(1.0)
    assert control.shuffled_p < 0.01
    assert control.mean_error == pytest.approx(0.7)


def test_shuffling_is_seeded():
    generator = np.random.default_rng(1)
    measured = list(generator.uniform(size=12))
    values = [control_statistics(TARGETS, measured, seed).shuffled_p for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_abstention_leaves_pairs_out():
    control = control_statistics([0.2, 0.4, 0.6, 0.8, None], [0.2, None, 0.6, 0.8, 0.1])
    assert control.requested == 4
    assert control.abstention == 0.25
    assert control.gain == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("requested", "measured"),
    [([0.2, 0.8], [0.2, 0.8]), ([0.4, 0.4, 0.4], [0.1, 0.2, 0.3]), ([0.2, 0.8], [None, None])],
)
def test_too_little_to_say_is_none(requested, measured):
    control = control_statistics(requested, measured)
    assert (control.gain, control.rho, control.shuffled_p) == (None, None, None)


def test_unpaired_and_empty_lists_are_refused():
    with pytest.raises(ValueError, match="requested holds 1 values, measured holds 2"):
        control_statistics([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match="nothing is requested"):
        control_statistics([None], [0.1])


def test_only_parts_that_differ_are_tested_for_control():
    wanted = [Anchor(horizon=y, tilt_deg=0.0) for y in (0.2, 0.5, 0.8)]
    assert set(control_by_part(wanted, wanted)) == {"horizon"}
    assert control_by_part([WANTED] * 3, wanted) == {}


def test_tables_are_of_fixed_width():
    lines = format_table(["a", "bbb"], [["10", "2"], ["3", "4"]]).splitlines()
    assert lines == [" a  bbb", "--  ---", "10    2", " 3    4"]


def test_ranking_table_names_what_is_missing():
    scores = [score_composition(found, WANTED, SQUARE) for found in (Anchor(), WANTED)]
    lines = ranking_table(scores, (1, 0)).splitlines()
    assert lines[0] == "wanted: horizon 0.40, tilt 0.0 deg, subject 0.50 0.50"
    assert lines[4].split()[:3] == ["1", "1", "1.000"]
    assert lines[5].split()[3:] == ["none"] * 6 + ["-"]
    assert len({len(line) for line in lines[2:]}) == 1


def test_ranking_table_shows_each_target_when_they_differ():
    wanted = [Anchor(horizon=0.25), Anchor(horizon=0.75)]
    scores = [score_composition(WANTED, anchor, SQUARE) for anchor in wanted]
    table = ranking_table(scores, (0, 1))
    assert "0.25 - -" in table and "0.75 - -" in table


def test_measure_table_has_a_line_per_picture():
    plain = measure_table([WANTED, Anchor()], [(0.9, 0.8), (0.1, 0.0)]).splitlines()
    assert len(plain) == 4
    assert plain[3].split() == ["1", "none", "0.10", "none", "none", "0.00"]
    scored = measure_table([WANTED], [(0.9, 0.8)], [score_composition(WANTED, WANTED, SQUARE)])
    assert scored.splitlines()[2].endswith("1.000")


def test_control_table_reads():
    table = control_table({"horizon": control_statistics(TARGETS, TARGETS)})
    assert table.splitlines()[2].split() == [
        "horizon",
        "12",
        "1.00",
        "1.00",
        "0.000",
        "0.0001",
        "0%",
    ]


def test_minus_zero_is_not_shown():
    assert describe_anchor(Anchor(tilt_deg=-0.01)) == "tilt 0.0 deg"
    assert describe_anchor(Anchor(subject_x=0.3)) == "subject x 0.30"
    assert describe_anchor(Anchor()) == "nothing"
