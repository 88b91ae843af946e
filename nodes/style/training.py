"""Training a style on a MODEL and its CLIP: what node and command have in common.

Pictures are encoded once; then a LoRA learns beside the frozen weights. The methods are in
`models/styleforge`, the loop in `models/common/training`.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import comfy.model_management
import comfy.utils
import torch
from comfy.model_management import InterruptProcessingException
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from ...models.common.processes import ALONE, Processes
from ...models.common.training import (
    CHECKPOINT,
    Group,
    Recipe,
    Step,
    fit,
    read_best,
    read_checkpoint,
    read_log,
)
from ...models.styleforge.dual_binding import (
    MIN_SNR_GAMMA,
    Binding,
    Example,
    Weighting,
    dual_binding_loss,
)
from ...models.styleforge.files import save_style
from ...models.styleforge.lora import SHARED, Layers, Lora, Plan
from ...models.styleforge.set_report import check_trainable
from ...models.styleforge.style import Style
from ...models.styleforge.style_set import Component, StylePicture, StyleSet
from ..host.gradients import gradients
from ..host.lora import Adapted, Place, adapted, free_bytes, image_places, kept_bytes, text_places
from .drawing import Drawing, Stack, draw
from .validation import Eyes, Validation

BASES = {"MiniModel": "miniature", "SD15": "SD1.5", "SD20": "SD2", "SDXL": "SDXL", "Flux": "FLUX",
         "FluxSchnell": "FLUX"}  # fmt: skip
WARMUP, SAVE_EVERY = 50, 100
HELD_SHARE, HELD_FROM = 8, 8  # one picture in eight is held out, from eight pictures on
STEP_OVER_FORWARD = 3.0  # forward, and a backward pass of twice its cost
SAMPLE_STEPS, SAMPLE_CFG, SAMPLES_AT_MOST = 16, 6.0, 4
logger = logging.getLogger("veduta")


class Method(Enum):
    """What is learned beside the style."""

    STYLEFORGE = "StyleForge (dual binding)"
    PLAIN = "plain LoRA"
    DREAMBOOTH = "DreamBooth (Aux from the literal prompt)"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user chooses; rates and sizes as in models/styleforge and Recipe.

    `batch_size` is that of one process.
    """

    steps: int = 1000
    method: Method = Method.STYLEFORGE
    prompts: tuple[str, ...] = ()  # of sample pictures; empty: what calls each component
    rank: int = 16
    alpha: float = 0.0
    dropout: float = 0.0
    layers: Layers = field(default_factory=Layers)
    learning_rate: float = 1e-4
    text_learning_rate: float = 2e-5  # 0: the text encoder stays frozen
    text_steps: int = 0  # from then on the text encoder stays; 0: it learns to the end
    batch_size: int = 1  # pairs of a StyleRef and an Aux picture
    weighting: Weighting = Weighting.NONE
    optimizer: str = "adamw"
    validate_every: int = 100
    patience: int = 0
    keeps_best: bool = True
    paper_parity: bool = False  # constant rate, no averaging, no clipping, all pictures trained on
    seed: int = 0
    recompute: bool | None = None  # gradient checkpointing; None: where memory asks for it


@dataclass(frozen=True)
class Places:
    """Where a training keeps its work, and where the style's file goes."""

    run: Path
    style: Path


class Watch(Protocol):
    """Who is told how far a training is; any method may raise to end it."""

    def picture_done(self) -> None:
        """A picture was encoded."""
        ...

    def step_done(self, now: Step, curve: Tensor | None, samples: Tensor | None) -> None:
        """A step was done; curve (3 h w) on logged steps, samples (b 3 h w) where they were drawn."""
        ...


@dataclass(frozen=True)
class Trained:
    """What comes out; pictures are (b 3 h w)."""

    style: Style
    samples: Tensor
    curve: Tensor
    report: str


@dataclass(frozen=True)
class Material:
    """Everything that is drawn from while training."""

    bindings: tuple[Binding, ...]
    held: tuple[Example, ...]  # what validation looks at
    is_held_out: bool  # those of `held` are not trained on
    digest: str  # of pictures, masks and prompts
    resolution: str  # of the first picture, such as 512x512

    @property
    def latent_shape(self) -> torch.Size:
        return self.bindings[0].style[0].x0.shape


