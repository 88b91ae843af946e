"""Node that says what a picture is rewarded for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from torch import Tensor

from ...models.common.images import image_to_bchw
from ...models.common.metrics import MissingMetricError
from ...models.saliency.rewards.clip_reward import COSINE, DISTANCES, ClipReward, ImageEncoder
from ...models.saliency.rewards.combine import Rewards
from ...models.saliency.rewards.image_text import (
    ImageText,
    load_image_text,
    load_miniature,
    tokenize_with,
)
from ...models.saliency.rewards.reference import embed_reference
from ...models.saliency.rewards.reward import SALIENT, WHOLE
from ...models.saliency.rewards.symmetry import SymmetryReward
from ..host.folders import register_folder
from ..host.image_text import text_features
from ..host.types import RewardSocket
from .load import CATEGORY
from .networks import Patchers, RewardChain, StockEncoder, check_kind, kept, managed

FOLDER = "rewards"
MINIATURE = "miniature (comes with the pack)"
CONNECTED = "the connected clip and clip_vision"
MINIATURE_FOLDER = Path(__file__).resolve().parents[2] / "mini" / "weights"
TEXT, PICTURE, SYMMETRY = KINDS = ("text", "reference picture", "symmetry")
SHOWN = 40  # letters of a text in tables

register_folder(FOLDER, {".safetensors", ".pt", ".bin"})


class DefineReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VedutaReward",
            display_name="Reward (CLIP, HPSv2.1, PickScore)",
            category=CATEGORY,
            description=(
                "What Optimize Latent is to make better: how well a picture shows a text (CLIP, or people's "
                "taste as HPSv2.1 and PickScore learned it), how close it comes to a reference picture, "
                "or its symmetry. Chain several, each with a weight."
            ),
            search_aliases=[
                "hpsv2",
                "pickscore",
                "clip score",
                "aesthetic",
                "preference",
                "critic",
            ],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default=TEXT,
                    tooltip=(
                        "What is rewarded: showing the text, likeness to the reference, or left and right "
                        "mirroring each other."
                    ),
                ),
                io.Combo.Input(
                    "model_name",
                    options=[MINIATURE, CONNECTED, *folder_paths.get_filename_list(FOLDER)],
                    default=MINIATURE,
                    tooltip=(
                        "Which network judges: the miniature's, the clip and clip_vision below, or a file "
                        "in models/rewards: HPSv2.1, PickScore, or a CLIP with its config.json beside it. "
                        "Symmetry needs none."
                    ),
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What the picture should show; mostly the prompt. For the kind text.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How much its points count among the chain's. Below 0 the picture is kept away from "
                        "what it would reward."
                    ),
                ),
                RewardSocket.Input(
                    "append_to", optional=True, tooltip="Rewards that come before this one."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that was trained with clip_vision, with its projection.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A CLIP image encoder from Load CLIP Vision.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="For the kind reference picture: what is common to all of these.",
                ),
                io.String.Input(
                    "salient_text",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "What the salient part alone should show, such as the subject without its "
                        "surroundings. Empty is the same as text."
                    ),
                ),
                io.Combo.Input(
                    "distance",
                    options=list(DISTANCES),
                    default=COSINE,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Points from the cosine of two embeddings, or from the squared angle between them "
                        "(great circle), which pulls harder from far away."
                    ),
                ),
            ],
            outputs=[
                RewardSocket.Output(
                    display_name="reward", tooltip="The chain so far, this reward at its end."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        kind: str,
        model_name: str,
        text: str,
        weight: float,
        append_to: RewardChain | None = None,
        clip: comfy.sd.CLIP | None = None,
        clip_vision: ClipVisionModel | None = None,
        reference: Tensor | None = None,
        salient_text: str = "",
        distance: str = COSINE,
    ) -> io.NodeOutput:
        _check_wanted(kind, text.strip(), reference)
        if kind == SYMMETRY:
            made = RewardChain(Rewards((SymmetryReward(weight=weight),)))
        else:
            judge = _open_judge(model_name, clip, clip_vision)
            wanted = (
                _wanted_texts(judge, text.strip(), salient_text.strip())
                if kind == TEXT
                else _wanted_picture(judge, reference)
            )
            shown = repr(text.strip()[:SHOWN]) if kind == TEXT else kind
            reward = ClipReward(
                name=f"{shown} ({judge.name})",
                encoder=judge.encoder,
                wanted=wanted,
                weight=weight,
                distance=distance,
            )
            made = RewardChain(Rewards((reward,)), judge.patchers)
        return io.NodeOutput(made if append_to is None else append_to + made)

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **others: Any) -> list[Any]:
        if model_name in (MINIATURE, CONNECTED):
            return [model_name]
        stat = _path_of(model_name).stat()
        return [stat.st_mtime_ns, stat.st_size]


@dataclass(frozen=True)
class _Judge:
    """An image-text model, whatever it was loaded as."""

    name: str
    encoder: ImageEncoder
    patchers: Patchers
    read: Callable[[list[str]], Tensor]  # texts to embeddings (k d)


def _check_wanted(kind: str, text: str, reference: Tensor | None) -> None:
    """Before a network is loaded for it."""
    if kind == TEXT and not text:
        raise ValueError(
            f"text is empty, the kind {TEXT!r} needs what the picture should show; write it, or choose "
            "another kind"
        )
    if kind == PICTURE and reference is None:
        raise ValueError(
            f"kind is {PICTURE!r} and reference is not connected; connect a picture, or choose another "
            "kind"
        )


def _path_of(model_name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(FOLDER, model_name))


def _open_judge(
    model_name: str, clip: comfy.sd.CLIP | None, clip_vision: ClipVisionModel | None
) -> _Judge:
    if model_name == CONNECTED:
        return _connected(clip, clip_vision)
    with torch.inference_mode(False):  # so that gradients can go through its weights
        if model_name == MINIATURE:
            name, found = "miniature", load_miniature(MINIATURE_FOLDER)
        else:
            name, found = model_name, load_image_text(_path_of(model_name), model_name)
    patchers = (managed(found.encoder.tower),)
    return _Judge(name, found.encoder, patchers, lambda texts: read_texts(found, texts))


def read_texts(model: ImageText, texts: list[str]) -> Tensor:
    """Embeddings (k d) of texts, by core's CLIP tokenizer."""
    tokenizer: Any = comfy.sd1_clip.SD1Tokenizer()
    return model.read(tokenize_with(tokenizer.clip_l.tokenizer)(texts))


