"""An anchor drawn as control pictures and masks, for ControlNets and regional prompts.

Source:  flat ground: inverse depth is linear below the horizon,
         D(v) = clamp((v - v_h(x)) / (H - v_h(x)), 0, 1) with v_h(x) = y_h H + tan(roll) (x - W/2).
         Segmentation in the colours of ADE20K, which segmentation ControlNets were trained on.
Symbols: v, x pixel centres in px; H, W height and width in px; v_h height of the horizon in px.
Note:    the horizon must be set; a tilt that is "don't care" is level. The subject is drawn when
         its x or y is set: a missing x is the middle column, a missing y makes it stand half way
         between the horizon and the bottom edge.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.anchor import Anchor
from ..common.images import MAX_SIDE_PX, MIN_SIDE_PX

BLOB_ASPECT = 0.6  # width over height of the subject: between a standing figure and a bush
FLOATING_DEPTH = 0.2  # inverse depth of a subject in the sky, and the least of one on the ground
LINE_SHARE = 1 / 128  # thickness of drawn lines over the shorter side: 4 px at 512 px

SKY_RGB = (6, 230, 230)
GROUND_RGB = {
    "earth": (120, 120, 70),
    "grass": (4, 250, 7),
    "field": (112, 9, 255),
    "sand": (160, 150, 20),
    "sea": (9, 7, 230),
    "water": (61, 230, 250),
}
SUBJECT_RGB = {
    "tree": (4, 200, 3),
    "person": (150, 5, 61),
    "house": (255, 9, 224),
    "boat": (173, 255, 0),
    "rock": (255, 41, 10),
}


@dataclass(frozen=True, kw_only=True)
class RasterStyle:
    """What the rasters show besides the anchor.

    Raises:
        ValueError: a size outside 0.02..1, or a class without a colour here.
    """

    subject_size: float = 0.25
    ground_class: str = "earth"
    subject_class: str = "tree"

    def __post_init__(self) -> None:
        if not 0.02 <= self.subject_size <= 1.0:
            raise ValueError(
                f"subject_size is {self.subject_size:g}, it must lie in 0.02..1; "
                "give the subject's height as a share of the picture's"
            )
        for name, value, known in (
            ("ground_class", self.ground_class, GROUND_RGB),
            ("subject_class", self.subject_class, SUBJECT_RGB),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, one of {', '.join(known)} is needed")


@dataclass(frozen=True, kw_only=True)
class AnchorRasters:
    """Pictures (3 h w) and masks (1 h w) of one anchor, or with a leading b of several; 0..1."""

    depth: Tensor
    segmentation: Tensor
    lines: Tensor
    sky: Tensor
    ground: Tensor
    subject: Tensor


@dataclass(frozen=True)
class _Frame:
    """Pixel centres and the horizon's height above each column, px."""

    v: Tensor  # h 1
    x: Tensor  # w
    horizon: Tensor  # w
    height: int
    width: int
    cos_tilt: float

    @property
    def below_horizon_px(self) -> Tensor:
        """Signed distance to the horizon line, positive on the ground: (h w)."""
        return (self.v - self.horizon) * self.cos_tilt

    @property
    def line_px(self) -> float:
        return max(1.0, min(self.height, self.width) * LINE_SHARE)


@dataclass(frozen=True)
class _Blob:
    """The subject as an upright ellipse, px."""

    x: float
    v: float
    radius_x: float
    radius_v: float

    def outside_px(self, frame: _Frame) -> Tensor:
        """Signed distance to the outline, negative inside, exact on the axes: (h w)."""
        dx, dv = frame.x - self.x, frame.v - self.v
        level = torch.hypot(dx / self.radius_x, dv / self.radius_v)
        slope = torch.hypot(dx / self.radius_x**2, dv / self.radius_v**2) / level.clamp_min(1e-6)
        return (level - 1.0) / slope.clamp_min(1.0 / max(self.radius_x, self.radius_v))


def draw_rasters(
    anchors: tuple[Anchor, ...], width: int, height: int, style: RasterStyle | None = None
) -> AnchorRasters:
    """Draw the control pictures and masks of each anchor.

    Args:
        anchors: one per picture wanted.
        width: of the rasters, px, 16..16384.
        height: of the rasters, px, 16..16384.
        style: subject size and classes; the defaults of `RasterStyle` if None.

    Returns:
        depth, segmentation, lines (b 3 h w) and sky, ground, subject (b 1 h w), float32 on CPU.
        `ground` is 1 - `sky`, soft over one pixel along the line; `subject` overlaps both.

    Raises:
        ValueError: no anchor, a size out of range, or an anchor without a horizon.
    """
    if not anchors:
        raise ValueError("anchor holds no anchors, one at least is needed; add one")
    drawn = [draw_raster(anchor, width, height, style) for anchor in anchors]
    names = AnchorRasters.__dataclass_fields__
    return AnchorRasters(**{name: torch.stack([getattr(d, name) for d in drawn]) for name in names})


