"""Development commands of Veduta; only Python 3.10 or newer is needed, the rest is set up on the way.

python dev.py demo             run the example workflows in a real ComfyUI, write a report
python dev.py test [args]      lint, types and all tests; with arguments: pytest with these only
python dev.py serve [args]     start ComfyUI with the pack and print its address
python dev.py bench NAME       measure; one line per bar
python dev.py mini [args]      train the miniature model again
python dev.py lint             format, lint and types only
python dev.py setup            only the set-up that all of these begin with
"""

import os
import shutil
import subprocess
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - before anything that such a Python cannot read
    arrived = f"{sys.version_info[0]}.{sys.version_info[1]}"
    sys.exit(f"this is Python {arrived}, 3.10 or newer is needed; start dev.py with a newer one")

from tools import comfy_server, install

ROOT = install.ROOT
MOST_WORKERS = 4  # each of them holds torch and a ComfyUI


def main(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    commands = {
        "setup": setup, "demo": demo, "test": test, "serve": serve,
        "bench": bench, "mini": mini, "lint": lint,
    }  # fmt: skip
    if not arguments or arguments[0] not in commands:
        print((__doc__ or "").strip())
        return 0 if arguments in (["--help"], ["-h"]) else 2
    try:
        install.set_up()
        return commands[arguments[0]](arguments[1:])
    except install.SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the next run goes on from here", file=sys.stderr)
        return 130


def setup(_arguments: list[str]) -> int:
    """Everything was done by the time a command runs."""
    print(f"ready: Python in {install.VENV}, ComfyUI in {install.comfyui_path()}")
    if not install.find_chromium():
        print("no Chromium or Chrome on this machine: the browser tests will be skipped")
    return 0


def demo(arguments: list[str]) -> int:
    """Run every example workflow and write build/demo/report.html."""
    return _python("tools/demo.py", *arguments)


def serve(arguments: list[str]) -> int:
    """Start ComfyUI for a person, in a base directory that stays."""
    base, comfyui = ROOT / "build" / "serve", install.comfyui_path()
    comfy_server.make_base_directory(base, comfyui)
    port = int(arguments[arguments.index("--port") + 1]) if "--port" in arguments else 8188
    device = comfy_server.device_arguments(install.venv_python())
    command = comfy_server.command(
        install.venv_python(), comfyui, base, port, [*device, *arguments]
    )
    print(f"ComfyUI with Veduta: http://127.0.0.1:{port} (once it says so below; Ctrl-C ends it)")
    print(f"your checkpoints go to {base / 'models'}; the examples: Templates > veduta", flush=True)
    return subprocess.run(command, check=False, cwd=base).returncode


def bench(arguments: list[str]) -> int:
    """Run bench/NAME.py."""
    names = sorted(path.stem for path in (ROOT / "bench").glob("[a-z]*.py"))
    if not arguments or arguments[0] not in names:
        print(f"name one of the benches: {', '.join(names)}", file=sys.stderr)
        return 2
    return _python("tools/run_module.py", f"bench.{arguments[0]}", *arguments[1:])


def mini(arguments: list[str]) -> int:
    """Run mini/train.py."""
    return _python("tools/run_module.py", "mini.train", *arguments)


def lint(_arguments: list[str]) -> int:
    """Format, lint and types; every check runs, whatever the one before said."""
    checks = {
        "ruff format": ["-m", "ruff", "format", "--check", "."],
        "ruff check": ["-m", "ruff", "check", "."],
        "pyright": ["-m", "pyright"],
    }
    failed = [name for name, command in checks.items() if _python(*command) != 0]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


def test(arguments: list[str]) -> int:
    """All checks and tests; with arguments only pytest with them."""
    if arguments:
        return _pytest(arguments)
    failed = []
    if lint([]) != 0:
        failed.append("lint")
    if _node_tests() != 0:
        failed.append("node tests")
    if _all_tests() != 0:
        failed.append("pytest")
    if failed and failed != ["pytest"]:
        print(f"failed: {', '.join(failed)}; see above")
    return len(failed)


def _node_tests() -> int:
    scripts = sorted((ROOT / "tests" / "js").glob("*.test.mjs"))
    if not scripts:
        return 0
    if not shutil.which("node"):
        print("no node on this machine: the tests of js/ are skipped")
        return 0
    return subprocess.run(["node", "--test", *map(str, scripts)], check=False).returncode


def _all_tests() -> int:
    """File by file on several processes of one thread each, which is faster than the reverse."""
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    return _python("-m", "pytest", "-n", str(workers), "--dist", "loadfile", OMP_NUM_THREADS="1")


def _pytest(arguments: list[str]) -> int:
    return _python("-m", "pytest", *arguments)


def _python(*arguments: str, **variables: str) -> int:
    """Run the environment's Python from the root of the checkout, with more variables set."""
    environment = {**os.environ, "COMFYUI_PATH": str(install.comfyui_path()), **variables}
    command = [str(install.venv_python()), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
