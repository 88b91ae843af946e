"""The horizon of a picture: three classical voters and two small networks, one answer, or none.

All score the same candidate lines (pairs of heights at the frame's edges). One network weighs the
voters' evidence line by line, the other looks at the picture as a whole; their mean is taken. The
mean of the posterior around the best line is the answer, finer than the grid, and a clean edge beside
it is taken as it is. Confidence joins the networks' presence with the agreement, the share of the
posterior that lies near the answer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .frame import content_box
from .horizon_edge import settle
from .horizon_lines import (
    MIN_SPREAD,
    candidate_lines,
    channels_of,
    describe_lines,
    square_of,
    squeeze,
)
from .horizon_network import HorizonNetwork, HorizonScores, frame_features, line_features
from .horizon_pixels import HorizonPixels, pixels_of
from .horizon_voters import SEGMENT_SIDE_PX, find_segments, vote_segments

LEVEL_PRIOR = 5.0  # logits per unit of rise: people level their horizons ...
PRIOR_RISE = 0.12  # ... and beyond this rise (7 degrees in a square) the slant is meant
AGREEMENT_GAP = 0.06  # voters within it, measured at the frame's edges, mean the same line
SPLIT_VOTE_COST = 0.45  # share of the confidence lost when no two votes agree on a line
CENTRE_GAP = 0.055  # the posterior's mean is taken within it
WORK_SIDE_PX = 384  # pictures are squeezed to this square before anything else


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """A line by its heights at the left and right edge (shares from the top), and a confidence 0..1."""

    left: float
    right: float
    confidence: float


def find_horizons(
    image: Tensor, network: HorizonNetwork, pixel_network: HorizonPixels
) -> list[Horizon | None]:
    """The most likely horizon of every picture, however unlikely; None for a flat picture.

    Args:
        image: (b 3 h w), 0..1; left unmodified.
        network: see `weights.load_network`.
        pixel_network: see `weights.load_pixel_network`.
    """
    square = image.shape[-2:] == (WORK_SIDE_PX, WORK_SIDE_PX)
    whole = image if square else square_of(image, WORK_SIDE_PX)
    boxes = [content_box(picture) for picture in whole]
    inner = torch.cat([_cut(picture, box) for picture, box in zip(whole, boxes, strict=True)])
    inner = inner.contiguous(memory_format=torch.channels_last)  # the faster order for `square_of`
    lines = candidate_lines()
    with torch.no_grad():
        weighed = network(*picture_features(inner))
        scores = _mean(weighed, pixel_network.of_both_ways(pixels_of(inner)))
    rise = (lines[:, 1] - lines[:, 0]).abs().clamp(max=PRIOR_RISE)
    posterior = (scores.lines - LEVEL_PRIOR * rise).softmax(1)
    presence = scores.presence.sigmoid()
    found: list[Horizon | None] = []
    for index, picture in enumerate(inner):
        if float(picture.std()) < MIN_SPREAD / 4:
            found.append(None)
            continue
        line, mass = _peak(posterior[index], lines)
        confidence = _confidence(float(presence[index]), mass)
        left, right = _put_back(settle(picture, line), boxes[index])
        found.append(Horizon(left=left, right=right, confidence=confidence))
    return found


def _mean(weighed: HorizonScores, seen: HorizonScores) -> HorizonScores:
    """Half of each: logits of the presence, log probabilities of the lines."""
    lines = weighed.lines.log_softmax(1) + seen.lines.log_softmax(1)
    return HorizonScores((weighed.presence + seen.presence) / 2, lines / 2)


def _cut(picture: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """The part of a square picture (3 s s) inside a box of shares, as (1 3 s s)."""
    side = picture.shape[-1]
    x0, y0, x1, y1 = (round(share * side) for share in box)
    if (x0, y0, x1, y1) == (0, 0, side, side):
        return picture[None]
    return square_of(picture[None, :, y0:y1, x0:x1], side)


def _put_back(line: Tensor, box: tuple[float, float, float, float]) -> tuple[float, float]:
    """Edge heights in the whole frame of a line found inside a box."""
    x0, y0, x1, y1 = box
    left, right = (float(height) * (y1 - y0) + y0 for height in line)
    slope = (right - left) / (x1 - x0)
    return left - slope * x0, right + slope * (1 - x1)


def picture_features(image: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees of pictures (b 3 h w): features of lines (b n f) and of frames (b g)."""
    lines = candidate_lines()
    square = squeeze(image)
    stats = describe_lines(channels_of(square), lines)
    small = square_of(image, SEGMENT_SIDE_PX)
    segments = torch.stack([vote_segments(find_segments(picture), lines) for picture in small])
    return line_features(stats, segments, lines), frame_features(stats, square)


def _peak(posterior: Tensor, lines: Tensor) -> tuple[Tensor, float]:
    """The line (2) at the densest place of the posterior (n), and the share that lies near it."""
    gaps = (lines - lines[posterior.argmax()]).abs().amax(1)
    near = posterior * (gaps <= AGREEMENT_GAP)
    centre = posterior * (gaps <= CENTRE_GAP)
    return (centre[:, None] * lines).sum(0) / centre.sum(), float(near.sum())


def _confidence(presence: float, mass: float) -> float:
    """The network's presence, held back where the vote is split between distant lines."""
    return presence * (1 - SPLIT_VOTE_COST * (1 - mass))
