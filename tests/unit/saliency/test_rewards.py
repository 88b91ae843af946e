"""Rewards by hand, released layouts against an independent forward pass, the miniature's judgement."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from veduta.models.saliency.rewards.clip_reward import COSINE, GREAT_CIRCLE, ClipReward
from veduta.models.saliency.rewards.combine import Rewards, weighted_sum
from veduta.models.saliency.rewards.image_text import (
    image_text_of,
    load_image_text,
    load_miniature,
)
from veduta.models.saliency.rewards.open_clip import open_clip_to_transformers
from veduta.models.saliency.rewards.preprocessing import CROP, PAD, Preprocessing
from veduta.models.saliency.rewards.reference import embed_reference
from veduta.models.saliency.rewards.reward import SALIENT, WHOLE
from veduta.models.saliency.rewards.symmetry import SymmetryReward

WEIGHTS = Path(__file__).resolve().parents[3] / "mini" / "weights"


class MeanColour:
    """An encoder whose embedding is the picture's mean colour."""

    preprocessing = Preprocessing(4, mean=(0.0,) * 3, std=(1.0,) * 3)

    def embed(self, pixels):
        return pixels.mean((2, 3))


def reward(wanted=(1.0, 0.0, 0.0), **options):
    wanted = {WHOLE: torch.tensor([wanted])} | options.pop("others", {})
    return ClipReward(name="colour", encoder=MeanColour(), wanted=wanted, **options)


def colour(*rgb):
    return torch.tensor(rgb).reshape(1, 3, 1, 1).expand(1, 3, 8, 8).clone()


def test_points_by_hand():
    image = colour(0.3, 0.4, 0.0)
    assert float(reward().score(image)) == pytest.approx(60.0, abs=1e-3)
    angle = np.arccos(0.6)
    expected = 100 * (1 - angle**2 / 2)
    assert float(reward(distance=GREAT_CIRCLE).score(image)) == pytest.approx(expected, abs=1e-2)


def test_the_salient_part_may_be_wanted_otherwise():
    image = colour(0.3, 0.4, 0.0)
    other = reward(others={SALIENT: torch.tensor([[0.0, 1.0, 0.0]])})
    assert float(other.score(image, SALIENT)) == pytest.approx(80.0, abs=1e-3)
    assert float(other.score(image, WHOLE)) == pytest.approx(60.0, abs=1e-3)
    assert float(reward().score(image, SALIENT)) == pytest.approx(60.0, abs=1e-3)


@pytest.mark.parametrize("distance", [COSINE, GREAT_CIRCLE])
def test_the_best_and_the_worst_picture_have_a_finite_gradient(distance):
    image = colour(1.0, 0.0, 0.0).requires_grad_()
    for wanted, expected in ((1.0, 100.0), (-1.0, None)):
        points = reward((wanted, 0.0, 0.0), distance=distance).score(image)
        (gradient,) = torch.autograd.grad(points.sum(), image)
        assert bool(torch.isfinite(gradient).all())
        assert expected is None or float(points.detach()) == pytest.approx(expected, abs=1e-3)


def test_symmetry_by_hand():
    half = torch.zeros(1, 3, 4, 4)
    half[..., :2] = 0.5
    assert_close(SymmetryReward().score(half), torch.tensor([50.0]))
    whole = torch.rand(1, 3, 4, 4)
    assert_close(
        SymmetryReward().score(whole + whole.flip(-1)), torch.tensor([100.0]), atol=1e-3, rtol=0
    )


def test_a_chain_adds_up_by_weight():
    half = torch.zeros(2, 3, 8, 8)
    half[:, 0, :, :4] = 0.5
    chain = Rewards((reward(weight=0.5),)) + Rewards((SymmetryReward(weight=-2.0),))
    rows = chain.rows(half)
    assert [(row.name, row.weight) for row in rows] == [("colour", 0.5), ("symmetry", -2.0)]
    symmetry = 100 * (1 - (0.25 / 3) ** 0.5)
    expected = torch.full((2,), 0.5 * 100 - 2 * symmetry)
    assert_close(chain.total(half), expected, atol=1e-3, rtol=0)
    assert_close(weighted_sum(rows), expected, atol=1e-3, rtol=0)


