"""Prompts: who names people, which component answers, which Aux prompts are literal."""

import pytest
import torch

from veduta.models.styleforge.aux_prompts import AUX_PROMPTS, is_literal, prompts_for
from veduta.models.styleforge.prompts import names_people, prompt_in_style, shows_people
from veduta.models.styleforge.style_set import Component, StylePicture, StyleSet


def component(name, trigger, *captions):
    pictures = tuple(
        StylePicture(pixels=torch.zeros(3, 64, 64, dtype=torch.uint8), caption=one)
        for one in captions
    )
    return Component(name=name, trigger=trigger, style_ref=pictures)


FIGURES = component("figures", "ohwx", "a red figure in a meadow", "a man", "a tree")
PLACES = component("places", "szn", "a meadow", "the sea at night")


@pytest.mark.parametrize(
    ("text", "people"),
    [("a red figure", True), ("Two women, laughing", True), ("a manor", False), ("", False)],
)
def test_people_are_named_as_whole_words(text, people):
    assert names_people(text) is people


def test_most_captions_decide_what_a_component_shows():
    assert shows_people(FIGURES)
    assert not shows_people(PLACES)
    assert not shows_people(component("none", "bnha"))


def test_the_component_of_people_is_for_prompts_with_people():
    both = StyleSet(components=(FIGURES, PLACES))
    assert prompt_in_style(both, "a calm sea") == "a photo of szn style, a calm sea"
    assert (
        prompt_in_style(both, "a king by the sea")
        == "a photo of ohwx style, a photo of szn style, a king by the sea"
    )


def test_a_single_component_is_always_asked_for():
    alone = StyleSet(components=(FIGURES,))
    assert prompt_in_style(alone, "a calm sea") == "a photo of ohwx style, a calm sea"


@pytest.mark.parametrize("prompt", ["style", "a photo of style", "A photo of style.", "a style"])
def test_the_bare_class_prompt_is_literal(prompt):
    assert is_literal(prompt)


def test_painted_portraits_are_not_literal():
    assert len(AUX_PROMPTS) == 20
    assert not any(is_literal(prompt) for prompt in AUX_PROMPTS)
    assert is_literal("a photo of barn", "barn")


def test_prompts_are_taken_in_turns():
    assert prompts_for("a\n\n b \n", 5) == ["a", "b", "a", "b", "a"]
    with pytest.raises(ValueError, match="prompts is empty"):
        prompts_for(" \n", 3)
