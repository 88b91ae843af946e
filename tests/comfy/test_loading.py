"""The pack loads by its path, quietly, and pulls in nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Loads the pack in a fresh ComfyUI and tells what our files imported and what came in with them.
LOAD = """
import builtins, contextlib, io, json, logging, socket, sys, types
root, comfyui = sys.argv[1:]
sys.path[0] = comfyui
from comfy.cli_args import args
args.cpu = True
import asyncio, nodes, server
server.PromptServer.instance = types.SimpleNamespace(send_sync=None)
import comfy_api.latest, comfy_extras.nodes_custom_sampler  # what ComfyUI has loaded by then

asked, real_import = set(), builtins.__import__
def recording(name, globals=None, locals=None, fromlist=(), level=0):
    importer = str((globals or {}).get("__file__") or "")
    if importer.startswith(root + "/") and not importer.startswith(comfyui) and level == 0:
        asked.add(name.partition(".")[0])
    return real_import(name, globals, locals, fromlist, level)

def refuse(*_):
    raise AssertionError("the pack uses the network while it is loaded")

before, printed = set(sys.modules), io.StringIO()
builtins.__import__, socket.socket.connect = recording, refuse
with contextlib.redirect_stdout(printed):
    loaded = asyncio.run(nodes.load_custom_node(root))
builtins.__import__ = real_import
new = {name.partition(".")[0] for name in set(sys.modules) - before}
known = [name for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("Veduta")]
print(json.dumps({"loaded": loaded, "asked": sorted(asked), "new": sorted(new), "nodes": known,
                  "printed": printed.getvalue(), "path": root in sys.path}))
"""


@pytest.fixture(scope="module")
def report(comfyui: Path) -> dict:
    command = [sys.executable, "-c", LOAD, str(ROOT), str(comfyui)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1]) | {"log": answer.stderr}


def test_pack_loads_from_its_path(report: dict):
    assert report["loaded"], report["log"]
    assert {"VedutaLoadMini", "VedutaAnchor", "VedutaMeasureComposition"} <= set(report["nodes"])


@pytest.mark.parametrize("package", ["diffusers", "transformers", "cv2", "kornia", "torchmetrics"])
def test_heavy_package_waits_until_a_node_needs_it(report: dict, package: str):
    assert package not in report["asked"]  # by one of our files, even if ComfyUI has it already
    assert package not in report["new"]  # through something that we import


def test_nothing_is_printed(report: dict):
    assert report["printed"] == ""


def test_search_path_stays_as_it_was(report: dict):
    assert not report["path"]


def test_every_node_is_named_and_placed(node_classes: dict[str, type]):
    for name, node_class in node_classes.items():
        schema = node_class.GET_SCHEMA()
        assert name.startswith("Veduta")
        assert name.isidentifier()
        assert schema.category.partition("/")[0] == "Veduta", name
        assert schema.display_name, name
        assert schema.description, name
