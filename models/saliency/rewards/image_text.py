"""Image-text models from files: HPSv2.1, PickScore, any CLIP with its configuration, the miniature's.

HPSv2.1 (Wu et al. 2023, arXiv:2306.09341) and PickScore (Kirstain et al. 2023, arXiv:2305.01569) are
CLIP ViT-H/14 trained further: 224 px, GELU, 16 heads in both towers. The first is released in OpenCLIP's
layout and fits the longer side of a picture, the second in transformers' and crops the middle. Heads and
activation of other models are not in the weights; their `config.json` has to lie beside them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...common.weight_files import State, read_state
from .open_clip import MARK, open_clip_to_transformers
from .preprocessing import CROP, PAD, Preprocessing

if TYPE_CHECKING:
    from transformers import CLIPModel

HUGE = 1280  # width of ViT-H's image tower
HUGE_CONFIG = {"num_attention_heads": 16, "hidden_act": "gelu"}
END_OF_TEXT = 49407
WRAPPING = "state_dict."
NOT_WEIGHTS = ("embeddings.position_ids", "attn_mask")  # buffers that older programs saved
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"
NEEDED = "HPSv2.1, PickScore, or a CLIP model with its config.json beside it is needed"

Tokenize = Callable[[list[str]], Tensor]  # texts to ids (k n), each ended by END_OF_TEXT


@dataclass(frozen=True)
class TowerEncoder:
    """An image tower of transformers' layout, as rewards take it."""

    tower: "ImageTower"
    preprocessing: Preprocessing

    def embed(self, pixels: Tensor) -> Tensor:
        """As in `ImageEncoder`."""
        return self.tower(pixels)

    def tokens(self, pixels: Tensor) -> Tensor:
        """As in `ImageEncoder`."""
        return self.tower.tokens(pixels)


@dataclass(frozen=True)
class ImageText:
    """An image-text model on the CPU in float32.

    Args:
        encoder: all that has to stay once the texts are read.
        read: ids (k n) to embeddings (k d), without gradients.
    """

    encoder: TowerEncoder
    read: Callable[[Tensor], Tensor]


