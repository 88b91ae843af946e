"""Inversion and replay as ComfyUI samplers, on the miniature under real guiders."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.hooks
import comfy.model_management
import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DisableNoise,
    Noise_EmptyNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_perpneg import PerpNegGuider
from torch.testing import assert_close

import nodes
from veduta.models.inversion.methods import METHODS
from veduta.nodes import mini
from veduta.nodes.host.samplers import (
    InversionNoise,
    InversionSampler,
    ReplaySampler,
    model_figures,
    noise_space,
    replay,
    stock_latent,
)
from veduta.nodes.inversion.run import Settings, invert_latent, source_guider

STEPS = 3
EXACT = "o-belm (exact)"


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(comfyui):
    with torch.inference_mode():
        return mini.load_model()


@pytest.fixture(scope="module")
def kinds(model):
    """The miniature's network as eps, v and flow model; what it draws as the others is noise to us."""
    with torch.inference_mode():
        return {
            "eps": model,
            "v": ModelSamplingDiscrete().patch(model, "v_prediction", True)[0],
            "flow": ModelSamplingSD3().patch(model, 3.0)[0],
        }


@pytest.fixture(scope="module")
def prompts(comfyui):
    with torch.inference_mode():
        clip = mini.load_clip()
        texts = ("a red boat on a calm sea", "snow", "")
        return tuple(nodes.CLIPTextEncode().encode(clip, text)[0] for text in texts)


@pytest.fixture(scope="module")
def latent():
    smooth = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(smooth, (8, 8), mode="bilinear")


@pytest.fixture
def inverted(model, prompts, latent):
    def call(method=EXACT, used=None, guider=None, z=None, **settings):
        guider = guider or source_guider(used or model, prompts[0])
        chosen = Settings(method=method, **{"steps": STEPS, **settings})
        return guider, invert_latent(guider, latent if z is None else z, chosen)

    return call


@pytest.fixture
def stock(model, prompts):
    def call():
        empty = nodes.EmptyLatentImage().generate(64, 64, 1)[0]
        return nodes.KSampler().sample(
            model, 1, 2, 3.0, "euler", "normal", prompts[0], prompts[1], empty
        )[0]["samples"]

    return call


# the way there and back


EXACT_ONES = [m.name for m in METHODS.values() if m.exact]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("eps", name) for name in EXACT_ONES),
        ("v", EXACT),
        ("flow", EXACT),
        ("flow", EXACT_ONES[-1]),
    ],
)
def test_exact_methods_rebuild_the_latent(kinds, inverted, latent, kind, method):
    guider, inversion = inverted(method, used=kinds[kind], scheduler="simple")
    assert inversion.noise.isfinite().all()
    # float32 rounding, which the noise level (4518 for the zero-SNR v model) and unmixing multiply
    assert_close(replay(guider, inversion), latent, atol=2e-2 if kind == "v" else 1e-3, rtol=0)
    assert (inversion.noise - inversion.clean).abs().max() > 0.1


def test_spaces_are_those_of_the_models(kinds):
    eps, flow = noise_space(kinds["eps"]), noise_space(kinds["flow"])
    assert not eps.flow and eps.variance_preserving_input and eps.sigma_data == 1
    assert flow.flow and not flow.variance_preserving_input
    assert not noise_space(kinds["v"]).flow


