"""The miniature's training loop: it learns, and a run that was stopped goes on exactly."""

import json

import torch
from torch import nn
from torch.testing import assert_close

from veduta.mini.loop import Recipe, fit

TARGET = torch.tensor([[2.0, -1.0, 0.5]])


def train(folder, steps, length=40, save_every=10):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_of(generator):
        x = torch.randn(8, 3, generator=generator)
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return (model(x) - x @ TARGET.T).square().mean()

    done = []
    recipe = Recipe(steps=length, learning_rate=0.2, warmup=2, save_every=save_every, log_every=5)
    try:
        reached = fit(model, recipe, loss_of, folder)
    except KeyboardInterrupt:
        reached = None
    return model, reached


def test_it_learns(tmp_path):
    model, reached = train(tmp_path, steps=400, length=400)
    assert reached == 400
    assert_close(model.weight, TARGET, rtol=0, atol=0.05)


def test_a_stopped_run_goes_on_exactly(tmp_path):
    straight, _ = train(tmp_path / "straight", steps=40)
    _, stopped = train(tmp_path / "resumed", steps=23)  # lost: what came after step 20
    assert stopped is None
    resumed, reached = train(tmp_path / "resumed", steps=40)
    assert reached == 40
    assert_close(resumed.weight, straight.weight, rtol=0, atol=0)
    assert_close(resumed.bias, straight.bias, rtol=0, atol=0)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = train(tmp_path, steps=40)
    again, reached = train(tmp_path, steps=0)
    assert reached == 40
    assert_close(again.weight, first.weight, rtol=0, atol=0)


def test_the_log_has_a_line_for_every_interval(tmp_path):
    train(tmp_path, steps=40)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 41, 5))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_no_draft_is_left_behind(tmp_path):
    train(tmp_path, steps=40)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "log.jsonl"}
