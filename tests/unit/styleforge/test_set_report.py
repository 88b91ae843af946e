"""The report of a style set: counts, balance, duplicates, Aux in the style, what cannot be trained."""

from dataclasses import replace

import pytest
import torch

from veduta.mini.styles import figure_scene, paint_in_style, place_scene
from veduta.models.styleforge.set_report import (
    check_trainable,
    near_duplicates,
    set_report,
    told_apart,
)
from veduta.models.styleforge.style_set import Component, StylePicture, StyleSet


def split(word):
    return [word + "</w>"]


def picture(seed, style="paper cut", people=True):
    plan = figure_scene(seed) if people else place_scene(seed)
    drawn = paint_in_style(plan, style, 64)
    pixels = torch.from_numpy(drawn.image).movedim(-1, 0).contiguous()
    return StylePicture(
        pixels=pixels, caption=drawn.caption, source=f"{style} {seed}", original_size=(64, 64)
    )


@pytest.fixture(scope="module")
def paper():
    return [picture(seed, people=seed % 2 == 0) for seed in range(10)]


def component(style_ref, aux=(), **parts):
    return Component(
        name="style", trigger="ohwx", style_ref=tuple(style_ref), aux=tuple(aux), **parts
    )


def report_of(*components):
    return set_report(StyleSet(components=components), split)


def test_counts_sizes_and_balance_are_told(paper):
    report = report_of(component(paper))
    assert "'a photo of ohwx style', 1 CLIP token" in report
    assert "10 pictures; trained at 64 x 64 (10)" in report
    assert "warning: 10 StyleRef pictures in all, 15 to 20 are asked for" in report
    assert "5 StyleRef pictures show people, 5 show places" in report
    assert "plain LoRA" in report


@pytest.mark.parametrize(("people", "missing"), [(True, "backgrounds"), (False, "people")])
def test_a_missing_half_is_warned_of(people, missing):
    report = report_of(component([picture(seed, people=people) for seed in range(3)]))
    assert f"warning: no StyleRef picture shows {missing}" in report


def test_a_mask_tells_of_people_and_of_a_place(paper):
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 20:40, 20:40] = 255
    masked = replace(paper[0], caption="", mask=mask)
    bare = [replace(one, caption="") for one in paper[1:3]]
    report = report_of(component([masked, *bare]))
    assert "1 StyleRef pictures show people, 1 show places without them (of 1" in report
    assert "not known; captions" in report_of(component(bare))


def test_a_picture_saved_again_is_found_and_others_are_not(paper):
    grain = torch.randint(-6, 7, paper[3].pixels.shape, generator=torch.Generator().manual_seed(0))
    again = replace(paper[3], pixels=(paper[3].pixels + grain).clamp(0, 255).byte(), source="again")
    assert near_duplicates([*paper, again]) == [("paper cut 3", "again")]
    assert near_duplicates(paper) == []
    assert near_duplicates([again], paper) == [("again", "paper cut 3")]
    assert "paper cut 3 and again is nearly the same" in report_of(component([*paper, again]))


def test_enlarged_pictures_are_named(paper):
    small = replace(paper[0], original_size=(40, 64))
    assert "warning: paper cut 0 is smaller" in report_of(component([small, *paper[1:]]))


def test_aux_in_the_style_itself_is_warned_of(paper):
    alike = [picture(seed, people=seed % 2 == 0) for seed in range(50, 60)]
    oil = [picture(seed, "oil", people=seed % 2 == 0) for seed in range(50, 60)]
    assert told_apart(paper, oil) > 0.9
    assert told_apart(paper, alike) < 0.7
    assert "Aux looks too much like the style" in report_of(component(paper, alike))
    assert "too much" not in report_of(component(paper, oil))
    assert "is in Aux and in StyleRef" in report_of(component(paper, paper[:1]))


def test_literal_aux_and_a_trigger_in_captions_are_warned_of(paper):
    assert "DreamBooth baseline" in report_of(
        component(paper, paper[:2], aux_origin="literal prompt")
    )
    told = replace(paper[0], caption="ohwx in the rain")
    assert "holds the trigger" in report_of(component([told, *paper[1:]]))


def test_an_ordinary_trigger_is_warned_of(paper):
    common = replace(component(paper), trigger="cat")
    assert "trigger 'cat' is no rare word" in report_of(common)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "has no StyleRef picture"), (1, "has 1 StyleRef picture")]
)
def test_too_few_pictures_cannot_be_trained_on(paper, count, words):
    with pytest.raises(ValueError, match=words):
        check_trainable(StyleSet(components=(component(paper[:count]),)))
    check_trainable(StyleSet(components=(component(paper[:2]),)))
