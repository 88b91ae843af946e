"""The composition nodes in a real ComfyUI: what they hand on, and how they refuse bad input."""

import contextlib
import inspect
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.model_management
import torch
from torch.testing import assert_close

ROOT = Path(__file__).resolve().parents[2]
IDS = (
    "VedutaAnchor",
    "VedutaMeasureComposition",
    "VedutaScoreComposition",
    "VedutaAnchorRaster",
)
OPEN = {
    "preset": "custom",
    "horizon": 0.4,
    "use_horizon": False,
    "tilt_deg": 0.0,
    "use_tilt": False,
    "subject_x": 0.5,
    "use_subject_x": False,
    "subject_y": 0.5,
    "use_subject_y": False,
}


@pytest.fixture
def run(node_classes):
    def call(node_id, **inputs):
        with torch.inference_mode():  # as ComfyUI runs a prompt
            return node_classes[node_id].execute(**inputs).args

    return call


@pytest.fixture
def anchor(run):
    def make(**parts):
        switches = {f"use_{name.removesuffix('_deg')}": True for name in parts}
        chain = {"append_to": parts.pop("append_to")} if "append_to" in parts else {}
        switches.pop("use_append_to", None)
        return run("VedutaAnchor", **{**OPEN, **parts, **switches, **chain})[0]

    return make


def landscape(horizon, height=96, width=128, subject_x=None):
    """Blue over dark green with a little grain, and a red post on the ground if asked for."""
    image = torch.zeros(1, height, width, 3)
    row = round(horizon * height)
    image[:, :row], image[:, row:] = (
        torch.tensor([0.55, 0.75, 0.95]),
        torch.tensor([0.16, 0.3, 0.12]),
    )
    if subject_x is not None:
        column = round(subject_x * width)
        image[:, row - 8 : row + 14, column - 5 : column + 5] = torch.tensor([0.85, 0.1, 0.1])
    grain = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    return (image + 0.04 * (grain - 0.5)).clamp(0, 1)


@pytest.fixture(scope="module")
def landscapes():
    return torch.cat([landscape(y) for y in (0.3, 0.5, 0.7)])


def test_anchor_takes_numbers_that_are_switched_on(anchor):
    made = anchor(horizon=0.6, subject_x=0.2).anchors
    assert [(a.horizon, a.tilt_deg, a.subject_x, a.subject_y) for a in made] == [
        (0.6, None, 0.2, None)
    ]


def test_preset_wins_over_the_numbers(run):
    inputs = {**OPEN, "preset": "centred", "horizon": 0.9, "use_horizon": True}
    (made,) = run("VedutaAnchor", **inputs)[0].anchors
    assert (made.horizon, made.subject_x) == (0.5, 0.5)


def test_anchors_chain_in_order_and_leave_the_first_alone(anchor):
    first = anchor(horizon=0.2)
    both = anchor(horizon=0.8, append_to=first)
    assert [a.horizon for a in both.anchors] == [0.2, 0.8]
    assert len(first.anchors) == 1


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"horizon": 1.5}, r"horizon is 1\.5, it must lie in 0\.\.1; 0 is the top edge"),
        ({"horizon": math.nan}, "horizon is nan"),
        ({"tilt_deg": 45.0}, "tilt_deg is 45, it must lie in -30..30; give degrees from level"),
        ({"subject_y": -0.2}, "subject_y is -0.2"),
    ],
)
def test_linked_numbers_out_of_range_are_refused(anchor, parts, words):
    with pytest.raises(ValueError, match=words):
        anchor(**parts)


def test_unknown_linked_preset_is_refused(run):
    with pytest.raises(ValueError, match="preset is 'diagonal', custom or high horizon"):
        run("VedutaAnchor", **{**OPEN, "preset": "diagonal"})


def test_measure_finds_plain_horizons(run, landscapes):
    measured, overlay, report, horizon_sure, subject_sure = run(
        "VedutaMeasureComposition", image=landscapes
    )
    found = [a.horizon for a in measured.anchors]
    assert found == pytest.approx([0.3, 0.5, 0.7], abs=0.03)
    assert overlay.shape == (3, 96 * 6, 128 * 6, 3)
    assert len(report.splitlines()) == 2 + 3
    assert len(horizon_sure) == len(subject_sure) == 3
    assert all(isinstance(value, float) for value in [*horizon_sure, *subject_sure])


