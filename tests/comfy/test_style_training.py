"""The style trainer in a real ComfyUI: what it learns, keeps, goes on with, leaves alone and refuses."""

from dataclasses import replace

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_management import InterruptProcessingException
from PIL import Image
from torch.testing import assert_close

import nodes as core
from veduta.models.common.training import read_checkpoint, read_log
from veduta.models.styleforge.dual_binding import NoiseProcess, Prediction, Weighting
from veduta.models.styleforge.files import load_style
from veduta.models.styleforge.lora import Layers, Lora, Plan
from veduta.models.styleforge.style_set import Component, StylePicture, StyleSet
from veduta.nodes import mini
from veduta.nodes.host.gradients import gradients
from veduta.nodes.host.lora import adapted, image_places, kept_bytes, text_places
from veduta.nodes.style import train, training
from veduta.nodes.style.places import training_places
from veduta.nodes.style.train import TrainStyle
from veduta.nodes.style.training import Method, Options, picture_count

SIDE = 64
DEFAULTS = {
    one.id: one.default for one in TrainStyle.define_schema().inputs if hasattr(one, "default")
}
SMALL = {"name": "mine", "steps": 3, "rank": 2, "learning_rate": 1e-3, "validate_every": 0,
         "text_learning_rate": 0.0}  # fmt: skip


@pytest.fixture(scope="module")
def stack():
    with torch.inference_mode():  # as ComfyUI runs the loader
        return {"model": mini.load_model(), "clip": mini.load_clip(), "vae": mini.load_vae()}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's own folders, in a place of the test's."""
    for name in ("input", "output", "loras"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    known = {**folder_paths.folder_names_and_paths}
    known["loras"] = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(training, "SAMPLE_STEPS", 1)
    monkeypatch.setattr(training, "SAMPLE_CFG", 1.0)
    return tmp_path


def picture(colour, seed, width=SIDE, height=SIDE, **fields):
    grain = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    pixels = torch.tensor(colour)[:, None, None] * 0.8 + 0.2 * grain
    return StylePicture(pixels=pixels.mul(255).byte(), **fields)


def component(name="style", trigger="zwx", count=3, aux=2, colour=(0.9, 0.2, 0.1), **fields):
    return Component(
        name=name,
        trigger=trigger,
        style_ref=tuple(picture(colour, index) for index in range(count)),
        aux=tuple(picture((0.1, 0.3, 0.8), 100 + index) for index in range(aux)),
        **fields,
    )


def single(**fields):
    return StyleSet(components=(component(**fields),))


def double():
    people = component("people", "zwx", colour=(0.9, 0.2, 0.1))
    return StyleSet(components=(people, component("backgrounds", "ukj", colour=(0.2, 0.8, 0.2))))


def run(stack, style_set=None, **changes):
    with torch.inference_mode():  # as ComfyUI runs a prompt
        inputs = {**DEFAULTS, **SMALL, **changes}
        return TrainStyle.execute(**stack, style_set=style_set or single(), **inputs).args


def same_tensors(one, other):
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def stock_answer(stack):
    """What stock nodes draw and read with the base as it is now."""
    with torch.inference_mode():
        text = core.CLIPTextEncode().encode(stack["clip"], "a tree")[0]
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        answer = core.KSampler().sample(
            stack["model"], 1, 2, 4.0, "euler", "normal", text, text, latent
        )
    return torch.cat([answer[0]["samples"].flatten(), text[0][0].flatten()])


def test_it_trains_saves_and_tells(stack, folders):
    before = stock_answer(stack)
    style, samples, curve, report = run(stack, steps=4, text_learning_rate=1e-4)
    loaded = load_style(folders / "loras" / "mine.safetensors")
    assert loaded.base == style.base == "miniature" and loaded.slices == ("style",)
    assert loaded.trigger == "a photo of zwx style" and loaded.about["steps"] == 4
    ups = {name: value for name, value in style.tensors.items() if name.endswith("up.weight")}
    moved = [name for name, value in ups.items() if value.abs().sum() > 0]
    assert len(moved) == len(ups) and any(name.startswith("lora_te") for name in moved)
    assert samples.shape == (4, SIDE, SIDE, 3) and curve.shape == (1, 360, 640, 3)
    assert (
        "style: 3 StyleRef, 2 Aux" in report and "call it with     a photo of zwx style" in report
    )
    assert torch.equal(stock_answer(stack), before)
    assert not comfy.model_management.in_training


def test_the_loss_on_fixed_draws_falls(stack, folders):
    run(stack, steps=24, learning_rate=1e-2, validate_every=12)
    rows = [row for row in read_log(training_places("mine").run) if "validation_loss" in row]
    losses = [row["validation_loss"] for row in rows]
    assert len(losses) == 2 and losses[-1] < losses[0]


class StopAt:
    """ComfyUI's cancel button, or an error, at a step."""

    def __init__(self, monkeypatch, step, error=InterruptProcessingException):
        own = train._NodeWatch.step_done

        def step_done(watch, now, curve, samples):
            own(watch, now, curve, samples)
            if now.step == step:
                raise error

        monkeypatch.setattr(train._NodeWatch, "step_done", step_done)


