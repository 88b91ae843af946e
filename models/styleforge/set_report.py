"""What is to be said of a style set before anything is trained on it, in words for a person.

Source:  Park et al. 2024 (StyleForge), arXiv:2404.05256: 15 to 20 StyleRef and as many Aux
         pictures; people alone or backgrounds alone lose; Aux in the target style lose, too.
         Lopez-Paz & Oquab 2017, arXiv:1610.06545: two sets differ as far as a classifier, here the
         nearest neighbour, tells them apart.
"""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .prompts import names_people
from .style_set import Component, StylePicture, StyleSet
from .tokens import Split, free_trigger, told_tokens, trigger_collision

ASKED = (15, 20)  # pictures of either role
THUMBNAIL_PX = 16
SAME_RMSE = 0.03  # of thumbnails, 0..1: survives resizing and JPEG, not another picture
BANDS = 4  # octaves of detail that a style is told by
APART = 0.7  # share of pictures whose nearest neighbour has to be of their own set
MASKED = (0.01, 0.95)  # share of a picture that is a part and not all or nothing
NAMED = 4  # pictures by name in a sentence


def set_report(style_set: StyleSet, split: Split) -> str:
    """Counts, sizes, balance and warnings, a block for each component."""
    blocks = [_component_lines(one, split) for one in style_set.components]
    return "\n\n".join("\n".join(lines) for lines in [*blocks, _whole_lines(style_set)] if lines)


def check_trainable(style_set: StyleSet) -> None:
    """Refuse what cannot be trained on; ValueError for a component of fewer than two StyleRef."""
    for component in style_set.components:
        count = len(component.style_ref)
        if count < 2:
            raise ValueError(
                f"component {component.name!r} has {count or 'no'} StyleRef picture, {ASKED[0]} to "
                f"{ASKED[1]} are best and 2 at least are needed; add them with Style Set"
            )


def near_duplicates(
    pictures: Sequence[StylePicture], others: Sequence[StylePicture] | None = None
) -> list[tuple[str, str]]:
    """Pairs of names whose pictures are the same, saved again or resized.

    Args:
        pictures: one set.
        others: the other set; None looks for pairs within the first.
    """
    if not pictures or (others is not None and not others):
        return []
    mine = _thumbnails(pictures)
    theirs = mine if others is None else _thumbnails(others)
    near = torch.cdist(mine, theirs) / mine.shape[1] ** 0.5 < SAME_RMSE
    if others is None:
        near = near.triu(1)
    second = pictures if others is None else others
    return [(pictures[i].source, second[j].source) for i, j in near.nonzero().tolist()]


def told_apart(pictures: Sequence[StylePicture], others: Sequence[StylePicture]) -> float:
    """Share of pictures of two sets whose nearest neighbour in style is of their own set.

    0.5 says that nothing tells the sets apart, 1 that everything does.
    """
    features = torch.stack([_style_statistics(one.pixels) for one in [*pictures, *others]])
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-3)
    distance = torch.cdist(features, features)
    distance.fill_diagonal_(torch.inf)
    side = torch.arange(len(features)) < len(pictures)
    same = side[distance.argmin(1)] == side
    return float((same[side].float().mean() + same[~side].float().mean()) / 2)


def _component_lines(component: Component, split: Split) -> list[str]:
    trigger = component.trigger
    lines = [f"{component.name}: {component.style_prompt!r}, {told_tokens(trigger, split)}"]
    collision = trigger_collision(trigger, split)
    if collision:
        lines.append(
            f"  warning: trigger {trigger!r} is no rare word: {collision}; better is one such as "
            f"{free_trigger([trigger])}"
        )
    for role, pictures in (("StyleRef", component.style_ref), ("Aux", component.aux)):
        lines += _role_lines(role, pictures, component)
    lines += _aux_lines(component)
    return lines


