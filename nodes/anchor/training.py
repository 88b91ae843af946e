"""Training an anchor adapter on a MODEL: what node and command have in common.

Pictures are measured, cut into views with exact labels, and encoded once; then the adapter learns
while the model stays frozen. The methods are in `models/anchor`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import comfy.ops
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from ...models.anchor.adapter import AnchorAdapter
from ...models.anchor.labels import (
    Label,
    LabelledView,
    cut_view,
    horizon_warning,
    plan_views,
)
from ...models.anchor.objective import (
    GAUGE_TIMESTEP,
    Gauge,
    Objective,
    denoising_loss,
    draw_conditions,
    sample_timesteps,
)
from ...models.anchor.weights import LoadedAdapter, copy_text_keys, save_adapter
from ...models.common.anchor import Anchor
from ...models.common.processes import ALONE, Processes
from ...models.common.training import CHECKPOINT, Recipe, Step, fit, read_log
from ..host.attention import (
    Conditioning,
    Extra,
    check_fits,
    cross_attention_layers,
    layer_shapes,
)
from ..host.gradients import gradients
from ..host.pictures import Picture, rgb_bytes
from ..host.training import FrozenDenoiser, frozen_denoiser
from .samples import SampleRequest, draw_samples

BASES = {"MiniModel": "miniature", "SD15": "SD1.5", "SD20": "SD2", "SDXL": "SDXL"}
SIDE_STEP = 64  # px; sides are multiples of it, as UNets halve three times
HELD_OUT = 16  # views at most, and a fifth of all, that the gauge keeps to itself
WARMUP = 50
SAVE_EVERY = 100
SHOWN_HEIGHTS = (0.25, 0.5, 0.75)  # of sample pictures that nobody asked for


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user chooses; `views` is the mean number of crops per picture.

    `batch_size` is that of one process.
    """

    steps: int = 500
    batch_size: int = 4
    learning_rate: float = 1e-3
    resolution: int = 0  # px a side; 0 is the shortest side among the pictures
    seed: int = 0
    views: int = 8
    sample_anchors: tuple[Anchor, ...] = ()


