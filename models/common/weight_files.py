"""Weights of other programs: tensors by name, out of .safetensors and of pickles that hold no more."""

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

METADATA_KEY = "veduta"

State = dict[str, Tensor]


def read_state(path: Path, name: str) -> tuple[State, dict[str, Any]]:
    """Read a file's tensors without running anything that is in it.

    Args:
        path: an existing .safetensors, or a pickle of any other suffix.
        name: what messages call the file.

    Returns:
        Tensors on the CPU by name (nested dictionaries are joined by dots), and what the file's
        metadata says about them if the file is ours.

    Raises:
        ValueError: the file is cut short, damaged, of another kind, or holds more than weights.
    """
    size = f"{name} ({path.stat().st_size} bytes)"
    if path.suffix != ".safetensors":
        return _read_pickle(path, name, size), {}
    state, metadata = read_safetensors(path, name)
    try:
        return state, json.loads(metadata.get(METADATA_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the description in {name} is damaged ({error}), a whole file is needed; copy it again"
        ) from error


def read_safetensors(path: Path, name: str) -> tuple[State, dict[str, str]]:
    """Read the tensors of an existing .safetensors, on the CPU by name, and its metadata.

    Raises:
        ValueError: the file, called `name`, is cut short or of another kind.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no dict
            return state, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name} ({path.stat().st_size} bytes) cannot be read as safetensors: it is cut short or "
            f"another kind of file; copy it again ({str(error).splitlines()[0]})"
        ) from error


def _read_pickle(path: Path, name: str, size: str) -> State:
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive and not zipfile.is_zipfile(path):  # its directory is at the end
        raise ValueError(f"{size} is cut short, the whole file is needed; copy it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} holds more than weights or is no PyTorch file, and is not opened, since that "
            "could run code; get the .safetensors of it, or convert it where you trust it"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{size} is damaged, the whole file is needed; copy it again") from error
    return dict(_flat(content if isinstance(content, dict) else {}))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value
