"""Files of saliency networks as released: TranSalNet (both forms) and UNISAL.

The kind and every size are read off the weights; the file's name does not matter.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..common.weight_files import State, read_state
from .layers import fill
from .transalnet import TranSalNet
from .unisal import Unisal, still_picture_state

WRAPPINGS = ("model_state_dict.", "state_dict.", "module.")  # what training programs put around
MARKS = {  # a key that one layout alone has
    "encoder.encoder.4.0.conv1.weight": "TranSalNet (Res)",
    "encoder.encoder.4.denselayer1.conv1.weight": "TranSalNet (Dense)",
    "cnn.features.0.0.weight": "UNISAL",
}
NEEDED = "TranSalNet (Res or Dense) or UNISAL as released is needed"


@dataclass(frozen=True)
class LoadedSaliency:
    """A network on the CPU in float32, and what it is called."""

    network: TranSalNet | Unisal
    kind: str

    def find(self, image: Tensor) -> Tensor:
        """Maps (b 1 h w), 0..1 with 1 at the top, of pictures (b 3 h w), 0..1, where these lie."""
        device = next(self.network.parameters()).device
        return self.network.saliency(image.to(device)).to(image.device)


def load_saliency_network(path: Path, name: str | None = None) -> LoadedSaliency:
    """Read a released saliency network.

    Args:
        path: .safetensors, or a pickle of weights alone.
        name: what messages call the file; its file name if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, holds more than weights, or is no such network.
    """
    name = name or path.name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is missing in {path.parent}; {NEEDED}, put the file there or choose another model"
        )
    return saliency_network_of(read_state(path, name)[0], name)


def saliency_network_of(state: State, name: str) -> LoadedSaliency:
    """The network that a state dict of a released layout belongs to, holding its weights.

    Raises:
        ValueError: as for `load_saliency_network`.
    """
    for wrapping in WRAPPINGS:
        if any(key.startswith(wrapping) for key in state):
            state = {
                key.removeprefix(wrapping): x
                for key, x in state.items()
                if key.startswith(wrapping)
            }
    kind = _kind(state, name)
    layout = Unisal if kind == "UNISAL" else TranSalNet
    if layout is Unisal:
        state = still_picture_state(state)
    try:
        with torch.device("meta"):
            network = layout.like(state)
    except KeyError as error:
        raise ValueError(
            f"{name} is {kind} without {error.args[0]}, the whole file is needed; copy it again"
        ) from error
    fill(network, state, name)
    return LoadedSaliency(network, kind)


def _kind(state: State, name: str) -> str:
    for mark, kind in MARKS.items():
        if mark in state:
            return kind
    shown = ", ".join(sorted(state)[:2]) or "nothing"
    raise ValueError(
        f"{name} is another program's file (it holds {shown}), {NEEDED}; choose another file"
    )
