"""Node that trains an anchor adapter; the work is in `training` beside it."""

import logging
import re
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.anchor.weights import LoadedAdapter
from ...models.common.anchor import AnchorBatch
from ...models.common.images import bchw_to_image
from ...models.common.training import Step
from ..host.pictures import (
    Picture,
    as_pil,
    batch_pictures,
    category_folder,
    folder_pictures,
    picture_paths,
    training_folder,
)
from ..host.types import AnchorSocket
from .adapter import FOLDER
from .inputs import CATEGORY, AdapterSocket
from .training import Options, Places, Stack, train_adapter

RUNS = Path("veduta", "anchor_training")  # below ComfyUI's output directory
NAME = re.compile(r"[\w][\w .()-]*")
PREVIEW_PX = 640
logger = logging.getLogger("veduta")


class TrainAnchorAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaTrainAnchorAdapter",
            display_name="Train Anchor Adapter",
            category=CATEGORY,
            description=(
                "Teaches a model to obey composition anchors, from pictures alone: horizons and "
                "subjects are measured, and the pictures cropped so that every horizon height is "
                "seen. The model stays as it is. Cancel keeps the work; the same name and settings "
                "go on from there."
            ),
            search_aliases=["train horizon", "finetune composition", "train adapter"],
            is_output_node=True,
            inputs=[*_base_inputs(), *_picture_inputs(), *_learning_inputs(), *_start_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: comfy.sd.CLIP,
        vae: comfy.sd.VAE,
        name: str,
        folder: str,
        caption: str,
        category: str,
        steps: int,
        batch_size: int,
        learning_rate: float,
        resolution: int,
        seed: int,
        images: Tensor | None = None,
        adapter: LoadedAdapter | None = None,
        anchor: AnchorBatch | None = None,
    ) -> io.NodeOutput:
        places = training_places(name)
        pictures = chosen_pictures(images, folder, category, caption)
        options = Options(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            resolution=resolution,
            seed=seed,
            sample_anchors=() if anchor is None else anchor.anchors,
        )
        watch = _NodeWatch(2 * len(pictures), steps)
        try:
            done = train_adapter(Stack(model, clip, vae), pictures, options, places, watch, adapter)
        except comfy.model_management.InterruptProcessingException:
            logger.info(
                "training of %s was cancelled at step %d; the same name and settings go on from there",
                name,
                watch.step,
            )
            raise
        assert done is not None  # a node is one process
        pictures_out = (bchw_to_image(x) for x in (done.samples, done.curve, done.labels))
        return io.NodeOutput(done.adapter, *pictures_out, done.report)

    @classmethod
    def fingerprint_inputs(cls, folder: str, category: str, name: str, **_: Any) -> list[Any]:
        found: list[Any] = [training_places(name).adapter.exists()]
        if folder.strip():
            for path in picture_paths(category_folder(training_folder(folder), category)):
                texts = [one for one in (path, path.with_suffix(".txt")) if one.exists()]
                found += [(str(one), one.stat().st_mtime_ns, one.stat().st_size) for one in texts]
        return found


def _base_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="The base to train for (SD1.5, SDXL, the miniature); stays as it is."
        ),
        io.Clip.Input("clip", tooltip="The text encoder of this model, for the captions."),
        io.Vae.Input("vae", tooltip="The VAE of this model, for the pictures."),
        io.String.Input(
            "name",
            default="my_anchor_adapter",
            tooltip=(
                "File name in models/anchor_adapters. A training of the same name and settings that "
                "was cancelled, or that gets more steps, goes on where it was."
            ),
        ),
    ]


def _picture_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "images", optional=True, tooltip="Pictures to learn from, beside or instead of folder."
        ),
        io.String.Input(
            "folder",
            default="",
            tooltip=(
                "Folder of pictures inside ComfyUI's input directory, or its whole path; sub-folders "
                "are categories. A .txt of the same name is a picture's caption. Empty: images alone."
            ),
        ),
        io.String.Input(
            "caption",
            default="",
            multiline=True,
            tooltip=(
                "For pictures without a caption of their own: one line for all, or one line per "
                "picture, of images first, then of the folder by name."
            ),
        ),
        io.String.Input(
            "category",
            default="",
            advanced=True,
            tooltip="Only this sub-folder of folder: an adapter for one kind of scene. Empty: all.",
        ),
    ]


