"""Style sets for the miniature, and the example of one that comes with the pack.

python tools/run_module.py mini.style_pictures     writes mini/style_example anew
"""

import shutil
from pathlib import Path

import cv2
import torch

from ..models.styleforge.style_set import StylePicture
from .painter import Painting
from .styles import figure_scene, paint_in_style, place_scene

EXAMPLE = Path(__file__).parent / "style_example"
EXAMPLE_STYLE = "collage"
SIZE = 128  # px a side, what the miniature draws
TRAINED_FROM, HELD_OUT_FROM = 20_000_000, 21_000_000  # first seeds
PLACES_AFTER, AUX_AFTER = 100_000, 500_000  # seeds, so that no two sets share a landscape
JPEG_QUALITY = 90


def figures(style: str, count: int, first: int = TRAINED_FROM) -> list[Painting]:
    """Pictures of people in a style."""
    return [paint_in_style(figure_scene(first + i), style, SIZE) for i in range(count)]


def places(style: str, count: int, first: int = TRAINED_FROM) -> list[Painting]:
    """Pictures of empty places in a style."""
    return [
        paint_in_style(place_scene(first + PLACES_AFTER + i), style, SIZE) for i in range(count)
    ]


def portraits(count: int, first: int = TRAINED_FROM) -> list[Painting]:
    """Aux pictures: people painted in oil, every second one from near."""
    return [
        paint_in_style(figure_scene(first + AUX_AFTER + i, close=i % 2 == 0), "oil", SIZE)
        for i in range(count)
    ]


def style_pictures(drawn: list[Painting], name: str) -> tuple[StylePicture, ...]:
    """Drawings as a style set holds them."""
    return tuple(
        StylePicture(
            pixels=torch.from_numpy(one.image).movedim(-1, 0).contiguous(),
            caption=one.caption,
            source=f"{name} {index}",
            original_size=(SIZE, SIZE),
        )
        for index, one in enumerate(drawn)
    )


def write_example() -> None:
    """Ten people and ten places in one style, and twenty Aux pictures."""
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    _write(EXAMPLE / "style" / "figures", figures(EXAMPLE_STYLE, 10))
    _write(EXAMPLE / "style" / "places", places(EXAMPLE_STYLE, 10))
    _write(EXAMPLE / "aux", portraits(20))


def _write(folder: Path, drawn: list[Painting]) -> None:
    folder.mkdir(parents=True)
    for index, one in enumerate(drawn):
        path = folder / f"{folder.name}_{index:02}.jpg"
        cv2.imwrite(str(path), one.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if folder.name != "aux":  # trained under the class word alone
            path.with_suffix(".txt").write_text(one.caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_example()
