"""Make Aux Pictures on the miniature: drawn once, kept, never over given ones, literal prompts told."""

from dataclasses import replace

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import folder_paths
import torch
from comfy.model_management import InterruptProcessingException

from veduta.models.styleforge.style_set import Component, StylePicture, StyleSet
from veduta.nodes import mini
from veduta.nodes.style import aux_images
from veduta.nodes.style.aux_images import MakeAuxImages

SMALL = {
    "prompts": "a red figure in a meadow\na white figure in the snow", "count": 3, "seed": 0,
    "steps": 2, "cfg": 4.0, "negative": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(comfyui):
    with torch.inference_mode():  # as ComfyUI runs the loader
        return {"model": mini.load_model(), "clip": mini.load_clip(), "vae": mini.load_vae()}


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / "veduta" / "aux"


def style_set(**parts):
    pixels = torch.zeros(3, 64, 96, dtype=torch.uint8)
    picture = StylePicture(pixels=pixels, caption="a tree", source="tree.png")
    one = Component(name="style", trigger="ohwx", style_ref=(picture,))
    return StyleSet(components=(replace(one, **parts),))


def run(stack, found=None, **changes):
    with torch.inference_mode():  # as ComfyUI runs a prompt
        return MakeAuxImages.execute(
            **stack, style_set=found or style_set(), **{**SMALL, **changes}
        ).args


def test_pictures_are_drawn_at_the_styles_size_once(stack, output, monkeypatch):
    given = style_set()
    found, images, report = run(stack, given)
    (component,) = found.components
    assert [one.pixels.shape for one in component.aux] == [(3, 64, 96)] * 3
    assert all(one.caption == "" for one in component.aux)
    assert component.aux_origin == "painted portraits" and "3 pictures, painted portraits" in report
    assert images.shape == (3, 64, 96, 3) and images.std() > 0.02
    assert given.components[0].aux == ()
    (kept,) = output.iterdir()
    assert sorted(path.name for path in kept.iterdir())[:2] == ["000.png", "000.txt"]
    monkeypatch.setattr(aux_images, "draw", None)  # may not be asked again
    again, same, _ = run(stack)
    assert torch.equal(images, same) and len(again.components[0].aux) == 3


def test_other_settings_draw_other_pictures(stack, output):
    for changes in ({}, {"seed": 1}, {"prompts": "a cow"}):
        run(stack, count=1, **changes)
    assert len(list(output.iterdir())) == 3


def test_given_aux_pictures_stay(stack, output):
    aux = style_set().components[0].style_ref
    found, images, _ = run(stack, style_set(aux=aux, aux_origin="folder"))
    assert found.components[0].aux == aux and found.components[0].aux_origin == "folder"
    assert len(images) == 1 and not output.exists()


def test_the_literal_class_prompt_is_warned_of(stack, output):
    report = run(stack, prompts="a photo of style", count=1)[2]
    assert "the DreamBooth baseline" in report


def test_a_cancelled_run_leaves_nothing_that_looks_whole(stack, output, monkeypatch):
    def stop(*_, **__):
        raise InterruptProcessingException

    with monkeypatch.context() as patched:
        patched.setattr(aux_images, "draw", stop)
        with pytest.raises(InterruptProcessingException):
            run(stack, count=1)
    assert not output.exists() or not list(output.iterdir())
    assert len(run(stack, count=1)[0].components[0].aux) == 1


@pytest.mark.parametrize(
    ("found", "changes", "words"),
    [
        (StyleSet(components=()), {}, "style_set has no component"),
        (style_set(style_ref=()), {}, "component 'style' has no StyleRef picture"),
        (style_set(), {"prompts": "\n"}, "prompts is empty"),
    ],
)
def test_unusable_settings_are_refused(stack, output, found, changes, words):
    with pytest.raises(ValueError, match=words):
        run(stack, found, **changes)
