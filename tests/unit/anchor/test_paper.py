"""The paper's released format: files made here in its layout, its formula written out again."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from veduta.models.anchor.paper import (
    PaperAdapter,
    load_paper_adapter,
    paper_features,
    paper_numbers,
    sd15_layers,
)
from veduta.models.common.anchor import Anchor
from veduta.models.common.decoupled_attention import LayerShape, Sight

PROJECTOR = {
    "mlp.0.weight": (256, 132), "mlp.0.bias": (256,), "mlp.2.weight": (256,), "mlp.2.bias": (256,),
    "mlp.3.weight": (768, 256), "mlp.3.bias": (768,), "final_norm.weight": (768,), "final_norm.bias": (768,),
}  # fmt: skip
BLOCKS = {  # diffusers' cross-attention places of SD1.5 and their widths
    **{f"down_blocks.{i}.attentions.{j}": 320 * 2**i for i in range(3) for j in range(2)},
    "mid_block.attentions.0": 1280,
    **{f"up_blocks.{i}.attentions.{j}": 1280 // 2 ** (i - 1) for i in (1, 2, 3) for j in range(3)},
}


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def projector_state():
    state = {key: drawn(*shape, seed=i) for i, (key, shape) in enumerate(PROJECTOR.items())}
    return {"fourier.freqs": 2.0 ** torch.arange(16), **state}


def factor_state():
    state = {}
    for i, (block, width) in enumerate(BLOCKS.items()):
        place = f"{block}.transformer_blocks.0.attn2.processor"
        for j, part in enumerate("kv"):
            state[f"{place}.to_{part}_ip_down.weight"] = drawn(8, 768, seed=100 + 4 * i + j)
            state[f"{place}.to_{part}_ip_up.weight"] = drawn(width, 8, seed=102 + 4 * i + j)
    return state


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    paths = folder / "anchor_proj.pt", folder / "ip_adapter.pt"
    torch.save(projector_state(), paths[0])
    torch.save(factor_state(), paths[1])
    return paths


@pytest.fixture(scope="module")
def adapter(files):
    return load_paper_adapter(*files).adapter


def token_of(adapter, *anchors):
    return adapter.tokens([Sight(anchor) for anchor in anchors], 1, 1, 1.0)


def test_the_numbers_are_those_of_the_authors_evaluation():
    assert_close(paper_numbers(Anchor(horizon=0.333)), torch.tensor([0.333, 0.9, 0.3, 0.15]))
    assert_close(paper_numbers(Anchor(subject_x=0.2)), torch.tensor([0.5, 0.0, 0.3, 0.15]))


def test_features_of_a_quarter_by_hand():
    features = paper_features(torch.tensor([[0.25, 0.0, 0.0, 0.5]]))[0]
    assert features.shape == (132,)
    assert_close(features[:4], torch.tensor([0.25, 0.0, 0.0, 0.5]))
    sines, cosines = features[4:20], features[20:36]  # of the first number
    assert_close(sines[:2], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    assert_close(cosines[:3], torch.tensor([0.0, -1.0, 1.0]), atol=1e-6, rtol=0)
    assert_close(features[-32:-30], torch.tensor([0.0, 0.0]), atol=1e-6, rtol=0)  # sin pi, sin 2 pi


def test_the_top_octave_turns_32768_times_a_unit():
    step = 0.25 / 2**15
    features = paper_features(torch.tensor([[step, 0.0, 0.0, 0.0]]))[0]
    assert_close(features[4 + 15], torch.tensor(1.0))


def test_token_is_the_formula_on_the_raw_tensors(adapter):
    raw = {key: value.double() for key, value in projector_state().items()}
    numbers = (0.333, 0.9, 0.3, 0.15)
    x = list(numbers)
    for number in numbers:
        # the angle is rounded as in float32, of which 2^15 turns leave little
        angles = [float(torch.tensor(number) * 2.0**k * 2 * math.pi) for k in range(16)]
        x += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    hidden = raw["mlp.0.weight"] @ torch.tensor(x, dtype=torch.float64) + raw["mlp.0.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    hidden = normed(hidden) * raw["mlp.2.weight"] + raw["mlp.2.bias"]
    token = normed(raw["mlp.3.weight"] @ hidden + raw["mlp.3.bias"])
    expected = token * raw["final_norm.weight"] + raw["final_norm.bias"]
    assert_close(
        token_of(adapter, Anchor(horizon=0.333))[0, 0].double(), expected, atol=1e-5, rtol=0
    )


def normed(x):
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


def test_keys_and_values_are_products_of_the_factors(adapter):
    token = token_of(adapter, Anchor(horizon=0.4))
    raw = factor_state()
    for layer, place in (("input_2_0", "down_blocks.0.attentions.1"), ("middle_0_0", "mid_block.attentions.0"),
                         ("output_9_0", "up_blocks.3.attentions.0")):  # fmt: skip
        for part, found in zip("kv", adapter.keys_values(layer, token), strict=True):
            stem = f"{place}.transformer_blocks.0.attn2.processor.to_{part}_ip"
            full = raw[f"{stem}_up.weight"] @ raw[f"{stem}_down.weight"]
            assert_close(found, token @ full.T)


def test_layers_are_core_s_numbers_of_sd15():
    numbers = [name.rpartition("_")[0] for name in sd15_layers()]
    assert numbers == [
        *(f"input_{i}" for i in (1, 2, 4, 5, 7, 8)), "middle_0", *(f"output_{i}" for i in range(3, 12)),
    ]  # fmt: skip
    assert [shape.inner_dim for _, shape in sd15_layers().values()] == list(BLOCKS.values())


def test_an_anchor_that_asks_for_nothing_is_the_zero_token_and_others_in_the_batch_stay(adapter):
    tokens = token_of(adapter, Anchor(), Anchor(horizon=0.4))
    assert tokens.shape == (2, 1, 768)
    assert not tokens[0].any()
    assert_close(tokens[1:], token_of(adapter, Anchor(horizon=0.4)))


def test_loaded_says_what_it_is_and_is_frozen(files):
    loaded = load_paper_adapter(*files)
    assert (loaded.form, loaded.base) == ("paper", "SD1.5")
    assert not any(weight.requires_grad for weight in loaded.adapter.parameters())
    assert sum(x.numel() for x in loaded.adapter.projector.parameters()) == 233_472  # the paper's
    assert sum(x.numel() for x in loaded.adapter.to_k.parameters()) * 2 == 396_288  # numbers


def test_a_new_one_changes_nothing_and_its_key_factors_never_learn():
    adapter = PaperAdapter({"middle_0_0": LayerShape(24, 16)})
    nn.init.normal_(adapter.to_v["middle_0_0"][1].weight)
    k, v = adapter.keys_values("middle_0_0", token_of(adapter, Anchor(horizon=0.4)))
    assert not k.any()
    assert v.any()
    attended = torch.softmax(k.sum(-1, keepdim=True), 1) * v  # over one key
    attended.square().sum().backward()
    assert not adapter.to_k["middle_0_0"][1].weight.grad.any()
    assert adapter.to_v["middle_0_0"][0].weight.grad.any()


def saved(path, state):
    torch.save(state, path)
    return path


def test_missing_file_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"anchor_proj.pt is missing in .*put it there"):
        load_paper_adapter(tmp_path / "anchor_proj.pt", files[1])


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_file_cut_short_is_named(files, tmp_path, share):
    data = files[1].read_bytes()
    path = tmp_path / "ip_adapter.pt"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        ValueError, match=r"ip_adapter.pt \(\d+ bytes\) is (cut short|no PyTorch file)"
    ):
        load_paper_adapter(files[0], path)


def test_damaged_file_is_named(files, tmp_path):
    data = bytearray(files[0].read_bytes())
    data[40:400] = bytes(360)
    path = tmp_path / "anchor_proj.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"anchor_proj.pt .* is damaged"):
        load_paper_adapter(path, files[1])


def test_whole_module_instead_of_weights_is_refused_unopened(files, tmp_path):
    path = saved(tmp_path / "anchor_proj.pt", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not weights alone"):
        load_paper_adapter(path, files[1])


def test_foreign_files_are_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"list.pt .* is another program's file"):
        load_paper_adapter(saved(tmp_path / "list.pt", [1, 2]), files[1])
    with pytest.raises(ValueError, match=r"ip_adapter.pt has no fourier.freqs"):
        load_paper_adapter(files[1], files[0])  # swapped
    with pytest.raises(ValueError, match=r"anchor_proj.pt: .* is missing, .*one released adapter"):
        load_paper_adapter(files[0], files[0])


@pytest.mark.parametrize("change", ["missing", "extra", "width", "rank"])
def test_factors_of_another_network_are_refused(files, tmp_path, change):
    state = factor_state()
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_ip_up.weight"
    if change == "missing":
        del state[key]
    elif change == "extra":
        state["down_blocks.3.attentions.0.to_q.weight"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(640, 8) if change == "width" else torch.zeros(1280, 4)
    with pytest.raises(
        ValueError, match=r"other.pt: (to_v.middle_0_0.1.weight|down_blocks.3).*SD1.5 needs"
    ):
        load_paper_adapter(files[0], saved(tmp_path / "other.pt", state))