def train_style(
    stack: Stack,
    style_set: StyleSet,
    options: Options,
    places: Places,
    watch: Watch,
    eyes: Eyes | None = None,
    processes: Processes = ALONE,
) -> Trained | None:
    """Train, or go on with what `places.run` holds, and write the style's file.

    A run that is interrupted leaves its checkpoint, and the style as far as it has come as the file.
    Of several processes each encodes all pictures and learns from its share of every batch; the
    first alone draws samples and writes, and the others return None.

    Raises:
        ValueError: the set has no pictures, VAE or model do not fit, the file is there already from
            elsewhere, the run was begun with other pictures or options.
    """
    _check(stack, style_set, places)
    options = replace(options, batch_size=options.batch_size * processes.count)  # of all together
    chosen = _chosen_set(stack, style_set, options)
    material = _material(stack, chosen, options, watch)
    spots = image_places(stack.model, options.layers)
    if options.text_learning_rate > 0:
        spots |= text_places(stack.clip)
    with gradients():
        lora = Lora(
            {name: place.target for name, place in spots.items()},
            _plan(chosen, options),
            Generator().manual_seed(options.seed),
        )
        with _working(stack, lora, spots, material, options) as work:
            run = _Run(stack, work, lora, chosen, material, options, places, watch, eyes)
            done = run.fit(processes)
            processes.close()
            if not processes.is_first:
                return None
            samples = run.finish(done)
        lora.cpu()
    return Trained(
        style=run.style(done),
        samples=samples,
        curve=curve_of(places.run, options.steps)[None],
        report=run.report(done),
    )


def picture_count(style_set: StyleSet, method: Method) -> int:
    """How often `Watch.picture_done` will be called."""
    count = sum(len(one.style_ref) for one in style_set.components)
    if method is Method.STYLEFORGE:
        return count + sum(len(one.aux) for one in style_set.components)
    return count if method is Method.PLAIN else 2 * count


def sample_prompts(style_set: StyleSet, options: Options) -> tuple[str, ...]:
    """Prompts of the sample pictures: the user's, or what calls each component."""
    own = options.prompts or tuple(one.style_prompt for one in style_set.components)
    return own[:SAMPLES_AT_MOST]


def base_name(model: Any) -> str:
    """What the family of a MODEL is called."""
    name = type(model.model.model_config).__name__
    return BASES.get(name, name)


def curve_of(run: Path, steps: int) -> Tensor:
    """The loss over the steps, and that of the validation beside it: (3 h w)."""
    from ...models.common.charts import Curve, draw_curves  # cv2: 0.1 s, which a start must not pay

    rows = read_log(run)
    loss = Curve("loss", [row["step"] for row in rows], [row["loss"] for row in rows])
    judged = [row for row in rows if "validation_loss" in row]
    held = Curve("validation", [r["step"] for r in judged], [r["validation_loss"] for r in judged])
    last = max([steps, *(int(row["step"]) for row in rows)])
    return draw_curves(loss, held if judged else None, last)


def _check(stack: Stack, style_set: StyleSet, places: Places) -> None:
    if not style_set.components:
        raise ValueError("style_set has no component; connect a Style Set with pictures")
    check_trainable(style_set)
    wanted = stack.model.get_model_object("latent_format").latent_channels
    if stack.vae.latent_channels != wanted:
        raise ValueError(
            f"vae makes latents of {stack.vae.latent_channels} channels, model reads {wanted}; connect "
            "the VAE of this model"
        )
    if places.style.exists() and not (places.run / CHECKPOINT).exists():
        raise ValueError(
            f"{places.style.name} is there already and is not of a training that can be gone on with; "
            "choose another name"
        )


def _chosen_set(stack: Stack, style_set: StyleSet, options: Options) -> StyleSet:
    """The set with the Aux pictures that the method asks for."""
    if options.method is Method.STYLEFORGE:
        return style_set
    changed = []
    for component in style_set.components:
        aux: tuple[StylePicture, ...] = ()
        if options.method is Method.DREAMBOOTH:
            aux = _literal_aux(stack, component, options.seed)
        changed.append(replace(component, aux=aux, aux_origin="literal prompt" if aux else ""))
    return replace(style_set, components=tuple(changed))


