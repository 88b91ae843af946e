"""Every inversion method on mixtures of Gaussians, whose denoiser is known exactly, in float64."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from veduta.bench._mixture import Mixture, inverted
from veduta.models.common.noise_space import NoiseSpace
from veduta.models.inversion.euler import EulerDown
from veduta.models.inversion.fixed_point import FixedPoint
from veduta.models.inversion.method import draw_noise
from veduta.models.inversion.methods import DEFAULT, METHODS, method_of
from veduta.models.inversion.rf_inversion import RfInversion

VE = NoiseSpace(flow=False)
FLOW = NoiseSpace(flow=True, variance_preserving_input=False)
SPACES = pytest.mark.parametrize("space", [VE, FLOW], ids=["ve", "flow"])
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
ROUNDING_DB = 250.0
EXACT = [m for m in METHODS.values() if m.exact]
ORDERS = {  # of the end state and of the round trip
    "ddim (paper)": (1, 1),
    "uni-inv": (1, 2),
    "midpoint": (2, 3),
    "fireflow": (2, 3),
}


def mixture(components=3, size=4):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(components, size, generator=generator, dtype=torch.float64)
    return Mixture(means, 0.5)


def schedule(space, steps, top=None):
    if space.flow:
        return [(top or 1.0) * (1 - i / steps) for i in range(steps + 1)]
    return [(top or 8.0) * (1 - i / steps) ** 2 for i in range(steps + 1)]


@pytest.fixture
def pictures():
    return mixture().draw(5, 1)[0]


@functools.cache
def true_end(space):
    """Of the fixture `pictures`, by steps so small that they are exact for the tests' purposes."""
    clean, denoise = mixture().draw(5, 1)[0], mixture().denoiser(space)
    return METHODS["midpoint"].invert(denoise, clean, schedule(space, 512), space).states[0]


def rms(x):
    return x.square().mean().sqrt().item()


def decibels(x, reference):
    return -20 * math.log10(max(rms(x - reference), 1e-300) / rms(reference))


# solvers


def line(x, sigma):
    """A denoiser by hand: D = x / 2."""
    return x / 2


def test_ddim_by_hand():
    found = METHODS["ddim (paper)"].invert(line, torch.ones(1, 1), [2.0, 1.0, 0.0], VE)
    first = 1 + 1 * (math.sqrt(2) / 2) / 1  # sees x sqrt(2) at level 1
    second = first + 1 * (first * math.sqrt(5 / 2) / 2) / 2
    assert_close(found.states.flatten(), torch.tensor([second, first, 1.0]))


def test_uni_inv_by_hand():
    found = METHODS["uni-inv"].invert(line, torch.ones(1, 1), [1.0, 0.5, 0.0], FLOW)
    d = 0.5 / 0.5  # at the picture itself, level 0.5
    d = (1 + 0.5 * d) / 2 / 0.5
    first = 1 + 0.5 * d
    d = (first + 0.5 * d) / 2 / 1.0
    assert_close(found.states.flatten(), torch.tensor([first + 0.5 * d, first, 1.0]))
    assert found.calls == 3


@SPACES
@pytest.mark.parametrize(("name", "orders"), ORDERS.items(), ids=ORDERS)
def test_order_of_convergence(space, name, orders, pictures):
    denoise, method = mixture().denoiser(space), METHODS[name]
    true = true_end(space)
    errors = []
    for steps in (32, 64):
        inversion = inverted(method, denoise, pictures, schedule(space, steps), space)
        trip = method.sample(denoise, inversion)
        errors.append((rms(inversion.noise - true), rms(trip - pictures)))
    found = [math.log2(coarse / fine) for coarse, fine in zip(*errors, strict=True)]
    assert found == pytest.approx(orders, abs=0.3)


@SPACES
def test_o_belm_and_edict_converge_too(space, pictures):
    denoise = mixture().denoiser(space)
    true = true_end(space)
    for name, order in (("o-belm (exact)", 2), ("edict (exact)", 0.5)):
        ends = [
            METHODS[name].invert(denoise, pictures, schedule(space, n), space).states[0]
            for n in (10, 20)
        ]
        coarse, fine = (rms(end - true) for end in ends)
        assert math.log2(coarse / fine) > order - 0.3