class ImageTower(nn.Module):
    """Pixels (b 3 s s) to embeddings (b d)."""

    def __init__(self, model: "CLIPModel") -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.visual_projection.weight
        seen = self.vision_model(pixel_values=pixels.to(weight.device, weight.dtype))
        return self.visual_projection(seen.pooler_output)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Embeddings (b n d) of the patches, read as the class token is."""
        weight = self.visual_projection.weight
        seen = self.vision_model(pixel_values=pixels.to(weight.device, weight.dtype))
        patches = self.vision_model.post_layernorm(seen.last_hidden_state[:, 1:])
        return self.visual_projection(patches)


def load_image_text(path: Path, name: str | None = None) -> ImageText:
    """Read an image-text model.

    Args:
        path: .safetensors, or a pickle of weights alone.
        name: what messages call the file; its file name if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, holds more than weights, or is no such model.
    """
    name = name or path.name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is missing in {path.parent}; {NEEDED}, put the file there or choose another model"
        )
    state, _ = read_state(path, name)
    return image_text_of(state, name, _config_beside(path))


def load_miniature(folder: Path, name: str = "image_text") -> ImageText:
    """Read the miniature's image-text model, or one of the same layout from another seed.

    Args:
        folder: of the miniature's weights.
        name: of the file, without its suffix. Where it has no text encoder, the miniature's is taken.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is cut short or of another kind.
    """
    paths = [folder / f"{name}.safetensors", folder / "text_encoder.safetensors"]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.name} is missing in {folder}; reinstall the pack, its weights come with it"
            )
    state, about = read_state(paths[0], paths[0].name)
    text, told = read_state(paths[1], paths[1].name)
    state = {**text, **state, TOKEN_TABLE: _token_table(about["text_config"], told["token_table"])}
    return image_text_of(state, paths[0].name, about)


def image_text_of(state: State, name: str, config: dict[str, Any] | None = None) -> ImageText:
    """The model that a state dict belongs to, holding its weights.

    Args:
        state: in OpenCLIP's or transformers' layout.
        name: of the file, for messages.
        config: as in transformers' config.json; None for ViT-H, which is read off the weights.

    Raises:
        ValueError: another program's file, a weight is missing, or `config` is and is needed.
    """
    if any(key.startswith(WRAPPING) for key in state):
        state = {k.removeprefix(WRAPPING): x for k, x in state.items() if k.startswith(WRAPPING)}
    is_open_clip = MARK in state
    if is_open_clip:
        state = open_clip_to_transformers(state)
    state = {key: x for key, x in state.items() if not key.endswith(NOT_WEIGHTS)}
    model = _model(state, name, config or _huge_config(state, name))
    vision: Any = model.config.vision_config
    preprocessing = Preprocessing(vision.image_size, fit=PAD if is_open_clip else CROP)
    return ImageText(TowerEncoder(ImageTower(model), preprocessing), _reader(model))


def tokenize_with(tokenizer: Callable[..., Any]) -> Tokenize:
    """A CLIP tokenizer of transformers as a function to ids; what is too long is cut."""

    def tokenize(texts: list[str]) -> Tensor:
        answer = tokenizer(texts, padding="max_length", max_length=77, truncation=True)
        return torch.tensor(answer["input_ids"])

    return tokenize


def _config_beside(path: Path) -> dict[str, Any] | None:
    beside = path.with_name("config.json")
    if not beside.is_file():
        return None
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{beside} cannot be read as JSON ({error}); copy it again") from error
    if not {"text_config", "vision_config"} <= config.keys():
        raise ValueError(
            f"{beside} describes {config.get('model_type', 'no model')}, a CLIP with text_config and "
            f"vision_config is needed; put the one of {path.name} there"
        )
    return config


def _huge_config(state: State, name: str) -> dict[str, Any]:
    try:
        position, patch = (
            state[f"vision_model.embeddings.{part}.weight"]
            for part in ("position_embedding", "patch_embedding")
        )
        text = state["text_model.embeddings.position_embedding.weight"]
        projection = len(state["visual_projection.weight"])
        mlp = {
            side: len(state[f"{side}_model.encoder.layers.0.mlp.fc1.weight"])
            for side in ("vision", "text")
        }
        vocabulary = len(state[TOKEN_TABLE])
    except KeyError as error:
        raise ValueError(
            f"{name} lacks {error.args[0]}, both towers of an image-text model are needed: {NEEDED}; "
            "choose another file"
        ) from error
    if patch.shape[0] != HUGE:
        raise ValueError(
            f"{name} has an image tower of width {patch.shape[0]}, whose heads the weights do not tell; "
            f"{NEEDED}, put config.json into the file's folder"
        )
    side = round((len(position) - 1) ** 0.5) * patch.shape[-1]
    return {
        "projection_dim": projection,
        "vision_config": {
            **HUGE_CONFIG, "hidden_size": HUGE, "intermediate_size": mlp["vision"],
            "num_hidden_layers": _depth(state, "vision"), "image_size": side,
            "patch_size": patch.shape[-1], "projection_dim": projection,
        },
        "text_config": {
            **HUGE_CONFIG, "hidden_size": text.shape[1], "intermediate_size": mlp["text"],
            "num_hidden_layers": _depth(state, "text"), "max_position_embeddings": len(text),
            "vocab_size": vocabulary, "projection_dim": projection, "eos_token_id": END_OF_TEXT,
        },
    }  # fmt: skip


def _depth(state: State, side: str) -> int:
    ends = f"{side}_model.encoder.layers.", ".layer_norm1.weight"
    return sum(key.startswith(ends[0]) and key.endswith(ends[1]) for key in state)


def _model(state: State, name: str, config: dict[str, Any]) -> "CLIPModel":
    # here: not before a reward is loaded
    from transformers import CLIPConfig, CLIPModel

    settings: dict[str, Any] = {key: dict(config[key]) for key in ("text_config", "vision_config")}
    if "visual_projection.weight" in state:
        settings["projection_dim"] = len(state["visual_projection.weight"])
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**settings))
    given = {"logit_scale": torch.tensor(0.0), **state}
    wanted = {key: x.shape for key, x in model.state_dict().items()}
    wrong = [key for key in wanted if key not in given or given[key].shape != wanted[key]]
    if wrong:
        came = tuple(given[wrong[0]].shape) if wrong[0] in given else "missing"
        raise ValueError(
            f"{name}: {wrong[0]} is {came}, its other weights need {tuple(wanted[wrong[0]])}; copy the "
            "file again or choose another one"
        )
    model.load_state_dict({key: given[key] for key in wanted}, assign=True)
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        count = embeddings.position_embedding.weight.shape[0]
        # no weight, so neither in the file nor made on the meta device
        embeddings.register_buffer("position_ids", torch.arange(count)[None], persistent=False)
    return model.float().requires_grad_(False).eval()


def _reader(model: "CLIPModel") -> Callable[[Tensor], Tensor]:
    text_model, projection = model.text_model, model.text_projection

    def read(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return projection(text_model(input_ids=ids).pooler_output).float()

    return read


def _token_table(config: dict[str, Any], drawn: dict[str, Any]) -> Tensor:
    # frozen and drawn from a seed, so it is not in the file; numpy's stream is fixed for ever
    rng = np.random.default_rng(drawn["seed"])
    shape = (config["vocab_size"], config["hidden_size"])
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * drawn["std"])
