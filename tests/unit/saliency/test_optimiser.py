"""Noise that is moved by gradients: rules, whiteness, views, the loop, its state on disk."""

import math

import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from veduta.models.saliency.checkpoint import Stored, load_optimisation, save_optimisation
from veduta.models.saliency.mixing import FixedMap
from veduta.models.saliency.objective import (
    CROPS,
    EYE,
    GATE,
    MASKED,
    TOKENS,
    WHOLE_PICTURE,
    Objective,
    correlation,
)
from veduta.models.saliency.optimiser import (
    Optimisation,
    Sampled,
    Settings,
    better_half,
    checked_gradient,
    new_track,
    rung_steps,
)
from veduta.models.saliency.presets import PRESETS
from veduta.models.saliency.rewards.clip_reward import ClipReward
from veduta.models.saliency.rewards.combine import Rewards
from veduta.models.saliency.rewards.preprocessing import Preprocessing
from veduta.models.saliency.rewards.reward import WHOLE
from veduta.models.saliency.rewards.symmetry import SymmetryReward
from veduta.models.saliency.steps import Momentum, Nesterov, WhiteStep
from veduta.models.saliency.whiteness import measure_whiteness, whitened


def generator(seed=0):
    return Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


# whiteness


def test_white_noise_measures_as_white():
    found = measure_whiteness(noise(2, 4, 32, 32))
    assert found.rms == pytest.approx(1, abs=0.05)
    assert found.low == pytest.approx(1, abs=0.15)
    assert found.high == pytest.approx(1, abs=0.1)
    assert found.kurtosis == pytest.approx(3, abs=0.2)


def test_smooth_noise_shows_in_the_slow_part():
    smooth = torch.nn.functional.avg_pool2d(noise(1, 4, 36, 36), 5, 1)
    found = measure_whiteness(smooth / smooth.std())
    assert found.low > 3 and found.high < 0.3


def test_a_whitened_gradient_is_white_and_keeps_its_phases():
    smooth = torch.nn.functional.avg_pool2d(noise(1, 4, 36, 36), 5, 1)
    found = measure_whiteness(whitened(smooth))
    assert found.rms == pytest.approx(1, abs=1e-3)
    assert 0.5 < found.low < 2 and 0.5 < found.high < 2
    before, after = torch.fft.fft2(smooth), torch.fft.fft2(whitened(smooth))
    turned = (before * after.conj()).angle().abs()
    assert float((turned < 0.1).float().mean()) > 0.9


# rules


def test_momentum_by_hand():
    z = torch.tensor([[[[3.0, 4.0]]]])
    g = torch.tensor([[[[1.0, -2e-4]]]])
    moved, v = Momentum(noise=0.0).move(z, g, torch.zeros_like(z), 0, 1, generator())
    assert_close(v, torch.tensor([[[[1e-3, -2e-4]]]]))  # the first element is clipped
    step = z - v
    assert_close(moved, step * (5 / step.norm()))
    _, again = Momentum(noise=0.0).move(z, g, v, 0, 1, generator())
    assert_close(again, 0.9 * v + v)


def test_nesterov_by_hand():
    z = torch.tensor([[[[3.0, 4.0]]]])
    g = torch.tensor([[[[0.03, 0.04]]]])
    rule = Nesterov(likelihood=0.0)
    moved, v = rule.move(z, g, torch.zeros_like(z), 0, 1, generator())
    assert_close(v, g)  # its norm is below the clip
    assert_close(moved, z - 5 * (g + 0.9 * g))
    held, _ = Nesterov().move(z, torch.zeros_like(z), torch.zeros_like(z), 0, 1, generator())
    assert float(held.norm()) < 5  # |z|^2 = 25 is unlikely of two numbers


def test_a_white_step_stays_on_the_sphere_and_turns_by_its_angle():
    z, g = noise(2, 4, 16, 16), noise(2, 4, 16, 16, seed=1)
    rule = WhiteStep(angle=0.2, last_angle=0.0, momentum=0.0)
    moved, _ = rule.move(z, g, torch.zeros_like(z), 0.0, 1, generator())
    assert_close(moved.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1))
    turned = torch.cosine_similarity(moved.flatten(1), z.flatten(1)).acos()
    assert_close(turned, torch.full((2,), 0.2), atol=1e-3, rtol=0)
    assert float((moved * g).sum()) < float((z * g).sum())  # against the gradient
    held, _ = rule.move(z, g, torch.zeros_like(z), 1.0, 1, generator())
    assert_close(held, z)  # the last angle is 0


def test_rules_treat_pictures_apart_and_leave_what_is_given():
    z, g = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    for rule in (Momentum(noise=0.0), Nesterov(), WhiteStep()):
        kept = z.clone(), g.clone()
        both, _ = rule.move(z, g, torch.zeros_like(z), 0.5, 1, generator())
        one, _ = rule.move(z[:1], g[:1], torch.zeros_like(z[:1]), 0.5, 1, generator())
        assert_close(both[:1], one)
        assert torch.equal(z, kept[0]) and torch.equal(g, kept[1])


