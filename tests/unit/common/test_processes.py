"""Two processes that train together: as one with the double batch, resumable, of one mind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("accelerate", reason="training in several processes is optional")

from veduta.models.common.processes import ALONE, Processes, launched
from veduta.models.common.training import Recipe, fit, read_best, read_checkpoint, read_log

ROOT = Path(__file__).resolve().parents[3]
ROWS, STEPS = 2, 12

SCRIPT = """
import json, sys, types
from pathlib import Path
package = types.ModuleType("veduta")
package.__path__ = [sys.argv[1]]
sys.modules["veduta"] = package
import torch
from torch import nn
from veduta.models.common.processes import launched
from veduta.models.common.training import Recipe, fit

folder = Path(sys.argv[2])
processes = launched(torch.device("cpu"))
ROWS, STEPS = 2, 12
found = {}

def network():
    generator = torch.Generator().manual_seed(processes.rank)  # only the first one's counts
    draw = lambda *shape: nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))
    return {"first": draw(3), "second": draw(3), "unused": draw(3)}

def train(where, dropout=0.0, stop_at=None, **options):
    weights, calls = network(), []
    def loss_of(generator):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(1)
        x = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
        kinds = torch.randint(2, (ROWS,), generator=generator)
        own = processes.share(ROWS)
        told = [(x * weights[("first", "second")[kind]]).sum() for x, kind in zip(x[own], kinds[own])]
        told = nn.functional.dropout(torch.stack(told), dropout)
        return (told - 1).square().mean()
    recipe = Recipe(steps=STEPS, learning_rate=0.05, warmup=0, log_every=4, **options.pop("recipe", {}))
    try:
        reached = fit(weights, recipe, loss_of, folder / where, processes=processes, **options)
    except KeyboardInterrupt:
        reached = None
    return reached, {name: value.tolist() for name, value in weights.items()}

told = []
found["straight"] = train("straight", on_step=lambda now: told.append(now.step))
found["told"] = told
found["dropped"] = train("dropped", dropout=0.3)
train("resumed", dropout=0.3, stop_at=5)
found["resumed"] = train("resumed", dropout=0.3)

scores = iter([1.0, 3.0, 2.0, 1.0, 5.0])
def validate():
    assert processes.is_first
    return {"score": next(scores)}
patient = {"validate_every": 2, "patience": 2}
found["judged"] = train("judged", validate=validate, recipe=patient)

try:
    train("straight" if processes.is_first else "elsewhere")
except ValueError as error:
    found["apart"] = str(error)
try:
    processes.share(3)
except ValueError as error:
    found["uneven"] = str(error)
processes.close()
(folder / f"{processes.rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What both processes have found, and their folder."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    both = []
    for rank in ("0", "1"):
        launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(ROOT), str(folder)]
        both.append(
            subprocess.Popen(command, env={**os.environ, **launcher}, stderr=subprocess.PIPE)
        )
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], folder


def alone(folder):
    """The same problem in one process, with both rows in its batch."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
        for name in ("first", "second", "unused")
    }

    def loss_of(generator):
        x = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
        kinds = torch.randint(2, (ROWS,), generator=generator).tolist()
        told = [
            (row * weights[("first", "second")[k]]).sum() for row, k in zip(x, kinds, strict=True)
        ]
        return (torch.stack(told) - 1).square().mean()

    recipe = Recipe(steps=STEPS, learning_rate=0.05, warmup=0, log_every=4)
    fit(weights, recipe, loss_of, folder)
    return {name: value.detach() for name, value in weights.items()}


def test_two_processes_equal_one_with_the_double_batch(pair, tmp_path):
    (first, second), folder = pair
    expected = alone(tmp_path)
    assert first["straight"] == second["straight"]
    reached, weights = first["straight"]
    assert reached == STEPS
    for name, value in expected.items():
        found = torch.tensor(weights[name], dtype=torch.float64)
        assert_close(found, value, rtol=1e-9, atol=1e-9)
    losses = [[row["loss"] for row in read_log(where)] for where in (folder / "straight", tmp_path)]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    raw = read_checkpoint(tmp_path)["model"]["first"], read_checkpoint(folder / "straight")["model"]
    assert_close(raw[1]["first"], raw[0], rtol=1e-9, atol=1e-9)


def test_a_pair_that_was_stopped_goes_on_exactly(pair):
    (first, second), _ = pair
    assert first["resumed"] == first["dropped"] == second["resumed"]
    assert first["dropped"] != first["straight"]


def test_the_first_alone_tells_and_validates_and_both_stop_together(pair):
    (first, second), folder = pair
    assert first["told"] == list(range(1, STEPS + 1)) and second["told"] == []
    assert first["judged"][0] == second["judged"][0] == 8
    best = read_best(folder / "judged")
    assert (best.step, best.score) == (4, 3.0)


def test_processes_that_see_different_folders_are_refused(pair):
    for found in pair[0]:
        assert "would go on from the steps [12, 0], one step is needed" in found["apart"]
        assert "a batch of 3 cannot be shared evenly by 2 processes" in found["uneven"]


def test_shares_are_the_whole_batch():
    rows = list(range(6))
    assert rows[ALONE.share(6)] == rows
    assert [rows[Processes(rank, 3).share(6)] for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched(torch.device("cpu")) == ALONE
    ALONE.close()


def test_a_missing_accelerate_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match="needs the package accelerate.*pip install accelerate"):
        launched(torch.device("cpu"))