@pytest.mark.parametrize("multi", [False, True])
def test_an_interrupt_keeps_the_work_and_the_run_goes_on_bit_for_bit(
    stack, folders, monkeypatch, multi
):
    style_set = double() if multi else single()
    before = stock_answer(stack)
    changes = {"steps": 4, "dropout": 0.2, "text_learning_rate": 1e-4, "text_steps": 3}
    straight = run(stack, style_set, name="straight", **changes)[0]
    with monkeypatch.context() as patched:
        StopAt(patched, 2)
        with pytest.raises(InterruptProcessingException):
            run(stack, style_set, **changes)
    assert torch.equal(stock_answer(stack), before)
    assert read_checkpoint(training_places("mine").run)["step"] == 2
    unfinished = load_style(folders / "loras" / "mine.safetensors")
    assert unfinished.about["steps"] == 2
    resumed = run(stack, style_set, **changes)[0]
    assert same_tensors(resumed, straight)


def test_an_exception_leaves_the_model_as_it_was(stack, folders, monkeypatch):
    before = stock_answer(stack)
    StopAt(monkeypatch, 2, MemoryError)
    with pytest.raises(MemoryError):
        run(stack)
    assert torch.equal(stock_answer(stack), before)
    assert not any("forward" in vars(m) for m in stack["model"].model.modules())
    assert not any("forward" in vars(m) for m in stack["clip"].cond_stage_model.modules())


def test_lambda_0_is_plain_lora(stack, folders):
    off = run(stack, single(aux_weight=0.0), name="off")[0]
    plain = run(stack, single(aux=0), name="plain")[0]
    chosen = run(stack, single(), name="chosen", method=Method.PLAIN.value)[0]
    dual = run(stack, single(), name="dual")[0]
    assert same_tensors(off, plain) and same_tensors(chosen, plain)
    assert not same_tensors(dual, plain)


def test_dreambooth_draws_its_own_aux(stack, folders):
    report = run(stack, single(aux=0), steps=2, method=Method.DREAMBOOTH.value)[-1]
    assert "style: 3 StyleRef, 3 Aux" in report
    assert load_style(folders / "loras" / "mine.safetensors").about["aux_origins"] == [
        "literal prompt"
    ]


def test_only_the_slice_of_the_step_learns(stack, folders):
    """After one step the other component's slice is as it was drawn."""
    style = run(stack, double(), steps=1)[0]
    assert style.slices == ("shared", "people", "backgrounds")
    name = next(n for n in style.tensors if n.startswith("lora_unet") and n.endswith("up.weight"))
    shared, people, backgrounds = style.tensors[name].chunk(3, 1)
    assert shared.abs().sum() > 0
    assert (people.abs().sum() > 0) != (backgrounds.abs().sum() > 0)


def test_the_kept_step_is_the_best_validated_one(stack, folders):
    style = run(stack, single(count=8), steps=4, validate_every=2)[0]
    rows = {r["step"]: r["validation_loss"] for r in read_log(training_places("mine").run)}
    assert style.about["kept_step"] == min(rows, key=lambda step: rows[step])
    assert style.about["pictures"] == 7
    last = run(stack, single(count=8), name="last", steps=4, validate_every=2, keep=train.LAST)[0]
    assert last.about["kept_step"] == 4


