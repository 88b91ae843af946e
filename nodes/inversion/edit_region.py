"""Where an edit may change the picture, in the latent and in its pixels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.common.images import mask_to_b1hw
from ...models.inversion.editing.masks import (
    GatheredPlaces,
    blended,
    feathered,
    latent_mask,
    mask_at,
)
from ...models.inversion.method import AfterStep
from ...models.inversion.trajectory import Inversion

PIXELS, LATENT, OFF = KEEPS = ("latent and pixels", "latent", "off")
BLEND, BY_STEP = SOFTS = ("blend", "by step")
SAME_ASPECT = 0.02  # relative: a mask scaled to whole px is off by less


@dataclass(frozen=True, kw_only=True)
class Region:
    """The region of an edit.

    Args:
        mask: (b 1 h w) of the picture, 1 where it may change; None is everywhere.
        places: gathers where edit and source differ, and so narrows the region; of a single run.
        keep: of KEEPS: what is restored outside.
        soft: of SOFTS: what grey parts of the mask mean.
        feather_px: over which the pixels of edit and source mix, inside the mask.
    """

    mask: Tensor | None
    places: GatheredPlaces | None
    keep: str
    soft: str
    feather_px: int

    @property
    def restores(self) -> bool:
        """Whether anything is restored outside."""
        return self.keep != OFF and (self.mask is not None or self.places is not None)

    def after_step(self, inversion: Inversion, px: int) -> AfterStep | None:
        """What puts the source's states back outside, for a way down.

        Args:
            inversion: of the source, one sample for each of the edit's.
            px: of the picture for one place of the latent.

        Raises:
            ValueError: the states were not kept.
        """
        if not self.restores:
            return None
        if inversion.states is None:
            raise ValueError(
                "inversion keeps its end state only, a region needs them all; invert again with keep set to "
                "'all states', or set keep_outside to off"
            )
        size = (inversion.clean.shape[-2], inversion.clean.shape[-1])
        drawn = None if self.mask is None else latent_mask(_filled(self.mask, size, px), *size)

        def after_step(i: int, x: Tensor) -> Tensor:
            mask = torch.ones(1, 1, 1, 1) if drawn is None else drawn
            if self.soft == BY_STEP:
                mask = mask_at(mask, i / inversion.steps)
            mask = mask.to(x)
            if self.places is not None:
                mask = mask * self.places.mask().to(x)
            return blended(x, inversion.state(i).to(x), mask)

        return after_step

    def in_pixels(self, height: int, width: int, px: int) -> Tensor | None:
        """The region (b 1 h w) after a run; None is everywhere."""
        mask = self.mask
        if self.places is not None:
            places = self.places.mask().cpu()
            if places.ndim > 4:
                places = places.amax(2)  # a video: a place of any frame
            found = F.interpolate(places, scale_factor=px)[..., :height, :width]
            mask = found if mask is None else mask * found
        return mask

    def composite(self, edited: Tensor, source: Tensor, px: int) -> Tensor:
        """The edited pictures (b 3 h w) with the source's pixels outside, if that is wanted."""
        mask = self.in_pixels(edited.shape[-2], edited.shape[-1], px)
        if self.keep != PIXELS or mask is None:
            return edited
        if self.soft == BY_STEP:
            mask = (mask > 0).to(mask)
        return blended(edited, source.to(edited), feathered(mask, self.feather_px))


def checked_mask(mask: Tensor, batch: int, height: int, width: int) -> Tensor:
    """A MASK (b 1 h w) of the picture's size; one of the same shape in another size is scaled.

    Raises:
        ValueError: no MASK, another shape, or a number that cannot be paired.
    """
    theirs = (mask.shape[-1], mask.shape[-2])
    if abs(theirs[0] * height / (theirs[1] * width) - 1) > SAME_ASPECT:
        raise ValueError(
            f"mask is {theirs[0]} x {theirs[1]} px, the picture is {width} x {height} px, the same "
            "proportions are needed; draw the mask on the picture that was inverted"
        )
    return mask_to_b1hw(mask, batch, height, width)


def _filled(mask: Tensor, size: tuple[int, int], px: int) -> Tensor:
    """A mask continued to the right and the bottom over what the picture was padded with."""
    height, width = size[0] * px, size[1] * px
    return F.pad(mask, (0, width - mask.shape[-1], 0, height - mask.shape[-2]), mode="replicate")
