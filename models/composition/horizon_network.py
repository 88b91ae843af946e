"""A small network that weighs the classical evidence for every candidate line.

It never sees pixels: only what is measured along, above and below a line, relative to the spread of
the picture, and how the line compares with the others of the same picture. So it learns from drawn
pictures what carries over to photographs: which steps, textures and sides make a horizon.

Symbols: b pictures, n lines, f features of a line.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .horizon_lines import LineStatistics
from .horizon_voters import vote_coherence, vote_split

FEATURES = 44
FRAME_FEATURES = 10


class HorizonScores(NamedTuple):
    """Raw outputs of the network for a batch."""

    presence: Tensor  # (b) logit that there is a horizon
    lines: Tensor  # (b n) logits of the candidate lines


def line_features(stats: LineStatistics, segments: Tensor, lines: Tensor) -> Tensor:
    """(b n f) description of every line.

    Args:
        stats: of the picture's channels, see `channels_of`.
        segments: (b n) votes of the line segments.
        lines: (n 2) edge heights.
    """
    thin, near, far = stats
    votes = [vote_coherence(thin), vote_coherence(near), vote_split(stats, lines), segments]
    relative = [v / v.amax(1, keepdim=True).clamp_min(1e-4) for v in votes]
    thin_step, near_step = (
        thin[:, :3, ..., 1] - thin[:, :3, ..., 0],
        near[:, :3, ..., 1] - near[:, :3, ..., 0],
    )
    mean_thin, mean_near = thin_step.mean(-1), near_step.mean(-1)  # (b 3 n)
    agree = [
        _agreement(step, mean) for step, mean in ((thin_step, mean_thin), (near_step, mean_near))
    ]
    alike = F.cosine_similarity(mean_thin, mean_near, dim=1)
    band = near.mean(-2)  # (b 6 n 2)
    uneven = near[:, :3].square().mean(3) - band[:, :3].square()  # sideways
    along = uneven.clamp_min(0).sum(1).add(1e-4).log()  # (b n 2)
    inside = (near[:, 4] - near[:, 0].square()).clamp_min(0).mean(2).add(1e-3).log()
    edge_band, edge_far = (band[:, 5] + 0.02).log(), (far[:, 5] + 0.02).log()
    variance = (far[:, 3] + far[:, 4] - far[:, :3].square().sum(1)).clamp_min(0).add(0.01).log()
    thin_edge = (thin[:, 5].mean(2) + 0.02).log()
    single = [*votes, *relative, *agree, alike, mean_thin.norm(dim=1), mean_near.norm(dim=1)]
    paired = [along, inside, edge_band, edge_far, variance, thin_edge]
    colours = [mean_near[:, c] for c in range(3)] + [mean_thin[:, c] for c in range(3)]
    sides = [far[:, c] for c in range(3)] + [band[:, 0], band[:, 2]]
    parts = [*single, *(p[..., i] for p in paired + sides for i in (0, 1)), *colours]
    rise = (lines[:, 1] - lines[:, 0]).abs().expand(len(segments), -1)
    stacked = torch.stack([*parts, rise, *_prominence(votes, lines)], 1)
    return stacked.clamp(-6, 6).transpose(1, 2)


def _agreement(step: Tensor, mean: Tensor) -> Tensor:
    """Share of the columns that step the same way as the mean, at least half as far."""
    projected = (step * mean[..., None]).sum(1)
    return (projected > 0.5 * mean.square().sum(1)[..., None]).float().mean(-1)


def _prominence(votes: list[Tensor], lines: Tensor) -> list[Tensor]:
    """How far the best of each vote lies from every line: (b n) each."""
    return [
        torch.exp(-((lines - lines[v.argmax(1)][:, None]).abs().amax(-1)) / 0.08)
        for v in votes[:1] + votes[2:3]
    ]


def frame_features(stats: LineStatistics, square: Tensor) -> Tensor:
    """(b g) description of the whole frame: spread of colours, of edges, and by thirds."""
    light, edges = square[:, 0], (square[:, 0, 1:] - square[:, 0, :-1]).abs()
    thirds = F.adaptive_avg_pool2d(square, (3, 1)).squeeze(-1)  # (b 3 3)
    sideways = (light[:, :, 1:] - light[:, :, :-1]).abs().mean((1, 2))
    rows, columns = light.mean(2).std(1), light.mean(1).std(1)
    return torch.cat(
        [
            thirds.diff(dim=-1).flatten(1),
            torch.stack([edges.mean((1, 2)), sideways, rows, columns], 1).add(0.01).log(),
        ],
        1,
    ).clamp(-6, 6)


class HorizonNetwork(nn.Module):
    """Scores lines from their features, then the presence of a horizon from the winning ones."""

    def __init__(self, features: int = FEATURES, width: int = 64) -> None:
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(features + FRAME_FEATURES))
        self.register_buffer("scale", torch.ones(features + FRAME_FEATURES))
        self.embed = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.rival = nn.Linear(width, width)
        self.score = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))
        self.presence = nn.Sequential(
            nn.Linear(2 * width + features + FRAME_FEATURES + 3, width),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, lines: Tensor, frame: Tensor) -> HorizonScores:
        """Score a batch.

        Args:
            lines: (b n f) from `line_features`.
            frame: (b g) from `frame_features`.
        """
        known = lines.shape[-1]
        lines = (lines - self.shift[:known]) * self.scale[:known]
        frame = (frame - self.shift[known:]) * self.scale[known:]
        h = self.embed(lines)
        context = self.rival(h.amax(1, keepdim=True)).expand_as(h)
        logits = self.score(torch.cat([h, context], -1)).squeeze(-1)
        weight = torch.softmax(logits, 1)[:, None]  # (b 1 n)
        winner, features = (weight @ h).squeeze(1), (weight @ lines).squeeze(1)
        sharp = torch.stack(
            [
                logits.logsumexp(1) / 4,
                logits.amax(1) / 4,
                (weight * weight.clamp_min(1e-9).log()).sum((1, 2)) / 4,
            ],
            1,
        )
        whole = torch.cat([winner, h.amax(1), features, frame, sharp], 1)
        return HorizonScores(self.presence(whole).squeeze(1), logits)
