"""TranSalNet and UNISAL: released layouts, every block against torchvision or a plain formula, files."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchvision.models import densenet161, mobilenet_v2, resnet50
from torchvision.models.densenet import _DenseBlock
from torchvision.models.resnet import Bottleneck as TorchBottleneck

from veduta.models.saliency import transalnet, unisal
from veduta.models.saliency.layers import fill
from veduta.models.saliency.weights import load_saliency_network, saliency_network_of

DOMAINS = ("DHF1K", "Hollywood", "UCFSports", "SALICON")


def norm(name, width):
    shapes = {
        f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {**shapes, f"{name}.num_batches_tracked": ()}


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv(name, inputs, outputs, size=3, bias=True):
    shapes = {f"{name}.weight": (outputs, inputs, size, size)}
    return {**shapes, f"{name}.bias": (outputs,)} if bias else shapes


def layer_norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def branch(number, inputs, tokens, width):
    name = f"decoder.TransEncoder{number}"
    shapes = {**conv(f"{name}.patch_embeddings", inputs, width, 1)}
    shapes[f"{name}.position_embeddings"] = (1, tokens, width)
    for layer in (0, 1):
        block = f"{name}.transformer_encoder.layer.{layer}"
        for part in ("attention_norm", "ffn_norm"):
            shapes |= layer_norm(f"{block}.{part}", width)
        for part in ("query", "key", "value", "out"):
            shapes |= linear(f"{block}.attn.{part}", width, width)
        shapes |= linear(f"{block}.ffn.fc1", width, 4 * width)
        shapes |= linear(f"{block}.ffn.fc2", 4 * width, width)
    return shapes | layer_norm(f"{name}.transformer_encoder.encoder_norm", width)


def decoder(taps, widths=(768, 768, 512), channels=(768, 512, 256, 128, 64, 32, 1)):
    shapes = {}
    for number, (tap, tokens, width) in enumerate(
        zip(taps, (108, 432, 1728), widths, strict=True), start=1
    ):
        shapes |= branch(number, tap, tokens, width)
    for number, (inputs, outputs) in enumerate(
        zip((widths[0], *channels), channels, strict=False), start=1
    ):
        shapes |= conv(f"decoder.conv{number}", inputs, outputs)
        if number < 7:
            shapes |= norm(f"decoder.batchnorm{number}", outputs)
    return shapes


def encoder(children):
    state = nn.ModuleList(children).state_dict()
    return {f"encoder.encoder.{key}": tuple(value.shape) for key, value in state.items()}


def released_transalnet(form):
    with torch.device("meta"):
        if form == "res":
            children, taps = list(resnet50(weights=None).children())[:8], (2048, 1024, 512)
        else:
            children = list(densenet161(weights=None).features.children())[:-1]
            taps = (2208, 2112, 768)
    return {**encoder(children), **decoder(taps)}


def narrow_transalnet(form):
    shapes = {**conv("encoder.encoder.0", 3, 8, 7, bias=False), **norm("encoder.encoder.1", 8)}
    width = 8
    for stage in range(4):
        if form == "res":
            name = f"encoder.encoder.{4 + stage}.0"
            shapes |= conv(f"{name}.conv1", width, 4, 1, bias=False) | norm(f"{name}.bn1", 4)
            shapes |= conv(f"{name}.conv2", 4, 4, bias=False) | norm(f"{name}.bn2", 4)
            shapes |= conv(f"{name}.conv3", 4, 16, 1, bias=False) | norm(f"{name}.bn3", 16)
            shapes |= conv(f"{name}.downsample.0", width, 16, 1, bias=False)
            shapes |= norm(f"{name}.downsample.1", 16)
            width = 16
        else:
            name = f"encoder.encoder.{4 + 2 * stage}.denselayer1"
            shapes |= norm(f"{name}.norm1", width) | conv(f"{name}.conv1", width, 8, 1, bias=False)
            shapes |= norm(f"{name}.norm2", 8) | conv(f"{name}.conv2", 8, 8, bias=False)
            width += 8
            if stage < 3:
                name = f"encoder.encoder.{5 + 2 * stage}"
                shapes |= norm(f"{name}.norm", width)
                shapes |= conv(f"{name}.conv", width, 8, 1, bias=False)
                width = 8
    return shapes | decoder((16, 16, 16), (64, 64, 64), (64, 64, 8, 8, 8, 8, 1))


def domain_norm(name, width):
    shapes = {}
    for domain in DOMAINS:
        shapes |= norm(f"{name}.bn_{domain}", width)
    return shapes


def inverted(name, inputs, outputs, ratio, norms):
    hidden = inputs * ratio
    sizes = [(1, hidden, 3), (hidden, outputs, 1)]
    if ratio > 1:
        sizes.insert(0, (inputs, hidden, 1))
    shapes = {}
    for index, (ins, outs, size) in enumerate(sizes):
        shapes |= conv(f"{name}.conv.{3 * index}", ins, outs, size, bias=False)
        shapes |= norms(f"{name}.conv.{3 * index + 1}", outs)
    return shapes


def released_backbone():
    shapes = {**conv("cnn.features.0.0", 3, 32, bias=False), **norm("cnn.features.0.1", 32)}
    settings = [
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ]
    blocks = [(ratio, outputs) for ratio, outputs, count in settings for _ in range(count)]
    width = 32
    for index, (ratio, outputs) in enumerate(blocks, start=1):
        shapes |= inverted(f"cnn.features.{index}", width, outputs, ratio, norm)
        width = outputs
    shapes |= conv("cnn.features.18.0", 320, 1280, 1, bias=False)
    return shapes | norm("cnn.features.18.1", 1280)


def released_unisal():
    shapes = {**released_backbone(), **inverted("post_cnn.inv_res", 1296, 256, 1, norm)}
    for name, inputs, outputs in (("skip_2x", 160, 128), ("skip_4x", 64, 64)):
        shapes |= conv(f"{name}.expansion.0", inputs, 2 * inputs, 1, bias=False)
        shapes |= domain_norm(f"{name}.expansion.1", 2 * inputs)
        shapes |= conv(f"{name}.reduction.0", 2 * inputs, outputs, 1)
        shapes |= domain_norm(f"{name}.reduction.1", outputs)
    shapes |= inverted("upsampling_2.inv_res", 384, 128, 2, domain_norm)
    shapes |= inverted("post_upsampling_2.inv_res", 192, 64, 2, domain_norm)
    shapes["rnn.cell_list.0.b_r"] = (256, 1, 1)
    shapes |= conv("post_rnn.0", 256, 256, 1, bias=False) | domain_norm("post_rnn.1", 256)
    for domain in (domain.lower() for domain in DOMAINS):
        shapes |= conv(f"adaptation_{domain}.0", 64, 1, 1)
        shapes[f"smoothing_{domain}.weight"] = (1, 1, 41, 41)
        shapes[f"coarse_gaussians_{domain}"] = (16, 2, 2)
    return shapes


RELEASED = {
    "TranSalNet (Res)": lambda: released_transalnet("res"),
    "TranSalNet (Dense)": lambda: released_transalnet("dense"),
    "UNISAL": released_unisal,
}
MILLIONS = {"TranSalNet (Res)": 72.5, "TranSalNet (Dense)": 76.6}


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            fan = max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 1
            state[key] = torch.randn(shape, generator=generator) / fan**0.5
    return state


@pytest.mark.parametrize("kind", RELEASED)
def test_the_released_layout_is_accepted(kind):
    state = {key: torch.empty(shape, device="meta") for key, shape in RELEASED[kind]().items()}
    loaded = saliency_network_of(state, "file")
    assert loaded.kind == kind
    with torch.device("meta"):
        assert loaded.network(torch.empty(2, 3, 288, 384)).shape == (2, 1, 288, 384)
    if kind in MILLIONS:
        count = sum(parameter.numel() for parameter in loaded.network.parameters())
        assert count / 1e6 == pytest.approx(MILLIONS[kind], abs=0.05)


@pytest.mark.parametrize("form", ["res", "dense"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_gives_maps_of_the_pictures_size(tmp_path, form, suffix):
    state = random_state(narrow_transalnet(form))
    path = tmp_path / f"any{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file({key: x.half() for key, x in state.items()}, path)
    loaded = load_saliency_network(path)
    found = loaded.find(torch.rand(2, 3, 50, 70))
    assert found.shape == (2, 1, 50, 70) and float(found.min()) >= 0
    assert_close(found.amax((1, 2, 3)), torch.ones(2))
    assert float(found.std()) > 0


def test_unisal_of_the_released_sizes_runs_from_a_file(tmp_path):
    path = tmp_path / "weights_best.pth"
    torch.save(random_state(released_unisal()), path)
    loaded = load_saliency_network(path)
    image = torch.rand(1, 3, 90, 60, requires_grad=True)
    found = loaded.find(image)
    assert found.shape == (1, 1, 90, 60) and float(found.min()) >= 0
    assert float(found.max()) == pytest.approx(1.0) and float(found.std()) > 0
    found.mean().backward()
    assert float(image.grad.abs().sum()) > 0


@pytest.mark.parametrize("form", ["res", "dense"])
def test_transalnet_has_the_gradient_of_finite_differences(form):
    network = saliency_network_of(random_state(narrow_transalnet(form)), "file").network.double()
    image = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(
        network.saliency, image.requires_grad_(), fast_mode=True, atol=1e-3, eps=1e-7
    )


def test_bottleneck_is_torchvisions():
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(6, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    theirs = TorchBottleneck(6, 4, stride=2, downsample=shortcut)
    ours = transalnet.Bottleneck({f"b.{k}": x for k, x in theirs.state_dict().items()}, "b", 2)
    state = random_state({k: tuple(x.shape) for k, x in theirs.state_dict().items()})
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 6, 9, 11)
    assert_close(ours.eval()(x), theirs.eval()(x))


def test_dense_block_is_torchvisions():
    theirs = _DenseBlock(
        num_layers=3, num_input_features=6, bn_size=4, growth_rate=5, drop_rate=0.0
    )
    state = random_state({k: tuple(x.shape) for k, x in theirs.state_dict().items()})
    ours = transalnet.DenseBlock({f"b.{k}": x for k, x in state.items()}, "b")
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 6, 7, 5)
    assert_close(ours.eval()(x), theirs.eval()(x))


def test_token_block_is_torchs_pre_norm_layer():
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        128, 2, 256, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
        norm_first=True,
    ).eval()  # fmt: skip
    ours = transalnet.TokenBlock(128, 256)
    with torch.no_grad():
        own = theirs.self_attn
        for name, weight, bias in zip(
            ("query", "key", "value"), own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3),
            strict=True,
        ):  # fmt: skip
            getattr(ours.attn, name).weight.copy_(weight)
            getattr(ours.attn, name).bias.copy_(bias)
        pairs = {
            "attn.out": own.out_proj, "attention_norm": theirs.norm1, "ffn_norm": theirs.norm2,
            "ffn.fc1": theirs.linear1, "ffn.fc2": theirs.linear2,
        }  # fmt: skip
        for name, layer in pairs.items():
            ours.get_submodule(name).load_state_dict(layer.state_dict())
    x = torch.randn(2, 9, 128)
    assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_decoder_is_the_papers_fusion():
    network = saliency_network_of(random_state(narrow_transalnet("res")), "file").network.double()
    parts = network.decoder
    taps = [torch.randn(1, 16, *size).double() for size in ((36, 48), (18, 24), (9, 12))]

    def step(number, x):
        convolved = getattr(parts, f"conv{number}")(x)
        return F.relu(getattr(parts, f"batchnorm{number}")(convolved))

    def twice(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    f5 = twice(step(1, parts.TransEncoder1(taps[2])))
    f4 = twice(step(2, F.relu(f5 * parts.TransEncoder2(taps[1]))))
    f3 = twice(step(3, F.relu(f4 * parts.TransEncoder3(taps[0]))))
    expected = torch.sigmoid(parts.conv7(step(6, twice(step(5, twice(step(4, f3)))))))
    assert_close(parts(*taps), expected)


def test_a_branchs_tokens_are_in_reading_order():
    network = saliency_network_of(random_state(narrow_transalnet("res")), "file").network
    part = network.decoder.TransEncoder1
    part.transformer_encoder = nn.Identity()
    tap = torch.randn(1, 16, 9, 12)
    table = part.position_embeddings[0].t().reshape(1, 64, 9, 12)
    assert_close(part(tap), part.patch_embeddings(tap) + table)


@pytest.mark.parametrize(
    ("size", "place"), [((100, 100), (0, 48, 288, 288)), ((50, 200), (96, 0, 96, 384))]
)
def test_letterbox_by_hand(size, place):
    boxed, found = transalnet.letterbox(torch.full((1, 3, *size), 0.5))
    assert found == place
    top, left, height, width = place
    inside = boxed[..., top : top + height, left : left + width]
    assert_close(inside, torch.full_like(inside, 0.5))
    assert float(boxed.sum()) == pytest.approx(
        3 * (0.5 * height * width + (288 * 384 - height * width) / 255), rel=1e-4
    )


def test_unisals_backbone_is_torchvisions_mobilenet():
    theirs = mobilenet_v2(weights=None).eval()
    places = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
    first = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
    state = {}
    for key, value in random_state(
        {k: tuple(x.shape) for k, x in theirs.features.state_dict().items()}
    ).items():
        theirs.features.state_dict()[key].copy_(value)
        index, _, rest = key.partition(".")
        if rest.startswith("conv."):
            place, _, end = rest.removeprefix("conv.").rpartition(".")
            rest = f"conv.{(first if index == '1' else places)[place]}.{end}"
        state[f"cnn.features.{index}.{rest}"] = value
    ours = unisal.Backbone(state, "cnn").eval()
    ours.load_state_dict({key.removeprefix("cnn."): x for key, x in state.items()})
    x = torch.rand(1, 3, 64, 96)
    coarse, middle, fine = ours(x)
    assert_close(coarse, theirs.features(x))
    assert middle.shape == (1, 160, 4, 6) and fine.shape == (1, 64, 8, 12)
    assert_close(middle[..., ::2, ::2], theirs.features[:15](x))


def test_unisals_prior_maps_by_hand():
    gaussians = torch.tensor([[[0.25, -1.5], [0.5, 0.0]]])
    maps = unisal.gaussian_maps(gaussians, 5, 3)
    for y in range(5):
        for x in range(3):
            down = (y / 4 - 0.25) / torch.exp(torch.tensor(-1.5))
            across = x / 2 - 0.5
            expected = 6 * torch.exp(-(down**2 + across**2) / 2)
            assert_close(maps[0, 0, y, x], expected)


def test_unisals_head_by_hand():
    """Everything behind the backbone, from the released description, with plain functions."""
    state = unisal.still_picture_state(random_state(released_unisal()))
    network = unisal.Unisal(state)
    fill(network, state, "file")
    coarse, middle, fine = (
        torch.rand(1, *shape) for shape in ((1280, 2, 3), (160, 4, 6), (64, 8, 12))
    )
    network.cnn = nn.Module()
    network.cnn.forward = lambda _: (coarse, middle, fine)

    def normed(x, name):
        return F.batch_norm(
            x,
            *(
                state[f"{name}.{part}"]
                for part in ("running_mean", "running_var", "weight", "bias")
            ),
        )

    def block(x, name, places):
        for place in places:
            weight = state[f"{name}.conv.{place}.weight"]
            groups = len(weight) if weight.shape[-1] == 3 else 1
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
            x = normed(x, f"{name}.conv.{place + 1}")
            x = x if place == places[-1] else F.relu6(x)
        return x

    def skip(x, name):
        x = F.relu6(normed(F.conv2d(x, state[f"{name}.expansion.0.weight"]), f"{name}.expansion.1"))
        reduced = F.conv2d(
            x, state[f"{name}.reduction.0.weight"], state[f"{name}.reduction.0.bias"]
        )
        return normed(reduced, f"{name}.reduction.1")

    def twice(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    maps = unisal.gaussian_maps(state["coarse_gaussians"], 2, 3)
    x = block(torch.cat([coarse, maps], 1), "post_cnn.inv_res", (0, 3))
    x = block(torch.cat([twice(x), skip(middle, "skip_2x")], 1), "upsampling_2.inv_res", (0, 3, 6))
    x = torch.cat([twice(x), skip(fine, "skip_4x")], 1)
    x = block(x, "post_upsampling_2.inv_res", (0, 3, 6))
    x = F.conv2d(x, state["adaptation.0.weight"], state["adaptation.0.bias"])
    x = x.repeat_interleave(8, -1).repeat_interleave(8, -2)
    expected = F.conv2d(F.pad(x, [20] * 4, mode="replicate"), state["smoothing.weight"])
    assert_close(network(torch.zeros(1, 3, 64, 96)), expected, atol=1e-4, rtol=1e-4)


def test_unisal_keeps_the_domain_of_still_pictures_alone():
    kept = unisal.still_picture_state({
        "adaptation_salicon.0.bias": torch.ones(1), "adaptation_dhf1k.0.bias": torch.zeros(1),
        "skip_2x.reduction.1.bn_SALICON.bias": torch.ones(1), "rnn.x": torch.zeros(1),
        "skip_2x.reduction.1.bn_Hollywood.bias": torch.zeros(1), "post_rnn.0.weight": torch.zeros(1),
    })  # fmt: skip
    assert set(kept) == {"adaptation.0.bias", "skip_2x.reduction.1.bias"}
    assert all(float(value) == 1 for value in kept.values())


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (288, 384)), ((100, 100), (320, 320)), ((640, 480), (384, 288))],
)
def test_unisal_sees_pictures_near_their_own_shape(size, expected):
    rows, columns = unisal.network_size(*size)
    assert rows / columns == pytest.approx(expected[0] / expected[1], rel=1e-6)
    assert 100 <= rows * columns / 1024 <= 120


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"unet.weight": torch.zeros(1)}, "another program's file .it holds unet.weight"),
        (lambda s: {}, "it holds nothing"),
        (lambda s: without(s, "decoder.conv3.weight"), "without decoder.conv3.weight"),
        (lambda s: without(s, "decoder.conv3.bias") | {"decoder.bonus": torch.zeros(1)}, "decoder.bonus is"),
        (lambda s: without(s, "decoder.TransEncoder1.position_embeddings"), "position_embeddings is missing"),
        (
            lambda s: s | {"decoder.TransEncoder1.position_embeddings": torch.zeros(1, 9, 64)},
            r"position_embeddings is \(1, 9, 64\), its other weights need \(1, 108, 64\)",
        ),
    ],
)  # fmt: skip
def test_foreign_and_incomplete_files_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        saliency_network_of(change(random_state(narrow_transalnet("res"))), "file")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    state = {"encoder.encoder.4.0.conv1.weight": torch.zeros(64, 64)}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut short"):
        load_saliency_network(path)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save(nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match="holds more than weights"):
        load_saliency_network(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.pth is missing in .*TranSalNet"):
        load_saliency_network(tmp_path / "none.pth")