def test_measure_reports_errors_against_an_anchor(run, anchor, landscapes):
    plain = run("VedutaMeasureComposition", image=landscapes)
    aimed = run("VedutaMeasureComposition", image=landscapes, anchor=anchor(horizon=0.5))
    assert "score" in aimed[2] and "score" not in plain[2]
    assert not torch.equal(plain[1], aimed[1])  # the wanted line is drawn


def test_a_sky_mask_decides_where_the_horizon_is(run, landscapes):
    mask = torch.zeros(1, 48, 64)  # half the size of the picture
    mask[:, :12] = 1.0
    measured = run("VedutaMeasureComposition", image=landscapes, sky_mask=mask)[0]
    assert [a.horizon for a in measured.anchors] == pytest.approx([0.25] * 3, abs=0.02)


def test_a_subject_mask_decides_where_the_subject_is(run, landscapes):
    mask = torch.zeros(1, 96, 128)
    mask[:, 40:56, 20:36] = 1.0
    measured = run("VedutaMeasureComposition", image=landscapes, subject_mask=mask)[0]
    for found in measured.anchors:
        assert (found.subject_x, found.subject_y) == pytest.approx((28 / 128, 0.5), abs=0.02)


def test_score_puts_the_best_first(run, anchor, landscapes):
    best, index, score, table = run(
        "VedutaScoreComposition", image=landscapes, anchor=anchor(horizon=0.7), best_count=2
    )
    assert index == [2, 1]
    assert_close(best, landscapes[[2, 1]])
    assert score == sorted(score, reverse=True) and score[0] > 0.6
    assert table.startswith("wanted: horizon 0.70")
    assert "follow the anchors" not in table


def test_score_hands_on_all_pictures_when_fewer_are_there(run, anchor, landscapes):
    best, index, *_ = run(
        "VedutaScoreComposition", image=landscapes, anchor=anchor(horizon=0.7), best_count=9
    )
    assert len(best) == len(index) == 3


def test_score_with_an_anchor_each_tells_about_control(run, anchor):
    heights = [0.2, 0.35, 0.5, 0.65, 0.8]
    image = torch.cat([landscape(y) for y in heights])
    anchors = None
    for y in heights:
        anchors = anchor(horizon=y, append_to=anchors)
    table = run("VedutaScoreComposition", image=image, anchor=anchors, best_count=1)[3]
    words = table.splitlines()[-1].split()
    assert words[:2] == ["horizon", "5"]
    assert float(words[2]) == pytest.approx(1.0, abs=0.1)  # gain
    assert float(words[3]) == 1.0  # rank correlation


def test_raster_splits_the_frame_at_the_horizon(run, anchor):
    outputs = run("VedutaAnchorRaster", anchor=anchor(horizon=0.25), width=64, height=32)
    depth, segmentation, lines, sky, ground, subject = outputs
    assert depth.shape == segmentation.shape == lines.shape == (1, 32, 64, 3)
    assert sky.shape == ground.shape == subject.shape == (1, 32, 64)
    assert sky[0, :8].min() == 1 and ground[0, 8:].min() == 1
    assert subject.max() == 0


def test_raster_of_several_anchors_is_a_batch(run, anchor):
    anchors = anchor(horizon=0.75, append_to=anchor(horizon=0.25))
    sky = run("VedutaAnchorRaster", anchor=anchors, width=64, height=64)[3]
    assert_close(sky.mean((1, 2)), torch.tensor([0.25, 0.75]))


def test_raster_without_a_horizon_is_refused(run, anchor):
    with pytest.raises(ValueError, match=r"anchor leaves the horizon open.*switch use_horizon on"):
        run("VedutaAnchorRaster", anchor=anchor(subject_x=0.5), width=64, height=64)


@pytest.mark.parametrize("node_id", ["VedutaMeasureComposition", "VedutaScoreComposition"])
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(0, 64, 64, 3), "image is a batch of 0 pictures, one at least is needed"),
        (torch.zeros(1, 0, 0, 3), "image is 0 x 0 px, each side must lie in"),
        (torch.zeros(1, 1, 1, 3), "image is 1 x 1 px.*resize it first"),
        (torch.full((1, 64, 64, 3), math.nan), "image holds NaN or infinite values"),
        (torch.zeros(1, 64, 64), "connect an IMAGE"),
    ],
)
def test_unusable_pictures_are_refused_in_one_sentence(run, anchor, node_id, image, words):
    inputs = {"best_count": 1} if node_id.endswith("ScoreComposition") else {}
    with pytest.raises(ValueError, match=words):
        run(node_id, image=image, anchor=anchor(horizon=0.5), **inputs)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"sky_mask": torch.zeros(2, 8, 8)}, "sky_mask holds 2 masks, image holds 3 pictures"),
        ({"subject_mask": torch.zeros(0, 8, 8)}, "subject_mask has the shape .* no pixel"),
        ({"subject_mask": torch.full((1, 8, 8), math.nan)}, "subject_mask holds NaN"),
    ],
)
def test_unusable_masks_are_refused_in_one_sentence(run, landscapes, inputs, words):
    with pytest.raises(ValueError, match=words):
        run("VedutaMeasureComposition", image=landscapes, **inputs)


