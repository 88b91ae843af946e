"""TranSalNet: where people look, by a convolutional encoder whose features transformers relate.

Source:  Lou et al. 2022, arXiv:2110.03593; layout of the released TranSalNet_Res (ResNet-50) and
         TranSalNet_Dense (DenseNet-161) weights.
Differs: the picture is resized with antialiasing, and stays in floating point, so that gradients
         reach it. Colours are RGB, as in the training's own loader.
Symbols: taps T1 deepest (9 x 12 tokens), T2 (18 x 24), T3 (36 x 48).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import State, conv_like, norm_like
from .maps import resized_map, unit_map

HEIGHT, WIDTH = 288, 384  # px; the position tables fix it
PADDING = 1 / 255  # of the letterbox, as released
GRIDS = ((9, 12), (18, 24), (36, 48))  # of T1, T2, T3
HEAD_WIDTH = 64
NORM_EPS = 1e-6
TAPS = {"resnet": (5, 6, 7), "densenet": (6, 8, 10)}  # children after which features are taken


class TranSalNet(nn.Module):
    """Either form; `like` reads the sizes off a state dict of the released layout."""

    def __init__(self, encoder: "TappedEncoder", decoder: "Decoder") -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @classmethod
    def like(cls, state: State) -> "TranSalNet":
        """A network for these weights, not yet holding them.

        Raises:
            KeyError: a weight that tells a size is missing.
        """
        return cls(TappedEncoder.like(state), Decoder(state, "decoder"))

    def forward(self, x: Tensor) -> Tensor:
        """Saliency (b 1 288 384), 0..1, of letterboxed pictures (b 3 288 384), 0..1."""
        return self.decoder(*self.encoder(x))

    def saliency(self, image: Tensor) -> Tensor:
        """Saliency (b 1 h w), 0..1 with 1 at the top, of pictures (b 3 h w), 0..1."""
        boxed, (top, left, height, width) = letterbox(image)
        found = self(boxed)[..., top : top + height, left : left + width]
        return unit_map(resized_map(found, *image.shape[-2:]))


def letterbox(image: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Fit pictures into 288 x 384 px with even borders, keeping their shape.

    Args:
        image: (b 3 h w), 0..1; left unmodified.

    Returns:
        (b 3 288 384), and top, left, height and width of the picture in it.
    """
    h, w = image.shape[-2:]
    if h * WIDTH > w * HEIGHT:
        height, width = HEIGHT, max(1, w * HEIGHT // h)
    else:
        height, width = max(1, h * WIDTH // w), WIDTH
    inner = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    borders = (left, WIDTH - width - left, top, HEIGHT - height - top)
    return F.pad(inner, borders, value=PADDING), (top, left, height, width)


class TappedEncoder(nn.Module):
    """Children of a classifier in a row; the features after three of them, shallow first."""

    def __init__(self, children: Sequence[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(children)
        self.taps = tuple(taps)

    @classmethod
    def like(cls, state: State) -> "TappedEncoder":
        prefix = "encoder.encoder"
        if f"{prefix}.4.0.conv1.weight" in state:
            return cls(_resnet(state, prefix), TAPS["resnet"])
        return cls(_densenet(state, prefix), TAPS["densenet"])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for index, child in enumerate(self.encoder):
            x = child(x)
            if index in self.taps:
                found.append(x)
        return found


def _stem(state: State, prefix: str) -> list[nn.Module]:
    return [
        conv_like(state, f"{prefix}.0", stride=2), norm_like(state, f"{prefix}.1"), nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]  # fmt: skip


def _resnet(state: State, prefix: str) -> list[nn.Module]:
    stages = []
    for stage in range(4, 8):
        name = f"{prefix}.{stage}"
        count = _count(state, f"{name}.{{}}.conv1.weight", start=0)
        strides = [1 if stage == 4 else 2, *[1] * (count - 1)]
        blocks = [Bottleneck(state, f"{name}.{i}", stride) for i, stride in enumerate(strides)]
        stages.append(nn.Sequential(*blocks))
    return [*_stem(state, prefix), *stages]


def _densenet(state: State, prefix: str) -> list[nn.Module]:
    children = _stem(state, prefix)
    for index in (4, 6, 8, 10):
        children.append(DenseBlock(state, f"{prefix}.{index}"))
        if index < 10:
            children.append(_transition(state, f"{prefix}.{index + 1}"))
    return children


def _count(state: State, key: str, start: int) -> int:
    number = start
    while key.format(number) in state:
        number += 1
    return number - start


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions, the stride on the middle one (v1.5)."""

    def __init__(self, state: State, name: str, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_like(state, f"{name}.conv1"), norm_like(state, f"{name}.bn1")
        self.conv2 = conv_like(state, f"{name}.conv2", stride)
        self.bn2 = norm_like(state, f"{name}.bn2")
        self.conv3, self.bn3 = conv_like(state, f"{name}.conv3"), norm_like(state, f"{name}.bn3")
        self.downsample = None
        if f"{name}.downsample.0.weight" in state:
            shortcut = conv_like(state, f"{name}.downsample.0", stride)
            self.downsample = nn.Sequential(shortcut, norm_like(state, f"{name}.downsample.1"))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class DenseLayer(nn.Module):
    """DenseNet's layer: a bottleneck that adds a few channels to all before it."""

    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self.norm1, self.conv1 = (
            norm_like(state, f"{name}.norm1"),
            conv_like(state, f"{name}.conv1"),
        )
        self.norm2, self.conv2 = (
            norm_like(state, f"{name}.norm2"),
            conv_like(state, f"{name}.conv2"),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class DenseBlock(nn.ModuleDict):
    def __init__(self, state: State, name: str) -> None:
        count = _count(state, f"{name}.denselayer{{}}.conv1.weight", start=1)
        layers = [f"denselayer{number}" for number in range(1, count + 1)]
        super().__init__({layer: DenseLayer(state, f"{name}.{layer}") for layer in layers})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = layer(x)
        return x


def _transition(state: State, name: str) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=norm_like(state, f"{name}.norm"), relu=nn.ReLU(),
            conv=conv_like(state, f"{name}.conv"), pool=nn.AvgPool2d(2),
        )
    )  # fmt: skip


class Decoder(nn.Module):
    """From the deepest tap up; each product with a tap's tokens keeps what both levels see."""

    conv7: nn.Conv2d
    TransEncoder1: "TokenBranch"
    TransEncoder2: "TokenBranch"
    TransEncoder3: "TokenBranch"

    def __init__(self, state: State, prefix: str) -> None:
        super().__init__()
        for number in range(1, 8):
            setattr(self, f"conv{number}", conv_like(state, f"{prefix}.conv{number}"))
        for number in range(1, 7):
            setattr(self, f"batchnorm{number}", norm_like(state, f"{prefix}.batchnorm{number}"))
        for number, (rows, columns) in enumerate(GRIDS, start=1):
            branch = TokenBranch(state, f"{prefix}.TransEncoder{number}", rows * columns)
            setattr(self, f"TransEncoder{number}", branch)

    def forward(self, tap3: Tensor, tap4: Tensor, tap5: Tensor) -> Tensor:
        x = _doubled(self._step(1, self.TransEncoder1(tap5)))
        x = _doubled(self._step(2, F.relu(x * self.TransEncoder2(tap4))))
        x = _doubled(self._step(3, F.relu(x * self.TransEncoder3(tap3))))
        x = _doubled(self._step(4, x))
        x = _doubled(self._step(5, x))
        return torch.sigmoid(self.conv7(self._step(6, x)))

    def _step(self, number: int, x: Tensor) -> Tensor:
        convolved = getattr(self, f"conv{number}")(x)
        return F.relu(getattr(self, f"batchnorm{number}")(convolved))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class TokenBranch(nn.Module):
    """A tap's places as tokens through two transformer blocks, and back to a picture."""

    def __init__(self, state: State, name: str, tokens: int) -> None:
        super().__init__()
        self.patch_embeddings = conv_like(state, f"{name}.patch_embeddings")
        width = self.patch_embeddings.out_channels
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, width))
        self.transformer_encoder = TokenEncoder(state, f"{name}.transformer_encoder", width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = rearrange(self.patch_embeddings(x), "b d h w -> b (h w) d")
        related = self.transformer_encoder(tokens + self.position_embeddings)
        return rearrange(related, "b (h w) d -> b d h w", h=height, w=width)


class TokenEncoder(nn.Module):
    def __init__(self, state: State, name: str, width: int) -> None:
        super().__init__()
        count = _count(state, f"{name}.layer.{{}}.ffn.fc1.weight", start=0)
        mlp_width = len(state[f"{name}.layer.0.ffn.fc1.weight"])
        self.layer = nn.ModuleList(TokenBlock(width, mlp_width) for _ in range(count))
        self.encoder_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layer:
            x = block(x)
        return self.encoder_norm(x)


class TokenBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = TokenAttention(width)
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.ffn = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, mlp_width), gelu=nn.GELU(), fc2=nn.Linear(mlp_width, width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class TokenAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(part(x), "b n (heads d) -> b heads n d", d=HEAD_WIDTH)
            for part in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out(rearrange(attended, "b heads n d -> b n (heads d)"))
