"""The training node in a real ComfyUI: what it learns, keeps, goes on with and refuses."""

import json

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.model_management import InterruptProcessingException
from PIL import Image

import nodes as core
from veduta.models.anchor.weights import LoadedAdapter, load_adapter
from veduta.models.common.anchor import Anchor, AnchorBatch
from veduta.models.common.training import read_checkpoint, read_log
from veduta.nodes import mini
from veduta.nodes.anchor import samples as samples_module
from veduta.nodes.anchor import train
from veduta.nodes.anchor.train import TrainAnchorAdapter, chosen_pictures, training_places
from veduta.nodes.anchor.training import Options
from veduta.nodes.host.pictures import training_folder

SMALL = {
    "name": "mine", "folder": "", "caption": "a landscape", "category": "", "steps": 12,
    "batch_size": 2, "learning_rate": 1e-3, "resolution": 64, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def stack():
    with torch.inference_mode():  # as ComfyUI runs the loader
        return {"model": mini.load_model(), "clip": mini.load_clip(), "vae": mini.load_vae()}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's own folders, in a place of the test's."""
    for name in ("input", "output", "adapters"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    known = {**folder_paths.folder_names_and_paths}
    known["anchor_adapters"] = ([str(tmp_path / "adapters")], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(samples_module, "STEPS", 2)
    return tmp_path


def landscapes(*heights, height=96, width=128):
    image = torch.empty(len(heights), height, width, 3)
    for picture, y in zip(image, heights, strict=True):
        picture[: round(y * height)] = torch.tensor([0.55, 0.75, 0.95])
        picture[round(y * height) :] = torch.tensor([0.16, 0.3, 0.12])
    grain = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    return (image + 0.04 * (grain - 0.5)).clamp(0, 1)


def run(stack, **changes):
    with torch.inference_mode():  # as ComfyUI runs a prompt
        return TrainAnchorAdapter.execute(**stack, **{**SMALL, **changes}).args


@pytest.fixture
def batch():
    with torch.inference_mode():
        return landscapes(0.3, 0.45, 0.6)


def test_it_trains_saves_and_tells(stack, folders, batch):
    before = batch.clone()
    adapter, samples, curve, labels, report = run(stack, images=batch)
    file = folders / "adapters" / "mine.safetensors"
    loaded = load_adapter(file)
    assert loaded.base == adapter.base == "miniature"
    assert loaded.about["steps"] == 12 and loaded.about["pictures_with_horizon"] == 3
    moved = [float(v.weight.abs().sum()) for v in adapter.adapter.to_v.values()]
    assert all(value > 0 for value in moved)
    assert samples.shape == (3, 64, 64, 3)
    assert curve.shape == labels.shape == (1, 360, 640, 3)
    assert "horizon found in 3" in report and "saved            mine.safetensors" in report
    assert torch.equal(batch, before)
    assert all("information_gain" in row for row in read_log(training_places("mine").run))
    assert not comfy.model_management.in_training


def test_the_loss_falls(stack, folders, batch):
    run(stack, images=batch, steps=30, batch_size=4, learning_rate=5e-3)
    gains = [row["information_gain"] for row in read_log(training_places("mine").run)]
    assert gains[-1] > max(0.02, gains[0])


class StopAt:
    """ComfyUI's cancel button at a step."""

    def __init__(self, monkeypatch, step):
        own = train._NodeWatch.step_done

        def step_done(watch, now, curve):
            own(watch, now, curve)
            if now.step == step:
                raise InterruptProcessingException

        monkeypatch.setattr(train._NodeWatch, "step_done", step_done)


def stock_picture(stack):
    with torch.inference_mode():
        text = core.CLIPTextEncode().encode(stack["clip"], "a tree")[0]
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        answer = core.KSampler().sample(
            stack["model"], 1, 2, 4.0, "euler", "normal", text, text, latent
        )
    return answer[0]["samples"]


def test_cancel_keeps_the_work_and_the_same_settings_go_on(stack, folders, batch, monkeypatch):
    before = stock_picture(stack)
    straight = run(stack, images=batch, name="straight")[0]
    with monkeypatch.context() as patched:
        StopAt(patched, 7)
        with pytest.raises(InterruptProcessingException):
            run(stack, images=batch)
    assert torch.equal(stock_picture(stack), before)
    assert read_checkpoint(training_places("mine").run)["step"] == 7
    assert not training_places("mine").adapter.exists()
    resumed = run(stack, images=batch)[0]
    mine, other = resumed.adapter.state_dict(), straight.adapter.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)
    assert torch.equal(stock_picture(stack), before)


