"""The training loop: it learns, and a run that was stopped in any way goes on exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from veduta.models.common.training import CHECKPOINT, LOG, Recipe, Step, fit, read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
TARGET = torch.tensor([[2.0, -1.0, 0.5]])


class Stopped(BaseException):
    """What ComfyUI's interrupt is: no Exception."""


def network():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def recipe(length=40, **changes):
    numbers = {"learning_rate": 0.2, "warmup": 2, "save_every": 10, "log_every": 5}
    return Recipe(steps=length, **{**numbers, **changes})


def train(folder, stop_at=None, on_step=None, model=None, dropout=0.0, about=None, **changes):
    """Train the toy, stopped inside the loss of step `stop_at` (counted from 0 in this call)."""
    model = model or network()
    calls = []

    def loss_of(generator):
        x = torch.randn(8, 3, generator=generator)
        if len(calls) == stop_at:
            raise Stopped
        calls.append(1)
        guess = nn.functional.dropout(model(x), dropout)
        return (guess - x @ TARGET.T).square().mean()

    try:
        reached = fit(model, recipe(**changes), loss_of, folder, on_step, about=about)
    except Stopped:
        reached = None
    return model, reached


def rows(folder):
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_it_learns(tmp_path):
    model, reached = train(tmp_path, length=400)
    assert reached == 400
    assert_close(model.weight, TARGET, rtol=0, atol=0.05)
    assert not model.training


@pytest.mark.parametrize("accumulation", [1, 2])
def test_200_steps_equal_100_and_100(tmp_path, accumulation):
    options = {"length": 200, "accumulation": accumulation, "dropout": 0.3}
    straight, _ = train(tmp_path / "straight", **options)
    _, stopped = train(tmp_path / "resumed", stop_at=100 * accumulation, **options)
    assert stopped is None
    assert read_checkpoint(tmp_path / "resumed")["step"] == 100
    resumed, reached = train(tmp_path / "resumed", **options)
    assert reached == 200
    assert torch.equal(resumed.weight, straight.weight)
    assert torch.equal(resumed.bias, straight.bias)


def test_a_stop_between_two_checkpoints_loses_nothing(tmp_path):
    straight, _ = train(tmp_path / "straight")
    train(tmp_path / "resumed", stop_at=23)
    assert read_checkpoint(tmp_path / "resumed")["step"] == 23
    resumed, _ = train(tmp_path / "resumed")
    assert torch.equal(resumed.weight, straight.weight)


def test_a_stop_in_the_middle_of_a_step_counts_finished_steps_only(tmp_path):
    straight, _ = train(tmp_path / "straight", accumulation=3)
    train(tmp_path / "resumed", stop_at=3 * 7 + 2, accumulation=3)
    assert read_checkpoint(tmp_path / "resumed")["step"] == 7
    resumed, _ = train(tmp_path / "resumed", accumulation=3)
    assert torch.equal(resumed.weight, straight.weight)


def test_what_on_step_raises_ends_the_run_and_keeps_the_step(tmp_path):
    def on_step(now):
        if now.step == 13:
            raise Stopped

    _, reached = train(tmp_path, on_step=on_step)
    assert reached is None
    assert read_checkpoint(tmp_path)["step"] == 13


def test_the_global_generator_is_left_alone(tmp_path):
    model = network()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(tmp_path, model=model, dropout=0.5)
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = train(tmp_path)
    again, reached = train(tmp_path, stop_at=0)
    assert reached == 40
    assert torch.equal(again.weight, first.weight)


def test_a_run_can_be_made_longer(tmp_path):
    train(tmp_path, length=20)
    _, reached = train(tmp_path, length=40)
    assert reached == 40


def test_parameters_by_name_are_trained_like_a_network(tmp_path):
    whole, _ = train(tmp_path / "whole")
    model = network()

    def loss_of(generator):
        x = torch.randn(8, 3, generator=generator)
        return (model(x) - x @ TARGET.T).square().mean()

    fit(dict(model.named_parameters()), recipe(), loss_of, tmp_path / "parts")
    assert torch.equal(model.weight, whole.weight)


def test_frozen_parameters_stay_and_are_not_saved(tmp_path):
    model = network()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    train(tmp_path, model=model)
    assert torch.equal(model.bias, before)
    assert set(read_checkpoint(tmp_path)["model"]) == {"weight"}


