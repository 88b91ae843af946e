"""Three classical voters for the horizon, each scoring all candidate lines of the full frame.

Source:  Gershikov et al. 2013 compare such methods for horizons at sea: edges give the best angle,
         regions the best position. Line segments are found by LSD (von Gioi et al. 2010), as in OpenCV.
Differs: no band of the frame is preferred and no height is more likely than another.

segments   S(line) = sum_j len_j exp(-(g_j / 0.02)^2 / 2), g_j the larger gap of segment j's two ends
coherence  C(line) = |mean_k d_k| / rms_k |d_k|, d_k = colour below minus above in column k
split      R(line) = log var(frame) - share_above log var(above) - share_below log var(below)
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from .horizon_lines import LineStatistics, heights_at

SEGMENT_SIDE_PX = 128  # the whole frame is squeezed to this square to look for segments
MAX_SEGMENTS = 160
MAX_SLOPE = math.tan(math.radians(26))
SEGMENT_REACH = 0.02
CONTRAST_FLOOR = 0.06  # of the picture's spread; below it a line has no two sides


def find_segments(image: Tensor) -> Tensor:
    """Nearly level line segments of one picture, longest first.

    Args:
        image: (3 h w), 0..1, already small.

    Returns:
        (m 4) x0 y0 x1 y1 in shares of width and height.
    """
    grey = (image.mean(0).clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
    found = cv2.createLineSegmentDetector(cv2.LSD_REFINE_NONE).detect(np.ascontiguousarray(grey))[0]
    if found is None:
        return torch.zeros(0, 4)
    x0, y0, x1, y1 = found.reshape(-1, 4).T  # OpenCV 4 and 5 differ in the axes
    level = np.abs(y1 - y0) <= MAX_SLOPE * np.abs(x1 - x0)
    height, width = grey.shape
    ends = np.stack([x0 / width, y0 / height, x1 / width, y1 / height], 1)[level]
    order = np.argsort(-np.abs(ends[:, 2] - ends[:, 0]))[:MAX_SEGMENTS]
    return torch.from_numpy(ends[order]).float()


def vote_segments(segments: Tensor, lines: Tensor) -> Tensor:
    """(n) length of the segments that lie on each line (n 2), as a share of the width."""
    if not len(segments):
        return torch.zeros(len(lines))
    ends = heights_at(lines, torch.cat([segments[:, 0], segments[:, 2]]))
    gaps = (ends - torch.cat([segments[:, 1], segments[:, 3]])).abs()
    worst = gaps.unflatten(1, (2, -1)).amax(1)
    length = (segments[:, 2] - segments[:, 0]).abs()
    return (torch.exp(-0.5 * (worst / SEGMENT_REACH) ** 2) * length).sum(1)


def vote_coherence(bands: Tensor) -> Tensor:
    """(b n) how uniform the step in colour across each line is, from bands (b c n k 2)."""
    step = bands[:, :3, ..., 1] - bands[:, :3, ..., 0]
    mean = step.mean(-1).norm(dim=1)
    rms = step.square().sum(1).mean(-1).sqrt()
    return mean / (rms + CONTRAST_FLOOR)


def vote_split(stats: LineStatistics, lines: Tensor) -> Tensor:
    """(b n) gain in log-likelihood per pixel of two Gaussians over one."""
    mean, square = (
        stats.far[:, :3],
        stats.far[:, 3] + stats.far[:, 4],
    )  # second moments of all colours
    variance = (square - mean.square().sum(1)).clamp_min(0) + 0.01  # (b n 2)
    share = lines.mean(1).clamp(0.02, 0.98)
    parts = torch.stack([share, 1 - share], -1)
    middle = (mean * parts).sum(-1, keepdim=True)
    whole = (square * parts).sum(-1) - middle.squeeze(-1).square().sum(1) + 0.01
    return whole.clamp_min(0.01).log() - (parts * variance.log()).sum(-1)
