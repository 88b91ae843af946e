"""How much the pack adds to ComfyUI's start: `python dev.py bench loading`.

Each run is a fresh process that imports ComfyUI and its own extra nodes, then loads one pack by its
path as ComfyUI does. Runs with this pack and with an empty one alternate, so that a busy machine
slows both; medians are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "loading.json"
MOST_S = 0.3  # of the project's own making: what a person does not notice in a start of ten seconds

EMPTY_PACK = """
from comfy_api.latest import ComfyExtension

class Empty(ComfyExtension):
    async def get_node_list(self):
        return []

async def comfy_entrypoint():
    return Empty()
"""

LOAD = """
import asyncio, json, sys, time, types
start = time.perf_counter()
sys.path[0] = sys.argv[1]
from comfy.cli_args import args
args.cpu = True
import nodes, server
server.PromptServer.instance = types.SimpleNamespace(send_sync=None)
asyncio.run(nodes.init_builtin_extra_nodes())
wall, cpu = time.perf_counter(), time.process_time()
loaded = asyncio.run(nodes.load_custom_node(sys.argv[2]))
times = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
print(json.dumps({"loaded": loaded, "host_s": wall - start, **times}))
"""


def load_once(comfyui: Path, pack: Path) -> dict[str, float]:
    """Times of one fresh process that loads `pack`, in seconds."""
    command = [sys.executable, "-c", LOAD, str(comfyui), str(pack)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    times = json.loads(answer.stdout.splitlines()[-1]) if answer.returncode == 0 else {}
    if not times.get("loaded"):
        raise SystemExit(f"the pack in {pack} did not load:\n{answer.stderr[-2000:]}")
    return times


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench loading", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes per pack")
    runs = parser.parse_args(argv).runs
    comfyui = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui").resolve()
    ours, empty = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "__init__.py").write_text(EMPTY_PACK)
        load_once(comfyui, ROOT)  # warms the disk; not counted
        for _ in range(runs):
            ours.append(load_once(comfyui, ROOT))
            empty.append(load_once(comfyui, Path(folder)))
    report(ours, empty)


def median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def report(ours: list[dict[str, float]], empty: list[dict[str, float]]) -> None:
    """Print one line per bar and keep the same as JSON."""
    added = median(ours, "wall_s") - median(empty, "wall_s")
    host = median(ours + empty, "host_s")
    verdict = "holds" if added < MOST_S else "falls short"
    print("what | ours | an empty pack | bound | verdict")
    print(
        f"seconds added to ComfyUI's start | {added:.3f} ({added / host:.1%} of {host:.1f}) | "
        f"{median(empty, 'wall_s'):.3f} | {MOST_S} | {verdict}"
    )
    row = {
        "what": "seconds added to ComfyUI's start",
        "ours": round(added, 4),
        "baseline": round(median(empty, "wall_s"), 4),
        "bound": MOST_S,
        "verdict": verdict,
        "share_of_start": round(added / host, 4),
        "cpu_s": round(median(ours, "cpu_s") - median(empty, "cpu_s"), 4),
        "runs": len(ours),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([row], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
