"""Training views of measured pictures: square crops whose labels follow the crop exactly.

Source:  own. Photographs have most horizons near the middle or a third, so an adapter trained on them
         as they are cannot learn the rest. Crops are chosen so that horizon heights are uniform.
Symbols: a view is a square of side L px around (c_x, c_y), turned by phi and perhaps mirrored; theta
         tilt of the horizon in the picture; (u, v) place in the view, 0..1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..common.anchor import MAX_TILT_DEG, Anchor

LOWEST, HIGHEST = 0.1, 0.9  # wanted horizon heights
LEAST_SIDE = 0.4  # of the picture's shorter side: smaller crops lose what makes it a landscape
SMALLER = 0.75  # views are this much to once as large as the largest that fits
TURN_DEG = 12.0  # greatest turn of a view
TURNED_SHARE = 0.5  # of the views with a horizon
ENOUGH_HORIZONS = 0.5  # of the pictures; below it training is warned of


@dataclass(frozen=True, kw_only=True)
class Label:
    """What was measured in one picture.

    Args:
        anchor: parts that were not found, or not surely enough, are None.
        horizon_confidence: 0..1.
        subject_confidence: 0..1.
        width: of the picture, px.
        height: of the picture, px.
    """

    anchor: Anchor
    horizon_confidence: float
    subject_confidence: float
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class View:
    """A square cut out of a picture; lengths and places in the picture's px."""

    centre_x: float
    centre_y: float
    side: float
    turn_deg: float = 0.0  # clockwise; what was level leans the other way in the view
    is_mirrored: bool = False

    @property
    def reach(self) -> float:
        """Half of the side of the level square around the turned one, px."""
        phi = math.radians(self.turn_deg)
        return self.side / 2 * (abs(math.cos(phi)) + abs(math.sin(phi)))


@dataclass(frozen=True, kw_only=True)
class LabelledView:
    """A view of picture number `picture`, its label, and what its loss counts."""

    picture: int
    view: View
    anchor: Anchor
    weight: float


def label_in_view(label: Label, view: View) -> Anchor:
    """The picture's anchor as it is in the view; parts whose mark left the view are None."""
    horizon, tilt = _horizon_in_view(label, view)
    x, y = _subject_in_view(label, view)
    return Anchor(horizon=horizon, tilt_deg=tilt, subject_x=x, subject_y=y)


def _horizon_in_view(label: Label, view: View) -> tuple[float | None, float | None]:
    if label.anchor.horizon is None:
        return None, None
    tilt = (label.anchor.tilt_deg or 0.0) - view.turn_deg
    # where the view's middle column meets y = y_h H + tan(theta) (x - W/2)
    theta = math.radians(label.anchor.tilt_deg or 0.0)
    below = (
        label.anchor.horizon * label.height
        + math.tan(theta) * (view.centre_x - label.width / 2)
        - view.centre_y
    )
    height = 0.5 + below / view.side * math.cos(theta) / math.cos(math.radians(tilt))
    if not 0.0 <= height <= 1.0 or abs(tilt) > MAX_TILT_DEG:
        return None, None
    if label.anchor.tilt_deg is None:
        return height, None
    return height, -tilt if view.is_mirrored else tilt


def _subject_in_view(label: Label, view: View) -> tuple[float | None, float | None]:
    x, y = label.anchor.subject_x, label.anchor.subject_y
    if view.turn_deg != 0 and (x is None or y is None):
        return None, None  # one coordinate alone does not survive a turn
    phi = math.radians(view.turn_deg)
    across = (0.0 if x is None else x * label.width - view.centre_x) / view.side
    down = (0.0 if y is None else y * label.height - view.centre_y) / view.side
    u = math.cos(phi) * across + math.sin(phi) * down
    v = math.cos(phi) * down - math.sin(phi) * across
    u, v = 0.5 + (-u if view.is_mirrored else u), 0.5 + v
    if not (0.0 <= u <= 1.0 and 0.0 <= v <= 1.0):
        return None, None
    return None if x is None else u, None if y is None else v


def weight_of(label: Label, anchor: Anchor) -> float:
    """Mean confidence of the parts that a view shows; 1 where it claims nothing."""
    sure = [label.horizon_confidence] if anchor.horizon is not None else []
    if anchor.subject_x is not None or anchor.subject_y is not None:
        sure.append(label.subject_confidence)
    return sum(sure) / len(sure) if sure else 1.0


def plan_views(
    labels: Sequence[Label], views_each: int, generator: Generator
) -> list[LabelledView]:
    """Choose crops, turns and mirrorings so that horizon heights are uniform over 0.1 to 0.9.

    Pictures with a horizon share the heights among themselves: a height goes to the picture that has
    the fewest views of those that can show it. Heights that none can show are left out. Pictures
    without one get level random crops.

    Args:
        labels: one per picture.
        views_each: mean number of views of a picture.
        generator: of the CPU.
    """
    with_horizon = [i for i, label in enumerate(labels) if label.anchor.horizon is not None]
    counts = dict.fromkeys(with_horizon, 0)
    wanted = _even_heights(len(with_horizon) * views_each, generator)
    planned = []
    for height in wanted:
        able = [i for i in with_horizon if _largest_side(labels[i], height, 0.0) is not None]
        if not able:
            continue
        fewest = min(counts[i] for i in able)
        able = [i for i in able if counts[i] == fewest]
        index = able[int(torch.randint(len(able), (), generator=generator))]
        counts[index] += 1
        view = _view_with_horizon(labels[index], height, generator)
        planned.append(_labelled(labels, index, view))
    for index, label in enumerate(labels):
        if label.anchor.horizon is None:
            views = (_any_view(label, generator) for _ in range(views_each))
            planned += [_labelled(labels, index, view) for view in views]
    return planned