def _role_lines(role: str, pictures: Sequence[StylePicture], component: Component) -> list[str]:
    if not pictures:
        none = "none yet: without them this is plain LoRA training" if role == "Aux" else "none yet"
        return [f"  {role:9}{none}"]
    sizes = Counter(f"{one.pixels.shape[-1]} x {one.pixels.shape[-2]}" for one in pictures)
    told = ", ".join(f"{size} ({count})" for size, count in sizes.most_common())
    origin = f", {component.aux_origin}" if role == "Aux" and component.aux_origin else ""
    lines = [f"  {role:9}{len(pictures)} pictures{origin}; trained at {told}"]
    if role == "Aux" and len(pictures) < ASKED[0]:
        lines.append(f"  warning: {_too_few(len(pictures), role)}")
    small = [one.source for one in pictures if _is_enlarged(one)]
    if small:
        lines.append(f"  warning: {_named(small)} smaller than that and blurred by enlarging")
    pairs = near_duplicates(pictures)
    if pairs:
        same = [f"{a} and {b}" for a, b in pairs]
        lines.append(f"  warning: {_named(same)} nearly the same; remove one of each")
    used = [one.source for one in pictures if component.trigger in one.caption.split()]
    if role == "StyleRef" and used:
        lines.append(
            f"  warning: the caption of {_named(used, verb=False)} holds the trigger; captions say what "
            "is to be seen, the trigger is added"
        )
    return lines


def _aux_lines(component: Component) -> list[str]:
    lines = []
    if component.aux_origin == "literal prompt":
        lines.append(
            "  warning: Aux made from the literal class prompt is the DreamBooth baseline, which loses "
            "in the paper; use painted portraits"
        )
    both = near_duplicates(component.aux, component.style_ref)
    if both:
        lines.append(f"  warning: {_named([a for a, _ in both])} in Aux and in StyleRef")
    if min(len(component.aux), len(component.style_ref)) >= 4:
        apart = told_apart(component.style_ref, component.aux)
        if apart < APART:
            lines.append(
                f"  warning: Aux looks too much like the style (told apart in {apart:.0%}; 50% is chance); "
                "pictures of another style, such as digital paintings of people, serve better"
            )
    return lines


def _whole_lines(style_set: StyleSet) -> list[str]:
    """How many StyleRef pictures there are in all, with people and without, as captions and masks tell."""
    pictures = [picture for one in style_set.components for picture in one.style_ref]
    if not pictures:
        return []
    lines = []
    if len(pictures) < ASKED[0]:
        lines.append(f"warning: {_too_few(len(pictures), 'StyleRef')}")
    told = [_people_and_places(one) for one in pictures]
    known = [one for one in told if one is not None]
    if not known:
        return [
            *lines,
            "people and backgrounds: not known; captions beside the pictures would tell",
        ]
    people, places = sum(has for has, _ in known), sum(has for _, has in known)
    lines.append(
        f"people and backgrounds: {people} StyleRef pictures show people, {places} show places without "
        f"them (of {len(known)} with a caption or a mask)"
    )
    for count, missing in ((people, "people"), (places, "backgrounds")):
        if count == 0:
            lines.append(
                f"warning: no StyleRef picture shows {missing}; styles of both are learned far better"
            )
    return lines


def _too_few(count: int, role: str) -> str:
    return f"{count} {role} pictures in all, {ASKED[0]} to {ASKED[1]} are asked for"


def _people_and_places(picture: StylePicture) -> tuple[bool, bool] | None:
    """Whether a picture shows people, and whether it shows a place without them."""
    if picture.mask is not None:
        share = float(picture.mask.float().mean()) / 255
        if MASKED[0] < share < MASKED[1]:
            return True, True  # a part is masked: there is a subject, and there is the rest
    if picture.caption:
        people = names_people(picture.caption)
        return people, not people
    return None


def _is_enlarged(picture: StylePicture) -> bool:
    if picture.original_size is None:
        return False
    width, height = picture.original_size
    return width < picture.pixels.shape[-1] or height < picture.pixels.shape[-2]


def _named(names: Sequence[str], verb: bool = True) -> str:
    told = ", ".join(names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return told + more + (" are" if len(names) > 1 else " is") * verb


def _thumbnails(pictures: Sequence[StylePicture]) -> Tensor:
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    small = [F.adaptive_avg_pool2d(one.pixels.float() / 255, size) for one in pictures]
    return torch.stack(small).flatten(1)


def _style_statistics(pixels: Tensor) -> Tensor:
    """Colour and detail of a picture (3 h w) without its content: means, spreads, octave energies."""
    x = pixels.float() / 255
    opponent = torch.stack([x.mean(0), x[0] - x[1], x[2] - (x[0] + x[1]) / 2])
    found = [opponent.mean((1, 2)), opponent.std((1, 2))]
    for _ in range(BANDS):
        small = F.avg_pool2d(opponent[None], 2)
        detail = opponent - F.interpolate(small, opponent.shape[-2:], mode="bilinear")[0]
        found.append((detail.square().mean((1, 2)) + 1e-6).log())
        opponent = small[0]
    return torch.cat(found)
