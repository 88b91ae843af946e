"""Node that trains a style; the work is in `training` beside it."""

import logging

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import bchw_to_image
from ...models.common.training import Step
from ...models.styleforge.dual_binding import Weighting
from ...models.styleforge.lora import Layers
from ...models.styleforge.style_set import StyleSet
from ..host.pictures import as_pil
from ..host.types import StyleSetSocket, StyleSocket
from .drawing import Stack
from .places import training_places
from .style_set import CATEGORY
from .training import Method, Options, picture_count, sample_prompts, train_style
from .validation import Eyes, open_eyes

ATTENTION, ATTENTION_MLP = "attention", "attention and MLP"
CONVOLUTIONS, STYLE_BLOCK = "attention, MLP and convolutions", "style block (B-LoRA, SDXL)"
LAYERS = {
    ATTENTION_MLP: Layers(),
    ATTENTION: Layers(mlp=False),
    CONVOLUTIONS: Layers(convolutions=True),
    STYLE_BLOCK: Layers(mlp=False, style_block_only=True),
}
BEST, LAST = "best validated step", "last step"
PREVIEW_PX = 640
WHOLE = Options()  # for its defaults
logger = logging.getLogger("veduta")


class TrainStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaTrainStyle",
            display_name="Train Style (StyleForge LoRA)",
            category=CATEGORY,
            description=(
                "Learns a style from some twenty pictures as a LoRA that every LoRA loader reads. Aux "
                "pictures teach the word style beside it, so that the trigger carries the look alone; "
                "components have a strength each afterwards. The model stays as it is. Cancel keeps "
                "the work; the same name and settings go on from there."
            ),
            search_aliases=["train lora", "dreambooth", "finetune style", "styleforge"],
            is_output_node=True,
            inputs=[*_base_inputs(), *_main_inputs(), *_lora_inputs(), *_learning_inputs(),
                    *_judging_inputs()],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: comfy.sd.CLIP,
        vae: comfy.sd.VAE,
        style_set: StyleSet,
        name: str,
        method: str,
        steps: int,
        sample_prompts: str,
        rank: int,
        alpha: float,
        dropout: float,
        layers: str,
        learning_rate: float,
        text_learning_rate: float,
        text_steps: int,
        batch_size: int,
        loss_weighting: str,
        optimizer: str,
        validate_every: int,
        patience: int,
        keep: str,
        paper_parity: bool,
        seed: int,
        clip_vision: ClipVisionModel | None = None,
        judge_clip: comfy.sd.CLIP | None = None,
    ) -> io.NodeOutput:
        options = Options(
            steps=steps,
            method=Method(method),
            prompts=tuple(filter(None, map(str.strip, sample_prompts.splitlines()))),
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            layers=LAYERS[layers],
            learning_rate=learning_rate,
            text_learning_rate=text_learning_rate,
            text_steps=text_steps,
            batch_size=batch_size,
            weighting=Weighting(loss_weighting),
            optimizer=optimizer,
            validate_every=validate_every,
            patience=patience,
            keeps_best=keep == BEST,
            paper_parity=paper_parity,
            seed=seed,
        )
        places = training_places(name)
        eyes = _eyes(clip_vision, judge_clip or clip, style_set, options)
        watch = _NodeWatch(picture_count(style_set, options.method), steps)
        try:
            done = train_style(Stack(model, clip, vae), style_set, options, places, watch, eyes)
        except comfy.model_management.InterruptProcessingException:
            logger.info(
                "style training stopped at step %d of %d; the same name and settings go on from there",
                watch.step,
                steps,
            )
            raise
        finally:
            comfy.model_management.soft_empty_cache()
        assert done is not None  # a node is one process
        logger.info("style trained:\n%s", done.report)
        with torch.inference_mode():
            pictures = [bchw_to_image(done.samples), bchw_to_image(done.curve)]
        return io.NodeOutput(done.style, *pictures, done.report)


def _eyes(
    clip_vision: ClipVisionModel | None,
    clip: comfy.sd.CLIP,
    style_set: StyleSet,
    options: Options,
) -> Eyes | None:
    if clip_vision is None or not options.validate_every:
        return None
    return open_eyes(clip_vision, clip, style_set, sample_prompts(style_set, options))


def _base_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The base to train for; stays as it is."),
        io.Clip.Input("clip", tooltip="The text encoder of this model; stays as it is."),
        io.Vae.Input("vae", tooltip="The VAE of this model."),
        StyleSetSocket.Input(
            "style_set", tooltip="The pictures, from Style Set and Make Aux Pictures."
        ),
    ]


def _main_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "name",
            default="my_style",
            tooltip=(
                "File name in models/loras. A training of the same name and settings that was "
                "cancelled, or that gets more steps, goes on where it was."
            ),
        ),
        io.Combo.Input(
            "method",
            options=[one.value for one in Method],
            default=WHOLE.method.value,
            tooltip=(
                "StyleForge uses the set's Aux pictures; plain LoRA none; DreamBooth has the model draw "
                "them from the class word itself. Several components make it Multi-StyleForge."
            ),
        ),
        io.Int.Input(
            "steps",
            default=WHOLE.steps,
            min=1,
            max=1_000_000,
            tooltip=(
                "Length of the training, at most. 500 to 1000 are usual; too many copy the pictures."
            ),
        ),
        io.String.Input(
            "sample_prompts",
            default="",
            multiline=True,
            tooltip=(
                "Up to four prompts, one a line, drawn at each quarter of the training from the same "
                "noise. Empty: what calls each component, such as a photo of zwx style."
            ),
        ),
    ]


