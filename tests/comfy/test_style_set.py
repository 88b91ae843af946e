"""Style Set in a real ComfyUI: folders, batches, masks, roles, components, and every bad file by name."""

import pytest

pytest.importorskip("comfy_api.latest", reason="needs ComfyUI; run `python dev.py setup`")

import folder_paths
import numpy as np
import torch
from PIL import Image

from veduta.nodes.style.style_set import EXAMPLES, MakeStyleSet, clip_split, style_folder

PLAIN = {
    "folder": "", "role": "StyleRef", "component": "style", "trigger": "ohwx", "caption": "",
    "resolution": 64, "class_word": "style",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """ComfyUI's input directory, with a folder in it."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    path = tmp_path / "mine"
    path.mkdir()
    return path


def run(**changes):
    with torch.inference_mode():  # as ComfyUI runs a prompt
        return MakeStyleSet.execute(**{**PLAIN, **changes}).args


def batch(count, side=64, seed=0):
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(seed))


def save(path, mode="RGB", size=(80, 64), **options):
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 4), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def test_a_batch_becomes_style_ref_and_is_left_unmodified(folder):
    images = batch(3)
    before = images.clone()
    found, report = run(images=images, caption="a tree\na boat\na king")
    (component,) = found.components
    assert [one.caption for one in component.style_ref] == ["a tree", "a boat", "a king"]
    kept = component.style_ref[1].pixels
    assert torch.equal(kept, images[1].movedim(-1, 0).mul(255).round().byte())
    assert component.style_prompt == "a photo of ohwx style" and component.aux == ()
    assert found.report == report and "3 pictures; trained at 64 x 64 (3)" in report
    assert "1 StyleRef pictures show people, 2 show places" in report
    assert torch.equal(images, before)


def test_roles_and_components_are_chained(folder):
    first, _ = run(images=batch(2), component="figures")
    second, _ = run(images=batch(2, seed=1), component="figures", role="Aux", style_set=first)
    third, report = run(
        images=batch(2, seed=2), component="places", trigger="szn", style_set=second
    )
    figures, places = third.components
    assert (len(figures.style_ref), len(figures.aux), figures.aux_origin) == (2, 2, "images")
    assert (places.trigger, len(places.style_ref), places.aux) == ("szn", 2, ())
    assert [len(one.components) for one in (first, second)] == [1, 1] and not first.components[
        0
    ].aux
    assert report.index("figures:") < report.index("places:")
    more, _ = run(images=batch(1, seed=3), component="figures", style_set=third)
    assert len(more.components[0].style_ref) == 3 and more.components[1] == places


def test_masks_come_with_a_batch_or_lie_beside_pictures(folder):
    mask = torch.zeros(1, 32, 32)
    mask[..., :16] = 1.0
    found, _ = run(images=batch(2), mask=mask)
    for one in found.components[0].style_ref:
        assert one.mask[0, 32, 0] == 255 and one.mask[0, 32, 63] == 0
    save(folder / "boat.jpg", size=(64, 64))
    Image.fromarray((mask[0].numpy() * 255).astype(np.uint8)).save(folder / "boat.mask.png")
    found, _ = run(folder="mine")
    (only,) = found.components[0].style_ref
    assert only.source == "boat.jpg" and only.mask[0, 32, 0] == 255 and only.mask[0, 32, 63] == 0


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "CMYK"), ("b.png", "RGBA"), ("c.png", "LA"), ("d.png", "P"), ("e.png", "L")],
)
def test_pictures_of_all_kinds_are_read(folder, name, mode):
    save(folder / name, mode)
    found, _ = run(folder="mine")
    pixels = found.components[0].style_ref[0].pixels
    assert pixels.shape[0] == 3 and pixels.float().std() > 20


def test_16_bit_grey_keeps_its_tones(folder):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "deep.png")
    found, _ = run(folder="mine")
    pixels = found.components[0].style_ref[0].pixels[0].float()
    assert pixels.mean() == pytest.approx(127.5, abs=1.0)
    assert pixels[0, 0] == 0 and pixels[-1, -1] == 255


def test_captions_in_utf_8_and_utf_16_are_read(folder):
    for name, encoding in (("a", "utf-8"), ("b", "utf-8-sig"), ("c", "utf-16")):
        save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a cafe\u0301 at\nnight", encoding=encoding)
    found, _ = run(folder="mine")
    captions = [one.caption for one in found.components[0].style_ref]
    assert captions == ["a cafe\u0301 at night"] * 3


def animated(path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: (f / "bad.jpg").write_bytes(b"no picture"), "bad.jpg cannot be read as a picture"),
        (lambda f: animated(f / "moves.webp"), "moves.webp holds 2 frames, a still picture is needed"),
        (
            lambda f: (save(f / "a.png"), (f / "a.txt").write_bytes("caf\xe9".encode("cp1252"))),
            "a.txt is not text in UTF-8",
        ),
        (
            lambda f: (f / "cut.png").write_bytes(_half_a_picture(f)),
            "cut.png cannot be read as a picture",
        ),
        (lambda f: None, "holds no picture"),
        (lambda f: (f / "only.gif").write_bytes(b"GIF89a"), "holds no picture"),
    ],
)  # fmt: skip
def test_bad_files_are_named(folder, make, words):
    make(folder)
    with pytest.raises(ValueError, match=words):
        run(folder="mine")


def _half_a_picture(folder):
    save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "neither images nor folder is given"),
        ({"folder": "nowhere"}, "folder is 'nowhere', there is no folder"),
        ({"folder": "veduta:nothing"}, "the pack comes with veduta:aux, veduta:style"),
        ({"images": batch(1), "trigger": "two words"}, "trigger is 'two words', one rare word"),
        ({"images": batch(1), "trigger": "style"}, "which is the class word too"),
        ({"images": batch(1), "component": ""}, "component is '', a name of letters"),
        ({"images": batch(1), "class_word": " "}, "class_word is empty"),
        ({"images": batch(2), "caption": "a\nb\nc"}, "caption holds 3 lines for 2 pictures"),
        ({"mask": torch.ones(1, 8, 8), "folder": "veduta:aux"}, "mask is given without images"),
        ({"images": batch(2), "mask": torch.ones(3, 8, 8)}, "mask holds 3 masks"),
    ],
)
def test_unusable_settings_are_refused(folder, changes, words):
    with pytest.raises(ValueError, match=words):
        run(**changes)


def test_two_components_need_two_triggers(folder):
    first, _ = run(images=batch(1))
    with pytest.raises(ValueError, match="trigger 'ohwx' is that of component 'style' already"):
        run(images=batch(1), component="places", style_set=first)


@pytest.mark.parametrize("trigger", ["watercolor", "papercut", "sks"])
def test_an_ordinary_word_as_trigger_is_warned_of(folder, trigger):
    assert (
        f"warning: trigger {trigger!r} is no rare word" in run(images=batch(1), trigger=trigger)[1]
    )


def test_one_picture_and_other_files_are_told(folder):
    save(folder / "a.png")
    (folder / "b.gif").write_bytes(b"GIF89a")
    report = run(folder="mine")[1]
    assert "warning: 1 StyleRef pictures in all, 15 to 20 are asked for" in report
    assert "left out" in report and "b.gif" in report


def test_the_tokenizer_is_clips():
    split = clip_split()
    assert list(split("ohwx")) == ["ohwx</w>"]
    assert list(split("zwx")) == ["z", "wx</w>"]


def test_the_packs_example_is_whole_and_small():
    found, report = run(folder="veduta:style", resolution=0)
    (component,) = found.components
    assert len(component.style_ref) == 20
    assert all(one.pixels.shape == (3, 128, 128) for one in component.style_ref)
    assert "10 StyleRef pictures show people, 10 show places" in report
    both, report = run(folder="veduta:aux", role="Aux", style_set=found, resolution=0)
    assert len(both.components[0].aux) == 20
    assert "warning" not in report
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 400_000


def test_the_fingerprint_follows_pictures_and_captions(folder):
    save(folder / "a.png")
    mark = lambda: MakeStyleSet.fingerprint_inputs(folder="mine", role="Aux")  # noqa: E731
    before = mark()
    assert mark() == before and MakeStyleSet.fingerprint_inputs(folder="") == []
    (folder / "a.txt").write_text("a tree")
    assert mark() != before
    assert style_folder("mine") == folder.resolve()
