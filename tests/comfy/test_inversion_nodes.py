"""Invert Picture, Save and Load Inversion on the miniature: pictures in, pictures out, refusals."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_custom_sampler import BasicGuider
from torch import nn
from torch.testing import assert_close

import nodes
from veduta.mini.image_prompt import new_adapter
from veduta.mini.landscapes import scene
from veduta.mini.painter import paint
from veduta.models.common.image_adapter_files import save_image_adapter
from veduta.nodes import mini
from veduta.nodes.host.image_prompt import open_image_adapter
from veduta.nodes.host.vae import padded
from veduta.nodes.inversion.files import LoadInversion, SaveInversion
from veduta.nodes.inversion.invert import END_STATE, Invert
from veduta.nodes.inversion.pictures import dithered

STEPS, EXACT = 2, "stored residual (exact)"


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def stack(comfyui):
    """MODEL, CLIP, VAE."""
    with torch.inference_mode():
        return mini.load_model(), mini.load_clip(), mini.load_vae()


@pytest.fixture(scope="module")
def positive(stack):
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(stack[1], "a boat on the sea")[0]


@pytest.fixture(scope="module")
def image():
    """Neither side fits the grid."""
    return torch.from_numpy(paint(scene(10_000_001), 72, 50).image).float()[None] / 255


@pytest.fixture
def invert(stack, positive, image):
    def call(**inputs):
        given = {"model": stack[0], "positive": positive, "image": image, "steps": STEPS, **inputs}
        return Invert.execute(
            stack[2], **{name: value for name, value in given.items() if value is not None}
        ).args

    return call


def test_a_picture_comes_back_in_its_own_size_at_the_vae_bound(stack, invert, image):
    before = image.clone()
    inversion, latent, noise, reconstruction, report = invert(method=EXACT)
    assert reconstruction.shape == image.shape and image.equal(before)
    edges = torch.nn.functional.pad(image.movedim(-1, 1), (0, 8, 0, 14), mode="replicate")
    bound = stack[2].decode(stack[2].encode(edges.movedim(1, -1)))[:, :50, :72]
    assert_close(reconstruction, bound.clamp(0, 1), atol=2e-3, rtol=0)
    assert inversion.source.size_px == (50, 72)
    assert latent["samples"].shape == (1, 4, 8, 10) == inversion.noise.shape
    assert noise.generate_noise({"samples": torch.zeros(1, 4, 8, 10)}).std() < 2
    lines = report.splitlines()
    assert lines[0].startswith(f"{EXACT}: {inversion.steps} steps, {2 * inversion.steps + 1} calls")
    assert [line.split()[:2] for line in lines if line.startswith(("VAE", "rec"))] == [
        ["VAE", "bound"],
        ["reconstruction", next(one.split()[2] for one in lines if one.startswith("VAE"))],
    ]
    assert "kurtosis" in report and "autocorrelation" in report


def test_padding_repeats_edges_and_fitting_pictures_stay(stack, image):
    planes = image.movedim(-1, 1)
    made = padded(planes, stack[2])
    assert made.shape == (1, 3, 64, 80) and made[..., :50, :72].equal(planes)
    assert made[0, :, 63, 5].equal(planes[0, :, 49, 5]) and made[0, :, 7, 79].equal(
        planes[0, :, 7, 71]
    )
    assert padded(made, stack[2]).equal(made)


def test_dither_is_of_its_spread_and_each_pictures_own():
    planes = torch.full((2, 3, 32, 32), 0.5)
    made = dithered(planes, 17.5 / 255, seed=3)
    assert (made - planes).std().item() == pytest.approx(17.5 / 255, rel=0.05)
    assert not made[0].equal(made[1])
    assert made[1].equal(dithered(planes[:1], 17.5 / 255, seed=4)[0])
    assert dithered(planes, 0.0, seed=3) is planes


def test_a_latent_does_as_well_and_its_mask_is_ignored(stack, invert, image):
    edges = torch.nn.functional.pad(image.movedim(-1, 1), (0, 8, 0, 14), mode="replicate")
    latent = {
        "samples": stack[2].encode(edges.movedim(1, -1)),
        "noise_mask": torch.zeros(1, 64, 80),
    }
    ours = invert(image=None, latent=latent)
    assert ours[0].states.equal(invert()[0].states) and ours[0].source.size_px is None
    assert ours[3].shape == (1, 64, 80, 3) and "VAE bound" not in ours[4]


def test_a_guider_stands_in_for_model_and_prompt(stack, positive, invert):
    guider = BasicGuider.execute(stack[0], positive)[0]
    made = invert(model=None, positive=None, guider=guider)
    assert made[0].states.equal(invert()[0].states)


def test_unchecked_there_is_no_reconstruction(invert):
    _, _, _, blocked, report = invert(check=False)
    assert isinstance(blocked, ExecutionBlocker) and "check is off" in blocked.message
    assert "VAE bound" in report and "latent MSE" not in report


def test_the_ends_alone_are_kept_on_request(invert):
    whole, ends = invert()[0], invert(keep=END_STATE)[0]
    assert ends.states is None
    assert ends.noise.equal(whole.noise) and ends.clean.equal(whole.clean)


def test_strength_shortens_the_way(invert):
    whole, part = invert(steps=4)[0], invert(steps=4, strength=0.5)[0]
    assert part.sigmas[0] < whole.sigmas[0] and part.steps == 4


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["black", "white"])
def test_flat_pictures_are_inverted(invert, value):
    made = invert(image=torch.full((1, 64, 64, 3), value))
    assert made[0].noise.isfinite().all() and "nan" not in made[4].split("noise at")[1]


def test_the_picture_in_the_prompt_acts_and_leaves_the_model_alone(stack, invert, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapter = new_adapter(stack[0], 192)
        for projection in adapter.to_v.parameters():
            nn.init.normal_(projection, std=0.05)
    save_image_adapter(tmp_path / "a.safetensors", adapter, "miniature")
    condition = {
        "image_adapter": open_image_adapter(tmp_path / "a.safetensors"),
        "clip_vision": mini.load_clip_vision(),
    }
    before = invert()[0]
    seen = invert(**condition, image_weight=0.4)[0]
    unseen = invert(**condition, image_weight=0.0)[0]
    assert not seen.noise.equal(before.noise) and "weight 0.4" in seen.source.note
    assert_close(unseen.noise, before.noise, atol=1e-4, rtol=1e-4)
    assert invert()[0].noise.equal(before.noise)
    with pytest.raises(ValueError, match="image_adapter is connected without clip_vision"):
        invert(image_adapter=condition["image_adapter"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": None}, "neither image nor latent is connected"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "both image and latent are connected"),
        ({"image": None, "latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "latent is empty"),
        ({"image": torch.full((1, 64, 64, 3), torch.nan)}, "image holds NaN"),
        ({"image": torch.zeros(1, 1, 1, 3)}, "image is 1 x 1 px"),
        ({"image": torch.zeros(1, 64, 4096, 3)}, "4096 x 64 px, at most 3072 px a side"),
        ({"model": None}, "model is not connected"),
        ({"positive": None}, "positive is not connected"),
        ({"guider": object()}, "model is connected beside guider"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(invert, inputs, words):
    with pytest.raises(ValueError, match=words) as refused:
        invert(**inputs)
    assert "\n" not in str(refused.value)


# files


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / "inversions"


def test_saved_and_loaded_it_is_the_same(invert, output):
    inversion = invert(method=EXACT)[0]
    for _ in range(2):
        SaveInversion.execute(inversion, "coast/boat")
    names = [f"coast/boat_0000{number}_.safetensors" for number in (1, 2)]
    assert LoadInversion.define_schema().inputs[0].options == names
    loaded = LoadInversion.execute(names[0])[0]
    assert loaded.states.equal(inversion.states) and loaded.maps.equal(inversion.maps)
    assert (loaded.method, loaded.sigmas, loaded.source) == (
        inversion.method,
        inversion.sigmas,
        inversion.source,
    )
    assert LoadInversion.fingerprint_inputs(names[0]) != LoadInversion.fingerprint_inputs(names[1])


def test_without_files_loading_says_so(output):
    (name,) = LoadInversion.define_schema().inputs[0].options
    with pytest.raises(FileNotFoundError, match="save an inversion first"):
        LoadInversion.execute(name)
    with pytest.raises(ValueError, match="leads out of inversions"):
        LoadInversion.execute("../elsewhere.safetensors")
