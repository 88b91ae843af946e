"""How good a style is while it is trained: its loss on fixed draws, and what a CLIP sees in samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from ...models.common.metrics import MissingMetricError
from ...models.styleforge.dual_binding import Example, native_errors, validation_draws
from ...models.styleforge.evaluation import style_gain
from ...models.styleforge.style_set import StyleSet
from ..host.image_text import picture_features, text_features
from ..host.lora import Adapted

ROWS = 4  # looked at together


@dataclass(frozen=True)
class Eyes:
    """A CLIP that looks at sample pictures.

    Args:
        clip_vision: its image encoder.
        references: (m d) features of the StyleRef pictures.
        texts: (n d) features of the sample prompts; None where the text encoder has no projection.
    """

    clip_vision: ClipVisionModel
    references: Tensor
    texts: Tensor | None


def open_eyes(
    clip_vision: ClipVisionModel, clip: comfy.sd.CLIP, style_set: StyleSet, prompts: Sequence[str]
) -> Eyes:
    """Look at the StyleRef pictures and read the prompts, before anything has learned.

    Args:
        clip_vision: an image encoder.
        clip: the text encoder that was trained with it, if it was.
        style_set: whose StyleRef pictures are the style.
        prompts: of the sample pictures.
    """
    seen = [
        picture_features(clip_vision, picture.pixels[None].float() / 255)
        for component in style_set.components
        for picture in component.style_ref
    ]
    references = torch.cat(seen)
    try:
        texts = text_features(clip, prompts)
    except MissingMetricError:
        texts = None
    fits = texts is not None and texts.shape[-1] == references.shape[-1]
    return Eyes(clip_vision, references, texts if fits else None)


class Validation:
    """Numbers of the weights as they are now; larger scores are better.

    Without eyes the score is the loss on fixed draws, negated. With eyes it is the style gained
    over the base, plus how much of the base's CLIP score is left.
    """

    def __init__(
        self,
        work: Adapted,
        held: Sequence[Example],
        seed: int,
        eyes: Eyes | None,
        draw: Callable[[Sequence[str]], Tensor],
        prompts: Sequence[str],
    ) -> None:
        self.work, self.eyes, self._draw, self.prompts = work, eyes, draw, prompts
        self.draws = validation_draws(held, seed % 2**63)
        self.base = None
        if eyes is not None:  # the LoRA has learned nothing yet: these are the base's pictures
            with torch.no_grad():
                self.base = picture_features(eyes.clip_vision, draw(prompts))

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """The loss, and with eyes style gain and CLIP score; `score` sums them up."""
        errors = [
            native_errors(self.work, self.work.process, self.draws[start : start + ROWS])
            for start in range(0, len(self.draws), ROWS)
        ]
        loss = float(torch.cat(errors).mean())
        if self.eyes is None or self.base is None:
            return {"loss": loss, "score": -loss}
        seen = picture_features(self.eyes.clip_vision, self._draw(self.prompts))
        gain = style_gain(seen, self.base, self.eyes.references, Generator().manual_seed(0)).value
        numbers = {"loss": loss, "style_gain": gain, "score": gain}
        if self.eyes.texts is not None:
            now, before = (
                float(cosine_similarity(one, self.eyes.texts).mean()) for one in (seen, self.base)
            )
            numbers |= {"clip_score": 100 * now, "score": gain + now / max(before, 1e-3)}
        return numbers