def test_nan_and_nothing_are_refused():
    with pytest.raises(ValueError, match=r"reward symmetry gives \[nan\] points"):
        Rewards((SymmetryReward(),)).total(torch.full((1, 3, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="reward is an empty chain"):
        Rewards().total(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="wants nothing of the whole picture"):
        ClipReward(name="a", encoder=MeanColour(), wanted={})
    with pytest.raises(ValueError, match="distance is 'far', one of cosine, great circle"):
        reward(distance="far")


def test_preprocessing_crops_or_pads():
    wide = torch.zeros(1, 3, 4, 8)
    wide[..., 2:6] = 1.0
    plain = {"mean": (0.0,) * 3, "std": (0.5,) * 3}
    assert_close(Preprocessing(4, fit=CROP, **plain)(wide), torch.full((1, 3, 4, 4), 2.0))
    padded = Preprocessing(8, fit=PAD, **plain)(wide)
    assert_close(padded[:, :, 2:6], wide * 2)
    assert float(padded[:, :, :2].abs().sum() + padded[:, :, 6:].abs().sum()) == 0


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_every_pixel_has_a_gradient_even_where_the_picture_is_saturated(level):
    image = torch.full((1, 3, 48, 48), level, requires_grad=True)
    Preprocessing(32)(image).sum().backward()
    assert bool((image.grad > 0).all())


def test_what_overshoots_is_clamped():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1.0
    pixels = Preprocessing(32, mean=(0.0,) * 3, std=(1.0,) * 3)(edge)
    assert float(pixels.min()) >= -1e-6 and float(pixels.max()) <= 1 + 1e-6


# a tiny model in OpenCLIP's layout: widths 16 and 8, two layers each, heads of 8 and 4
VISION, TEXT, OUT, SIDE, PATCH, LENGTH, WORDS = 16, 8, 6, 8, 4, 5, 12
CONFIG = {
    "projection_dim": OUT,
    "vision_config": {
        "hidden_size": VISION, "intermediate_size": 32, "num_hidden_layers": 2, "hidden_act": "gelu",
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "projection_dim": OUT,
    },
    "text_config": {
        "hidden_size": TEXT, "intermediate_size": 16, "num_hidden_layers": 2, "hidden_act": "gelu",
        "num_attention_heads": 2, "max_position_embeddings": LENGTH, "vocab_size": WORDS,
        "projection_dim": OUT, "eos_token_id": WORDS - 1,
    },
}  # fmt: skip


def open_clip_shapes(vision, text, out, side, patch, length, words, depths=(2, 2)):
    tokens = (side // patch) ** 2 + 1
    shapes = {
        "visual.class_embedding": (vision,), "visual.positional_embedding": (tokens, vision),
        "visual.conv1.weight": (vision, 3, patch, patch), "visual.proj": (vision, out),
        "token_embedding.weight": (words, text), "positional_embedding": (length, text),
        "text_projection": (text, out), "logit_scale": (),
    }  # fmt: skip
    norms = {"visual.ln_pre": vision, "visual.ln_post": vision, "ln_final": text}
    for prefix, width, depth in zip(("visual.", ""), (vision, text), depths, strict=True):
        for i in range(depth):
            block = f"{prefix}transformer.resblocks.{i}"
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                f"{block}.attn.out_proj.weight": (width, width),
                f"{block}.attn.out_proj.bias": (width,),
                f"{block}.mlp.c_fc.weight": (4 * width if width > 64 else 2 * width, width),
                f"{block}.mlp.c_fc.bias": (4 * width if width > 64 else 2 * width,),
                f"{block}.mlp.c_proj.weight": (width, 4 * width if width > 64 else 2 * width),
                f"{block}.mlp.c_proj.bias": (width,),
            }
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


@pytest.fixture
def tiny():
    generator = torch.Generator().manual_seed(0)
    shapes = open_clip_shapes(VISION, TEXT, OUT, SIDE, PATCH, LENGTH, WORDS)
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def open_clip_tower(state, prefix, x, heads, mask=None):
    """OpenCLIP's residual blocks with torch's own attention."""
    width = x.shape[-1]
    for i in range(2):
        part = {
            key.removeprefix(f"{prefix}transformer.resblocks.{i}."): value
            for key, value in state.items()
        }
        attention = nn.MultiheadAttention(width, heads, batch_first=True)
        attention.load_state_dict({k[5:]: v for k, v in part.items() if k.startswith("attn.")})
        normed = F.layer_norm(x, (width,), part["ln_1.weight"], part["ln_1.bias"])
        x = x + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        normed = F.layer_norm(x, (width,), part["ln_2.weight"], part["ln_2.bias"])
        hidden = F.gelu(F.linear(normed, part["mlp.c_fc.weight"], part["mlp.c_fc.bias"]))
        x = x + F.linear(hidden, part["mlp.c_proj.weight"], part["mlp.c_proj.bias"])
    return x


def normed(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


@torch.no_grad()
def test_open_clips_layout_gives_what_open_clip_computes(tiny):
    model = image_text_of({f"state_dict.{k}": x for k, x in tiny.items()}, "file", CONFIG)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    patches = F.conv2d(pixels, tiny["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = tiny["visual.class_embedding"].expand(2, 1, -1)
    x = torch.cat([first, patches], 1) + tiny["visual.positional_embedding"]
    x = open_clip_tower(tiny, "visual.", normed(tiny, "visual.ln_pre", x), 2)
    expected = normed(tiny, "visual.ln_post", x[:, 0]) @ tiny["visual.proj"]
    assert_close(model.encoder.embed(pixels), expected, atol=1e-5, rtol=1e-4)

    ids = torch.tensor([[1, 4, WORDS - 1, 0, 0], [1, 2, 3, 5, WORDS - 1]])
    x = tiny["token_embedding.weight"][ids] + tiny["positional_embedding"]
    mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
    x = normed(tiny, "ln_final", open_clip_tower(tiny, "", x, 2, mask))
    expected = x[[0, 1], [2, 4]] @ tiny["text_projection"]
    assert_close(model.read(ids), expected, atol=1e-5, rtol=1e-4)
    assert model.encoder.preprocessing.fit == PAD


def huge_shapes():
    return open_clip_shapes(1280, 1024, 1024, 224, 14, 77, 49408, (32, 24))


def test_hpsv2s_and_pickscores_released_layouts_are_accepted():
    state = {key: torch.empty(shape, device="meta") for key, shape in huge_shapes().items()}
    hps = image_text_of({f"state_dict.{key}": x for key, x in state.items()}, "HPS_v2.1.pt")
    converted = open_clip_to_transformers(state)
    converted["text_model.embeddings.position_ids"] = torch.zeros(1, 77, device="meta")
    pick = image_text_of(converted, "pick.safetensors")
    assert [hps.encoder.preprocessing.fit, pick.encoder.preprocessing.fit] == [PAD, CROP]
    for model in (hps, pick):
        assert model.encoder.preprocessing.size == 224
        config = model.encoder.tower.vision_model.config
        assert (config.num_hidden_layers, config.num_attention_heads) == (32, 16)
        assert config.hidden_act == "gelu"
        count = sum(p.numel() for p in model.encoder.tower.parameters())
        assert count / 1e6 == pytest.approx(632.1, abs=0.1)  # as ViT-H/14's image tower is told


def test_a_file_with_its_configuration_beside_it(tmp_path, tiny):
    state = open_clip_to_transformers(tiny)
    save_file({key: x.contiguous() for key, x in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"width 16, whose heads .* put config.json"):
        load_image_text(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = load_image_text(tmp_path / "model.safetensors")
    expected = image_text_of(tiny, "file", CONFIG)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    assert_close(model.encoder.embed(pixels), expected.encoder.embed(pixels))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="describes t5, a CLIP with text_config and vision_config"):
        load_image_text(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"unet.weight": torch.zeros(1)}, "file lacks vision_model"),
        (
            lambda s: {k: x for k, x in s.items() if "ln_final" not in k},
            "final_layer_norm.* is missing",
        ),
        (
            lambda s: s | {"visual.proj": torch.zeros(16, 7)},
            r"text_projection.weight is \(6, 8\), its other weights need \(7, 8\)",
        ),
    ],
)
def test_foreign_and_incomplete_files_are_refused(tiny, change, words):
    state = change(tiny)
    config = None if len(state) == 1 else CONFIG
    with pytest.raises(ValueError, match=words):
        image_text_of(state, "file", config)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pt is missing"):
        load_image_text(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="text_seed3.safetensors is missing"):
        load_miniature(tmp_path, "image_text_seed3")


@pytest.fixture(scope="module")
def miniature():
    return load_miniature(WEIGHTS)


def test_the_miniature_has_the_gradient_of_finite_differences(miniature):
    encoder = miniature.encoder
    wanted = embed_reference(encoder, torch.rand(2, 3, 40, 40))
    judge = ClipReward(name="a", encoder=encoder, wanted={WHOLE: wanted})
    image = (0.2 + 0.6 * torch.rand(1, 3, 36, 36)).requires_grad_()
    (gradient,) = torch.autograd.grad(judge.score(image).sum(), image)
    step = 0.02 * gradient / gradient.norm()
    with torch.no_grad():
        difference = float(judge.score(image + step) - judge.score(image - step))
    assert difference == pytest.approx(2 * 0.02 * float(gradient.norm()), rel=0.02)


def test_a_reference_rewards_itself_most(miniature):
    pictures = torch.rand(3, 3, 32, 32) * torch.tensor([0.2, 0.6, 1.0]).reshape(3, 1, 1, 1)
    wanted = embed_reference(miniature.encoder, pictures[1:2])
    points = ClipReward(name="a", encoder=miniature.encoder, wanted={WHOLE: wanted}).score(pictures)
    assert int(points.argmax()) == 1
    assert float(points[1]) == pytest.approx(100.0, abs=0.01)


def test_another_seeds_model_brings_its_own_texts(tmp_path, miniature):
    from veduta.models.common.weight_files import read_state

    for name in ("image_text", "text_encoder"):
        (tmp_path / f"{name}.safetensors").symlink_to(WEIGHTS / f"{name}.safetensors")
    state, about = read_state(WEIGHTS / "image_text.safetensors", "file")
    text, _ = read_state(WEIGHTS / "text_encoder.safetensors", "file")
    other = {**state, **{key: -value for key, value in text.items()}}
    path = tmp_path / "image_text_seed3.safetensors"
    save_file(other, path, {"veduta": json.dumps(about)})
    ids = torch.full((1, 77), 49407)
    ids[0, :2] = torch.tensor([49406, 320])
    same, different = load_miniature(tmp_path), load_miniature(tmp_path, "image_text_seed3")
    assert_close(same.read(ids), miniature.read(ids))
    assert float((different.read(ids) - same.read(ids)).abs().max()) > 0.1
