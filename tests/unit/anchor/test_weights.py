"""Anchor adapter files: what is written is read, and every other file is refused by its kind."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from veduta.models.anchor.adapter import AnchorAdapter
from veduta.models.anchor.weights import copy_text_keys, load_adapter, save_adapter
from veduta.models.common.anchor import Anchor
from veduta.models.common.decoupled_attention import LayerShape, Sight

LAYERS = {"input_1_0": LayerShape(12, 8), "middle_0_0": LayerShape(12, 16)}


def adapter(layers=None):
    torch.manual_seed(0)
    made = AnchorAdapter(layers or LAYERS)
    for projection in made.to_v.values():
        torch.nn.init.normal_(projection.weight)
    return made


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "folder" / "mine.safetensors"
    save_adapter(path, adapter(), "SD1.5", {"steps": 500})
    return path


def rewritten(path, state=None, **told):
    """The file with other tensors or another description."""
    with safe_open(path, "pt") as file:
        before = json.loads(file.metadata()["veduta"])
    metadata = {"veduta": json.dumps({**before, **told})}
    save_file(load_file(path) if state is None else state, path, metadata)
    return path


def test_what_is_saved_is_loaded(saved):
    loaded = load_adapter(saved)
    assert (loaded.base, loaded.form, loaded.about) == ("SD1.5", "position", {"steps": 500})
    assert loaded.adapter.layers == LAYERS
    for name, value in adapter().state_dict().items():
        mine = loaded.adapter.state_dict()[name]
        assert mine.dtype == torch.float32
        assert_close(mine, value, rtol=1e-3, atol=1e-6)  # half precision on disk


def test_the_loaded_adapter_makes_the_same_tokens_and_values(saved):
    loaded, made = load_adapter(saved).adapter, adapter()
    sights = [Sight(Anchor(horizon=0.3, tilt_deg=2.0, subject_x=0.4, subject_y=0.6))]
    for one in made.layers:
        k, v = made.keys_values(one, made.tokens(sights, 2, 2, 1.0))
        k2, v2 = loaded.keys_values(one, loaded.tokens(sights, 2, 2, 1.0))
        assert_close(k2, k, rtol=0, atol=0.02)
        assert_close(v2, v, rtol=0, atol=0.02)


def test_saving_again_is_exact(saved, tmp_path):
    first = load_adapter(saved)
    save_adapter(tmp_path / "again.safetensors", first.adapter, first.base, first.about)
    again = load_adapter(tmp_path / "again.safetensors")
    assert (again.base, again.form, again.about) == (first.base, first.form, first.about)
    for name, value in first.adapter.state_dict().items():
        assert torch.equal(again.adapter.state_dict()[name], value), name


def test_nothing_else_is_left_in_the_folder(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["mine.safetensors"]


def test_a_failed_save_leaves_the_old_file(saved):
    before = saved.read_bytes()
    broken = adapter()
    with torch.no_grad():
        broken.encoder.nulls[0, 0] = float("nan")
    with pytest.raises(ValueError, match="encoder.nulls of the adapter is not finite"):
        save_adapter(saved, broken, "SD1.5")
    assert saved.read_bytes() == before


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.safetensors is missing in .*train one"):
        load_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [0, 7, 200, -100])
def test_a_file_cut_short_is_told(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"mine.safetensors .* cannot be read as safetensors"):
        load_adapter(saved)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("image_proj.proj.weight", r"mine is an IP-Adapter \(it reads pictures\), an anchor"),
        ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter"),
        ("lora_unet_down.lora_up.weight", "is a LoRA"),
        ("model.diffusion_model.out.2.bias", "is a checkpoint"),
        ("something", r"another program's file \(it holds something\)"),
    ],
)
def test_foreign_files_are_told_by_their_kind(tmp_path, key, words):
    path = tmp_path / "x.safetensors"
    save_file({key: torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=words):
        load_adapter(path, "mine")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"kind": "style"}, "weights of the kind 'style', an anchor adapter made by Veduta"),
        ({"format": 2}, "is of format 2, form 'position'; this version reads format 1.*update"),
        ({"form": "field"}, "form 'field'; this version reads"),
        ({"layers": {}}, "names no layers"),
        ({"layers": {"a": 3}}, "the layers in mine.safetensors are damaged"),
        ({"layers": {"input_1_0": [12, 8]}}, "has the unknown to_k.middle_0_0.weight"),
        ({"layers": {"input_1_0": [12, 9], "middle_0_0": [12, 16]}},
         r"to_k.input_1_0.weight in mine.safetensors has the shape \(8, 12\), its layers need \(9, 12\)"),
    ],
)  # fmt: skip
def test_files_that_do_not_hold_what_they_tell_are_refused(saved, told, words):
    with pytest.raises(ValueError, match=words):
        load_adapter(rewritten(saved, **told))


def test_missing_weights_are_told(saved):
    state = load_file(saved)
    del state["encoder.nulls"]
    with pytest.raises(ValueError, match="lacks encoder.nulls"):
        load_adapter(rewritten(saved, state))


def test_a_damaged_description_is_told(saved):
    save_file(load_file(saved), saved, {"veduta": "{not json"})
    with pytest.raises(ValueError, match="the description in mine.safetensors is damaged"):
        load_adapter(saved)


def test_keys_start_as_the_texts():
    made = adapter()
    weights = {name: torch.randn(s.inner_dim, s.context_dim) for name, s in LAYERS.items()}
    copy_text_keys(made, weights)
    assert all(torch.equal(made.to_k[name].weight, weight) for name, weight in weights.items())


def test_keys_of_another_base_are_refused():
    with pytest.raises(
        ValueError, match=r"layer middle_0_0 .*\(3, 3\), the adapter needs \(16, 12\)"
    ):
        copy_text_keys(
            adapter(), {"input_1_0": torch.zeros(8, 12), "middle_0_0": torch.zeros(3, 3)}
        )
