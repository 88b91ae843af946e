"""Train the miniature from seeds: autoencoder, image-text model, denoiser, adapters.

    python dev.py mini              everything that is not finished yet
    python dev.py mini vae unet     these stages only

Each stage goes on from its last checkpoint under mini/runs, writes its weights to mini/weights when
it is done, and is skipped from then on (remove its folder in mini/runs to start it over).
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Generator, Tensor

from ..models.common.training import Recipe, fit
from . import horizon, networks
from .load import load_text_encoder, load_vae, read_weights
from .networks import DEVICE, normalise, to_tensor
from .pool import SCENES, UNSEEN, UNSEEN_FROM, load_pool, render_pool
from .terminal import tell

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
SIZE = 128  # px a side of the training pictures
UNET_SCENES = 12_000  # of them, whose latents and text states are kept

RECIPES = {
    "vae": Recipe(steps=4_200, learning_rate=1e-3, ema_decay=0.998),
    "decoder": Recipe(steps=2_600, learning_rate=4e-4, ema_decay=0.998),
    "image_text": Recipe(steps=1_500, learning_rate=8e-4, weight_decay=0.05),
    "unet": Recipe(steps=8_000, learning_rate=5e-4, ema_decay=0.9995),
    "anchor": Recipe(steps=2_400, learning_rate=1e-3, warmup=100, ema_decay=0.995, save_every=200),
    "image_prompt": Recipe(
        steps=2_000, learning_rate=1e-3, warmup=100, ema_decay=0.995, save_every=200
    ),
}
BATCH = {"vae": 8, "image_text": 64, "unet": 16}
CROP = 64  # px a side of what the autoencoder trains on
MIN_SNR_GAMMA = 5.0  # layout first: nearly clean steps count for less
TOKEN_TABLE = {"seed": networks.TOKEN_TABLE_SEED, "std": networks.TOKEN_STD}
IMAGE_TEXT_CONFIGS = {
    "text_config": networks.TEXT_CONFIG,
    "vision_config": networks.VISION_CONFIG,
}
SECOND_SEEDS = 1000  # first weights of second models: far from the stages' own seeds
NO_CAPTION_SHARE = 0.1  # of the training pictures, for classifier-free guidance


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py mini", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all if left out")
    parser.add_argument("--run", type=Path, default=HERE / "runs" / f"mini{SIZE}")
    parser.add_argument(
        "--go-on", action="store_true", help="start unet and anchor from mini/weights"
    )
    parser.add_argument("--steps", type=int, help="length of the stage, instead of its recipe's")
    parser.add_argument("--seed", type=int, help="image_text alone: a second model, to judge by")
    options = parser.parse_args(argv)
    _check(parser, options)
    for name in options.stages or STAGES:
        if name == "horizon":
            horizon.main([])
            continue
        if name == "card":
            from .evaluate import write_card  # only the card needs ComfyUI's sampling

            render_pool(options.run / "unseen", UNSEEN_FROM, UNSEEN, SIZE)
            write_card(options.run)
            continue
        recipe = RECIPES[name]
        if options.steps:
            recipe = replace(recipe, steps=options.steps)
        if options.seed:
            train_second_image_text(options.run, replace(recipe, seed=options.seed))
        elif name == "unet":
            train_unet(options.run, recipe, options.go_on)
        elif name == "anchor":
            from .anchor import labelled, train_anchor  # like the card it needs ComfyUI's nodes

            train_anchor(
                options.run, recipe, labelled(options.run, *cached(options.run)), options.go_on
            )
        elif name == "image_prompt":
            from .image_prompt import Pictures, encoded, train_image_prompt

            latents, texts, empty = cached(options.run)
            images = _pool(options.run)[0][: len(latents)]
            states, nothing = encoded(options.run / "vision.pt", images)
            pictures = Pictures(latents, texts, empty, states, nothing)
            train_image_prompt(options.run, recipe, pictures)
        else:
            TRAINERS[name](options.run, recipe)


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    unknown = [stage for stage in options.stages if stage not in STAGES]
    if unknown:
        parser.error(f"there is no stage {unknown[0]}; choose from {', '.join(STAGES)}")
    if options.seed is not None and (options.seed < 1 or options.stages != ["image_text"]):
        parser.error("--seed is 1 or more, and for the stage image_text alone")


def train_vae(run: Path, recipe: Recipe) -> None:
    """Autoencoder on random 64 px crops; then latents are scaled to unit standard deviation."""
    images, _ = _pool(run)
    vae = networks.build_vae(seed=1).to(DEVICE, memory_format=torch.channels_last)

    def loss_of(generator: Generator) -> Tensor:
        x = _crops(images, generator)
        with _autocast():
            latent = vae.taesd_encoder(x)
            rebuilt = vae.taesd_decoder(latent)
        rebuilt, latent = rebuilt.float(), latent.float()
        spread = F.relu(latent.abs() - 2.0).square().mean()  # the decoder saturates at 3
        return F.mse_loss(rebuilt, x) + 0.2 * F.l1_loss(rebuilt, x) + 0.01 * spread

    fit(vae, recipe, loss_of, run / "vae", tell("vae"))
    latents = torch.cat([vae.taesd_encoder(x) for x in _batches(images[:512], 32)])
    with torch.no_grad():
        vae.vae_shift.copy_(-latents.mean() / latents.std())
        vae.vae_scale.copy_(latents.std())
    _save("vae", vae.state_dict(), {"pixels": SIZE})


def train_decoder(run: Path, recipe: Recipe) -> None:
    """The decoder alone, further: the latents that the denoiser has learned stay what they are."""
    images, _ = _pool(run)
    vae = load_vae().to(DEVICE, memory_format=torch.channels_last)
    vae.taesd_decoder.requires_grad_(True)

    def loss_of(generator: Generator) -> Tensor:
        x = _crops(images, generator)
        with _autocast():
            with torch.no_grad():
                latent = vae.taesd_encoder(x)
            rebuilt = vae.taesd_decoder(latent)
        return F.mse_loss(rebuilt.float(), x) + 0.1 * F.l1_loss(rebuilt.float(), x)

    fit(vae, recipe, loss_of, run / "decoder", tell("decoder"))
    _save("vae", vae.state_dict(), {"pixels": SIZE})


def _crops(images: NDArray[np.uint8], generator: Generator) -> Tensor:
    picks = torch.randint(len(images), (BATCH["vae"],), generator=generator).tolist()
    corners = torch.randint(SIZE - CROP + 1, (BATCH["vae"], 2), generator=generator).tolist()
    crops = [
        images[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(picks, corners, strict=True)
    ]
    return to_tensor(torch.from_numpy(np.stack(crops)))


def train_image_text(run: Path, recipe: Recipe) -> None:
    """The image-text model; its text encoder, which the denoiser reads, has a file of its own."""
    state = _trained_image_text(run, recipe, "image_text", seed=2)
    text = {k: v for k, v in state.items() if k.startswith("text")}
    _save("text_encoder", text, {"config": networks.TEXT_CONFIG, "token_table": TOKEN_TABLE})
    rest = {k: v for k, v in state.items() if k not in text}
    _save("image_text", rest, IMAGE_TEXT_CONFIGS)


def train_second_image_text(run: Path, recipe: Recipe) -> None:
    """A model of other first weights and another order of pictures, to judge what the first rewarded."""
    name = f"image_text_seed{recipe.seed}"
    state = _trained_image_text(run, recipe, name, SECOND_SEEDS + recipe.seed)
    _save(name, state, IMAGE_TEXT_CONFIGS)


def _trained_image_text(run: Path, recipe: Recipe, name: str, seed: int) -> dict[str, Tensor]:
    """Contrastive training; captions that say the same are not pushed apart."""
    images, captions = _pool(run)
    tokens = networks.tokenize(captions)
    length = int((tokens != networks.TEXT_CONFIG["eos_token_id"]).sum(1).max()) + 1
    model = networks.build_image_text(seed).to(DEVICE)
    model.set_attn_implementation("eager")  # fused attention's bf16 backward is slow on a CPU
    same = {caption: index for index, caption in enumerate(captions)}
    ids = torch.tensor([same[caption] for caption in captions])

    def loss_of(generator: Generator) -> Tensor:
        picks = torch.randint(len(images), (BATCH["image_text"],), generator=generator)
        x = to_tensor(torch.from_numpy(images[picks.numpy()]))
        with _autocast():
            out = model(input_ids=tokens[picks, :length].to(DEVICE), pixel_values=normalise(x))
        target = (ids[picks][:, None] == ids[picks][None]).float().to(DEVICE)
        target = target / target.sum(1, keepdim=True)
        logits = out.logits_per_image.float()
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2

    fit(model, recipe, loss_of, run / name, tell(name))
    return {
        k: v
        for k, v in model.state_dict().items()
        if "token_embedding" not in k and "position_ids" not in k
    }


def train_unet(run: Path, recipe: Recipe, go_on: bool = False) -> None:
    """Noise prediction on latents with min-SNR weights, captions dropped at random."""
    latents, texts, empty = cached(run)
    unet = networks.build_unet(seed=3).to(DEVICE, memory_format=torch.channels_last)
    steps_before = 0
    if go_on:
        state, about = read_weights("unet")
        unet.load_state_dict(state)
        steps_before = about["steps"]
    alpha_bar = _alpha_bar().to(DEVICE)

    def loss_of(generator: Generator) -> Tensor:
        size = BATCH["unet"]
        picks = torch.randint(len(latents), (size,), generator=generator)
        x0 = latents[picks].to(DEVICE).float()
        dropped = torch.rand(size, 1, 1, generator=generator) < NO_CAPTION_SHARE
        context = torch.where(dropped, empty, texts[picks]).to(DEVICE).float()
        t = torch.randint(len(alpha_bar), (size,), generator=generator).to(DEVICE)
        eps = torch.randn(x0.shape, generator=generator).to(DEVICE)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x0 + (1 - a).sqrt() * eps
        with _autocast():
            predicted = unet(noisy, t, context)
        error = (predicted.float() - eps).square().mean((1, 2, 3))
        snr = alpha_bar[t] / (1 - alpha_bar[t])
        return (error * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean()  # Hang et al. 2303.09556

    steps = fit(unet, recipe, loss_of, run / "unet", tell("unet"))
    _save("unet", unet.state_dict(), {
        "config": networks.UNET_CONFIG, "pixels": SIZE, "steps": steps_before + steps,
        "latent_rgb_factors": _latent_colours(run, latents),
    })  # fmt: skip


def _pool(run: Path) -> tuple[NDArray[np.uint8], list[str]]:
    return load_pool(render_pool(run / "train", 0, SCENES, SIZE))


@torch.no_grad()
def cached(run: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (n 4 h w) and text states (n 77 d) of the pool in half precision, and of ''."""
    path = run / "cache.pt"
    if not path.exists():
        images, captions = _pool(run)
        images, captions = images[:UNET_SCENES], captions[:UNET_SCENES]
        vae = load_vae().to(DEVICE, memory_format=torch.channels_last)
        encoder = load_text_encoder().to(DEVICE)
        latents = []
        for x in _batches(images, 16):
            with _autocast():
                z = vae.encode(x * 2 - 1)
            latents.append(z.half().cpu())
        tokens = networks.tokenize(["", *captions])
        texts = torch.cat(
            [encoder(part.to(DEVICE)).last_hidden_state.half().cpu() for part in tokens.split(64)]
        )
        torch.save({"latents": torch.cat(latents), "texts": texts}, path)
    state = torch.load(path, weights_only=True, mmap=True)
    return state["latents"], state["texts"][1:], state["texts"][:1]


