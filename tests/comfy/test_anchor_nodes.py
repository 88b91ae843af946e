"""Load Anchor Adapter, Encode Anchor and Anchor Sequence in a real ComfyUI."""

import json
from pathlib import Path

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import folder_paths
import torch
from torch.testing import assert_close

import nodes
from veduta.models.anchor.adapter import AnchorAdapter
from veduta.models.anchor.weights import LoadedAdapter, save_adapter
from veduta.models.common.anchor import Anchor, AnchorBatch
from veduta.models.common.decoupled_attention import LayerShape
from veduta.nodes import mini
from veduta.nodes.anchor import adapter as adapter_nodes
from veduta.nodes.anchor.adapter import (
    LAYOUT_LAYERS,
    MINIATURE,
    EncodeAnchor,
    LoadAnchorAdapter,
    layout_layers,
)
from veduta.nodes.anchor.sample import AnchoredGuider, AnchoredSampler
from veduta.nodes.composition.sequence import AnchorSequence
from veduta.nodes.host.attention import CONDS_KEY, ExtraCond, Row, layer_shapes, with_extra
from veduta.nodes.host.folders import register_folder

ROOT = Path(__file__).resolve().parents[2]
CLASSES = (LoadAnchorAdapter, EncodeAnchor, AnchoredGuider, AnchoredSampler, AnchorSequence)
ONE = AnchorBatch((Anchor(horizon=0.3, subject_x=0.7),))
TWO = AnchorBatch((Anchor(horizon=0.3), Anchor(horizon=0.7)))


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


# loading