def _literal_aux(stack: Stack, component: Component, seed: int) -> tuple[StylePicture, ...]:
    height, width = component.style_ref[0].pixels.shape[-2:]
    count = len(component.style_ref)
    how = Drawing(width=width, height=height, steps=SAMPLE_STEPS, cfg=SAMPLE_CFG, seed=seed)
    drawn = draw(stack, [component.aux_prompt] * count, how, _Unseen(count))
    return tuple(
        StylePicture(pixels=picture.mul(255).round().byte(), source=f"literal Aux {index}")
        for index, picture in enumerate(drawn)
    )


def _plan(style_set: StyleSet, options: Options) -> Plan:
    names = [component.name for component in style_set.components]
    slices = tuple(names) if len(names) == 1 else (SHARED, *names)
    return Plan(rank=options.rank, alpha=options.alpha, dropout=options.dropout, slices=slices)


def _material(stack: Stack, style_set: StyleSet, options: Options, watch: Watch) -> Material:
    digest = hashlib.sha256()
    literal = options.method is Method.DREAMBOOTH
    validates = options.validate_every > 0
    bindings, held, held_out = [], [], []
    for component in style_set.components:
        digest.update(
            repr((component.style_prompt, component.aux_prompt, component.aux_weight)).encode()
        )
        for picture in (*component.style_ref, *(() if literal else component.aux)):
            digest.update(_digest_of(picture))
        style = [_example(stack, one, component.style_prompt, watch) for one in component.style_ref]
        aux = [_example(stack, one, component.aux_prompt, watch) for one in component.aux]
        spare = validates and not options.paper_parity and len(style) >= HELD_FROM
        count = len(style) // HELD_SHARE if spare else 0
        held_out.append(count > 0)
        held += style[:: len(style) // count][:count] if count else style[:2]
        kept = [one for one in style if not count or all(one is not other for other in held)]
        bindings.append(
            Binding(
                name=component.name,
                style=tuple(kept),
                aux=tuple(aux),
                aux_weight=component.aux_weight,
            )
        )
    height, width = style_set.components[0].style_ref[0].pixels.shape[-2:]
    return Material(
        tuple(bindings), tuple(held), all(held_out), digest.hexdigest(), f"{width}x{height}"
    )


def _digest_of(picture: StylePicture) -> bytes:
    parts = [picture.pixels, *([] if picture.mask is None else [picture.mask])]
    return picture.caption.encode() + b"".join(part.numpy().tobytes() for part in parts)


def _example(stack: Stack, picture: StylePicture, prompt: str, watch: Watch) -> Example:
    # made in inference mode: clones can be learned from
    image = picture.pixels.movedim(0, -1)[None].float() / 255
    latent = stack.model.model.process_latent_in(stack.vae.encode(image).float().cpu())
    with torch.inference_mode(False):
        x0 = latent[0].detach().clone()
        mask = picture.mask
        if mask is not None:
            mask = interpolate(mask[None].float() / 255, x0.shape[-2:], mode="area")[0]
    watch.picture_done()
    told = f"{prompt}, {picture.caption}" if picture.caption else prompt
    return Example(x0, told, mask)


@contextmanager
def _working(
    stack: Stack, lora: Lora, spots: dict[str, Place], material: Material, options: Options
) -> Iterator[Adapted]:
    """The LoRA at work, with activations computed again where memory asks for it."""
    recompute = options.recompute
    if recompute is None:
        with adapted(stack.model, stack.clip, lora, spots) as work:
            recompute = _asks_for_recompute(work, material, options)
    with adapted(stack.model, stack.clip, lora, spots, recompute) as work:
        yield work


def _asks_for_recompute(work: Adapted, material: Material, options: Options) -> bool:
    largest = max(
        (one for binding in material.bindings for one in (*binding.style, *binding.aux)),
        key=lambda one: one.x0.numel(),
    )
    x = largest.x0[None].to(work.device)
    sigma = work.process.sigma_at(torch.tensor([0.5], device=work.device))
    rows = options.batch_size * (2 if any(b.is_dual for b in material.bindings) else 1)
    began = time.perf_counter()
    try:
        kept = kept_bytes(lambda: work(x, sigma, [largest.prompt]), work.model.model)
    except comfy.model_management.OOM_EXCEPTION:
        logger.info("style training: one row does not fit, so activations are computed twice")
        return True
    seconds = (time.perf_counter() - began) * rows * STEP_OVER_FORWARD
    free = free_bytes(work.device)
    recompute = kept * rows > free
    logger.info(
        "style training: about %.0f MiB of activations (%.0f MiB free%s) and %.1f min for %d steps",
        kept * rows / 2**20,
        free / 2**20,
        ", so they are computed twice" if recompute else "",
        seconds * options.steps / 60,
        options.steps,
    )
    return recompute


class _Run:
    """Draws batches, validates, and shows how far the LoRA has come."""

    def __init__(
        self,
        stack: Stack,
        work: Adapted,
        lora: Lora,
        style_set: StyleSet,
        material: Material,
        options: Options,
        places: Places,
        watch: Watch,
        eyes: Eyes | None,
    ) -> None:
        self.work, self.lora, self.set = work, lora, style_set
        self.material, self.options, self.places, self.watch = material, options, places, watch
        self.vae = stack.vae
        self.base = base_name(stack.model)
        self.began_at = time.time()
        self.samples: list[Tensor] = []
        self.prompts = sample_prompts(style_set, options)
        self.validation = Validation(
            work, material.held, options.seed + 1, eyes, self.draw, self.prompts
        )

    def fit(self, processes: Processes) -> int:
        """Learn, and leave a usable file even where the run is interrupted."""
        try:
            return fit(
                self.lora,
                self._recipe(),
                lambda generator: self._loss(generator, processes),
                self.places.run,
                self._on_step,
                about=self._same(),
                groups=self._groups(),
                validate=self.validation.look,
                processes=processes,
            )
        except (InterruptProcessingException, KeyboardInterrupt):
            state = read_checkpoint(self.places.run)
            if state is not None and processes.is_first:
                save_style(self.places.style, self.style(state["step"]))
            raise

    def finish(self, done: int) -> Tensor:
        """Put the kept weights in place, draw the last samples, and write the file."""
        best = read_best(self.places.run) if self.options.keeps_best else None
        if best is not None:
            with torch.no_grad():
                for name, parameter in self.lora.named_parameters():
                    parameter.copy_(best.weights[name])
        self.samples.append(self.draw(self.prompts))
        save_style(self.places.style, self.style(done), thumbnail=self.samples[-1][0])
        return torch.cat(self.samples)

    def style(self, done: int) -> Style:
        """What the LoRA has learned by now."""
        return Style(
            tensors=self.lora.tensors(),
            slices=self.lora.plan.slices,
            prompts={one.name: one.style_prompt for one in self.set.components},
            base=self.base,
            name=self.places.style.stem,
            about=self._about(done),
        )

    @torch.no_grad()
    def draw(self, prompts: Sequence[str]) -> Tensor:
        """Pictures (b 3 h w) of prompts with the LoRA as it is now, from fixed noises."""
        width, height = map(int, self.material.resolution.split("x"))
        how = Drawing(
            width=width, height=height, steps=SAMPLE_STEPS, cfg=SAMPLE_CFG, seed=self.options.seed
        )
        was_training, device = self.lora.training, self.work.device
        own = Stack(self.work.model, self.work.clip, self.vae)
        self.lora.eval()
        try:
            # core seeds torch's own generators, which dropout draws from
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                return draw(own, list(prompts), how, _Unseen(1))
        finally:  # sampling has let go of the model, decoding may have pushed it out
            self.lora.train(was_training)
            self.work.reload()

    def report(self, done: int) -> str:
        """What was trained on and how it went."""
        about, rows = self._about(done), read_log(self.places.run)
        parts = [
            f"{b.name}: {len(b.style)} StyleRef, {len(b.aux)} Aux" for b in self.material.bindings
        ]
        lines = [
            f"method           {self.options.method.value}",
            f"pictures         {'; '.join(parts)}",
            f"LoRA             {len(self.lora.layers)} layers of {self.base}, rank {self.options.rank}"
            f" in {len(self.lora.plan.slices)} slice(s)",
            f"steps            {done}, kept {about['kept_step']}",
        ]
        if rows:
            lines.append(
                f"loss             {rows[0]['loss']:.4f} at first, {rows[-1]['loss']:.4f} last"
            )
            speed = f"{rows[-1]['rate']:.2f} steps per second"
            peak = f", {rows[-1]['peak_mib']:.0f} MiB at most" if "peak_mib" in rows[-1] else ""
            lines.append(f"speed            {speed}{peak}")
        judged = [row for row in rows if "validation_loss" in row]
        if judged:
            on = "held-out" if self.material.is_held_out else "trained"
            lines.append(
                f"validation       {judged[0]['validation_loss']:.4f} at first, "
                f"{judged[-1]['validation_loss']:.4f} last, on {len(self.material.held)} {on} pictures"
            )
        calls = ", ".join(one.style_prompt for one in self.set.components)
        lines += [f"call it with     {calls}", f"saved            {self.places.style.name}"]
        without = [one.name for one in self.material.bindings if not one.is_dual]
        if without and self.options.method is Method.STYLEFORGE:
            lines.append(
                f"warning: {', '.join(without)} had no Aux pictures, so it learned as plain LoRA; add them "
                "with Make Aux Pictures"
            )
        return "\n".join(lines)

    def _loss(self, generator: Generator, processes: Processes) -> Tensor:
        bindings = self.material.bindings
        index = int(torch.randint(len(bindings), (), generator=generator)) if bindings[1:] else 0
        binding = bindings[index]
        if bindings[1:]:
            self.lora.learn((SHARED, binding.name))
        return dual_binding_loss(
            self.work,
            self.work.process,
            binding,
            self.options.batch_size,
            generator,
            self.options.weighting,
            processes.share(self.options.batch_size),
        )

    def _on_step(self, now: Step) -> None:
        curve = curve_of(self.places.run, self.options.steps) if now.is_logged else None
        samples = None
        if _is_quarter(now):
            samples = self.draw(self.prompts)
            self.samples.append(samples)
        self.watch.step_done(now, curve, samples)

    def _recipe(self) -> Recipe:
        options, parity = self.options, self.options.paper_parity
        return Recipe(
            steps=options.steps,
            learning_rate=options.learning_rate,
            warmup=0 if parity else min(WARMUP, options.steps // 10),
            ema_decay=0.0 if parity else 0.999,
            clip=float("inf") if parity else 1.0,
            schedule="constant" if parity else "cosine",
            seed=options.seed,
            save_every=SAVE_EVERY,
            log_every=min(max(options.steps // 20, 5), 50),
            optimizer=options.optimizer,
            validate_every=options.validate_every,
            patience=options.patience,
        )

    def _groups(self) -> dict[str, Group]:
        names = self.lora.text_parameters()
        if not names:
            return {}
        stop = self.options.text_steps or None
        return {"text": Group(names, self.options.text_learning_rate, stop)}

    def _same(self) -> dict[str, Any]:
        options, plan = self.options, self.lora.plan
        return {
            "pictures": self.material.digest[:16],
            "base": self.base,
            "method": options.method.value,
            "batch_size": options.batch_size,
            "loss_weighting": options.weighting.value,
            "rank": plan.rank,
            "alpha": plan.alpha,
            "dropout": plan.dropout,
            "held_out": self.material.is_held_out,
            "paper_parity": options.paper_parity,
        }

    def _about(self, done: int) -> dict[str, Any]:
        options, bindings = self.options, self.material.bindings
        best = read_best(self.places.run) if options.keeps_best else None
        return {
            "method": options.method.value,
            "steps": done,
            "planned_steps": options.steps,
            "kept_step": done if best is None else best.step,
            "learning_rate": options.learning_rate,
            "text_learning_rate": options.text_learning_rate if self._groups() else 0.0,
            "optimizer": options.optimizer,
            "schedule": self._recipe().schedule,
            "rank": options.rank,
            "dropout": options.dropout,
            "batch_size": options.batch_size,
            "min_snr_gamma": MIN_SNR_GAMMA if options.weighting is Weighting.MIN_SNR else None,
            "seed": options.seed,
            "pictures": sum(len(one.style) for one in bindings),
            "aux_pictures": sum(len(one.aux) for one in bindings if one.is_dual),
            "aux_weight": bindings[0].aux_weight,
            "aux_origins": sorted({one.aux_origin for one in self.set.components} - {""}),
            "resolution": self.material.resolution,
            "prediction": self.work.process.prediction.value,
            "dataset": self.material.digest,
            "started_at": round(self.began_at),
            "finished_at": round(time.time()),
        }


class _Unseen(comfy.utils.ProgressBar):
    """For work within a step, whose own bar is the training's."""

    def update(self, value: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()


def _is_quarter(now: Step) -> bool:
    quarter = max(now.steps // 4, 1)
    return now.step % quarter == 0 and now.step < now.steps
