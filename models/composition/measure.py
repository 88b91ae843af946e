"""Measuring a picture's composition: horizon, tilt and subject, each with a confidence."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..common.anchor import MAX_TILT_DEG, Anchor
from .horizon import WORK_SIDE_PX, Horizon, find_horizons
from .horizon_lines import square_of
from .horizon_mask import horizon_of_mask
from .subject import Subject, find_subject, subject_of_mask
from .weights import load_network, load_pixel_network

MIN_CONFIDENCE = 0.5
CHUNK = 4  # pictures described at once; bounds the memory


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found in one picture; confidences are 0..1."""

    anchor: Anchor  # None in the parts below the least confidence
    horizon_confidence: float
    subject_confidence: float
    candidate: Anchor  # the best guess of every part, whatever its confidence


def measure_composition(
    image: Tensor,
    sky_mask: Tensor | None = None,
    subject_mask: Tensor | None = None,
    min_confidence: float = MIN_CONFIDENCE,
    advance: Callable[[], None] | None = None,
) -> list[Measurement]:
    """Find horizon, tilt and subject of every picture of a batch.

    Args:
        image: (b 3 h w), 0..1; left unmodified. Large pictures are averaged down first.
        sky_mask: (b 1 h w) or (1 1 h w), 1 = sky: the horizon is then the mask's lower edge.
        subject_mask: (b 1 h w) or (1 1 h w): the subject is then the mask's centre.
        min_confidence: parts below it are None in the anchor.
        advance: called after every picture.

    Returns:
        One measurement per picture.
    """
    measurements: list[Measurement] = []
    aspect = image.shape[-1] / image.shape[-2]
    for start in range(0, len(image), CHUNK):
        chunk = square_of(image[start : start + CHUNK].detach(), WORK_SIDE_PX).cpu()
        if sky_mask is None:
            horizons = find_horizons(chunk, load_network(), load_pixel_network())
        else:
            horizons = [_masked(sky_mask, start + i) for i in range(len(chunk))]
        for index, picture in enumerate(chunk):
            horizon = horizons[index]
            sure = horizon is not None and horizon.confidence >= min_confidence
            if subject_mask is None:
                edges = (horizon.left, horizon.right) if horizon is not None and sure else None
                subject = find_subject(picture, edges)
            else:
                subject = subject_of_mask(_row(subject_mask, start + index))
            measurements.append(_measurement(horizon, subject, aspect, min_confidence))
            if advance is not None:
                advance()
    return measurements


def _row(mask: Tensor, index: int) -> Tensor:
    return mask[index if len(mask) > 1 else 0, 0].detach().cpu()


def _masked(sky_mask: Tensor, index: int) -> Horizon | None:
    fit = horizon_of_mask(_row(sky_mask, index))
    return None if fit is None else Horizon(left=fit[0], right=fit[1], confidence=fit[2])


def _measurement(
    horizon: Horizon | None, subject: Subject | None, aspect: float, least: float
) -> Measurement:
    height = tilt = x = y = None
    if horizon is not None:
        height = min(max((horizon.left + horizon.right) / 2, 0.0), 1.0)
        degrees = math.degrees(math.atan((horizon.right - horizon.left) / aspect))
        tilt = min(max(degrees, -MAX_TILT_DEG), MAX_TILT_DEG)
    if subject is not None:
        x, y = subject.x, subject.y
    horizon_sure = horizon.confidence if horizon is not None else 0.0
    subject_sure = subject.confidence if subject is not None else 0.0
    has_horizon, has_subject = horizon_sure >= least, subject_sure >= least
    return Measurement(
        anchor=Anchor(
            horizon=height if has_horizon else None,
            tilt_deg=tilt if has_horizon else None,
            subject_x=x if has_subject else None,
            subject_y=y if has_subject else None,
        ),
        horizon_confidence=horizon_sure,
        subject_confidence=subject_sure,
        candidate=Anchor(horizon=height, tilt_deg=tilt, subject_x=x, subject_y=y),
    )
