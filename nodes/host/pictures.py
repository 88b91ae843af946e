"""Pictures to train on: an IMAGE batch, or a folder with a caption beside each picture."""

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...models.common.images import image_to_bchw

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
MASK_SUFFIX = ".mask.png"  # of a file beside a picture: boat.mask.png belongs to boat.jpg
WIDE = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0}  # modes of 16-bit grey


@dataclass(frozen=True)
class Picture:
    """One picture, read when it is needed."""

    name: str
    caption: str
    load: Callable[[], Tensor]  # (3 h w), 0..1
    mask: Path | None = None  # of a folder's picture, where a mask lies beside it


def batch_pictures(image: Tensor, caption: str) -> list[Picture]:
    """The pictures of an IMAGE batch.

    Args:
        image: (b h w c).
        caption: one line for all, or one line per picture.

    Raises:
        ValueError: no IMAGE, or another number of lines.
    """
    planes = image_to_bchw(image, "images")
    captions = caption_lines(caption, len(planes))
    return [
        Picture(f"images {index + 1}", captions[index], lambda plane=plane: plane)
        for index, plane in enumerate(planes)
    ]


def folder_pictures(folder: Path, category: str, caption: str) -> list[Picture]:
    """The pictures of a folder and of its sub-folders, by name.

    Args:
        folder: as from `training_folder`.
        category: a sub-folder, whose pictures alone are taken; "" for all of them.
        caption: for pictures without a .txt of the same name: one line for all, or one per picture.

    Raises:
        ValueError: there is no such sub-folder, no picture, or another number of lines.
    """
    root = category_folder(folder, category)
    paths = picture_paths(root)
    if not paths:
        raise ValueError(
            f"{root} holds no picture, one at least is needed ({', '.join(sorted(SUFFIXES))}); put "
            "some there or choose another folder"
        )
    captions = caption_lines(caption, len(paths))
    return [
        Picture(
            str(path.relative_to(root)),
            _own_caption(path) or line,
            lambda path=path: read_picture(path),
            mask_of(path),
        )
        for path, line in zip(paths, captions, strict=True)
    ]


def picture_paths(folder: Path) -> list[Path]:
    """Every picture file below a folder, by name; masks beside pictures are none of them."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path for path in found if path.is_file() and not path.name.lower().endswith(MASK_SUFFIX)
    )


def mask_of(path: Path) -> Path | None:
    """The mask that lies beside a picture, if one does."""
    mask = path.with_suffix(MASK_SUFFIX)
    return mask if mask.is_file() else None


def training_folder(folder: str) -> Path:
    """The folder a user names: inside ComfyUI's input directory, or anywhere by its whole path.

    Raises:
        ValueError: there is no such folder, or a relative path leads out of the input directory.
    """
    inside = Path(folder_paths.get_input_directory()).resolve()
    path = Path(folder.strip())
    if path.is_absolute():
        found = path
    else:
        found = (inside / path).resolve()
        if not found.is_relative_to(inside):
            raise ValueError(
                f"folder is {folder!r}, which leads out of ComfyUI's input directory; give a folder "
                "inside it, or the whole path"
            )
    if not found.is_dir():
        raise ValueError(
            f"folder is {folder!r}, there is no folder {found}; put the pictures into a folder inside "
            "ComfyUI's input directory and give its name"
        )
    return found


def category_folder(folder: Path, category: str) -> Path:
    """The sub-folder of a category, or the folder itself for ""; ValueError without one."""
    if not category.strip():
        return folder
    categories = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if category.strip() not in categories:
        told = ", ".join(categories) or "there are none"
        raise ValueError(
            f"category is {category!r}, a sub-folder of {folder.name} is needed ({told}); choose one, "
            "or leave it empty for all pictures"
        )
    return folder / category.strip()


def caption_lines(caption: str, count: int) -> list[str]:
    """One caption per picture out of one line for all or one line each.

    Raises:
        ValueError: another number of lines.
    """
    lines = [line.strip() for line in caption.strip().splitlines()]
    if len(lines) <= 1:
        return (lines or [""]) * count
    if len(lines) != count:
        raise ValueError(
            f"caption holds {len(lines)} lines for {count} pictures; write one line for all, or one per "
            "picture in the order of their names"
        )
    return lines


def _own_caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    if not text.is_file():
        return ""
    content = text.read_bytes()
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return " ".join(content.decode(encoding).split())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{text.name} is not text in UTF-8 (byte {error.start} is no part of it); open it in an "
            f"editor and save it as UTF-8, or remove it from {text.parent}"
        ) from error


def read_picture(path: Path) -> Tensor:
    """A still picture of any kind that Pillow reads, upright, what is transparent over white.

    Returns:
        (3 h w), 0..1.

    Raises:
        ValueError: the file is damaged, no picture, or animated.
    """
    try:
        with Image.open(path) as file:
            frames = getattr(file, "n_frames", 1)
            upright = _eight_bits(ImageOps.exif_transpose(file)).convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{path.name} cannot be read as a picture ({error}); remove it from {path.parent}"
        ) from error
    if frames > 1:
        raise ValueError(
            f"{path.name} holds {frames} frames, a still picture is needed; save one of them as a file "
            f"of its own and remove this one from {path.parent}"
        )
    pixels = torch.from_numpy(np.array(upright)).float() / 255.0
    return image_to_bchw(pixels[None], path.name)[0]


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey scaled down, which Pillow would cut off at 255 instead."""
    if picture.mode not in WIDE:
        return picture
    values = np.asarray(picture, np.float32) * (255.0 / WIDE[picture.mode])
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def rgb_bytes(picture: Tensor) -> np.ndarray:
    """(h w 3) of 8 bits."""
    return picture.detach().cpu().mul(255.0).round().to(torch.uint8).movedim(0, -1).numpy()


def as_pil(picture: Tensor) -> Image.Image:
    """A picture (3 h w), for previews."""
    return Image.fromarray(np.ascontiguousarray(rgb_bytes(picture)))
