"""Likeness of pictures: numbers by hand, other implementations, regions, what is missing."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from veduta.models.common.metrics import (
    INSIDE,
    OUTSIDE,
    WHOLE,
    MissingMetricError,
    kept_to,
    measure_likeness,
    measure_lpips,
    paired,
)


def pictures(count=2, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator)


def left_half(size=32):
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1.0
    return mask


def test_a_tenth_everywhere_is_20_db():
    found = measure_likeness(torch.full((1, 3, 16, 16), 0.6), torch.full((1, 3, 16, 16), 0.5))
    assert_close(found[WHOLE].mse, torch.tensor([0.01]))
    assert_close(found[WHOLE].psnr, torch.tensor([20.0]), atol=1e-3, rtol=0)
    assert list(found) == [WHOLE]


def test_equal_pictures_are_infinitely_alike():
    x = pictures()
    found = measure_likeness(x, x.clone())[WHOLE]
    assert found.psnr.tolist() == [math.inf, math.inf]
    assert_close(found.ssim, torch.ones(2))


def test_whole_pictures_agree_with_torchmetrics():
    x, y = pictures(), pictures(seed=1)
    found = measure_likeness(x, y)[WHOLE]
    for i in range(2):
        psnr = peak_signal_noise_ratio(x[i : i + 1], y[i : i + 1], data_range=1.0)
        assert_close(found.psnr[i], psnr)
    ssim = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert_close(found.ssim, ssim, atol=1e-4, rtol=0)


def test_each_side_of_a_mask_sees_its_own_pixels():
    x = pictures()
    y = torch.where(left_half() > 0, (x - 0.1).abs(), x)
    found = measure_likeness(x, y, left_half())
    assert found[OUTSIDE].psnr.tolist() == [math.inf] * 2
    assert found[OUTSIDE].mse.tolist() == [0.0] * 2
    assert_close(found[WHOLE].mse, found[INSIDE].mse / 2)


def test_one_reference_and_one_mask_serve_a_batch():
    x, y = pictures(3), pictures(1, seed=1)
    together = measure_likeness(x, y, left_half())[INSIDE].psnr
    alone = [measure_likeness(x[i : i + 1], y, left_half())[INSIDE].psnr for i in range(3)]
    assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(("level", "missing"), [(0.0, INSIDE), (1.0, OUTSIDE)])
def test_a_side_without_pixels_has_no_row(level, missing):
    found = measure_likeness(pictures(), pictures(seed=1), torch.full((1, 1, 32, 32), level))
    assert missing not in found


def test_other_sizes_say_what_to_do():
    with pytest.raises(ValueError, match="image is 32 x 32 px, reference is 16 x 16 px"):
        measure_likeness(pictures(), pictures(size=16))
    with pytest.raises(ValueError, match="vae holds 3 pictures, image holds 2"):
        paired(pictures(), pictures(3), "vae")


def test_only_the_region_differs():
    x, y = pictures(), pictures(seed=1)
    kept = kept_to(left_half() > 0, x, y)
    assert torch.equal(kept[..., :16], x[..., :16])
    assert torch.equal(kept[..., 16:], y[..., 16:])


def test_lpips_without_its_network_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingMetricError, match="alexnet-owt-.*pth in .* from https"):
        measure_lpips([(pictures(), pictures(seed=1))])
    assert list(tmp_path.rglob("*.pth")) == []


def test_lpips_of_a_tiny_picture_is_refused():
    with pytest.raises(MissingMetricError, match="32 px a side"):
        measure_lpips([(pictures(size=16), pictures(size=16))])


def test_lpips_is_torchmetrics_with_the_network_on_disk(tmp_path, monkeypatch):
    from torchvision.models import AlexNet, AlexNet_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {
            k: v if k.startswith("features") else v[:0] for k, v in AlexNet().state_dict().items()
        }
    monkeypatch.setattr(
        AlexNet, "load_state_dict",
        lambda self, found, **_: self.features.load_state_dict(
            {k[9:]: v for k, v in found.items() if k.startswith("features")}
        ),
    )  # fmt: skip
    name = AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[1]
    torch.save(state, tmp_path / "hub" / "checkpoints" / name)
    x, y = pictures(size=64), pictures(size=64, seed=1)
    (first, second) = measure_lpips([(x, y), (x[:1], x[:1])])
    expected = learned_perceptual_image_patch_similarity(x, y, normalize=True, reduction="none")
    assert_close(first, expected)
    assert first.min() > 0
    assert second.tolist() == [0.0]
