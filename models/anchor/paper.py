"""The released adapter of arXiv:2606.07638: one anchor token, keys and values of rank 8, SD1.5.

Source:  the authors' published training code and weight files (MIT licence), written anew.
Kept for comparison. A softmax over one key is 1 for every query, so this form adds the same vector
everywhere and its keys never learn; `README.md` has the figures. The LoRA that was trained beside
it is not in these files and is not loaded.
Symbols: a = (horizon_y, horizon_conf, avg_saliency, fg_ratio); k octave.
"""

import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ..common.anchor import Anchor
from ..common.decoupled_attention import LayerShape, Sight, TokenAdapter
from .weights import LoadedAdapter

BASE = "SD1.5"
TEXT_WIDTH, WIDTHS = 768, (320, 640, 1280)  # of SD1.5: its text, its three levels with attention
OCTAVES = 16
HIDDEN = 256
RANK = 8
FOUND = 0.9  # horizon_conf that the authors ask for in their own evaluation
SALIENCY = 0.3  # avg_saliency there; their extraction sets fg_ratio to half of it
FACTORS = ("to_k_ip_down", "to_k_ip_up", "to_v_ip_down", "to_v_ip_up")
PROJECTOR_KEYS = {  # of the file -> of `PaperAdapter`
    **{f"mlp.{part}": f"projector.{part}" for part in (0, 2, 3)},
    "final_norm": "projector.4",
}


def paper_numbers(anchor: Anchor) -> Tensor:
    """The paper's four numbers (4) of an anchor; tilt and subject have no place among them.

    A horizon that is not asked for is 0.5 with confidence 0, as in the paper's labels. The other
    numbers are those of the authors' evaluation: the encoding is so fine that others mean little.
    """
    asked = anchor.horizon is not None
    numbers = [anchor.horizon if asked else 0.5, FOUND if asked else 0.0, SALIENCY, SALIENCY / 2]
    return torch.tensor(numbers)


def paper_features(numbers: Tensor) -> Tensor:
    """The numbers (b n), then of each its sines and its cosines at 1, 2, 4 ... 2^15 turns a unit.

    Returns:
        (b 33n), in float32 as the weights were trained: 2^15 turns leave little of it to round.
    """
    numbers = numbers.float()
    angles = numbers[..., None] * 2.0 ** torch.arange(OCTAVES, device=numbers.device) * 2 * math.pi
    waves = rearrange([angles.sin(), angles.cos()], "wave b n k -> b (n wave k)")
    return torch.cat([numbers, waves], -1)


class PaperAdapter(TokenAdapter):
    """One token for the whole picture; requests are `Anchor` objects.

    An anchor that asks for nothing gives the zero token, which changes nothing.
    """

    def __init__(self, layers: Mapping[str, LayerShape]) -> None:
        super().__init__({})
        self.layers = dict(layers)
        self.to_k = nn.ModuleDict({name: _factors(shape) for name, shape in layers.items()})
        self.to_v = nn.ModuleDict({name: _factors(shape) for name, shape in layers.items()})
        width = next(iter(layers.values())).context_dim
        self.projector = nn.Sequential(
            nn.Linear(4 * (1 + 2 * OCTAVES), HIDDEN),
            nn.GELU(),
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, width),
            nn.LayerNorm(width),
        )

    def tokens(self, sights: Sequence[Sight], height: int, width: int, aspect: float) -> Tensor:
        device = next(self.parameters()).device
        anchors = [_anchor_of(sight) for sight in sights]
        numbers = torch.stack([paper_numbers(anchor) for anchor in anchors]).to(device)
        asked = torch.tensor([float(anchor != Anchor()) for anchor in anchors], device=device)
        return (self.projector(paper_features(numbers)) * asked[:, None])[:, None]


def _factors(shape: LayerShape) -> nn.Sequential:
    down = nn.Linear(shape.context_dim, RANK, bias=False)
    up = nn.Linear(RANK, shape.inner_dim, bias=False)
    nn.init.normal_(down.weight, std=0.01)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, up)


def _anchor_of(sight: Sight) -> Anchor:
    assert isinstance(sight.request, Anchor)
    return sight.request


