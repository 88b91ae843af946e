"""Guidance with two scales: its exact identities, and what it leaves out."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from veduta.models.common.guidance import Branch, Scales, plan_guidance

BOTH, TEXT, NEGATIVE = Branch.BOTH, Branch.TEXT, Branch.NEGATIVE
SHAPE = (2, 4, 3, 5)


def predictions(dtype: torch.dtype = torch.float64) -> dict[Branch, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {branch: torch.randn(SHAPE, generator=generator, dtype=dtype) for branch in Branch}


def guided(scales: Scales, made: dict[Branch, Tensor], **options: bool) -> Tensor:
    """What plain CFG makes of the plan, as core computes it."""
    plan = plan_guidance(scales, **options)
    zeros = torch.zeros_like(made[TEXT])  # core's prediction of a branch that is left out
    given = [zeros if branch is None else made[branch] for branch in plan.branches]
    cond, uncond = plan.fold(given)
    return uncond + (cond - uncond) * plan.scale


def by_the_book(text: float, extra: float, made: dict[Branch, Tensor]) -> Tensor:
    both, alone, negative = made[BOTH], made[TEXT], made[NEGATIVE]
    return negative + text * (alone - negative) + extra * (both - alone)


@pytest.mark.parametrize("keep_negative", [False, True])
@pytest.mark.parametrize("extra", [0.0, 0.3, 1.0, 2.0, 7.5])
@pytest.mark.parametrize("text", [0.0, 0.3, 1.0, 2.0, 7.5])
def test_every_pair_of_scales_is_the_chain(text: float, extra: float, keep_negative: bool):
    made = predictions()
    result = guided(Scales(text=text, extra=extra), made, keep_negative=keep_negative)
    assert_close(result, by_the_book(text, extra, made))


def test_one_number_by_hand():
    made = {BOTH: torch.tensor(7.0), TEXT: torch.tensor(3.0), NEGATIVE: torch.tensor(1.0)}
    assert guided(Scales(text=2.0, extra=3.0), made) == 1 + 2 * (3 - 1) + 3 * (7 - 3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_without_extra_it_is_plain_cfg_to_the_bit(scale: float):
    made = predictions(torch.float32)
    cond, uncond = made[TEXT], made[NEGATIVE]
    expected = cond if scale == 1 else uncond + (cond - uncond) * scale
    assert torch.equal(guided(Scales(text=scale, extra=0.0), made), expected)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_equal_scales_are_joint_to_the_bit(scale: float):
    made = predictions(torch.float32)
    apart = guided(Scales(text=scale, extra=scale), made)
    joint = guided(Scales(text=scale, extra=9.0, joint=True), made)
    cond, uncond = made[BOTH], made[NEGATIVE]
    assert torch.equal(apart, joint)
    assert torch.equal(joint, cond if scale == 1 else uncond + (cond - uncond) * scale)


def test_scales_of_one_are_the_conditional_prediction():
    made = predictions(torch.float32)
    assert torch.equal(guided(Scales(text=1.0, extra=1.0), made), made[BOTH])


@pytest.mark.parametrize(
    ("scales", "options", "branches"),
    [
        (Scales(text=4.0, extra=0.0), {}, (TEXT, NEGATIVE)),
        (Scales(text=1.0, extra=0.0), {}, (TEXT, None)),
        (Scales(text=1.0, extra=0.0), {"keep_negative": True}, (TEXT, NEGATIVE)),
        (Scales(text=4.0, extra=4.0), {}, (BOTH, NEGATIVE)),
        (Scales(text=1.0, extra=1.0), {}, (BOTH, None)),
        (Scales(text=1.0, extra=1.0), {"keep_negative": True}, (BOTH, NEGATIVE)),
        (Scales(text=1.0, extra=3.0), {}, (BOTH, TEXT)),
        (Scales(text=1.0, extra=3.0), {"keep_negative": True}, (BOTH, NEGATIVE, TEXT)),
        (Scales(text=4.0, extra=2.0), {}, (BOTH, NEGATIVE, TEXT)),
        (Scales(text=0.0, extra=2.0), {}, (BOTH, NEGATIVE, TEXT)),
        (Scales(text=4.0, extra=2.0, joint=True), {}, (BOTH, NEGATIVE)),
        (Scales(text=4.0, extra=2.0), {"extra_holds": False}, (TEXT, NEGATIVE)),
        (Scales(text=4.0, joint=True), {"extra_holds": False}, (TEXT, NEGATIVE)),
        (Scales(text=1.0, extra=2.0), {"extra_holds": False}, (TEXT, None)),
    ],
)
def test_only_what_the_scales_need_is_evaluated(scales, options, branches):
    assert plan_guidance(scales, **options).branches == branches


def test_predictions_are_left_as_they_are():
    made = predictions()
    before = {branch: tensor.clone() for branch, tensor in made.items()}
    guided(Scales(text=4.0, extra=2.0), made)
    assert all(torch.equal(made[branch], before[branch]) for branch in Branch)
