"""Loading the horizon networks that ship with the pack."""

from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .horizon_network import HorizonNetwork
from .horizon_pixels import HorizonPixels

FOLDER = Path(__file__).parent / "weights"
SHIPPED = FOLDER / "horizon.safetensors"
SHIPPED_PIXELS = FOLDER / "horizon_pixels.safetensors"


@lru_cache(maxsize=2)
def load_network(path: Path = SHIPPED) -> HorizonNetwork:
    """The network that weighs lines, on the CPU in float32; its sizes are read from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or holds something else.
    """
    state = _read(path)
    try:
        first = state["embed.0.weight"]
        network = HorizonNetwork(first.shape[1], first.shape[0])
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise _foreign(path, error) from error
    return network.eval()


@lru_cache(maxsize=2)
def load_pixel_network(path: Path = SHIPPED_PIXELS) -> HorizonPixels:
    """The network that sees pixels, on the CPU in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or holds something else.
    """
    network = HorizonPixels()
    try:
        network.load_state_dict(_read(path))
    except RuntimeError as error:
        raise _foreign(path, error) from error
    return network.eval()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"the horizon weights {path.name} are missing from {path.parent}; install the pack again"
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise _foreign(path, error) from error
    return {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }


def _foreign(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path.name} is no horizon network ({str(error).splitlines()[0]}), the file that ships with "
        "the pack is needed; install the pack again"
    )
