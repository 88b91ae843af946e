"""Extra attention on the miniature: neutral, additive, and right for whatever core batches and crops."""

import gc
import itertools
import weakref

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import nn
from torch.testing import assert_close

import nodes
from veduta.models.anchor.adapter import AnchorAdapter
from veduta.models.anchor.paper import PaperAdapter
from veduta.models.anchor.weights import load_adapter, save_adapter
from veduta.models.common.anchor import Anchor
from veduta.models.common.decoupled_attention import LayerShape, Sight
from veduta.nodes import mini
from veduta.nodes.host import attention
from veduta.nodes.host.attention import Extra, attend_extra, check_fits, layer_shapes, with_extra

HIGH = Anchor(horizon=0.2, tilt_deg=-6.0)
LOW = Anchor(horizon=0.8, subject_x=0.3, subject_y=0.6)
SIGMA = 7.0  # of a single prediction
EQUAL = {"rtol": 0, "atol": 0}
ONE_PASS = {"rtol": 0, "atol": 5e-5}  # float32 of another batch size, through the whole network
SAMPLED = {"rtol": 0, "atol": 2e-4}  # the same, over the steps of a picture


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(comfyui):
    return mini.load_model()  # outside of inference mode: one test needs gradients


@pytest.fixture(scope="module")
def texts(comfyui):
    with torch.inference_mode():
        clip = mini.load_clip()
        words = ("a red boat on a calm sea", "", "snow")
        return [nodes.CLIPTextEncode().encode(clip, text)[0] for text in words]


@pytest.fixture
def positive(texts):
    return texts[0]


@pytest.fixture
def negative(texts):
    return texts[1]


class Watched(AnchorAdapter):
    """Remembers what it was asked for."""

    def __init__(self, layers):
        super().__init__(layers)
        self.asked, self.projected = [], []

    def tokens(self, sights, height, width, aspect):
        self.asked.append((tuple(sights), (height, width), aspect))
        return super().tokens(sights, height, width, aspect)

    def keys_values(self, layer, tokens):
        self.projected.append((layer, tuple(tokens.shape)))
        return super().keys_values(layer, tokens)


def new_adapter(layers, kind=AnchorAdapter, std=0.1, seed=3):
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        made = kind(layers).requires_grad_(False)
        for projection in made.to_v.parameters():
            projection.normal_(std=std)
    return made


@pytest.fixture(scope="module")
def adapter(model):
    return new_adapter(layer_shapes(model))


@pytest.fixture
def patched(model):
    return attend_extra(model)


def asked(adapter, request=HIGH, **options):
    return Extra(adapter=adapter, request=request, **options)


def frame(height=8, width=8, batch=1):
    return {"samples": torch.zeros(batch, 4, height, width)}


def picture(model, positive, negative, latent=None, steps=2, **options):
    choices = {
        "seed": 1,
        "steps": steps,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
    }
    latent = latent or frame()
    answer = nodes.KSampler().sample(
        model, **{**choices, **options}, positive=positive, negative=negative, latent_image=latent
    )
    return answer[0]["samples"]


class OnePrediction(comfy.samplers.CFGGuider):
    """Evaluates any number of conditionings in one call of core's, in a given order."""

    def __init__(self, model, conds, order):
        super().__init__(model)
        self.inner_set_conds(conds)
        self.order = order

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = [self.conds[name] for name in self.order]
        answers = comfy.samplers.calc_cond_batch(
            self.inner_model, conds, x, timestep, model_options
        )
        self.seen = dict(zip(self.order, answers, strict=True))
        return answers[0]


def predictions(model, conds, order=None, latent=None):
    guider = OnePrediction(model, conds, order or tuple(conds))
    z = (latent or frame())["samples"]
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    sampler = comfy.samplers.sampler_object("euler")
    guider.sample(noise, z, sampler, torch.tensor([SIGMA, 0.0]), disable_pbar=True)
    return guider.seen


def prediction(model, cond, latent=None):
    return predictions(model, {"positive": cond}, latent=latent)["positive"]


