"""An optimisation as a file, to be gone on with exactly where it was stopped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

from ..common.files import write_whole
from .optimiser import Optimisation, Settings, Track

ENTRY = "veduta"  # of the file's metadata
FORMAT = "veduta.saliency.optimisation"


@dataclass(frozen=True)
class Stored:
    """What a file holds besides the optimisation.

    Args:
        fingerprint: of all that the run depends on.
        rows: of the curve so far.
        seconds: that it has taken.
    """

    fingerprint: str
    rows: Sequence[Sequence[float]]
    seconds: float


def save_optimisation(path: Path, optimisation: Optimisation, stored: Stored) -> None:
    """Write the state between two steps, wholly or not at all."""
    tensors = {}
    for index, track in enumerate(optimisation.tracks):
        for name, tensor in _tensors(track).items():
            tensors[f"{index}.{name}"] = tensor.detach().cpu().contiguous()
    about = {
        "format": FORMAT,
        "rung": optimisation.rung, "done": optimisation.done, "starts": optimisation.starts,
        "tracks": [[track.done, track.idle] for track in optimisation.tracks],
        "fingerprint": stored.fingerprint, "rows": [list(row) for row in stored.rows],
        "seconds": stored.seconds,
    }  # fmt: skip
    write_whole(path, lambda draft: save_file(tensors, draft, {ENTRY: json.dumps(about)}))


def load_optimisation(
    path: Path, settings: Settings, fingerprint: str, device: torch.device
) -> tuple[Optimisation, Stored]:
    """Read a state.

    Raises:
        ValueError: the file is of another kind, or of a run with other settings.
    """
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if about.get("format") != FORMAT:
        raise ValueError(f"{path.name} is no state of an optimisation; give another resume_name")
    if about["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path.name} is the state of a run with other inputs or settings, the same are needed to go "
            "on; give another resume_name, or delete the file"
        )
    tracks = [
        _track(
            {k.split(".", 1)[1]: x for k, x in tensors.items() if k.startswith(f"{i}.")}, *counts
        )
        for i, counts in enumerate(about["tracks"])
    ]
    for track in tracks:
        _move(track, device)
    optimisation = Optimisation(tracks, settings, about["rung"], about["done"], about["starts"])
    return optimisation, Stored(fingerprint, about["rows"], about["seconds"])


def _tensors(track: Track) -> dict[str, Tensor]:
    found = {} if track.found is None else {"found": track.found}
    return {
        "z": track.z, "v": track.v, "kept": track.kept, "points": track.points,
        "generator": track.generator.get_state(), **found,
    }  # fmt: skip


def _track(tensors: dict[str, Tensor], done: int, idle: int) -> Track:
    generator = Generator()
    generator.set_state(tensors.pop("generator"))
    return Track(**tensors, generator=generator, done=done, idle=idle)


def _move(track: Track, device: torch.device) -> None:
    for name in ("z", "v", "kept", "points"):
        setattr(track, name, getattr(track, name).to(device))
    if track.found is not None:
        track.found = track.found.to(device)
