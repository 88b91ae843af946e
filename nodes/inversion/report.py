"""The report of an inversion: what it took, how near the way back comes, how noise-like its end is."""

import dataclasses

from torch import Tensor

from ...models.common.metrics import WHOLE, measure_likeness
from ...models.inversion.statistics import NoiseStatistics, end_statistics
from ...models.inversion.trajectory import Inversion


def describe(inversion: Inversion, pictures: dict[str, Tensor], rebuilt: Tensor | None) -> str:
    """The report as lines of text.

    Args:
        inversion: what was found.
        pictures: what stands beside the first of them (b 3 h w), by name; the first is the source.
        rebuilt: latent (b c ...) of the way back, in the model's latent space; None if not walked.
    """
    lines = [
        f"{inversion.method}: {inversion.steps} steps, {inversion.calls} calls, noise level "
        f"{inversion.sigmas[0]:.4g}",
        f"condition: {inversion.source.note}",
        *_likeness_lines(pictures),
    ]
    if rebuilt is not None:
        error = (rebuilt - inversion.clean).flatten(1).square().mean(1)
        lines.append(f"latent MSE {_listed(error, '.2e')}")
    return "\n".join([*lines, *_noise_lines(end_statistics(inversion))])


def _likeness_lines(pictures: dict[str, Tensor]) -> list[str]:
    (_, source), *others = pictures.items()
    lines = [f"{'against the picture':24} {'PSNR, dB':16} SSIM"] if others else []
    for name, picture in others:
        found = measure_likeness(picture, source)[WHOLE]
        lines.append(f"{name:24} {_listed(found.psnr, '.2f'):16} {_listed(found.ssim, '.4f')}")
    return lines


def _noise_lines(statistics: NoiseStatistics) -> list[str]:
    white = {"std": 1, "kurtosis": 3}
    return ["noise at the end (white noise):"] + [
        f"  {field.name.replace('_', ' ')} {_listed(getattr(statistics, field.name), '.3f')} "
        f"({white.get(field.name, 0)})"
        for field in dataclasses.fields(statistics)
    ]


def _listed(values: Tensor, form: str) -> str:
    return " ".join(f"{float(value):{form}}" for value in values)
