"""A real ComfyUI inside the test process; the server of its own is in `tests/conftest.py`."""

import asyncio
import os
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui").resolve()

if (COMFYUI / "main.py").is_file():
    sys.path.insert(0, str(COMFYUI))
    from comfy.cli_args import args

    args.cpu = True  # before any other part of ComfyUI looks at it


@pytest.fixture(scope="session")
def node_classes(comfyui: Path) -> dict[str, type]:
    """Every node of the pack, loaded from its path the way ComfyUI does it: id -> class."""
    import server

    import nodes

    if not hasattr(server.PromptServer, "instance"):  # what ComfyUI sets before it loads packs
        server.PromptServer.instance = types.SimpleNamespace(
            client_id=None, last_node_id=None, send_sync=lambda *_: None
        )
    before = set(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(ROOT))), "ComfyUI could not load the pack"
    loaded = nodes.NODE_CLASS_MAPPINGS.keys() - before
    return {name: nodes.NODE_CLASS_MAPPINGS[name] for name in sorted(loaded)}