def draw_raster(
    anchor: Anchor, width: int, height: int, style: RasterStyle | None = None
) -> AnchorRasters:
    """Draw the control pictures and masks of one anchor; see `draw_rasters`."""
    style = style or RasterStyle()
    frame = _frame(anchor, width, height)
    blob = _blob(anchor, frame, style)
    sky = (0.5 - frame.below_horizon_px).clamp(0.0, 1.0)
    subject = torch.zeros_like(sky)
    if blob is not None:
        subject = (0.5 - blob.outside_px(frame)).clamp(0.0, 1.0)
    return AnchorRasters(
        depth=_depth(frame, blob, subject).expand(3, -1, -1),
        segmentation=_segmentation(sky, subject, style),
        lines=_lines(frame, blob).expand(3, -1, -1),
        sky=sky[None],
        ground=1.0 - sky[None],
        subject=subject[None],
    )


def _frame(anchor: Anchor, width: int, height: int) -> _Frame:
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_SIDE_PX:
        raise ValueError(
            f"the size is {width} x {height} px, each side must lie in "
            f"{MIN_SIDE_PX}..{MAX_SIDE_PX} px; change width or height"
        )
    if anchor.horizon is None:
        raise ValueError(
            "anchor leaves the horizon open, a horizon is needed to draw sky and ground; "
            "switch use_horizon on in the anchor"
        )
    tilt = math.radians(anchor.tilt_deg or 0.0)
    x = torch.arange(width, dtype=torch.float32) + 0.5
    v = torch.arange(height, dtype=torch.float32) + 0.5
    horizon = anchor.horizon * height + math.tan(tilt) * (x - width / 2)
    return _Frame(v[:, None], x, horizon, height, width, math.cos(tilt))


def _blob(anchor: Anchor, frame: _Frame, style: RasterStyle) -> _Blob | None:
    if anchor.subject_x is None and anchor.subject_y is None:
        return None
    radius_v = style.subject_size * frame.height / 2
    x_share = 0.5 if anchor.subject_x is None else anchor.subject_x
    if anchor.subject_y is None:
        horizon = anchor.horizon_at(x_share, frame.width / frame.height)
        assert horizon is not None  # _frame has checked it
        v = (min(max(horizon, 0.0), 1.0) + 1.0) / 2 * frame.height - radius_v
    else:
        v = anchor.subject_y * frame.height
    return _Blob(x_share * frame.width, v, BLOB_ASPECT * radius_v, radius_v)


def _ground_depth(v: Tensor, horizon: Tensor, height: int) -> Tensor:
    # where the horizon has left the frame at the bottom there is only sky: D = 0
    span = height - horizon
    return torch.where(span > 0, (v - horizon) / span.clamp_min(1e-6), 0.0).clamp(0.0, 1.0)


def _depth(frame: _Frame, blob: _Blob | None, subject: Tensor) -> Tensor:
    depth = _ground_depth(frame.v, frame.horizon, frame.height)
    if blob is None:
        return depth
    # upright on the ground: as near as the ground at its foot, all over
    column = min(max(int(blob.x), 0), frame.width - 1)
    foot = torch.tensor(blob.v + blob.radius_v)
    nearness = _ground_depth(foot, frame.horizon[column], frame.height).clamp_min(FLOATING_DEPTH)
    return torch.lerp(depth, torch.maximum(depth, nearness), subject)


def _segmentation(sky: Tensor, subject: Tensor, style: RasterStyle) -> Tensor:
    # hard borders: a mixed colour would be another class
    def rgb(colour: tuple[int, int, int]) -> Tensor:
        return torch.tensor(colour, dtype=torch.float32)[:, None, None] / 255.0

    scene = torch.where(sky >= 0.5, rgb(SKY_RGB), rgb(GROUND_RGB[style.ground_class]))
    return torch.where(subject >= 0.5, rgb(SUBJECT_RGB[style.subject_class]), scene)


def _lines(frame: _Frame, blob: _Blob | None) -> Tensor:
    half = frame.line_px / 2
    line = (half + 0.5 - frame.below_horizon_px.abs()).clamp(0.0, 1.0)
    if blob is None:
        return line
    outside = blob.outside_px(frame)
    line = line * (outside + 0.5).clamp(0.0, 1.0)  # the subject hides the horizon behind it
    return torch.maximum(line, (half + 0.5 - outside.abs()).clamp(0.0, 1.0))
