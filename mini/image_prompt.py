"""Train the miniature's image adapter, of the released "plus" layout: python dev.py mini image_prompt

First its tokens learn to say what the caption says, from what the miniature's own image encoder sees
of the drawing; keys and values start as the text's, so the network understands them. Then the whole
adapter learns to draw the scene from its tokens, with the caption or without.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..models.anchor.objective import (
    TIMESTEPS,
    denoising_errors,
    denoising_loss,
    information_gain,
)
from ..models.anchor.weights import copy_text_keys
from ..models.common.files import write_whole
from ..models.common.image_adapter import ImageFeatures, ImagePromptAdapter, PlusProjection
from ..models.common.image_adapter_files import save_image_adapter
from ..models.common.training import Recipe, fit
from ..nodes.host.attention import Extra, cross_attention_layers, layer_shapes
from ..nodes.host.gradients import gradients
from ..nodes.host.image_prompt import zero_pixel_states
from ..nodes.host.training import FrozenDenoiser, frozen_denoiser
from ..nodes.mini import load_clip_vision, load_model
from .terminal import tell

WEIGHTS = Path(__file__).parent / "weights" / "image_prompt.safetensors"
DIM, QUERIES, DEPTH = 192, 16, 2  # of the resampler
BATCH = 16
WORDS = Recipe(steps=500, learning_rate=1e-3, warmup=50, ema_decay=0.98)
WORDS_BATCH = 64
KEEPS_TEXT, DROPS_PICTURE = 0.5, 0.1  # shares of the rows
HELD_OUT = 64  # of the pictures, for the gauge
LARGEST_WEIGHT = 25.0  # of a picture's loss
GAUGE_TIMESTEP = 700
CHUNK = 64  # pictures encoded at once


@dataclass(frozen=True)
class Pictures:
    """Drawn scenes 0..n-1, and what is known of them.

    Args:
        latents: (n 4 h w).
        texts: (n 77 d) of their captions.
        empty: (1 77 d) of the empty caption.
        states: (n s f) of the image encoder.
        nothing: (1 s f) of pixels that are all zero.
    """

    latents: Tensor
    texts: Tensor
    empty: Tensor
    states: Tensor
    nothing: Tensor


def train_image_prompt(run: Path, recipe: Recipe, pictures: Pictures) -> None:
    """Train and write the adapter.

    Args:
        run: gets the folder image_prompt.
        recipe: how long.
        pictures: the last `HELD_OUT` are for the gauge.
    """
    model = load_model()
    torch.manual_seed(6)
    adapter = new_adapter(model, pictures.states.shape[-1])
    learn_words(adapter.projection, run, pictures)
    with gradients(), frozen_denoiser(model, [], pictures.latents[:1].float()) as frozen:
        frozen.model.model.diffusion_model.to(memory_format=torch.channels_last)
        trainer = _Trainer(frozen, adapter.to(frozen.device), pictures)
        steps = fit(
            adapter, recipe, trainer.loss_of, run / "image_prompt", tell("image_prompt"),
            measure=trainer.measure,
            about={"pictures": len(pictures.latents), "keeps_text": KEEPS_TEXT},
        )  # fmt: skip
        gain = trainer.measure()["information_gain"]
    about = {
        "data": f"{len(pictures.latents)} drawn scenes", "steps": steps, "batch": BATCH,
        "information_gain": round(gain, 3),
    }  # fmt: skip
    save_image_adapter(WEIGHTS, adapter.cpu(), "miniature", about)


def new_adapter(model: ModelPatcher, feature_dim: int) -> ImagePromptAdapter:
    """One whose tokens the network would read as if they were words: keys and values as the text's."""
    shapes = layer_shapes(model)
    text = next(iter(shapes.values())).context_dim
    adapter = ImagePromptAdapter(PlusProjection(feature_dim, text, DIM, QUERIES, DEPTH), shapes)
    layers = cross_attention_layers(model)
    copy_text_keys(adapter, {name: layer.to_k.weight for name, layer in layers.items()})
    for name, layer in layers.items():
        adapter.to_v[name].weight.data.copy_(layer.to_v.weight)
    return adapter


