"""Other forms of an anchor adapter, for the comparison in bench/anchor.py; nothing here ships.

Each sees the same four numbers, starts without an effect and is trained the same way:

one token        the paper's (models/anchor/paper.py): horizon alone, keys and values of rank 8
8 tokens         the same for all places: a token a part, four registers; the queries know their place
field            a drawn map of the anchor through a small convolutional encoder, added at every place
homogeneous      ours, from the scenes of one ground alone
mixed            ours, from as many scenes of all grounds

Differs: the field of a T2I-Adapter (arXiv:2302.08453) is added to feature maps; here it enters where
         the other forms do, as the values of a single token per place, whose softmax is 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..mini.anchor import HELD_OUT, Drawings, fit_adapter, new_adapter
from ..mini.landscapes import scene
from ..models.anchor.encoder import BANDS, HIDDEN, MAX_TILT, anchor_numbers
from ..models.anchor.paper import PaperAdapter
from ..models.anchor.weights import copy_text_keys
from ..models.common.decoupled_attention import LayerShape, Sight, TokenAdapter, place_centres
from ..models.common.files import write_whole
from ..models.common.fourier import fourier_features
from ..models.common.training import Recipe
from ..nodes.host.attention import cross_attention_layers, layer_shapes

GROUND = "sea"  # of the homogeneous scenes
REGISTERS = 4
CHANNELS = 64  # of the field's encoder
SUBJECT_SIZE = 0.08  # standard deviation of the field's blob, shares of the height


class GlobalTokens(TokenAdapter):
    """8 tokens for all places: each part's, or its null, and registers; queries get their place."""

    def __init__(self, layers: Mapping[str, LayerShape]) -> None:
        super().__init__(layers)
        width = next(iter(layers.values())).context_dim
        self.parts_in = nn.ModuleList(
            nn.Sequential(nn.Linear(1 + 2 * BANDS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, width))
            for _ in range(4)
        )
        self.nulls = nn.Parameter(torch.randn(4, width) * 0.02)
        self.registers = nn.Parameter(torch.randn(REGISTERS, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.to_place = nn.ModuleDict(
            {name: _zero(nn.Linear(2 + 4 * BANDS, shape.inner_dim, bias=False))
             for name, shape in layers.items()}
        )  # fmt: skip
        for projection in self.to_v.values():
            _zero(projection)

    def tokens(self, sights: Sequence[Sight], height: int, width: int, aspect: float) -> Tensor:
        numbers, asked = _numbers(sights, self.nulls.device)
        numbers = numbers / numbers.new_tensor([1.0, MAX_TILT, 1.0, 1.0])
        seen = torch.stack([
            part(fourier_features(numbers[:, i : i + 1], BANDS))
            for i, part in enumerate(self.parts_in)
        ], 1)  # fmt: skip
        parts = torch.where(asked[..., None] > 0, seen, self.nulls)
        return self.norm(torch.cat([parts, self.registers.expand(len(sights), -1, -1)], 1))

    def query_term(self, layer: str, sights: Sequence[Sight], height: int, width: int) -> Tensor:
        places = torch.stack([place_centres(height, width, sight.crop) for sight in sights])
        return self.to_place[layer](fourier_features(places.to(self.nulls.device), BANDS))


class Field(TokenAdapter):
    """A map of what is asked for, convolved at the layer's resolution; one token per place."""

    positional = True

    def __init__(self, layers: Mapping[str, LayerShape]) -> None:
        super().__init__({})
        self.layers = dict(layers)
        width = next(iter(layers.values())).context_dim
        self.encoder = nn.Sequential(
            nn.Conv2d(7, CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, width, 3, padding=1),
        )
        self.to_v = nn.ModuleDict(
            {name: _zero(nn.Linear(shape.context_dim, shape.inner_dim, bias=False))
             for name, shape in layers.items()}
        )  # fmt: skip

    def tokens(self, sights: Sequence[Sight], height: int, width: int, aspect: float) -> Tensor:
        device = next(self.parameters()).device
        places = torch.stack([place_centres(height, width, sight.crop) for sight in sights])
        drawn = draw_field(*_numbers(sights, device), places.to(device), aspect)
        drawn = rearrange(drawn, "b (h w) c -> b c h w", h=height)
        return rearrange(self.encoder(drawn), "b d h w -> b (h w) 1 d")

    def keys_values(self, layer: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
        values = self.to_v[layer](tokens)
        return torch.zeros_like(values), values  # the softmax over one key is 1 whatever the key


def draw_field(numbers: Tensor, asked: Tensor, places: Tensor, aspect: float) -> Tensor:
    """The anchor as a map.

    Args:
        numbers: (b 4) horizon, tilt in radians, subject x, y.
        asked: (b 4) which of them are asked for, 0 or 1.
        places: (b p 2), x and y as shares of the frame.
        aspect: width over height of the frame.

    Returns:
        (b p 7): signed distance to the horizon, a blob at the subject (a band where one of its
        coordinates is open), tilt, of which 1 is the largest, and `asked` in all places but for the
        tilt's, then the tilt's.
    """
    y_h, theta, x_s, y_s = numbers[:, None, :].unbind(-1)
    has_y_h, has_theta, has_x, has_y = asked[:, None, :].unbind(-1)
    theta = theta * has_theta
    x, y = places.unbind(-1)
    distance = ((y - y_h) - theta.tan() * (x - 0.5) * aspect) * theta.cos() * has_y_h
    offset = has_x * ((x - x_s) * aspect).square() + has_y * (y - y_s).square()
    blob = (-offset / (2 * SUBJECT_SIZE**2)).exp() * torch.maximum(has_x, has_y)
    flags = (theta / MAX_TILT, has_y_h, has_theta, has_x, has_y)
    return torch.stack([distance, blob, *(flag.expand_as(x) for flag in flags)], -1)


def _numbers(sights: Sequence[Sight], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.stack([anchor_numbers(sight.request) for sight in sights]).to(device).split(4, 1)


def _zero(projection: nn.Module) -> nn.Module:
    for parameter in projection.parameters():
        nn.init.zeros_(parameter)
    return projection


def _global_tokens(model: ModelPatcher) -> TokenAdapter:
    adapter = GlobalTokens(layer_shapes(model))
    layers = cross_attention_layers(model)
    copy_text_keys(adapter, {name: layer.to_k.weight for name, layer in layers.items()})
    return adapter


FORMS: dict[str, Callable[[ModelPatcher], TokenAdapter]] = {
    "ours": new_adapter,
    "one token": lambda model: PaperAdapter(layer_shapes(model)),
    "8 tokens": _global_tokens,
    "field": lambda model: Field(layer_shapes(model)),
    "homogeneous": new_adapter,
    "mixed": new_adapter,
}


def train_form(name: str, model: ModelPatcher, drawings: Drawings, steps: int, run: Path) -> None:
    """Train one of `FORMS`, or go on with it, and write RUN/forms/NAME.safetensors."""
    torch.manual_seed(4)
    adapter = FORMS[name](model)
    recipe = Recipe(
        steps=steps, learning_rate=1e-3, warmup=min(100, steps // 10), ema_decay=0.995,
        save_every=100,
    )  # fmt: skip
    folder = run / "forms" / name.replace(" ", "_")
    scenes = scenes_of(name, len(drawings.labels) - HELD_OUT)
    done, gain = fit_adapter(adapter, model, drawings, recipe, folder, scenes)
    told = {"steps": str(done), "information_gain": f"{gain:.3f}"}
    state = adapter.state_dict()
    write_whole(weights_of(name, run), lambda draft: save_file(state, draft, told))


def scenes_of(name: str, count: int) -> Sequence[int]:
    """Which of the scenes 0..count-1 a form learns from."""
    alike = [i for i in range(count) if name in ("homogeneous", "mixed") and is_alike(i)]
    if name == "mixed":
        return [math.floor(i * count / len(alike)) for i in range(len(alike))]
    return alike or range(count)


def is_alike(seed: int) -> bool:
    plan = scene(seed)
    return plan.ground == GROUND and plan.horizon is not None


def weights_of(name: str, run: Path) -> Path:
    return run / "forms" / f"{name.replace(' ', '_')}.safetensors"


def load_form(name: str, model: ModelPatcher, run: Path) -> tuple[TokenAdapter, int]:
    """A trained form and its steps."""
    adapter = FORMS[name](model)
    with safe_open(weights_of(name, run), "pt") as file:
        adapter.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        steps = int(file.metadata()["steps"])
    return adapter.eval().requires_grad_(False), steps