@pytest.mark.parametrize("sampling", ["img_to_img", "img_to_img_flow"])
def test_models_without_noise_are_refused(model, sampling):
    used = ModelSamplingDiscrete().patch(model, sampling, False)[0]
    with pytest.raises(ValueError, match="eps, v or flow is needed to invert"):
        noise_space(used)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_stock_euler_follows_uni_inv_from_noise_and_from_latent(kinds, inverted, prompts, kind):
    used = kinds[kind]
    for strength in (1.0, 0.6):
        guider, inversion = inverted("uni-inv", used=used, scheduler="simple", strength=strength)
        expected = replay(guider, inversion)
        basic, sigmas = BasicGuider.execute(used, prompts[0])[0], torch.tensor(inversion.sigmas)
        euler = comfy.samplers.sampler_object("euler")
        empty = {"samples": torch.zeros(2, 4, 8, 8)}
        made = SamplerCustomAdvanced.execute(
            InversionNoise(inversion, used), basic, euler, sigmas, empty
        )[0]["samples"]
        assert_close(made, expected, atol=1e-3, rtol=1e-3)
        if inversion.sigmas[0] == 1:
            continue  # no latent can carry the noise of a flow there
        noisy = {"samples": stock_latent(inversion, used)}
        made = SamplerCustomAdvanced.execute(
            DisableNoise.execute()[0], basic, euler, sigmas, noisy
        )[0]["samples"]
        assert_close(made, expected, atol=1e-3, rtol=1e-3)


def test_the_noise_wants_an_empty_latent_of_its_size(model, inverted):
    noise = InversionNoise(inverted()[1], model)
    with pytest.raises(ValueError, match="holds a picture, an empty latent is needed"):
        noise.generate_noise({"samples": torch.ones(2, 4, 8, 8)})
    with pytest.raises(
        ValueError, match=r"shape \(2, 4, 8, 9\), the inverted noise \(2, 4, 8, 8\)"
    ):
        noise.generate_noise({"samples": torch.zeros(2, 4, 8, 9)})
    with pytest.raises(ValueError, match="2 pictures, 3 are wanted"):
        noise.generate_noise({"samples": torch.zeros(3, 4, 8, 8)})


def test_one_inversion_serves_a_batch_of_targets(model, inverted, latent):
    _, inversion = inverted(z=latent[:1])
    many = {"samples": torch.zeros(3, 4, 8, 8)}
    assert InversionNoise(inversion, model).generate_noise(many).shape == (3, 4, 8, 8)


# under guiders


def test_any_guider_is_the_denoiser(model, prompts, latent, inverted):
    positive, negative, empty = prompts
    for guider in (
        BasicGuider.execute(model, positive)[0],
        CFGGuider.execute(model, positive, negative, 3.0)[0],
        PerpNegGuider.execute(model, positive, negative, empty, 2.0, 1.0)[0],
    ):
        found, inversion = inverted(guider=guider)
        assert_close(replay(found, inversion), latent, atol=2e-3, rtol=0)


def sampled(sampler, guider, latent, sigmas, **others):
    noise = Noise_EmptyNoise()
    return SamplerCustomAdvanced.execute(
        noise, guider, sampler, sigmas, {"samples": latent, **others}
    )


def test_masks_are_ignored_and_the_sampler_serves_again(model, prompts, latent):
    found = []
    sampler = InversionSampler(METHODS["ledits++ (exact)"], 3, found.append)
    guider = BasicGuider.execute(model, prompts[0])[0]
    sigmas = torch.tensor([5.0, 2.0, 0.0])
    mask = torch.zeros(1, 64, 64)
    for others in ({}, {"noise_mask": mask}):
        sampled(sampler, guider, latent, sigmas, **others)
    assert found[0].states.equal(found[1].states) and found[0].maps.equal(found[1].maps)


def test_a_replay_sampler_serves_again_and_refuses_other_sigmas(inverted, latent):
    guider, inversion = inverted()
    sampler, sigmas = ReplaySampler(inversion), torch.tensor(inversion.sigmas)
    first = sampled(sampler, guider, latent, sigmas)[0]["samples"]
    assert first.equal(sampled(sampler, guider, latent, sigmas)[0]["samples"])
    with pytest.raises(ValueError, match="sigmas hold 2 steps, inversion has 3"):
        sampled(sampler, guider, latent, sigmas[1:])


def test_flipped_sigmas_are_refused(model, prompts, latent):
    guider = BasicGuider.execute(model, prompts[0])[0]
    sampler = InversionSampler(METHODS["uni-inv"], 0, lambda path: None)
    with pytest.raises(ValueError, match="do not descend"):
        sampled(sampler, guider, latent, torch.tensor([0.0, 2.0, 5.0]))