# objective


class Brightness:
    """100 times the mean of a picture."""

    name, weight = "brightness", 1.0

    def score(self, image, part="whole"):
        return 100 * image.mean((1, 2, 3))


BRIGHT = Rewards((Brightness(),))


def test_a_masked_picture_counts_beside_the_whole():
    image = torch.full((1, 3, 16, 16), 0.5)
    found = torch.zeros(1, 1, 16, 16)
    found[..., :8] = 1
    objective = Objective(rewards=BRIGHT, find=FixedMap(found), use=MASKED)
    judged = objective.judge(image, objective.found(image, None, 0), generator())
    assert_close(judged.points, torch.tensor([(50 + 25) / 2.0]))


def test_crops_count_each_as_much_as_the_whole_and_are_not_judged():
    image = torch.zeros(1, 3, 16, 16)
    image[..., :4] = 1
    found = image[:, :1].clone()
    objective = Objective(rewards=BRIGHT, find=FixedMap(found), use=CROPS, crops=8)
    judged = objective.judge(image, found, generator())
    assert_close(judged.judged, torch.tensor([25.0]))
    assert float(judged.points) > 26


def test_the_map_is_refreshed_with_inertia_and_passes_no_gradient():
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    objective = Objective(rewards=BRIGHT, find=lambda x: x[:, :1], use=GATE, refresh=5, inertia=0.8)
    old = torch.zeros(1, 1, 8, 8)
    first = objective.found(image, None, 0)
    assert_close(first, image[:, :1].detach())
    assert not first.requires_grad
    assert objective.found(image, old, 3) is old
    assert_close(objective.found(image, old, 5), 0.2 * image[:, :1].detach())


def test_drawing_the_eye_is_the_maps_correlation():
    target = torch.rand(1, 1, 8, 8, generator=generator())
    image = target.repeat(1, 3, 1, 1).requires_grad_()
    objective = Objective(find=lambda x: x[:, :1], use=EYE, target=target)
    judged = objective.judge(image, None, generator())
    assert_close(judged.points, torch.tensor([100.0]))
    assert_close(correlation(1 - target, target), torch.tensor([-1.0]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "reward is not connected, something to make better is needed; add one"),
        ({"rewards": BRIGHT, "use": EYE}, "mask is not connected; paint where people should look"),
        ({"rewards": BRIGHT, "use": "stars"}, "use_saliency is 'stars', one of"),
    ],
)
def test_objectives_without_sense_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Objective(**options)