def _learning_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=500,
            min=1,
            max=1_000_000,
            tooltip=(
                "Length of the training. A few hundred show that it works, some thousands make it "
                "obey well."
            ),
        ),
        io.Int.Input(
            "batch_size",
            default=4,
            min=1,
            max=256,
            tooltip="Views per step. More learn more evenly and need more memory.",
        ),
        io.Float.Input(
            "learning_rate",
            default=1e-3,
            min=1e-6,
            max=0.1,
            step=1e-5,
            round=False,
            advanced=True,
            tooltip="Size of the steps. Lower it where the loss jumps.",
        ),
        io.Int.Input(
            "resolution",
            default=0,
            min=0,
            max=2048,
            step=64,
            advanced=True,
            tooltip=(
                "Side of the square views in px; 0 takes the shortest side among the pictures. Best "
                "is what the model draws: 512 for SD1.5, 1024 for SDXL."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            advanced=True,
            tooltip="Of views, noise and data order. Another seed is another training.",
        ),
    ]


def _start_inputs() -> list[io.Input]:
    return [
        AdapterSocket.Input(
            "adapter", optional=True, tooltip="Train this one further, under the new name."
        ),
        AnchorSocket.Input(
            "anchor",
            optional=True,
            tooltip=(
                "Sample pictures of these anchors are made at each quarter of the training. Without "
                "it, three horizons are sampled at the end."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        AdapterSocket.Output(
            display_name="adapter", tooltip="The trained adapter, for this model."
        ),
        io.Image.Output(
            display_name="samples",
            tooltip="Sample pictures of the first caption, the oldest first, all from one noise.",
        ),
        io.Image.Output(
            display_name="curve",
            tooltip=(
                "Loss (blue) and information gain (orange) over the steps. The gain says how much "
                "the adapter heeds anchors: 0 not at all, above 0.5 well."
            ),
        ),
        io.Image.Output(
            display_name="labels",
            tooltip="Horizon heights of the pictures (grey) and of the views made of them (blue).",
        ),
        io.String.Output(
            display_name="report",
            tooltip="What was trained on, how it went, and a warning where horizons are missing.",
        ),
    ]


def training_places(name: str) -> Places:
    """Where a training of this name works and writes.

    Raises:
        ValueError: the name is no plain file name.
    """
    plain = name.strip().removesuffix(".safetensors")
    if not NAME.fullmatch(plain) or plain.endswith((".", " ")):
        raise ValueError(
            f"name is {name!r}, a file name of letters, digits, spaces and ( ) . _ - is needed, without "
            "folders"
        )
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    run = Path(folder_paths.get_output_directory()) / RUNS / plain
    return Places(run=run, adapter=folder / f"{plain}.safetensors")


def chosen_pictures(
    images: Tensor | None, folder: str, category: str, caption: str
) -> list[Picture]:
    """The pictures of the batch, then those of the folder.

    Raises:
        ValueError: neither is given, or one of them cannot be used.
    """
    count = 0 if images is None else len(images)
    lines = caption.strip().splitlines()
    shared = caption if len(lines) <= 1 else None
    found: list[Picture] = []
    if images is not None:
        own = "\n".join(lines[:count]) if folder.strip() else caption
        found += batch_pictures(images, caption if shared is not None else own)
    if folder.strip():
        own = "\n".join(lines[count:])
        root = training_folder(folder)
        found += folder_pictures(root, category, caption if shared is not None else own)
    if not found:
        raise ValueError(
            "neither images nor folder is given, pictures are needed to learn from; connect images or "
            "name a folder"
        )
    return found


class _NodeWatch:
    """The node's progress bar, with the curve as its preview."""

    def __init__(self, picture_calls: int, steps: int) -> None:
        self.bar = comfy.utils.ProgressBar(picture_calls + steps)
        self.before = picture_calls
        self.step = 0

    def picture_done(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update(1)

    def step_done(self, now: Step, curve: Tensor | None) -> None:
        self.step = now.step
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None if curve is None else ("JPEG", as_pil(curve), PREVIEW_PX)
        self.bar.update_absolute(self.before + now.step, preview=preview)
