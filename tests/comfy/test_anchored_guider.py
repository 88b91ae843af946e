"""Anchored Guider and Anchored Sampler on the miniature: exact identities, company, refusals."""

import copy
import types

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import (
    AddNoise,
    Noise_EmptyNoise,
    Noise_RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_tcfg import TCFG
from torch.testing import assert_close

import nodes
from veduta.models.anchor.adapter import AnchorAdapter
from veduta.models.anchor.weights import LoadedAdapter
from veduta.models.common.anchor import Anchor, AnchorBatch
from veduta.models.common.decoupled_attention import LayerShape
from veduta.nodes import mini
from veduta.nodes.anchor.adapter import EncodeAnchor
from veduta.nodes.anchor.sample import APART, JOINT, AnchoredGuider, AnchoredSampler
from veduta.nodes.host.attention import CONDS_KEY, layer_shapes

ONE = AnchorBatch((Anchor(horizon=0.3, tilt_deg=5.0, subject_x=0.7),))
OTHER = AnchorBatch((Anchor(horizon=0.8),))
TEXT, EXTRA = 3.0, 2.0
CHOICES = {"seed": 3, "steps": 2, "sampler_name": "euler", "scheduler": "normal"}


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(comfyui):
    with torch.inference_mode():
        return mini.load_model()


@pytest.fixture(scope="module")
def prompts(comfyui):
    with torch.inference_mode():
        clip = mini.load_clip()
        texts = ("a red boat on a calm sea", "snow")
        return tuple(nodes.CLIPTextEncode().encode(clip, text)[0] for text in texts)


@pytest.fixture(scope="module")
def adapter(model):
    return LoadedAdapter(random_adapter(layer_shapes(model)), base="miniature", form="position")


def random_adapter(layers):
    generator = torch.Generator().manual_seed(11)
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(12)
        made = AnchorAdapter(layers).requires_grad_(False)
        for projection in made.to_v.values():
            projection.weight.normal_(std=0.05, generator=generator)
    return made


def empty(batch=1, size=64):
    return nodes.EmptyLatentImage().generate(size, size, batch)[0]


@pytest.fixture
def stock(model, prompts):
    """KSampler."""

    def call(cfg=TEXT, used=None, latent=None, conds=None, **choices):
        chosen = {**CHOICES, **choices}
        positive, negative = conds or prompts
        denoise = chosen.pop("denoise", 1.0)
        return nodes.KSampler().sample(
            used or model,
            chosen["seed"],
            chosen["steps"],
            cfg,
            chosen["sampler_name"],
            chosen["scheduler"],
            positive,
            negative,
            latent or empty(),
            denoise,
        )[0]["samples"]

    return call


@pytest.fixture
def anchored(model, adapter, prompts):
    """Anchored Sampler."""

    def call(text=TEXT, extra=EXTRA, used=None, latent=None, anchor=ONE, conds=None, **choices):
        positive, negative = conds or prompts
        return AnchoredSampler.execute(
            used or model,
            adapter,
            anchor,
            positive,
            negative,
            latent or empty(),
            **{**CHOICES, **choices},
            text_scale=text,
            anchor_scale=extra,
        )[0]["samples"]

    return call


@pytest.fixture
def encoded(model, adapter, prompts):
    """Encode Anchor: model, positive, negative."""

    def call(anchor=ONE, used=None, **options):
        return EncodeAnchor.execute(used or model, adapter, anchor, *prompts, **options).args

    return call


class Watched:
    """A MODEL that writes down the branches of every call, and can fail in the middle."""

    def __init__(self, model, fail_at=None, error=None):
        self.calls, self.rows = [], []
        self.model = model.clone()

        def wrapper(apply_model, call):
            if len(self.calls) == fail_at:
                raise error
            self.calls.append(sorted(call["cond_or_uncond"]))
            self.rows.append(call["input"].shape[0])
            return apply_model(call["input"], call["timestep"], **call["c"])

        self.model.set_model_unet_function_wrapper(wrapper)


# identities


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"sampler_name": "euler_ancestral", "scheduler": "karras"},
        {"sampler_name": "dpmpp_2m", "scheduler": "simple", "denoise": 0.6, "steps": 3},
        {"sampler_name": "dpm_2_ancestral", "scheduler": "beta"},
        {"sampler_name": "ddim", "scheduler": "ddim_uniform"},
        {"sampler_name": "euler_cfg_pp"},
    ],
    ids=lambda choices: "-".join(str(value) for value in choices.values()) or "euler",
)
def test_anchor_scale_0_is_ksampler_to_the_bit(stock, anchored, choices):
    assert torch.equal(anchored(extra=0.0, **choices), stock(**choices))


