"""Decoupled attention by hand and against an explicit loop."""

import math

import pytest
import torch
from torch.testing import assert_close

from veduta.models.common.decoupled_attention import (
    LayerShape,
    Sight,
    TokenAdapter,
    decoupled_attention,
    place_centres,
    share_of_places,
)


def attend(q, k, v, heads):
    return decoupled_attention(q, [k], [v], heads)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def loop(q, k, v, heads):
    """Every picture, place and head on its own; k and v are (b p n d)."""
    out = torch.zeros_like(q)
    width = q.shape[-1] // heads
    for b in range(q.shape[0]):
        for p in range(q.shape[1]):
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                logits = [float(q[b, p, part] @ key[part]) / math.sqrt(width) for key in k[b, p]]
                total = sum(math.exp(logit) for logit in logits)
                for logit, value in zip(logits, v[b, p], strict=True):
                    out[b, p, part] += math.exp(logit) / total * value[part]
    return out


def test_two_keys_by_hand():
    q = torch.tensor([[[2.0, 0.0, 0.0, 0.0]]])  # width 4: logits are products / 2
    k = torch.tensor([[[math.log(3.0), 9.0, 9.0, 9.0], [0.0, 1.0, 1.0, 1.0]]])
    v = torch.tensor([[[4.0, 0.0, 0.0, 0.0], [0.0, 8.0, 0.0, 0.0]]])
    expected = torch.tensor([[[3.0, 2.0, 0.0, 0.0]]])  # 3/4 and 1/4
    assert_close(attend(q, k, v, 1), expected)
    assert_close(attend(q, k[:, None], v[:, None], 1), expected)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_own_tokens_equal_the_loop(heads):
    q, k, v = drawn(2, 3, 8), drawn(2, 3, 4, 8, seed=1), drawn(2, 3, 4, 8, seed=2)
    assert_close(attend(q, k, v, heads), loop(q, k, v, heads))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_global_tokens_equal_the_loop(heads):
    q, k, v = drawn(2, 3, 8), drawn(2, 4, 8, seed=1), drawn(2, 4, 8, seed=2)
    places = [x[:, None].expand(2, 3, 4, 8) for x in (k, v)]
    assert_close(attend(q, k, v, heads), loop(q, *places, heads))


@pytest.mark.parametrize("shape", [(1, 4, 8), (1, 3, 4, 8)])
def test_one_set_of_tokens_serves_all_pictures(shape):
    q, k, v = drawn(2, 3, 8), drawn(*shape, seed=1), drawn(*shape, seed=2)
    both = attend(q, k, v, 2)
    repeated = [x.repeat(2, *[1] * (x.ndim - 1)) for x in (k, v)]
    assert_close(both, attend(q, *repeated, 2))


@pytest.mark.parametrize("own", [False, True])
def test_one_token_is_its_value_everywhere_and_its_key_gets_no_gradient(own):
    q = drawn(1, 3, 8)
    k, v = drawn(1, 1, 8, seed=1).requires_grad_(), drawn(1, 1, 8, seed=2)
    places = (k[:, None].expand(1, 3, 1, 8), v[:, None].expand(1, 3, 1, 8)) if own else (k, v)
    out = attend(q, *places, 2)
    assert_close(out, v.expand(1, 3, 8))
    out.square().sum().backward()
    assert k.grad is not None
    assert not k.grad.any()


@pytest.mark.parametrize("shape", [(1, 2, 8), (1, 3, 2, 8)])
def test_the_keys_of_two_tokens_get_a_gradient(shape):
    k = drawn(*shape, seed=1).requires_grad_()
    attend(drawn(1, 3, 8), k, drawn(*shape, seed=2), 2).square().sum().backward()
    assert k.grad is not None
    assert k.grad.abs().min() > 0


@pytest.mark.parametrize("shape", [(1, 2, 8), (1, 3, 2, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept_and_large_logits_stay_finite(shape, dtype):
    q, k, v = (drawn(1, 3, 8) * 30).to(dtype), drawn(*shape).to(dtype), drawn(*shape).to(dtype)
    out = attend(q, k * 8, v, 2)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_inputs_stay_as_they_are():
    inputs = drawn(1, 3, 8), drawn(1, 3, 2, 8), drawn(1, 3, 2, 8)
    copies = [x.clone() for x in inputs]
    attend(*inputs, 2)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


def test_places_are_the_centres_row_by_row():
    centres = place_centres(1, 2).tolist() + place_centres(2, 1).tolist()
    assert centres == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_a_quarter_s_places_lie_in_that_quarter_of_the_frame():
    whole = place_centres(6, 8).reshape(6, 8, 2)
    part = place_centres(3, 4, (0.5, 0.0, 1.0, 0.5)).reshape(3, 4, 2)
    assert_close(part, whole[:3, 4:])


def test_keys_and_values_are_projections_of_the_tokens():
    adapter = TokenAdapter({"middle_0_0": LayerShape(6, 4)})
    tokens = torch.randn(2, 5, 3, 6)
    k, v = adapter.keys_values("middle_0_0", tokens)
    assert k.shape == v.shape == (2, 5, 3, 4)
    assert_close(k, tokens @ adapter.to_k["middle_0_0"].weight.T)
    assert_close(v, tokens @ adapter.to_v["middle_0_0"].weight.T)


def test_the_base_class_makes_no_tokens():
    with pytest.raises(NotImplementedError):
        TokenAdapter({}).tokens([Sight("anything")], 1, 1, 1.0)


def test_tokens_that_are_the_same_everywhere_may_come_as_a_part_of_their_own():
    q, own_k, own_v = drawn(2, 6, 8), drawn(2, 6, 3, 8, seed=1), drawn(2, 6, 3, 8, seed=2)
    shared_k, shared_v = drawn(2, 1, 2, 8, seed=3), drawn(2, 1, 2, 8, seed=4)
    whole_k, whole_v = (
        torch.cat([own, shared.expand(-1, 6, -1, -1)], 2)
        for own, shared in ((own_k, shared_k), (own_v, shared_v))
    )
    parts = decoupled_attention(q, [own_k, shared_k], [own_v, shared_v], 2)
    assert_close(parts, attend(q, whole_k, whole_v, 2))


def test_a_mask_s_share_of_places_by_hand():
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]])
    assert_close(share_of_places(mask, 2, 2), torch.tensor([0.75, 0.0, 0.0, 0.5]))
    right = share_of_places(mask, 2, 1, crop=(0.5, 0.0, 1.0, 1.0))
    assert_close(right, torch.tensor([0.0, 0.5]))


def test_a_mask_coarser_than_the_map_covers_whole_blocks_of_it():
    mask = torch.tensor([[1.0, 0.0]])
    assert_close(share_of_places(mask, 2, 4), torch.tensor([1.0, 1, 0, 0] * 2))
    corner = (0.9, 0.9, 1.0, 1.0)  # of less than a px of the mask
    assert_close(share_of_places(mask, 1, 1, corner), torch.tensor([0.0]))
