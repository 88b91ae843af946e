"""The image prompt on the miniature: neutral, leak-free, masked, and right for several pictures."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_perpneg as perpneg
import numpy as np
import torch
from torch import nn
from torch.testing import assert_close

import nodes
from veduta.mini.image_prompt import new_adapter
from veduta.mini.landscapes import scene
from veduta.mini.load import load_image_text
from veduta.mini.painter import paint
from veduta.mini.pool import UNSEEN_FROM
from veduta.models.common.decoupled_attention import LayerShape
from veduta.models.common.image_adapter import SD15, ImageProjection, ImagePromptAdapter
from veduta.models.common.image_adapter_files import save_image_adapter
from veduta.nodes import mini
from veduta.nodes.host.attention import CONDS_KEY, Extra, attend_extra
from veduta.nodes.host.image_prompt import (
    AVERAGE,
    BLACK_PICTURE,
    CROPPED,
    NO_PICTURE,
    ONE_EACH,
    PADDED,
    SAME_PICTURE,
    ImagePrompt,
    _padded,
    apply_image_prompt,
    open_image_adapter,
    zero_pixel_states,
)
from veduta.nodes.image_prompt.nodes import ApplyImageAdapter

EQUAL = {"rtol": 0, "atol": 0}
ONE_PASS = {"rtol": 0, "atol": 5e-5}  # float32 of another batch size, through the whole network
SIGMA = 7.0  # of a single prediction
STATES = 192  # width of the miniature's image encoder


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(comfyui):
    return mini.load_model()


@pytest.fixture(scope="module")
def clip_vision(comfyui):
    return mini.load_clip_vision()


@pytest.fixture(scope="module")
def texts(comfyui):
    with torch.inference_mode():
        clip = mini.load_clip()
        words = ("a red boat on a calm sea", "", "snow")
        return [nodes.CLIPTextEncode().encode(clip, text)[0] for text in words]


@pytest.fixture(scope="module")
def positive(texts):
    return texts[0]


@pytest.fixture(scope="module")
def negative(texts):
    return texts[1]


@pytest.fixture(scope="module")
def images():
    painted = [paint(scene(UNSEEN_FROM + i), 64).image for i in range(2)]
    return torch.from_numpy(np.stack(painted)).float() / 255


def written(folder, made):
    save_image_adapter(folder / "a.safetensors", made, "miniature")
    return open_image_adapter(folder / "a.safetensors")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = new_adapter(model, STATES)
        for projection in made.to_v.parameters():
            nn.init.normal_(projection, std=0.05)
    return written(tmp_path_factory.mktemp("adapter"), made)


@pytest.fixture
def apply(model, adapter, clip_vision, images, positive, negative):
    """apply_image_prompt with what the fixtures give, in place of which other things may be given."""

    def applied(**options):
        given = {
            "model": model, "adapter": adapter, "clip_vision": clip_vision, "image": images[:1],
            "positive": positive, "negative": negative,
        }  # fmt: skip
        given |= {key: options.pop(key) for key in tuple(options) if key in given}
        return apply_image_prompt(**given, settings=ImagePrompt(**options))

    return applied


def picture(model, positive, negative, batch=1):
    latent = {"samples": torch.zeros(batch, 4, 8, 8)}
    return nodes.KSampler().sample(
        model, 1, 2, 4.0, "euler", "normal", positive, negative, latent
    )[0]["samples"]  # fmt: skip


class OnePrediction(comfy.samplers.CFGGuider):
    """Evaluates any number of conditionings in one call of core's."""

    def __init__(self, model, conds):
        super().__init__(model)
        self.inner_set_conds(conds)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = list(self.conds.values())
        answers = comfy.samplers.calc_cond_batch(
            self.inner_model, conds, x, timestep, model_options
        )
        self.seen = dict(zip(self.conds, answers, strict=True))
        return answers[0]


def sampled_once(guider, batch=1):
    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(
        noise, torch.zeros_like(noise), sampler, torch.tensor([SIGMA, 0.0]), disable_pbar=True
    )


def predictions(model, conds, batch=1):
    guider = OnePrediction(model, conds)
    sampled_once(guider, batch)
    return guider.seen


def prediction(model, cond, batch=1):
    return predictions(model, {"only": cond}, batch)["only"]


def first_layer(model, cond):
    """Output (p d) of the first cross-attention layer, on a map of 8 x 8."""
    outputs = []

    def look(n, extra_options):
        if extra_options["block"] == ("input", 1):
            outputs.append(n[0])
        return n

    watched = model.clone()
    watched.set_model_attn2_output_patch(look)
    prediction(watched, cond)
    return outputs[0]


