"""A small convolutional network that sees the whole picture at once.

The evidence for a single line says nothing of what is around it: a table's edge looks like a coast.
This network looks at the arrangement of the frame, coarsely, and scores the same candidate lines.

Symbols: b pictures, n lines, s side of the square picture.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from .horizon_lines import MIN_SPREAD, candidate_lines, opponent_colours, square_of
from .horizon_network import HorizonScores

SIDE_PX = 64
WIDTHS = (32, 64, 96)  # each stage halves the side
NECK = (24, 160)  # channels kept of every place, numbers kept of the picture


class HorizonPixels(nn.Module):
    """Scores the candidate lines and the presence of a horizon from pixels."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        places = (SIDE_PX // 2 ** len(WIDTHS)) ** 2
        self.body = nn.Sequential(
            _block(5, first, 2),
            _block(first, first, 1),
            _block(first, second, 2),
            _block(second, second, 1),
            _block(second, third, 2),
            _block(third, third, 1),
            _block(third, third, 1),
        )
        self.neck = nn.Sequential(
            nn.Conv2d(third, NECK[0], 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(NECK[0] * places, NECK[1]),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.lines = nn.Linear(NECK[1], len(candidate_lines()))
        self.presence = nn.Linear(NECK[1], 1)

    def forward(self, pixels: Tensor) -> HorizonScores:
        """Score a batch (b 3 s s) from `pixels_of`."""
        axis = torch.linspace(-1, 1, SIDE_PX, device=pixels.device)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="xy")).expand(
            len(pixels), -1, -1, -1
        )
        seen = torch.cat([pixels, place], 1).contiguous(memory_format=torch.channels_last)
        h = self.neck(self.body(seen))
        return HorizonScores(self.presence(h)[:, 0], self.lines(h))

    def of_both_ways(self, pixels: Tensor) -> HorizonScores:
        """The mean over the picture and its mirror image; lines as log probabilities."""
        both = self(torch.cat([pixels, pixels.flip(-1)]))
        there, mirrored = both.lines.log_softmax(1).chunk(2)
        return HorizonScores(
            torch.stack(both.presence.chunk(2)).mean(0), (there + mirrored[:, mirror_images()]) / 2
        )


def _block(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


def pixels_of(image: Tensor) -> Tensor:
    """What the network sees of pictures (b 3 h w): (b 3 s s), of a common spread, around zero."""
    small = square_of(image, SIDE_PX)
    spread = small.flatten(1).std(1).clamp_min(MIN_SPREAD).view(-1, 1, 1, 1)
    colours = opponent_colours(small)
    return (colours - colours.mean((2, 3), keepdim=True)) / (2 * spread)


@lru_cache(maxsize=1)
def mirror_images() -> Tensor:
    """(n) for every candidate line, the place of its mirror image; read only."""
    lines = candidate_lines()
    return (lines.flip(1)[:, None] - lines).abs().amax(2).argmin(1)
