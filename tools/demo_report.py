"""The demo's one-page report, pictures and all in one file, and the thumbnails of the workflows."""

import base64
import html
import io
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from comfy_client import Picture
from markdown_it import MarkdownIt
from PIL import Image, ImageOps

THUMBNAIL_PX = 512
GAP_PX = 8
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-weight: 600; } h2 { margin-top: 3rem; border-top: 1px solid #8884; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } small { color: #888; font-weight: 400; }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; }
.pictures img { width: 224px; height: auto; border-radius: 4px; image-rendering: auto; }
pre { background: #8881; padding: .75rem 1rem; border-radius: 4px; overflow-x: auto; }
.note { color: #777; } .note h2 { font-size: 1rem; margin: 0; border: 0; padding: 0; }
p.error { background: #c002; border-left: 4px solid #c00; padding: .5rem 1rem; }
"""


class Shown(Protocol):
    """The parts of a workflow's result that the report shows."""

    name: str
    notes: list[str]
    titles: dict[str, str]
    seconds: float
    error: str
    pictures: list[Picture]
    texts: dict[str, str]


def write_report(path: Path, results: Sequence[Shown]) -> None:
    """Write one self-contained page with every workflow's pictures, texts and errors."""
    done = sum(not result.error for result in results)
    summary = f"{done} of {len(results)} workflows ran, {time.strftime('%Y-%m-%d %H:%M')}"
    body = "".join(_section(result) for result in results)
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>Veduta demo</title>"
        f"<style>{STYLE}</style><h1>Veduta <small>{summary}</small></h1>{body}</html>"
    )
    path.write_text(page, encoding="utf-8")


def _section(result: Shown) -> str:
    heading = html.escape(result.name.replace("_", " ").capitalize())
    parts = [f"<h2>{heading} <small>{result.seconds:.0f} s</small></h2>"]
    markdown = MarkdownIt("js-default", {"html": False})
    parts += [f"<div class=note>{markdown.render(note)}</div>" for note in result.notes[:1]]
    if result.error:
        parts.append(f"<p class=error>{html.escape(result.error)}</p>")
    for node, pictures in groupby(result.pictures, key=lambda picture: picture.node_id):
        images = "".join(f"<img src='{_data_url(picture)}' alt=''>" for picture in pictures)
        parts.append(f"<h3>{_title(result, node)}</h3><div class=pictures>{images}</div>")
    for node, text in result.texts.items():
        parts.append(f"<h3>{_title(result, node)}</h3><pre>{html.escape(text)}</pre>")
    return "".join(parts)


def _title(result: Shown, node: str) -> str:
    return html.escape(result.titles.get(node, node))


def _data_url(picture: Picture) -> str:
    kind = Path(picture.filename).suffix.lstrip(".").lower() or "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture.data).decode()}"


def thumbnail(pictures: Sequence[Picture]) -> bytes:
    """A square JPEG of up to four pictures, saved ones before previews."""
    ranked = [p for p in pictures if p.kind == "output"] or list(pictures)
    count = 4 if len(ranked) >= 4 else 1
    side = 2 if count == 4 else 1
    cell = (THUMBNAIL_PX - GAP_PX * (side - 1)) // side
    sheet = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), "white")
    for index, picture in enumerate(ranked[:count]):
        image = ImageOps.contain(Image.open(io.BytesIO(picture.data)).convert("RGB"), (cell, cell))
        row, column = divmod(index, side)
        left = column * (cell + GAP_PX) + (cell - image.width) // 2
        top = row * (cell + GAP_PX) + (cell - image.height) // 2
        sheet.paste(image, (left, top))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=88)
    return file.getvalue()
