"""What an edit does with predictions, states and masks: by hand, neutral, per picture, refusals."""

import math

import pytest
import torch
from torch.testing import assert_close

from veduta.models.common.noise_space import NoiseSpace
from veduta.models.inversion.editing.concepts import ConceptRule, concept_term
from veduta.models.inversion.editing.flow_edit import flow_edit
from veduta.models.inversion.editing.guidance import (
    Shaping,
    cfg_plus_plus_scale,
    quantiles,
    sharpened,
    strongest,
)
from veduta.models.inversion.editing.masks import (
    GatheredPlaces,
    blended,
    feathered,
    latent_mask,
    mask_at,
    over_frames,
    smoothed,
    strong_places,
)
from veduta.models.inversion.editing.progress import share_done, source_state
from veduta.models.inversion.editing.tune import least_reaching
from veduta.models.inversion.trajectory import Inversion, Source

SIGMAS = (4.0, 2.0, 1.0, 0.0)
VE = NoiseSpace(flow=False)
FLOW = NoiseSpace(flow=True)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inversion(states=None):
    states = draws(4, 1, 2, 3, 3) if states is None else states
    source = Source(model="SD15", weights=(), latent="")
    return Inversion(
        method="", space=VE, sigmas=SIGMAS, noise=states[0], clean=states[-1], states=states,
        calls=0, source=source,
    )  # fmt: skip


def test_sharpening_by_hand():
    found = sharpened(torch.tensor([[-1.0, 2.0, 4.0, 0.0]]), 2.0)
    assert_close(found, torch.tensor([[-0.25, 1.0, 4.0, 0.0]]))


def test_threshold_by_hand():
    found = strongest(torch.tensor([[-1.0, 2.0, -4.0, 3.0]]), 0.5)
    assert_close(found, torch.tensor([[0.0, 0.0, -4.0, 3.0]]))


def test_default_shaping_is_plain_guidance():
    x = draws(2, 4, 3, 3)
    assert Shaping().is_neutral
    assert Shaping()(x) is x
    assert not Shaping(threshold=0.1).is_neutral


@pytest.mark.parametrize("shaping", [Shaping(power=1.5), Shaping(threshold=0.7)])
def test_each_picture_is_shaped_on_its_own(shaping):
    x = draws(2, 4, 3, 3) * torch.tensor([1.0, 100.0]).view(2, 1, 1, 1)
    before = x.clone()
    assert torch.equal(shaping(x), torch.cat([shaping(x[:1]), shaping(x[1:])]))
    assert torch.equal(x, before)
    assert shaping(torch.zeros_like(x)).abs().max() == 0


def test_quantiles_agree_with_torch():
    rows = draws(3, 101)
    assert_close(quantiles(rows, 0.7), rows.quantile(0.7, dim=1))
    assert_close(quantiles(rows, 1.0), rows.amax(1))


@pytest.mark.parametrize("space", [VE, FLOW])
@pytest.mark.parametrize(("sigma", "lower"), [(0.8, 0.5), (0.3, 0.0)])
def test_cfg_plus_plus_is_its_two_line_step(space, sigma, lower):
    x, cond, uncond = draws(3, 1, 4, 2, 2)
    guided = torch.lerp(uncond, cond, 0.6)
    noise = space.noise_in(x, uncond, sigma)
    expected = space.noisy(guided, noise, lower)
    scale = cfg_plus_plus_scale(0.6, lower / sigma, space.alpha(lower))
    denoised = uncond + scale * (cond - uncond)
    assert_close(x + (lower - sigma) * (x - denoised) / sigma, expected)


def test_a_strong_place_is_found_with_its_neighbours():
    x = torch.zeros(1, 2, 8, 8)
    x[0, :, 2, 5] = torch.tensor([3.0, -3.0])  # channels must not cancel
    mask = strong_places(x, 1 - 9 / 64)
    assert mask.shape == (1, 1, 8, 8)
    assert mask[0, 0, 1:4, 4:7].min() == 1
    assert mask.sum() == 9