@pytest.mark.parametrize("cfg", [0.0, 1.0])
def test_anchor_scale_0_is_ksampler_at_special_cfgs(stock, anchored, cfg):
    assert torch.equal(anchored(text=cfg, extra=0.0), stock(cfg=cfg))


def test_masks_batch_indices_and_other_keys_of_the_latent_hold(stock, model, adapter, prompts):
    latent = {**empty(2), "batch_index": [4, 1], "note": "kept"}
    latent["samples"] = torch.full_like(latent["samples"], 0.5)
    latent["noise_mask"] = torch.zeros(1, 64, 64)
    latent["noise_mask"][:, 32:] = 1.0
    out = AnchoredSampler.execute(
        model, adapter, ONE, *prompts, latent, **CHOICES, text_scale=TEXT, anchor_scale=0.0
    )[0]
    assert torch.equal(out["samples"], stock(latent=latent))
    assert out["note"] == "kept" and out["batch_index"] == [4, 1] and "noise_mask" in out
    assert "downscale_ratio_spacial" not in out
    steered = AnchoredSampler.execute(model, adapter, ONE, *prompts, latent, **CHOICES)[0]
    assert_close(steered["samples"][..., :3, :], latent["samples"][..., :3, :])  # masked out
    assert not torch.equal(steered["samples"], out["samples"])


def test_equal_scales_are_joint_and_are_the_encoded_anchor_under_ksampler(stock, anchored, encoded):
    used, *conds = encoded()
    joint = anchored(extra=9.0, mode=JOINT)
    assert torch.equal(anchored(extra=TEXT), joint)
    assert torch.equal(joint, stock(used=used, conds=conds))
    assert not torch.equal(joint, stock())


def test_scales_of_one_are_the_conditional_prediction(stock, anchored, encoded):
    used, *conds = encoded()
    assert torch.equal(anchored(text=1.0, extra=1.0), stock(cfg=1.0, used=used, conds=conds))


def predictions(stock, encoded, prompts, away=None):
    """Denoised pictures of one step from pure noise: negative, text, both."""
    positive, negative = prompts
    if away is None:
        plain = [stock(cfg=1.0, steps=1, conds=(one, negative)) for one in (negative, positive)]
    else:
        used, seen, _ = encoded(away)
        seen_negative = [[negative[0][0], {**seen[0][1], **negative[0][1]}]]
        plain = [
            stock(cfg=1.0, steps=1, used=used, conds=(one, negative))
            for one in (seen_negative, seen)
        ]
    used, *conds = encoded()
    return *plain, stock(cfg=1.0, steps=1, used=used, conds=conds)


@pytest.mark.parametrize(
    ("text", "extra"), [(3.0, 2.0), (1.0, 2.5), (0.0, 2.0), (0.5, 4.0), (4.0, 4.0)]
)
@pytest.mark.parametrize("away", [None, OTHER], ids=["plain", "away"])
def test_a_step_is_the_chain(stock, anchored, encoded, prompts, text, extra, away):
    negative, alone, both = predictions(stock, encoded, prompts, away)
    expected = negative + text * (alone - negative) + extra * (both - alone)
    made = anchored(text=text, extra=extra, steps=1, negative_anchor=away)
    # float32 products of differences, in another order
    assert_close(made, expected, atol=2e-4, rtol=1e-4)
    assert (both - alone).abs().max() > 0.01


