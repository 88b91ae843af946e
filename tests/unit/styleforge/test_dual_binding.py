"""The dual-binding loss against its formula: native errors, pairs, weights, masks."""

import pytest
import torch
from torch.testing import assert_close

from veduta.models.styleforge.dual_binding import (
    Binding,
    Draw,
    Example,
    NoiseProcess,
    Prediction,
    Weighting,
    dual_binding_loss,
    native_errors,
    validation_draws,
)

SIGMAS = torch.linspace(0.1, 4.0, 20)
FLOW = torch.linspace(0.02, 0.98, 20)


def process(prediction=Prediction.NOISE, **changes):
    flow = prediction is Prediction.FLOW
    return NoiseProcess(sigmas=FLOW if flow else SIGMAS, prediction=prediction, **changes)


def example(value, prompt="p", size=4, mask=None):
    generator = torch.Generator().manual_seed(int(value * 10))
    return Example(torch.randn(2, size, size, generator=generator) + value, prompt, mask)


def binding(**changes):
    style = tuple(example(value, "style") for value in (0.0, 1.0, 2.0))
    aux = tuple(example(value, "aux") for value in (5.0, 6.0))
    return Binding(name="style", **{"style": style, "aux": aux, **changes})


class Recorder:
    """A denoiser that errs by a known amount and notes what it is asked."""

    def __init__(self, factor=0.5):
        self.calls, self.factor = [], factor

    def __call__(self, x, sigma, prompts):
        self.calls.append((x, sigma, list(prompts)))
        return self.factor * x


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sigma_is_drawn_evenly_from_the_table():
    own = process()
    assert_close(own.sigma_at(torch.tensor([0.0, 0.5, 0.999])), SIGMAS[[0, 10, 19]])


@pytest.mark.parametrize("prediction", list(Prediction))
def test_the_native_loss_is_that_of_the_networks_own_output(prediction):
    """In float64, from the definition of what the network tells."""
    own = process(prediction)
    own = NoiseProcess(sigmas=own.sigmas.double(), prediction=prediction)
    generator = seeded(4)
    x0, noise, guess = torch.randn(3, 1, 2, 3, 3, generator=generator).double()
    one = Example(x0[0], "p")
    draw = Draw(one, torch.tensor(0.4), noise[0])
    sigma = own.sigma_at(torch.tensor([0.4]))
    x = own.noisy(x0, noise, sigma)
    if prediction is Prediction.FLOW:
        assert_close(x, (1 - sigma) * x0 + sigma * noise)
        target, x0_hat = noise - x0, x - sigma * guess
    elif prediction is Prediction.NOISE:
        target, x0_hat = noise, x - sigma * guess
    else:
        root = (sigma**2 + 1).sqrt()  # v = alpha noise - sqrt(1 - alpha^2) x0, k-diffusion's scale
        target = (noise - sigma * x0) / root
        x0_hat = x / root**2 - guess * sigma / root
    (loss,) = native_errors(lambda *_: x0_hat, own, [draw])
    assert_close(float(loss), float((guess - target).square().mean()), rtol=1e-5, atol=1e-6)


def test_style_and_aux_are_two_means_in_one_pass():
    denoise, own = Recorder(), process()
    loss = dual_binding_loss(denoise, own, binding(aux_weight=0.25), 2, seeded())
    ((_, sigma, prompts),) = denoise.calls
    assert prompts == ["style", "style", "aux", "aux"] and len(set(sigma.tolist())) > 1
    style_only = dual_binding_loss(Recorder(), own, binding(aux=()), 2, seeded())
    assert loss > style_only
    more = dual_binding_loss(Recorder(), own, binding(aux_weight=1.25), 2, seeded())
    aux = more - loss  # the loss is linear in lambda
    assert_close(loss, style_only + 0.25 * aux)


def test_lambda_0_and_no_aux_draw_and_answer_the_same():
    one, other = seeded(), seeded()
    off = dual_binding_loss(Recorder(), process(), binding(aux_weight=0.0), 2, one)
    plain = dual_binding_loss(Recorder(), process(), binding(aux=()), 2, other)
    assert torch.equal(off, plain) and torch.equal(one.get_state(), other.get_state())


