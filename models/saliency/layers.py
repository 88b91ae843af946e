"""Layers whose sizes are read off the weights that they will hold."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def conv_like(state: State, name: str, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (but for its stride), as wide as `state[name.weight]`.

    One input channel per group is taken for a depthwise convolution.

    Raises:
        KeyError: the weight is missing.
    """
    outputs, inputs, size, _ = state[f"{name}.weight"].shape
    groups = outputs if inputs == 1 and size > 1 else 1
    return nn.Conv2d(
        inputs * groups,
        outputs,
        size,
        stride,
        size // 2,
        groups=groups,
        bias=f"{name}.bias" in state,
    )


def norm_like(state: State, name: str) -> nn.BatchNorm2d:
    """A batch norm as wide as `state[name.weight]`; KeyError where that is missing."""
    return nn.BatchNorm2d(len(state[f"{name}.weight"]))


def normalised(image: Tensor) -> Tensor:
    """A picture (b 3 h w), 0..1, with ImageNet's colour statistics taken out."""
    mean, std = (image.new_tensor(values)[:, None, None] for values in (RGB_MEAN, RGB_STD))
    return (image - mean) / std


def fill(network: nn.Module, state: State, name: str) -> None:
    """Give a network, built on the meta device, the weights themselves as float32.

    Args:
        network: its parameters are replaced.
        state: every weight and no other; counters of batch norms may be left out.
        name: of the file, for messages.

    Raises:
        ValueError: a weight is missing, has another shape, or belongs to something else.
    """
    wanted = {key: x.shape for key, x in network.state_dict().items() if not _is_counter(key)}
    given = {key: x for key, x in state.items() if not _is_counter(key)}
    wrong = [key for key in (*wanted, *given) if key not in given or key not in wanted]
    wrong += [key for key in wanted if not wrong and given[key].shape != wanted[key]]
    if wrong:
        key = wrong[0]
        came = tuple(given[key].shape) if key in given else "missing"
        need = tuple(wanted[key]) if key in wanted else "nothing of that name"
        raise ValueError(
            f"{name}: {key} is {came}, its other weights need {need}; copy the file again or choose "
            "another one"
        )
    counters = {key: torch.tensor(0) for key in network.state_dict() if _is_counter(key)}
    network.load_state_dict({**{k: x.float() for k, x in given.items()}, **counters}, assign=True)
    network.requires_grad_(False).eval()


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
