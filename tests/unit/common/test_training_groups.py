"""Optimisers, schedules and groups of parameters with a rate and an end of their own."""

import sys
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from veduta.models.common.training import Group, Recipe, fit, read_checkpoint

TARGET = torch.tensor([[2.0, -1.0, 0.5]])


class Stopped(BaseException):
    pass


def train(folder, groups=None, stop_at=None, seen=None, **changes):
    torch.manual_seed(0)
    model, calls = nn.Linear(3, 1), []

    def loss_of(generator):
        if len(calls) == stop_at:
            raise Stopped
        calls.append(1)
        if seen is not None:
            seen.append((model.bias.requires_grad, model.bias.detach().clone()))
        x = torch.randn(8, 3, generator=generator)
        return (model(x) - x @ TARGET.T - 1).square().mean()

    numbers = {"steps": 20, "learning_rate": 0.2, "warmup": 0, "weight_decay": 0.0, **changes}
    with suppress(Stopped):
        fit(model, Recipe(**numbers), loss_of, folder, groups=groups)
    return model


def rates(folder):
    return [group["lr"] for group in read_checkpoint(folder)["optimizer"]["param_groups"]]


def test_the_first_step_of_adam_is_each_group_s_rate(tmp_path):
    torch.manual_seed(0)
    start = nn.Linear(3, 1)
    slow = {"slow": Group(("bias",), 0.01)}
    moved = train(tmp_path, slow, steps=1, schedule="constant")
    assert_close((moved.weight - start.weight).abs(), torch.full((1, 3), 0.2), rtol=1e-4, atol=0)
    assert_close((moved.bias - start.bias).abs(), torch.tensor([0.01]), rtol=1e-4, atol=0)


def test_a_group_of_the_same_rate_changes_nothing(tmp_path):
    plain = train(tmp_path / "plain")
    grouped = train(tmp_path / "grouped", {"own": Group(("weight",), 0.2)})
    assert torch.equal(plain.weight, grouped.weight) and torch.equal(plain.bias, grouped.bias)


def test_a_group_stops_and_is_left_out_of_the_gradients(tmp_path):
    seen = []
    model = train(tmp_path, {"short": Group(("bias",), 0.1, stop_step=5)}, seen=seen)
    assert [needs for needs, _ in seen] == [True] * 5 + [False] * 15
    biases = [float(value) for _, value in seen]
    assert len(set(biases[:6])) == 6 and len(set(biases[5:])) == 1
    assert float(model.bias.detach()) == biases[-1]
    assert model.bias.requires_grad


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
@pytest.mark.parametrize("stop_at", [4, 9])
def test_groups_and_optimisers_go_on_exactly(tmp_path, optimizer, stop_at):
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    options = {"groups": {"short": Group(("bias",), 1.0, stop_step=6)}, "learning_rate": 1.0}
    options |= {"optimizer": optimizer, "weight_decay": 0.01, "warmup": 2}
    straight = train(tmp_path / "straight", **options)
    train(tmp_path / "resumed", stop_at=stop_at, **options)
    assert read_checkpoint(tmp_path / "resumed")["step"] == stop_at
    resumed = train(tmp_path / "resumed", **options)
    assert torch.equal(resumed.weight, straight.weight)
    assert torch.equal(resumed.bias, straight.bias)


def test_prodigy_finds_its_rate(tmp_path):
    pytest.importorskip("prodigyopt")
    model = train(tmp_path, optimizer="prodigy", learning_rate=1.0, steps=300, ema_decay=0.9)
    assert_close(model.weight, TARGET, rtol=0, atol=0.02)


def test_a_constant_rate_stays_and_a_cosine_falls(tmp_path):
    train(tmp_path / "constant", stop_at=15, schedule="constant", warmup=5)
    assert rates(tmp_path / "constant") == [0.2]
    train(tmp_path / "cosine", stop_at=15, warmup=5)
    assert_close(rates(tmp_path / "cosine")[0], 0.2 * 0.25)  # (1 + cos(2/3 pi)) / 2


@pytest.mark.parametrize(
    ("groups", "changes", "words"),
    [
        ({"a": Group(("gain",), 0.1)}, {}, "group 'a' names gain, which is none of the 2 trained"),
        ({"a": Group(("bias",), 0.1), "b": Group(("bias",), 0.1)}, {}, "bias is in the groups 'a'"),
        (
            {"a": Group(("bias", "weight"), 0.1, 9)},
            {},
            "stop learning by step 9 of 20; lower steps",
        ),
        (
            {"a": Group(("bias",), 0.1)},
            {"optimizer": "prodigy"},
            "prodigy knows one; give the same",
        ),
        ({}, {"optimizer": "sgd"}, "optimizer is 'sgd', adamw or prodigy is needed"),
        ({}, {"schedule": "steps"}, "schedule is 'steps', cosine or constant is needed"),
        ({}, {"patience": -1}, "patience is -1, 0 or more"),
        ({}, {"keep_last": 0}, "keep_last is 0, 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, groups, changes, words):
    with pytest.raises(ValueError, match=words):
        train(tmp_path, groups, **changes)


@pytest.mark.parametrize("options", [{"learning_rate": 0.0}, {"stop_step": -1}])
def test_impossible_groups_are_refused(options):
    with pytest.raises(ValueError):
        Group(**{"names": ("bias",), "learning_rate": 0.1, **options})


def test_another_group_is_another_run(tmp_path):
    train(tmp_path, {"a": Group(("bias",), 0.1)}, stop_at=5)
    with pytest.raises(
        ValueError, match=r"groups was .'a': \[1, 0.1, None\]. and is .'a': \[1, 0.1, 9\]."
    ):
        train(tmp_path, {"a": Group(("bias",), 0.1, 9)})
    with pytest.raises(ValueError, match="of another run: groups was .* and is {}"):
        train(tmp_path)


def test_a_missing_prodigy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ImportError, match="needs the package prodigyopt.*or take adamw"):
        train(tmp_path, optimizer="prodigy")