def test_pairs_are_drawn_anew():
    generator, met = seeded(), set()
    for _ in range(40):
        denoise = Recorder(1.0)
        dual_binding_loss(denoise, process(), binding(), 1, generator)
        x = denoise.calls[0][0]
        met.add(tuple(round(float(row.mean())) for row in x))
    assert len(met) > 6  # 3 StyleRef times 2 Aux, and noise


def test_sizes_that_differ_take_a_pass_each_and_keep_their_order():
    mixed = binding(style=(example(0.0, "style", 4),), aux=(example(1.0, "aux", 6),))
    denoise = Recorder()
    loss = dual_binding_loss(denoise, process(), mixed, 2, seeded())
    assert [call[2] for call in denoise.calls] == [["style"] * 2, ["aux"] * 2]
    draws = [
        Draw(example(v, "p", size), torch.tensor(0.5), torch.zeros(2, size, size))
        for v, size in ((0.0, 4), (1.0, 6), (2.0, 4))
    ]
    errors = native_errors(Recorder(0.0), process(), draws)
    wanted = [d.example.x0.square().mean() / SIGMAS[10] ** 2 for d in draws]
    assert_close(errors, torch.stack(wanted))
    assert loss.isfinite()


def test_a_mask_counts_where_it_is_1():
    mask = torch.zeros(1, 4, 4)
    mask[..., :2] = 1.0
    masked, plain = example(1.0, mask=mask), example(1.0)
    noise = torch.zeros(2, 4, 4)
    draws = [Draw(one, torch.tensor(0.5), noise) for one in (masked, plain)]
    errors = native_errors(Recorder(0.0), process(), draws)
    half = plain.x0[..., :2].square().sum() / plain.x0.numel() / SIGMAS[10] ** 2
    assert_close(errors[0], half)
    assert_close(errors[1], plain.x0.square().mean() / SIGMAS[10] ** 2)


def test_shares_of_two_processes_are_the_whole():
    whole = dual_binding_loss(Recorder(), process(), binding(), 4, seeded())
    parts = [
        dual_binding_loss(
            Recorder(), process(), binding(), 4, seeded(), share=slice(2 * i, 2 * i + 2)
        )
        for i in range(2)
    ]
    assert_close(torch.stack(parts).mean(), whole)


def test_weights_of_noise_levels_by_hand():
    sigma = torch.tensor([0.2, 1.0, 4.0])  # SNR 25, 1, 1/16
    eps, velocity = process(), process(Prediction.VELOCITY)
    assert_close(eps.snr_weight(sigma, Weighting.NONE), torch.ones(3))
    assert_close(eps.snr_weight(sigma, Weighting.MIN_SNR), torch.tensor([5 / 25, 1.0, 1.0]))
    found = velocity.snr_weight(sigma, Weighting.MIN_SNR)
    assert_close(found, torch.tensor([5 / 26, 0.5, (1 / 16) / (17 / 16)]))
    assert_close(eps.snr_weight(sigma, Weighting.DEBIASED), torch.tensor([0.2, 1.0, 4.0]))
    flow = process(Prediction.FLOW).snr_weight(torch.tensor([0.5]), Weighting.DEBIASED)
    assert_close(flow, torch.ones(1))


@pytest.mark.parametrize("weighting", list(Weighting))
@pytest.mark.parametrize("prediction", list(Prediction))
def test_weights_stay_finite_at_both_ends(prediction, weighting):
    sigma = torch.tensor([1e-3, 0.999 if prediction is Prediction.FLOW else 200.0])
    own = process(prediction)
    assert (own.native_weight(sigma) * own.snr_weight(sigma, weighting)).isfinite().all()


def test_validation_is_the_same_each_time():
    held = [example(0.0), example(1.0)]
    one, other = validation_draws(held, 3), validation_draws(held, 3)
    assert len(one) == 10 and {float(d.u) for d in one} == {float(d.u) for d in one[:5]}
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first.noise, second.noise) and first.u == second.u
    assert not torch.equal(one[0].noise, validation_draws(held, 4)[0].noise)
