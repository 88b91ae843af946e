"""Where styles lie: their files in models/loras, trainings in ComfyUI's output directory."""

import re
from pathlib import Path

import folder_paths

from .training import Places

FOLDER = "loras"
RUNS = Path("veduta", "style_training")  # below ComfyUI's output directory
NAME = re.compile(r"[\w][\w .()-]*")


def style_path(name: str) -> Path:
    """The file of a style of this name.

    Raises:
        ValueError: the name is no plain file name.
    """
    plain = name.strip().removesuffix(".safetensors")
    if not NAME.fullmatch(plain) or plain.endswith((".", " ")):
        raise ValueError(
            f"name is {name!r}, a file name of letters, digits, spaces and ( ) . _ - is needed, without "
            "folders"
        )
    return Path(folder_paths.get_folder_paths(FOLDER)[0]) / f"{plain}.safetensors"


def training_places(name: str) -> Places:
    """Where a training of this name works and writes.

    Raises:
        ValueError: the name is no plain file name.
    """
    path = style_path(name)
    run = Path(folder_paths.get_output_directory()) / RUNS / path.stem
    return Places(run=run, style=path)
