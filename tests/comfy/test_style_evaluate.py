"""Evaluate Style on the miniature: a style that is none, real ones, leaks, copies, what is missing."""

import math

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import torch

from veduta.mini.style_pictures import HELD_OUT_FROM, figures, places, style_pictures
from veduta.models.styleforge.style_set import Component, StyleSet
from veduta.nodes import mini
from veduta.nodes.style.evaluate import EvaluateStyle, Judge, Report, _references

PROMPTS = "a red figure in a meadow\na calm sea at night"
SMALL = {"prompts": PROMPTS, "count": 1, "seed": 0, "steps": 2, "cfg": 4.0, "person": "a figure"}


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def stack(comfyui):
    with torch.inference_mode():
        return {"model": mini.load_model(), "clip": mini.load_clip(), "vae": mini.load_vae()}


@pytest.fixture(scope="module")
def clip_vision(comfyui):
    return mini.load_clip_vision()


def style_set(style="paper cut", count=4):
    drawn = [*figures(style, count), *places(style, count)]
    one = Component(name="style", trigger="ohwx", style_ref=style_pictures(drawn, style))
    return StyleSet(components=(one,))


def planes(drawn):
    return torch.stack([torch.from_numpy(one.image).movedim(-1, 0) for one in drawn]).float() / 255


def test_the_base_against_itself_gains_nothing(stack, clip_vision):
    report, images, distance, score, gain = EvaluateStyle.execute(
        **stack, styled_model=stack["model"], styled_clip=stack["clip"], style_set=style_set(),
        clip_vision=clip_vision, **SMALL,
    ).args  # fmt: skip
    assert images.shape == (4, 128, 128, 3)
    assert distance > 0 and 0 <= score <= 100 and math.isfinite(gain)
    assert "2 pictures of 2 prompts against 8 StyleRef pictures, which were trained on" in report
    assert "people in 1 pictures without them" in report
    assert "FID needs 2048 pictures" in report and "nearest to a trained picture" in report


def measured(stack, clip_vision, base, styled, contents, style="paper cut"):
    wanted = _references(style_set(style), None)
    judge = Judge(clip_vision, stack["clip"], "a figure")
    return Report(judge, contents, wanted).measure(base, styled)


def test_pictures_in_the_style_are_near_and_plain_ones_are_not(stack, clip_vision):
    from veduta.mini.painter import paint
    from veduta.mini.styles import place_scene

    plain = planes([paint(place_scene(HELD_OUT_FROM + i), 128) for i in range(6)])
    styled = planes(places("paper cut", 6, HELD_OUT_FROM))
    contents = ["a meadow"] * 6
    found = measured(stack, clip_vision, plain, styled, contents)
    none = measured(stack, clip_vision, plain, plain, contents)
    assert found.gain > 0.5 and none.gain == 0.0
    assert found.kid < 0.5 * none.kid


def test_people_that_nobody_asked_for_are_seen(stack, clip_vision):
    from veduta.mini.painter import paint
    from veduta.mini.styles import figure_scene, place_scene

    empty = planes([paint(place_scene(i), 128) for i in range(8)])
    peopled = planes([paint(figure_scene(i), 128) for i in range(8)])
    contents = ["a meadow under a clear blue sky"] * 8
    found = measured(stack, clip_vision, empty, peopled, contents)
    (line,) = [one for one in found.lines if one.startswith("people in 8 pictures")]
    styled, base = (float(cell.split()[0]) for cell in line[40:].split(")")[:2])
    assert styled > 0.6 and base < 0.2


def test_copies_of_trained_pictures_are_warned_of(stack, clip_vision):
    trained = _references(style_set(), None).trained[:3]
    found = measured(stack, clip_vision, torch.rand(3, 3, 128, 128), trained, ["a meadow"] * 3)
    assert any("3 of 3 pictures are nearer to a trained picture" in line for line in found.lines)
    assert any("1 to paper cut 0 (1.000)" in line for line in found.lines)


def test_held_out_references_are_told(stack, clip_vision):
    held_out = planes(places("paper cut", 2, HELD_OUT_FROM)).movedim(1, -1)
    wanted = _references(style_set(), held_out)
    report = Report(Judge(clip_vision, stack["clip"], "a figure"), ["a meadow", "a sea"], wanted)
    two = torch.rand(2, 3, 128, 128)
    assert "against 2 references" in report.measure(two, two.flip(0)).lines[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": "a tree"}, "make 1 pictures, 2 at least are needed"),
        ({"style_set": StyleSet(components=())}, "style_set holds 0 StyleRef pictures"),
        ({"references": torch.rand(1, 64, 64, 3)}, "references holds 1 picture"),
    ],
)
def test_unusable_settings_are_refused(stack, clip_vision, changes, words):
    given = {"style_set": style_set(count=1), **SMALL, **changes}
    with pytest.raises(ValueError, match=words):
        EvaluateStyle.execute(
            **stack, styled_model=stack["model"], styled_clip=stack["clip"],
            clip_vision=clip_vision, **given,
        )  # fmt: skip