def test_every_step_weighs_the_same_in_what_is_gathered():
    places = GatheredPlaces(0.9)
    with pytest.raises(RuntimeError, match="no step has been added"):
        places.mask()
    weak, strong = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    weak[..., 0, 0], strong[..., 7, 7] = 1.0, 1000.0
    places.add(strong)
    places.add(weak)
    places.add(weak)
    mask = places.mask()
    assert mask.shape == (1, 1, 8, 8)
    assert mask[0, 0, 0, 0] == mask[0, 0, 7, 7] == 1
    assert mask.sum() < 9


def test_a_mask_serves_every_frame():
    mask = torch.rand(2, 1, 3, 4)
    assert torch.equal(over_frames(mask, 4), mask)
    assert over_frames(mask, 5).shape == (2, 1, 1, 3, 4)
    found = torch.rand(2, 1, 6, 3, 4)  # gathered from a video: a mask of each frame
    assert torch.equal(over_frames(found, 5), found)


def test_smoothing_keeps_a_constant_and_its_frames():
    assert_close(smoothed(torch.full((1, 1, 3, 4, 5), 2.0)), torch.full((1, 1, 3, 4, 5), 2.0))


def test_a_place_may_change_as_much_as_any_of_its_pixels():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3, 9] = 0.5
    assert latent_mask(mask, 2, 2).flatten().tolist() == [0.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 4, 5, 3, 3)])
def test_blending_is_exact_on_both_sides(shape):
    edited, source = draws(*shape), draws(*shape, seed=1)
    mask = torch.tensor([[1.0, 0.5, 0.0]]).expand(1, 1, 3, 3)
    found = blended(edited, source, mask)
    assert torch.equal(found[..., 0], edited[..., 0])
    assert torch.equal(found[..., 2], source[..., 2])
    assert_close(found[..., 1], (edited + source)[..., 1] / 2)


def test_a_faint_mask_is_let_go_late():
    mask = torch.tensor([0.0, 0.25, 1.0])
    assert mask_at(mask, 0.0).tolist() == [0, 0, 1]
    assert mask_at(mask, 0.75).tolist() == [0, 1, 1]
    assert mask_at(mask, 1.0).tolist() == [0, 1, 1]


def test_a_feathered_mask_touches_nothing_outside():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:13, 4:13] = 1.0
    soft = feathered(mask, 2)
    assert feathered(mask, 0) is mask
    assert soft[mask == 0].max() == 0
    assert soft[0, 0, 8, 8] == 1
    assert 0 < soft[0, 0, 4, 8] < soft[0, 0, 5, 8] < 1
    assert feathered(torch.ones(1, 1, 8, 8), 2).min() == 1  # the frame is no edge


def test_a_concept_by_hand():
    with_it, without = torch.full((1, 2, 4, 4), 3.0), torch.ones(1, 2, 4, 4)
    everywhere = ConceptRule(weight=-0.5, threshold=0.0)
    assert_close(concept_term(with_it, without, everywhere), torch.full((1, 2, 4, 4), -1.0))
    with_it[..., 0, 0] = 50.0
    found = concept_term(with_it, without, ConceptRule(weight=1.0, threshold=0.9))
    assert found[..., 0, 0].tolist() == [[49.0, 49.0]]
    assert found[..., 3, 3].abs().max() == 0


def test_a_concept_stays_inside_its_mask():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1.0
    rule = ConceptRule(weight=1.0, threshold=0.0)
    found = concept_term(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), rule, mask)
    assert torch.equal(found, mask.expand(2, 3, 4, 4))


def test_a_concept_waits_and_rests():
    rule = ConceptRule(start_percent=0.2, end_percent=0.8)
    assert [rule.acts_at(share) for share in (0.1, 0.2, 0.79, 0.8)] == [False, True, True, False]
    assert not ConceptRule(weight=0.0).acts_at(0.5)
    with pytest.raises(
        ValueError, match=r"start_percent is 0.5, end_percent is 0.5, so the concept"
    ):
        ConceptRule(start_percent=0.5, end_percent=0.5)


