"""Who may import whom, read from the syntax trees and checked once by importing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = {
    "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras",
    "execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server",
}  # fmt: skip
OWN_FOLDERS = {"veduta", "models", "mini", "bench", "tests", "tools", "dev"}  # never absolute
NOT_SHIPPED_LAYERS = {"mini", "bench", "tests", "tools"}


def pack_files() -> list[Path]:
    folders = [ROOT / "models", ROOT / "nodes"]
    return [ROOT / "__init__.py", *(path for folder in folders for path in folder.rglob("*.py"))]


def imported_modules(source: str, module: tuple[str, ...]) -> list[tuple[bool, tuple[str, ...]]]:
    """Every import of a file as (is it ours, dotted parts); `module` is the file's own place."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(False, tuple(alias.name.split("."))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((False, tuple((node.module or "").split("."))))
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level]
            parts = tuple((node.module or "").split(".")) if node.module else ()
            names = [base + parts] if parts else [(*base, alias.name) for alias in node.names]
            found += [(True, name) for name in names]
    return found


def is_allowed(module: tuple[str, ...], own: bool, imported: tuple[str, ...]) -> bool:
    """Whether the file at `module` may import `imported`."""
    if not own:
        knows_comfyui = module[0] != "models"
        return imported[0] not in OWN_FOLDERS and (knows_comfyui or imported[0] not in COMFYUI)
    if imported[0] in NOT_SHIPPED_LAYERS:
        return False
    layer, *rest = module
    if layer == "models":
        return imported[0] == "models" and imported[1] in (rest[0], "common")
    if layer == "nodes" and rest[0] != "__init__":
        sideways = imported[0] == "nodes" and imported[1] not in (rest[0], "host")
        return imported[0] in ("models", "nodes") and not sideways
    return imported[0] == "nodes"


def forbidden_imports(source: str, module: tuple[str, ...]) -> list[str]:
    found = imported_modules(source, module)
    return [".".join(name) for own, name in found if not is_allowed(module, own, name)]


def place(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).with_suffix("").parts


@pytest.mark.parametrize("path", pack_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_only_what_its_layer_may(path: Path):
    assert forbidden_imports(path.read_text(encoding="utf-8"), place(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (("models", "composition", "score"), "import comfy.utils"),
        (("models", "composition", "score"), "from folder_paths import models_dir"),
        (("models", "composition", "score"), "from ...nodes import composition"),
        (("models", "composition", "score"), "from ... import nodes"),
        (("models", "composition", "score"), "from ..saliency.maps import residual"),
        (("models", "common", "images"), "from ..composition import anchor"),
        (("models", "composition", "score"), "from veduta.models.common import images"),
        (("nodes", "composition"), "from . import mini"),
        (("nodes", "composition"), "from .mini import LoadMini"),
        (("nodes", "host", "progress"), "from ..composition import NODES"),
        (("nodes", "composition"), "from ..mini import landscapes"),
        (("nodes", "composition"), "from models.composition import anchor"),
        (("__init__",), "from .models.composition import anchor"),
    ],
)
def test_planted_import_is_caught(module: tuple[str, ...], source: str):
    assert forbidden_imports(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (("models", "composition", "score"), "from ..common.anchor import Anchor"),
        (("models", "composition", "score"), "from ..common.images import image_to_bchw"),
        (("nodes", "composition"), "from comfy_api.latest import io"),
        (("nodes", "composition"), "from ..models.composition import score"),
        (("nodes", "composition"), "from .host.progress import progress_steps"),
        (("nodes", "__init__"), "from . import composition, mini"),
        (("__init__",), "from .nodes import NODES"),
    ],
)
def test_import_downward_is_allowed(module: tuple[str, ...], source: str):
    assert forbidden_imports(source, module) == []


IMPORT_ALL = """
import importlib, sys, types

class Recorder:
    asked = []

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        cls.asked.append(name)

package = types.ModuleType("veduta")
package.__path__ = [sys.argv[1]]
sys.modules["veduta"] = package
sys.meta_path.insert(0, Recorder)
for name in sys.argv[3:]:
    importlib.import_module(name)
print(sorted({name.partition(".")[0] for name in Recorder.asked} & set(sys.argv[2].split(","))))
"""


def test_importing_all_of_models_asks_for_nothing_of_comfyui():
    paths = sorted((ROOT / "models").rglob("*.py"))
    names = [".".join(("veduta", *place(path))).removesuffix(".__init__") for path in paths]
    command = [sys.executable, "-c", IMPORT_ALL, str(ROOT), ",".join(sorted(COMFYUI)), *names]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"