@pytest.fixture
def folder(comfyui, tmp_path, monkeypatch):
    """A models/anchor_adapters of our own."""
    extensions = folder_paths.folder_names_and_paths["anchor_adapters"][1]
    entry = ([str(tmp_path)], extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "anchor_adapters", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def choices():
    return LoadAnchorAdapter.define_schema().inputs[0].options


def small_adapter():
    with torch.inference_mode(False):
        return AnchorAdapter({"input_1_0": LayerShape(16, 8), "middle_0_0": LayerShape(16, 8)})


def test_the_miniature_comes_first_then_the_files_of_the_folder(folder):
    assert choices() == [MINIATURE]
    (folder / "sub").mkdir()
    for name in ("b.safetensors", "sub/ip_adapter.pt", "sub/anchor_proj.pt", "a.txt", "a.ckpt"):
        (folder / name).write_bytes(b"")
    assert choices() == [MINIATURE, "b.safetensors", str(Path("sub/ip_adapter.pt"))]


def test_a_file_of_the_folder_is_loaded(folder):
    made = small_adapter()
    save_adapter(folder / "mine.safetensors", made, "SD1.5", {"steps": 3})
    loaded = LoadAnchorAdapter.execute("mine.safetensors")[0]
    assert (loaded.base, loaded.about) == ("SD1.5", {"steps": 3})
    assert loaded.adapter.layers == made.layers
    for name, value in loaded.adapter.state_dict().items():
        assert_close(value, made.state_dict()[name], atol=1e-3, rtol=1e-3)  # half precision on disk


def test_the_miniatures_own_adapter_lies_in_the_pack(monkeypatch, tmp_path):
    assert ROOT / "mini" / "weights" / "anchor.safetensors" == adapter_nodes.MINIATURE_FILE
    monkeypatch.setattr(adapter_nodes, "MINIATURE_FILE", tmp_path / "anchor.safetensors")
    with pytest.raises(FileNotFoundError, match=r"^anchor\.safetensors is missing in "):
        LoadAnchorAdapter.execute(MINIATURE)
    save_adapter(tmp_path / "anchor.safetensors", small_adapter(), "miniature")
    assert LoadAnchorAdapter.execute(MINIATURE)[0].base == "miniature"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.safetensors", r"x\.safetensors \(4 bytes\) cannot be read as safetensors"),
        ("x.pt", r"anchor_proj\.pt is missing in "),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_name(folder, name, words):
    (folder / name).write_bytes(b"junk")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        LoadAnchorAdapter.execute(name)


def test_a_file_that_is_gone_is_told_by_name(folder):
    with pytest.raises(FileNotFoundError, match=r"anchor_adapters.*gone\.safetensors"):
        LoadAnchorAdapter.execute("gone.safetensors")


def test_a_changed_file_is_loaded_again(folder):
    one, projector = folder / "ip_adapter.pt", folder / "anchor_proj.pt"
    one.write_bytes(b"1")
    projector.write_bytes(b"1")
    first = LoadAnchorAdapter.fingerprint_inputs("ip_adapter.pt")
    assert LoadAnchorAdapter.fingerprint_inputs("ip_adapter.pt") == first
    projector.write_bytes(b"12")
    assert LoadAnchorAdapter.fingerprint_inputs("ip_adapter.pt") != first


def test_folders_and_extensions_of_the_user_stay(comfyui, monkeypatch):
    mine = {"anchor_adapters": (["/mine"], {".bin"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", mine)
    for _ in range(2):
        register_folder("anchor_adapters", {".safetensors"})
    paths, extensions = mine["anchor_adapters"]
    assert paths == ["/mine", str(Path(folder_paths.models_dir) / "anchor_adapters")]
    assert extensions == {".bin", ".safetensors"}


# encoding


@pytest.fixture(scope="module")
def model(comfyui):
    with torch.inference_mode():
        return mini.load_model()


@pytest.fixture(scope="module")
def prompts(comfyui):
    with torch.inference_mode():
        clip = mini.load_clip()
        return tuple(nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a hill", ""))


@pytest.fixture(scope="module")
def adapter(model):
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode(False):
        made = AnchorAdapter(layer_shapes(model)).requires_grad_(False)
        for projection in made.to_v.values():
            projection.weight.normal_(std=0.05, generator=generator)
    return LoadedAdapter(made, base="miniature", form="position")


@pytest.fixture
def encode(model, adapter, prompts):
    def call(anchor=ONE, conds=prompts, used=model, **options):
        return EncodeAnchor.execute(used, adapter, anchor, *conds, **options).args

    return call


@pytest.fixture
def sample(model, prompts):
    def call(used=model, positive=prompts[0], negative=prompts[1], batch=1):
        latent = nodes.EmptyLatentImage().generate(64, 64, batch)[0]
        args = (used, 1, 2, 3.0, "euler", "normal", positive, negative, latent)
        return nodes.KSampler().sample(*args)[0]["samples"]

    return call


def test_strength_0_changes_nothing_to_the_bit(encode, sample):
    assert torch.equal(sample(*encode(strength=0.0)), sample())


def test_strength_grows_with_the_number(encode, sample):
    plain = sample()
    moved = [(sample(*encode(strength=x)) - plain).abs().mean().item() for x in (0.5, 1.0, 2.0)]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_layout_only_is_less_than_all_and_more_than_nothing(encode, sample):
    plain, whole, layout = sample(), sample(*encode()), sample(*encode(layers=LAYOUT_LAYERS))
    assert not torch.equal(layout, whole)
    assert 0 < (layout - plain).abs().mean() < (whole - plain).abs().mean()


def names(inputs):
    return [f"input_{number}_0" for number in inputs] + ["middle_0_0", "output_3_0"]


@pytest.mark.parametrize(
    ("inputs", "coarsest"),
    [([1, 2, 4, 5, 7, 8], {7, 8}), ([4, 5, 7, 8], {7, 8}), ([1, 3, 5], {5}), ([2], {2})],
    ids=["SD1.5", "SDXL", "one per level", "one"],
)
def test_layout_layers_are_the_coarsest_on_the_way_in(inputs, coarsest):
    assert layout_layers(names(inputs)) == {f"input_{number}_0" for number in coarsest}


def test_layout_layers_take_every_block_of_a_transformer():
    deep = [f"input_{number}_{index}" for number in (4, 5, 7, 8) for index in range(10)]
    assert layout_layers(deep) == set(deep[20:])


def test_one_row_per_anchor_and_the_negative_is_marked(encode, prompts):
    _, positive, negative = encode(TWO)
    rows = positive[0][1]["model_conds"][CONDS_KEY].rows
    assert [row.extras[0].request for row in rows] == list(TWO.anchors)
    assert [row.extras for row in negative[0][1]["model_conds"][CONDS_KEY].rows] == [()]
    assert all("model_conds" not in entry[1] for conds in prompts for entry in conds)


def test_two_anchor_nodes_in_a_row_add_up(encode, sample):
    first = encode()
    second = encode(TWO, conds=first[1:], used=first[0])
    rows = second[1][0][1]["model_conds"][CONDS_KEY].rows
    assert [len(row.extras) for row in rows] == [2, 2]
    assert sample(*second, batch=2).isfinite().all()


def test_two_anchor_nodes_of_other_numbers_are_refused(encode):
    three = AnchorBatch((*TWO.anchors, *ONE.anchors))
    first = encode(TWO)
    with pytest.raises(ValueError, match="holds 2 anchors or references, 3 are to be added"):
        encode(three, conds=first[1:], used=first[0])


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_stock_samplers_refuse_a_batch_of_another_number(encode, sample, batch):
    with pytest.raises(ValueError, match=f"holds 2 anchors .*the latent batch holds {batch} pict"):
        sample(*encode(TWO), batch=batch)


def test_rows_are_never_dealt_out_to_a_batch_they_do_not_divide():
    with pytest.raises(ValueError, match="holds 2 anchors or references, the latent batch holds 3"):
        ExtraCond([Row(()), Row(())]).process_cond(batch_size=3)


def test_an_empty_request_changes_no_picture_of_others(prompts, sample, encode):
    used, _, _ = encode()
    marked = [with_extra(conds, [None]) for conds in prompts]
    assert torch.equal(sample(used, *marked), sample())


# sequences


def test_a_sequence_has_one_anchor_per_frame():
    made = AnchorSequence.execute(TWO, 5, "linear")[0]
    assert [anchor.horizon for anchor in made.anchors] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])


def test_a_sequence_of_one_key_frame_is_refused():
    with pytest.raises(
        ValueError, match="anchor holds 1 key frame, two at least are needed; chain"
    ):
        AnchorSequence.execute(ONE, 5, "linear")


# what the user reads


def test_menu_and_search_know_the_nodes(node_classes):
    for node in CLASSES:
        schema = node.GET_SCHEMA()
        assert schema.node_id in node_classes
        assert schema.category == "Veduta/Composition"
        assert schema.description and schema.search_aliases


def test_the_english_texts_are_those_of_the_code():
    texts = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    for node in CLASSES:
        schema = node.GET_SCHEMA()
        entry = texts[schema.node_id]
        assert entry["display_name"] == schema.display_name
        assert entry["description"] == schema.description
        for part in schema.inputs:
            assert entry["inputs"][part.id]["tooltip"] == part.tooltip, part.id
        for index, part in enumerate(schema.outputs):
            assert entry["outputs"][str(index)]["tooltip"] == part.tooltip