def test_the_log_has_a_line_for_every_interval(tmp_path):
    train(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == list(range(5, 41, 5))
    assert rows(tmp_path)[-1]["loss"] < rows(tmp_path)[0]["loss"]


def test_steps_are_told_with_numbers_where_they_are_logged(tmp_path):
    told: list[Step] = []
    measure = lambda: {"information_gain": 0.5}  # noqa: E731
    model = network()
    fit(model, recipe(10), lambda g: model(torch.ones(1, 3)).square().mean(), tmp_path,
        told.append, measure=measure)  # fmt: skip
    assert [now.step for now in told] == list(range(1, 11))
    assert [now.step for now in told if now.is_logged] == [5, 10]
    assert told[4].numbers == {"information_gain": 0.5} and told[4].rate > 0
    assert rows(tmp_path)[0]["information_gain"] == 0.5


def test_the_log_is_trimmed_to_the_step_gone_on_from(tmp_path):
    train(tmp_path, stop_at=20)
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 25, "loss": 9.0, "rate": 1.0}\n{"step": 30, "lo')
    train(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == list(range(5, 41, 5))


def test_only_the_checkpoint_and_the_log_are_left_behind(tmp_path):
    (tmp_path / f".{CHECKPOINT}.123.tmp").write_bytes(b"half of it")
    train(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, LOG}


def test_a_checkpoint_without_the_later_keys_is_continued(tmp_path):
    straight, _ = train(tmp_path / "straight")
    train(tmp_path / "old", stop_at=20)
    state = read_checkpoint(tmp_path / "old")
    old = {k: state[k] for k in ("model", "optimizer", "schedule", "ema", "generator", "step")}
    torch.save(old, tmp_path / "old" / CHECKPOINT)
    resumed, _ = train(tmp_path / "old")
    assert torch.equal(resumed.weight, straight.weight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.1}, "of another run: learning_rate was 0.2 and is 0.1"),
        ({"seed": 3}, "seed was 0 and is 3; choose another name"),
        ({"about": {"pictures": "b"}}, "pictures was a and is b"),
        ({"model": nn.Linear(3, 2)}, "another network: bias is .1. there and .2. here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, words):
    train(tmp_path, stop_at=20, about={"pictures": "a"})
    with pytest.raises(ValueError, match=words):
        train(tmp_path, **{"about": {"pictures": "a"}, **changes})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"nothing of the kind"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint; remove it"):
        train(tmp_path)


def test_a_foreign_dictionary_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="lacks ema, generator"):
        train(tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path):
    model = network()
    count = []

    def loss_of(generator):
        count.append(1)
        value = model(torch.ones(1, 3)).sum()
        return value * float("nan") if len(count) > 12 else value

    with pytest.raises(ValueError, match="the loss is nan after step 15.*lower learning_rate"):
        fit(model, recipe(), loss_of, tmp_path)
    assert read_checkpoint(tmp_path)["step"] == 10


def test_a_network_without_anything_to_train_is_refused(tmp_path):
    model = network().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires gradients"):
        fit(model, recipe(), lambda g: torch.zeros(()), tmp_path)


@pytest.mark.parametrize("changes", [{"steps": -1}, {"accumulation": 0}, {"learning_rate": 0.0}])
def test_impossible_recipes_are_refused(changes):
    with pytest.raises(ValueError):
        Recipe(**{"steps": 1, "learning_rate": 0.1, **changes})


KILLED = """
import os, random, signal, sys, time, types
from pathlib import Path
package = types.ModuleType("veduta")
package.__path__ = [sys.argv[1]]
sys.modules["veduta"] = package
import diffusers.optimization, diffusers.training_utils, torch  # once, before the forks
from torch import nn
from veduta.models.common.training import Recipe, fit, read_checkpoint

folder, rng = Path(sys.argv[2]), random.Random(5)
torch.set_num_threads(1)
model = nn.Linear(64, 64)
recipe = Recipe(steps=10**6, learning_rate=1e-3, save_every=1, log_every=1)
loss_of = lambda g: model(torch.randn(2, 64, generator=g)).square().mean()

def saved():
    state = read_checkpoint(folder)
    return 0 if state is None else state["step"]

for _ in range(20):
    began, child = saved(), os.fork()
    if child == 0:
        fit(model, recipe, loss_of, folder)
    while saved() < began + 2:  # it is at its loop
        time.sleep(0.02)
    time.sleep(rng.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(saved(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a signal of Unix")
def test_kill_9_at_20_moments_never_leaves_a_file_that_does_not_load(tmp_path):
    command = [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    steps = [int(word) for word in answer.stdout.split()]
    assert len(steps) == 20
    assert steps == sorted(set(steps)) and steps[0] > 0
