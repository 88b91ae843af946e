"""The training command in two processes, as `accelerate launch` starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")
pytest.importorskip("accelerate", reason="training in several processes is optional")

import torch
from PIL import Image

from veduta.models.anchor.weights import load_adapter
from veduta.models.common.training import read_log
from veduta.nodes.anchor import command

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0", str(ROOT / "tools" / "run_module.py"), "nodes.anchor.command",
]  # fmt: skip


def write_pictures(folder):
    folder.mkdir()
    grain = torch.Generator().manual_seed(1)
    for index, horizon in enumerate((30, 50)):
        picture = torch.rand(96, 128, 3, generator=grain) * 0.04
        picture[:horizon] += torch.tensor([0.55, 0.75, 0.95])
        picture[horizon:] += torch.tensor([0.16, 0.3, 0.12])
        Image.fromarray((picture * 255).byte().numpy()).save(folder / f"{index}.png")


def arguments(folder, batch_size):
    return [
        str(folder / "pictures"), "--miniature", "--steps", "3", "--resolution", "64", "--cpu",
        "--batch-size", str(batch_size), "--output", str(folder / f"by_{batch_size}"),
    ]  # fmt: skip


def test_two_processes_train_as_one_with_the_double_batch(tmp_path):
    write_pictures(tmp_path / "pictures")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [*LAUNCH, *arguments(tmp_path, 2)],
        capture_output=True, text=True, timeout=600, check=False, env=environment,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert answer.stdout.count("saved            my_anchor_adapter") == 1
    assert "steps            3 of 4 views each" in answer.stdout
    assert command.main(arguments(tmp_path, 4)) == 0

    both, one = (
        load_adapter(tmp_path / f"by_{size}" / "my_anchor_adapter.safetensors") for size in (2, 4)
    )
    assert both.about["batch_size"] == one.about["batch_size"] == 4
    for name, expected in one.adapter.state_dict().items():
        if name.startswith("to_v"):  # begins at zero
            off = both.adapter.state_dict()[name] - expected
            assert off.norm() < 1e-3 * expected.norm(), name
    logs = [read_log(tmp_path / f"by_{size}" / "my_anchor_adapter") for size in (2, 4)]
    assert len(logs[0]) == len(logs[1]) == 1
    assert abs(logs[0][0]["loss"] - logs[1][0]["loss"]) < 1e-4
