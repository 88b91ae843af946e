"""Which words name people, and how a component's trigger is put into a prompt.

Source:  Park et al. 2024 (StyleForge), arXiv:2404.05256: "a photo of [V] style, <prompt>"; with
         several components the one of people is for prompts with people.
"""

import re

from .style_set import Component, StyleSet

PEOPLE = frozenset([
    "actor", "actress", "artist", "baby", "boy", "boys", "child", "children", "couple", "crowd",
    "dancer", "face", "faces", "figure", "figures", "female", "girl", "girls", "group", "guy",
    "hand", "hands", "human", "humans", "king", "knight", "lady", "ladies", "male", "man",
    "men", "model", "monk", "people", "person", "persons", "portrait", "portraits", "queen",
    "sailor", "samurai", "selfie", "soldier", "warrior", "woman", "women", "wizard", "worker",
])  # fmt: skip
WORD = re.compile(r"[^\W\d_]+")


def names_people(text: str) -> bool:
    """Whether a text speaks of a person."""
    return not PEOPLE.isdisjoint(word.lower() for word in WORD.findall(text))


def shows_people(component: Component) -> bool:
    """Whether most of the captions of a component's StyleRef pictures speak of a person."""
    told = [names_people(picture.caption) for picture in component.style_ref if picture.caption]
    return bool(told) and 2 * sum(told) > len(told)


def prompt_in_style(style_set: StyleSet, content: str) -> str:
    """The prompt that asks for a content in the style.

    Components of people are left out where the content names none; where all of them are of
    people, all are used.
    """
    chosen = list(style_set.components)
    if not names_people(content):
        chosen = [one for one in chosen if not shows_people(one)] or chosen
    return ", ".join([*(one.style_prompt for one in chosen), content])
