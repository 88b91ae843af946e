"""Lets the stock torchvision and torchaudio wheels import beside a CPU-only torch (development only).

On Linux those wheels are built against CUDA, so their compiled parts cannot be loaded when torch itself
has none. `dev.py setup` copies this file into the virtual environment and starts it from a `.pth` file
there; a `sitecustomize` would lose against the one some systems ship with Python. The pack never uses it.
"""

import importlib.machinery
import sys
from pathlib import Path

NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries = []  # a torch library definition lives as long as its object


def _define_missing_operators(package_folder):
    """Declare the two operators torchvision expects from its compiled part, if that cannot load."""
    import torch

    compiled = sorted(Path(package_folder).glob("_C*.so")) + sorted(
        Path(package_folder).glob("_C*.pyd")
    )
    try:
        torch.ops.load_library(str(compiled[0]))
    except (IndexError, OSError):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms" + NMS_SCHEMA)
        library.define("qnms" + NMS_SCHEMA)
        _libraries.append(library)


def _skip_unloadable_libraries(utils):
    """Make torchaudio treat a compiled part that cannot load as absent, which it supports."""
    load = utils._load_lib

    def load_or_skip(name):
        try:
            return load(name)
        except OSError:
            return False

    utils._load_lib = load_or_skip


class _Finder:
    """Wraps the loaders of the two modules at hand; every other import passes by."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in ("torchvision", "torchaudio._extension.utils"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def mended(module):
            if name == "torchvision":
                _define_missing_operators(Path(module.__file__).parent)
            execute(module)
            if name == "torchaudio._extension.utils":
                _skip_unloadable_libraries(module)

        spec.loader.exec_module = mended
        return spec


sys.meta_path.insert(0, _Finder)
