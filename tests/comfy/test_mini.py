"""The miniature in a real ComfyUI: every stock node drives it like any checkpoint."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import comfy.cldm.cldm
import comfy.controlnet
import comfy.samplers
import folder_paths
import latent_preview
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from safetensors.torch import save_file
from torch.testing import assert_close
from torchmetrics.functional.image import peak_signal_noise_ratio

import nodes
from veduta.mini.landscapes import scene
from veduta.mini.painter import paint
from veduta.mini.pool import UNSEEN_FROM

WEIGHTS = Path(__file__).resolve().parents[2] / "mini" / "weights"
PROMPT = "a red boat on a calm sea at sunset"


@pytest.fixture(autouse=True)
def _as_in_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def mini(node_classes):
    with torch.inference_mode():
        return node_classes["VedutaLoadMini"].execute().args


def encode(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def empty(size=64, batch=1):
    return nodes.EmptyLatentImage().generate(size, size, batch)[0]


def sample(mini, latent, steps=2, sampler="euler", scheduler="normal", model=None, **options):
    model, clip = model or mini[0], mini[1]
    positive, negative = (
        encode(clip, options.pop("prompt", PROMPT)),
        encode(clip, ""),
    )
    return nodes.KSampler().sample(
        model,
        options.pop("seed", 0),
        steps,
        4.0,
        sampler,
        scheduler,
        positive,
        negative,
        latent,
        **options,
    )[0]["samples"]


def unseen(count, size=128):
    pictures = [paint(scene(UNSEEN_FROM + i), size).image for i in range(count)]
    return torch.from_numpy(np.stack(pictures)).float() / 255


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_stock_sampler_runs(mini, sampler):
    assert sample(mini, empty(), sampler=sampler).isfinite().all()


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_stock_scheduler_runs(mini, scheduler):
    assert sample(mini, empty(), steps=3, scheduler=scheduler).isfinite().all()


def test_two_loads_give_the_same_picture_and_a_seed_another(mini, node_classes):
    again = node_classes["VedutaLoadMini"].execute().args
    picture = sample(mini, empty())
    assert_close(sample(again, empty()), picture, rtol=0, atol=0)
    assert not torch.equal(sample(mini, empty(), seed=1), picture)


def test_a_batch_is_one_picture_after_the_other(mini):
    batch = empty(batch=2)
    assert sample(mini, batch).shape == (2, 4, 8, 8)


def test_the_words_reach_the_picture(mini):
    vae = mini[2]
    day, night = (
        vae.decode(sample(mini, empty(128, 4), steps=8, prompt=f"a meadow {words}"))
        for words in ("under a clear blue sky", "at night")
    )
    assert day.mean() > night.mean() + 0.15


def test_little_denoise_keeps_the_source_and_full_denoise_does_not(mini):
    vae = mini[2]
    source = unseen(1)
    latent = nodes.VAEEncode().encode(vae, source)[0]
    near, far = (vae.decode(sample(mini, latent, steps=6, denoise=share)) for share in (0.2, 1.0))
    assert F.mse_loss(near, source) < 0.25 * F.mse_loss(far, source)


def test_the_autoencoder_rebuilds_scenes_it_has_never_seen(mini):
    source = unseen(8)
    rebuilt = nodes.VAEDecode().decode(mini[2], nodes.VAEEncode().encode(mini[2], source)[0])[0]
    assert (
        peak_signal_noise_ratio(rebuilt, source, data_range=1.0) > 28
    )  # the card says 29 on 256 of them


def test_latents_have_unit_spread(mini):
    z = mini[2].encode(unseen(16))
    assert z.mean().abs() < 0.2
    assert 0.8 < z.std() < 1.25


def test_stock_custom_sampling_equals_the_stock_sampler(mini):
    from comfy_extras import nodes_custom_sampler as custom

    model, clip, *_ = mini
    noise = custom.RandomNoise.execute(0).args[0]
    guider = custom.CFGGuider.execute(model, encode(clip, PROMPT), encode(clip, ""), 4.0).args[0]
    sampler = custom.KSamplerSelect.execute("euler").args[0]
    sigmas = custom.BasicScheduler.execute(model, "normal", 3, 1.0).args[0]
    out = custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, empty()).args[0]
    assert_close(out["samples"], sample(mini, empty(), steps=3), rtol=0, atol=0)


def test_a_stock_lora_changes_the_picture_and_leaves_the_model_as_it_was(
    mini, tmp_path, caplog, monkeypatch
):
    rank, width = 2, 192
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    generator = torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_down.weight": torch.randn(rank, width, generator=generator),
        f"{name}.lora_up.weight": torch.randn(64, rank, generator=generator),
        f"{text}.lora_down.weight": torch.randn(rank, width, generator=generator),
        f"{text}.lora_up.weight": torch.randn(width, rank, generator=generator),
    }
    before = sample(mini, empty())
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"})
    )
    save_file(lora, tmp_path / "style.safetensors")
    patched, clip = nodes.LoraLoader().load_lora(mini[0], mini[1], "style.safetensors", 1.0, 1.0)
    changed = sample((patched, clip, mini[2]), empty())
    assert "not loaded" not in caplog.text
    assert not torch.allclose(changed, before)
    assert_close(sample(mini, empty()), before, rtol=0, atol=0)


def test_a_controlnet_of_another_text_width_is_refused_and_the_model_lives_on(mini):
    before = sample(mini, empty())
    # SD1.5's control network with narrow channels, its text width as released
    network = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, model_channels=32, hint_channels=3, num_res_blocks=[1, 1],
        channel_mult=(1, 1), num_heads=4, use_spatial_transformer=True, context_dim=768,
        transformer_depth=[1, 1], transformer_depth_middle=1, dtype=torch.float32, device="cpu",
    )  # fmt: skip
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    positive = nodes.ControlNetApply().apply_controlnet(
        encode(mini[1], PROMPT), control, torch.zeros(1, 64, 64, 3), 1.0
    )[0]
    with pytest.raises(RuntimeError, match="768"):
        nodes.KSampler().sample(
            mini[0], 0, 2, 4.0, "euler", "normal", positive, encode(mini[1], ""), empty()
        )
    assert_close(sample(mini, empty()), before, rtol=0, atol=0)


def test_stock_latent_preview_shows_the_picture(mini, monkeypatch):
    model, _, vae, _ = mini
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    source = unseen(1)
    z = vae.encode(source)
    previewer = latent_preview.get_previewer(torch.device("cpu"), model.model.latent_format)
    preview = np.asarray(previewer.decode_latent_to_preview(z)).astype(np.float32)
    small = F.avg_pool2d(source.movedim(-1, 1), 8)[0].movedim(0, -1).numpy()
    assert np.corrcoef(preview.ravel(), small.ravel())[0, 1] > 0.8


def test_an_inpainting_mask_keeps_what_it_covers(mini):
    source = unseen(1)
    latent = nodes.VAEEncode().encode(mini[2], source)[0]
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    latent = nodes.SetLatentNoiseMask().set_mask(latent, mask)[0]
    z = sample(mini, latent, steps=3)
    assert_close(z[..., :8], latent["samples"][..., :8], rtol=0, atol=1e-5)
    assert not torch.allclose(z[..., 8:], latent["samples"][..., 8:], atol=0.1)


def test_a_cut_short_weights_file_is_named(files, tmp_path):
    path = tmp_path / "vae.safetensors"
    path.write_bytes((WEIGHTS / "vae.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"vae.safetensors \(1000 bytes\).*copy it again"):
        files.load_weights(path)


def test_a_foreign_weights_file_is_named(files, tmp_path):
    path = tmp_path / "unet.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="another program's file"):
        files.load_weights(path)


def test_a_missing_weights_file_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="unet.safetensors is missing"):
        files.load_weights(tmp_path / "unet.safetensors")


@pytest.fixture
def files():
    from veduta.nodes.host import files

    return files