def extras(conditioning):
    return [row.extras for row in conditioning[0][1]["model_conds"][CONDS_KEY].rows]


# neutral and leak-free


def test_what_does_not_act_changes_no_bit(model, apply, positive, negative, tmp_path):
    plain = picture(model, positive, negative)
    with torch.inference_mode(False), torch.no_grad():
        silent = new_adapter(model, STATES)
        for projection in silent.to_v.parameters():
            nn.init.zeros_(projection)
        silent = written(tmp_path, silent)
    for options in ({"weight": 0.0}, {"mask": torch.zeros(1, 64, 64)}, {"adapter": silent}):
        assert_close(picture(*apply(**options)), plain, **EQUAL)


def test_the_picture_counts_and_its_weight(model, apply, images, positive, negative):
    plain = picture(model, positive, negative)
    one, two = (picture(*apply(image=image[None])) for image in images)
    weak = picture(*apply(weight=0.3))
    assert (one - two).abs().mean() > 0.003
    assert 0 < (weak - plain).abs().mean() < (one - plain).abs().mean()


def test_branches_of_one_model_do_not_disturb_each_other(model, apply, images, positive, negative):
    plain = picture(model, positive, negative)
    first = apply()
    before = picture(*first)
    second = apply(model=first[0], image=images[1:], weight=2.0, layers="style")
    other = picture(*second)
    assert_close(picture(*first), before, **EQUAL)
    assert_close(picture(model, positive, negative), plain, **EQUAL)
    assert_close(picture(*second), other, **EQUAL)
    assert not torch.equal(other, before)
    assert CONDS_KEY not in positive[0][1].get("model_conds", {})


def test_the_node_is_the_function(apply, model, adapter, clip_vision, images, positive, negative):
    given = (model, adapter, clip_vision, images[:1], positive, negative)
    answer = ApplyImageAdapter.execute(*given, weight=0.7, layers="content").args
    assert_close(picture(*answer), picture(*apply(weight=0.7, layers="content")), **EQUAL)


def test_nodes_in_a_row_add_up_whatever_number_of_pictures_they_have(apply, images, positive):
    plain = first_layer(apply()[0], positive)

    def added(patched, cond, _):
        return first_layer(patched, cond) - plain

    one, two = apply(image=images[:1], weight=0.5), apply(image=images)
    both = apply(model=one[0], positive=one[1], negative=one[2], image=images)
    assert_close(added(*both), added(*one) + added(*two), rtol=0, atol=1e-4)
    assert picture(*both).isfinite().all()


def test_core_s_memory_management_knows_the_adapter_once(apply, adapter):
    patched, positive, negative = apply()
    again = apply(model=patched, positive=positive, negative=negative)[0]
    loaded = [one.model for one in again.get_nested_additional_models()]
    assert loaded == [adapter.loaded.adapter]


# any number of conditionings


def test_any_number_of_conditionings_see_their_own_pictures(apply, images, texts):
    patched, one, nothing = apply(positive=texts[0], negative=texts[1])
    _, two, _ = apply(positive=texts[2], image=images[1:])
    conds = {"one": one, "nothing": nothing, "two": two, "plain": texts[2]}
    seen = predictions(patched, conds)
    for name, cond in conds.items():
        assert_close(seen[name], prediction(patched, cond), **ONE_PASS)
    assert not torch.allclose(seen["two"], seen["plain"], atol=1e-3)


def test_perpneg_and_dual_cfg_guiders_take_it(apply, model, texts):
    patched, positive, negative = apply()
    empty = texts[2]
    seen = predictions(patched, {"a": positive, "b": empty, "c": negative})
    dual = custom.DualCFGGuider.execute(patched, positive, empty, negative, 4.0, 2.0, "regular")
    middle = seen["c"] + 2.0 * (seen["b"] - seen["c"])
    expected = middle + 4.0 * (seen["a"] - seen["b"])
    assert_close(sampled_once(dual.args[0]), expected, rtol=0, atol=1e-3)
    perpendicular = perpneg.PerpNegGuider.execute(patched, positive, negative, empty, 4.0, 0.0)
    expected = seen["b"] + 4.0 * (seen["a"] - seen["b"])  # at neg_scale 0 plain guidance
    assert_close(sampled_once(perpendicular.args[0]), expected, rtol=0, atol=1e-3)