def first_layer(model, cond, latent=None):
    """Output (b p d) of the first cross-attention layer."""
    outputs = []

    def look(n, extra_options):
        if extra_options["block"] == ("input", 1):
            outputs.append(n)
        return n

    watched = model.clone()
    watched.set_model_attn2_output_patch(look)
    prediction(watched, cond, latent)
    return outputs[0]


# neutral


def test_a_new_adapter_and_strength_zero_and_none_change_no_bit(model, patched, positive, negative):
    plain = picture(model, positive, negative)
    new = AnchorAdapter(layer_shapes(model))
    trained = new_adapter(layer_shapes(model))
    for extra in (asked(new), asked(trained, strength=0.0), None):
        anchored = with_extra(positive, [extra])
        assert_close(picture(patched, anchored, with_extra(negative, [None])), plain, **EQUAL)
        assert_close(picture(patched, anchored, negative), plain, **SAMPLED)  # in two passes
    assert_close(picture(patched, positive, negative), plain, **EQUAL)


def test_a_trained_adapter_changes_the_picture_and_the_request_counts(
    patched, adapter, positive, negative
):
    plain = picture(patched, positive, negative)
    high, low = (
        picture(patched, with_extra(positive, [asked(adapter, anchor)]), negative)
        for anchor in (HIGH, LOW)
    )
    assert (high - plain).abs().mean() > 0.01
    assert (high - low).abs().mean() > 0.01


def test_the_paper_s_empty_anchor_changes_no_bit(model, patched, positive, negative):
    one_token = new_adapter(layer_shapes(model), PaperAdapter)
    empty = with_extra(positive, [asked(one_token, Anchor())])
    out = picture(patched, empty, with_extra(negative, [None]))
    assert_close(out, picture(model, positive, negative), **EQUAL)


def test_the_conditioning_and_the_model_that_were_given_stay_as_they_are(
    model, adapter, positive, negative
):
    keys = [set(options) for _, options in positive]
    before = picture(model, positive, negative)
    options = {key: dict(value) if isinstance(value, dict) else value
               for key, value in model.model_options["transformer_options"].items()}  # fmt: skip
    patched = attend_extra(model)
    picture(patched, with_extra(positive, [asked(adapter)]), with_extra(negative, [None]))
    assert [set(options) for _, options in positive] == keys
    assert model.model_options["transformer_options"] == options
    assert "patches" not in options
    assert_close(picture(model, positive, negative), before, **EQUAL)


def test_patching_twice_is_patching_once_and_the_first_clone_stays(
    patched, adapter, positive, negative
):
    anchored = with_extra(positive, [asked(adapter)])
    once = picture(patched, anchored, negative)
    twice = attend_extra(patched)
    assert twice is not patched
    assert_close(picture(twice, anchored, negative), once, **EQUAL)
    assert_close(picture(patched, anchored, negative), once, **EQUAL)
    assert len(twice.model_options["transformer_options"]["patches"]["attn2_patch"]) == 1


def test_no_hooks_are_used(adapter, positive):
    assert not any("hooks" in options for _, options in with_extra(positive, [asked(adapter)]))


# what a layer adds


def test_equal_queries_get_another_answer_at_another_place(model, adapter, positive):
    """With the same query everywhere the text's part is the same everywhere, too."""

    def same_everywhere(n, context, value, extra_options):
        return torch.ones_like(n), context, value

    levelled = model.clone()
    levelled.set_model_attn2_patch(same_everywhere)
    levelled = attend_extra(levelled)

    def spread(adapter):
        n = first_layer(levelled, with_extra(positive, [asked(adapter, LOW)]))
        return (n - n.mean(1, keepdim=True)).abs().max()

    assert spread(adapter) > 0.01
    assert spread(new_adapter(layer_shapes(model), PaperAdapter)) < 1e-5