def sd15_layers() -> dict[str, tuple[str, LayerShape]]:
    """SD1.5's cross-attention layers: name here -> (name of the processor in the files, widths)."""
    down, middle, up = (
        "down_blocks.{}.attentions.{}",
        "mid_block.attentions.0",
        "up_blocks.{}.attentions.{}",
    )
    places = {f"input_{1 + 3 * i + j}_0": (down.format(i, j), WIDTHS[i])
              for i in range(3) for j in range(2)}  # fmt: skip
    places["middle_0_0"] = (middle, WIDTHS[2])
    places |= {f"output_{3 * i + j}_0": (up.format(i, j), WIDTHS[3 - i])
               for i in range(1, 4) for j in range(3)}  # fmt: skip
    return {
        name: (f"{place}.transformer_blocks.0.attn2.processor", LayerShape(TEXT_WIDTH, width))
        for name, (place, width) in places.items()
    }


def load_paper_adapter(proj_path: Path, kv_path: Path) -> LoadedAdapter:
    """Read the two files of a released adapter.

    Args:
        proj_path: projector, `anchor_proj.pt`.
        kv_path: key and value factors, `ip_adapter.pt`.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: one of them is cut short, another program's, or of another base.
    """
    projector = _read(proj_path, "the projector (anchor_proj.pt)")
    factors = _read(kv_path, "the key and value factors (ip_adapter.pt)")
    adapter = PaperAdapter({name: shape for name, (_, shape) in sd15_layers().items()})
    _fill(adapter, _projector_state(projector, proj_path), proj_path, "projector.")
    _fill(adapter, _factor_state(factors), kv_path, "to_")
    return LoadedAdapter(
        adapter=adapter.eval().requires_grad_(False),
        base=BASE,
        form="paper",
        about={"source": "arXiv:2606.07638", "files": f"{proj_path.name}, {kv_path.name}"},
    )


def _read(path: Path, wanted: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is missing in {path.parent}, {wanted} of the paper's adapter is needed; "
            "put it there"
        )
    problem = f"{path.name} ({path.stat().st_size} bytes) is {{}}, {wanted} of the paper's adapter is needed; {{}}"
    if not _starts_like_torch(path):
        raise ValueError(problem.format("no PyTorch file", "choose that file"))
    if not zipfile.is_zipfile(path):  # its directory is at the end
        raise ValueError(problem.format("cut short", "copy it again"))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(problem.format("damaged or not weights alone", "copy it again")) from error
    if not (isinstance(state, dict) and all(isinstance(x, Tensor) for x in state.values())):
        raise ValueError(problem.format("another program's file", "choose that file"))
    return state


def _starts_like_torch(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _projector_state(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    octaves = state.get("fourier.freqs")
    if octaves is None or not torch.equal(octaves.float(), 2.0 ** torch.arange(OCTAVES)):
        raise ValueError(
            f"{path.name} has no fourier.freqs of 1, 2, 4 ... {2 ** (OCTAVES - 1)}, the projector "
            "of the paper's adapter is needed; choose its anchor_proj.pt"
        )
    return {
        ".".join((PROJECTOR_KEYS.get(stem, stem), leaf)): tensor
        for key, tensor in state.items()
        if key != "fourier.freqs"
        for stem, _, leaf in [key.rpartition(".")]
    }


def _factor_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        f"{processor}.{factor}.weight": f"{factor[:4]}.{name}.{int(factor.endswith('up'))}.weight"
        for name, (processor, _) in sd15_layers().items()
        for factor in FACTORS
    }
    return {renamed.get(key, key): tensor for key, tensor in state.items()}


def _fill(adapter: PaperAdapter, state: dict[str, Tensor], path: Path, prefix: str) -> None:
    own = {key: x.shape for key, x in adapter.state_dict().items() if key.startswith(prefix)}
    found = {key: x.shape for key, x in state.items()}
    wrong = [key for key in (*own, *found) if own.get(key) != found.get(key)]
    if wrong:
        told = tuple(found[wrong[0]]) if wrong[0] in found else "missing"
        needed = tuple(own[wrong[0]]) if wrong[0] in own else "nothing of that name"
        raise ValueError(
            f"{path.name}: {wrong[0]} is {told}, the paper's adapter for {BASE} needs {needed}; "
            "choose the files of one released adapter"
        )
    adapter.load_state_dict(state, strict=False)
