"""Validation: the best step, the early end, and that a run does not notice being looked at."""

import json
import shutil

import pytest
import torch
from torch import nn

from veduta.models.common.training import (
    BEST,
    CHECKPOINT,
    LOG,
    Recipe,
    fit,
    read_best,
    read_checkpoint,
    read_log,
)

SCORES = {5: 1.0, 10: 3.0, 15: 2.0, 20: 3.0}


class Stopped(BaseException):
    pass


class Run:
    """A toy with dropout, validated by a table of scores."""

    def __init__(self, folder, scores=None, stop_in=None, **changes):
        torch.manual_seed(0)
        self.model, self.told, self.looked = nn.Linear(3, 1), [], []
        self.scores, self.stop_in = scores, stop_in
        numbers = {"steps": 20, "learning_rate": 0.1, "warmup": 2, "log_every": 4, "save_every": 8}
        numbers |= {"schedule": "constant"} | ({} if scores is None else {"validate_every": 5})
        self.recipe = Recipe(**{**numbers, **changes})
        validate = None if scores is None else self.validate
        try:
            self.reached = fit(
                self.model, self.recipe, self.loss_of, folder, self.told.append, validate=validate
            )
        except Stopped:
            self.reached = None

    def loss_of(self, generator):
        assert self.model.training
        x = torch.randn(8, 3, generator=generator)
        return (nn.functional.dropout(self.model(x), 0.3) - x.sum(1, True)).square().mean()

    def validate(self):
        assert not self.model.training
        step = self.told[-1].step + 1 if self.told else self.stop_in or 0
        self.looked.append(step)
        torch.manual_seed(step)  # of no consequence
        torch.rand(3)
        if step == self.stop_in and len(self.looked) < 3 and self.told:
            raise Stopped
        return {"score": self.scores[step], "other": 0.5}


def test_a_run_does_not_notice_that_it_is_looked_at(tmp_path):
    plain = Run(tmp_path / "plain")
    looked_at = Run(tmp_path / "looked_at", SCORES)
    assert looked_at.looked == [5, 10, 15, 20]
    assert torch.equal(plain.model.weight, looked_at.model.weight)


def test_the_best_step_s_averaged_weights_are_kept(tmp_path):
    Run(tmp_path / "whole", SCORES)
    short = Run(tmp_path / "short", steps=10)  # ends with its averaged weights
    best = read_best(tmp_path / "whole")
    assert (best.step, best.score) == (10, 3.0)  # the first of two equals
    assert torch.equal(best.weights["weight"], short.model.weight)
    assert not torch.equal(
        best.weights["weight"], read_checkpoint(tmp_path / "short")["model"]["weight"]
    )
    assert read_best(tmp_path / "short") is None


def test_validations_are_told_and_logged(tmp_path):
    run = Run(tmp_path, SCORES)
    assert {now.step: now.validation["score"] for now in run.told if now.validation} == SCORES
    assert [now.best_step for now in run.told] == [None] * 4 + [5] * 5 + [10] * 11
    left = {now.step: now.seconds_left for now in run.told if now.is_logged}
    assert left[20] == 0 and left[4] > 0
    rows = {row["step"]: row for row in read_log(tmp_path)}
    assert sorted(rows) == [4, 5, 8, 10, 12, 15, 16, 20]
    assert rows[15]["validation_score"] == 2.0 and rows[15]["validation_other"] == 0.5
    assert "validation_score" not in rows[16] and all("loss" in row for row in rows.values())


def test_patience_ends_the_run_and_more_of_it_goes_on(tmp_path):
    scores = {5: 3.0, 10: 2.0, 15: 1.0, 20: 4.0}
    assert Run(tmp_path, scores, patience=2).reached == 15
    again = Run(tmp_path, scores, patience=2)
    assert (again.reached, again.told) == (15, [])
    assert Run(tmp_path, scores, patience=3).reached == 20
    assert read_best(tmp_path).step == 20


