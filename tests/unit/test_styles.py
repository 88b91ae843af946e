"""Painted styles: truth kept, styles far apart, people where they are promised."""

import numpy as np
import pytest

from veduta.mini.painter import paint
from veduta.mini.styles import STYLES, figure_scene, paint_in_style, place_scene


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_the_picture_and_keeps_its_truth(style):
    plan = figure_scene(3)
    plain, styled = paint(plan, 96), paint_in_style(plan, style, 96)
    assert styled.image.shape == plain.image.shape and styled.image.dtype == np.uint8
    assert np.abs(styled.image.astype(float) - plain.image).mean() > 5
    np.testing.assert_array_equal(styled.subject_mask, plain.subject_mask)
    assert styled.caption == plain.caption
    again = paint_in_style(plan, style, 96)
    np.testing.assert_array_equal(styled.image, again.image)


def test_styles_differ_from_each_other():
    plan = figure_scene(4)
    whole = [style for style in STYLES if style != "collage"]  # which is partly another one
    pictures = [paint_in_style(plan, style, 96).image.astype(float) for style in whole]
    for i, one in enumerate(pictures):
        assert all(np.abs(one - other).mean() > 5 for other in pictures[:i])


def test_the_collage_is_its_parts():
    plan = figure_scene(5)
    both = paint_in_style(plan, "collage", 96)
    inside = both.subject_mask > 0
    neon, paper = (paint_in_style(plan, style, 96).image for style in ("night neon", "paper cut"))
    np.testing.assert_array_equal(both.image[inside], neon[inside])
    outside = np.abs(both.image[~inside].astype(float) - paper[~inside])
    assert outside.mean() < 10  # the paper's grain is drawn anew


def test_figures_are_people_and_places_are_empty():
    for seed in range(20):
        with_figure = paint(figure_scene(seed), 64)
        assert with_figure.subject_kind == "figure" and "figure" in with_figure.caption
        assert 0.01 < (with_figure.subject_mask > 0).mean() < 0.4
        empty = paint(place_scene(seed), 64)
        assert empty.subject_kind is None and "figure" not in empty.caption


def test_portraits_are_larger():
    share = [
        np.mean(
            [(paint(figure_scene(seed, close), 64).subject_mask > 0).mean() for seed in range(8)]
        )
        for close in (False, True)
    ]
    assert share[1] > 1.5 * share[0]
