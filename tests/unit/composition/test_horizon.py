"""The horizon finder on pictures whose horizon is known."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from veduta.models.composition.frame import content_box
from veduta.models.composition.horizon import find_horizons
from veduta.models.composition.horizon_edge import settle
from veduta.models.composition.horizon_lines import (
    candidate_lines,
    channels_of,
    describe_lines,
    heights_at,
    square_of,
    squeeze,
)
from veduta.models.composition.horizon_mask import horizon_of_mask
from veduta.models.composition.horizon_pixels import mirror_images, pixels_of
from veduta.models.composition.horizon_voters import (
    find_segments,
    vote_coherence,
    vote_segments,
    vote_split,
)
from veduta.models.composition.weights import load_network, load_pixel_network


def two_tone(left: float, right: float, side: int = 128) -> Tensor:
    """Blue over brown, (1 3 s s), parted by a line between two edge heights."""
    axis = (torch.arange(side) + 0.5) / side
    below = (axis[:, None] > left + (right - left) * axis[None]).float()
    sky, land = torch.tensor([0.55, 0.7, 0.9]), torch.tensor([0.35, 0.25, 0.12])
    return torch.lerp(sky[:, None, None], land[:, None, None], below)[None]


def grain(seed: int, side: int = 128) -> Tensor:
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return noise * 0.3 + 0.35


def gap(line: Tensor, left: float, right: float) -> float:
    return float((line - torch.tensor([left, right])).abs().max())


@pytest.mark.parametrize(("left", "right"), [(0.5, 0.5), (0.3, 0.4), (0.7, 0.55)])
def test_every_classical_voter_prefers_the_edge_of_two_tones(left, right):
    lines, image = candidate_lines(), two_tone(left, right)
    stats = describe_lines(channels_of(squeeze(image)), lines)
    votes = [vote_coherence(stats.thin)[0], vote_split(stats, lines)[0]]
    votes.append(vote_segments(find_segments(image[0]), lines))
    for vote in votes:
        assert gap(lines[vote.argmax()], left, right) < 0.035  # the grid's own step is 0.033


def test_band_means_of_a_ramp_by_hand():
    side = 100
    ramp = (torch.arange(side) + 0.5)[:, None].expand(side, side)[None, None] / side
    stats = describe_lines(ramp, torch.tensor([[0.5, 0.5]]), thin=0.1)
    assert_close(stats.thin[0, 0, 0, 0], torch.tensor([0.45, 0.55]))  # middles of the two bands
    assert_close(stats.far[0, 0, 0], torch.tensor([0.25, 0.75]))


def test_heights_run_from_edge_to_edge():
    heights = heights_at(torch.tensor([[0.2, 0.6]]), torch.tensor([0.0, 0.5, 1.0]))
    assert_close(heights, torch.tensor([[0.2, 0.4, 0.6]]))


@pytest.mark.parametrize(("left", "right"), [(0.5, 0.5), (0.34, 0.46), (0.7, 0.6)])
def test_line_between_two_tones_is_found(left, right):
    found = find_horizons(two_tone(left, right), load_network(), load_pixel_network())[0]
    assert found is not None
    assert abs(found.left - left) < 0.03
    assert abs(found.right - right) < 0.03


def test_mirroring_swaps_the_edges():
    image = two_tone(0.4, 0.5)
    found, mirrored = find_horizons(
        torch.cat([image, image.flip(-1)]), load_network(), load_pixel_network()
    )
    assert found is not None
    assert mirrored is not None
    assert abs(found.left - mirrored.right) < 0.02
    assert abs(found.right - mirrored.left) < 0.02


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_has_no_sure_horizon(seed):
    found = find_horizons(grain(seed), load_network(), load_pixel_network())[0]
    assert found is None or found.confidence < 0.5


def test_flat_picture_has_none():
    assert find_horizons(torch.full((1, 3, 64, 64), 0.4), load_network(), load_pixel_network()) == [
        None
    ]


def test_letterbox_bars_are_not_part_of_the_picture():
    image = grain(5)[0].clone()
    image[:, :16] = 0.0
    image[:, -16:] = 0.0
    assert content_box(image) == (0.0, 0.125, 1.0, 0.875)
    assert content_box(grain(5)[0]) == (0.0, 0.0, 1.0, 1.0)


def test_an_even_sky_over_uneven_land_is_no_border():
    image = grain(6)[0].clone()
    image[:, :50] = 0.7
    assert content_box(image) == (0.0, 0.0, 1.0, 1.0)


def test_mask_line_ignores_a_tower():
    axis = (torch.arange(200) + 0.5) / 200
    sky = (axis[:, None] < 0.4 + 0.2 * axis[None]).float()
    sky[:, 60:90] = (axis[:, None] < 0.1).float()
    left, right, share = horizon_of_mask(sky)
    assert math.isclose(left, 0.4, abs_tol=0.01)
    assert math.isclose(right, 0.6, abs_tol=0.01)
    assert 0.8 < share < 0.9


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_mask_of_one_value_has_no_line(value):
    assert horizon_of_mask(torch.full((50, 80), value)) is None


def test_the_pixel_network_sees_a_mirror_image_as_its_mirror_image():
    pixels = pixels_of(two_tone(0.4, 0.5))
    network = load_pixel_network()
    with torch.no_grad():
        there, back = network.of_both_ways(pixels), network.of_both_ways(pixels.flip(-1))
    assert_close(back.lines, there.lines[:, mirror_images()])
    assert_close(back.presence, there.presence)
    assert gap(candidate_lines()[there.lines[0].argmax()], 0.4, 0.5) < 0.05


def test_mirror_images_swap_the_edges_by_hand():
    lines = candidate_lines()
    assert torch.equal(lines[mirror_images()], lines.flip(1))


@pytest.mark.parametrize(("left", "right"), [(0.5, 0.55), (0.31, 0.29)])
def test_a_line_settles_on_the_clean_edge_beside_it(left, right):
    rough = torch.tensor([left + 0.03, right - 0.02])
    assert gap(settle(two_tone(left, right, 384)[0], rough), left, right) < 0.004


def test_a_line_in_grain_stays_where_it_is():
    line = torch.tensor([0.4, 0.5])
    assert torch.equal(settle(grain(3, 384)[0], line), line)


def test_a_foreign_pixel_network_is_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors is no horizon network"):
        load_pixel_network(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_squeezing_is_the_same_for_either_order_of_memory(channels):
    planar = torch.rand(2, channels, 150, 175, generator=torch.Generator().manual_seed(2))
    interleaved = planar.contiguous(memory_format=torch.channels_last)
    # torch rounds its windows outwards, the other weighs the px at their edges
    assert_close(square_of(interleaved, 50), square_of(planar, 50), atol=0.08, rtol=0)
    assert_close(
        square_of(interleaved[..., :150], 50), square_of(planar[..., :150], 50), atol=1e-6, rtol=0
    )
