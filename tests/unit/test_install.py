import ast
import errno
import io
import runpy
import sys
import tarfile
from pathlib import Path

import pytest

from veduta.tools import install

FOLDER = "vendor/ComfyUI"


def make_archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"pack-1.0/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(f"pack-1.0/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def unpack(archive: Path, tmp_path: Path) -> Path:
    target = tmp_path / "target"
    install.unpack_folder(archive, FOLDER, target, tmp_path / "work" / "partial")
    return target


def leftovers(tmp_path: Path) -> list[str]:
    found = (path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".gz")
    return [str(path.relative_to(tmp_path)) for path in found]


def test_only_the_named_folder_is_unpacked(tmp_path: Path):
    files = {f"{FOLDER}/main.py": b"1", f"{FOLDER}/a/b.py": b"2", "setup.py": b"3"}
    target = unpack(make_archive(tmp_path / "a.tar.gz", files), tmp_path)
    assert {p.relative_to(target).as_posix() for p in target.rglob("*.py")} == {"main.py", "a/b.py"}
    assert (target / "a" / "b.py").read_bytes() == b"2"


def test_an_empty_target_folder_is_no_obstacle(tmp_path: Path):
    archive = make_archive(tmp_path / "a.tar.gz", {f"{FOLDER}/main.py": b"1"})
    (tmp_path / "target").mkdir()
    assert (unpack(archive, tmp_path) / "main.py").is_file()


def test_links_are_left_out(tmp_path: Path):
    archive = make_archive(
        tmp_path / "a.tar.gz", {f"{FOLDER}/main.py": b"1"}, {f"{FOLDER}/etc": "/etc"}
    )
    assert [path.name for path in unpack(archive, tmp_path).iterdir()] == ["main.py"]


@pytest.mark.parametrize("name", ["../../evil.py", "a/../../evil.py", "C:evil.py", "..\\evil.py"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str):
    archive = make_archive(tmp_path / "a.tar.gz", {f"{FOLDER}/{name}": b"1"})
    with pytest.raises(install.SetupError, match="lies outside"):
        unpack(archive, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_truncated_archive_leaves_nothing(tmp_path: Path):
    noise = bytes((i * i * 31 + i // 7) % 251 for i in range(200_000))
    files = {f"{FOLDER}/main.py": noise, f"{FOLDER}/b.py": noise[::-1]}
    archive = make_archive(tmp_path / "a.tar.gz", files)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(install.SetupError, match=r"a\.tar\.gz is damaged .*; delete it"):
        unpack(archive, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_foreign_archive_leaves_nothing(tmp_path: Path):
    archive = make_archive(tmp_path / "a.tar.gz", {"readme.txt": b"1"})
    with pytest.raises(install.SetupError, match="has no folder vendor/ComfyUI; fetch"):
        unpack(archive, tmp_path)
    assert not (tmp_path / "target").exists()


def test_a_full_disk_while_unpacking_leaves_nothing(tmp_path: Path, monkeypatch):
    archive = make_archive(tmp_path / "a.tar.gz", {f"{FOLDER}/{i}.py": b"1" for i in range(3)})
    written = []

    def write_two(source, file):
        written.append(file.write(source.read()))
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(install.shutil, "copyfileobj", write_two)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_told_in_a_sentence(monkeypatch):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(install, "_make_venv", fail)
    with pytest.raises(install.SetupError, match=r"the disk is full .*; make room and run"):
        install.set_up()


def test_another_file_under_the_archives_name_is_refused(tmp_path: Path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(install.SetupError, match=r"sha256 .* was needed; the download is broken"):
        install.check_archive(archive, "0" * 64)


def test_a_step_runs_once_per_set_of_inputs(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(install, "STAMPS", tmp_path / "stamps")
    runs = []
    for inputs in (["a"], ["a"], ["b"], ["b"]):
        install._run_once("step", inputs, lambda: runs.append(1), "a step")
    assert len(runs) == 2


def test_a_failed_step_is_done_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(install, "STAMPS", tmp_path / "stamps")
    runs = []

    def fail_first():
        runs.append(1)
        if len(runs) == 1:
            raise install.SetupError("broken line")

    with pytest.raises(install.SetupError):
        install._run_once("step", ["a"], fail_first, "a step")
    install._run_once("step", ["a"], fail_first, "a step")
    assert len(runs) == 2


def test_pip_is_tried_twice_then_told_in_a_sentence(monkeypatch):
    calls = []

    def failing(command, _news):
        calls.append(command)
        return 1, ["no route to host"]

    monkeypatch.setattr(install, "_run_and_show", failing)
    with pytest.raises(install.SetupError, match=r"torch was not installed.*run the command again"):
        install._pip(["install", "torch"], "torch was not installed")
    assert len(calls) == 2


def test_only_news_of_a_long_command_is_shown(capfd):
    script = "print('Downloading a'); print('chatter'); raise SystemExit(3)"
    code, words = install._run_and_show([sys.executable, "-c", script], ("Downloading",))
    assert (code, words) == (3, ["Downloading a", "chatter"])
    assert capfd.readouterr().out.strip() == "Downloading a"


def test_an_old_python_is_refused_before_anything_else(root: Path, monkeypatch):
    ast.parse((root / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"this is Python 3\.9, 3\.10 or newer is needed; start"):
        runpy.run_path(str(root / "dev.py"))


def test_torch_and_companions_are_taken_out_of_requirements():
    text = "torch\ntorchsde\ntorchvision>=0.2\ntorchaudio==2\nnumpy\n"
    assert install.without_torch(text) == "torchsde\nnumpy\n"
