"""Reading weights that travel with their description in the file's own metadata."""

import json
from pathlib import Path
from typing import Any

import comfy.utils
from safetensors import SafetensorError
from torch import Tensor

METADATA_KEY = "veduta"


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one of our weights files.

    Returns:
        The tensors by name, and what the file's metadata says about them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short, not in safetensors format, or not one of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is missing in {path.parent}; reinstall the pack, its weights come with it"
        )
    try:
        state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path.name} ({path.stat().st_size} bytes) cannot be read as safetensors: it is cut short "
            f"or another kind of file; copy it again from the pack ({error})"
        ) from error
    if not metadata or METADATA_KEY not in metadata:
        raise ValueError(
            f"{path.name} carries no '{METADATA_KEY}' entry in its metadata, so it is another "
            "program's file; use the file that came with the pack"
        )
    return state, json.loads(metadata[METADATA_KEY])