def test_strength_and_layer_strength_are_factors_of_what_is_added(patched, adapter, positive):
    plain = first_layer(patched, positive)

    def added(**options):
        return first_layer(patched, with_extra(positive, [asked(adapter, **options)])) - plain

    whole = added()
    assert whole.abs().max() > 0.01
    assert_close(added(strength=-0.5), -0.5 * whole, rtol=0, atol=1e-5)
    assert_close(added(layer_strengths={"input_1_0": 0.25}), 0.25 * whole, rtol=0, atol=1e-5)
    assert_close(added(strength=2.0, layer_strengths={"input_1_0": 0.5}), whole, rtol=0, atol=1e-5)
    assert_close(added(layer_strengths={"input_1_0": 0.0}), 0 * whole, **EQUAL)
    assert_close(added(layer_strengths={"middle_0_0": 0.0}), whole, **EQUAL)


def test_layers_at_zero_are_layers_that_the_adapter_does_not_know(model, patched, positive):
    shapes = layer_shapes(model)
    whole = new_adapter(shapes)
    part = AnchorAdapter({name: shapes[name] for name in ("input_4_0", "output_5_0")})
    part.load_state_dict(
        {key: x for key, x in whole.state_dict().items() if key in part.state_dict()}
    )
    off = {name: 0.0 for name in shapes if name not in part.layers}
    one = prediction(patched, with_extra(positive, [asked(whole, layer_strengths=off)]))
    other = prediction(patched, with_extra(positive, [asked(part)]))
    assert_close(one, other, **EQUAL)
    assert not torch.equal(one, prediction(patched, positive))
    all_off = asked(whole, layer_strengths=dict.fromkeys(shapes, 0.0))
    assert_close(
        prediction(patched, with_extra(positive, [all_off])), prediction(patched, positive), **EQUAL
    )


def test_two_adapters_add_up_in_any_order(model, patched, adapter, positive):
    other = new_adapter(layer_shapes(model), PaperAdapter, std=1.0, seed=9)
    first, second = asked(adapter), asked(other, LOW, strength=0.7)
    plain = first_layer(patched, positive)
    parts = [first_layer(patched, with_extra(positive, [x])) - plain for x in (first, second)]
    assert parts[1].abs().max() > 0.001
    both = with_extra(with_extra(positive, [first]), [second])
    reverse = with_extra(with_extra(positive, [second]), [first])
    assert_close(first_layer(patched, both) - plain, sum(parts), rtol=0, atol=1e-4)  # of about 20
    assert_close(prediction(patched, both), prediction(patched, reverse), **ONE_PASS)


def test_twice_half_of_an_adapter_is_the_whole_of_it(patched, adapter, positive):
    half = asked(adapter, strength=0.5)
    twice = with_extra(with_extra(positive, [half]), [half])
    once = with_extra(positive, [asked(adapter)])
    assert_close(prediction(patched, twice), prediction(patched, once), **ONE_PASS)


def gradients(patched, adapter, context):
    adapter.requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
        rows = {attention.CONDS_KEY: (attention.Row((asked(adapter),)),)}
        out = patched.model.apply_model(
            x * SIGMA, torch.tensor([SIGMA]), c_crossattn=context.clone(),
            transformer_options=options, **rows,
        )  # fmt: skip
        out.square().sum().backward()
    adapter.requires_grad_(False)
    found = {key: x.grad for key, x in adapter.named_parameters()}
    return {key: 0.0 if grad is None else float(grad.abs().max()) for key, grad in found.items()}