def test_anchors_that_do_not_pair_are_refused(run, anchor, landscapes):
    two = anchor(horizon=0.5, append_to=anchor(horizon=0.5))
    with pytest.raises(ValueError, match="anchor holds 2 anchors, image holds 3 pictures"):
        run("VedutaScoreComposition", image=landscapes, anchor=two, best_count=1)


def test_an_anchor_that_asks_for_nothing_is_refused(run, anchor, landscapes):
    with pytest.raises(ValueError, match=r"anchor asks for nothing.*switch one of them on"):
        run("VedutaScoreComposition", image=landscapes, anchor=anchor(), best_count=1)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_and_alpha_pictures_are_measured_and_handed_on(run, anchor, channels):
    image = landscape(0.6).mean(-1, keepdim=True).expand(-1, -1, -1, channels).clone()
    if channels in (2, 4):
        image[..., -1] = 1.0
    measured = run("VedutaMeasureComposition", image=image)[0]
    assert measured.anchors[0].horizon == pytest.approx(0.6, abs=0.03)
    best = run("VedutaScoreComposition", image=image, anchor=anchor(horizon=0.6), best_count=1)[0]
    assert torch.equal(best, image)


def test_an_8k_picture_is_measured_and_drawn(run):
    image = landscape(0.6, 18, 96).repeat_interleave(80, 1).repeat_interleave(80, 2)
    assert image.shape == (1, 1440, 7680, 3)
    measured, overlay, *_ = run("VedutaMeasureComposition", image=image)
    row = round(0.6 * 18) / 18
    assert measured.anchors[0].horizon == pytest.approx(row, abs=0.03)
    assert overlay.shape == image.shape


def test_nothing_that_comes_in_is_changed(run, anchor, landscapes):
    image, sky, subject = landscapes.clone(), torch.ones(1, 9, 9), torch.ones(1, 9, 9)
    sky[:, 4:] = 0
    target = anchor(horizon=0.5)
    before = (target.anchors, sky.clone(), subject.clone())
    inputs = {"image": image, "anchor": target, "sky_mask": sky, "subject_mask": subject}
    run("VedutaMeasureComposition", **inputs)
    best = run("VedutaScoreComposition", **inputs, best_count=3)[0]
    with torch.inference_mode():
        best += 1.0  # a later node that writes into what it was given must not reach ours
    assert torch.equal(image, landscapes)
    assert target.anchors == before[0]
    assert torch.equal(sky, before[1]) and torch.equal(subject, before[2])


def test_cancel_stops_the_measuring(run, landscapes):
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run("VedutaMeasureComposition", image=landscapes)
    finally:
        with contextlib.suppress(comfy.model_management.InterruptProcessingException):
            comfy.model_management.interrupt_current_processing(False)


def test_the_default_confidence_is_that_of_the_method(node_classes):
    from veduta.models.composition.measure import measure_composition

    default = inspect.signature(measure_composition).parameters["min_confidence"].default
    for node_id in ("VedutaMeasureComposition", "VedutaScoreComposition"):
        inputs = {part.id: part for part in node_classes[node_id].GET_SCHEMA().inputs}
        assert inputs["min_confidence"].default == default


def test_menu_and_search_know_the_nodes(node_classes):
    for node_id in IDS:
        schema = node_classes[node_id].GET_SCHEMA()
        assert schema.category == "Veduta/Composition"
        assert schema.description and schema.search_aliases


def test_the_english_texts_are_those_of_the_code(node_classes):
    texts = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    for node_id in IDS:
        schema, entry = node_classes[node_id].GET_SCHEMA(), texts[node_id]
        assert entry["display_name"] == schema.display_name
        assert entry["description"] == schema.description
        for part in schema.inputs:
            assert entry["inputs"][part.id]["tooltip"] == part.tooltip
        for index, part in enumerate(schema.outputs):
            assert entry["outputs"][str(index)]["tooltip"] == part.tooltip
