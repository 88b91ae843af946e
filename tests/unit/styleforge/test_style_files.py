"""Style files: a round trip, what other tools read in them, and files that are none."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from veduta.models.styleforge.files import load_style, save_style, tensor_hash
from veduta.models.styleforge.style import Style

ROOT = Path(__file__).resolve().parents[3]
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def style(**changes):
    generator = torch.Generator().manual_seed(0)
    fields = {
        "tensors": {
            f"{LAYER}.lora_down.weight": torch.randn(4, 8, generator=generator),
            f"{LAYER}.lora_up.weight": torch.randn(8, 4, generator=generator),
            f"{LAYER}.alpha": torch.tensor(4.0),
        },
        "slices": ("people", "backgrounds"),
        "prompts": {"people": "a photo of zwx style", "backgrounds": "a photo of ukj style"},
        "base": "SD1.5",
        "about": {"steps": 12, "learning_rate": 1e-4, "pictures": 20, "resolution": "512x768"},
    }  # fmt: skip
    return Style(**{**fields, **changes})


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(("precision", "close"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_what_is_written_is_read(tmp_path, precision, close):
    path = tmp_path / "mine.safetensors"
    own = style()
    save_style(path, own, precision)
    found = load_style(path)
    assert found.slices == own.slices and found.prompts == own.prompts and found.base == "SD1.5"
    assert found.name == "mine" and found.about == own.about
    for name, value in own.tensors.items():
        assert found.tensors[name].dtype == torch.float32
        assert_close(found.tensors[name], value, rtol=close, atol=close)
    assert found.trigger == "a photo of zwx style, a photo of ukj style"


def test_other_tools_find_their_entries(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_style(path, style(), description="Two words.")
    told = metadata_of(path)
    assert told["modelspec.sai_model_spec"] == "1.0.1"
    assert told["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert told["modelspec.title"] == told["ss_output_name"] == "mine"
    assert told["modelspec.resolution"] == "512x768"
    assert told["modelspec.description"] == "Two words."
    assert told["modelspec.trigger_phrase"] == style().trigger
    assert told["ss_network_module"] == "networks.lora" and told["ss_base_model_version"] == "sd_v1"
    assert told["ss_network_dim"] == "4" and told["ss_network_alpha"] == "4.0"
    assert told["ss_steps"] == "12" and told["ss_num_train_images"] == "20"
    words = json.loads(told["ss_tag_frequency"])
    assert set(words) == {"style"} and set(words["style"]) == set(style().prompts.values())
    assert "ss_seed" not in told  # not known, so not told


def test_hashes_are_of_the_tensors_whatever_the_metadata(tmp_path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_style(one, style())
    save_style(other, style(), description="another text", thumbnail=torch.rand(3, 300, 200))
    told = metadata_of(one)
    raw = one.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    wanted = hashlib.sha256(raw[start:]).hexdigest()
    assert told["sshs_model_hash"] == wanted == metadata_of(other)["sshs_model_hash"]
    assert told["modelspec.hash_sha256"] == f"0x{wanted}" and tensor_hash(other) == wanted


def test_the_thumbnail_is_a_small_picture(tmp_path):
    path = tmp_path / "mine.safetensors"
    picture = torch.zeros(3, 400, 600)
    picture[0] = 1.0
    save_style(path, style(), thumbnail=picture)
    head, data = metadata_of(path)["modelspec.thumbnail"].split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as file:
        assert max(file.size) == 256
        red, green, _ = file.convert("RGB").getpixel((128, 80))
    assert red > 230 and green < 30


def test_weights_that_do_not_fit_are_refused_and_leave_the_file(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_style(path, style())
    before = path.read_bytes()
    broken = {**style().tensors, f"{LAYER}.lora_up.weight": torch.full((8, 4), 1e6)}
    with pytest.raises(ValueError, match=r"lora_up.weight of the style is not finite or too large"):
        save_style(path, style(tensors=broken))
    assert path.read_bytes() == before
    save_style(path, style(tensors=broken), "bf16")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are of Unix")
def test_a_full_disk_says_so_and_leaves_the_file(tmp_path):
    """A limit on the size of files stands for the disk: the write fails in the middle."""
    path = tmp_path / "mine.safetensors"
    save_style(path, style())
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, types\n"
        "package = types.ModuleType('veduta'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['veduta'] = package\n"
        "from pathlib import Path\n"
        "from veduta.models.styleforge.files import load_style, save_style\n"
        "own = load_style(Path(sys.argv[2]))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try:\n    save_style(Path(sys.argv[2]), own)\n"
        "except OSError as error:\n    print(error)\n"
    )
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(path)],
        capture_output=True, text=True, env=env, cwd=tmp_path, check=True,
    ).stdout  # fmt: skip
    assert "mine.safetensors" in told and "make room there" in told
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def foreign(tmp_path, tensors, metadata=None, name="foreign.safetensors"):
    path = tmp_path / name
    save_file(tensors, path, metadata)
    return path


KOHYA = {"lora_unet_x.lora_down.weight": torch.zeros(2, 4), "lora_unet_x.lora_up.weight": torch.zeros(4, 2)}  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (
            KOHYA,
            None,
            r"foreign.safetensors is a LoRA of another tool.*; load it with ComfyUI's Load",
        ),
        ({"unet.x.lora_A.weight": torch.zeros(1)}, None, "a LoRA in the names of another tool"),
        ({"model.diffusion_model.x": torch.zeros(1)}, None, "is a checkpoint, a style"),
        ({"x": torch.zeros(1)}, None, r"another program's file \(it holds x\)"),
        (KOHYA, {"veduta": "{"}, "description in foreign.safetensors is damaged"),
        (KOHYA, {"veduta": '{"kind": "anchor adapter"}'}, "of the kind 'anchor adapter'"),
        (KOHYA, {"veduta": '{"kind": "style", "format": 9}'}, "is of format 9"),
        (KOHYA, {"veduta": '{"kind": "style", "format": 1}'}, "lacks its components"),
    ],
)
def test_files_of_others_are_refused_by_name(tmp_path, tensors, metadata, words):
    with pytest.raises(ValueError, match=words):
        load_style(foreign(tmp_path, tensors, metadata))


def test_damaged_and_missing_files_are_refused_by_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(FileNotFoundError, match=r"mine.safetensors is missing"):
        load_style(path)
    save_style(path, style())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"mine.safetensors \(\d+ bytes\) cannot be read"):
        load_style(path)
    short = {name: value for name, value in style().tensors.items() if "up" not in name}
    save_style(path, replace(style(), tensors=short))
    with pytest.raises(ValueError, match=r"layer lora_unet_.* is incomplete"):
        load_style(path)