def test_negative_anchor_in_joint_mode(stock, anchored, encoded, prompts):
    negative, _, both = predictions(stock, encoded, prompts, OTHER)
    made = anchored(steps=1, mode=JOINT, negative_anchor=OTHER)
    assert_close(made, negative + TEXT * (both - negative), atol=2e-4, rtol=1e-4)


def test_anchor_scale_0_switches_the_negative_anchor_off_too(stock, anchored):
    assert torch.equal(anchored(extra=0.0, negative_anchor=OTHER), stock())


@pytest.mark.parametrize("away", [None, OTHER], ids=["plain", "away"])
@pytest.mark.parametrize("mode", [APART, JOINT])
def test_outside_the_interval_it_is_ksampler_to_the_bit(stock, anchored, mode, away):
    made = anchored(end_percent=0.2, denoise=0.5, mode=mode, negative_anchor=away)
    assert torch.equal(made, stock(denoise=0.5))


def test_the_guider_in_the_stock_custom_sampler_gives_the_same_picture(
    model, adapter, prompts, anchored
):
    guider = AnchoredGuider.execute(
        model, adapter, ONE, *prompts, text_scale=TEXT, anchor_scale=EXTRA
    )[0]
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 2)
    sampler = comfy.samplers.sampler_object("euler")
    for _ in range(2):  # one guider serves several samplers
        made = SamplerCustomAdvanced.execute(Noise_RandomNoise(3), guider, sampler, sigmas, empty())
        assert torch.equal(made[0]["samples"], anchored())


# cost


@pytest.mark.parametrize(
    ("scales", "options", "calls"),
    [
        ((3.0, 2.0), {}, [[0, 1, 2]] * 2),
        ((3.0, 3.0), {}, [[0, 1]] * 2),
        ((3.0, 2.0), {"mode": JOINT}, [[0, 1]] * 2),
        ((3.0, 0.0), {}, [[0, 1]] * 2),
        ((1.0, 2.0), {}, [[0, 1]] * 2),
        ((1.0, 1.0), {}, [[0]] * 2),
        ((1.0, 0.0), {}, [[0]] * 2),
        ((3.0, 2.0), {"end_percent": 0.2}, [[0, 1, 2], [0, 1]]),
        ((3.0, 2.0), {"start_percent": 0.2}, [[0, 1], [0, 1, 2]]),
        ((3.0, 2.0), {"negative_anchor": OTHER}, [[0, 1, 2]] * 2),
    ],
)
def test_one_model_call_per_step_with_the_needed_branches(model, anchored, scales, options, calls):
    watched = Watched(model)
    anchored(*scales, used=watched.model, latent=empty(2), **options)
    assert watched.calls == calls
    assert watched.rows == [2 * len(call) for call in calls]


# other packs


def test_post_cfg_functions_see_and_change_the_whole_result(model, anchored):
    seen, plain = [], anchored(steps=1)

    def post(args):
        seen.append((args["denoised"].clone(), args["cond"], args["uncond"], args["cond_scale"]))
        return args["denoised"] * 0.5

    used = model.clone()
    used.set_model_sampler_post_cfg_function(post)
    assert_close(anchored(used=used, steps=1), plain * 0.5, atol=1e-5, rtol=1e-4)
    assert_close(seen[0][0], plain, atol=1e-5, rtol=1e-4)
    assert CONDS_KEY in seen[0][1][0]["model_conds"] and seen[0][2] and seen[0][3] == TEXT