def _alpha_bar() -> Tensor:
    """SD1's schedule: betas linear in their square root, 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, 0).float()


def _latent_colours(run: Path, latents: Tensor) -> list[list[float]]:
    """Least-squares colours of the latent channels (and a bias row), for cheap previews."""
    images, _ = _pool(run)
    z = rearrange(latents[:400].float(), "b c h w -> (b h w) c")
    x = F.avg_pool2d(to_tensor(torch.from_numpy(images[:400])).cpu(), 8) * 2 - 1
    z = torch.cat([z, torch.ones(len(z), 1)], 1)
    return torch.linalg.lstsq(z, rearrange(x, "b c h w -> (b h w) c")).solution.tolist()


@torch.no_grad()
def _batches(images, size: int):
    for start in range(0, len(images), size):
        yield to_tensor(torch.from_numpy(images[start : start + size].copy()))


def _autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16)


def _save(name: str, state: dict[str, Tensor], metadata: dict) -> None:
    WEIGHTS.mkdir(exist_ok=True)
    half = {key: value.half().cpu().contiguous() for key, value in state.items()}
    draft = WEIGHTS / f"{name}.tmp"
    save_file(half, draft, {"format": "pt", "veduta": json.dumps(metadata)})
    os.replace(draft, WEIGHTS / f"{name}.safetensors")


TRAINERS = {"vae": train_vae, "decoder": train_decoder, "image_text": train_image_text}
STAGES = (*TRAINERS, "unet", "anchor", "image_prompt", "horizon", "card")

if __name__ == "__main__":
    main(sys.argv[1:])
