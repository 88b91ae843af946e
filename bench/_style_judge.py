"""An image-text model that has seen the painted styles, so that CLIP score can be had of styled pictures.

The miniature's own knows plain drawings alone and reads little in others. This one goes on from it,
on scenes in every style of `mini/styles.py` with the captions of the scenes; nothing here ships.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from transformers import CLIPModel

from ..mini import networks
from ..mini.landscapes import scene
from ..mini.load import load_image_text
from ..mini.networks import DEVICE, normalise, to_tensor
from ..mini.painter import paint
from ..mini.style_pictures import SIZE
from ..mini.styles import STYLES, figure_scene, paint_in_style, place_scene
from ..mini.terminal import tell
from ..models.common.files import write_whole
from ..models.common.training import Recipe, fit

FILE = "judge.safetensors"
FIRST_SEED = 25_000_000  # of neither training nor held-out pictures of a style
PICTURES, BATCH = 4_000, 32
PLAINS = (scene, figure_scene, place_scene)  # in turns
CHUNK = 32


class Judge:
    """Looks and reads."""

    def __init__(self, run: Path) -> None:
        self.model = load_image_text()
        self.knows_styles = (run / FILE).exists()
        if self.knows_styles:
            self.model.load_state_dict(load_file(run / FILE), strict=False)

    @torch.inference_mode()
    def see(self, planes: Tensor) -> Tensor:
        """Features (b d) of pictures (b 3 h w), 0..1."""
        parts = normalise(planes).split(CHUNK)
        return torch.cat([_features(self.model.get_image_features(pixel_values=p)) for p in parts])

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Features (b d) of texts."""
        return _features(self.model.get_text_features(input_ids=networks.tokenize(list(texts))))


def train_judge(run: Path, steps: int) -> None:
    """Contrastive training, or the rest of it; writes RUN/judge.safetensors."""
    images, captions = _painted(run)
    tokens = networks.tokenize(captions)
    length = int((tokens != networks.TEXT_CONFIG["eos_token_id"]).sum(1).max()) + 1
    same = {caption: index for index, caption in enumerate(captions)}
    ids = torch.tensor([same[caption] for caption in captions])
    model: CLIPModel = load_image_text().to(DEVICE).requires_grad_(True)
    model.text_model.embeddings.token_embedding.requires_grad_(False)

    def loss_of(generator: Generator) -> Tensor:
        picks = torch.randint(len(images), (BATCH,), generator=generator)
        x = normalise(to_tensor(images[picks]))
        out = model(input_ids=tokens[picks, :length].to(DEVICE), pixel_values=x)
        target = (ids[picks][:, None] == ids[picks][None]).float().to(DEVICE)
        target = target / target.sum(1, keepdim=True)
        logits = out.logits_per_image
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2

    recipe = Recipe(steps=steps, learning_rate=2e-4, warmup=50, ema_decay=0.995, save_every=100)
    fit(model, recipe, loss_of, run / "judge", tell("judge"))
    state = {k: v.contiguous() for k, v in model.state_dict().items() if "token_embedding" not in k}
    write_whole(run / FILE, lambda draft: save_file(state, draft))


def _painted(run: Path) -> tuple[Tensor, list[str]]:
    """Pictures (n h w 3) and their captions, plain ones and each style in turns; kept on disk."""
    path = run / "judge_pictures.pt"
    if not path.exists():
        looks = [None, *STYLES]
        drawn = []
        for i in range(PICTURES):
            look, plan = looks[i % len(looks)], PLAINS[i % len(PLAINS)](FIRST_SEED + i)
            drawn.append(paint_in_style(plan, look, SIZE) if look else paint(plan, SIZE))
        kept = {
            "images": torch.stack([torch.from_numpy(one.image) for one in drawn]),
            "captions": [one.caption for one in drawn],
        }
        write_whole(path, lambda draft: torch.save(kept, draft))
    found = torch.load(path, weights_only=True)
    return found["images"], found["captions"]


def _features(answer) -> Tensor:
    return getattr(answer, "pooler_output", answer).float()