def test_areas_and_masks_of_conditionings_keep_it(apply, texts, negative):
    patched, positive, _ = apply()
    left = nodes.ConditioningSetArea().append(positive, 32, 64, 0, 0, 1.0)[0]
    masked = nodes.ConditioningSetMask().append(positive, torch.ones(1, 64, 64), "default", 1.0)[0]
    assert_close(prediction(patched, masked), prediction(patched, positive), **ONE_PASS)
    both = left + texts[2]
    alone = [[tensor, {k: v for k, v in o.items() if k != "model_conds"}] for tensor, o in left]
    moved = (prediction(patched, both) - prediction(patched, alone + texts[2])).abs()
    assert moved[..., :3].max() > 1e-3
    assert moved[..., 5:].max() < 1e-6  # the area ends in the middle of 8


# masks and curves


def test_a_half_mask_acts_on_its_half_alone(apply, positive):
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1.0
    patched, masked, _ = apply(mask=half)
    plain, whole, left = (
        first_layer(patched, cond).unflatten(0, (8, 8)) for cond in (positive, apply()[1], masked)
    )
    assert_close(left[:, 4:], plain[:, 4:], **EQUAL)
    assert_close(left[:, :4], whole[:, :4], **EQUAL)
    assert (whole - plain)[:, 4:].abs().max() > 1e-3


def test_a_mask_of_ones_is_no_mask(apply):
    assert_close(picture(*apply(mask=torch.ones(1, 20, 20))), picture(*apply()), **EQUAL)


def test_masks_may_be_one_per_picture_of_the_batch(apply):
    masks = torch.stack([torch.zeros(16, 16), torch.ones(16, 16)])
    patched, masked, _ = apply(mask=masks)
    found = prediction(patched, masked, batch=2)
    assert_close(found[1:], prediction(patched, apply()[1], batch=2)[1:], **ONE_PASS)
    assert_close(found[:1], prediction(patched, apply(weight=0.0)[1], batch=2)[:1], **ONE_PASS)


@pytest.mark.parametrize(
    ("curve", "percent", "factor"),
    [((1, 0), 0.2, 1.0), ((1, 0), 0.5, 0.5), ((0, 1), 0.5, 0.5), ((0, 1), 0.8, 1.0),
     ((1, 0), 0.65, 0.25), ((1, 1), 0.5, 1.0), ((1, 1), 0.9, 0.0)],
)  # fmt: skip
def test_a_curve_is_straight_from_start_to_end(model, curve, percent, factor):
    extra = Extra(
        adapter=None, request=None, strength=2.0, start_percent=0.2, end_percent=0.8, curve=curve
    )
    sampling = model.get_model_object("model_sampling")
    found = extra.strength_at(sampling.percent_to_sigma(percent), sampling)
    assert found == pytest.approx(2.0 * factor, abs=1e-2)


def test_a_falling_curve_ends_as_no_picture(apply, model, positive, negative):
    falling = picture(*apply(curve=(1.0, 0.0)))
    assert not torch.equal(falling, picture(*apply()))
    assert not torch.equal(falling, picture(model, positive, negative))


# uncond, several pictures, fit


def test_uncond_chooses_what_the_negative_sees(apply, clip_vision):
    requests = {}
    for uncond in (ImagePrompt().uncond, SAME_PICTURE, BLACK_PICTURE, NO_PICTURE):
        _, positive, negative = apply(uncond=uncond)
        ((shown,),), (seen,) = extras(positive), extras(negative)
        requests[uncond] = (shown.request, seen[0].request if seen else None)
    assert requests[SAME_PICTURE][0] is requests[SAME_PICTURE][1]
    assert requests[NO_PICTURE][1] is None
    zero, black = (requests[key][1].tensor for key in (ImagePrompt().uncond, BLACK_PICTURE))
    assert_close(zero, zero_pixel_states(clip_vision)[None, 0], **EQUAL)
    assert (zero - black).abs().mean() > 0.01


def test_zero_pixels_and_pictures_are_seen_as_transformers_sees_them(clip_vision, images):
    tower = load_image_text()
    seen = tower.vision_model(pixel_values=torch.zeros(1, 3, 128, 128), output_hidden_states=True)
    assert_close(zero_pixel_states(clip_vision), seen.hidden_states[-2], rtol=0, atol=1e-4)
    square = torch.nn.functional.interpolate(images.movedim(-1, 1), 128).movedim(1, -1)
    core = nodes.CLIPVisionEncode().encode(clip_vision, square, "center")[0]
    mean, std = (torch.tensor(x) for x in (clip_vision.image_mean, clip_vision.image_std))
    seen = tower.vision_model(
        pixel_values=((square - mean) / std).movedim(-1, 1), output_hidden_states=True
    )
    assert_close(core["penultimate_hidden_states"], seen.hidden_states[-2], rtol=0, atol=1e-2)
    assert_close(
        core["image_embeds"], tower.visual_projection(seen.pooler_output), rtol=0, atol=1e-2
    )


