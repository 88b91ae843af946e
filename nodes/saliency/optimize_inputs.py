"""Inputs and outputs of Optimize Latent."""

from comfy_api.latest import io

from ...models.saliency.objective import USES
from ...models.saliency.presets import DEFAULT, PRESETS
from ..host.types import RewardSocket, SaliencySocket

AS_PRESET = "as the preset"
OWN = -1  # of a number: the preset's


def source_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="LoRAs and patches included. It stays as it is; not quantised."
        ),
        io.Conditioning.Input("positive", tooltip="What the picture shows."),
        io.Conditioning.Input("negative", tooltip="What to keep away from; unused at cfg 1."),
        io.Vae.Input("vae", tooltip="The model's VAE."),
        io.Latent.Input(
            "latent_image",
            tooltip=(
                "An empty latent for a new picture. A latent with a picture is kept as far as sigmas allow; "
                "with add_noise off it is the start itself, such as the latent of Invert Picture."
            ),
        ),
        io.Sampler.Input(
            "sampler",
            tooltip=(
                "Any stock sampler that can be differentiated. euler, heun and dpm_2 are pulled back step "
                "by step."
            ),
        ),
        io.Sigmas.Input(
            "sigmas", tooltip="From any scheduler. Few steps make many iterations affordable."
        ),
        RewardSocket.Input(
            "reward",
            optional=True,
            tooltip="What to make better, from Reward. May stay empty where the eye is drawn.",
        ),
        SaliencySocket.Input(
            "saliency",
            optional=True,
            tooltip="What finds where people look; spectral residual if nothing is connected.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip=(
                "White where people look, in place of saliency. With 'draw the eye to the mask': where they "
                "should look."
            ),
        ),
        RewardSocket.Input(
            "held_out",
            optional=True,
            tooltip="Another reward, which is told and not raised: does it agree that it got better?",
        ),
        io.Noise.Input(
            "noise",
            optional=True,
            tooltip="Where to start, such as the noise of Invert Picture. Without it, seed's noise.",
        ),
        io.Vae.Input(
            "gradient_vae",
            optional=True,
            tooltip=(
                "A small decoder of the same latents, such as TAESD, for the gradient alone: a tenth of "
                "the memory. Points and pictures at the end are the full vae's."
            ),
        ),
    ]


def choice_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of the starting noise, and of all that is drawn on the way.",
        ),
        io.Float.Input(
            "cfg",
            default=4.0,
            min=0.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly to follow the prompt. At 1 each step costs half.",
        ),
        io.Combo.Input(
            "preset",
            options=list(PRESETS),
            default=DEFAULT,
            tooltip=(
                "How the noise moves. The first keeps it white and serves few-step sampling best. SGOOL is a "
                "reconstruction: its authors published neither code nor all constants."
            ),
        ),
        io.Int.Input(
            "iterations",
            default=0,
            min=0,
            max=1000,
            tooltip="Steps of the noise, each about 3.3 samplings. 0 is the preset's number.",
        ),
        io.Combo.Input(
            "use_saliency",
            options=[AS_PRESET, *USES],
            default=AS_PRESET,
            tooltip=(
                "What the map of where people look is for: a second score for the salient part, a gate "
                "that keeps the rest, or the goal itself."
            ),
        ),
        io.Int.Input(
            "starts",
            default=1,
            min=1,
            max=64,
            tooltip=(
                "Random noises to begin with. The better half goes on after each round, all rounds "
                "together take the same steps."
            ),
        ),
        io.Boolean.Input(
            "compare",
            default=False,
            tooltip=(
                "Spend as many seconds again on the best of random noises, and tell both: what the "
                "gradient is worth."
            ),
        ),
    ]


def expert_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "strength",
            default=OWN,
            min=OWN,
            max=10.0,
            step=0.05,
            advanced=True,
            tooltip=(
                "Weight of the salient part beside the whole picture; for crops the share of them that "
                "follow the map, for the gate how firmly it shuts. -1 is the preset's."
            ),
        ),
        io.Float.Input(
            "step_scale",
            default=1.0,
            min=0.01,
            max=100.0,
            step=0.05,
            advanced=True,
            tooltip="How far each step goes, times the preset's.",
        ),
        io.Int.Input(
            "last_steps",
            default=0,
            min=0,
            max=1000,
            advanced=True,
            tooltip=(
                "Gradients through so many sampling steps at the end, which is cheaper and rougher; 1 is the "
                "last-step shortcut. 0 is all of them."
            ),
        ),
        io.Int.Input(
            "patience",
            default=OWN,
            min=OWN,
            max=1000,
            advanced=True,
            tooltip="Steps without a gain after which it ends; 0 never. -1 is the preset's.",
        ),
        io.Int.Input(
            "keep",
            default=1,
            min=1,
            max=16,
            advanced=True,
            tooltip="How many of the best iterates of each picture come out, the best first.",
        ),
        io.Boolean.Input(
            "add_noise",
            default=True,
            advanced=True,
            tooltip="Off: latent_image holds the noise already, such as that of Invert Picture.",
        ),
        io.Boolean.Input(
            "keep_on_cancel",
            default=True,
            advanced=True,
            tooltip="Cancel ends the search and goes on with the best so far; a second one stops all.",
        ),
        io.Boolean.Input(
            "check_gradient",
            default=False,
            advanced=True,
            tooltip="First compare the gradient with a finite difference, and refuse a false one.",
        ),
        io.String.Input(
            "resume_name",
            default="",
            advanced=True,
            tooltip=(
                "A name under which the state is saved after each step; the same name and settings go on "
                "from there. Empty saves nothing."
            ),
        ),
    ]


def result_outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="latent", tooltip="The best picture before decoding."),
        io.Noise.Output(
            display_name="noise",
            tooltip="The optimised noise, for SamplerCustomAdvanced with the same latent and settings.",
        ),
        io.Image.Output(display_name="image", tooltip="The best picture by the full VAE."),
        io.Image.Output(display_name="before", tooltip="The picture of the noise it began with."),
        io.Image.Output(
            display_name="curve", tooltip="Points over steps, beside held-out points if there are."
        ),
        io.String.Output(
            display_name="report",
            tooltip="Points before and after, time, and the noise's whiteness.",
        ),
    ]
