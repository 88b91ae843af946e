"""Loading and saving styles: the stock loader's numbers, strengths, triggers, hooks, refusals."""

from dataclasses import replace

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import folder_paths
import torch
from safetensors import safe_open
from torch.testing import assert_close

import nodes as core
from veduta.models.styleforge.components import weight_slices
from veduta.models.styleforge.files import load_style, save_style
from veduta.models.styleforge.lora import Layers, Lora, Plan
from veduta.models.styleforge.style import Style
from veduta.nodes import mini
from veduta.nodes.host.lora import image_places, text_places
from veduta.nodes.style.load import CONNECTED, LoadStyle
from veduta.nodes.style.save import SaveStyle

SLICES = ("shared", "people", "backgrounds")
PROMPTS = {"people": "a photo of zwx style", "backgrounds": "a photo of ukj style"}


@pytest.fixture(scope="module")
def stack():
    with torch.inference_mode():  # as ComfyUI runs the loader
        return mini.load_model(), mini.load_clip()


@pytest.fixture(scope="module")
def style(stack):
    model, clip = stack
    spots = image_places(model, Layers(convolutions=True)) | text_places(clip)
    plan = Plan(rank=4, slices=SLICES)
    lora = Lora({key: s.target for key, s in spots.items()}, plan, torch.Generator())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora.named_layers():
            for up in layer.up:
                up.copy_(0.02 * torch.randn(up.shape, generator=generator))
    return Style(
        tensors=lora.tensors(), slices=SLICES, prompts=PROMPTS, base="miniature", about={"steps": 1}
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    known = {**folder_paths.folder_names_and_paths}
    known["loras"] = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    return tmp_path


def load(stack, style=None, style_name=CONNECTED, **changes):
    inputs = {"strength": 1.0, "components": "", "text_strength": 1.0, **changes}
    with torch.inference_mode():
        return LoadStyle.execute(*stack, style_name=style_name, style=style, **inputs).args


def drawn(model, clip, positive=None):
    with torch.inference_mode():
        text = core.CLIPTextEncode().encode(clip, "a tree")[0]
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        answer = core.KSampler().sample(
            model, 1, 2, 4.0, "euler", "normal", positive or text, text, latent
        )
    return answer[0]["samples"]


def test_all_strengths_1_are_the_stock_loader(stack, style, folder):
    save_style(folder / "mine.safetensors", style)
    with torch.inference_mode():
        stock = drawn(*core.LoraLoader().load_lora(*stack, "mine.safetensors", 1.0, 1.0))
    own = drawn(*load(stack, style_name="mine.safetensors")[:2])
    assert_close(own, stock, rtol=0, atol=1e-5)
    base = drawn(*stack)
    assert (base - own).abs().max() > 0.05
    assert torch.equal(drawn(*load(stack, style, strength=0.0, text_strength=0.0)[:2]), base)


def test_strength_0_of_a_component_is_the_file_without_its_slice(stack, style, folder):
    save_style(folder / "mine.safetensors", style)
    kept = load_style(folder / "mine.safetensors")
    less = replace(kept, tensors=weight_slices(kept.tensors, SLICES, {"people": 0.0}))
    save_style(folder / "less.safetensors", replace(less, slices=("shared", "backgrounds")))
    with torch.inference_mode():
        stock = drawn(*core.LoraLoader().load_lora(*stack, "less.safetensors", 1.0, 1.0))
    model, clip, trigger, _ = load(stack, style_name="mine.safetensors", components="people 0")
    assert_close(drawn(model, clip), stock, rtol=0, atol=1e-5)
    assert trigger == PROMPTS["backgrounds"]


def test_hooks_do_what_the_patched_model_does(stack, style):
    model, _, trigger, hooks = load(stack, style, components="people 0.5", text_strength=0.0)
    assert trigger == ", ".join(PROMPTS.values())
    with torch.inference_mode():
        positive = core.CLIPTextEncode().encode(stack[1], "a tree")[0]
        hooked = [[one, {**told, "hooks": hooks}] for one, told in positive]
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        rest = (1, 2, 1.0, "euler", "normal")  # at cfg 1 the negative is not asked
        with_hooks = core.KSampler().sample(stack[0], *rest, hooked, positive, latent)[0]["samples"]
        patched = core.KSampler().sample(model, *rest, positive, positive, latent)[0]["samples"]
        plain = core.KSampler().sample(stack[0], *rest, positive, positive, latent)[0]["samples"]
    assert_close(with_hooks, patched, rtol=1e-4, atol=1e-4)
    assert (plain - patched).abs().max() > 0.01


def test_the_inputs_stay_as_they_are(stack, style):
    before = {name: value.clone() for name, value in style.tensors.items()}
    load(stack, style, components="people 0.5")
    assert all(torch.equal(style.tensors[name], value) for name, value in before.items())
    assert not stack[0].patches and not stack[1].patcher.patches


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"style_name": CONNECTED}, "no style is chosen and none is connected"),
        ({"components": "cats 1"}, "components name 'cats', this style has shared, people"),
        ({"components": "people"}, "components hold 'people', a name and a number"),
    ],
)
def test_unusable_choices_are_refused(stack, style, changes, words):
    given = None if "style_name" in changes else style
    with pytest.raises(ValueError, match=words):
        load(stack, given, **changes)


def test_a_style_of_another_base_is_refused(stack, style):
    layers = {
        name.replace("down_blocks_0", "down_blocks_9"): v for name, v in style.tensors.items()
    }
    other = replace(style, tensors=layers, base="SDXL", name="mine")
    with pytest.raises(
        ValueError, match="style mine is for SDXL, model is miniature: .* layers are"
    ):
        load(stack, other)
    key = next(name for name in style.tensors if name.endswith("to_q.lora_up.weight"))
    wide = {**style.tensors, key: torch.zeros(7, style.tensors[key].shape[1])}
    with pytest.raises(ValueError, match=r"is \(7, \d+\) in the style and"):
        load(stack, replace(style, tensors=wide))


def save(style, name, **changes):
    inputs = {"components": "", "description": "", "precision": "fp16", **changes}
    return SaveStyle.execute(style=style, name=name, **inputs).args[0]


def test_saving_bakes_strengths_and_keeps_a_picture(stack, style, folder):
    image = torch.rand(1, 64, 64, 3)
    assert (
        save(style, "baked", components="people 0, shared 0.5", image=image) == "baked.safetensors"
    )
    found = load_style(folder / "baked.safetensors")
    assert found.slices == ("shared", "backgrounds") and set(found.prompts) == {"backgrounds"}
    wanted = drawn(*load(stack, style, components="people 0, shared 0.5")[:2])
    assert_close(drawn(*load(stack, found)[:2]), wanted, rtol=0, atol=2e-3)  # fp16 in the file
    with safe_open(folder / "baked.safetensors", "pt") as file:
        assert file.metadata()["modelspec.thumbnail"].startswith("data:image/jpeg")


def test_saving_never_replaces_another_style(style, folder):
    save(style, "mine")
    save(style, "mine", description="again, the same")
    before = (folder / "mine.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"mine.safetensors is there already and holds another"):
        save(replace(style, about={"steps": 2}), "mine")
    with pytest.raises(ValueError, match="leave nothing of the style"):
        save(style, "none", components="shared 0, people 0, backgrounds 0")
    with pytest.raises(ValueError, match="a file name of letters"):
        save(style, "../mine")
    assert (folder / "mine.safetensors").read_bytes() == before
