"""Nodes that keep an inversion in a file and bring it back."""

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ...models.inversion.storage import load_inversion, save_inversion
from ...models.inversion.trajectory import Inversion
from ..host.types import InversionSocket
from .invert import CATEGORY

FOLDER = "inversions"  # below ComfyUI's output directory
SUFFIX = ".safetensors"
NONE_YET = "none saved yet"


class SaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaSaveInversion",
            display_name="Save Inversion",
            category=CATEGORY,
            description=(
                "Writes an inversion into output/inversions, so that a picture has to be inverted once "
                "only. It fits the model that made it."
            ),
            search_aliases=["keep inversion", "export noise"],
            is_output_node=True,
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Invert Picture."),
                io.String.Input(
                    "filename_prefix",
                    default="inversion",
                    tooltip="Name of the file; a number is added. A / makes a folder.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, inversion: Inversion, filename_prefix: str) -> io.NodeOutput:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            str(Path(FOLDER, filename_prefix)), folder_paths.get_output_directory()
        )
        save_inversion(Path(folder, f"{name}_{counter:05}_{SUFFIX}"), inversion)
        return io.NodeOutput()


class LoadInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaLoadInversion",
            display_name="Load Inversion",
            category=CATEGORY,
            description="Brings back an inversion that Save Inversion wrote into output/inversions.",
            search_aliases=["open inversion", "import noise"],
            inputs=[
                io.Combo.Input(
                    "inversion_name",
                    options=_names() or [NONE_YET],
                    tooltip="A file in output/inversions. It has to be used with the model that inverted.",
                )
            ],
            outputs=[
                InversionSocket.Output(display_name="inversion", tooltip="For Edit Inversion.")
            ],
        )

    @classmethod
    def execute(cls, inversion_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_inversion(_path_of(inversion_name)))

    @classmethod
    def fingerprint_inputs(cls, inversion_name: str) -> list[Any]:
        stat = _path_of(inversion_name).stat()
        return [stat.st_mtime_ns, stat.st_size]


def _folder() -> Path:
    return Path(folder_paths.get_output_directory(), FOLDER)


def _names() -> list[str]:
    """The files by name, as on every system."""
    files = sorted(_folder().rglob(f"[!.]*{SUFFIX}"))
    return [path.relative_to(_folder()).as_posix() for path in files]


def _path_of(name: str) -> Path:
    """A file below the folder.

    Raises:
        ValueError: the name leads out of it.
    """
    path = Path(os.path.normpath(_folder() / name))
    if not path.is_relative_to(_folder()):
        raise ValueError(
            f"inversion_name is {name!r}, which leads out of {FOLDER}; choose a file in there"
        )
    return path
