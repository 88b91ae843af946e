"""Runs the example workflows in a real ComfyUI and writes what they made to `build/demo`.

Started by `python dev.py demo [names] [--thumbnails]`. Each workflow is read as the page saves it,
handed in over HTTP and followed over the websocket, as the page does it.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_client import UI_ONLY_TYPES, ComfyClient, Picture, Progress, Prompt, PromptError
from comfy_server import ComfyServer, ServerError, device_arguments
from demo_report import thumbnail, write_report

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
OUTPUT = ROOT / "build" / "demo"
TIMEOUT_S = 1800  # a slow machine drawing a batch on one core


@dataclass
class Result:
    """What came of one workflow."""

    name: str
    notes: list[str]
    titles: dict[str, str]
    seconds: float = 0.0
    error: str = ""
    pictures: list[Picture] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


class ProgressLine:
    """One line that shows how far a workflow is; rewritten in place on a terminal."""

    def __init__(self, name: str, prompt: Prompt, titles: dict[str, str]) -> None:
        self._name, self._titles, self._total = name, titles, len(prompt)
        self._begun: set[str] = set()
        self._live = sys.stdout.isatty()

    def __call__(self, progress: Progress) -> None:
        new = progress.node_id not in self._begun
        self._begun.add(progress.node_id)
        title = self._titles.get(progress.node_id, progress.node_id)
        text = f"  {self._name}: node {len(self._begun)} of {self._total}, {title}"
        if self._live:
            step = f" {progress.step}/{progress.steps}" if progress.steps > 1 else ""
            print(f"\r\033[K{text}{step}", end="", flush=True)
        elif new:
            print(text, flush=True)

    def end(self, text: str) -> None:
        print(f"{chr(13) + chr(27) + '[K' if self._live else ''}{text}", flush=True)


def main() -> int:
    """Run the chosen workflows; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Run the example workflows.")
    parser.add_argument("names", nargs="*", help="only these workflows (file names without .json)")
    parser.add_argument("--thumbnails", action="store_true", help="renew workflows/*.jpg")
    options = parser.parse_args()
    runnable = [p for p in sorted(WORKFLOWS.glob("*.json")) if not needs_weights(p)]
    paths = [p for p in runnable if p.stem in (options.names or [p.stem])]
    if not paths:
        print(f"there is no such workflow in {WORKFLOWS}", file=sys.stderr)
        return 2
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    results = _run_all(paths)
    for result in results:
        _save(result)
        if options.thumbnails and not result.error and result.pictures:
            (WORKFLOWS / f"{result.name}.jpg").write_bytes(thumbnail(result.pictures))
    write_report(OUTPUT / "report.html", results)
    failed = [result.name for result in results if result.error]
    print(f"\npictures and report: {OUTPUT / 'report.html'}")
    print("to use the workflows yourself: python dev.py serve, then Templates > veduta in the page")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _run_all(paths: list[Path]) -> list[Result]:
    python = Path(sys.executable)
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory(prefix="veduta-demo-") as folder:
        print("starting ComfyUI with the pack ...", flush=True)
        with (
            ComfyServer(python, comfyui, Path(folder), device_arguments(python)) as server,
            ComfyClient(server.address) as client,
        ):
            print(f"ComfyUI answers at {server.address}; {len(paths)} workflows", flush=True)
            return [_run(client, path) for path in paths]


def _run(client: ComfyClient, path: Path) -> Result:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    titles = {str(node["id"]): _title(node) for node in workflow["nodes"]}
    result = Result(path.stem, notes_of(workflow), titles)
    start = time.monotonic()
    line = None
    try:
        prompt = client.prompt_of(workflow)
        line = ProgressLine(path.stem, prompt, titles)
        outputs = client.run(prompt, line, TIMEOUT_S)
        result.pictures = client.pictures(outputs)
        result.texts = {node: text for node, shown in outputs.items() if (text := _text(shown))}
        if not result.pictures:
            result.error = "no node showed or saved a picture"
    except (PromptError, OSError) as error:
        result.error = str(error)
    result.seconds = time.monotonic() - start
    told = f"failed: {result.error}" if result.error else f"{len(result.pictures)} pictures"
    text = f"{path.stem}: {told} ({result.seconds:.0f} s)"
    line.end(text) if line else print(text, flush=True)
    return result


def needs_weights(path: Path) -> bool:
    """Whether a workflow is for weights that do not come with the pack."""
    return "needs_weights" in json.loads(path.read_text(encoding="utf-8")).get("extra", {})


def notes_of(workflow: dict[str, Any]) -> list[str]:
    """The texts of a workflow's note nodes."""
    notes = [node for node in workflow["nodes"] if node["type"] in UI_ONLY_TYPES]
    return [str(node["widgets_values"][0]) for node in notes if node.get("widgets_values")]


def _title(node: dict[str, Any]) -> str:
    return node.get("title") or node["type"]


def _text(shown: dict[str, Any]) -> str:
    text = shown.get("text") or ""
    return text if isinstance(text, str) else "\n".join(map(str, text))


def _save(result: Result) -> None:
    folder = OUTPUT / result.name
    folder.mkdir()
    for number, picture in enumerate(result.pictures, start=1):
        name = f"{number:02}_{picture.node_id.replace(':', '-')}{Path(picture.filename).suffix}"
        (folder / name).write_bytes(picture.data)
    for node, text in result.texts.items():
        (folder / f"text_{node.replace(':', '-')}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
