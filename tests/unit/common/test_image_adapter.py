"""IP-Adapter files: kinds and sizes read off the weights, numbering, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from veduta.models.common.decoupled_attention import LayerShape, Sight
from veduta.models.common.image_adapter import (
    SD15,
    SDXL,
    FullProjection,
    ImageFeatures,
    ImageProjection,
    ImagePromptAdapter,
    PlusProjection,
    preset_strengths,
)
from veduta.models.common.image_adapter_files import load_image_adapter, save_image_adapter
from veduta.models.common.resampler import Resampler

TEXT, INNER, WIDTH = 6, 10, 5
PROJECTIONS = {
    "base": lambda: ImageProjection(WIDTH, TEXT, 4),
    "plus": lambda: PlusProjection(WIDTH, TEXT, dim=64, queries=3, depth=2),
    "full-face": lambda: FullProjection(WIDTH, TEXT, hidden=7),
}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(layers=16, text=TEXT):
    return {
        f"{2 * i + 1}.to_{side}_ip.weight": drawn(INNER, text, seed=2 * i + j)
        for i in range(layers)
        for j, side in enumerate("kv")
    }


def released(kind="base", **options):
    return {"image_proj": PROJECTIONS[kind]().state_dict(), "ip_adapter": attention(**options)}


def flat(state):
    return {
        f"{part}.{key}": x.contiguous() for part, own in state.items() for key, x in own.items()
    }


def written(state, path):
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        save_file(flat(state), path)
    return path


# what is read


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("kind", PROJECTIONS)
def test_every_weight_of_a_file_arrives_in_its_place(kind, suffix, tmp_path):
    state = released(kind)
    loaded = load_image_adapter(written(state, tmp_path / f"a{suffix}"))
    assert loaded.kind == kind
    found = loaded.adapter.state_dict()
    for key, x in state["image_proj"].items():
        assert_close(found[f"projection.{key}"], x, rtol=0, atol=0)
    for number, layer in ((1, "input_1_0"), (13, "output_3_0"), (31, "middle_0_0")):
        for side in "kv":
            wanted = state["ip_adapter"][f"{number}.to_{side}_ip.weight"]
            assert_close(found[f"to_{side}.{layer}.weight"], wanted, rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in loaded.adapter.parameters())


def test_layers_of_sdxl_are_numbered_down_up_middle(tmp_path):
    state = released(layers=70)
    adapter = load_image_adapter(written(state, tmp_path / "a.safetensors")).adapter
    for number, layer in (
        (1, "input_4_0"),
        (47, "input_8_9"),
        (49, "output_0_0"),
        (139, "middle_0_9"),
    ):
        wanted = state["ip_adapter"][f"{number}.to_k_ip.weight"]
        assert_close(adapter.to_k[layer].weight, wanted, rtol=0, atol=0)


def test_adapter_modules_is_another_name_of_the_attention_s_part(tmp_path):
    state = released()
    state["adapter_modules"] = state.pop("ip_adapter")
    assert load_image_adapter(written(state, tmp_path / "a.safetensors")).kind == "base"


@pytest.mark.parametrize(
    ("layers", "text", "base"),
    [(16, 768, "SD1.5"), (70, 2048, "SDXL"), (16, 6, "SD1.5 with text of width 6")],
)
def test_the_base_is_told_by_layers_and_text(layers, text, base, tmp_path):
    state = {
        "image_proj": ImageProjection(WIDTH, text, 4).state_dict(),
        "ip_adapter": attention(layers, text),
    }
    assert load_image_adapter(written(state, tmp_path / "a.safetensors")).base == base


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)]
)
def test_half_precision_stays_and_other_types_become_float32(dtype, kept, tmp_path):
    state = {part: {k: x.to(dtype) for k, x in own.items()} for part, own in released().items()}
    adapter = load_image_adapter(written(state, tmp_path / "a.safetensors")).adapter
    assert {x.dtype for x in adapter.state_dict().values()} == {kept}


def test_a_saved_adapter_is_read_again_and_the_given_one_stays(tmp_path):
    adapter = load_image_adapter(written(released("plus"), tmp_path / "a.bin")).adapter
    before = {key: x.clone() for key, x in adapter.state_dict().items()}
    save_image_adapter(tmp_path / "b.safetensors", adapter, "miniature", {"steps": 3})
    again = load_image_adapter(tmp_path / "b.safetensors")
    assert (again.kind, again.base, again.about["steps"]) == ("plus", "miniature", 3)
    for key, x in before.items():
        assert_close(again.adapter.state_dict()[key], x.half(), rtol=0, atol=0)
        assert_close(adapter.state_dict()[key], x, rtol=0, atol=0)


# what is refused


def faceid():
    state = released()
    state["image_proj"] = {
        **{f"proj.{i}.{part}": drawn(4, 4) for i in (0, 2) for part in ("weight", "bias")},
        "norm.weight": drawn(4), "norm.bias": drawn(4),
    }  # fmt: skip
    return state


def with_lora():
    state = released()
    state["ip_adapter"]["0.to_q_lora.down.weight"] = drawn(4, 4)
    return state


def faceid_plus():
    state = released("plus")
    state["image_proj"] = {f"perceiver_resampler.{k}": x for k, x in state["image_proj"].items()}
    return state


def portrait():
    state = released()
    projection = PlusProjection(512, TEXT, dim=64, queries=3, depth=1)
    return {**state, "image_proj": projection.state_dict()}


def kolors():
    state = released("plus", layers=70)
    state["image_proj"]["latents"] = drawn(1, 16, 2048)
    return state


def instantx():
    state = released("base")
    state["ip_adapter"] = {f"{i}.to_k_ip.weight": drawn(4, 4) for i in range(57)}
    return state


def xlabs():
    return {"double_blocks": {"0.processor.ip_adapter_double_stream_k_proj.weight": drawn(4, 4)}}


def lora():
    return {"lora_unet_mid": {"lora_down.weight": drawn(4, 4)}}


def without(part, key):
    state = released("plus")
    del state[part][key]
    return state


def reshaped():
    state = released("plus")
    state["image_proj"]["norm_out.weight"] = drawn(TEXT + 1)
    return state


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (faceid(), "a.bin is a FaceID adapter.*is needed; choose another file"),
        (with_lora(), "FaceID adapter, which reads a face analyser's numbers"),
        (faceid_plus(), "FaceID adapter"),
        (portrait(), "FaceID portrait adapter"),
        (kolors(), "Kolors adapter"),
        (instantx(), "transformer such as FLUX or SD3"),
        (xlabs(), "transformer such as FLUX or SD3"),
        (lora(), "another program's file .it holds lora_unet_mid"),
        ({}, "another program's file .it holds nothing"),
        ({"ip_adapter": attention()}, "without its projection"),
        ({"image_proj": PROJECTIONS["base"]().state_dict()}, "without its attention"),
        (released(layers=15), "30 weights for 15 layers, 16 or 70 layers of two weights each"),
        (without("ip_adapter", "7.to_v_ip.weight"), "lacks ip_adapter.7.to_v_ip.weight, all 16"),
        (without("image_proj", "proj_in.weight"), "lacks image_proj.proj_in.weight"),
        (without("image_proj", "layers.1.0.to_kv.weight"), "to_kv.weight is missing"),
        (reshaped(), r"norm_out.weight is \(7,\), its other weights need \(6,\)"),
    ],
)
def test_other_files_are_refused_by_what_they_are(state, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        load_image_adapter(written(state, tmp_path / "a.bin"))


@pytest.mark.parametrize(
    ("suffix", "sentence"),
    [(".bin", "bytes. is cut short"), (".safetensors", "bytes. cannot be read as safetensors")],
)
def test_a_truncated_file_is_told_as_such(suffix, sentence, tmp_path):
    path = written(released(), tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=sentence):
        load_image_adapter(path)


def test_a_pickle_of_more_than_weights_is_not_opened(tmp_path):
    torch.save({"image_proj": Resampler(4, 4, 64, 1, 1)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"more than weights.*get the .safetensors"):
        load_image_adapter(tmp_path / "a.bin")


def test_a_missing_file_names_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"a.bin is missing in {tmp_path}"):
        load_image_adapter(tmp_path / "a.bin")


# tokens


def new_adapter(kind):
    return ImagePromptAdapter(PROJECTIONS[kind](), {"input_1_0": LayerShape(TEXT, INNER)})


def tokens(adapter, *features):
    return adapter.tokens([Sight(ImageFeatures(x)) for x in features], 1, 1, 1.0)


@pytest.mark.parametrize(
    ("kind", "states", "count"), [("base", 1, 4), ("plus", 9, 3), ("full-face", 9, 9)]
)
def test_tokens_of_several_pictures_stand_side_by_side(kind, states, count):
    adapter = new_adapter(kind)
    one, two = drawn(2, 1, states, WIDTH)
    both = tokens(adapter, torch.cat([one, two]))
    assert both.shape == (1, 2 * count, TEXT)
    assert_close(both, torch.cat([tokens(adapter, one), tokens(adapter, two)], 1))
    assert_close(tokens(adapter, one, two), torch.cat([tokens(adapter, one), tokens(adapter, two)]))


def test_a_base_adapter_s_token_by_hand():
    projection = ImageProjection(2, 2, 2)
    projection.proj.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 0]]))
    projection.proj.bias.zero_()
    found = projection(torch.tensor([[[3.0, 1.0]]]))
    # rows (3, 1) and (6, 0), each to mean 0 and variance 1
    assert_close(found, torch.tensor([[[1.0, -1], [1, -1]]]), rtol=0, atol=1e-4)


def test_a_resampler_does_not_mind_the_order_of_states():
    resampler = Resampler(WIDTH, TEXT, dim=64, queries=3, depth=2)
    states = drawn(1, 9, WIDTH)
    assert_close(resampler(states.flip(1)), resampler(states))
    assert not torch.equal(resampler(states + drawn(1, 9, WIDTH, seed=1)), resampler(states))


def test_requests_of_other_sizes_do_not_batch():
    adapter = new_adapter("plus")
    sizes = [adapter.batch_key(ImageFeatures(drawn(k, 9, WIDTH))) for k in (1, 1, 2)]
    assert sizes[0] == sizes[1] != sizes[2]


# presets


def kept(topology, preset):
    off = preset_strengths(topology.layers, preset)
    return {name for name in topology.layers if off.get(name, 1.0)}


def test_presets_of_sdxl_are_the_blocks_of_instantstyle():
    assert kept(SDXL, "all") == set(SDXL.layers)
    assert kept(SDXL, "style") == {f"output_1_{i}" for i in range(10)}
    assert kept(SDXL, "composition") == {f"input_8_{i}" for i in range(10)}
    assert kept(SDXL, "content") == set(SDXL.layers) - kept(SDXL, "style")


def test_presets_of_sd15_split_by_resolution():
    assert kept(SD15, "composition") == {"input_7_0", "input_8_0"}
    assert kept(SD15, "style") | kept(SD15, "content") == set(SD15.layers)
    assert not kept(SD15, "style") & kept(SD15, "content")
    assert "middle_0_0" in kept(SD15, "content")
