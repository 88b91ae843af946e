"""Train an anchor adapter from the command line, with the code of the node Train Anchor Adapter.

From ComfyUI's folder:  python -m custom_nodes.veduta.nodes.anchor.command --help
From a checkout:        python tools/run_module.py nodes.anchor.command --help

Without a GPU use the second form, with --cpu; COMFYUI_PATH says where ComfyUI is. On several GPUs:

    accelerate launch -m custom_nodes.veduta.nodes.anchor.command ...

Each process then learns from --batch-size views per step; README tells more.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor

from ...models.anchor.weights import load_adapter
from ...models.common.anchor import PRESETS
from ...models.common.processes import Processes, launched
from ...models.common.training import Step
from ..host.command import load_base
from ..host.pictures import as_pil, folder_pictures
from .train import training_places
from .training import Options, Places, Stack, Trained, train_adapter

WHOLE = Options()  # for its defaults


def main(argv: list[str]) -> int:
    """Train as the arguments say; 0 when done, 1 after an error, 130 when stopped by Ctrl-C."""
    chosen = _parser().parse_args(argv)
    try:
        processes = launched(comfy.model_management.get_torch_device())
        with torch.inference_mode():  # as a node runs
            done = _train(chosen, processes)
    except (ValueError, OSError, ImportError) as error:
        _say(f"\n{error}\n")
        return 1
    except KeyboardInterrupt:
        _say("\nstopped; the same command goes on from there\n")
        return 130
    if done is not None:
        _say(f"\n{done.report}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="veduta anchor training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of pictures, with .txt captions beside them")
    base = parser.add_argument_group("base (one of the two)")
    base.add_argument("--checkpoint", type=Path, help="file with model, CLIP and VAE")
    base.add_argument("--miniature", action="store_true", help="the pack's own small base")
    parser.add_argument("--name", default="my_anchor_adapter", help="of the adapter's file")
    parser.add_argument("--caption", default="", help="for pictures without a .txt")
    parser.add_argument("--category", default="", help="only this sub-folder")
    parser.add_argument("--steps", type=int, default=WHOLE.steps)
    parser.add_argument("--batch-size", type=int, default=WHOLE.batch_size)
    parser.add_argument("--learning-rate", type=float, default=WHOLE.learning_rate)
    parser.add_argument("--resolution", type=int, default=WHOLE.resolution, help="px; 0: as it is")
    parser.add_argument("--seed", type=int, default=WHOLE.seed)
    parser.add_argument("--adapter", type=Path, help="train this file further, under --name")
    parser.add_argument(
        "--sample", choices=sorted(PRESETS), action="append", default=[], help="may be repeated"
    )
    parser.add_argument("--output", type=Path, help="folder for the adapter and its pictures")
    parser.add_argument("--cpu", action="store_true", help=argparse.SUPPRESS)  # run_module's
    return parser


def _train(chosen: argparse.Namespace, processes: Processes) -> Trained | None:
    if chosen.miniature == (chosen.checkpoint is not None):
        raise ValueError(
            "the base is missing or given twice; give --checkpoint FILE or --miniature"
        )
    if not chosen.folder.is_dir():
        raise ValueError(f"there is no folder {chosen.folder}; give a folder of pictures")
    options = Options(
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        resolution=chosen.resolution,
        seed=chosen.seed,
        sample_anchors=tuple(PRESETS[name] for name in chosen.sample),
    )
    places = _places(chosen)
    pictures = folder_pictures(chosen.folder, chosen.category, chosen.caption)
    start = None if chosen.adapter is None else load_adapter(chosen.adapter)
    watch = _TerminalWatch(2 * len(pictures)) if processes.is_first else _SilentWatch()
    done = train_adapter(
        Stack(*load_base(chosen.checkpoint, chosen.miniature)),
        pictures,
        options,
        places,
        watch,
        start,
        processes,
    )
    if done is not None:
        _write_pictures(done, places)
    return done


def _places(chosen: argparse.Namespace) -> Places:
    places = training_places(chosen.name)
    if chosen.output is None:
        return places
    return replace(
        places, adapter=chosen.output / places.adapter.name, run=chosen.output / places.run.name
    )


def _write_pictures(done: Trained, places: Places) -> None:
    places.run.mkdir(parents=True, exist_ok=True)
    for name, pictures in (
        ("samples", done.samples),
        ("curve", done.curve),
        ("labels", done.labels),
    ):
        row = torch.cat(list(pictures), dim=-1)  # side by side
        as_pil(row).save(places.run / f"{name}.png")
    _say(f"\npictures         in {places.run}")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _SilentWatch:
    """Of the processes that have nothing to tell."""

    def picture_done(self) -> None:
        pass

    def step_done(self, now: Step, curve: Tensor | None) -> None:
        pass


class _TerminalWatch:
    """One line that tells how far it is."""

    def __init__(self, picture_calls: int) -> None:
        self.calls, self.done = picture_calls, 0

    def picture_done(self) -> None:
        self.done += 1
        _say(f"\rpictures measured and encoded: {self.done} of {self.calls}   ")

    def step_done(self, now: Step, curve: Tensor | None) -> None:
        if now.loss is None or now.rate is None or now.seconds_left is None:
            return
        numbers = "".join(f"  {name} {value:.3f}" for name, value in now.numbers.items())
        _say(
            f"\rstep {now.step} of {now.steps}  loss {now.loss:.4f}{numbers}  {now.rate:.2f} steps/s  "
            f"{now.seconds_left / 60:.0f} min left   "
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