def test_cfg_functions_get_two_predictions_whose_cfg_is_the_whole_result(model, anchored):
    def cfg(args):
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

    used = model.clone()
    used.set_model_sampler_cfg_function(cfg)
    # x - (x - c) rounds once more
    assert_close(anchored(used=used), anchored(), atol=1e-3, rtol=1e-3)


def test_pre_cfg_functions_see_positive_then_negative_and_their_answer_counts(
    model, anchored, stock, prompts
):
    seen = []

    def pre(args):
        seen.append(args)
        cond, uncond = args["conds_out"]
        return [uncond, uncond + 0 * cond]

    used = model.clone()
    used.set_model_sampler_pre_cfg_function(pre)
    positive, negative = prompts
    made = anchored(used=used, steps=1)
    assert_close(made, stock(cfg=1.0, steps=1, conds=(negative, positive)), atol=1e-5, rtol=1e-4)
    assert [cond[0]["cross_attn"] is one[0][0] for cond, one in
            zip(seen[0]["conds"], prompts, strict=True)] == [True, True]  # fmt: skip
    assert seen[0]["cond_scale"] == TEXT


def test_batch_functions_stand_in_for_the_evaluation(model, anchored):
    seen = []

    def evaluate(args):
        seen.append(len(args["conds"]))
        return comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    used = model.clone()
    used.model_options["sampler_calc_cond_batch_function"] = evaluate
    assert torch.equal(anchored(used=used), anchored())
    assert seen == [3, 3]


