"""Prompts from which Aux pictures are made: painted people, near enough to any style.

Source:  Park et al. 2024 (StyleForge), arXiv:2404.05256: digital paintings of people (face, half
         body, full body, hands, groups) are the best Aux set; pictures made from the literal class
         prompt are the DreamBooth baseline, which loses.
Differs: the authors picked theirs by hand. A prompt makes a picture; the class word trains it.
"""

from .style_set import CLASS_WORD

AUX_PROMPTS = (
    "digital painting, portrait of a young woman, face, detailed eyes, soft light",
    "digital painting, portrait of an old man with a beard, face, deep shadows",
    "digital painting, portrait of a boy with freckles, face, morning light",
    "digital painting, portrait of a woman in profile, face, dark background",
    "digital painting, portrait of a laughing man, face, warm colours",
    "digital painting, half body portrait of a woman in a red coat, city street",
    "digital painting, half body portrait of a man playing a violin, stage light",
    "digital painting, half body portrait of a girl holding a cat, window light",
    "digital painting, half body portrait of a cook in a kitchen, steam",
    "digital painting, half body portrait of a knight in armour, cloudy sky",
    "digital painting, full body, a dancer in mid jump, theatre",
    "digital painting, full body, a man walking a dog in a park, autumn",
    "digital painting, full body, a woman riding a bicycle, sunny street",
    "digital painting, full body, a child running on a beach, waves",
    "digital painting, full body, a hiker on a mountain path, wide view",
    "digital painting, two hands holding a cup of tea, close view",
    "digital painting, hands of a potter at the wheel, clay",
    "digital painting, a group of friends around a table, evening light",
    "digital painting, a family on a sofa, living room",
    "digital painting, a crowd of people at a market, many faces",
)


def is_literal(prompt: str, class_word: str = CLASS_WORD) -> bool:
    """Whether a prompt is the bare class prompt, as DreamBooth makes its class pictures."""
    bare = prompt.strip().strip(".").lower()
    word = class_word.lower()
    return bare.removeprefix("a photo of ").removeprefix("a picture of ") in (word, f"a {word}")


def prompts_for(lines: str, count: int) -> list[str]:
    """One prompt per picture, taken in turns from a text of one per line; ValueError without any."""
    prompts = [line.strip() for line in lines.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(
            "prompts is empty, one at least is needed; write prompts of painted people, one a line"
        )
    return [prompts[index % len(prompts)] for index in range(count)]
