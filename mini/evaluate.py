"""Measure the trained miniature on scenes it has never seen, write its card and a contact sheet.

python dev.py mini card
"""

import json
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import comfy.sample
import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio

from ..nodes import mini as nodes
from . import networks
from .load import load_image_text, read_weights
from .networks import normalise, to_tensor
from .pool import SCENES, load_pool

HERE = Path(__file__).parent
CANDIDATES = 32  # captions that compete for one picture
GENERATED = 64
STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.0, "dpmpp_2m", "karras"
TIMED_SIZES = (128, 256)  # px
TIMED_RUNS = 3
CARD_BEGINS, CARD_ENDS = "<!-- card -->", "<!-- end of card -->"


@torch.inference_mode()
def write_card(run: Path) -> None:
    """Measure the weights in mini/weights; write card.json, contact_sheet.jpg and the README's table."""
    images, captions = load_pool(run / "unseen")
    model, clip, vae = nodes.load_model(), nodes.load_clip(), nodes.load_vae()
    judge = load_image_text()
    card: dict[str, Any] = {
        "scenes": SCENES,
        "pixels": images.shape[1],
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        + ("CUDA" if torch.cuda.is_available() else "CPU"),
        "vae_psnr_db": round(_vae_psnr(vae, images[:256]), 2),
        "retrieval_unseen": round(retrieval(judge, images, captions, CANDIDATES), 3),
        "retrieval_chance": round(1 / CANDIDATES, 3),
        "training": _training(run),
    }
    prompts = _different(captions, GENERATED)
    pictures = np.concatenate([
        generate(model, clip, vae, prompts[i : i + 8], images.shape[1], seed=i)
        for i in range(0, GENERATED, 8)
    ])  # fmt: skip
    card["retrieval_generated"] = round(retrieval(judge, pictures, prompts, CANDIDATES), 3)
    for size in TIMED_SIZES:
        card[f"seconds_20_steps_{size}px"] = round(_seconds(model, clip, vae, prompts[:1], size), 2)
    card["training"]["unet"]["steps"] = read_weights("unet")[1]["steps"]  # of all runs together
    adapter = read_weights("anchor")[1]["about"]
    card["anchor_information_gain"] = adapter["information_gain"]
    card["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (HERE / "weights" / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    _contact_sheet(pictures[:48], HERE / "weights" / "contact_sheet.jpg")
    _fill_in(HERE / "README.md", _table(card))
    print(json.dumps(card, indent=2))


def _table(card: dict[str, Any]) -> str:
    chance = card["retrieval_chance"]
    rows = {
        "data": f"{card['scenes']} of our own drawn scenes, {card['pixels']} px",
        "hardware": card["hardware"],
        "steps and last loss": ", ".join(
            f"{name} {stage['steps']} ({stage['loss']})" for name, stage in card["training"].items()
        ),
        "autoencoder, PSNR on 256 scenes (aim 30 dB)": f"{card['vae_psnr_db']} dB",
        f"picture to caption among {CANDIDATES}, drawn scenes": f"{card['retrieval_unseen']} (chance {chance})",
        f"the same, {GENERATED} generated pictures": f"{card['retrieval_generated']} (chance {chance})",
        "anchor adapter, information gain at t = 850": f"{card['anchor_information_gain']} (0 ignores the anchor)",
        f"{STEPS} steps with guidance and decoding, 128 px": f"{card['seconds_20_steps_128px']} s",
        "the same, 256 px (aim 5 s)": f"{card['seconds_20_steps_256px']} s",
        "peak memory of the process": f"{card['peak_memory_mb']} MB",
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)


def _fill_in(path: Path, table: str) -> None:
    before, _, rest = path.read_text().partition(CARD_BEGINS)
    after = rest.partition(CARD_ENDS)[2]
    path.write_text(f"{before}{CARD_BEGINS}\n\n{table}\n\n{CARD_ENDS}{after}")


def generate(model, clip, vae, prompts: list[str], size: int, seed: int) -> NDArray[np.uint8]:
    """Pictures (n h w 3) of the prompts, one each, by ComfyUI's own sampling."""
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    pictures = []
    for index, prompt in enumerate(prompts):
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        latent = torch.zeros(1, 4, size // 8, size // 8)
        noise = comfy.sample.prepare_noise(latent, seed * 1000 + index)
        z = comfy.sample.sample(
            model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent,
            disable_pbar=True,
        )  # fmt: skip
        pictures.append((vae.decode(z)[0] * 255).round().byte().cpu().numpy())
    return np.stack(pictures)


def retrieval(judge, images: NDArray[np.uint8], captions: list[str], candidates: int) -> float:
    """Share of pictures whose own caption scores best among `candidates` different captions."""
    hits, total = 0, 0
    for start in range(0, len(captions) - candidates + 1, candidates):
        group = slice(start, start + candidates)
        tokens = networks.tokenize(captions[group])
        x = torch.from_numpy(np.ascontiguousarray(images[group]))
        logits = judge(input_ids=tokens, pixel_values=normalise(to_tensor(x))).logits_per_image
        best = logits.argmax(1).tolist()
        hits += sum(captions[start + b] == captions[start + i] for i, b in enumerate(best))
        total += candidates
    return hits / total


def _different(captions: list[str], count: int) -> list[str]:
    return list(dict.fromkeys(captions))[:count]


def _vae_psnr(vae, images: NDArray[np.uint8]) -> float:
    x = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    rebuilt = torch.cat([vae.decode(vae.encode(part)) for part in x.split(32)])
    each = [
        peak_signal_noise_ratio(r, o, data_range=1.0).item()
        for r, o in zip(rebuilt, x, strict=True)
    ]
    return statistics.mean(each)


def _seconds(model, clip, vae, prompts: list[str], size: int) -> float:
    generate(model, clip, vae, prompts, size, seed=0)
    took = []
    for run in range(TIMED_RUNS):
        began = time.perf_counter()
        generate(model, clip, vae, prompts, size, seed=run)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _training(run: Path) -> dict[str, dict[str, float]]:
    stages = {}
    for log in sorted(run.glob("*/log.jsonl")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        tail = [row["loss"] for row in rows[-10:]]
        stages[log.parent.name] = {
            "steps": rows[-1]["step"],
            "loss": round(statistics.mean(tail), 4),
        }
    return stages


def _contact_sheet(pictures: NDArray[np.uint8], path: Path) -> None:
    sheet = rearrange(pictures, "(r c) h w k -> (r h) (c w) k", c=8)
    cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
