"""Spectral residual, mixing, the heat map and attention rollout."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from veduta.models.common.spectral_residual import spectral_residual
from veduta.models.saliency.clip_attention import Tower, attention_of, attention_saliency, rollout
from veduta.models.saliency.heat_map import draw_heat_map
from veduta.models.saliency.maps import centre_prior, unit_map
from veduta.models.saliency.mixing import MAXIMUM, MEAN, PRODUCT, FixedMap, Mixture, mix_maps
from veduta.models.saliency.spectral import spectral_saliency


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def residual_by_angle(channel):
    """Hou and Zhang's own form, in float64."""
    spectrum = np.fft.fft2(channel)
    log = np.log(np.abs(spectrum) + 1e-4)
    padded = np.pad(log, 1, mode="edge")
    h, w = log.shape
    mean = sum(padded[y : y + h, x : x + w] for y in range(3) for x in range(3)) / 9
    return np.abs(np.fft.ifft2(np.exp(log - mean + 1j * np.angle(spectrum)))) ** 2


@pytest.mark.parametrize("size", [(64, 64), (17, 32)])
def test_spectral_residual_is_numpys(size):
    channels = draw(2, 3, *size).double()
    expected = [[residual_by_angle(c.numpy()) for c in planes] for planes in channels]
    # e = 1e-4 under the log is divided out in one form and not in the other
    assert_close(
        spectral_residual(channels), torch.tensor(np.array(expected)), rtol=1e-3, atol=1e-7
    )


def test_a_dot_off_the_middle_is_the_most_salient():
    image = torch.full((1, 3, 96, 128), 0.4)
    image[..., 20:28, 90:98] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    found = spectral_saliency(image + 0.02 * draw(1, 3, 96, 128))
    y, x = divmod(int(found.argmax()), 128)
    assert abs(y - 24) < 8 and abs(x - 94) < 8
    assert found.shape == (1, 1, 96, 128) and float(found.max()) == pytest.approx(1.0)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_flat_picture_gives_the_centre_prior(level):
    found = spectral_saliency(torch.full((1, 3, 64, 64), level))
    assert_close(found, unit_map(centre_prior(64, 64, 0.3, found)), atol=1e-4, rtol=0)


def test_centre_prior_by_hand():
    prior = centre_prior(1, 5, 0.2, torch.zeros(1))[0, 0, 0]
    assert_close(prior, torch.exp(-torch.tensor([0.4, 0.2, 0.0, 0.2, 0.4]).square() / 0.08))


def test_spectral_saliency_has_the_gradient_of_finite_differences():
    image = draw(1, 3, 40, 40).double().requires_grad_()
    assert torch.autograd.gradcheck(spectral_saliency, image, fast_mode=True, atol=1e-4)


def test_mixes_by_hand():
    a, b = torch.tensor([0.2, 1.0]), torch.tensor([0.8, 0.5])
    maps = [x.reshape(1, 1, 1, 2) for x in (a, b)]
    cases = {MEAN: (a + 3 * b) / 4, MAXIMUM: torch.maximum(a / 3, b), PRODUCT: a * b**3}
    for how, expected in cases.items():
        assert_close(mix_maps(maps, [1.0, 3.0], how)[0, 0, 0], expected)
        assert_close(mix_maps(maps, [1.0, 0.0], how)[0, 0, 0], a)


@pytest.mark.parametrize(
    ("weights", "how", "words"),
    [
        ([0.0, 0.0], MEAN, "weights of the maps are 0, 0, one at least must be above 0"),
        ([1.0, -1.0], MEAN, "1, -1"),
        ([1.0, 1.0], "sum", "combine is 'sum'"),
    ],
)
def test_mixing_refuses(weights, how, words):
    with pytest.raises(ValueError, match=words):
        mix_maps([draw(1, 1, 2, 2)] * 2, weights, how)


def test_a_mixture_follows_the_picture_and_fixed_maps_stay():
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    mixture = Mixture(((FixedMap(left), 1.0), (lambda x: x[:, :1], 1.0)), PRODUCT)
    image = torch.full((2, 3, 16, 16), 0.2)
    image[0, :, 5, 2] = 0.8
    found = mixture(image)
    assert found.shape == (2, 1, 16, 16)
    assert int(found[0].argmax()) == 5 * 16 + 2
    assert float(found[..., 12:].max()) == 0 and float(found[1].max()) == 1


def test_maps_without_a_common_place_are_refused():
    left, right = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    left[..., :4], right[..., 4:] = 1, 1
    mixture = Mixture(((FixedMap(left), 1.0), (FixedMap(right), 1.0)), PRODUCT)
    with pytest.raises(ValueError, match=r"joined map \(product\) is 0 everywhere"):
        mixture(draw(1, 3, 8, 8))


def test_heat_map_at_both_ends_of_the_scale():
    drawn = draw_heat_map(torch.zeros(1, 3, 1, 2), torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2))
    expected = 0.6 * torch.tensor([[0, 0, 4], [252, 255, 164]]).t() / 255
    assert_close(drawn[0, :, 0], expected)
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    assert_close(
        draw_heat_map(red, torch.full((1, 1, 1, 1), 0.25)).flatten(),
        0.4 * torch.tensor([0.299] * 3) + 0.6 * torch.tensor([87, 16, 110]) / 255,
    )


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width), nn.Module()
        self.self_attn.q_proj = nn.Linear(width, width)
        self.self_attn.k_proj = nn.Linear(width, width)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return [Layer(8).double() for _ in range(3)]


def test_rollout_is_the_product_of_the_layers_matrices(layers):
    states = draw(2, 3, 5, 8).double()
    matrices = [attention_of(layers[i], states[:, i - 1], 2).mean(1) for i in (1, 2)]
    mixed = [0.5 * m + 0.5 * torch.eye(5, dtype=torch.float64) for m in matrices]
    assert_close(rollout(states, layers, 2), (mixed[1] @ mixed[0])[:, 0, 1:])


def test_attention_is_that_of_torchs_own_layer(layers):
    layer, hidden = layers[0], draw(1, 5, 8).double()
    own = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        q, k = layer.self_attn.q_proj, layer.self_attn.k_proj
        own.in_proj_weight[:8], own.in_proj_weight[8:16] = q.weight, k.weight
        own.in_proj_bias[:8], own.in_proj_bias[8:16] = q.bias, k.bias
    x = layer.layer_norm1(hidden)
    expected = own(x, x, x, average_attn_weights=False)[1]
    assert_close(attention_of(layer, hidden, 2), expected)


def test_attention_saliency_sees_the_whole_picture(layers):
    patches = nn.Conv2d(3, 8, 4, 4)

    def states(pixels):
        tokens = patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1).double()
        return torch.stack([tokens, tokens * 2, tokens * 3], 1)

    tower = Tower(states, layers, 2, 8, [0.5] * 3, [0.2] * 3)
    image = draw(2, 3, 20, 30).requires_grad_()
    found = attention_saliency(tower, image)
    assert found.shape == (2, 1, 20, 30)
    assert_close(found.amin((1, 2, 3)), torch.zeros(2, dtype=torch.float64))
    assert_close(found.amax((1, 2, 3)), torch.ones(2, dtype=torch.float64))
    found.square().sum().backward()
    assert bool((image.grad[..., :3].abs().sum((1, 2, 3)) > 0).all())
