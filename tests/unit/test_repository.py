"""Facts about the checkout itself: what is shipped, and that its lists agree with each other."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def names(text: str) -> set[str]:
    """Package names of a requirements text, in the spelling of pip."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] not in "#-"]
    return {re.split(r"[\s<>=~!;\[]", line)[0].lower().replace("_", "-") for line in lines}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path",
    [
        "models/common/anchor.py",
        "models/any/weights.safetensors",
        "mini/weights/vae.safetensors",
    ],
)
def test_git_does_not_ignore(path: str):
    command = ["git", "check-ignore", "--no-index", "--quiet", path]
    try:
        code = subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.PIPE).returncode
    except FileNotFoundError:
        pytest.skip("no git on this machine")
    if code == 128:
        pytest.skip("this copy is not a git work tree")
    assert code == 1


def test_project_and_requirements_name_the_same_packages():
    listed = re.search(r"^dependencies = \[(.*)\]$", read("pyproject.toml"), re.MULTILINE)
    assert listed
    declared = [part.strip().strip('"') for part in listed[1].split(",")]
    assert declared == read("requirements.txt").split()


def test_host_packages_are_not_requirements():
    ours = names(read("requirements.txt"))
    assert not ours & {"torch", "torchvision", "torchaudio", "numpy", "transformers"}


def test_every_direct_requirement_is_pinned():
    asked = names(read("requirements.txt")) | names(read("requirements-dev.txt"))
    assert asked <= names(read("constraints.txt"))


def test_every_constraint_is_exact():
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.!+]+( ; .+)?$", line) for line in lines)


def test_ci_script_is_executable():
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)


def test_only_one_template_folder():
    served = ["example_workflows", "example", "examples", "workflow", "workflows"]
    assert [name for name in served if (ROOT / name).is_dir()] in ([], ["workflows"])
