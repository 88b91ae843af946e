"""The horizon network's training pictures: labels stay true while frames move."""

import numpy as np
import pytest
import torch
from torch import Generator

from veduta.mini.horizon import train_pixels
from veduta.mini.horizon_views import move_frame, paste, recolour
from veduta.mini.photolike import draw
from veduta.models.composition.horizon_pixels import pixels_of


def ramp_scene(left: float, right: float, side: int = 120) -> torch.Tensor:
    axis = (torch.arange(side) + 0.5) / side
    below = (axis[:, None] > left + (right - left) * axis[None]).float()
    return below.expand(3, side, side)[None]


@pytest.mark.parametrize("seed", range(12))
def test_label_follows_the_line_through_crop_turn_and_mirror(seed):
    image, label = ramp_scene(0.45, 0.55), torch.tensor([[0.45, 0.55]])
    moved, heights, weight = move_frame(image, label, Generator().manual_seed(seed))
    if heights.isnan().any() or weight[0] == 0:
        return
    side = moved.shape[-1]
    for column, height in ((2, heights[0, 0]), (side - 3, heights[0, 1])):
        if 0.1 < height < 0.9:
            edge = (moved[0, 0, :, column] < 0.5).sum() / side  # rows above the line
            assert abs(float(edge) - float(height)) < 0.03


def test_a_line_that_leaves_the_frame_becomes_none():
    image, label = ramp_scene(0.05, 0.05).repeat(64, 1, 1, 1), torch.full((64, 2), 0.05)
    _, heights, _ = move_frame(image, label, Generator().manual_seed(0))
    gone = heights.isnan().all(1)
    assert 0 < int(gone.sum()) < 64
    assert bool(((heights[~gone] > -0.5) & (heights[~gone] < 1.5)).all())


def test_augmentation_keeps_range_and_inputs():
    generator = Generator().manual_seed(1)
    image = torch.rand(8, 3, 32, 32, generator=generator)
    labels = torch.full((8, 2), 0.5)
    labels[:3] = float("nan")
    before = image.clone()
    out = recolour(paste(image, labels, generator), generator)
    assert torch.equal(image, before)
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_same_seed_same_picture_other_seed_other_picture():
    first, again, other = draw(5), draw(5), draw(6)
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("seed", range(20))
def test_drawn_labels_lie_in_the_frame(seed):
    picture = draw(seed)
    assert picture.image.dtype == np.uint8
    assert (picture.left is None) == (picture.right is None)
    if picture.left is not None:
        assert -0.1 < (picture.left + picture.right) / 2 < 1
        assert 0 <= picture.visible <= 1


def test_the_pixel_network_learns_from_a_pool_on_disk(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "pool").mkdir()
    images = np.concatenate(
        [(ramp_scene(0.5, 0.5)[0].numpy() * 255).astype(np.uint8).transpose(1, 2, 0)[None]] * 12
        + [generator.integers(0, 255, (1, 120, 120, 3), np.uint8) for _ in range(12)]
    )
    labels = np.array([[0.5, 0.5]] * 12 + [[np.nan, np.nan]] * 12, np.float32)
    np.savez(tmp_path / "pool" / "part00000000.npz", images=images, labels=labels)
    network = train_pixels(tmp_path, 14)
    with torch.no_grad():
        seen = network(pixels_of(torch.from_numpy(images[[0, 12]]).permute(0, 3, 1, 2) / 255))
    assert seen.presence[0] > seen.presence[1]
