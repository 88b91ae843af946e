"""What the text encoder makes of a trigger word: its tokens, and words that it collides with.

Source:  Ruiz et al. 2022 (DreamBooth), arXiv:2208.12242, 4.1: a rare token as the identifier, so
         that it brings no meaning of its own. StyleForge's own triggers take two tokens each.
Symbols: a piece is an entry of CLIP's vocabulary; "</w>" ends a word.
"""

from collections.abc import Callable, Sequence

END = "</w>"
RARE = ("ohwx", "szn", "bnha")  # one CLIP token each, and hardly ever seen
KNOWN_MEANINGS = {"sks": "a rifle", "vangogh": "the painter"}
SHORT = 3  # letters; shorter pieces say nothing

Split = Callable[[str], Sequence[str]]  # a word to its pieces


def trigger_collision(trigger: str, split: Split) -> str:
    """Why a trigger is no rare word, as the end of a sentence; "" where it is one.

    One token is one that the text encoder's makers met often, so it has a meaning; of several,
    the first may be a word by itself.
    """
    word = trigger.lower()
    pieces = [piece.lower() for piece in split(word)]
    if word in KNOWN_MEANINGS:
        return f"it is {KNOWN_MEANINGS[word]} to the base model"
    if len(pieces) == 1:
        return "" if word in RARE else "it is a word that the text encoder knows"
    first = pieces[0].removesuffix(END)
    if len(first) >= SHORT and len(split(first)) == 1:
        return f"it begins with {first!r}, a word that the text encoder knows"
    return ""


def check_trigger(trigger: str, class_word: str) -> str:
    """The trigger, without space around it.

    Raises:
        ValueError: it is empty, of several words, or the class word itself.
    """
    word = trigger.strip()
    if not word or len(word.split()) > 1:
        raise ValueError(
            f"trigger is {trigger!r}, one rare word is needed, such as {', '.join(RARE)}; write one"
        )
    if word.lower() == class_word.lower():
        raise ValueError(
            f"trigger is {trigger!r}, which is the class word too; write a rare word, such as {RARE[0]}"
        )
    return word


def free_trigger(taken: Sequence[str]) -> str:
    """A rare word that is not taken yet."""
    return next((word for word in RARE if word not in taken), RARE[0])


def told_tokens(trigger: str, split: Split) -> str:
    """The split as a person reads it: "1 CLIP token" or "2 CLIP tokens: z + wx"."""
    pieces = [piece.removesuffix(END) for piece in split(trigger)]
    if len(pieces) == 1:
        return "1 CLIP token"
    return f"{len(pieces)} CLIP tokens: {' + '.join(pieces)}"