def test_samples_of_an_anchor_come_at_every_quarter_and_change_nothing(stack, folders, batch):
    plain = run(stack, images=batch, name="plain", steps=8)[0]
    anchor = AnchorBatch((Anchor(horizon=0.3), Anchor(horizon=0.7)))
    adapter, samples, *_ = run(stack, images=batch, steps=8, anchor=anchor)
    assert len(samples) == 2 * 4
    mine, other = adapter.adapter.state_dict(), plain.adapter.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_an_adapter_is_trained_further_under_another_name(stack, folders, batch):
    first = run(stack, images=batch, name="first", steps=3)[0]
    state = {name: value.clone() for name, value in first.adapter.state_dict().items()}
    second = run(stack, images=batch, name="second", steps=3, adapter=first)[0]
    after = first.adapter.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    name = next(key for key in state if key.startswith("to_v"))
    assert not torch.equal(second.adapter.state_dict()[name], state[name])


def write_pictures(folder, *heights, caption=None):
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(landscapes(*heights)):
        path = folder / f"{index}.png"
        Image.fromarray((picture * 255).byte().numpy()).save(path)
        if caption:
            path.with_suffix(".txt").write_text(f"{caption} {index}\n", encoding="utf-8")


def test_a_folder_of_pictures_is_trained_on(stack, folders):
    write_pictures(folders / "input" / "views", 0.3, 0.5, caption="sea")
    report = run(stack, folder="views", steps=2)[-1]
    assert report.startswith("pictures         2, a horizon found in 2")


def test_captions_lie_beside_the_pictures_or_are_given(folders):
    root = folders / "input" / "views"
    write_pictures(root / "sea", 0.3, 0.5, caption="sea")
    write_pictures(root / "meadow", 0.4)
    found = chosen_pictures(None, "views", "", "a landscape")
    assert [(p.name.replace("\\", "/"), p.caption) for p in found] == [
        ("meadow/0.png", "a landscape"), ("sea/0.png", "sea 0"), ("sea/1.png", "sea 1"),
    ]  # fmt: skip
    assert found[0].load().shape == (3, 96, 128)
    assert len(chosen_pictures(None, "views", "sea", "")) == 2
    assert len(chosen_pictures(None, str(root), "meadow", "")) == 1
    lines = [p.caption for p in chosen_pictures(landscapes(0.5), "views", "", "a\nb\nc\nd")]
    assert lines == ["a", "b", "sea 0", "sea 1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folder": ""}, "neither images nor folder is given"),
        ({"folder": "nowhere"}, "folder is 'nowhere', there is no folder"),
        ({"folder": "../output"}, "leads out of ComfyUI's input directory"),
        ({"folder": "empty"}, "holds no picture"),
        ({"folder": "broken"}, "bad.png cannot be read as a picture"),
        ({"folder": "views", "category": "sky"}, r"category is 'sky', .*\(sea\)"),
        ({"folder": "views", "caption": "a\nb\nc"}, "caption holds 3 lines for 2 pictures"),
        ({"folder": "views", "name": "../mine"}, "name is '../mine', a file name of letters"),
        ({"folder": "views", "name": ""}, "name is '', a file name"),
        ({"folder": "views", "name": "C:\\mine"}, "a file name of letters"),
        ({"folder": "views", "resolution": 32}, "less than 64 px a side"),
    ],
)
def test_unusable_settings_are_refused(stack, folders, changes, words):
    write_pictures(folders / "input" / "views" / "sea", 0.3, 0.5)
    (folders / "input" / "empty").mkdir()
    (folders / "input" / "broken").mkdir()
    (folders / "input" / "broken" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=words):
        run(stack, **changes)


