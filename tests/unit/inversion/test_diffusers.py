"""DDIM both ways and the noise maps of LEDITS++ against diffusers, on a random network."""

import math

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("diffusers")

from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import (
    compute_noise_ddim,
    compute_noise_sde_dpm_pp_2nd,
)

from veduta.bench._mixture import inverted
from veduta.models.common.noise_space import NoiseSpace
from veduta.models.inversion.edit_friendly import snr_ratio
from veduta.models.inversion.methods import METHODS

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
}
STEPS = 10
VE = NoiseSpace(flow=False)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # float32 at noise levels up to 11


@pytest.fixture(scope="module")
def network():
    """Predicts noise from a variance-preserving latent and a time step; both matter."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(8, 8, generator=generator) * 0.4 for _ in range(2))

    def eps(z, t):
        planes = torch.einsum("oc,bchw->bohw", first, z.repeat(1, 2, 1, 1)) + math.sin(t / 150)
        return 0.6 * z + 0.3 * torch.einsum("oc,bchw->bohw", second, planes.tanh())[:, :4]

    return eps


@pytest.fixture(scope="module")
def clean():
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def levels(scheduler):
    """Noise levels and time steps of a scheduler, descending."""
    scheduler.set_timesteps(STEPS)
    steps = sorted((int(t) for t in scheduler.timesteps), reverse=True)
    alpha_bar = scheduler.alphas_cumprod.double()
    return [*(((1 - alpha_bar[t]) / alpha_bar[t]).sqrt().item() for t in steps), 0.0], steps


def denoiser(eps, sigmas, steps):
    time = dict(zip(sigmas, steps, strict=False))

    def denoise(x, sigma):
        return x - sigma * eps(x / math.sqrt(1 + sigma**2), time[sigma])

    return denoise


def preserving(states, sigmas):
    scale = torch.tensor([1 / math.sqrt(1 + sigma**2) for sigma in sigmas])
    return states * scale.view(-1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def ours(network, clean):
    def call(name, scheduler):
        sigmas, steps = levels(scheduler)
        denoise = denoiser(network, sigmas, steps)
        return denoise, inverted(METHODS[name], denoise, clean, sigmas, VE, seed=5)

    return call


def test_ddim_up_and_down(network, clean, ours):
    up, down = DDIMInverseScheduler(**SD15), DDIMScheduler(**SD15, set_alpha_to_one=True)
    denoise, inversion = ours("ddim (paper)", down)
    up.set_timesteps(STEPS)
    z, theirs = clean, [clean]
    for t in up.timesteps:
        z = up.step(network(z, int(t)), t, z).prev_sample
        theirs.append(z)
    assert_close(preserving(inversion.states, inversion.sigmas), torch.stack(theirs[::-1]), **CLOSE)
    for t in down.timesteps:
        z = down.step(network(z, int(t)), t, z).prev_sample
    assert_close(METHODS["ddim (paper)"].sample(denoise, inversion), z, **CLOSE)
    assert (z - clean).abs().max() > 0.01  # it is no exact method


def unit_maps(inversion):
    """Noise maps as the papers divide them, without the last one, which they set to 0."""
    spreads = [
        inversion.sigmas[i + 1] * math.sqrt(1 - snr_ratio(VE, inversion.sigmas, i) ** 2)
        for i in range(STEPS - 1)
    ]
    return inversion.maps[:-1] / torch.tensor(spreads).view(-1, 1, 1, 1, 1)


def test_edit_friendly_noise_maps(network, ours):
    scheduler = DDIMScheduler(**SD15, set_alpha_to_one=True)
    _, inversion = ours("edit-friendly ddpm (exact)", scheduler)
    z = preserving(inversion.states, inversion.sigmas)
    theirs = [
        compute_noise_ddim(scheduler, z[i + 1], z[i], t, network(z[i], int(t)), eta=1.0)[0]
        for i, t in enumerate(scheduler.timesteps[:-1])
    ]
    # dividing by small spreads: relative to maps of size 1
    assert_close(unit_maps(inversion), torch.stack(theirs), atol=1e-4, rtol=1e-4)


def test_ledits_noise_maps(network, ours):
    settings = {key: value for key, value in SD15.items() if key != "clip_sample"}
    scheduler = DPMSolverMultistepScheduler(
        **settings, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    _, inversion = ours("ledits++ (exact)", scheduler)
    z = preserving(inversion.states, inversion.sigmas)
    theirs = [
        compute_noise_sde_dpm_pp_2nd(scheduler, z[i + 1], z[i], t, network(z[i], int(t)), 1.0)[0]
        for i, t in enumerate(scheduler.timesteps[:-1])
    ]
    assert_close(unit_maps(inversion), torch.stack(theirs), atol=1e-4, rtol=1e-4)