def _lora_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "rank",
            default=WHOLE.rank,
            min=1,
            max=256,
            advanced=True,
            tooltip=(
                "Size of every component's part of the LoRA, and of the part they share. 16 to 32 for "
                "styles; convolutions get half of it."
            ),
        ),
        io.Float.Input(
            "alpha",
            default=WHOLE.alpha,
            min=0.0,
            max=256.0,
            step=0.5,
            advanced=True,
            tooltip="Scale of what is learned, times rank. 0: as large as rank, a scale of 1.",
        ),
        io.Float.Input(
            "dropout",
            default=WHOLE.dropout,
            min=0.0,
            max=0.9,
            step=0.05,
            advanced=True,
            tooltip="Share of the LoRA's inner signals that a step drops, against copying.",
        ),
        io.Combo.Input(
            "layers",
            options=list(LAYERS),
            default=ATTENTION_MLP,
            advanced=True,
            tooltip=(
                "Which layers of the model learn. Convolutions hold more texture and make a larger file; "
                "the style block alone makes a small one."
            ),
        ),
    ]


def _learning_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "learning_rate",
            default=WHOLE.learning_rate,
            min=1e-7,
            max=10.0,
            step=1e-5,
            round=False,
            advanced=True,
            tooltip="Size of the steps. Lower it where the loss jumps; 1 for prodigy.",
        ),
        io.Float.Input(
            "text_learning_rate",
            default=WHOLE.text_learning_rate,
            min=0.0,
            max=10.0,
            step=1e-6,
            round=False,
            advanced=True,
            tooltip="The text encoder's own. 0 leaves it as it is; only CLIP encoders learn.",
        ),
        io.Int.Input(
            "text_steps",
            default=WHOLE.text_steps,
            min=0,
            max=1_000_000,
            advanced=True,
            tooltip="The text encoder stops learning at this step. 0: it learns to the end.",
        ),
        io.Int.Input(
            "batch_size",
            default=WHOLE.batch_size,
            min=1,
            max=64,
            advanced=True,
            tooltip="Pairs of a StyleRef and an Aux picture per step.",
        ),
        io.Combo.Input(
            "loss_weighting",
            options=[one.value for one in Weighting],
            default=WHOLE.weighting.value,
            advanced=True,
            tooltip="Weight of noise levels: none is the paper's; the others stress the noisy ones.",
        ),
        io.Combo.Input(
            "optimizer",
            options=["adamw", "prodigy"],
            default=WHOLE.optimizer,
            advanced=True,
            tooltip="prodigy finds the rate itself (learning_rate 1) and needs pip install prodigyopt.",
        ),
    ]


def _judging_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "validate_every",
            default=WHOLE.validate_every,
            min=0,
            max=100_000,
            advanced=True,
            tooltip=(
                "Steps between validations. From 8 StyleRef pictures on one in eight is held out for it. "
                "0: never, all pictures are trained on."
            ),
        ),
        io.Int.Input(
            "patience",
            default=WHOLE.patience,
            min=0,
            max=1000,
            advanced=True,
            tooltip="Validations without a better one that end the training. 0: none do.",
        ),
        io.Combo.Input(
            "keep",
            options=[BEST, LAST],
            default=BEST,
            advanced=True,
            tooltip="Which step's weights become the style.",
        ),
        io.Boolean.Input(
            "paper_parity",
            default=False,
            advanced=True,
            tooltip=(
                "As the paper trains: constant rate, no averaging of weights, no clipping of gradients, "
                "no picture held out."
            ),
        ),
        io.Int.Input(
            "seed",
            default=WHOLE.seed,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            advanced=True,
            tooltip="Of weights, pairs, times and noise. Another seed is another training.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip=(
                "Looks at sample pictures, so that the best step is that of style and prompt rather than "
                "of the loss. Costs the drawing of the samples at each validation."
            ),
        ),
        io.Clip.Input(
            "judge_clip",
            optional=True,
            tooltip=(
                "Text encoder that was trained with clip_vision, projection and all. Without it clip is "
                "asked; where it has no projection, style alone is judged."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        StyleSocket.Output(
            display_name="style",
            tooltip="The trained style, for Load Style; also saved in models/loras.",
        ),
        io.Image.Output(
            display_name="samples",
            tooltip="Sample pictures of each quarter, the oldest first, all from the same noise.",
        ),
        io.Image.Output(
            display_name="curve",
            tooltip="Loss of training (blue) and of validation (orange) over the steps.",
        ),
        io.String.Output(
            display_name="report",
            tooltip="What was trained on, how it went, which step was kept, what calls the style.",
        ),
    ]


class _NodeWatch:
    """The node's progress bar, with samples or the curve as its preview."""

    def __init__(self, pictures: int, steps: int) -> None:
        self.bar = comfy.utils.ProgressBar(pictures + steps)
        self.before = pictures
        self.step = 0

    def picture_done(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update(1)

    def step_done(self, now: Step, curve: Tensor | None, samples: Tensor | None) -> None:
        self.step = now.step
        comfy.model_management.throw_exception_if_processing_interrupted()
        shown = curve if samples is None else torch.cat(list(samples), dim=-1)  # side by side
        preview = None if shown is None else ("JPEG", as_pil(shown), PREVIEW_PX)
        self.bar.update_absolute(self.before + now.step, preview=preview)
