"""Train a style from the command line, with the code of the node Train Style.

From ComfyUI's folder:  python -m custom_nodes.veduta.nodes.style.command --help
From a checkout:        python tools/run_module.py nodes.style.command --help

Without a GPU use the second form, with --cpu; COMFYUI_PATH says where ComfyUI is. On several GPUs:

    accelerate launch -m custom_nodes.veduta.nodes.style.command ...

Each process then learns from --batch-size pairs per step; README tells more. Several components:

    ... --component people ohwx FOLDER --aux AUX --component places szn FOLDER --aux AUX
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor

from ...models.common.processes import Processes, launched
from ...models.common.training import Step
from ...models.styleforge.style_set import StyleSet
from ..host.command import load_base
from ..host.pictures import as_pil
from .drawing import Stack
from .places import training_places
from .style_set import AUX, STYLE_REF, MakeStyleSet
from .train import LAYERS
from .training import Method, Options, Places, Trained, train_style

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
        prog="veduta style training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    base = parser.add_argument_group("base (one of the two)")
    base.add_argument("--checkpoint", type=Path, help="file with model, CLIP and VAE")
    base.add_argument("--miniature", action="store_true", help="the pack's own small base")
    parser.add_argument(
        "--component", nargs=3, metavar=("NAME", "TRIGGER", "FOLDER"), action="append",
        required=True, help="of StyleRef pictures, with .txt captions beside them; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--aux", type=Path, action="append", default=[],
        help="folder of Aux pictures, one for each component in their order",
    )  # fmt: skip
    parser.add_argument("--name", default="my_style", help="of the style's file")
    parser.add_argument("--method", choices=[one.name.lower() for one in Method],
                        default=WHOLE.method.name.lower())  # fmt: skip
    parser.add_argument("--steps", type=int, default=WHOLE.steps)
    parser.add_argument("--rank", type=int, default=WHOLE.rank)
    parser.add_argument("--layers", choices=list(LAYERS), default=next(iter(LAYERS)))
    parser.add_argument("--batch-size", type=int, default=WHOLE.batch_size, help="pairs per step")
    parser.add_argument("--learning-rate", type=float, default=WHOLE.learning_rate)
    parser.add_argument("--text-learning-rate", type=float, default=WHOLE.text_learning_rate)
    parser.add_argument("--optimizer", choices=["adamw", "prodigy"], default=WHOLE.optimizer)
    parser.add_argument("--validate-every", type=int, default=WHOLE.validate_every)
    parser.add_argument("--resolution", type=int, default=0, help="px; 0: as Style Set does")
    parser.add_argument("--sample", action="append", default=[], help="prompt; may be repeated")
    parser.add_argument("--paper-parity", action="store_true")
    parser.add_argument("--seed", type=int, default=WHOLE.seed)
    parser.add_argument("--output", type=Path, help="folder for the style and its pictures")
    parser.add_argument("--cpu", action="store_true", help=argparse.SUPPRESS)  # run_module's
    return parser


def _train(chosen: argparse.Namespace, processes: Processes) -> Trained | None:
    options = Options(
        steps=chosen.steps,
        method=Method[chosen.method.upper()],
        prompts=tuple(chosen.sample),
        rank=chosen.rank,
        layers=LAYERS[chosen.layers],
        learning_rate=chosen.learning_rate,
        text_learning_rate=chosen.text_learning_rate,
        batch_size=chosen.batch_size,
        optimizer=chosen.optimizer,
        validate_every=chosen.validate_every,
        paper_parity=chosen.paper_parity,
        seed=chosen.seed,
    )
    stack, places = Stack(*load_base(chosen.checkpoint, chosen.miniature)), _places(chosen)
    watch = _TerminalWatch() if processes.is_first else _SilentWatch()
    done = train_style(stack, _style_set(chosen), options, places, watch, processes=processes)
    if done is not None:
        _write_pictures(done, places)
    return done


def _style_set(chosen: argparse.Namespace) -> StyleSet:
    if chosen.aux and len(chosen.aux) != len(chosen.component):
        raise ValueError(
            f"--aux is given {len(chosen.aux)} times for {len(chosen.component)} components; give it once "
            "for each, or not at all"
        )
    found = None
    for index, (name, trigger, folder) in enumerate(chosen.component):
        roles = [(STYLE_REF, Path(folder)), *((AUX, aux) for aux in chosen.aux[index : index + 1])]
        for role, path in roles:
            if not path.is_dir():
                raise ValueError(f"there is no folder {path}; give a folder of pictures")
            found = MakeStyleSet.execute(
                folder=str(path.resolve()),
                role=role,
                component=name,
                trigger=trigger,
                caption="",
                resolution=chosen.resolution,
                class_word="style",
                style_set=found,
            ).args[0]
    assert found is not None  # argparse asks for one component at least
    return found


def _places(chosen: argparse.Namespace) -> Places:
    places = training_places(chosen.name)
    if chosen.output is None:
        return places
    return replace(
        places, style=chosen.output / places.style.name, run=chosen.output / places.run.name
    )


def _write_pictures(done: Trained, places: Places) -> None:
    for name, pictures in (("samples", done.samples), ("curve", done.curve)):
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

    def step_done(self, now: Step, curve: Tensor | None, samples: Tensor | None) -> None:
        pass


class _TerminalWatch:
    """One line that tells how far it is."""

    def __init__(self) -> None:
        self.done = 0

    def picture_done(self) -> None:
        self.done += 1
        _say(f"\rpictures encoded: {self.done}   ")

    def step_done(self, now: Step, curve: Tensor | None, samples: Tensor | None) -> None:
        if now.loss is None or now.rate is None or now.seconds_left is None:
            return
        judged = "".join(f"  {name} {value:.4f}" for name, value in now.validation.items())
        _say(
            f"\rstep {now.step} of {now.steps}  loss {now.loss:.4f}{judged}  {now.rate:.2f} steps/s  "
            f"{now.seconds_left / 60:.0f} min left   "
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
