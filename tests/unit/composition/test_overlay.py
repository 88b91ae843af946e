"""The overlay shows lines where the anchors say, in colours that tell them apart."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from veduta.models.common.anchor import Anchor
from veduta.models.composition.overlay import BLUE, YELLOW, draw_overlays

GREY = 0.5


def grey(batch=1, height=512, width=640, value=GREY):
    return torch.full((batch, 3, height, width), value)


def rows_of(picture, colour, column):
    """Rows whose pixel is of that colour, as the mean height; None if there is none."""
    wanted = torch.tensor(colour).float() / 255
    close = (picture[:, :, column] - wanted[:, None]).abs().amax(0) < 0.1
    rows = close.nonzero().flatten().float()
    return rows.mean().item() if len(rows) else None


def test_found_line_lies_where_it_was_found():
    picture = draw_overlays(grey(), [Anchor(horizon=0.25, tilt_deg=0.0)])[0]
    assert rows_of(picture, BLUE, 320) == pytest.approx(0.25 * 512, abs=1.5)


def test_tilted_line_meets_both_edges_where_the_anchor_says():
    anchor = Anchor(horizon=0.4, tilt_deg=6.0)
    picture = draw_overlays(grey(), [anchor])[0]
    for column in (2, 637):
        expected = anchor.horizon_at(column / 640, 640 / 512) * 512
        assert rows_of(picture, BLUE, column) == pytest.approx(expected, abs=2)


def test_wanted_line_is_dashed_and_found_line_is_not():
    picture = draw_overlays(grey(), [Anchor(horizon=0.25)], [Anchor(horizon=0.75)], "none")[0]
    columns = range(4, 636)
    found = [rows_of(picture[:, 100:156], BLUE, column) is not None for column in columns]
    wanted = [rows_of(picture[:, 356:412], YELLOW, column) is not None for column in columns]
    assert all(found)
    assert 0.3 < np.mean(wanted) < 0.9


def test_wanted_and_found_differ_in_lightness_too():
    light, dark = (np.dot(colour, (0.2126, 0.7152, 0.0722)) for colour in (YELLOW, BLUE))
    assert light - dark > 100


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("colour", [YELLOW, BLUE])
def test_lines_stand_out_on_black_and_on_white(value, colour):
    anchors = {"found": [Anchor(horizon=0.3)], "wanted": [Anchor(horizon=0.3)]}
    if colour == BLUE:
        anchors["wanted"] = None
    else:
        anchors["found"] = [Anchor()]
    picture = draw_overlays(grey(value=value), guides="none", **anchors)[0]
    band = picture[:, 140:168].mean(0)
    assert (band - value).abs().max() > 0.6


def test_marks_sit_on_the_subject():
    found, wanted = Anchor(subject_x=0.25, subject_y=0.5), Anchor(subject_x=0.75, subject_y=0.5)
    clean = draw_overlays(grey(), [Anchor()], [Anchor()], "none")[0]
    picture = draw_overlays(grey(), [found], [wanted], "none")[0]
    changed = (picture - clean).abs().amax(0)[:400] > 0.1  # above the legend
    rows, columns = changed.nonzero().T
    left = columns < 320
    assert columns[left].float().mean().item() == pytest.approx(160, abs=2)
    assert columns[~left].float().mean().item() == pytest.approx(480, abs=2)
    assert rows.float().mean().item() == pytest.approx(256, abs=2)


def test_a_wanted_column_alone_is_a_line_down():
    picture = draw_overlays(grey(), [Anchor()], [Anchor(subject_x=0.5)], "none")[0]
    clean = draw_overlays(grey(), [Anchor()], [Anchor()], "none")[0]
    changed = (picture - clean).abs().amax(0)[:400] > 0.1
    assert changed[:, 314:327].any(1).float().mean() > 0.5
    assert not changed[:, :300].any()


def test_small_pictures_are_enlarged_by_a_whole_number():
    assert draw_overlays(grey(2, 100, 128), [Anchor()] * 2).shape == (2, 3, 600, 768)


def test_large_pictures_keep_their_size_and_get_wider_lines():
    thickness = []
    for size in (512, 2048):
        picture = draw_overlays(grey(1, size, size), [Anchor(horizon=0.3)])[0]
        wanted = torch.tensor(BLUE).float() / 255
        column = (picture[:, : size // 2, size // 2] - wanted[:, None]).abs().amax(0) < 0.1
        assert picture.shape == (3, size, size)
        thickness.append(column.sum().item())
    assert thickness[1] >= 2.5 * thickness[0]


@pytest.mark.parametrize(("guides", "count"), [("thirds", 2), ("golden section", 2), ("none", 0)])
def test_guides(guides, count):
    picture = draw_overlays(grey(), [Anchor()], guides=guides)[0]
    changed = (picture[:, :400] - GREY).abs().amax(0) > 0.05
    lines = changed.float().mean(0) > 0.5  # columns covered from top to bottom
    assert (lines[1:] & ~lines[:-1]).sum().item() == count


def test_the_picture_shows_through_away_from_lines():
    image = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    picture = draw_overlays(image, [Anchor(horizon=0.8)], guides="none")
    assert_close(picture[..., 100:300, :], image[..., 100:300, :], atol=1 / 255, rtol=0)


def test_the_given_picture_is_left_alone():
    image = grey()
    draw_overlays(image, [Anchor(horizon=0.3, subject_x=0.2, subject_y=0.2)])
    assert torch.equal(image, grey())


def test_legend_keeps_away_from_the_lines():
    low = draw_overlays(grey(), [Anchor(horizon=0.95)], guides="none")[0]
    high = draw_overlays(grey(), [Anchor(horizon=0.05)], guides="none")[0]
    assert low[:, 2, 600].max() < 0.3 and low[:, 440, 600].min() > 0.4
    assert high[:, 509, 600].max() < 0.3


def test_progress_is_told_after_each_picture():
    calls = []
    draw_overlays(grey(3, 16, 16), [Anchor()] * 3, advance=lambda: calls.append(1))
    assert len(calls) == 3


def test_wrong_counts_and_names_are_refused():
    with pytest.raises(ValueError, match="image holds 1 pictures, found 2 anchors and wanted 2"):
        draw_overlays(grey(), [Anchor()] * 2)
    with pytest.raises(ValueError, match="guides is 'spiral', one of thirds"):
        draw_overlays(grey(), [Anchor()], guides="spiral")
