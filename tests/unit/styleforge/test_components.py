"""Components as slices of one LoRA: joined, cut and weighted without a trace."""

import pytest
import torch
from torch.testing import assert_close

from veduta.models.styleforge.components import (
    merge_slices,
    read_strengths,
    split_slices,
    weight_slices,
)

NAMES = ("shared", "people", "backgrounds")


def part(rank, alpha, seed, layer="lora_unet_a", inner=5, outer=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.lora_down.weight": torch.randn(rank, inner, generator=generator),
        f"{layer}.lora_up.weight": torch.randn(outer, rank, generator=generator),
        f"{layer}.alpha": torch.tensor(float(alpha)),
    }


def delta(tensors, layer="lora_unet_a"):
    down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
    scale = tensors[f"{layer}.alpha"].double() / down.shape[0]
    return scale * up.flatten(1).double() @ down.flatten(1).double()


def whole():
    parts = [part(2, 3.0, seed) for seed in range(3)]
    return merge_slices(parts) | part(4, 4.0, 9, "lora_te_b")


def test_one_lora_is_the_sum_of_its_parts():
    parts = [part(2, 2.0, 0), part(3, 6.0, 1), part(1, 1.0, 2)]
    merged = merge_slices(parts)
    assert merged["lora_unet_a.lora_down.weight"].shape == (6, 5)
    assert_close(delta(merged), sum(delta(one) for one in parts), rtol=1e-6, atol=1e-6)


def test_cut_and_joined_again_it_is_the_same():
    tensors = whole()
    parts = split_slices(tensors, NAMES)
    assert list(parts) == list(NAMES)
    again = merge_slices(list(parts.values()))
    assert all(torch.equal(value, tensors[name]) for name, value in again.items())
    assert not any(name.startswith("lora_te") for one in parts.values() for name in one)


def test_all_strengths_1_change_nothing():
    tensors = whole()
    same = weight_slices(tensors, NAMES, dict.fromkeys(NAMES, 1.0))
    assert same.keys() == tensors.keys()
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_strength_0_is_the_file_without_that_slice():
    tensors = whole()
    without = weight_slices(tensors, NAMES, {"people": 0.0})
    parts = split_slices(tensors, NAMES)
    other = merge_slices([parts["shared"], parts["backgrounds"]])
    assert all(torch.equal(without[name], other[name]) for name in other)
    assert torch.equal(without["lora_te_b.alpha"], tensors["lora_te_b.alpha"])
    assert without["lora_unet_a.lora_down.weight"].shape[0] == 4


def test_strengths_scale_their_slice_alone():
    tensors, parts = whole(), split_slices(whole(), NAMES)
    before = {name: value.clone() for name, value in tensors.items()}
    found = delta(weight_slices(tensors, NAMES, {"people": 0.5, "backgrounds": -2.0}))
    wanted = delta(parts["shared"]) + 0.5 * delta(parts["people"]) - 2 * delta(parts["backgrounds"])
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_all_strengths_0_leave_the_text_alone():
    left = weight_slices(whole(), NAMES, dict.fromkeys(NAMES, 0.0))
    assert {name.partition(".")[0] for name in left} == {"lora_te_b"}


def test_strengths_are_read_as_people_write_them():
    assert read_strengths("") == {}
    wanted = {"people": 1.0, "far hills": 0.5, "sky": -0.25}
    assert read_strengths("people 1, far hills: 0.5\n sky = -.25 ") == wanted


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: read_strengths("people"), "components hold 'people', a name and a number"),
        (
            lambda: weight_slices(whole(), NAMES, {"cats": 1.0}),
            "name 'cats', this style has shared, people, backgrounds",
        ),
        (lambda: split_slices(whole(), ("a", "b", "c", "d")), "has rank 6, which cannot be cut"),
    ],
)
def test_what_cannot_be_weighted_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
