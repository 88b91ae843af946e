"""What a training keeps in its folder: checkpoints, the best weights, the log."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import clear_drafts, write_whole

CHECKPOINT, BEST, LOG = "checkpoint.pt", "best.pt", "log.jsonl"


@dataclass(frozen=True)
class Best:
    """The averaged weights of the step with the largest score, on the CPU, by parameter name."""

    step: int
    score: float
    weights: Mapping[str, Tensor]


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What the checkpoint of a folder holds, on the CPU; None without one.

    Raises:
        ValueError: the file is no checkpoint of `fit`.
    """
    path = folder / CHECKPOINT
    return _read(path, {"model", "optimizer", "schedule", "ema", "generator", "step"})


def read_best(folder: Path) -> Best | None:
    """The best validated step of a run; None where none was validated.

    Raises:
        ValueError: the file is not one of `fit`.
    """
    state = _read(folder / BEST, {"step", "score", "weights"})
    return None if state is None else Best(**state)


def read_log(folder: Path) -> list[dict[str, float]]:
    """The logged lines of a run: step, loss, rate and what else was measured.

    What a validation gave is named validation_<name>.
    """
    path = folder / LOG
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save_checkpoint(folder: Path, state: Mapping[str, Any], before: int, keep_last: int) -> None:
    """Write checkpoint.pt; the one that it replaces stays under its number where several are kept.

    Args:
        folder: of the run.
        state: what `read_checkpoint` is to give.
        before: step of the checkpoint that is there, if one is.
        keep_last: how many there are to be at most, this one included.

    Raises:
        OSError: it cannot be written; what was there stays as it was.
    """
    path = folder / CHECKPOINT
    if keep_last > 1 and before != state["step"] and path.exists():
        _write(_numbered(folder, before), lambda draft: shutil.copyfile(path, draft))
    _write(path, lambda draft: torch.save(dict(state), draft))
    for _, old in _earlier(folder)[keep_last - 1 :]:
        old.unlink(missing_ok=True)


def save_best(folder: Path, best: Best) -> None:
    """Write best.pt.

    Raises:
        OSError: it cannot be written; what was there stays as it was.
    """
    _write(folder / BEST, lambda draft: torch.save(vars(best), draft))


def forget_later(folder: Path, step: int, best_step: int | None) -> None:
    """Drop what is of steps after `step`, of another best step, and what killed writers have left.

    A last line of the log that was cut short goes too.
    """
    for name in (CHECKPOINT, BEST, LOG):
        clear_drafts(folder / name)
    for at, path in _earlier(folder):
        clear_drafts(path)
        if at >= step:
            path.unlink(missing_ok=True)
    if best_step is None:
        (folder / BEST).unlink(missing_ok=True)
    _trim_log(folder / LOG, step)


def _read(path: Path, needed: set[str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise ValueError(
            f"{path.name} in {path.parent} ({path.stat().st_size} bytes) cannot be read as a "
            "checkpoint; remove it to start over"
        ) from error
    missing = needed - set(state)
    if missing:
        raise ValueError(
            f"{path.name} in {path.parent} lacks {', '.join(sorted(missing))}, so it is another "
            "program's file; remove it to start over"
        )
    return state


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write_whole(path, write)
    except (OSError, RuntimeError) as error:  # torch tells a full disk as the latter
        free = shutil.disk_usage(path.parent).free >> 20
        raise OSError(
            f"{path.name} cannot be written to {path.parent}, where {free} MiB are free ({error}); "
            "make room and go on from the checkpoint before, which is whole"
        ) from error


def _numbered(folder: Path, step: int) -> Path:
    return folder / f"checkpoint_{step:06}.pt"


def _earlier(folder: Path) -> list[tuple[int, Path]]:
    """Numbered checkpoints, the newest first."""
    found = [(path.stem.partition("_")[2], path) for path in folder.glob("checkpoint_*.pt")]
    return sorted([(int(step), path) for step, path in found if step.isdigit()], reverse=True)


def _trim_log(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "".join(f"{line}\n" for line in lines if _is_past(line, step))
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _is_past(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False
