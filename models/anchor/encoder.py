"""Anchor encoder: the anchor as seen from each place of the picture, as a few tokens.

Source:  the idea of a four-number anchor as a decoupled condition is arXiv:2606.07638's.
Differs: its single token cannot say one thing above the horizon and another below (a softmax over
         one key is 1 everywhere). Here each place gets its own tokens: the signed distance to the
         wanted horizon, and the offset to the wanted subject, Fourier-encoded.
Symbols: y_h horizon at the centre column, theta tilt, (x_s, y_s) subject; d signed distance to the
         line, positive below it. Lengths in units of the frame's height, so a wide frame's circle
         is a circle.
"""

import math

import torch
from torch import Tensor, nn

from ..common.anchor import MAX_TILT_DEG, Anchor
from ..common.fourier import fourier_features

BANDS = 6
HIDDEN = 128
REGISTERS = 2  # tokens without a meaning of their own: somewhere to look when nothing is asked
TOKENS = 2 + REGISTERS  # horizon, subject, registers
MAX_TILT = math.radians(MAX_TILT_DEG)


def anchor_numbers(anchor: Anchor) -> Tensor:
    """(8): horizon, tilt in radians, subject x, subject y, then which of them are asked for (0, 1)."""
    parts = (anchor.horizon, anchor.tilt_deg, anchor.subject_x, anchor.subject_y)
    numbers = torch.tensor([0.0 if part is None else part for part in parts])
    numbers[1] = math.radians(anchor.tilt_deg or 0.0)
    return torch.cat([numbers, torch.tensor([float(part is not None) for part in parts])])


class AnchorEncoder(nn.Module):
    """Tokens of an anchor for every place: horizon, subject, two registers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # distance, its validity, tilt and its validity
        self.horizon = _perceptron(1 + 2 * BANDS + 3, width)
        # offsets in x and y and their validities
        self.subject = _perceptron(2 * (1 + 2 * BANDS) + 2, width)
        self.nulls = nn.Parameter(torch.randn(2, width) * 0.02)  # of a part that is not asked for
        self.registers = nn.Parameter(torch.randn(REGISTERS, width) * 0.02)
        self.norm = nn.LayerNorm(width)

    def forward(self, anchors: Tensor, places: Tensor, aspect: float) -> Tensor:
        """Encode.

        Args:
            anchors: (b 8) of `anchor_numbers`.
            places: (b p 2) or (1 p 2), x and y as shares of the whole frame.
            aspect: width over height of the whole frame.

        Returns:
            (b p 4 d).
        """
        y_h, theta, x_s, y_s, has_y_h, has_theta, has_x, has_y = anchors[:, None, :, None].unbind(2)
        theta = theta * has_theta  # the numbers of parts that are not asked for mean nothing
        x, y = places[..., :1], places[..., 1:]
        d = ((y - y_h) - theta.tan() * (x - 0.5) * aspect) * theta.cos()
        flags = torch.cat([has_y_h, theta / MAX_TILT, has_theta], -1)
        seen_horizon = torch.cat(
            [fourier_features(d, BANDS) * has_y_h, flags.expand(*d.shape[:2], -1)], -1
        )
        across = fourier_features((x - x_s) * aspect, BANDS) * has_x
        down = fourier_features(y - y_s, BANDS) * has_y
        flags = torch.cat([has_x, has_y], -1).expand(*d.shape[:2], -1)
        seen_subject = torch.cat([across, down, flags], -1)
        tokens = torch.stack([
            torch.where((has_y_h + has_theta) > 0, self.horizon(seen_horizon), self.nulls[0]),
            torch.where((has_x + has_y) > 0, self.subject(seen_subject), self.nulls[1]),
            *(register.expand(*d.shape[:2], -1) for register in self.registers),
        ], 2)  # fmt: skip
        return self.norm(tokens)


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, outputs))