def test_who_needs_the_negative_at_cfg_1_gets_it(model, anchored):
    watched = Watched(model)
    watched.model.set_model_sampler_post_cfg_function(
        lambda args: args["denoised"], disable_cfg1_optimization=True
    )
    made = anchored(1.0, 1.0, used=watched.model)
    assert watched.calls == [[0, 1]] * 2
    assert_close(made, anchored(1.0, 1.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scales", [(3.0, 0.0), (3.0, 3.0), (3.0, 2.0)])
def test_cores_guidance_nodes_work_with_it(model, stock, anchored, scales):
    used = RescaleCFG().patch(TCFG.execute(model)[0], 0.7)[0]
    made = anchored(*scales, used=used)
    assert made.isfinite().all()
    assert not torch.equal(made, anchored(*scales))
    if scales[1] == 0:
        assert torch.equal(made, stock(used=used))


# conditionings


def divided(conds):
    """The left half, the right half, and a whole one for the second part of the sampling."""
    area = nodes.ConditioningSetArea().append
    late = nodes.ConditioningSetTimestepRange().set_range(conds, 0.5, 1.0)[0]
    return area(conds, 32, 64, 0, 0, 1.0)[0] + area(conds, 32, 64, 32, 0, 0.8)[0] + late


def test_areas_and_schedules_are_kept(stock, anchored, prompts):
    conds = (divided(prompts[0]), prompts[1])
    assert torch.equal(anchored(extra=0.0, conds=conds), stock(conds=conds))
    made = anchored(conds=conds)
    assert made.isfinite().all() and not torch.equal(made, stock(conds=conds))


def test_every_entry_of_a_conditioning_gets_the_anchor(model, adapter, prompts):
    guider = AnchoredGuider.execute(model, adapter, ONE, divided(prompts[0]), prompts[1])[0]
    rows = {
        name: [len(cond["model_conds"][CONDS_KEY].rows[0].extras) for cond in conds]
        for name, conds in guider.original_conds.items()
    }
    assert rows == {"positive": [1, 1, 1], "middle": [0, 0, 0], "negative": [0]}


def test_the_text_without_anchor_is_still_the_positive_prompt(model, adapter, prompts):
    guider = AnchoredGuider.execute(model, adapter, ONE, *prompts)[0]
    assert guider.original_conds["middle"][0]["prompt_type"] == "positive"
    assert guider.cfg == 4.0


@pytest.fixture(scope="module")
def control(model):
    """A real control network of the miniature's layout, with random weights."""
    config = dict(model.model.model_config.unet_config)
    foreign = ("out_channels", "use_temporal_attention", "disable_unet_model_creation", "dtype")
    config = {key: value for key, value in config.items() if key not in foreign}
    generator = torch.Generator().manual_seed(7)
    with torch.inference_mode():
        network = comfy.cldm.cldm.ControlNet(
            hint_channels=3, dtype=torch.float32, device="cpu", **config
        )
        for weight in network.parameters():
            weight.normal_(std=0.05, generator=generator)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


@pytest.mark.parametrize("both_sides", [False, True])
def test_a_controlnet_beside_it(model, stock, anchored, prompts, control, both_sides):
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    if both_sides:
        conds = nodes.ControlNetApplyAdvanced().apply_controlnet(
            *prompts, control, hint, 1.0, 0.0, 1.0
        )
    else:
        positive = nodes.ControlNetApply().apply_controlnet(prompts[0], control, hint, 1.0)[0]
        conds = (positive, prompts[1])
    plain = stock(conds=conds)
    assert not torch.equal(plain, stock())
    assert torch.equal(anchored(extra=0.0, conds=conds), plain)
    watched = Watched(model)
    made = anchored(conds=conds, used=watched.model)
    assert watched.calls == [[0, 1, 2]] * 2
    assert made.isfinite().all() and not torch.equal(made, plain)


# batches


def test_each_picture_of_a_batch_has_its_own_anchor(anchored):
    two = AnchorBatch(ONE.anchors + OTHER.anchors)
    made = anchored(latent=empty(2), anchor=two)
    for index, anchor in enumerate((ONE, OTHER)):
        alone = anchored(latent=empty(2), anchor=anchor)
        # rows of another batch composition
        assert_close(made[index], alone[index], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made[0], anchored(latent=empty(2), anchor=OTHER)[0], atol=1e-2)


def test_frames_of_one_noise_differ_by_their_anchors_alone(model, adapter, prompts):
    # the recipe of Anchor Sequence's help page
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 2)
    noisy = AddNoise.execute(model, Noise_RandomNoise(3), sigmas, empty())[0]
    frames = nodes.RepeatLatentBatch().repeat(noisy, 2)[0]
    sampler = comfy.samplers.sampler_object("euler")

    def pictures(*anchors):
        guider = AnchoredGuider.execute(model, adapter, AnchorBatch(anchors), *prompts)[0]
        noise = Noise_EmptyNoise()
        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, frames)[0]["samples"]

    same_anchor = pictures(*ONE.anchors, *ONE.anchors)
    assert_close(same_anchor[0], same_anchor[1])
    other_anchor = pictures(*ONE.anchors, *OTHER.anchors)
    assert_close(other_anchor[0], same_anchor[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other_anchor[1], same_anchor[1], atol=1e-2)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_anchors_that_do_not_pair_are_refused_before_a_model_call(
    model, adapter, prompts, anchored, batch
):
    two, watched = AnchorBatch(ONE.anchors + OTHER.anchors), Watched(model)
    words = f"anchor holds 2 anchors, latent_image holds {batch} picture"
    with pytest.raises(ValueError, match=f"^{words}"):
        anchored(used=watched.model, latent=empty(batch), anchor=two)
    with pytest.raises(ValueError, match=f"^negative_{words}"):
        anchored(used=watched.model, latent=empty(batch), negative_anchor=two)
    guider = AnchoredGuider.execute(watched.model, adapter, two, *prompts)[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    sampler = comfy.samplers.sampler_object("euler")
    with pytest.raises(
        ValueError, match=f"2 anchors or references, the latent batch holds {batch}"
    ):
        SamplerCustomAdvanced.execute(Noise_RandomNoise(0), guider, sampler, sigmas, empty(batch))
    assert watched.calls == []


# nothing that comes in is changed


def test_inputs_are_left_as_they_are(model, adapter, prompts):
    latent = {**empty(), "noise_mask": torch.ones(1, 64, 64)}
    before = copy.deepcopy((prompts, latent, adapter.adapter.state_dict()))
    options = copy.deepcopy(model.model_options)
    AnchoredSampler.execute(
        model, adapter, ONE, *prompts, latent, **CHOICES, negative_anchor=OTHER, anchor_scale=2.0
    )
    assert same((prompts, latent, adapter.adapter.state_dict()), before)
    assert same(model.model_options, options)
    assert not model.wrappers and not model.object_patches


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    "error",
    [RuntimeError("in the middle"), comfy.model_management.InterruptProcessingException()],
    ids=["error", "interrupt"],
)
def test_stock_pictures_are_the_same_after_a_run_that_breaks(model, stock, anchored, error):
    before, steered = stock(), anchored()
    watched = Watched(model, fail_at=1, error=error)
    with pytest.raises(type(error)):
        anchored(used=watched.model)
    assert watched.calls == [[0, 1, 2]]
    assert torch.equal(stock(), before)
    assert torch.equal(anchored(), steered)
    assert torch.equal(stock(), before)


def test_nothing_of_a_run_stays_on_the_guider_or_the_model(model, adapter, prompts):
    guider = AnchoredGuider.execute(model, adapter, ONE, *prompts)[0]
    options = copy.copy(guider.model_options.get("transformer_options"))
    own = {name for name in vars(guider) if name not in ("inner_model", "conds", "loaded_models")}
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    SamplerCustomAdvanced.execute(Noise_RandomNoise(0), guider, sampler, sigmas, empty())
    assert set(vars(guider)) == own
    assert guider.model_options.get("transformer_options") == options


# refusals


def test_an_adapter_of_another_base_is_refused(model, prompts):
    layers = {name: LayerShape(768, shape.inner_dim) for name, shape in layer_shapes(model).items()}
    foreign = LoadedAdapter(random_adapter(layers), base="SD1.5", form="position")
    words = r"^adapter \(SD1\.5\) was made for .* width \[768\], model has .*\[192\]; load"
    with pytest.raises(ValueError, match=words):
        AnchoredGuider.execute(model, foreign, ONE, *prompts)


def test_another_family_is_refused_by_name(model, adapter, prompts):
    used = model.clone()
    used.add_object_patch("diffusion_model", torch.nn.Identity())
    with pytest.raises(ValueError, match=r"^model is a .* with a Identity, .*SD1\.5, SDXL"):
        AnchoredGuider.execute(used, adapter, ONE, *prompts)


def test_an_interval_without_a_step_is_refused(anchored):
    words = "start_percent is 0.5, end_percent is 0.5, so the anchor would never hold"
    with pytest.raises(ValueError, match=words):
        anchored(start_percent=0.5, end_percent=0.5)


def test_previews_are_sent_and_progress_is_told(anchored, monkeypatch):
    told = []
    monkeypatch.setattr(
        "latent_preview.prepare_callback",
        lambda model, steps: lambda step, x0, x, total: told.append((step, total, steps)),
    )
    anchored()
    assert told == [(0, 2, 2), (1, 2, 2)]


def test_the_sampler_can_be_run_by_name_of_its_inputs(model, adapter, prompts):
    declared = [one.id for one in AnchoredSampler.GET_SCHEMA().inputs]
    values = types.SimpleNamespace(
        model=model, adapter=adapter, anchor=ONE, positive=prompts[0], negative=prompts[1],
        latent_image=empty(), seed=0, steps=1, sampler_name="euler", scheduler="normal",
        text_scale=1.0, anchor_scale=1.0, start_percent=0.0, end_percent=1.0, denoise=1.0,
        mode=APART, negative_anchor=None,
    )  # fmt: skip
    assert declared == list(vars(values))
    assert AnchoredSampler.execute(**vars(values))[0]["samples"].shape == (1, 4, 8, 8)