def test_early_stop_ends_a_run_that_gets_no_better(stack, folders):
    style = run(stack, steps=9, learning_rate=0.3, validate_every=1, patience=2)[0]
    assert style.about["steps"] < 9


def test_eyes_judge_the_samples(stack, folders):
    with torch.inference_mode():
        vision = mini.load_clip_vision()
    run(stack, steps=2, validate_every=2, clip_vision=vision)
    (row,) = [r for r in read_log(training_places("mine").run) if "validation_loss" in r]
    assert "validation_style_gain" in row and "validation_score" in row


def test_pictures_of_several_sizes_and_masks_train_together(stack, folders):
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    mask[..., :32] = 255
    refs = (
        picture((0.9, 0.2, 0.1), 0, mask=mask, caption="a tree"),
        picture((0.9, 0.2, 0.1), 1, width=96),
    )
    style_set = StyleSet(components=(replace(component(), style_ref=refs),))
    assert run(stack, style_set, steps=3, batch_size=2)[0].about["pictures"] == 2


def test_paper_parity_keeps_the_rate_and_averages_nothing(stack, folders):
    style = run(stack, steps=3, paper_parity=True)[0]
    state = read_checkpoint(training_places("mine").run)
    raw = next(iter(state["model"].values()))
    averaged = state["ema"]["shadow_params"][0]
    assert_close(averaged, raw, rtol=0, atol=1e-7)
    assert style.about["schedule"] == "constant"


# --- the LoRA at work ---------------------------------------------------------------------------


def lora_for(stack, seed=0, **plan):
    spots = image_places(stack["model"], Layers(convolutions=True)) | text_places(stack["clip"])
    targets = {name: place.target for name, place in spots.items()}
    lora = Lora(targets, Plan(rank=2, **plan), torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, layer in lora.named_layers():
            for up in layer.up:
                up.copy_(torch.randn(up.shape, generator=generator) * 0.05)
    return lora.eval(), spots


def test_what_learns_is_what_the_stock_loader_applies(stack):
    """Activation side while training, merged weights in stock sampling: linear, convolution, text."""
    lora, spots = lora_for(stack, slices=("shared", "people"), alpha=3.0)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([1.5])
    with gradients(), torch.no_grad(), adapted(stack["model"], stack["clip"], lora, spots) as work:
        training_answer = work(x, sigma, ["a tree"])
    model, clip = comfy.sd.load_lora_for_models(
        stack["model"], stack["clip"], lora.tensors(), 1.0, 1.0
    )
    with gradients(), torch.no_grad(), adapted(model, clip, lora, {}) as work:
        merged_answer = work(x, sigma, ["a tree"])
    assert_close(training_answer, merged_answer, rtol=1e-4, atol=1e-4)
    with gradients(), torch.no_grad(), adapted(stack["model"], stack["clip"], lora, {}) as work:
        assert (work(x, sigma, ["a tree"]) - merged_answer).abs().max() > 0.01


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_gives_the_same_gradients_for_less_memory(stack, recompute):
    lora, spots = lora_for(stack)
    spots = {name: spot for name, spot in spots.items() if not name.startswith("lora_te")}
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([1.5, 0.3])

    def gradients_of(recomputing):
        with gradients(), adapted(stack["model"], stack["clip"], lora, spots, recomputing) as work:
            kept = kept_bytes(lambda: work(x, sigma, ["a tree"] * 2), work.model.model)
            lora.zero_grad()
            work(x, sigma, ["a tree"] * 2).square().mean().backward()
        return kept, [p.grad.clone() for p in lora.parameters() if p.grad is not None]

    plain_kept, plain = gradients_of(False)
    kept, own = gradients_of(recompute)
    assert len(own) == len(plain)
    for one, other in zip(own, plain, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert kept < plain_kept / 2 if recompute else kept == plain_kept


def test_a_base_in_fp8_trains(folders):
    with torch.inference_mode():
        stack = {
            "model": mini.load_model({"dtype": torch.float8_e4m3fn}),
            "clip": mini.load_clip(), "vae": mini.load_vae(),
        }  # fmt: skip
    style = run(stack, steps=2)[0]
    assert all(bool(value.isfinite().all()) for value in style.tensors.values())


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style_set", "changes", "words"),
    [
        (StyleSet(components=()), {}, "style_set has no component"),
        (single(count=0), {}, "component 'style' has no StyleRef picture"),
        (single(), {"name": "../mine"}, "name is '../mine', a file name of letters"),
        (single(), {"rank": 200}, "rank is 200, layer lora_unet_.* takes .* at most"),
        (single(), {"layers": train.STYLE_BLOCK}, "no layer of this model is chosen"),
    ],
)
def test_unusable_settings_are_refused(stack, folders, style_set, changes, words):
    with pytest.raises(ValueError, match=words):
        run(stack, style_set, **changes)


def test_a_file_from_elsewhere_is_not_overwritten(stack, folders):
    (folders / "loras" / "mine.safetensors").write_bytes(b"precious")
    with pytest.raises(ValueError, match="mine.safetensors is there already"):
        run(stack)
    assert (folders / "loras" / "mine.safetensors").read_bytes() == b"precious"


def test_going_on_with_other_settings_is_refused(stack, folders):
    run(stack, steps=1)
    with pytest.raises(ValueError, match="of another run: pictures was"):
        run(stack, single(count=2), steps=1)
    with pytest.raises(ValueError, match="loss_weighting was none and is min-SNR"):
        run(stack, steps=1, loss_weighting=Weighting.MIN_SNR.value)


def test_a_vae_of_another_model_is_refused(stack, folders):
    class Wide:
        latent_channels = 16

    with pytest.raises(ValueError, match="vae makes latents of 16 channels, model reads 4"):
        run({**stack, "vae": Wide()})


def test_progress_counts_pictures_and_steps(stack, folders, monkeypatch):
    shown = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, **_: shown.append((value, total, preview)),
    )
    run(stack)  # curve and samples at the last and at quarter steps
    assert picture_count(single(), Method.STYLEFORGE) == 5
    assert (5 + 3, 5 + 3) in {(value, total) for value, total, _ in shown}
    assert any(preview for _, total, preview in shown if total == 5 + 3)


