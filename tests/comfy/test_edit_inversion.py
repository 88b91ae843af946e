"""Edit Inversion, Edit Guider and Edit Concept on the miniature: identities, core's samplers, refusals."""

import copy
from dataclasses import replace

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
from torch import nn
from torch.testing import assert_close

import nodes
from veduta.mini.image_prompt import new_adapter
from veduta.mini.landscapes import scene
from veduta.mini.painter import paint
from veduta.mini.pool import UNSEEN_FROM
from veduta.models.common.image_adapter_files import save_image_adapter
from veduta.models.inversion.editing.masks import GatheredPlaces, latent_mask
from veduta.models.inversion.methods import METHODS
from veduta.models.inversion.stored_residual import StoredResidual
from veduta.nodes import mini
from veduta.nodes.host.image_prompt import SAME_PICTURE, open_image_adapter
from veduta.nodes.host.samplers import InversionNoise, replay
from veduta.nodes.host.vae import padded
from veduta.nodes.inversion.edit import EditInversion, _mask_for, _source_planes
from veduta.nodes.inversion.edit_guider import EditConcept, MakeEditGuider
from veduta.nodes.inversion.edit_plan import NEGATIVE_SOURCE
from veduta.nodes.inversion.edit_region import BY_STEP, LATENT, OFF, Region
from veduta.nodes.inversion.run import Settings, invert_latent, source_guider

EQUAL = {"rtol": 0, "atol": 0}
ONE_PASS = {"rtol": 0, "atol": 1e-4}  # float32 of another batch size, through the whole network
SIZE, STEPS = 64, 3


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(comfyui):
    return mini.load_model()


@pytest.fixture(scope="module")
def vae(comfyui):
    return mini.load_vae()


@pytest.fixture(scope="module")
def clip_vision(comfyui):
    return mini.load_clip_vision()


@pytest.fixture(scope="module")
def texts(comfyui):
    with torch.inference_mode():
        clip = mini.load_clip()
        words = {"source": "a red boat on a calm sea", "edit": "a white house in the snow", "": ""}
        return {name: nodes.CLIPTextEncode().encode(clip, text)[0] for name, text in words.items()}


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(paint(scene(UNSEEN_FROM), SIZE).image)[None].float() / 255


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = new_adapter(model, 192)
        for projection in made.to_v.parameters():
            nn.init.normal_(projection, std=0.05)
    save_image_adapter(path, made, "miniature")
    return open_image_adapter(path)


@pytest.fixture(scope="module")
def inversion(model, vae, texts, image):
    with torch.inference_mode():
        return invert(model, texts, vae.encode(image))


def invert(model, texts, latent, method=StoredResidual.name, steps=STEPS):
    settings = Settings(method=method, steps=steps)
    guider = source_guider(model, texts["source"])
    return invert_latent(guider, latent, settings, size_px=(SIZE, SIZE))


@pytest.fixture
def edit(model, vae, texts, inversion):
    """Edit Inversion, of the edit's prompt unless told otherwise: latent, image, report."""

    def call(**choices):
        given = {
            "vae": vae, "model": model, "inversion": inversion, "negative": texts[""],
            "positive": texts["edit"], "text_scale": 3.0,
        }  # fmt: skip
        latent, picture, report = EditInversion.execute(**{**given, **choices}).args
        return latent["samples"], picture, report

    return call


@pytest.fixture
def guider(model, texts, inversion):
    """Edit Guider, likewise."""

    def call(**choices):
        given = {
            "model": model, "inversion": inversion, "negative": texts[""],
            "positive": texts["edit"], "text_scale": 3.0,
        }  # fmt: skip
        return MakeEditGuider.execute(**{**given, **choices}).args[0]

    return call


def plain(model, positive, negative, scale):
    return CFGGuider.execute(model, positive, negative, scale).args[0]


def without_residuals(inversion):
    return replace(inversion, maps=None)


def stock(model, texts):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return nodes.KSampler().sample(
        model, 1, 2, 4.0, "euler", "normal", texts["edit"], texts[""], latent
    )[0]["samples"]


def left_mask():
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1.0
    return mask


def test_neutral_choices_are_plain_cfg(model, texts, inversion, edit):
    """And the stored residuals, which are the source's, are left out."""
    expected = replay(plain(model, texts["edit"], texts[""], 3.0), without_residuals(inversion))
    assert_close(edit()[0], expected, **EQUAL)


def test_without_positive_it_rebuilds_the_picture(edit, texts, inversion, vae, image):
    latent, picture, report = edit(positive=None, source=texts["source"])
    assert_close(latent, inversion.clean, **ONE_PASS)
    assert_close(picture, vae.decode(vae.encode(image)), rtol=0, atol=1e-3)
    assert "PSNR" in report and "stored residual" in report
    assert (edit(positive=texts["source"], text_scale=1.0)[0] - inversion.clean).abs().max() > 1e-3