def test_keys_learn_but_not_those_of_a_single_token(model, patched, positive, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    patched.model.requires_grad_(False)
    found = gradients(patched, new_adapter(layer_shapes(model)), positive[0][0])
    assert min(keys_over_values(found)) > 0.01
    one_token = new_adapter(layer_shapes(model), PaperAdapter)
    for projection in one_token.to_k.parameters():
        projection.data.normal_()
    found = gradients(patched, one_token, positive[0][0])
    assert max(keys_over_values(found)) < 1e-4  # rounding of a softmax over one key


def keys_over_values(gradients: dict[str, float]) -> list[float]:
    """How much the keys of every layer learn, next to its values."""
    values = {key: grad for key, grad in gradients.items() if key.startswith("to_v")}
    return [gradients[key.replace("to_v", "to_k", 1)] / grad for key, grad in values.items()]


# order, split and area of conditionings


@pytest.mark.parametrize("order", itertools.permutations(("negative", "middle", "positive")))
def test_any_order_of_three_conditionings(patched, adapter, texts, order):
    positive, negative, middle = texts
    conds = {
        "positive": with_extra(positive, [asked(adapter)]),
        "negative": with_extra(negative, [asked(adapter, LOW)]),
        "middle": with_extra(middle, [None]),
    }
    together = predictions(patched, conds, order)
    for name, cond in conds.items():
        assert_close(together[name], prediction(patched, cond), **ONE_PASS)
    assert_close(together["middle"], prediction(patched, middle), **ONE_PASS)


def test_only_one_side_anchored_needs_no_same_keys(patched, adapter, positive, negative):
    anchored = with_extra(positive, [asked(adapter)])
    apart = predictions(patched, {"positive": anchored, "negative": negative})
    together = predictions(
        patched, {"positive": anchored, "negative": with_extra(negative, [None])}
    )
    for name in ("positive", "negative"):
        assert_close(apart[name], together[name], **ONE_PASS)


def test_combined_conditionings_keep_their_own_request(patched, adapter, positive):
    high, low = (with_extra(positive, [asked(adapter, anchor)]) for anchor in (HIGH, LOW))
    mean = (prediction(patched, high) + prediction(patched, low)) / 2
    both = nodes.ConditioningCombine().combine(high, low)[0]
    assert_close(prediction(patched, both), mean, **ONE_PASS)
    with_plain = nodes.ConditioningCombine().combine(high, positive)[0]
    mean = (prediction(patched, high) + prediction(patched, positive)) / 2
    assert_close(prediction(patched, with_plain), mean, **ONE_PASS)


def watched_crops(watched):
    return {(sight.request, sight.crop) for sights, *_ in watched.asked for sight in sights}


@pytest.mark.parametrize(
    ("area", "crop", "size"),
    [
        ((64, 64, 64, 0), (0.5, 0.0, 1.0, 1.0), (8, 8)),  # width, height, x, y in px
        ((40, 24, 24, 16), (3 / 16, 2 / 8, 8 / 16, 5 / 8), (3, 5)),
    ],
)
def test_an_area_is_seen_as_its_part_of_the_frame(model, patched, positive, area, crop, size):
    watched = new_adapter(layer_shapes(model), Watched)
    part = nodes.ConditioningSetArea().append(
        with_extra(positive, [asked(watched)]), *area, strength=1.0
    )[0]
    z = prediction(patched, part, frame(8, 16))
    assert watched.asked[0] == ((Sight(HIGH, crop),), size, 2.0)
    assert {aspect for *_, aspect in watched.asked} == {2.0}
    assert watched_crops(watched) == {(HIGH, crop)}
    assert z.isfinite().all()


def test_an_area_of_the_whole_frame_is_no_area(patched, adapter, positive):
    anchored = with_extra(positive, [asked(adapter)])
    whole = nodes.ConditioningSetArea().append(anchored, 128, 64, 0, 0, 1.0)[0]
    latent = frame(8, 16)
    assert_close(
        prediction(patched, whole, latent), prediction(patched, anchored, latent), **ONE_PASS
    )


def test_areas_side_by_side_see_one_horizon_and_the_negative_s_twins_nothing(
    model, patched, positive, negative
):
    watched = new_adapter(layer_shapes(model), Watched)
    anchored = with_extra(positive, [asked(watched)])
    halves = [
        nodes.ConditioningSetAreaPercentage().append(anchored, 0.5, 1.0, x, 0.0, 1.0)[0]
        for x in (0.0, 0.5)
    ]
    out = picture(patched, halves[0] + halves[1], with_extra(negative, [None]), frame(8, 16))
    assert out.isfinite().all()
    assert watched_crops(watched) == {(HIGH, (0.0, 0.0, 0.5, 1.0)), (HIGH, (0.5, 0.0, 1.0, 1.0))}


def half_mask(side):
    mask = torch.zeros(1, 64, 128)
    mask[..., slice(0, 64) if side == "left" else slice(64, 128)] = 1.0
    return mask


def test_two_half_masks_are_the_whole(patched, adapter, positive):
    anchored = with_extra(positive, [asked(adapter)])
    halves = [
        nodes.ConditioningSetMask().append(anchored, half_mask(side), "default", 1.0)[0]
        for side in ("left", "right")
    ]
    latent = frame(8, 16)
    assert_close(
        prediction(patched, halves[0] + halves[1], latent),
        prediction(patched, anchored, latent),
        **ONE_PASS,
    )


def test_a_mask_s_bounds_are_seen_as_their_part_of_the_frame(model, patched, positive):
    watched = new_adapter(layer_shapes(model), Watched)
    masked = nodes.ConditioningSetMask().append(
        with_extra(positive, [asked(watched)]), half_mask("right"), "mask bounds", 1.0
    )[0]
    prediction(patched, masked, frame(8, 16))
    assert watched_crops(watched) == {(HIGH, (0.5, 0.0, 1.0, 1.0))}


def test_batches_in_an_area_keep_their_own_requests(model, patched, positive):
    watched = new_adapter(layer_shapes(model), Watched)
    anchored = with_extra(positive, [asked(watched, HIGH), asked(watched, LOW)])
    part = nodes.ConditioningSetArea().append(anchored, 32, 64, 32, 0, 1.0)[0]
    prediction(patched, part, frame(batch=2))
    crop = (0.5, 0.0, 1.0, 1.0)
    assert {sights for sights, *_ in watched.asked} == {(Sight(HIGH, crop), Sight(LOW, crop))}


def test_core_s_timestep_ranges_and_own_windows_agree(patched, adapter, positive, negative):
    early = nodes.ConditioningSetTimestepRange().set_range(
        with_extra(positive, [asked(adapter)]), 0.0, 0.5
    )[0]
    late = nodes.ConditioningSetTimestepRange().set_range(positive, 0.5, 1.0)[0]
    window = with_extra(positive, [asked(adapter, end_percent=0.5)])
    ranged = picture(patched, early + late, negative, steps=4)
    assert_close(picture(patched, window, negative, steps=4), ranged, **SAMPLED)


def test_outside_of_its_window_an_extra_changes_no_bit(patched, adapter, positive, negative):
    negative = with_extra(negative, [None])
    positive_alone = with_extra(positive, [None])
    plain = picture(patched, positive_alone, negative, steps=3)
    outside = asked(adapter, start_percent=0.4, end_percent=0.6)  # between the first two steps
    assert_close(
        picture(patched, with_extra(positive, [outside]), negative, steps=3, scheduler="simple"),
        picture(patched, positive_alone, negative, steps=3, scheduler="simple"),
        **EQUAL,
    )
    for window in ({"end_percent": 0.1}, {"start_percent": 0.9}, {}):
        inside = with_extra(positive, [asked(adapter, **window)])
        assert not torch.equal(picture(patched, inside, negative, steps=3), plain)


# batches


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_one_request_serves_a_batch_as_it_serves_each_picture(
    patched, adapter, positive, negative, count
):
    anchored, plain = with_extra(positive, [asked(adapter)]), with_extra(negative, [None])
    together = picture(patched, anchored, plain, frame(batch=count))
    for i in range(count):
        single = picture(patched, anchored, plain, {**frame(), "batch_index": [i]})
        assert_close(together[i : i + 1], single, **SAMPLED)


@pytest.mark.parametrize("requests", [(HIGH, LOW), (HIGH, None, LOW), (None, HIGH, HIGH, LOW)])
def test_one_request_per_picture(patched, adapter, positive, negative, requests):
    extras = [None if request is None else asked(adapter, request) for request in requests]
    anchored, plain = with_extra(positive, extras), with_extra(negative, [None])
    together = picture(patched, anchored, plain, frame(batch=len(extras)))
    for i, extra in enumerate(extras):
        single = picture(
            patched, with_extra(positive, [extra]), plain, {**frame(), "batch_index": [i]}
        )
        assert_close(together[i : i + 1], single, **SAMPLED)


def test_pictures_may_differ_in_adapter_strength_and_window(
    model, patched, adapter, positive, negative
):
    other = new_adapter(layer_shapes(model), PaperAdapter, std=1.0)
    extras = [asked(adapter, strength=0.5), asked(other), asked(adapter, LOW, end_percent=0.5)]
    anchored, plain = with_extra(positive, extras), with_extra(negative, [None])
    together = picture(patched, anchored, plain, frame(batch=3))
    for i, extra in enumerate(extras):
        single = picture(
            patched, with_extra(positive, [extra]), plain, {**frame(), "batch_index": [i]}
        )
        assert_close(together[i : i + 1], single, **SAMPLED)


def test_little_memory_splits_the_passes_not_the_picture(
    patched, adapter, positive, negative, monkeypatch
):
    rows = []

    def count(apply_model, call):
        rows.append(len(call["input"]))
        return apply_model(call["input"], call["timestep"], **call["c"])

    counted = patched.clone()
    counted.set_model_unet_function_wrapper(count)
    anchored = with_extra(positive, [asked(adapter, HIGH), asked(adapter, LOW)])
    other = with_extra(negative, [asked(adapter, LOW), None])
    together = predictions(
        counted, {"positive": anchored, "negative": other}, latent=frame(batch=2)
    )
    assert rows == [4]
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *_: 0.0)
    apart = predictions(counted, {"positive": anchored, "negative": other}, latent=frame(batch=2))
    assert rows == [4, 2, 2]
    for name in together:
        assert_close(apart[name], together[name], rtol=0, atol=2e-5)