def test_the_network_is_told_of_a_descending_schedule(model, prompts, latent, inverted):
    seen = []

    def watch(apply_model, call):
        seen.append(call["c"]["transformer_options"]["sample_sigmas"].tolist())
        return apply_model(call["input"], call["timestep"], **call["c"])

    used = model.clone()
    used.set_model_unet_function_wrapper(watch)
    _, inversion = inverted(used=used)
    assert seen == [list(inversion.sigmas)] * inversion.calls


def test_after_step_blends(inverted, latent):
    guider, inversion = inverted("uni-inv")
    made = replay(guider, inversion, after_step=lambda i, x: inversion.states[i])
    assert_close(made, latent, atol=1e-5, rtol=1e-5)


def test_previews_show_the_picture_and_every_call_counts(monkeypatch, inverted):
    import latent_preview

    shown = []

    def prepare(model, steps):
        return lambda step, x0, x, total: shown.append(
            (step, total, x0.std().item(), x.std().item())
        )

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    _, inversion = inverted("stored residual (exact)")
    assert [step for step, *_ in shown] == list(range(inversion.calls))
    assert {total for _, total, *_ in shown} == {inversion.calls}
    assert max(x0 for *_, x0, _ in shown) < 0.5 * max(x for *_, x in shown)


# nothing is left behind


class Broken(Exception):
    pass


@pytest.mark.parametrize("ending", ["done", "error", "cancel"])
def test_stock_sampling_is_the_same_to_the_bit_afterwards(stock, inverted, model, prompts, ending):
    before = stock()
    used = model.clone()

    def fail(apply_model, call):
        if ending == "error":
            raise Broken
        comfy.model_management.interrupt_current_processing(ending == "cancel")
        return apply_model(call["input"], call["timestep"], **call["c"])

    used.set_model_unet_function_wrapper(fail)
    if ending == "done":
        inverted(used=used)
    elif ending == "error":
        with pytest.raises(Broken):
            inverted(used=used)
    else:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            inverted(used=used)
    assert not comfy.model_management.processing_interrupted()
    assert stock().equal(before)


def test_inputs_stay(inverted, latent, prompts):
    before, text = latent.clone(), prompts[0][0][0].clone()
    guider, inversion = inverted()
    states = inversion.states.clone()
    replay(guider, inversion)
    assert latent.equal(before) and prompts[0][0][0].equal(text)
    assert inversion.states.equal(states)
    assert inversion.states.device.type == "cpu" and inversion.states.dtype == torch.float32


def test_batch_equals_singles(inverted, latent):
    _, together = inverted("uni-inv")
    for index in range(2):
        _, alone = inverted("uni-inv", z=latent[index : index + 1])
        assert_close(together.states[:, index], alone.states[:, 0], atol=1e-3, rtol=1e-3)


def test_keyframed_hooks_are_warned_of(inverted, model, prompts, caplog):
    group = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
    for start in (0.0, 0.5):
        group.hooks[0].hook_keyframe.add(comfy.hooks.HookKeyframe(1.0, start))
    hooked = comfy.hooks.set_hooks_for_conditioning(prompts[0], group)
    inverted(guider=source_guider(model, hooked))
    assert "hooks with keyframes" in caplog.text


# refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z: z * 0, "latent is empty"),
        (lambda z: z / 0, "NaN or infinite"),
    ],
)
def test_latents_without_a_picture_are_refused(inverted, latent, change, words):
    with pytest.raises(ValueError, match=words):
        inverted(z=change(latent))


def test_another_model_is_refused_and_clones_are_not(model, prompts, inverted):
    _, inversion = inverted()
    replay(source_guider(model.clone(), prompts[1]), inversion)
    other = mini.load_model()
    for weight in other.model.diffusion_model.parameters():
        weight.mul_(1.5)
    assert model_figures(other)[0] == model_figures(model)[0]
    with pytest.raises(ValueError, match="another MiniModel checkpoint"):
        replay(source_guider(other, prompts[1]), inversion)