def test_two_scales_of_a_guider_and_a_stock_euler_agree(model, texts, inversion, guider):
    made, sigmas = MakeEditGuider.execute(
        model=model, inversion=inversion, negative=texts[""], positive=texts["edit"], text_scale=3.0
    ).args
    euler = comfy.samplers.sampler_object("euler")
    latent = {"samples": torch.zeros_like(inversion.clean)}
    noise = InversionNoise(inversion, model)
    found = SamplerCustomAdvanced.execute(noise, made, euler, sigmas, latent).args[0]["samples"]
    expected = replay(guider(), without_residuals(inversion))
    assert_close(found, expected, **ONE_PASS)


def test_cfg_plus_plus_is_cores(model, texts, inversion, edit):
    sampler = comfy.samplers.sampler_object("euler_cfg_pp")
    latent = {"samples": torch.zeros_like(inversion.clean)}
    expected = SamplerCustomAdvanced.execute(
        InversionNoise(inversion, model), plain(model, texts["edit"], texts[""], 0.6), sampler,
        torch.tensor(inversion.sigmas), latent,
    ).args[0]["samples"]  # fmt: skip
    found = edit(text_scale=0.6, cfg_plus_plus=True)[0]
    assert_close(found, expected, rtol=0, atol=1e-3)
    assert (found - edit(text_scale=0.6)[0]).abs().max() > 0.05


def test_leading_away_from_the_sources_own_prompt_is_no_guidance(edit, texts):
    away = edit(positive=texts["source"], source=texts["source"], negative_from=NEGATIVE_SOURCE)[0]
    assert_close(away, edit(positive=texts["source"], text_scale=1.0)[0], **ONE_PASS)


@pytest.mark.parametrize("choice", [{"sharpening": 2.0}, {"threshold": 0.7}, {"end_percent": 0.4}])
def test_every_choice_of_guidance_acts(edit, choice):
    assert (edit(**choice)[0] - edit()[0]).abs().max() > 0.01


def test_an_interval_without_a_step_of_guidance_is_scale_one(edit):
    assert_close(edit(start_percent=0.99)[0], edit(text_scale=1.0)[0], **ONE_PASS)


def test_outside_the_mask_nothing_changes(edit, inversion, image):
    latent, picture, report = edit(mask=left_mask(), image=image)
    half = SIZE // 2
    assert_close(latent[..., 4:], inversion.clean[..., 4:], **EQUAL)
    assert (latent[..., :4] - inversion.clean[..., :4]).abs().max() > 0.05
    assert_close(picture[:, :, half:], image[:, :, half:], **EQUAL)
    assert (picture[:, :, :half] - image[:, :, :half]).abs().max() > 0.02
    assert "outside  PSNR inf" in report


def test_latent_keeps_the_states_and_off_only_measures(edit, inversion, image):
    kept, picture, _ = edit(mask=left_mask(), image=image, keep_outside=LATENT)
    assert_close(kept[..., 4:], inversion.clean[..., 4:], **EQUAL)
    assert not torch.equal(picture[:, :, 40:], image[:, :, 40:])
    free, _, report = edit(mask=left_mask(), image=image, keep_outside=OFF)
    assert_close(free, edit()[0], **EQUAL)
    assert "outside" in report


def test_grey_by_step_may_change_late_only(edit):
    grey = torch.full((1, SIZE, SIZE), 0.34)
    late = edit(mask=grey, keep_outside=LATENT, soft_mask=BY_STEP)[0]
    blended = edit(mask=grey, keep_outside=LATENT)[0]
    assert (late - blended).abs().max() > 0.01


def test_an_automatic_mask_leaves_its_share_as_it_was(edit, texts, inversion):
    latent = edit(auto_mask=0.75, source=texts["source"], keep_outside=LATENT)[0]
    same = (latent == inversion.clean).all(1).float().mean()
    assert same == pytest.approx(0.75, abs=0.05)


def test_a_concept_of_no_weight_changes_nothing(edit, texts):
    (concepts,) = EditConcept.execute(texts["edit"], weight=0.0).args
    assert_close(edit(concepts=concepts)[0], edit()[0], **ONE_PASS)