def test_keys_and_values_are_made_once_a_run(model, patched, positive, negative):
    watched = new_adapter(layer_shapes(model), Watched)
    anchored = with_extra(positive, [asked(watched)])
    picture(patched, anchored, with_extra(negative, [None]), frame(batch=3), steps=3)
    once = sorted(2 * list(layer_shapes(model)))  # own tokens, and those shared by all places
    assert sorted(layer for layer, _ in watched.projected) == once
    assert {shape[0] for _, shape in watched.projected} == {1}  # equal requests share them
    sizes = [size for _, size, _ in watched.asked]
    assert len(sizes) == len(set(sizes))
    picture(patched, anchored, with_extra(negative, [None]), frame(batch=3), steps=3)
    assert len(watched.projected) == 2 * len(once)  # and none from run to run


@pytest.mark.parametrize(("height", "width"), [(7, 9), (5, 16), (12, 3)])
def test_odd_frames_are_seen_in_the_sizes_that_the_layers_have(
    model, patched, positive, negative, height, width
):
    watched = new_adapter(layer_shapes(model), Watched)
    latent = frame(height, width)
    out = picture(patched, with_extra(positive, [asked(watched)]), negative, latent)
    assert out.shape == latent["samples"].shape
    assert out.isfinite().all()
    sizes, halved = set(), (height, width)
    for _ in range(4):
        sizes.add(halved)
        halved = tuple(-(-x // 2) for x in halved)
    assert {size for _, size, _ in watched.asked} <= sizes
    assert (height, width) in {size for _, size, _ in watched.asked}
    assert {aspect for *_, aspect in watched.asked} == {width / height}


# company


def outputs_with(patched, positive, adapter, add):
    other = patched.clone()
    add(other)
    return prediction(other, with_extra(positive, [asked(adapter)]))


def test_other_attn2_patches_are_called_before_and_after(model, adapter, positive):
    calls = []

    def patch_of(name):
        def patch(n, context, value, extra_options):
            calls.append(name)
            return n, context * 0.9, value

        return patch

    before = model.clone()
    before.set_model_attn2_patch(patch_of("before"))
    both = attend_extra(before)
    both.set_model_attn2_patch(patch_of("after"))
    anchored = with_extra(positive, [asked(adapter)])
    out, plain = prediction(both, anchored), prediction(both, positive)
    layers = len(layer_shapes(model))
    assert calls == ["before", "after"] * layers * 2
    assert not torch.equal(out, plain)
    assert not torch.equal(out, prediction(attend_extra(model), anchored))


def test_other_attn2_output_patches_see_both_attentions(patched, adapter, positive):
    def double(n, extra_options):
        return n * 2

    doubled = patched.clone()
    doubled.set_model_attn2_output_patch(double)
    anchored = with_extra(positive, [asked(adapter)])
    assert_close(first_layer(doubled, anchored), 2 * first_layer(patched, anchored))


def replace_everywhere(model, patch):
    for name in layer_shapes(model):
        stage, number, index = name.split("_")
        model.set_model_attn2_replace(patch, stage, int(number), int(index))


@pytest.mark.parametrize("hands_on_options", [False, True])
def test_a_replaced_attention_is_called_and_the_same_is_added(
    patched, adapter, positive, hands_on_options
):
    calls = []

    def as_core_does(q, k, v, extra_options):
        calls.append(extra_options["block"])
        options = {"transformer_options": extra_options} if hands_on_options else {}
        optimized_attention(q, k, v * 0, extra_options["n_heads"], **options)  # for itself
        return optimized_attention(q, k, v, extra_options["n_heads"], **options)

    replaced = patched.clone()
    replace_everywhere(replaced, as_core_does)
    anchored = with_extra(positive, [asked(adapter)])
    assert_close(prediction(replaced, anchored), prediction(patched, anchored), **ONE_PASS)
    assert len(calls) == len(adapter.layers)


def test_a_replacement_of_one_layer_leaves_the_others_right(patched, adapter, positive):
    def nothing(q, k, v, extra_options):
        return torch.zeros_like(q)

    replaced = patched.clone()
    replaced.set_model_attn2_replace(nothing, "input", 1)
    text, own = first_layer(patched, positive), first_layer(replaced, positive)
    anchored = with_extra(positive, [asked(adapter)])
    added = first_layer(patched, anchored) - text
    assert_close(first_layer(replaced, anchored) - own, added, rtol=0, atol=1e-5)
    assert prediction(replaced, anchored).isfinite().all()


def test_another_s_attention_function_is_still_called(patched, adapter, positive):
    calls = []

    def counting(attention_function, *args, **kwargs):
        calls.append(args[0].shape)
        return attention_function(*args, **kwargs)

    counted = patched.clone()
    options = {**counted.model_options["transformer_options"]}
    counted.model_options["transformer_options"] = {
        **options, "optimized_attention_override": counting,
    }  # fmt: skip
    anchored = with_extra(positive, [asked(adapter)])
    assert_close(prediction(counted, anchored), prediction(patched, anchored), **EQUAL)
    assert len(calls) == 2 * len(adapter.layers)  # self-attention and the text's


def control_net(seed=0):
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        network = comfy.cldm.cldm.ControlNet(
            image_size=32, in_channels=4, model_channels=64, hint_channels=3,
            num_res_blocks=[2, 2, 2, 2], channel_mult=(1, 2, 2, 3), num_heads=8,
            use_spatial_transformer=True, context_dim=192, legacy=False,
            transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1,
            dtype=torch.float32, device="cpu",
        )  # fmt: skip
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.02)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def test_a_controlnet_beside_it(patched, adapter, positive, negative):
    def controlled(cond):
        hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        return nodes.ControlNetApply().apply_controlnet(cond, control, hint, 1.0)[0]

    control, negative = control_net(), with_extra(negative, [None])
    with_control = picture(patched, controlled(with_extra(positive, [None])), negative)
    off = controlled(with_extra(positive, [asked(adapter, strength=0.0)]))
    assert_close(picture(patched, off, negative), with_control, **EQUAL)
    anchored = with_extra(positive, [asked(adapter)])
    both = picture(patched, controlled(anchored), negative)
    assert not torch.allclose(both, with_control, atol=0.01)
    assert not torch.allclose(both, picture(patched, anchored, negative), atol=0.01)
    order = with_extra(controlled(positive), [asked(adapter)])
    assert_close(picture(patched, order, negative), both, **EQUAL)


# the end of a run


def test_an_adapter_read_from_its_file_makes_the_same_picture(
    model, patched, adapter, positive, tmp_path
):
    halved = new_adapter(layer_shapes(model))
    halved.load_state_dict({key: x.half().float() for key, x in adapter.state_dict().items()})
    save_adapter(tmp_path / "anchor.safetensors", halved, "miniature")
    loaded = load_adapter(tmp_path / "anchor.safetensors").adapter
    check_fits(loaded, model)
    one, other = (prediction(patched, with_extra(positive, [asked(x)])) for x in (halved, loaded))
    assert_close(one, other, **EQUAL)


class Stop(RuntimeError):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("error", [None, Stop, comfy.model_management.InterruptProcessingException])
def test_nothing_is_kept_after_a_run_however_it_ends(
    model, patched, adapter, positive, negative, monkeypatch, error
):
    runs, layers = [], []

    class Noticed(attention.Run):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            runs.append(weakref.ref(self))

    def stop(n, extra_options):
        layers.append(extra_options["block"])
        if error is not None and len(layers) == len(adapter.layers) + 3:  # in the second step
            raise error
        return n

    anchored, plain = with_extra(positive, [asked(adapter)]), with_extra(negative, [None])
    expected = picture(model, positive, negative), picture(patched, anchored, plain)
    monkeypatch.setattr(attention, "Run", Noticed)
    stopping = patched.clone()
    stopping.set_model_attn2_output_patch(stop)
    try:
        picture(stopping, anchored, plain)
    except (Stop, comfy.model_management.InterruptProcessingException):
        assert error is not None
    gc.collect()
    assert [run() for run in runs] == [None]
    for used in (model, patched, stopping):
        options = used.model_options["transformer_options"]
        assert not any("extra_attention" in key or "override" in key for key in options)
    monkeypatch.undo()
    assert_close(picture(model, positive, negative), expected[0], **EQUAL)
    assert_close(picture(patched, anchored, plain), expected[1], **EQUAL)


# refusals


class OtherFamily(nn.Module):
    """A model whose network is no UNet."""

    def __init__(self):
        super().__init__()
        self.diffusion_model = nn.Linear(1, 1)


def test_other_families_are_refused_by_name():
    device = torch.device("cpu")
    other = comfy.model_patcher.ModelPatcher(OtherFamily(), device, device)
    with pytest.raises(
        ValueError, match=r"OtherFamily with a Linear.*\(SD1.5, SDXL, the miniature\)"
    ):
        attend_extra(other)


def test_an_adapter_of_another_base_is_refused(model):
    shapes = layer_shapes(model)
    check_fits(AnchorAdapter(shapes), model)
    check_fits(AnchorAdapter({"middle_0_0": shapes["middle_0_0"]}), model)
    wide = {name: LayerShape(768, 320) for name in shapes}
    with pytest.raises(
        ValueError, match=r"widths \[320\] that read text of width \[768\].*this base"
    ):
        check_fits(AnchorAdapter(wide), model)
    with pytest.raises(ValueError, match="the first layer that differs is output_2_0"):
        check_fits(AnchorAdapter({"output_2_0": LayerShape(192, 64)}), model)


def test_layers_are_named_in_the_order_in_which_they_run(model, patched, positive):
    seen = []

    def look(n, extra_options):
        seen.append("{}_{}_{}".format(*extra_options["block"], extra_options["block_index"]))
        return n

    watched = patched.clone()
    watched.set_model_attn2_output_patch(look)
    prediction(watched, positive)
    assert seen == list(layer_shapes(model))
