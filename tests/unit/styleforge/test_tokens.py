"""Trigger words: their split, their collisions, what is no trigger at all."""

import pytest

from veduta.models.styleforge.tokens import (
    check_trigger,
    free_trigger,
    told_tokens,
    trigger_collision,
)

WHOLE = {"ohwx", "szn", "bnha", "sks", "cat", "watercolor", "paper", "cub", "z", "uk"}
PARTS = {
    "zwx": ["z", "wx</w>"], "ukj": ["uk", "j</w>"], "cubism": ["cub", "ism</w>"],
    "papercut": ["paper", "cut</w>"], "vqx": ["vq", "x</w>"], "wx": ["w", "x</w>"],
}  # fmt: skip


def split(word):
    return [word + "</w>"] if word in WHOLE else PARTS[word]


@pytest.mark.parametrize("word", ["ohwx", "szn", "zwx", "ukj", "OHWX"])
def test_rare_words_collide_with_nothing(word):
    assert trigger_collision(word, split) == ""


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("cat", "a word that the text encoder knows"),
        ("watercolor", "a word that the text encoder knows"),
        ("sks", "a rifle"),
        ("cubism", "begins with 'cub'"),
        ("papercut", "begins with 'paper'"),
    ],
)
def test_ordinary_words_are_told(word, words):
    assert words in trigger_collision(word, split)


def test_the_split_is_told():
    assert told_tokens("ohwx", split) == "1 CLIP token"
    assert told_tokens("zwx", split) == "2 CLIP tokens: z + wx"


def test_a_free_word_is_none_that_is_taken():
    assert free_trigger(["ohwx"]) == "szn"


@pytest.mark.parametrize("word", ["", "  ", "two words"])
def test_one_word_is_needed(word):
    with pytest.raises(ValueError, match="one rare word is needed, such as ohwx"):
        check_trigger(word, "style")


def test_the_class_word_is_no_trigger():
    with pytest.raises(ValueError, match="'Style', which is the class word too"):
        check_trigger("Style", "style")
    assert check_trigger(" ohwx ", "style") == "ohwx"
