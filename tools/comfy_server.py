"""Starts a ComfyUI that has this pack and a base directory of its own. Standard library only."""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("__init__.py", "pyproject.toml", "js", "locales", "mini", "models", "nodes", "workflows")
BOOT_TIMEOUT_S = 600  # a cold disk and a busy machine; ten seconds are usual


class ServerError(Exception):
    """ComfyUI did not start; the text ends in the last lines of its log."""


def make_base_directory(base: Path, comfyui: Path) -> None:
    """Lay out a base directory: the pack under custom_nodes, ComfyUI's example pictures as input."""
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / "veduta"  # node help is looked up under the folder's name
    if not pack.is_symlink() and not pack.exists():
        _link_or_copy(pack)
    if not (base / "input").is_dir():
        shutil.copytree(comfyui / "input", base / "input")


def _link_or_copy(pack: Path) -> None:
    try:
        pack.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        pack.mkdir()
        for name in SHIPPED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, pack / name, ignore=shutil.ignore_patterns("runs"))
            elif source.is_file():
                shutil.copyfile(source, pack / name)


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def device_arguments(python: Path) -> list[str]:
    """`--cpu` where torch sees no accelerator; ComfyUI does not start there without it."""
    probe = "import torch; raise SystemExit(0 if torch.accelerator.is_available() else 1)"
    seen = subprocess.run([str(python), "-c", probe], stderr=subprocess.DEVNULL, check=False)
    return [] if seen.returncode == 0 else ["--cpu"]


def command(
    python: Path, comfyui: Path, base: Path, port: int, extra: Sequence[str] = ()
) -> list[str]:
    """The command line that starts ComfyUI offline, with nothing written outside of `base`."""
    start = [
        str(python),
        str(comfyui / "main.py"),
        "--base-directory",
        str(base),
        "--port",
        str(port),
    ]
    quiet = ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    return [*start, *quiet, *extra]


class ComfyServer:
    """A running ComfyUI, stopped on leaving the `with` block.

    Args:
        python: interpreter that has ComfyUI's requirements.
        comfyui: folder with main.py.
        base: base directory, laid out on entry; the log goes to `base/comfyui.log`.
        extra: further command line arguments.
    """

    def __init__(self, python: Path, comfyui: Path, base: Path, extra: Sequence[str] = ()) -> None:
        self.base = base
        self.address = f"127.0.0.1:{free_port()}"
        self.log = base / "comfyui.log"
        port = int(self.address.rpartition(":")[2])
        self._command = command(python, comfyui, base, port, extra)
        self._comfyui = comfyui

    def __enter__(self) -> "ComfyServer":
        make_base_directory(self.base, self._comfyui)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, cwd=self.base, env=environment
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log_text(self) -> str:
        """What ComfyUI has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End the process, by force if it does not listen."""
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"ComfyUI ended while starting:\n{self._log_tail()}")
            try:
                with urllib.request.urlopen(f"http://{self.address}/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer in {BOOT_TIMEOUT_S} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-25:])
