"""Runs a module of this checkout as `veduta.<name>`, whatever the checkout's folder is called.

    python tools/run_module.py bench.composition [arguments]

ComfyUI computes on the CPU where torch sees no accelerator, or with --cpu among the arguments.

The checkout itself never enters `sys.path`: there its `nodes/` would hide ComfyUI's `nodes`.
"""

import os
import runpy
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Register the alias package, put ComfyUI first, hand over to the module."""
    package = types.ModuleType("veduta")
    package.__path__ = [str(ROOT)]
    sys.modules["veduta"] = package
    sys.path[0] = os.environ.get("COMFYUI_PATH") or str(ROOT / ".comfyui")
    name, sys.argv = sys.argv[1], sys.argv[1:]
    import torch
    from comfy.cli_args import args

    # before any other part of ComfyUI looks at it
    args.cpu = "--cpu" in sys.argv or not torch.accelerator.is_available()
    runpy.run_module(f"veduta.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