@SPACES
@pytest.mark.parametrize("method", EXACT, ids=[m.name for m in EXACT])
@pytest.mark.parametrize("tight", [False, True], ids=["loose", "tight"])
def test_exact_methods_are_exact(space, method, tight):
    oracle = mixture(components=6, size=16)
    clean, picked = oracle.draw(8, 2)
    denoise = oracle.denoiser(space, picked if tight else None)
    inversion = inverted(method, denoise, clean, schedule(space, 20), space, seed=3)
    assert decibels(method.sample(denoise, inversion), clean) > ROUNDING_DB


@SPACES
def test_a_tight_condition_helps_and_uni_inv_beats_ddim(space):
    oracle = mixture(components=24, size=32)
    clean, picked = oracle.draw(16, 4)
    found = {}
    for tight in (False, True):
        denoise = oracle.denoiser(space, picked if tight else None)
        for name in ("ddim (paper)", "uni-inv"):
            inversion = inverted(METHODS[name], denoise, clean, schedule(space, 20), space)
            found[name, tight] = decibels(METHODS[name].sample(denoise, inversion), clean)
    assert found["uni-inv", True] > found["uni-inv", False] + 3
    if space.flow:  # of VE the toy is too stiff for first-order DDIM
        assert found["ddim (paper)", True] > found["ddim (paper)", False] + 3
    assert found["uni-inv", False] > found["ddim (paper)", False] + 8


@SPACES
@EVERY
def test_partial_inversion_starts_at_the_strength(space, method, pictures):
    denoise = mixture().denoiser(space)
    sigmas = schedule(space, 12, top=0.4)
    inversion = inverted(method, denoise, pictures, sigmas, space)
    assert inversion.sigmas[0] == 0.4 and len(inversion.states) == 13
    bound = 0.6 if method.name == "rf-inversion" else 0.1  # which is not meant to rebuild
    assert rms(method.sample(denoise, inversion) - pictures) < bound


@EVERY
@pytest.mark.parametrize(("space", "top"), [(FLOW, 1.0), (VE, 4518.0)], ids=["sigma 1", "zero snr"])
def test_both_ends_are_safe(method, space, top, pictures):
    denoise = mixture().denoiser(space)
    inversion = inverted(method, denoise, pictures.float(), schedule(space, 6, top), space)
    assert inversion.states.isfinite().all()
    assert method.sample(denoise, inversion).isfinite().all()
    assert inversion.states[-1].equal(pictures.float())


@EVERY
def test_neutral_denoiser_changes_nothing_where_nothing_is_drawn(method, pictures):
    if method.stochastic:
        pytest.skip("draws noise")
    inversion = inverted(method, lambda x, sigma: x, pictures, schedule(VE, 4), VE)
    # with every slope 0 the two states of EDICT stay equal, and so do all others
    assert_close(inversion.noise, pictures)
    assert_close(method.sample(lambda x, sigma: x, inversion), pictures)


@EVERY
@SPACES
def test_batch_equals_singles(method, space, pictures):
    denoise = mixture().denoiser(space)
    together = inverted(method, denoise, pictures, schedule(space, 6), space, seed=9)
    for index, picture in enumerate(pictures):
        seed = 9 + index  # a sample's own noise
        alone = inverted(method, denoise, picture[None], schedule(space, 6), space, seed=seed)
        if not isinstance(method, FixedPoint):  # which goes on until all are done
            assert_close(together.states[:, index], alone.states[:, 0])
            assert_close(method.sample(denoise, together)[index], method.sample(denoise, alone)[0])


@EVERY
def test_same_seed_same_path_and_only_drawing_methods_heed_it(method, pictures):
    denoise = mixture().denoiser(FLOW)
    first, again, other = (
        inverted(method, denoise, pictures, schedule(FLOW, 4), FLOW, seed=seed).noise
        for seed in (7, 7, 8)
    )
    assert first.equal(again)
    assert first.equal(other) is not method.stochastic