@pytest.mark.parametrize(
    ("sigma", "share"),
    [(9.0, 0.0), (4.0, 0.0), (3.0, 1 / 6), (2.0, 1 / 3), (0.5, 5 / 6), (0.0, 1.0)],
)
def test_share_of_the_steps_done(sigma, share):
    assert share_done(sigma, SIGMAS) == pytest.approx(share)


def test_the_sources_state_at_and_between_levels():
    kept = inversion()
    assert torch.equal(source_state(kept, 2.0 * (1 + 1e-6)), kept.states[1])
    assert torch.equal(source_state(kept, 0.0), kept.states[3])
    assert_close(source_state(kept, 1.25), 0.25 * kept.states[1] + 0.75 * kept.states[2])


def towards(mean):
    """The denoiser of a gaussian about `mean` of spread 0.5, on flow and VE alike: a stiff pull."""
    return lambda x, sigma: x + (mean - x) * sigma / (sigma + 0.5)


@pytest.mark.parametrize("space", [VE, FLOW])
def test_flow_edit_between_equal_prompts_changes_nothing(space):
    clean = draws(2, 3, 4, 4)
    found = flow_edit(towards(1.0), towards(1.0), clean, (0.9, 0.5, 0.2, 0.0), space, seed=3)
    assert_close(found, clean)


@pytest.mark.parametrize("space", [VE, FLOW])
def test_flow_edit_follows_its_loop(space):
    clean, sigmas = draws(1, 2, 2, 2).double(), (1.0, 0.6, 0.3, 0.0)
    found = flow_edit(towards(0.0), towards(2.0), clean, sigmas, space, seed=3, draws=2)
    generator = torch.Generator().manual_seed(3)
    z = clean
    for high, low in ((1.0, 0.6), (0.6, 0.3), (0.3, 0.0)):
        slope = 0
        for _ in range(2):
            n = torch.randn(2, 2, 2, generator=generator).double()
            alpha = 1 - high if space.flow else 1
            z_s = alpha * clean + high * n
            z_t = z + z_s - clean
            slope = slope + (z_t - towards(2.0)(z_t, high)) / high / 2
            slope = slope - (z_s - towards(0.0)(z_s, high)) / high / 2
        z = z + (low - high) * slope
    assert_close(found, z)
    assert found.mean() > clean.mean()


def test_flow_edit_of_a_batch_is_that_of_its_pictures():
    clean, sigmas = draws(2, 2, 2, 2), (0.8, 0.4, 0.0)

    def edited(x, seed):
        return flow_edit(towards(0.0), towards(2.0), x, sigmas, FLOW, seed=seed)

    assert_close(edited(clean, 5), torch.cat([edited(clean[:1], 5), edited(clean[1:], 6)]))


def test_flow_edit_tells_every_new_state():
    seen = []
    flow_edit(
        towards(0.0), towards(1.0), draws(1, 1, 2, 2), (0.8, 0.4, 0.0), FLOW, seed=0,
        after_step=lambda i, x: seen.append(i) or x,
    )  # fmt: skip
    assert seen == [1, 2]


def test_flow_edit_refuses_rising_levels():
    with pytest.raises(ValueError, match="do not descend"):
        flow_edit(towards(0), towards(1), draws(1, 1, 2, 2), (0.0, 0.5), FLOW, seed=0)


def test_bisection_finds_the_weakest_that_is_enough():
    asked = []
    setting, value = least_reaching(lambda s: asked.append(s) or 10 * s, 6.0, 0.0, 1.0)
    assert setting == pytest.approx(0.6, abs=1 / 64)
    assert value == 10 * setting >= 6.0
    assert len(asked) == 8


def test_bisection_at_its_ends():
    assert least_reaching(lambda s: s, -1.0, 0.0, 1.0) == (0.0, 0.0)
    assert least_reaching(lambda s: s, math.inf, 0.0, 1.0) == (1.0, 1.0)
