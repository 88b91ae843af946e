"""The main subject of a picture: the centre of a mask, else of the most salient region.

Source:  spectral residual saliency (Hou & Zhang 2007): what the smoothed log spectrum does not
         predict stands out; in the spirit of Achanta et al. 2009 distance in colour is joined to it.
Differs: three colour channels and two scales; the colours that a row of the picture shares with its
         neighbours along the horizon (sky, haze, ground) are removed first, because a landscape's own layers are
         its strongest edges; no preference for the centre of the frame.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ..common.spectral_residual import spectral_residual
from .horizon_lines import square_of

SIDE = 64  # saliency is a coarse question; the whole frame is squeezed to this square
REGION_SHARE = 0.35  # of the peak: where the top region ends
UNEVEN_QUANTILE = 0.6  # of a row's departures from its middle: what counts as its usual unevenness
SATURATION = 1.5  # departure, in such units, from which more makes little difference
HALF_SHARE = (
    0.12  # of all saliency in one region: as likely a subject as not (drawings: 0.25 and 0.09)
)
FLAT = 0.004  # spread (std, 0..1) below which there is nothing to see
Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Centre in shares of width and height; confidence 0..1 grows with the region's share of all saliency."""

    x: float
    y: float
    confidence: float


def subject_of_mask(mask: Tensor) -> Subject | None:
    """The centroid of a mask (h w), 0..1; None where the mask is empty."""
    weight = mask.float()
    total = float(weight.sum())
    if total <= 0:
        return None
    h, w = mask.shape
    x = float((weight.sum(0) * (torch.arange(w, device=mask.device) + 0.5)).sum()) / total / w
    y = float((weight.sum(1) * (torch.arange(h, device=mask.device) + 0.5)).sum()) / total / h
    return Subject(x=x, y=y, confidence=1.0)


def find_subject(image: Tensor, edges: tuple[float, float] | None = None) -> Subject | None:
    """The centre of the most salient region of one picture.

    Args:
        image: (3 h w), 0..1; left unmodified.
        edges: heights of the horizon at the left and right edge, if it is known: layers are then
            taken along it.

    Returns:
        None for a flat picture.
    """
    small = square_of(image[None], SIDE)[0].cpu().numpy()
    if small.std() < FLAT:
        return None
    saliency = saliency_map(small, edges)
    return _top_region(saliency)


def saliency_map(small: Array, edges: tuple[float, float] | None = None) -> Array:
    """Saliency (s s), from 0 up, of a squeezed picture (3 s s)."""
    red, green, blue = small
    opponent = np.stack(
        [(red + green + blue) / 3, (red - green) * 0.8, ((red + green) / 2 - blue) * 0.6]
    )
    residual = _without_layers(opponent.astype(np.float32), edges)
    distinct = np.sqrt((residual**2).sum(0))
    distinct = distinct / (distinct + SATURATION)
    spectral = _spectral_residual(residual)
    joined = _unit(cv2.GaussianBlur(distinct, (0, 0), 1.2)) * (0.35 + _unit(spectral))
    return joined


def _unit(field: Array) -> Array:
    return field / max(float(field.max()), 1e-6)


def _without_layers(channels: Array, edges: tuple[float, float] | None) -> Array:
    """Take from every pixel what its row, followed along the horizon, has in common.

    What is left is measured in units of the row's own unevenness, so that waves, grass and clouds
    count for little and a smooth sky lets a small balloon show.
    """
    slope = 0.0 if edges is None else edges[1] - edges[0]
    level = _sheared(channels, slope)
    middle = np.median(level, axis=2, keepdims=True)
    residual = level - middle
    spread = np.quantile(np.abs(level - middle), UNEVEN_QUANTILE, axis=2, keepdims=True)
    spread = np.sqrt((spread**2).sum(0, keepdims=True))
    spread = cv2.GaussianBlur(spread[0], (0, 0), 1.5)[None].reshape(1, -1, 1)
    residual = residual / (spread * 1.5 + 0.05)
    return _sheared(residual.astype(np.float32), -slope)


def _sheared(channels: Array, slope: float) -> Array:
    """Shift every column so that lines parallel to the horizon become rows; edges repeat."""
    if slope == 0.0:
        return channels.copy()
    side = channels.shape[-1]
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    source = (rows + slope * (columns + 0.5 - side / 2)).astype(np.float32)
    return np.stack(
        [
            cv2.remap(c, columns, source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for c in channels
        ]
    )


def _spectral_residual(channels: Array) -> Array:
    """Hou & Zhang's saliency, summed over channels and two scales."""
    side = channels.shape[-1]
    total = np.zeros((side, side), np.float32)
    for scale in (1, 2):
        for channel in channels:
            total += _residual_of(
                cv2.resize(channel, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA),
                side,
            )
    return cv2.GaussianBlur(total, (0, 0), 2.0)


def _residual_of(channel: Array, side: int) -> Array:
    back = spectral_residual(torch.from_numpy(channel)[None, None].double())[0, 0].numpy()
    smooth = cv2.GaussianBlur(back.astype(np.float32), (0, 0), 1.5)
    return _unit(cv2.resize(smooth, (side, side)))


def _top_region(saliency: Array) -> Subject:
    """Area-weighted centre of the connected region with the most saliency."""
    above = (saliency > REGION_SHARE * saliency.max()).astype(np.uint8)
    count, labels = cv2.connectedComponents(above)
    energy = np.bincount(labels.ravel(), saliency.ravel(), count)
    energy[0] = 0.0
    inside = labels == int(energy.argmax())
    rows, columns = np.nonzero(inside)
    side = len(saliency)
    share = float(saliency[inside].sum() / max(float(saliency.sum()), 1e-6))
    return Subject(
        x=float((columns + 0.5).mean() / side),
        y=float((rows + 0.5).mean() / side),
        confidence=share / (share + HALF_SHARE),
    )