def test_a_stop_while_validating_validates_that_step_again(tmp_path):
    straight = Run(tmp_path / "straight", SCORES)
    assert Run(tmp_path / "resumed", SCORES, stop_in=10).reached is None
    assert read_checkpoint(tmp_path / "resumed")["step"] == 10
    assert read_best(tmp_path / "resumed").step == 5
    resumed = Run(tmp_path / "resumed", SCORES, stop_in=10)
    assert resumed.looked == [10, 15, 20]
    assert torch.equal(resumed.model.weight, straight.model.weight)
    best, expected = read_best(tmp_path / "resumed"), read_best(tmp_path / "straight")
    assert best.step == expected.step == 10
    assert torch.equal(best.weights["weight"], expected.weights["weight"])


def test_a_best_step_after_the_checkpoint_is_found_again(tmp_path):
    scores = {**SCORES, 8: 0.0, 12: 0.0}
    Run(tmp_path, scores, steps=8)
    shutil.copy(tmp_path / CHECKPOINT, tmp_path / "kept")
    Run(tmp_path, scores, steps=12)
    assert read_best(tmp_path).step == 10
    shutil.move(tmp_path / "kept", tmp_path / CHECKPOINT)
    assert Run(tmp_path, scores, steps=8).reached == 8
    assert read_best(tmp_path) is None
    Run(tmp_path, scores, steps=12)
    assert read_best(tmp_path).step == 10


def test_what_is_not_a_number_is_never_best(tmp_path):
    scores = {5: float("nan"), 10: 1.0, 15: float("nan"), 20: 0.0}
    Run(tmp_path, scores)
    assert read_best(tmp_path).step == 10


def test_a_score_that_is_not_given_is_refused(tmp_path):
    model = nn.Linear(3, 1)
    recipe = Recipe(steps=2, learning_rate=0.1, validate_every=1)
    with pytest.raises(ValueError, match="validate gives kid, clip, score is 'score'; name one of"):
        fit(model, recipe, lambda g: model(torch.ones(1, 3)).sum(), tmp_path,
            validate=lambda: {"kid": 1.0, "clip": 2.0})  # fmt: skip


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_checkpoints_are_kept(tmp_path):
    straight = Run(tmp_path, keep_last=3, save_every=4)
    numbered = ["checkpoint_000012.pt", "checkpoint_000016.pt"]
    assert names(tmp_path) == [CHECKPOINT, *numbered, LOG]
    assert torch.load(tmp_path / numbered[0])["step"] == 12
    shutil.copy(tmp_path / numbered[0], tmp_path / CHECKPOINT)  # back to step 12
    assert Run(tmp_path, keep_last=3, save_every=4, steps=12).reached == 12
    assert names(tmp_path) == [CHECKPOINT, LOG]
    again = Run(tmp_path, keep_last=3, save_every=4)
    assert names(tmp_path) == [CHECKPOINT, *numbered, LOG]
    assert torch.equal(again.model.weight, straight.model.weight)
    Run(tmp_path, steps=24)
    assert names(tmp_path) == [CHECKPOINT, LOG]


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a file's size are Unix's")
    Run(tmp_path, {**SCORES, 8: 0.0}, steps=8)
    kept = {name: (tmp_path / name).read_bytes() for name in (CHECKPOINT, BEST)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"\.pt cannot be written to .* MiB are free .*make room"):
            Run(tmp_path, SCORES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert names(tmp_path) == [BEST, CHECKPOINT, LOG]
    assert Run(tmp_path, SCORES).reached == 20


def test_a_best_file_that_is_none_is_refused(tmp_path):
    (tmp_path / BEST).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"best.pt in .* cannot be read as a checkpoint"):
        Run(tmp_path)


def test_a_checkpoint_from_before_validations_is_gone_on_with(tmp_path):
    Run(tmp_path, steps=5)
    state = read_checkpoint(tmp_path)
    later = ("optimizer", "groups", "keep_last", "schedule", "validate_every", "patience")
    state["same"] = {name: value for name, value in state["same"].items() if name not in later}
    torch.save(
        {name: value for name, value in state.items() if name != "validation"},
        tmp_path / CHECKPOINT,
    )
    Run(tmp_path, {**SCORES, 5: 9.0}, stop_in=5)
    assert read_best(tmp_path).step == 5
    assert json.loads((tmp_path / LOG).read_text().splitlines()[-1])["step"] == 20