def _connected(clip: comfy.sd.CLIP | None, clip_vision: ClipVisionModel | None) -> _Judge:
    if clip_vision is None:
        raise ValueError(
            f"model_name is {CONNECTED!r} and clip_vision is not connected; connect a CLIP image encoder, "
            "or choose another model"
        )
    check_kind(clip_vision, "a reward")

    def read(texts: list[str]) -> Tensor:
        if clip is None:
            raise ValueError(
                f"model_name is {CONNECTED!r} and clip is not connected, a text needs it; connect the text "
                "encoder that was trained with clip_vision"
            )
        try:
            found = text_features(clip, texts)
        except MissingMetricError as error:
            raise ValueError(str(error)) from error
        width = clip_vision.config["projection_dim"]
        if found.shape[-1] != width:
            raise ValueError(
                f"clip gives texts of width {found.shape[-1]}, clip_vision pictures of width {width}, a "
                "pair trained together is needed; load both from one model"
            )
        return found

    return _Judge("clip_vision", StockEncoder(clip_vision), (clip_vision.patcher,), read)


def _wanted_texts(judge: _Judge, text: str, salient_text: str) -> dict[str, Tensor]:
    texts = {WHOLE: text, SALIENT: salient_text} if salient_text else {WHOLE: text}
    return {part: kept(lambda words=words: judge.read([words])) for part, words in texts.items()}


def _wanted_picture(judge: _Judge, reference: Tensor | None) -> dict[str, Tensor]:
    assert reference is not None
    planes = image_to_bchw(reference, "reference")
    comfy.model_management.load_models_gpu(list(judge.patchers))
    return {WHOLE: kept(lambda: embed_reference(judge.encoder, planes))}