def test_a_file_from_elsewhere_is_not_overwritten(stack, folders, batch):
    (folders / "adapters" / "mine.safetensors").write_bytes(b"precious")
    with pytest.raises(ValueError, match="mine.safetensors is there already"):
        run(stack, images=batch)
    assert (folders / "adapters" / "mine.safetensors").read_bytes() == b"precious"


def test_going_on_with_other_settings_is_refused(stack, folders, batch):
    run(stack, images=batch, steps=2)
    with pytest.raises(ValueError, match="of another run: batch_size was 2 and is 3"):
        run(stack, images=batch, steps=2, batch_size=3)
    with pytest.raises(ValueError, match="of another run: pictures was"):
        run(stack, images=landscapes(0.5), steps=2)


def test_more_steps_go_on(stack, folders, batch):
    run(stack, images=batch, steps=2)
    assert run(stack, images=batch, steps=4)[0].about["steps"] == 4


def test_adapters_that_cannot_be_trained_on_are_refused(stack, folders, batch):
    paper = LoadedAdapter(torch.nn.Module(), "SD1.5", "paper")
    with pytest.raises(ValueError, match="adapter is of the form 'paper', only 'position'"):
        run(stack, images=batch, adapter=paper)


def test_pictures_without_horizons_are_warned_of(stack, folders):
    plain = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    report = run(stack, images=plain, steps=1)[-1]
    assert "warning: no horizon was found in 2 of 2 pictures" in report


def test_the_fingerprint_follows_the_folder(folders):
    write_pictures(folders / "input" / "views", 0.3)
    mark = lambda: TrainAnchorAdapter.fingerprint_inputs(  # noqa: E731
        folder="views", category="", name="mine", steps=3
    )
    before = mark()
    assert mark() == before
    write_pictures(folders / "input" / "views", 0.3, 0.4)
    assert mark() != before


def test_the_input_directory_itself_can_be_named(folders):
    assert training_folder(".") == (folders / "input").resolve()


def test_progress_shows_the_curve(stack, folders, batch, monkeypatch):
    shown = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, **_: shown.append((value, total, preview)),
    )
    run(stack, images=batch)
    assert {total for _, total, preview in shown if preview} == {2 * 3 + 12}
    kind, picture, _ = next(preview for _, _, preview in shown if preview)
    assert kind == "JPEG" and picture.size == (640, 360)


def test_the_command_trains_like_the_node(folders, capsys):
    from veduta.nodes.anchor import command

    write_pictures(folders / "input" / "views", 0.3, 0.5)
    arguments = [str(folders / "input" / "views"), "--miniature", "--steps", "2", "--batch-size", "2",
                 "--resolution", "64", "--output", str(folders / "made"), "--sample", "big sky"]  # fmt: skip
    assert command.main(arguments) == 0
    assert "information gain" in capsys.readouterr().out
    assert load_adapter(folders / "made" / "my_anchor_adapter.safetensors").about["steps"] == 2
    made = {path.name for path in (folders / "made" / "my_anchor_adapter").iterdir()}
    assert {"samples.png", "curve.png", "labels.png", "checkpoint.pt", "log.jsonl"} <= made


def test_the_command_says_what_is_wrong(folders, capsys):
    from veduta.nodes.anchor import command

    assert command.main([str(folders / "nowhere"), "--miniature"]) == 1
    assert "there is no folder" in capsys.readouterr().out
    assert command.main([str(folders)]) == 1
    assert "give --checkpoint FILE or --miniature" in capsys.readouterr().out


def test_defaults_of_node_and_command_agree():
    own = {
        one.id: one.default
        for one in TrainAnchorAdapter.define_schema().inputs
        if hasattr(one, "default")
    }
    for name in ("steps", "batch_size", "learning_rate", "resolution", "seed"):
        assert own[name] == getattr(Options(), name)
    assert json.dumps(own)