def test_concepts_add_up_and_stay_where_they_may_act(edit, texts, model, vae, image):
    """One step, so that the network cannot carry a change to other places."""
    single = invert(model, texts, vae.encode(image), steps=1)
    choice = {"threshold": 0.0, "start_percent": 0.0}

    def change(*rules):
        concepts = ()
        for rule in rules:
            (concepts,) = EditConcept.execute(
                texts["edit"], **choice, **rule, append_to=concepts
            ).args
        given = {"inversion": single, "positive": None, "source": texts["source"]}
        return edit(concepts=concepts, **given)[0]

    neutral = change({"weight": 0.0})
    added = change({"weight": 1.0}) - neutral
    masked = change({"weight": 1.0, "mask": left_mask()}) - neutral
    assert added.abs().max() > 0.01
    assert_close(masked, added * latent_mask(left_mask()[:, None], 8, 8), **ONE_PASS)
    both = change({"weight": 1.0}, {"weight": 0.5})
    assert_close(both - neutral, 1.5 * added, rtol=0, atol=1e-3)
    assert_close(change({"weight": -1.0}) - neutral, -added, **ONE_PASS)


def test_looking_as_the_source_acts_and_leaves_no_trace(edit, texts, model):
    before = stock(model, texts)
    options = copy.deepcopy(model.model_options)
    shared = edit(share_attention=1.0, source=texts["source"])[0]
    assert (shared - edit()[0]).abs().max() > 0.01
    assert model.model_options == options
    assert_close(stock(model, texts), before, **EQUAL)


def test_the_source_itself_looks_as_the_source(edit, texts, inversion):
    """On the stored states the recorded attention is the edit's own."""
    same = edit(positive=None, source=texts["source"], share_attention=1.0)[0]
    assert_close(same, inversion.clean, **ONE_PASS)


def test_many_targets_of_one_source(edit, texts):
    rows = [texts["edit"][0], texts["source"][0]]
    both = [[torch.cat([tensor for tensor, _ in rows]), {}]]
    found = edit(positive=both)[0]
    alone = [edit(positive=[[tensor, {}]])[0] for tensor, _ in rows]
    assert_close(found, torch.cat(alone), rtol=0, atol=5e-4)


def test_the_picture_is_part_of_the_prompt(edit, texts, adapter, clip_vision, image):
    given = {"image_adapter": adapter, "clip_vision": clip_vision, "image": image}
    seen = edit(**given)[0]
    assert_close(edit(**given, image_weight=0.0)[0], edit()[0], **ONE_PASS)
    assert (seen - edit()[0]).abs().max() > 0.01
    assert_close(edit(**given, image_scale=3.0)[0], seen, **EQUAL)  # equal scales are one
    assert (edit(**given, image_scale=1.0)[0] - seen).abs().max() > 0.01
    assert (edit(**given, uncond=SAME_PICTURE)[0] - seen).abs().max() > 0.01
    without = edit(image_adapter=adapter, clip_vision=clip_vision)[0]  # the VAE's version of it
    assert without.shape == seen.shape


def test_all_at_once(edit, texts, adapter, clip_vision, image):
    (concepts,) = EditConcept.execute(texts["source"], weight=-2.0).args
    latent, picture, _ = edit(
        image_adapter=adapter, clip_vision=clip_vision, image=image, image_scale=1.0,
        share_attention=0.5, auto_mask=0.3, sharpening=1.5, threshold=0.3, concepts=concepts,
        source=texts["source"], mask=left_mask(), negative_from=NEGATIVE_SOURCE,
    )  # fmt: skip
    assert latent.isfinite().all()
    assert_close(picture[:, :, SIZE // 2 :], image[:, :, SIZE // 2 :], **EQUAL)


def test_the_weight_of_the_picture_is_searched(edit, adapter, clip_vision, image):
    given = {"image_adapter": adapter, "clip_vision": clip_vision, "image": image}
    found, _, report = edit(**given, wanted_psnr=0.1)
    assert_close(found, edit(**given, image_weight=0.0)[0], **EQUAL)
    assert "image_weight 0 reaches" in report
    assert "image_weight 1.5 is the most" in edit(**given, wanted_psnr=60.0)[2]


def test_inputs_stay_as_they_are(edit, inversion, texts, image):
    before = copy.deepcopy((inversion, texts, image))
    edit(mask=left_mask(), image=image, source=texts["source"], share_attention=1.0, auto_mask=0.5)
    for name in ("states", "noise", "clean", "maps"):
        assert_close(getattr(inversion, name), getattr(before[0], name), **EQUAL)
    assert texts["edit"][0][1].keys() == before[1]["edit"][0][1].keys()
    assert torch.equal(image, before[2])


@pytest.mark.parametrize("method", [name for name in METHODS if "rf-inversion" not in name.lower()])
def test_every_way_down_carries_an_edit(edit, model, texts, vae, image, method):
    other = invert(model, texts, vae.encode(image), method=method, steps=2)
    latent = edit(inversion=other, mask=left_mask())[0]
    assert_close(latent[..., 4:], other.clean[..., 4:], **EQUAL)
    assert (latent[..., :4] - other.clean[..., :4]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"positive": None}, "neither positive nor source is connected"),
        ({"negative_from": NEGATIVE_SOURCE}, "negative_from is source and source is not connected"),
        ({"share_attention": 0.5}, "share_attention is 0.5 and source is not connected"),
        ({"auto_mask": 0.5}, "auto_mask is on and source is not connected"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent is 0.5, end_percent is 0.5"),
        ({"wanted_psnr": 30.0}, "wanted_psnr is 30 and image_adapter is not connected"),
        ({"mask": torch.ones(1, 32, 64)}, "mask is 64 x 32 px, the picture is 64 x 64 px"),
        ({"mask": torch.full((1, 64, 64), torch.nan)}, "mask holds NaN"),
        ({"mask": torch.ones(3, 64, 64)}, "mask holds 3 masks, image holds 1"),
        (
            {"image": torch.rand(1, 32, 32, 3)},
            "image is 32 x 32 px, the inverted picture is 64 x 64",
        ),
    ],
)
def test_refusals(edit, choices, words):
    with pytest.raises(ValueError, match=words):
        edit(**choices)


