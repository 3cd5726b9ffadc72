"""Several processes train one run together: who is who, and what they share.

`torchrun` starts them and tells each by its environment. Every process holds the whole state and computes
its share of each batch; gradients are averaged by hand, since what a penalty differentiates twice is no
plain backward pass that a wrapper could listen to. The first one leads: it alone reads and writes the run
folder and speaks. A process alone is the leader of itself, and shares nothing. Refuses to own: what is
shared when (`training.loop`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from models.errors import InvalidValue, show
from training.device import choose_device
from training.errors import RunError


@dataclass(frozen=True)
class Processes:
    """This process among those of its run. Each method but `leads` is called by all of them at once.

    They raise RunError where another process has ended.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one reads and writes the run folder, and speaks."""
        return self.rank == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, with the same bits in all of them."""
        if self.count == 1 or not (tensors := list(tensors)):
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _another_may_end():
            dist.all_reduce(flat)
        flat /= self.count
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def gather(self, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows [N] of all processes of each figure, the leader's first."""
        if self.count == 1:
            return dict(figures)
        flat = torch.cat(list(figures.values()))
        parts = [torch.empty_like(flat) for _ in range(self.count)]
        with _another_may_end():
            dist.all_gather(parts, flat)
        sizes = [len(values) for values in figures.values()]
        columns = zip(*(torch.split(part, sizes) for part in parts), strict=True)
        return {name: torch.cat(rows) for name, rows in zip(figures, columns, strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether any of them says so."""
        if self.count == 1:
            return flag
        votes = torch.tensor([int(flag)])
        with _another_may_end():
            dist.all_reduce(votes)
        return bool(votes)

    def from_leader(self, content: bytes) -> bytes:
        """Return the leader's `content`, which is not empty; the others' is not looked at."""
        if self.count == 1:
            return content
        size = torch.tensor([len(content)])
        with _another_may_end():
            dist.broadcast(size, src=0)
            buffer = bytearray(content) if self.leads else bytearray(int(size))
            dist.broadcast(torch.frombuffer(buffer, dtype=torch.uint8), src=0)
        return bytes(buffer)


ALONE: Final = Processes()
_TOLD: Final = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun's environment says beside RANK."""


@contextmanager
def joined(device_name: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun started, if it did; give who this one is, and the device it has.

    On CUDA each process of a machine has a device of its own. Raises InvalidValue for a device that
    cannot be, and for an environment that is torchrun's in part only.
    """
    if "RANK" not in os.environ:
        yield ALONE, choose_device(device_name)
        return
    if missing := [name for name in _TOLD if name not in os.environ]:
        raise InvalidValue(
            f"RANK must come with {', '.join(_TOLD)}, as torchrun sets them, got no {missing[0]}: "
            "start with torchrun, or unset RANK"
        )
    device = choose_device(device_name)
    if ":" in device_name:
        raise InvalidValue(f"--device must be auto, cpu or cuda under torchrun, got {show(device_name)}")
    if device.type == "cuda":
        device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    with _another_may_end():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


@contextmanager
def _another_may_end() -> Iterator[None]:
    """Turn what torch raises when a process does not answer any more into a sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise RunError(
            f"another process of this run has ended or cannot be reached, so this one ends too: {reason}"
        ) from error