def test_a_base_adapter_s_negative_sees_the_zero_embedding(clip_vision, apply, tmp_path, model):
    with torch.inference_mode(False), torch.no_grad():
        shapes = new_adapter(model, STATES).layers
        made = ImagePromptAdapter(ImageProjection(STATES, 192, 4), shapes)
        base = written(tmp_path, made)
    _, positive, negative = apply(adapter=base)
    ((shown,),), ((unshown,),) = extras(positive), extras(negative)
    assert shown.request.tensor.shape == unshown.request.tensor.shape == (1, 1, STATES)
    assert not unshown.request.tensor.any()
    assert shown.request.tensor.any()


def test_the_same_picture_twice_is_that_picture(apply, images):
    twice = images[:1].repeat(2, 1, 1, 1)
    once = prediction(*apply()[:2])
    for options in ({}, {"combine": AVERAGE}):
        assert_close(prediction(*apply(image=twice, **options)[:2]), once, **ONE_PASS)
    joined, average = (
        prediction(*apply(image=images, **o)[:2]) for o in ({}, {"combine": AVERAGE})
    )
    assert not torch.allclose(joined, average, atol=1e-4)
    assert not torch.allclose(joined, once, atol=1e-4)


def test_one_per_picture_of_the_batch_is_each_on_its_own(apply, images):
    patched, each, negative = apply(image=images, combine=ONE_EACH)
    together = prediction(patched, each, batch=2)
    for i, image in enumerate(images):
        alone = prediction(patched, apply(image=image[None])[1], batch=2)
        assert_close(together[i], alone[i], **ONE_PASS)
    assert picture(patched, each, negative, batch=2).isfinite().all()
    with pytest.raises(ValueError, match="holds 2 .*the latent batch holds 3 pictures"):
        picture(patched, each, negative, batch=3)


def test_a_wide_picture_is_padded_with_the_encoder_s_zero():
    wide = torch.ones(1, 3, 2, 6)
    square = _padded(wide, torch.tensor([0.1, 0.2, 0.3]))
    assert square.shape == (1, 3, 6, 6)
    assert_close(square[:, :, 2:4], wide, **EQUAL)
    assert_close(square[0, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]), **EQUAL)
    assert_close(square[0, 1, 4:], torch.full((2, 6), 0.2), **EQUAL)


def test_fit_decides_what_of_a_wide_picture_is_seen(apply, images):
    wide = torch.cat([images[:1], images[1:]], 2)
    middle, cropped, padded = (
        extras(apply(image=image, fit=fit)[1])[0][0].request.tensor
        for image, fit in ((wide[:, :, 32:96], PADDED), (wide, CROPPED), (wide, PADDED))
    )
    # the resizing of the whole looks beyond the crop's edge
    assert (cropped - middle).abs().mean() < 0.1 * (padded - middle).abs().mean()


# what is refused, and what is not


def test_black_and_white_and_large_pictures_are_pictures(apply):
    for image in (torch.zeros(1, 64, 64, 3), torch.ones(1, 64, 64, 3), torch.zeros(1, 16, 4096, 3)):
        assert prediction(*apply(image=image)[:2]).isfinite().all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image": torch.zeros(1, 1, 1, 3)}, "image is 1 x 1 px, each side must lie in 16"),
        ({"image": torch.full((1, 64, 64, 3), torch.nan)}, "image holds NaN"),
        ({"mask": torch.zeros(3, 8, 8), "combine": ONE_EACH}, "mask holds 3 masks, image holds 2"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "the picture would never act"),
    ],
)
def test_bad_input_is_told_in_a_sentence(apply, images, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply(**{"image": images, **options})


def test_another_base_is_refused_by_name(apply, tmp_path):
    with torch.inference_mode(False), torch.no_grad():
        shapes = {name: LayerShape(8, 12) for name in SD15.layers}
        made = ImagePromptAdapter(ImageProjection(5, 8, 4), shapes)
        save_image_adapter(tmp_path / "a.safetensors", made, "SD1.5")
    with pytest.raises(ValueError, match=r"adapter .SD1.5. was made for 16 layers.*model has 16"):
        apply(adapter=open_image_adapter(tmp_path / "a.safetensors"))


def test_another_encoder_is_refused_by_its_width(apply, model, tmp_path):
    with torch.inference_mode(False), torch.no_grad():
        other = written(tmp_path, new_adapter(model, 77))
    with pytest.raises(ValueError, match="clip_vision gives features of width 192.*reads 77"):
        apply(adapter=other)


def test_patching_for_the_prompt_is_patching_once(apply):
    patched = attend_extra(apply()[0])
    patches = patched.model_options["transformer_options"]["patches"]["attn2_patch"]
    assert len(patches) == 1