@dataclass(frozen=True)
class Stack:
    """The base that is trained for; all of it stays as it is."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE

    @property
    def base(self) -> str:
        name = type(self.model.model.model_config).__name__
        return BASES.get(name, name)


@dataclass(frozen=True)
class Places:
    """Where a training keeps its work, and where the adapter goes."""

    run: Path
    adapter: Path


class Watch(Protocol):
    """Who is told how far a training is; any method may raise to end it."""

    def picture_done(self) -> None:
        """A picture was measured, or encoded: two calls for each."""
        ...

    def step_done(self, now: Step, curve: Tensor | None) -> None:
        """A step was done; the curve (3 h w) is there on logged steps."""
        ...


@dataclass(frozen=True)
class Trained:
    """What comes out; pictures are (b 3 h w)."""

    adapter: LoadedAdapter
    samples: Tensor
    curve: Tensor
    labels: Tensor
    report: str


@dataclass(frozen=True)
class Material:
    """Everything that is drawn from while training, in the order of its views."""

    latents: Tensor  # (n c h w) half precision, in the model's scale, on the CPU
    views: list[LabelledView]
    texts: list[str]  # unique; the first is ""
    text_of: list[int]  # per view
    labels: list[Label]
    digest: str  # of pictures and captions
    size: int

    @property
    def caption(self) -> str:
        return self.texts[self.text_of[0]]


def train_adapter(
    stack: Stack,
    pictures: Sequence[Picture],
    options: Options,
    places: Places,
    watch: Watch,
    start: LoadedAdapter | None = None,
    processes: Processes = ALONE,
) -> Trained | None:
    """Train, or go on with what `places.run` holds, and write the adapter's file.

    Of several processes each encodes all pictures and learns from its share of every batch; the
    first alone draws samples and writes, and the others return None.

    Raises:
        ValueError: the base is of another family, the adapter or VAE does not fit it, the file is
            there already from elsewhere, the run was begun with other pictures or options.
    """
    _check(stack, places, start)
    options = replace(options, batch_size=options.batch_size * processes.count)  # of all together
    material = _material(stack, pictures, options, watch)
    conditionings = [_encode(stack.clip, text) for text in material.texts]
    samples: list[Tensor] = []
    with gradients():
        latent = material.latents[:1].float()
        with frozen_denoiser(stack.model, conditionings, latent) as frozen:
            adapter = _new_adapter(frozen, start, options.seed)
            trainer = _Trainer(frozen, adapter, material, options, processes)
            request = _request(stack, material, conditionings, options)

            def on_step(now: Step) -> None:
                curve = _curve(places.run, options.steps) if now.is_logged else None
                if options.sample_anchors and _is_quarter(now):
                    samples.append(draw_samples(frozen, adapter, request))
                watch.step_done(now, curve)

            done = fit(
                adapter,
                trainer.recipe,
                trainer.loss_of,
                places.run,
                on_step,
                measure=trainer.measure,
                about=_same(stack, material, options, start),
                processes=processes,
            )
            processes.close()
            if not processes.is_first:
                return None
            samples.append(draw_samples(frozen, adapter, request))
            gain = trainer.measure()
        adapter = adapter.cpu().requires_grad_(False)
    about = _about(material, options, done, gain)
    save_adapter(places.adapter, adapter, stack.base, about)
    return Trained(
        adapter=LoadedAdapter(adapter, stack.base, "position", about),
        samples=torch.cat(samples),
        curve=_curve(places.run, options.steps)[None],
        labels=_histogram(material)[None],
        report=_report(material, options, places, done, gain),
    )


def _check(stack: Stack, places: Places, start: LoadedAdapter | None) -> None:
    cross_attention_layers(stack.model)  # refuses other families
    wanted = stack.model.get_model_object("latent_format").latent_channels
    if stack.vae.latent_channels != wanted:
        raise ValueError(
            f"vae makes latents of {stack.vae.latent_channels} channels, model reads {wanted}; connect "
            "the VAE of this model"
        )
    if start is not None:
        if not isinstance(start.adapter, AnchorAdapter):
            raise ValueError(
                f"adapter is of the form {start.form!r}, only 'position' can be trained on; leave it "
                "unconnected to train a new one"
            )
        check_fits(start.adapter, stack.model)
    if places.adapter.exists() and not (places.run / CHECKPOINT).exists():
        raise ValueError(
            f"{places.adapter.name} is there already and is not of a training that can be gone on "
            "with; choose another name"
        )


def _material(
    stack: Stack, pictures: Sequence[Picture], options: Options, watch: Watch
) -> Material:
    digest, labels = hashlib.sha256(), []
    for picture in pictures:
        labels.append(_label(picture, digest))
        watch.picture_done()
    size = options.resolution or min(min(label.width, label.height) for label in labels)
    size = size // SIDE_STEP * SIDE_STEP
    if size == 0:
        raise ValueError(
            f"the training size comes to less than {SIDE_STEP} px a side; give a resolution of "
            f"{SIDE_STEP} or more, or larger pictures"
        )
    views = plan_views(labels, options.views, Generator().manual_seed(options.seed))
    views = sorted(views, key=lambda view: view.picture)
    latents = _latents(stack, pictures, views, size, watch)
    texts = list(dict.fromkeys(["", *(picture.caption for picture in pictures)]))
    text_of = [texts.index(pictures[view.picture].caption) for view in views]
    return Material(latents, views, texts, text_of, labels, digest.hexdigest(), size)


def _label(picture: Picture, digest: Any) -> Label:
    # cv2 behind it takes 0.1 s to load, which ComfyUI's start must not pay
    from ...models.composition.measure import measure_composition

    planes = picture.load()
    digest.update(rgb_bytes(planes).tobytes() + picture.caption.encode())
    (found,) = measure_composition(planes[None])
    return Label(
        anchor=found.anchor,
        horizon_confidence=found.horizon_confidence,
        subject_confidence=found.subject_confidence,
        width=planes.shape[-1],
        height=planes.shape[-2],
    )


def _latents(
    stack: Stack,
    pictures: Sequence[Picture],
    views: Sequence[LabelledView],
    size: int,
    watch: Watch,
) -> Tensor:
    found = []
    for index, picture in enumerate(pictures):
        cuts = [one.view for one in views if one.picture == index]
        if cuts:
            planes = picture.load()
            images = torch.stack([cut_view(planes, view, size) for view in cuts])
            latent = stack.vae.encode(images.movedim(1, -1).contiguous())
            latent = stack.model.model.process_latent_in(latent.float().cpu())
            found.append(latent.half())
        watch.picture_done()
    return torch.cat(found)


def _encode(clip: comfy.sd.CLIP, text: str) -> Conditioning:
    return [list(entry) for entry in clip.encode_from_tokens_scheduled(clip.tokenize(text))]


def _new_adapter(frozen: FrozenDenoiser, start: LoadedAdapter | None, seed: int) -> AnchorAdapter:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        adapter = AnchorAdapter(layer_shapes(frozen.model))
    if start is not None:
        adapter.load_state_dict(start.adapter.state_dict())
    else:
        layers = cross_attention_layers(frozen.model)
        copy_text_keys(adapter, {name: _weight(layer.to_k) for name, layer in layers.items()})
    return adapter.to(frozen.device)


def _weight(layer: Any) -> Tensor:
    # patched or quantised weights as the layer itself sees them
    weight, _ = comfy.ops.cast_bias_weight(layer, dtype=torch.float32, device=layer.weight.device)
    return weight


class _Trainer:
    """Draws batches from the material and tells the loss."""

    def __init__(
        self,
        frozen: FrozenDenoiser,
        adapter: AnchorAdapter,
        material: Material,
        options: Options,
        processes: Processes,
    ) -> None:
        self.frozen, self.adapter = frozen, adapter
        # materials were made in inference mode
        self.latents = material.latents.clone()
        self.anchors = [view.anchor for view in material.views]
        self.weights = torch.tensor([view.weight for view in material.views])
        self.text_of = material.text_of
        self.batch = options.batch_size
        self.own = processes.share(self.batch)
        self.objective = Objective()
        order = torch.randperm(len(self.anchors), generator=Generator().manual_seed(options.seed))
        held = _held_out([i for i in order.tolist() if self.anchors[i] != Anchor()], len(order))
        self.used = torch.tensor([i for i in order.tolist() if i not in held] or order.tolist())
        self.gauge = self._gauge(held or order.tolist()[:HELD_OUT], options.seed)
        self.recipe = Recipe(
            steps=options.steps,
            learning_rate=options.learning_rate,
            warmup=min(WARMUP, options.steps // 10),
            seed=options.seed,
            save_every=SAVE_EVERY,
            log_every=min(max(options.steps // 10, 10), 100),
        )

    def loss_of(self, generator: Generator) -> Tensor:
        """Mean loss of this process's rows of a batch drawn with the generator."""
        device, own = self.frozen.device, self.own
        picks = self.used[torch.randint(len(self.used), (self.batch,), generator=generator)]
        rows = picks.tolist()
        anchors, keeps_text = draw_conditions(
            [self.anchors[i] for i in rows], generator, self.objective
        )
        texts = [self.text_of[i] if kept else 0 for i, kept in zip(rows, keeps_text, strict=True)]
        timesteps = sample_timesteps(self.batch, generator, self.objective)
        noise = torch.randn((self.batch, *self.latents.shape[1:]), generator=generator)
        sigma = self.frozen.sigma_of(timesteps[own])
        x0 = self.latents[picks[own]].float().to(device)
        x = x0 + noise[own].to(device) * sigma.view(-1, 1, 1, 1)
        x0_hat = self._denoise(x, sigma, texts[own], anchors[own])
        return denoising_loss(x0_hat, x0, sigma, self.weights[picks[own]].to(device))

    def measure(self) -> dict[str, float]:
        """The information gain on views that are held out."""
        return {"information_gain": self.gauge.read(self._denoise)}

    def _denoise(
        self, x: Tensor, sigma: Tensor, texts: Sequence[int], anchors: Sequence[Anchor]
    ) -> Tensor:
        extras = [Extra(adapter=self.adapter, request=anchor) for anchor in anchors]
        return self.frozen(x, sigma, texts, extras)

    def _gauge(self, rows: Sequence[int], seed: int) -> Gauge:
        x0 = self.latents[list(rows)].float()
        noise = torch.randn(x0.shape, generator=Generator().manual_seed((seed + 1) % 2**64))
        return Gauge(
            x0=x0.to(self.frozen.device),
            noise=noise.to(self.frozen.device),
            texts=tuple(self.text_of[i] for i in rows),
            anchors=tuple(self.anchors[i] for i in rows),
            sigma=float(self.frozen.sigma_of(torch.tensor([GAUGE_TIMESTEP]))),
            chunk=self.own.stop - self.own.start,
        )


