"""Optimize Latent in a real ComfyUI: exact gradients, everything as before afterwards, refusals."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.k_diffusion.sampling as stock
import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch.testing import assert_close

import nodes as core
from veduta.models.saliency.objective import EYE, GATE, TOKENS
from veduta.models.saliency.presets import DEFAULT, DOODL, SGOOL
from veduta.models.saliency.rewards.combine import Rewards
from veduta.nodes import mini
from veduta.nodes.host.differentiable import (
    Request,
    Run,
    differentiable_model,
    sample_with_gradients,
    undecorated,
)
from veduta.nodes.host.differentiable_vae import DifferentiableDecoder
from veduta.nodes.host.gradients import gradients, ordinary_weights
from veduta.nodes.saliency.networks import RewardChain
from veduta.nodes.saliency.optimize import OptimizeLatent, noise_in
from veduta.nodes.saliency.reward import MINIATURE, SYMMETRY, TEXT, DefineReward

SIDE, STEPS, CFG = 8, 2, 1.0  # guidance costs twice; the gradients are tried with it
SAMPLERS = (
    "euler", "heun", "dpmpp_2m", "dpmpp_2s_ancestral", "euler_ancestral", "lcm", "ddpm",
    "res_multistep", "dpmpp_sde",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def stack():
    with torch.inference_mode():
        model, clip, vae = mini.load_model(), mini.load_clip(), mini.load_vae()
        texts = [core.CLIPTextEncode().encode(clip, text)[0] for text in ("a red boat", "")]
    return model, texts, vae


@pytest.fixture(scope="module")
def reward():
    with torch.inference_mode():
        return DefineReward.execute(TEXT, MINIATURE, "a red boat", 1.0).args[0]


def sigmas_of(model, steps=STEPS):
    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "normal", steps
    )


def drawn(seed=0, batch=1):
    shape = (batch, 4, SIDE, SIDE)
    with torch.inference_mode(False):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def request_of(stack, name="euler", cfg=4.0, **options):
    model, (positive, negative), _ = stack
    return Request(
        model=model, positive=positive, negative=negative, cfg=cfg,
        sampler=comfy.samplers.sampler_object(name), sigmas=sigmas_of(model),
        latent=torch.zeros(1, 4, SIDE, SIDE), **options,
    )  # fmt: skip


def with_run(request, work):
    with gradients():
        sample_with_gradients(request, work)


def optimize(stack, sampler="euler", latent=None, sigmas=None, model=None, vae=None, **options):
    of_stack, (positive, negative), of_vae = stack
    model = of_stack if model is None else model
    settings = {"seed": 3, "cfg": CFG, "iterations": 1} | options
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return OptimizeLatent.execute(
        model, settings.pop("positive", positive), negative, of_vae if vae is None else vae,
        {"samples": torch.zeros(1, 4, SIDE, SIDE)} if latent is None else latent,
        sampler, sigmas_of(of_stack) if sigmas is None else sigmas, **settings,
    ).args  # fmt: skip


def stock_picture(stack, noise, name="euler", seed=3, cfg=CFG):
    model, (positive, negative), _ = stack
    return comfy.sample.sample_custom(
        model, noise, cfg, comfy.samplers.sampler_object(name), sigmas_of(model), positive, negative,
        torch.zeros_like(noise), disable_pbar=True, seed=seed,
    )  # fmt: skip


# gradients


class FullGraph(Run):
    """Keeps every activation instead of recomputing."""

    def __call__(self, noise):
        self._thrifty = False
        return self._recorded(noise)


@pytest.mark.parametrize("name", SAMPLERS)
def test_recomputed_is_the_full_graph_to_the_last_bit(stack, name):
    noise, weighing, found = drawn(), drawn(1), []

    def work(run):
        full = FullGraph(run.guider, run.request, run._extra_args, run.latent, run.mask, run.sigmas)
        for each in (run, full):
            sampled = each(noise)
            found.append((sampled.latent, sampled.pull(weighing)))

    with_run(request_of(stack, name, seed=5), work)
    (ours, pulled), (full, expected) = found
    assert torch.equal(ours, full)
    assert torch.equal(pulled, expected)
    assert float(pulled.abs().max()) > 0
    assert_close(ours, stock_picture(stack, noise, name, 5, 4.0), atol=2e-3, rtol=1e-3)


def test_stepwise_agrees_with_calls_recomputed(stack):
    noise, weighing, found = drawn(), drawn(1), []

    def work(run):
        found.append(run(noise).pull(weighing))
        run._thrifty = True
        found.append(run._recorded(noise).pull(weighing))
        found.append(run(noise).pull(weighing))  # stepwise, one branch at a time

    with_run(request_of(stack), work)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_last_steps_alone_are_a_part_of_it(stack):
    noise, weighing, found = drawn(), drawn(1), []
    for last in (0, 1):
        with_run(
            request_of(stack, last_steps=last), lambda run: found.append(run(noise).pull(weighing))
        )
    assert not torch.allclose(found[0], found[1]) and bool(found[1].count_nonzero())
    by_calls = []

    def work(run):
        run._thrifty = True
        by_calls.append(run._recorded(noise).pull(weighing))

    with_run(request_of(stack, last_steps=1), work)
    assert_close(by_calls[0], found[1])


def test_undecorated_copies_leave_cores_module_alone():
    before = dict(vars(stock))
    plain = undecorated(stock.sample_res_multistep)
    assert plain.__globals__ is not stock.sample_res_multistep.__globals__
    assert not hasattr(plain.__globals__["res_multistep"], "__wrapped__")
    assert vars(stock) == before
    assert hasattr(stock.res_multistep, "__wrapped__")


def test_the_decoder_is_cores_and_its_gradient_true(stack):
    *_, vae = stack
    decoder = DifferentiableDecoder(vae)
    latent, weighing = drawn(), drawn(2)
    comfy.model_management.load_models_gpu([decoder.patcher])
    with gradients(), ordinary_weights(decoder.patcher.model):
        x = latent.clone().requires_grad_()
        image = decoder(x)
        assert_close(image.detach().movedim(1, -1), vae.decode(latent).clone())
        y = latent.clone().requires_grad_()
        plain = decoder.patcher.model.decode(y)
        weights = torch.nn.functional.interpolate(weighing[:, :3], image.shape[-2:])
        (ours,) = torch.autograd.grad((image * weights).sum(), x)
        (full,) = torch.autograd.grad((plain / 2 * weights).sum(), y)
    assert_close(ours, full, rtol=1e-4, atol=1e-5)
    assert all("forward" not in vars(module) for module in decoder.patcher.model.modules())


# the node


def test_points_rise_and_the_noise_gives_the_picture(stack, reward):
    latent, noise, image, before, curve, report = optimize(stack, reward=reward, iterations=2)
    assert image.shape == before.shape == (1, 8 * SIDE, 8 * SIDE, 3)
    assert curve.shape[-1] == 3 and "after:" in report
    start = stock_picture(stack, comfy.sample.prepare_noise(torch.zeros(1, 4, SIDE, SIDE), 3))
    assert_close(before, stack[2].decode(start))
    again = stock_picture(stack, noise.generate_noise(latent))
    assert torch.equal(again, latent["samples"])
    points = [float(reward.rewards.total(x.movedim(-1, 1))) for x in (before, image)]
    assert points[1] > points[0] + 0.5
    assert f"before: {points[0]:.2f} points" in report
    assert f"after: {points[1]:.2f} points" in report


def test_no_gradient_steps_change_nothing(stack, reward):
    _, _, image, before, *_ = optimize(stack, reward=reward, iterations=1, step_scale=1e-9)
    assert_close(image, before, atol=2e-3, rtol=0)


@pytest.mark.parametrize("preset", [SGOOL, DOODL])
def test_presets_and_other_samplers_work(stack, preset):
    chain = DefineReward.execute(SYMMETRY, MINIATURE, "", 1.0).args[0]
    *_, report = optimize(stack, "dpmpp_2m", reward=chain, preset=preset, iterations=1)
    assert preset in report


@pytest.mark.parametrize("use", [GATE, TOKENS])
def test_other_uses_of_saliency_work(stack, reward, use):
    mask = torch.zeros(1, 32, 32)
    mask[:, 16:, :] = 1
    *_, report = optimize(stack, reward=reward, use_saliency=use, mask=mask, iterations=1)
    assert use in report


def test_the_eye_is_drawn_without_a_reward(stack):
    mask = torch.zeros(1, 8 * SIDE, 8 * SIDE)
    mask[:, 8:24, 8:24] = 1
    *_, report = optimize(stack, use_saliency=EYE, mask=mask, iterations=2)
    first, best = (float(x.split()[0]) for x in report.split("objective: ")[1].split(", ")[:2])
    assert best > first


def test_starts_keep_compare_and_a_held_out_reward(stack, reward):
    symmetry = DefineReward.execute(SYMMETRY, MINIATURE, "", 1.0).args[0]
    latent, noise, image, *_, report = optimize(
        stack, reward=reward, starts=2, keep=2, compare=True, held_out=symmetry, iterations=2
    )
    assert len(image) == len(latent["samples"]) == len(noise.generate_noise(latent)) == 2
    assert "held out" in report and "random noises were judged in the same seconds" in report


def test_an_inverted_latent_starts_where_it_is(stack):
    model, *_ = stack
    sigmas, noise = sigmas_of(model), drawn(7)
    scaled = noise * (1 + sigmas[0] ** 2).sqrt()
    assert_close(noise_in(model, model.model.process_latent_out(scaled), sigmas), noise)
    latent = {"samples": model.model.process_latent_out(scaled)}
    chain = DefineReward.execute(SYMMETRY, MINIATURE, "", 1.0).args[0]
    _, _, _, before, *_ = optimize(
        stack, latent=latent, add_noise=False, reward=chain, iterations=1
    )
    assert_close(before, stack[2].decode(stock_picture(stack, noise)), atol=1e-3, rtol=0)


# afterwards


class Fails:
    name, weight = "fails", 1.0

    def __init__(self, error, calls=1):
        self.error, self.calls = error, calls

    def score(self, image, part="whole"):
        self.calls -= 1
        if self.calls == -1:  # once
            raise self.error
        return 100 * image.mean((1, 2, 3))


def chain_of(reward):
    return RewardChain(Rewards((reward,)))


@pytest.mark.parametrize(
    "error", [None, KeyError("x"), comfy.model_management.InterruptProcessingException()]
)
def test_stock_is_bit_equal_afterwards_and_nothing_is_left(stack, error):
    model, *_ = stack
    noise = drawn()
    before, weights = stock_picture(stack, noise), dict(model.model.named_parameters())
    options, wrappers = repr(model.model_options), repr(model.wrappers)
    chain = chain_of(Fails(error, 99 if error is None else 0))
    if error is None:
        optimize(stack, reward=chain, iterations=1)
    else:
        with pytest.raises(type(error)):
            optimize(stack, reward=chain, iterations=1)
    assert torch.equal(stock_picture(stack, noise), before)
    assert not comfy.model_management.in_training
    assert torch.is_inference_mode_enabled()
    now = dict(model.model.named_parameters())
    assert all(now[name] is weight and weight.grad is None for name, weight in weights.items())
    assert (repr(model.model_options), repr(model.wrappers)) == (options, wrappers)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (comfy.model_management.InterruptProcessingException, "cancelled at step 1"),
        (torch.cuda.OutOfMemoryError, "out of memory at step 1"),
    ],
)
def test_what_stops_it_leaves_the_best_so_far(stack, error, told):
    *_, report = optimize(stack, reward=chain_of(Fails(error(), 3)), iterations=9)
    assert f"{told}; the best so far is kept" in report  # at the second look


def test_cancel_stops_all_where_nothing_is_to_be_kept(stack):
    stop = comfy.model_management.InterruptProcessingException
    with pytest.raises(stop):
        optimize(stack, reward=chain_of(Fails(stop(), 3)), iterations=9, keep_on_cancel=False)


def test_a_mask_keeps_the_rest_of_a_latent(stack):
    chain = DefineReward.execute(SYMMETRY, MINIATURE, "", 1.0).args[0]
    mask = torch.zeros(1, SIDE, SIDE)
    mask[..., :4] = 1
    given = {"samples": drawn(4), "noise_mask": mask}
    latent, *_ = optimize(stack, latent=given, reward=chain)
    assert_close(latent["samples"][..., 4:], given["samples"][..., 4:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latent["samples"][..., :4], given["samples"][..., :4], atol=0.1)


def test_a_stopped_run_goes_on_by_its_name(stack, reward, tmp_path, monkeypatch):
    monkeypatch.setattr("folder_paths.output_directory", str(tmp_path))
    whole = optimize(stack, reward=reward, iterations=2)
    told = []

    class Stops:
        name, weight = reward.rewards.rewards[0].name, 1.0

        def score(self, image, part="whole"):
            told.append(part)
            if len(told) == 4:
                raise comfy.model_management.InterruptProcessingException
            return reward.rewards.rewards[0].score(image, part)

    chain = RewardChain(chain_of(Stops()).rewards, reward.patchers)
    optimize(stack, reward=chain, iterations=2, resume_name="boat")
    assert (tmp_path / "veduta" / "optimisation" / "boat.safetensors").is_file()
    with pytest.raises(ValueError, match="boat.safetensors is the state of a run with other"):
        optimize(stack, reward=reward, iterations=2, resume_name="boat", seed=4)
    resumed = optimize(stack, reward=reward, iterations=2, resume_name="boat")
    assert torch.equal(resumed[0]["samples"], whole[0]["samples"])
    assert "gone on with boat at step 1" in resumed[-1]
    assert not (tmp_path / "veduta" / "optimisation" / "boat.safetensors").exists()


# refusals


class Streamed:
    """A model whose weights are streamed and whose loader cannot do otherwise."""

    def __init__(self, model):
        self.model, self.load_device = model.model, model.load_device

    def is_dynamic(self):
        return True

    def clone(self, disable_dynamic=False):
        raise RuntimeError("no loader")


def test_what_cannot_be_differentiated_is_refused_by_name(stack, reward):
    model, *_ = stack
    with pytest.raises(ValueError, match="sampler dpm_fast_function gives no gradient"):
        optimize(stack, "dpm_fast", reward=reward)
    with pytest.raises(ValueError, match="model has streamed weights"):
        differentiable_model(Streamed(model))
    vae = mini.load_vae()
    vae.handles_tiling = True
    with pytest.raises(ValueError, match="vae decodes in tiles"):
        optimize(stack, vae=vae, reward=reward)


def test_a_quantised_model_is_refused():
    model = mini.load_model()
    name, weight = next(iter(model.model.diffusion_model.named_parameters()))
    module, _, leaf = name.rpartition(".")
    holder = model.model.diffusion_model.get_submodule(module)
    eight_bits = torch.nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    setattr(holder, leaf, eight_bits)
    with pytest.raises(ValueError, match="model is quantised .* is float8_e4m3fn"):
        differentiable_model(model)


def test_a_model_that_does_not_repeat_itself_is_refused(stack, reward):
    model = stack[0].clone()
    calls = []

    def drifting(apply_model, arguments):
        calls.append(1)
        answer = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        return answer * (1 + 0.05 * len(calls))

    model.set_model_unet_function_wrapper(drifting)
    for sampler in ("euler", "dpmpp_2m"):
        with pytest.raises(ValueError, match="a step of model done again differs by"):
            optimize(stack, sampler, model=model, reward=reward)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "reward is not connected"),
        ({"use_saliency": EYE}, "mask is not connected; paint where people should look"),
        ({"use_saliency": EYE, "mask": torch.zeros(1, 32, 32)}, "mask is 0 everywhere"),
        ({"mask": torch.zeros(1, 32, 32)}, "mask is 0 everywhere"),
        ({"mask": torch.ones(3, 32, 32)}, "mask holds 3 masks"),
        ({"sigmas": torch.zeros(1)}, "sigmas hold 1 levels"),
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, "sigmas go from 1 to 0 and rise"),
        ({"add_noise": False}, "latent is empty"),
        ({"resume_name": "../x"}, "resume_name is '../x', a file name"),
    ],
)
def test_bad_input_is_told_in_a_sentence(stack, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        optimize(stack, **options)


def test_more_prompts_than_pictures_are_refused(stack, reward):
    text, extras = stack[1][0][0]
    with pytest.raises(ValueError, match="positive holds 3 prompts, latent_image 1 pictures"):
        optimize(stack, reward=reward, positive=[[text.repeat(3, 1, 1), extras]])


def test_a_reward_that_gives_nan_is_named(stack):
    class Broken(Fails):
        def score(self, image, part="whole"):
            return super().score(image) * float("nan")

    with pytest.raises(ValueError, match="reward fails gives"):
        optimize(stack, reward=chain_of(Broken(None, 99)))


def test_noise_of_another_size_is_refused(stack, reward):
    _, noise, *_ = optimize(stack, reward=reward, iterations=1, preset=DEFAULT)
    with pytest.raises(ValueError, match="the optimised noise"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 16, 16)})
    with pytest.raises(ValueError, match="noise is connected and add_noise is off"):
        optimize(stack, reward=reward, noise=noise, add_noise=False)
