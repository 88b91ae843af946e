"""torch's global generators, which layers such as dropout use: lent, read, set and seeded."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def own_global_generators(parameters: Iterable[Tensor], seed: int) -> Iterator[None]:
    """Seed the generators of the CPU and the parameters' devices, and give them back as they were."""
    cuda = cuda_devices(parameters)
    with torch.random.fork_rng(cuda):
        seed_global_generators(cuda, seed)
        yield


def seed_global_generators(cuda: Iterable[int], seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    for index in cuda:
        torch.cuda.default_generators[index].manual_seed(seed)


def mixed_seed(*numbers: int) -> int:
    """A seed that differs wherever one of the numbers does."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def global_generators(cuda: Iterable[int]) -> dict[str, Tensor]:
    """The states of the generators, by device."""
    rng = {f"cuda:{index}": torch.cuda.get_rng_state(index) for index in cuda}
    return {"cpu": torch.get_rng_state(), **rng}


def set_global_generators(states: Mapping[str, Tensor]) -> None:
    """Set what `global_generators` has read; devices that are not here are left out."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(device[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


def cuda_devices(parameters: Iterable[Tensor]) -> list[int]:
    """Indices of the CUDA devices that the parameters are on."""
    devices = {parameter.device for parameter in parameters if parameter.is_cuda}
    return sorted(torch.cuda.current_device() if d.index is None else d.index for d in devices)
