"""The miniature's adapter in training: what it sees, how it goes on from the shipped weights."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import torch
from torch import Generator

from veduta.mini import anchor as mini_anchor
from veduta.mini.anchor import Drawings, fit_adapter, new_adapter, train_anchor
from veduta.models.anchor.weights import load_adapter
from veduta.models.common.anchor import Anchor
from veduta.models.common.training import Recipe
from veduta.nodes.mini import load_model

COUNT, HELD = 12, 4
LABELS = [
    Anchor(horizon=0.2 + i / 20, tilt_deg=5.0 if i % 3 == 0 else 0.0, subject_x=i / COUNT)
    for i in range(COUNT)
]


@pytest.fixture
def drawings(monkeypatch):
    monkeypatch.setattr(mini_anchor, "HELD_OUT", HELD)
    monkeypatch.setattr(mini_anchor, "BATCH", 2)
    generator = Generator().manual_seed(0)
    latents = torch.randn(COUNT, 4, 8, 8, generator=generator).half()
    texts = torch.randn(COUNT + 1, 77, 192, generator=generator).half()
    return Drawings(latents, texts[1:], texts[:1], LABELS)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    path = tmp_path / "anchor.safetensors"
    path.write_bytes(mini_anchor.WEIGHTS.read_bytes())
    monkeypatch.setattr(mini_anchor, "WEIGHTS", path)
    return path


def recipe(steps, rate=1e-3):
    return Recipe(steps=steps, learning_rate=rate, warmup=0)


def test_going_on_starts_from_the_shipped_weights_and_counts_on(tmp_path, drawings, shipped):
    before = load_adapter(shipped)
    train_anchor(tmp_path, recipe(0), drawings, go_on=True)
    same = load_adapter(shipped)
    assert same.about["steps"] == before.about["steps"]
    for name, value in before.adapter.state_dict().items():
        assert torch.equal(same.adapter.state_dict()[name], value), name
    train_anchor(tmp_path, recipe(1), drawings, go_on=True)
    after = load_adapter(shipped)
    assert after.about["steps"] == before.about["steps"] + 1
    assert (tmp_path / f"anchor_from_{before.about['steps']}" / "checkpoint.pt").exists()
    moved = [
        name
        for name, value in before.adapter.state_dict().items()
        if not torch.equal(after.adapter.state_dict()[name], value)
    ]
    assert "to_v.input_1_0.weight" in moved


def test_a_new_training_starts_from_the_text_s_keys(tmp_path, drawings, shipped):
    train_anchor(tmp_path, recipe(0), drawings)
    fresh = load_adapter(shipped)
    assert fresh.about["steps"] == 0 and fresh.about["information_gain"] == 0  # values are zero
    keys = new_adapter(load_model()).to_k["middle_0_0"].weight
    assert torch.equal(fresh.adapter.to_k["middle_0_0"].weight, keys.detach().half().float())


def test_only_the_given_scenes_are_seen_and_never_the_held_out_ones(
    tmp_path, drawings, monkeypatch
):
    seen = []
    draw = mini_anchor.draw_conditions

    def watched(labels, *args):
        seen.extend(labels)
        return draw(labels, *args)

    monkeypatch.setattr(mini_anchor, "draw_conditions", watched)
    model = load_model()
    fit_adapter(new_adapter(model), model, drawings, recipe(2), tmp_path / "few", [1, 3])
    assert {LABELS.index(label) for label in seen} <= {1, 3}
    seen.clear()
    fit_adapter(new_adapter(model), model, drawings, recipe(2), tmp_path / "all")
    assert {LABELS.index(label) for label in seen} <= set(range(COUNT - HELD))


def test_tilted_scenes_make_up_the_share_that_is_told(drawings, monkeypatch):
    monkeypatch.setattr(mini_anchor, "BATCH", 20_000)
    trainer = mini_anchor._Trainer.__new__(mini_anchor._Trainer)
    trainer.scenes = torch.arange(COUNT)
    trainer.tilted = torch.tensor([i for i, label in enumerate(LABELS) if label.tilt_deg])
    picks = trainer._picks(Generator().manual_seed(0))
    share = float(torch.isin(picks, trainer.tilted).float().mean())
    assert share == pytest.approx(mini_anchor.TILTED_SHARE, abs=0.02)
    assert set(picks.tolist()) == set(range(COUNT))