def test_an_adapter_without_its_encoder_is_refused(edit, adapter):
    with pytest.raises(ValueError, match="image_adapter is connected and clip_vision is not"):
        edit(image_adapter=adapter)


def test_a_region_needs_the_states(edit, inversion, texts):
    ends = replace(inversion, states=None, maps=None)
    edit(inversion=ends)
    with pytest.raises(ValueError, match="keeps its end state only, a region needs them all"):
        edit(inversion=ends, mask=left_mask())
    with pytest.raises(ValueError, match="share_attention is 1 and inversion keeps its end state"):
        edit(inversion=ends, share_attention=1.0, source=texts["source"])


def test_another_model_is_refused(edit, inversion):
    foreign = replace(inversion, source=replace(inversion.source, model="SDXL"))
    with pytest.raises(ValueError, match="SDXL"):
        edit(inversion=foreign)


def test_other_noise_levels_than_the_inversions_are_refused(model, inversion, guider):
    latent = {"samples": torch.zeros_like(inversion.clean)}
    euler = comfy.samplers.sampler_object("euler")
    with pytest.raises(ValueError, match="sigmas hold 4 steps, inversion has 3"):
        SamplerCustomAdvanced.execute(
            InversionNoise(inversion, model), guider(), euler, torch.linspace(9, 0, 5), latent
        )


def test_a_picture_of_any_size_comes_back_in_it(edit, model, vae, texts):
    picture = torch.from_numpy(paint(scene(UNSEEN_FROM + 1), SIZE).image)[None].float() / 255
    picture = picture[:, :40, :]
    planes = padded(picture.movedim(-1, 1), vae).movedim(1, -1)
    settings = Settings(method=StoredResidual.name, steps=2)
    narrow = invert_latent(
        source_guider(model, texts["source"]), vae.encode(planes), settings, size_px=(40, SIZE)
    )
    mask = left_mask()[:, :40]
    found = edit(inversion=narrow, image=picture, mask=mask)[1]
    assert found.shape == picture.shape
    assert_close(found[:, :, SIZE // 2 :], picture[:, :, SIZE // 2 :], **EQUAL)


def test_a_video_has_one_source_picture_for_each_frame(model, vae, inversion, image):
    """Of what surrounds the network only: the miniature's draws no videos."""
    video = replace(inversion, clean=inversion.clean[:, :, None].expand(-1, -1, 3, -1, -1))

    class Video:
        def decode(self, latent):
            return vae.decode(latent[0].movedim(1, 0))[None]

    assert _source_planes(Video(), model, video, None).shape == (3, 3, SIZE, SIZE)
    frames = image.expand(3, -1, -1, -1)
    planes = _source_planes(Video(), model, video, frames)
    assert_close(planes, frames.movedim(-1, 1), **EQUAL)
    with pytest.raises(ValueError, match="image holds 2 pictures, inversion holds 3"):
        _source_planes(Video(), model, video, frames[:2])
    with pytest.raises(ValueError, match="mask holds 3 masks and inversion a video"):
        _mask_for(torch.ones(3, SIZE, SIZE), planes, video)
    places = GatheredPlaces(0.5)
    places.add(torch.rand(1, 4, 3, 8, 8))
    region = Region(mask=None, places=places, keep=LATENT, soft=BY_STEP, feather_px=0)
    assert region.in_pixels(SIZE, SIZE, 8).shape == (1, 1, SIZE, SIZE)