@EVERY
def test_video_latents_pass(method):
    clean = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    inversion = inverted(method, line, clean, schedule(FLOW, 3), FLOW)
    assert inversion.states.shape == (4, 2, 2, 3, 4, 4)
    assert method.sample(line, inversion).shape == clean.shape


@EVERY
@SPACES
def test_inputs_stay_and_every_call_is_told(method, space, pictures):
    denoise, before, told = mixture().denoiser(space), pictures.clone(), []

    def observe(step, denoised, x, done, total):
        told.append((done, total))
        assert denoised.equal(denoise(x, sigma_of(step, x, denoised)))

    def sigma_of(step, x, denoised):
        return called[-1]

    called = []

    def counting(x, sigma):
        called.append(sigma)
        return denoise(x, sigma)

    inversion = inverted(method, counting, pictures, schedule(space, 4), space, observe=observe)
    assert len(called) == len(told) == inversion.calls
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][1] >= inversion.calls
    assert pictures.equal(before)
    called.clear(), told.clear()
    states = inversion.states.clone()
    method.sample(counting, inversion, observe=observe)
    assert len(called) == len(told) and told[-1][0] == told[-1][1]
    assert inversion.states.equal(states) and min(called) > 0


@EVERY
def test_after_step_sees_and_changes_new_states(method, pictures):
    denoise = mixture().denoiser(VE)
    inversion = inverted(method, denoise, pictures, schedule(VE, 5), VE)
    seen = []

    def blend(i, x):
        seen.append(i)
        return inversion.states[i]

    assert_close(method.sample(denoise, inversion, after_step=blend), pictures)
    assert sorted(set(seen)) == list(range(min(seen), 6)) and min(seen) <= 2


@EVERY
def test_start_below_the_top(method, pictures):
    denoise = mixture().denoiser(VE)
    inversion = inverted(method, denoise, pictures, schedule(VE, 16), VE)
    if method.name == "edict (exact)":
        with pytest.raises(ValueError, match="start at 0"):
            method.sample(denoise, inversion, start=8)
        return
    bound = 1e-10 if method.exact else 1.0 if method.stochastic else 0.1
    assert rms(method.sample(denoise, inversion, start=8) - pictures) < bound


@pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if isinstance(m, EulerDown)], ids=lambda m: m.name
)
def test_way_down_is_eulers(method, pictures):
    denoise = mixture().denoiser(VE)
    inversion = inverted(method, denoise, pictures, schedule(VE, 5), VE)
    x = inversion.noise
    for high, low in itertools.pairwise(inversion.sigmas):
        x = x + (low - high) * (x - denoise(x, high)) / high
    assert_close(method.sample(denoise, inversion), x)


# the guard


@SPACES
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_fixed_point_is_never_worse_than_its_first_iterate(space, iterations):
    oracle = mixture(components=24, size=16)
    clean = oracle.draw(32, 5)[0]
    denoise, sigmas = oracle.denoiser(space), schedule(space, 8)
    inversion = inverted(FixedPoint(iterations=iterations), denoise, clean, sigmas, space)
    for i in range(8):
        x, high, low = inversion.states[i + 1], sigmas[i], sigmas[i + 1]

        def missed(y, x=x, high=high, low=low):
            return (y - (high - low) * (y - denoise(y, high)) / high - x).square().mean(1)

        start = space.at_level(x, low, high)
        first = x + (high - low) * (start - denoise(start, high)) / high
        assert (missed(inversion.states[i]) <= missed(first) * (1 + 1e-9)).all()
        assert_close(missed(inversion.states[i]), inversion.residuals[i])


def test_fixed_point_keeps_the_first_iterate_where_iterating_diverges():
    def steep(x, sigma):  # g(x) = x_before - 3 x: every iterate is worse
        return x + 3 * x * sigma

    clean = torch.ones(1, 2, dtype=torch.float64)
    flow = NoiseSpace(flow=True, variance_preserving_input=False)
    inversion = inverted(FixedPoint(iterations=1), steep, clean, [1.0, 0.0], flow)
    assert_close(inversion.noise, torch.full_like(clean, -2.0))  # 1 - 3
    better = inverted(FixedPoint(iterations=30), steep, clean, [1.0, 0.0], flow)
    assert_close(better.noise, torch.full_like(clean, 0.25))  # x = 1 - 3 x, by averaging


