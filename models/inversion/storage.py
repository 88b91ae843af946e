"""Inversion files: safetensors whose metadata says how to walk back, written whole or not at all.

Tensors are float32, because exact methods lose their exactness in less.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..common.files import write_whole
from ..common.noise_space import NoiseSpace
from .methods import method_of
from .trajectory import Inversion, Source

METADATA_KEY = "veduta"
KIND, FORMAT = "inversion", 1
ENDS, OTHERS = ("noise", "clean"), ("states", "second", "maps", "residuals")


def save_inversion(path: Path, inversion: Inversion) -> None:
    """Write an inversion's file.

    Args:
        path: .safetensors; one that is there is replaced.
        inversion: left unmodified.
    """
    names = OTHERS if inversion.states is not None else (*ENDS, *OTHERS)  # the ends are states
    kept = {name: getattr(inversion, name) for name in names}
    tensors = {
        name: value.detach().float().cpu().contiguous()
        for name, value in kept.items()
        if value is not None
    }
    told = {
        "kind": KIND,
        "format": FORMAT,
        "method": inversion.method,
        "space": asdict(inversion.space),
        "sigmas": inversion.sigmas,
        "calls": inversion.calls,
        "source": asdict(inversion.source),
    }
    metadata = {"format": "pt", METADATA_KEY: json.dumps(told)}
    write_whole(path, lambda draft: save_file(tensors, draft, metadata))


def load_inversion(path: Path) -> Inversion:
    """Read an inversion's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, of another kind or a newer format, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing in {path.parent}; save an inversion first")
    tensors, metadata = _read(path)
    told = _description(metadata, path.name)
    try:
        inversion = _inversion(tensors, told)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the description in {path.name} is damaged ({error}); save the inversion again"
        ) from error
    _check_shapes(inversion, path.name)
    method_of(inversion.method)
    return inversion


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no dict
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} ({path.stat().st_size} bytes) cannot be read as safetensors: it is cut short or "
            f"another kind of file; save the inversion again ({str(error).splitlines()[0]})"
        ) from error


def _description(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    needed = "an inversion saved by Veduta is needed"
    try:
        told = json.loads(metadata.get(METADATA_KEY, "null"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the description in {name} is damaged ({error}), {needed}; save the inversion again"
        ) from error
    kind = told.get("kind") if isinstance(told, dict) else None
    if kind != KIND:
        came = "another program's file" if kind is None else f"a file of the kind '{kind}'"
        raise ValueError(f"{name} is {came}, {needed}; choose another file")
    if told.get("format") != FORMAT:
        raise ValueError(
            f"{name} is of format {told.get('format')}, this version reads format {FORMAT}; update Veduta"
        )
    return told


def _inversion(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> Inversion:
    states, source = tensors.get("states"), dict(told["source"])
    size = source.pop("size_px")
    return Inversion(
        method=str(told["method"]),
        space=NoiseSpace(**told["space"]),
        sigmas=tuple(float(sigma) for sigma in told["sigmas"]),
        noise=tensors["noise"] if states is None else states[0],
        clean=tensors["clean"] if states is None else states[-1],
        calls=int(told["calls"]),
        source=Source(
            weights=tuple(source.pop("weights")),
            size_px=None if size is None else (int(size[0]), int(size[1])),
            **source,
        ),
        **{name: tensors.get(name) for name in OTHERS},
    )


def _check_shapes(inversion: Inversion, name: str) -> None:
    shape, levels = inversion.noise.shape, len(inversion.sigmas)
    wanted = {
        "clean": shape,
        "states": (levels, *shape),
        "second": shape,
        "maps": (levels - 1, *shape),
        "residuals": (levels - 1, shape[0]),
    }
    for field, needed in wanted.items():
        value = getattr(inversion, field)
        if value is not None and tuple(value.shape) != tuple(needed):
            raise ValueError(
                f"{field} in {name} have the shape {tuple(value.shape)}, {tuple(needed)} is needed; save the "
                "inversion again"
            )