def learn_words(projection: nn.Module, run: Path, pictures: Pictures) -> None:
    """Teach tokens to be the caption's first text states, begin mark aside."""
    known = len(pictures.latents) - HELD_OUT

    def loss_of(generator: Generator) -> Tensor:
        picks = torch.randint(known, (WORDS_BATCH,), generator=generator)
        said = projection(pictures.states[picks].float())
        return F.mse_loss(said, pictures.texts[picks, 1 : 1 + QUERIES].float())

    with gradients():
        fit(projection, WORDS, loss_of, run / "image_prompt_words", tell("image_prompt words"))


class _Trainer:
    """Draws batches of pictures and tells the loss."""

    def __init__(
        self, frozen: FrozenDenoiser, adapter: ImagePromptAdapter, pictures: Pictures
    ) -> None:
        self.frozen, self.adapter, self.pictures = frozen, adapter, pictures

    def loss_of(self, generator: Generator) -> Tensor:
        """Mean loss of a batch drawn with the generator."""
        all_of = self.pictures
        picks = torch.randint(len(all_of.latents) - HELD_OUT, (BATCH,), generator=generator)
        text, picture = torch.rand(2, BATCH, 1, 1, generator=generator)
        context = torch.where(text < KEEPS_TEXT, all_of.texts[picks], all_of.empty)
        states = torch.where(picture < DROPS_PICTURE, all_of.nothing, all_of.states[picks])
        x0 = all_of.latents[picks].float().to(self.frozen.device)
        noise = torch.randn(x0.shape, generator=generator).to(self.frozen.device)
        sigma = self.frozen.sigma_of(torch.randint(TIMESTEPS, (BATCH,), generator=generator))
        x = x0 + noise * sigma.view(-1, 1, 1, 1)
        # by the error in the picture: almost clean steps have the largest error in the noise, and little
        # of it can be mended by knowing the picture
        weight = (1 + sigma.square()).clamp(max=LARGEST_WEIGHT)
        return denoising_loss(self._denoise(x, sigma, context, states), x0, sigma, weight)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """How much worse other pictures serve than the own ones, without captions."""
        states = self.pictures.states[-HELD_OUT:]
        true, shuffled = (self._held_loss(x) for x in (states, states.roll(HELD_OUT // 2, 0)))
        return {"information_gain": information_gain(shuffled, true)}

    def _held_loss(self, states: Tensor) -> float:
        x0 = self.pictures.latents[-HELD_OUT:].float()
        noise = torch.randn(x0.shape, generator=Generator().manual_seed(5))
        errors = []
        parts = zip(x0.split(BATCH), noise.split(BATCH), states.split(BATCH), strict=True)
        for clean, added, seen in parts:
            sigma = self.frozen.sigma_of(torch.full((len(clean),), GAUGE_TIMESTEP))
            clean = clean.to(sigma)
            x = clean + added.to(sigma) * sigma.view(-1, 1, 1, 1)
            context = self.pictures.empty.expand(len(clean), -1, -1)
            errors.append(denoising_errors(self._denoise(x, sigma, context, seen), clean, sigma))
        return float(torch.cat(errors).mean())

    def _denoise(self, x: Tensor, sigma: Tensor, context: Tensor, states: Tensor) -> Tensor:
        extras = [
            Extra(adapter=self.adapter, request=ImageFeatures(one[None].float())) for one in states
        ]
        with torch.autocast(self.frozen.device.type, torch.bfloat16):
            conds = {"c_crossattn": context.float().to(self.frozen.device)}
            return self.frozen.with_conds(x, sigma, conds, extras)


@torch.inference_mode()
def encoded(path: Path, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """States (n s f) of pictures (n h w 3) and of zero pixels (1 s f), kept in a file once known."""
    if not path.exists():
        encoder = load_clip_vision()
        states = []
        for start in range(0, len(images), CHUNK):
            chunk = torch.from_numpy(images[start : start + CHUNK].copy()).float() / 255
            states.append(encoder.encode_image(chunk)["penultimate_hidden_states"].half())
            print(f"\rencoded {start + len(chunk)} of {len(images)} pictures", end="", flush=True)
        print()
        state = {"states": torch.cat(states), "nothing": zero_pixel_states(encoder).half()}
        write_whole(path, lambda draft: torch.save(state, draft))
    state = torch.load(path, weights_only=True, mmap=True)
    return state["states"], state["nothing"]
