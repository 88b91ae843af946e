"""What an inversion carries, repeats, refuses, and how it looks in a file."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from veduta.models.common.noise_space import NoiseSpace
from veduta.models.inversion.statistics import end_statistics, noise_statistics
from veduta.models.inversion.storage import load_inversion, save_inversion
from veduta.models.inversion.trajectory import (
    Inversion,
    Source,
    check_model,
    check_sigmas,
    latent_checksum,
)

SIGMAS = (1.0, 0.5, 0.0)


def inversion(batch=1, **others):
    states = torch.arange(3.0 * batch * 4).reshape(3, batch, 1, 2, 2)
    return Inversion(
        method="edict (exact)",
        space=NoiseSpace(flow=True, noise_scale=0.9, variance_preserving_input=False),
        sigmas=SIGMAS,
        noise=states[0],
        clean=states[-1],
        calls=4,
        source=Source(
            model="SD15", weights=(0.5, 0.25), latent="ab", seed=7, note="text", size_px=(30, 20)
        ),
        **{
            "states": states,
            "second": states[0] + 1,
            "maps": states[1:] * 2,
            "residuals": torch.ones(2, batch),
            **others,
        },
    )


def same(first, second):
    for field in dataclasses.fields(Inversion):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, torch.Tensor):
            assert_close(ours, theirs)
        else:
            assert ours == theirs, field.name


def test_states_by_level():
    made = inversion()
    assert made.steps == 2 and made.state(1).equal(made.states[1])
    ends = dataclasses.replace(made, states=None)
    assert ends.state(0).equal(made.noise) and ends.state(2).equal(made.clean)
    with pytest.raises(ValueError, match="end state only, the state of step 1"):
        ends.state(1)


def test_one_picture_serves_many_targets():
    made = inversion().for_batch(3)
    assert made.noise.shape == (3, 1, 2, 2) and made.states.shape == (3, 3, 1, 2, 2)
    assert made.residuals.shape == (2, 3) and made.states[:, 2].equal(inversion().states[:, 0])
    pair = inversion(batch=2)
    assert pair.for_batch(2) is pair
    with pytest.raises(ValueError, match="2 pictures, 3 are wanted"):
        pair.for_batch(3)


def test_other_models_are_refused():
    check_model(inversion(), "SD15", (0.5001, 0.25))
    with pytest.raises(ValueError, match="family SD15, model is SDXL"):
        check_model(inversion(), "SDXL", (0.5, 0.25))
    with pytest.raises(ValueError, match="another SD15 checkpoint"):
        check_model(inversion(), "SD15", (0.6, 0.25))
    with pytest.raises(ValueError, match="another SD15 checkpoint"):
        check_model(inversion(), "SD15", (0.5,))


def test_other_sigmas_are_refused():
    check_sigmas(inversion(), [1.0, 0.50001, 0.0])
    with pytest.raises(ValueError, match="hold 3 steps, inversion has 2"):
        check_sigmas(inversion(), [1.0, 0.6, 0.3, 0.0])
    with pytest.raises(ValueError, match="0.6 at step 1, inversion has 0.5"):
        check_sigmas(inversion(), [1.0, 0.6, 0.0])


def test_checksum_follows_the_content():
    latent = torch.randn(1, 4, 2, 2)
    assert latent_checksum(latent) == latent_checksum(latent.clone())
    assert latent_checksum(latent) != latent_checksum(latent + 1e-6)


# files


@pytest.mark.parametrize(
    "others",
    [{}, {"states": None}, {"second": None, "maps": None, "residuals": None}],
    ids=["whole", "ends", "plain"],
)
def test_round_trip(tmp_path, others):
    made = inversion(2, **others)
    save_inversion(tmp_path / "a" / "one.safetensors", made)
    same(made, load_inversion(tmp_path / "a" / "one.safetensors"))


def test_a_latents_inversion_has_no_size(tmp_path):
    made = inversion()
    made = dataclasses.replace(made, source=dataclasses.replace(made.source, size_px=None))
    save_inversion(tmp_path / "one.safetensors", made)
    same(made, load_inversion(tmp_path / "one.safetensors"))


@pytest.fixture
def changed(tmp_path):
    """Path of a file whose description or tensors were changed."""

    def call(tensors=None, text=None, **entries):
        path = tmp_path / "one.safetensors"
        save_inversion(path, inversion())
        state = load_file(path) | (tensors or {})
        told = json.loads(_description(path)) | entries
        told = {key: value for key, value in told.items() if value is not None}
        save_file(state, path, {"veduta": text or json.dumps(told)})
        return path

    return call


def _description(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["veduta"]


def test_damaged_and_foreign_files_are_refused(tmp_path, changed):
    with pytest.raises(FileNotFoundError, match=r"none.safetensors is missing"):
        load_inversion(tmp_path / "none.safetensors")
    path = changed()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut short or another kind"):
        load_inversion(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="another program's file, an inversion saved by Veduta"):
        load_inversion(path)
    with pytest.raises(ValueError, match="of the kind 'anchor adapter'"):
        load_inversion(changed(kind="anchor adapter"))
    with pytest.raises(ValueError, match="format 2, this version reads format 1"):
        load_inversion(changed(format=2))
    with pytest.raises(ValueError, match="description in one.safetensors is damaged"):
        load_inversion(changed(text="{"))
    with pytest.raises(ValueError, match="description in one.safetensors is damaged"):
        load_inversion(changed(sigmas=None))
    with pytest.raises(ValueError, match="the method 'magic'"):
        load_inversion(changed(method="magic"))
    with pytest.raises(ValueError, match=r"maps in one.safetensors have the shape \(5, 1\)"):
        load_inversion(changed({"maps": torch.zeros(5, 1)}))
    with pytest.raises(ValueError, match="states in one.safetensors have"):
        load_inversion(changed(sigmas=[1.0, 0.7, 0.5, 0.0]))


# statistics


def test_white_noise_looks_white():
    noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    found = noise_statistics(noise)
    for value, wanted in (
        (found.mean, 0), (found.std, 1), (found.kurtosis, 3), (found.autocorrelation, 0),
        (found.channel_correlation, 0), (found.divergence, 0),
    ):  # fmt: skip
        assert_close(value, torch.full((2,), float(wanted)), atol=0.1, rtol=0)


def test_structure_is_seen_sample_by_sample():
    noise = torch.randn(4, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    noise[1, 1] = noise[1, 0]
    noise[2] = noise[2, :, :, :1]
    noise[3] = 3 * noise[3] + 1
    found = noise_statistics(noise)
    assert found.channel_correlation[1] > 0.999 > 0.2 > found.channel_correlation[0]
    assert 0.4 < found.autocorrelation[2] < 0.6  # along one of two axes
    assert found.std[3] == pytest.approx(3, rel=0.05) and found.mean[3] == pytest.approx(1, abs=0.2)
    assert found.divergence[3] == pytest.approx(0.5 * (9 + 1 - 1 - 2.1972), rel=0.1)


def test_flat_and_tiny_noise_stays_finite_apart_from_its_divergence():
    for noise in (torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 1, 1)):
        found = noise_statistics(noise)
        assert found.kurtosis.isfinite().all() and found.autocorrelation.isfinite().all()


def test_end_statistics_are_of_the_noise_beside_the_picture():
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    space = NoiseSpace(flow=False)
    clean = torch.full_like(noise, 5.0)
    made = dataclasses.replace(
        inversion(), space=space, clean=clean, noise=space.noisy(clean, noise, 1.0)
    )
    assert_close(end_statistics(made).mean, noise.mean().reshape(1), atol=1e-5, rtol=1e-4)
