"""UNISAL: a small network of where people look, the part of it that sees still pictures.

Source:  Droste et al. 2020, arXiv:2003.05477; layout of the released weights.
Differs: only the SALICON domain is kept (its batch norms, priors, adaptation and smoothing), and not
         the recurrent part, which still pictures bypass; pictures are resized bicubically (released:
         Lanczos); the map is scaled to a peak of 1 instead of a sum of 1.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import State, conv_like, norm_like, normalised
from .maps import resized_map, unit_map

DOMAIN = "SALICON"
OTHER_DOMAINS = ("DHF1K", "Hollywood", "UCFSports")
RECURRENT = ("rnn.", "post_rnn.")
DOMAIN_PARTS = ("adaptation", "smoothing", "coarse_gaussians")
HALVED = (2, 4, 7, 14)  # blocks of the backbone after which every other row and column goes on
TAP_4X, TAP_2X = 7, 14  # blocks whose output is used before that
BLOCKS = range(1, 18)
PRIOR_SCALE = 6.0
CELLS = range(7, 14)  # a side of the coarsest features
CELL_COUNTS = range(100, 121)  # of them altogether
CELL_PX = 32


class Unisal(nn.Module):
    """Takes the keys that `still_picture_state` leaves."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.cnn = Backbone(state, "cnn")
        self.coarse_gaussians = nn.Parameter(torch.empty(state["coarse_gaussians"].shape))
        self.post_cnn = _inverted(state, "post_cnn")
        self.skip_2x, self.skip_4x = _skip(state, "skip_2x"), _skip(state, "skip_4x")
        self.upsampling_2 = _inverted(state, "upsampling_2")
        self.post_upsampling_2 = _inverted(state, "post_upsampling_2")
        self.adaptation = nn.Sequential(conv_like(state, "adaptation.0"))
        size = state["smoothing.weight"].shape[-1]
        self.smoothing = nn.Conv2d(1, 1, size, bias=False)

    @classmethod
    def like(cls, state: State) -> "Unisal":
        """A network for these weights, not yet holding them; KeyError where one is missing."""
        return cls(state)

    def forward(self, x: Tensor) -> Tensor:
        """Log density (b 1 h w), up to a constant, of normalised pictures (b 3 h w).

        h and w are multiples of 32.
        """
        coarse, middle, fine = self.cnn(x)
        priors = gaussian_maps(self.coarse_gaussians, *coarse.shape[-2:])
        y = self.post_cnn(torch.cat([coarse, priors.expand(len(x), -1, -1, -1)], 1))
        y = self.upsampling_2(torch.cat([_doubled(y), self.skip_2x(middle)], 1))
        y = self.post_upsampling_2(torch.cat([_doubled(y), self.skip_4x(fine)], 1))
        y = F.interpolate(self.adaptation(y), x.shape[-2:], mode="nearest")
        border = self.smoothing.kernel_size[0] // 2
        return self.smoothing(F.pad(y, [border] * 4, mode="replicate"))

    def saliency(self, image: Tensor) -> Tensor:
        """Saliency (b 1 h w), 0..1 with 1 at the top, of pictures (b 3 h w), 0..1."""
        size = network_size(*image.shape[-2:])
        fitted = F.interpolate(image, size, mode="bicubic", antialias=True)
        density = resized_map(self(normalised(fitted)), *image.shape[-2:])
        return unit_map(torch.exp(density - density.amax((-2, -1), keepdim=True).detach()))


def network_size(height: int, width: int) -> tuple[int, int]:
    """The size, px, whose shape comes closest to a picture's among those of 100 to 120 cells."""
    shape = height / width
    sizes = [
        (rows, columns) for rows in CELLS for columns in CELLS if rows * columns in CELL_COUNTS
    ]

    def likeness(size: tuple[int, int]) -> float:
        own = size[0] / size[1]
        return min(own, shape) / max(own, shape)

    rows, columns = max(sizes, key=likeness)
    return rows * CELL_PX, columns * CELL_PX


def gaussian_maps(gaussians: Tensor, height: int, width: int) -> Tensor:
    """Prior maps (1 k h w) of Gaussians (k 2 2): y and x; middle and log of the spread, in shares."""
    parts = []
    for axis, side in enumerate((height, width)):
        place = torch.linspace(0, 1, side, device=gaussians.device, dtype=gaussians.dtype)
        middle, log_spread = gaussians[:, axis, :, None].unbind(1)
        parts.append(torch.exp(-((place - middle) / log_spread.exp()).square() / 2))
    return PRIOR_SCALE * (parts[0][:, :, None] * parts[1][:, None])[None]


def still_picture_state(released: State) -> dict[str, Tensor]:
    """The weights of the released file that still pictures go through, without their domain's name."""
    state = {}
    for key, value in released.items():
        if key.startswith(RECURRENT) or _is_of_other_domain(key):
            continue
        plain = key.replace(f".bn_{DOMAIN}.", ".")
        for part in DOMAIN_PARTS:
            plain = plain.replace(f"{part}_{DOMAIN.lower()}", part)
        state[plain] = value
    return state


def _is_of_other_domain(key: str) -> bool:
    norms = any(f".bn_{domain}." in key for domain in OTHER_DOMAINS)
    parts = tuple(f"{part}_{domain.lower()}" for part in DOMAIN_PARTS for domain in OTHER_DOMAINS)
    return norms or key.startswith(parts)


class Backbone(nn.Module):
    """MobileNetV2 that loses resolution after a block and not in it."""

    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        name = f"{name}.features"
        first, last = _conv_norm(state, f"{name}.0", 2), _conv_norm(state, f"{name}.18", 1)
        blocks = [InvertedResidual(state, f"{name}.{i}", i not in HALVED) for i in BLOCKS]
        self.features = nn.Sequential(first, *blocks, last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taps = {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in (TAP_4X, TAP_2X):
                taps[index] = x
            if index in HALVED:
                x = x[..., ::2, ::2]
        return x, taps[TAP_2X], taps[TAP_4X]


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen (unless the state has no such layer), filter each channel, narrow."""

    def __init__(self, state: State, name: str, may_add: bool = False) -> None:
        super().__init__()
        name = f"{name}.conv"
        widens = f"{name}.6.weight" in state
        layers: list[nn.Module] = []
        for index in (0, 3, 6) if widens else (0, 3):
            layers += [conv_like(state, f"{name}.{index}"), norm_like(state, f"{name}.{index + 1}")]
            layers.append(nn.ReLU6())
        self.conv = nn.Sequential(*layers[:-1])
        first, last = layers[0], layers[-3]
        assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)
        self.adds = may_add and first.in_channels == last.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


def _inverted(state: State, name: str) -> nn.Sequential:
    return nn.Sequential(OrderedDict(inv_res=InvertedResidual(state, f"{name}.inv_res")))


def _conv_norm(state: State, name: str, stride: int) -> nn.Sequential:
    conv = conv_like(state, f"{name}.0", stride)
    return nn.Sequential(conv, norm_like(state, f"{name}.1"), nn.ReLU6())


def _skip(state: State, name: str) -> nn.Sequential:
    reduction = nn.Sequential(
        conv_like(state, f"{name}.reduction.0"), norm_like(state, f"{name}.reduction.1")
    )
    expansion = _conv_norm(state, f"{name}.expansion", 1)
    return nn.Sequential(OrderedDict(expansion=expansion, reduction=reduction))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")