def _held_out(labelled: Sequence[int], count: int) -> list[int]:
    """Views with a label that training does not see; none where there are too few to spare any."""
    held = min(HELD_OUT, count // 5, len(labelled) // 2)
    return list(labelled[:held]) if held >= 2 else []


def _request(
    stack: Stack, material: Material, conditionings: Sequence[Conditioning], options: Options
) -> SampleRequest:
    shown = options.sample_anchors or tuple(Anchor(horizon=y, tilt_deg=0.0) for y in SHOWN_HEIGHTS)
    return SampleRequest(
        vae=stack.vae,
        positive=conditionings[material.text_of[0]],
        negative=conditionings[0],
        anchors=shown,
        latent_shape=tuple(material.latents.shape[1:]),
        seed=options.seed,
    )


def _is_quarter(now: Step) -> bool:
    quarter = max(now.steps // 4, 1)
    return now.step % quarter == 0 and now.step < now.steps


def _same(
    stack: Stack, material: Material, options: Options, start: LoadedAdapter | None
) -> dict[str, Any]:
    begun = "new" if start is None else _digest_of(start.adapter.state_dict())
    return {
        "pictures": material.digest[:16],
        "batch_size": options.batch_size,
        "resolution": material.size,
        "views": options.views,
        "base": stack.base,
        "adapter": begun,
    }


def _digest_of(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _about(
    material: Material, options: Options, done: int, numbers: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "steps": done,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "resolution": material.size,
        "seed": options.seed,
        "pictures": len(material.labels),
        "pictures_with_horizon": sum(x.anchor.horizon is not None for x in material.labels),
        **{name: round(value, 4) for name, value in numbers.items()},
    }


def _curve(run: Path, steps: int) -> Tensor:
    from ...models.common.charts import Curve, draw_curves  # cv2, as in `_label`

    rows = read_log(run)
    at = [row["step"] for row in rows]
    loss = Curve("loss", at, [row["loss"] for row in rows])
    gain = Curve("information gain", at, [row.get("information_gain", 0.0) for row in rows])
    return draw_curves(loss, gain, max([steps, *map(int, at)]))


def _histogram(material: Material) -> Tensor:
    from ...models.common.charts import draw_histograms  # cv2, as in `_label`

    before = [label.anchor.horizon for label in material.labels]
    after = [view.anchor.horizon for view in material.views]
    return draw_histograms(
        [height for height in before if height is not None],
        [height for height in after if height is not None],
        "horizon height",
    )


def _report(
    material: Material, options: Options, places: Places, done: int, numbers: Mapping[str, float]
) -> str:
    rows = read_log(places.run)
    found = sum(label.anchor.horizon is not None for label in material.labels)
    lines = [
        f"pictures         {len(material.labels)}, a horizon found in {found}",
        f"views            {len(material.views)} of {material.size} x {material.size} px",
        f"steps            {done} of {options.batch_size} views each",
        f"information gain {numbers['information_gain']:.3f}  (under 0.02 the adapter ignores the "
        "anchor, above 0.5 it works)",
        f"saved            {places.adapter.name}",
    ]
    if rows:
        speed = f"{rows[-1]['rate']:.2f} steps per second"
        speed += f", {rows[-1]['peak_mib']:.0f} MiB at most" if "peak_mib" in rows[-1] else ""
        lines.insert(
            3, f"loss             {rows[0]['loss']:.4f} at first, {rows[-1]['loss']:.4f} last"
        )
        lines.insert(4, f"speed            {speed}")
    warning = horizon_warning(material.labels)
    return "\n".join([*lines, *([warning] if warning else [])])
