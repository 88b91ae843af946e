"""Several processes that train the same weights together, each on its share of every batch.

All of them draw every batch alike, with the same generator, and compute the loss of their own rows;
the mean of their gradients is then the gradient of the whole batch, wherever the loss is a mean over
rows. n processes with b rows each are one process with n * b rows, but for rounding.

accelerate finds out how they were started, and torch.distributed lets them talk.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among the `count` that train together; `launched` finds out which it is."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and tells how far it is."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's rows of a batch that all have drawn alike.

        Args:
            rows: of the whole batch; a multiple of `count`.

        Raises:
            ValueError: the batch cannot be shared evenly.
        """
        if rows % self.count:
            raise ValueError(
                f"a batch of {rows} cannot be shared evenly by {self.count} processes; give a "
                "multiple of their number"
            )
        own = rows // self.count
        return slice(self.rank * own, (self.rank + 1) * own)

    def share_gradients(
        self, parameters: Sequence[nn.Parameter], losses: Sequence[Tensor]
    ) -> list[Tensor]:
        """Give every process the mean of all gradients, and return the means of the losses.

        A parameter that has a gradient in some processes counts as zero in the others, and one that
        has none anywhere keeps none.

        Args:
            parameters: the same in all processes; their gradients are replaced.
            losses: scalars.
        """
        if self.count == 1:
            return list(losses)
        numbers = [
            torch.stack(list(losses)),
            torch.tensor([float(p.grad is not None) for p in parameters]),
            *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters),
        ]
        device = parameters[0].device
        wide = torch.promote_types(parameters[0].dtype, torch.float32)  # halves would round
        whole = torch.cat([part.detach().flatten().to(device, wide) for part in numbers])
        sizes = [part.numel() for part in numbers]
        distributed.all_reduce(whole)
        means, present, *gradients = (whole / self.count).split(sizes)
        for parameter, gradient, share in zip(parameters, gradients, present.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if share else None
        return list(means)

    def share_weights(self, parameters: Sequence[Tensor]) -> None:
        """Give every process the first one's weights, in place."""
        if self.count > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), 0)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, which alone calls it, in all of them."""
        found = [make() if self.is_first else None]
        if self.count > 1:
            distributed.broadcast_object_list(found)
        return cast(T, found[0])

    def from_all(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        found = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(found, value)
        return found

    def close(self) -> None:
        """End the talking; to be called by all of them at the same time, at the end."""
        if self.count > 1:
            distributed.destroy_process_group()


ALONE = Processes()


def launched(device: torch.device) -> Processes:
    """The processes that `accelerate launch` or `torchrun` has started, or this one alone.

    Args:
        device: where the training computes: of kind "cpu", or the accelerator's, of which every
            process is given its own.

    Raises:
        ImportError: there are several, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # set by both launchers
        return ALONE
    try:
        from accelerate import PartialState  # of no use to one process
    except ImportError as error:
        raise ImportError(
            "training in several processes needs the package accelerate, which is not installed; "
            "run `pip install accelerate`, or start one process"
        ) from error
    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.process_index, state.num_processes)
