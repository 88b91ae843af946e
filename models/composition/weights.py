"""Loading the horizon network that ships with the pack."""

from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from .horizon_network import HorizonNetwork

SHIPPED = Path(__file__).parent / "weights" / "horizon.safetensors"


@lru_cache(maxsize=2)
def load_network(path: Path = SHIPPED) -> HorizonNetwork:
    """The trained network, on the CPU in float32; its sizes are read from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"the horizon weights {path.name} are missing from {path.parent}; install the pack again"
        )
    try:
        state = load_file(path)
        first = state["embed.0.weight"]
        network = HorizonNetwork(first.shape[1], first.shape[0])
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path.name} is no horizon network ({str(error).splitlines()[0]}), the file that ships with "
            "the pack is needed; install the pack again"
        ) from error
    return network.eval()
