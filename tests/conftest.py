"""Make this checkout importable as `veduta`, whatever its folder is called; start ComfyUI on demand."""

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from veduta.tools.comfy_client import ComfyClient
    from veduta.tools.comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui").resolve()

# `import nodes` must keep meaning ComfyUI's own module, never our folder.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

package = types.ModuleType("veduta")
package.__path__ = [str(ROOT)]
sys.modules["veduta"] = package


class _RootIsAFolder:
    """Keeps pytest from importing the root, which is a package only inside ComfyUI."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-surface",
        action="store_true",
        help="write tests/data/surface.json anew; refused if anything public changed or vanished",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsAFolder(), "veduta-root-is-a-folder")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """Folder of the ComfyUI under test."""
    if not (COMFYUI / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {COMFYUI}; run `python dev.py setup` or set COMFYUI_PATH")
    return COMFYUI


@pytest.fixture(scope="session")
def comfy_server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[ComfyServer]":
    """ComfyUI as its own process, on the CPU, with the pack under custom_nodes."""
    from veduta.tools.comfy_server import ComfyServer

    base = tmp_path_factory.mktemp("comfyui")
    with ComfyServer(Path(sys.executable), comfyui, base, ["--cpu"]) as server:
        yield server


@pytest.fixture
def comfy_client(comfy_server: "ComfyServer") -> "Iterator[ComfyClient]":
    """A connection to `comfy_server`."""
    from veduta.tools.comfy_client import ComfyClient

    with ComfyClient(comfy_server.address) as client:
        yield client