class Patches:
    """Sees the colours of a picture's four quarters."""

    preprocessing = Preprocessing(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def embed(self, pixels):
        return pixels.mean((2, 3))

    def tokens(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 2).flatten(2).movedim(1, 2)


def test_tokens_are_pooled_where_the_map_is():
    image = torch.zeros(1, 3, 4, 4)
    image[:, 0, :, :2], image[:, 2, :, 2:] = 1, 1
    reward = ClipReward(name="red", encoder=Patches(), wanted={WHOLE: torch.tensor([[1.0, 0, 0]])})
    found = torch.zeros(1, 1, 4, 4)
    found[..., :2] = 1
    chain = Rewards((reward,))
    assert_close(chain.pooled(image, found), torch.tensor([100.0]))
    assert_close(chain.pooled(image, 1 - found), torch.tensor([0.0]))
    objective = Objective(rewards=chain, find=FixedMap(found), use=TOKENS)
    judged = objective.judge(image, found, generator())
    assert_close(judged.points, (chain.total(image) + 100) / 2)


# the loop, on a sampler that doubles its noise


def sample(z):
    return Sampled(2 * z, lambda cotangent: 2 * cotangent)


def decode(latent):
    return latent[:, :3]


def run(iterations=6, starts=1, keep=1, use=WHOLE_PICTURE, tell=lambda _: None, **settings):
    noises = [noise(2, 4, 8, 8, seed=seed) for seed in range(starts)]
    tracks = [new_track(z, 5 + i) for i, z in enumerate(noises)]
    settings = Settings(rule=WhiteStep(), iterations=iterations, keep=keep, **settings)
    optimisation = Optimisation(tracks, settings)
    find = FixedMap(torch.ones(1, 1, 8, 8))
    optimisation.run(sample, decode, Objective(rewards=BRIGHT, use=use, find=find), tell)
    return optimisation, noises


def test_points_rise_and_the_best_is_kept():
    seen = []
    optimisation, (first,) = run(tell=seen.append, use=CROPS, keep=3)
    best = optimisation.best
    assert len(seen) == 7 and [glance.done for glance in seen] == list(range(7))
    assert bool((best.points[0] > 200 * first[:, :3].mean((1, 2, 3)) + 1).all())
    assert best.points.shape == (3, 2) and best.kept.shape == (3, 2, 4, 8, 8)
    assert bool((best.points.diff(dim=0) <= 0).all())
    assert_close(best.points, 200 * best.kept[:, :, :3].mean((2, 3, 4)))
    assert torch.equal(seen[-1].best, best.points[0])


def test_no_steps_give_the_start_back():
    optimisation, (first,) = run(iterations=0)
    assert torch.equal(optimisation.best.kept[0], first)


def test_patience_ends_it():
    seen = []
    run(iterations=30, tell=seen.append, patience=2, least_gain=1e6)
    assert len(seen) == 4  # the first is a gain; two more wait, the last one looks


def test_rounds_of_halving_cost_the_same():
    assert rung_steps(30, 1) == [30]
    assert rung_steps(32, 8) == [1, 2, 4, 8]
    for starts, steps in ((3, 20), (8, 50), (5, 7)):
        shares = rung_steps(steps, starts)
        counts = [starts]
        while counts[-1] > 1:
            counts.append((counts[-1] + 1) // 2)
        assert sum(a * b for a, b in zip(shares, counts, strict=True)) == steps


def test_the_better_half_is_chosen_for_each_picture():
    tracks = [new_track(torch.full((2, 1, 2, 2), float(i)), i) for i in range(3)]
    for track, points in zip(tracks, ([1.0, 9.0], [5.0, 5.0], [9.0, 1.0]), strict=True):
        track.points = torch.tensor([points])
        track.kept = track.z[None].clone()
    left = better_half(tracks)
    assert [track.z[:, 0, 0, 0].tolist() for track in left] == [[2.0, 0.0], [1.0, 1.0]]
    assert left[0].points.tolist() == [[9.0, 9.0]]
    assert torch.equal(left[0].kept[0], left[0].z)


def test_several_starts_end_in_one():
    optimisation, noises = run(iterations=12, starts=4)
    assert len(optimisation.tracks) == 1 and optimisation.done == 12
    most = torch.stack([200 * z[:, :3].mean((1, 2, 3)) for z in noises]).amax(0)
    assert bool((optimisation.best.points[0] > most).all())


class Stop(Exception):
    pass


@pytest.mark.parametrize("starts", [1, 3])
def test_what_was_stopped_goes_on_exactly(tmp_path, starts):
    whole, _ = run(iterations=9, starts=starts, use=CROPS)
    path = tmp_path / "state.safetensors"
    kept = []

    def tell(glance):
        stored = Stored("abc", [[glance.done, 1.0]], 2.5)
        save_optimisation(path, kept[0], stored)
        if glance.done == 4:
            raise Stop

    noises = [noise(2, 4, 8, 8, seed=seed) for seed in range(starts)]
    settings = Settings(rule=WhiteStep(), iterations=9)
    kept.append(Optimisation([new_track(z, 5 + i) for i, z in enumerate(noises)], settings))
    objective = Objective(rewards=BRIGHT, use=CROPS, find=FixedMap(torch.ones(1, 1, 8, 8)))
    with pytest.raises(Stop):
        kept[0].run(sample, decode, objective, tell)
    again, stored = load_optimisation(path, settings, "abc", torch.device("cpu"))
    assert stored.seconds == 2.5 and stored.rows == [[4, 1.0]]
    again.run(sample, decode, objective, lambda _: None)
    assert torch.equal(again.best.kept, whole.best.kept)
    assert torch.equal(again.best.points, whole.best.points)
    with pytest.raises(ValueError, match="with other inputs or settings"):
        load_optimisation(path, settings, "abd", torch.device("cpu"))


def test_gradients_that_are_none_are_refused():
    with pytest.raises(ValueError, match="the gradient of 1 of 2 pictures is zero"):
        checked_gradient(torch.stack([torch.zeros(4, 8, 8), torch.ones(4, 8, 8)]))
    with pytest.raises(ValueError, match="the gradient holds NaN"):
        checked_gradient(torch.full((1, 4, 8, 8), math.nan))


def test_a_reward_without_a_number_stops_it():
    class Broken(Brightness):
        def score(self, image, part="whole"):
            return super().score(image) * math.nan

    track = Optimisation(
        [new_track(noise(1, 4, 8, 8), 0)], Settings(rule=WhiteStep(), iterations=1)
    )
    with pytest.raises(ValueError, match="reward brightness gives"):
        track.run(sample, decode, Objective(rewards=Rewards((Broken(),))), lambda _: None)


def test_every_preset_raises_a_reward():
    for name, preset in PRESETS.items():
        optimisation = Optimisation(
            [new_track(noise(1, 4, 8, 8), 0)], Settings(rule=preset.rule, iterations=4)
        )
        seen = []
        objective = Objective(
            rewards=Rewards((SymmetryReward(),)), use=preset.use, strength=preset.strength,
            find=FixedMap(torch.ones(1, 1, 8, 8)), crops=2,
        )  # fmt: skip
        optimisation.run(sample, lambda x: x[:, :3] / 8 + 0.5, objective, seen.append)
        assert float(seen[-1].best) > float(seen[0].points), name
