"""Taking gradients inside a node: the one way out of ComfyUI's inference mode, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OUT_OF_PLACE: dict[Any, Any] = {  # what torch calls for x += y and the like
    Tensor.add_: torch.add, Tensor.sub_: torch.sub, Tensor.mul_: torch.mul, Tensor.div_: torch.div,
}  # fmt: skip


@contextmanager
def gradients() -> Iterator[None]:
    """Leave inference mode, record gradients, keep core from kernels without a backward pass.

    Whatever ends the block, all of it is as before afterwards. Tensors made by earlier nodes are
    inference tensors: pass them through `ordinary`, and networks through `ordinary_weights`.
    """
    was_training = comfy.model_management.in_training
    with torch.inference_mode(False), torch.enable_grad():
        comfy.model_management.in_training = True
        try:
            yield
        finally:
            comfy.model_management.in_training = was_training


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where it was made in inference mode; call inside `gradients`."""
    return tensor.clone() if tensor.is_inference() else tensor


def ordinary_all(value: Any) -> Any:
    """The same for every tensor in lists, tuples and dictionaries; these are made anew."""
    if isinstance(value, Tensor):
        return ordinary(value)
    if isinstance(value, dict):
        return {key: ordinary_all(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(ordinary_all(one) for one in value)
    return value


@contextmanager
def ordinary_weights(network: nn.Module) -> Iterator[None]:
    """Let autograd read a frozen network's weights, at no memory; call inside `gradients`.

    For the block, weights and buffers that were made in inference mode are replaced by views of the
    same storage that were not, and no weight requires gradients. Afterwards the network has its
    own objects back, apart from those that something else has moved or replaced meanwhile.
    """
    replaced = list(_replace(network))
    frozen = [p for p in network.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for slots, name, before, stand_in in replaced:
            now = slots.get(name)
            if now is stand_in and stand_in.data_ptr() == before.data_ptr():
                slots[name] = before


@contextmanager
def ordinary_attributes(holder: object) -> Iterator[None]:
    """The same for tensors that a plain object holds, such as a latent format's statistics."""
    before = {k: x for k, x in vars(holder).items() if isinstance(x, Tensor) and x.is_inference()}
    vars(holder).update({name: tensor.clone() for name, tensor in before.items()})
    try:
        yield
    finally:
        vars(holder).update(before)


class out_of_place(TorchFunctionMode):
    """Let `x += y` and the like make a new tensor, as autograd needs where the old one was kept.

    Enter it round the forward pass of one network of core's, whose residuals are added in place.
    A bare `x.add_(y)` cannot be told from `x += y` and is lost: core does it to masks in attention
    without PyTorch's kernel, so let a network that has masks attend with PyTorch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return OUT_OF_PLACE.get(func, func)(*args, **(kwargs or {}))


def _replace(network: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor, Tensor]]:
    for module in network.modules():
        holders: Any = (module._parameters, module._buffers)
        for slots in holders:
            for name, value in list(slots.items()):
                if value is not None and value.is_inference():
                    stand_in = _ordinary_view(value)
                    slots[name] = stand_in
                    yield slots, name, value, stand_in


def _ordinary_view(value: Tensor) -> Tensor:
    view = torch.empty(0, dtype=value.dtype, device=value.device)
    view.set_(value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
    if isinstance(value, nn.Parameter):
        view = nn.Parameter(view, requires_grad=False)
    vars(view).update(vars(value))  # core notes things on its parameters
    return view