def _labelled(labels: Sequence[Label], index: int, view: View) -> LabelledView:
    anchor = label_in_view(labels[index], view)
    weight = weight_of(labels[index], anchor)
    return LabelledView(picture=index, view=view, anchor=anchor, weight=weight)


def _even_heights(count: int, generator: Generator) -> list[float]:
    shares = (torch.arange(count) + torch.rand(count, generator=generator)) / max(count, 1)
    order = torch.randperm(count, generator=generator)
    return (LOWEST + (HIGHEST - LOWEST) * shares[order]).tolist()


def _largest_side(label: Label, height: float, turn_deg: float) -> float | None:
    """The largest square, px, that shows the horizon at `height`; None if that is too small."""
    theta = math.radians(label.anchor.tilt_deg or 0.0)
    phi = math.radians(turn_deg)
    assert label.anchor.horizon is not None
    reach = (abs(math.cos(phi)) + abs(math.sin(phi))) / 2  # of a side of 1
    # the view's centre lies this many sides above the horizon, taken at the middle column
    above = (height - 0.5) * math.cos(theta - phi) / math.cos(theta)
    line = label.anchor.horizon * label.height
    limits = [min(label.width, label.height) / 2 / reach]
    if reach + above > 0:
        limits.append(line / (reach + above))  # the top must not be above the picture
    if reach - above > 0:
        limits.append((label.height - line) / (reach - above))  # nor the bottom below it
    largest = min(limits)
    return largest if largest >= LEAST_SIDE * min(label.width, label.height) else None


def _view_with_horizon(label: Label, height: float, generator: Generator) -> View:
    size, turned, turn, across, mirrored = torch.rand(5, generator=generator).tolist()
    turn_deg = TURN_DEG * (2 * turn - 1) if turned < TURNED_SHARE else 0.0
    largest = _largest_side(label, height, turn_deg)
    if largest is None:
        turn_deg, largest = 0.0, _largest_side(label, height, 0.0)
    assert largest is not None  # the caller chose a picture that can
    side = largest * (SMALLER + (1 - SMALLER) * size)
    side = max(side, LEAST_SIDE * min(label.width, label.height))
    view = View(
        centre_x=0.0, centre_y=0.0, side=side, turn_deg=turn_deg, is_mirrored=mirrored < 0.5
    )
    centre_x = view.reach + across * (label.width - 2 * view.reach)
    return _placed(label, view, centre_x, height)


def _placed(label: Label, view: View, centre_x: float, height: float) -> View:
    """The view at the height that puts the horizon where it is wanted, and inside the picture."""
    theta = math.radians(label.anchor.tilt_deg or 0.0)
    assert label.anchor.horizon is not None
    above = (height - 0.5) * math.cos(theta - math.radians(view.turn_deg)) / math.cos(theta)
    line = label.anchor.horizon * label.height
    line += math.tan(theta) * (centre_x - label.width / 2)
    centre_y = line - above * view.side
    # a tilted horizon is higher or lower away from the middle: the crop stays inside all the same
    centre_y = min(max(centre_y, view.reach), label.height - view.reach)
    return replace(view, centre_x=centre_x, centre_y=centre_y)


def _any_view(label: Label, generator: Generator) -> View:
    size, across, down, mirrored = torch.rand(4, generator=generator).tolist()
    side = min(label.width, label.height) * (SMALLER + (1 - SMALLER) * size)
    return View(
        centre_x=side / 2 + across * (label.width - side),
        centre_y=side / 2 + down * (label.height - side),
        side=side,
        is_mirrored=mirrored < 0.5,
    )


def cut_view(picture: Tensor, view: View, size: int) -> Tensor:
    """Cut a view out of a picture.

    Args:
        picture: (3 h w), 0..1; left unmodified.
        view: lies inside the picture.
        size: px a side of the result.

    Returns:
        (3 size size).
    """
    height, width = picture.shape[-2:]
    source = picture[None]
    if view.side > size:  # averaged down first: sampling alone would alias
        small = (max(1, round(height * size / view.side)), max(1, round(width * size / view.side)))
        source = F.interpolate(source, small, mode="bilinear", antialias=True)
    phi = math.radians(view.turn_deg)
    cos, sin = math.cos(phi) * view.side, math.sin(phi) * view.side
    mirror = -1.0 if view.is_mirrored else 1.0
    # grid places run over -1..1, in the view and in the picture alike
    theta = torch.tensor([[
        [mirror * cos / width, -sin / width, 2 * view.centre_x / width - 1],
        [mirror * sin / height, cos / height, 2 * view.centre_y / height - 1],
    ]])  # fmt: skip
    grid = F.affine_grid(theta.to(picture), [1, 3, size, size], align_corners=False)
    return F.grid_sample(source, grid, "bilinear", "border", align_corners=False)[0]


def horizon_warning(labels: Sequence[Label]) -> str | None:
    """What to tell the user when more than half of the pictures lack a horizon, else None."""
    lacking = sum(label.anchor.horizon is None for label in labels)
    if lacking <= (1.0 - ENOUGH_HORIZONS) * len(labels):
        return None
    return (
        f"warning: no horizon was found in {lacking} of {len(labels)} pictures, so the adapter can "
        "hardly learn it; choose pictures with a clear horizon"
    )