def test_fixed_point_stops_when_all_samples_are_done(pictures):
    steps = 40
    inversion = inverted(
        FixedPoint(), mixture(1).denoiser(FLOW), pictures, schedule(FLOW, steps), FLOW
    )
    assert 2 * steps <= inversion.calls < (1 + FixedPoint().iterations) * steps


# what is drawn


def test_noise_maps_are_white_and_their_states_independent():
    oracle = mixture(components=1, size=4096)
    clean = oracle.draw(1, 6)[0]
    sigmas = schedule(VE, 6)
    found = METHODS["edit-friendly ddpm (exact)"].invert(
        oracle.denoiser(VE), clean, sigmas, VE, seed=1
    )
    noises = torch.stack([
        VE.noise_in(state, clean, sigma)[0] for state, sigma in zip(found.states, sigmas[:-1], strict=False)
    ])  # fmt: skip
    correlation = torch.corrcoef(noises) - torch.eye(6, dtype=torch.float64)
    assert correlation.abs().max() < 0.06
    # as the paper finds, maps of independent states hold more than the sampler's own noise would
    high, low = sigmas[2], sigmas[3]
    spread = low * math.sqrt(1 - (low / high) ** 2)
    assert 1.0 < (found.maps[2].std() / spread).item() < 2.0


def test_without_its_maps_a_path_is_the_plain_sampler(pictures):
    method, denoise = METHODS["stored residual (exact)"], mixture().denoiser(VE)
    inversion = inverted(method, denoise, pictures, schedule(VE, 5), VE)
    bare = dataclasses.replace(inversion, maps=None)
    assert_close(method.sample(denoise, bare), METHODS["uni-inv"].sample(denoise, bare))
    assert not torch.equal(method.sample(denoise, bare), pictures)


def test_rf_inversion_reaches_its_noise_and_its_picture(pictures):
    method = RfInversion(gamma=1.0, eta=1.0, end_percent=1.0)
    denoise, (noise,) = mixture().denoiser(FLOW), draw_noise(pictures, 5, 1)
    inversion = inverted(method, denoise, pictures, schedule(FLOW, 6), FLOW, seed=5)
    assert_close(inversion.noise, noise)
    assert_close(method.sample(denoise, inversion), pictures)
    exploding = inverted(method, mixture().denoiser(VE), pictures, schedule(VE, 6), VE, seed=5)
    assert_close(exploding.noise, pictures + 8.0 * noise)


def test_rf_inversion_without_pull_is_the_ode(pictures):
    method, denoise = RfInversion(gamma=0.0, eta=0.0), mixture().denoiser(FLOW)
    inversion = inverted(method, denoise, pictures, schedule(FLOW, 200), FLOW)
    assert rms(inversion.noise - true_end(FLOW)) < 0.02
    assert rms(method.sample(denoise, inversion) - pictures) < 0.02


# refusals


@EVERY
@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([0.0, 0.5, 1.0], "do not descend"),
        ([1.0, 1.0, 0.0], "do not descend"),
        ([1.0, 0.5, 0.1], "end at 0.1"),
        ([0.0], "step"),
    ],
)
def test_other_noise_levels_are_refused(method, sigmas, words):
    with pytest.raises(ValueError, match=words + "|needs two"):
        method.invert(line, torch.ones(1, 1), sigmas, FLOW)


def test_o_belm_needs_two_steps():
    with pytest.raises(ValueError, match="1 step, its sampler needs two"):
        METHODS["o-belm (exact)"].invert(line, torch.ones(1, 1), [1.0, 0.0], FLOW)


def test_unknown_method_is_refused():
    assert DEFAULT in METHODS
    with pytest.raises(ValueError, match="the method 'magic', known are uni-inv"):
        method_of("magic")