def test_defaults_of_node_and_options_agree():
    own = Options()
    names = ("steps", "rank", "alpha", "dropout", "learning_rate", "text_learning_rate",
             "text_steps", "batch_size", "optimizer", "validate_every", "patience", "seed",
             "paper_parity")  # fmt: skip
    for name in names:
        assert DEFAULTS[name] == getattr(own, name), name
    assert DEFAULTS["method"] == own.method.value and own.keeps_best
    assert DEFAULTS["loss_weighting"] == own.weighting.value


def test_unknown_kinds_of_noise_are_refused(stack):
    from comfy.model_sampling import IMG_TO_IMG

    from veduta.nodes.host.lora import noise_process

    clone = stack["model"].clone()
    clone.add_object_patch("model_sampling", IMG_TO_IMG())
    with pytest.raises(ValueError, match="of the kind .*, eps, v or flow is needed"):
        noise_process(clone)
    found = noise_process(stack["model"])
    assert isinstance(found, NoiseProcess) and found.prediction is Prediction.NOISE


def test_a_set_without_aux_is_warned_of(stack, folders):
    told = run(stack, single(aux=0), steps=1)[-1]
    assert "warning: style had no Aux pictures" in told
    assert "warning" not in run(stack, single(), name="dual", steps=1)[-1]


def pictures_on_disk(folder, count):
    folder.mkdir()
    for index in range(count):
        pixels = picture((0.9, 0.2, 0.1), index).pixels.movedim(0, -1).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return str(folder)


def test_the_command_trains_like_the_node(folders, capsys):
    from veduta.nodes.style import command

    refs = pictures_on_disk(folders / "refs", 2)
    aux = pictures_on_disk(folders / "aux", 1)
    made = folders / "made"
    arguments = ["--miniature", "--component", "style", "zwx", refs, "--aux", aux, "--steps", "2",
                 "--rank", "2", "--validate-every", "0", "--output", str(made)]  # fmt: skip
    assert command.main(arguments) == 0
    assert "style: 2 StyleRef, 1 Aux" in capsys.readouterr().out
    assert load_style(made / "my_style.safetensors").about["steps"] == 2
    assert {"samples.png", "curve.png"} <= {one.name for one in (made / "my_style").iterdir()}
    assert command.main(["--miniature", "--component", "style", "zwx", "nowhere"]) == 1
    assert "there is no folder nowhere" in capsys.readouterr().out
