"""The only file that talks to ``torch.distributed``.

One process, or several started by torchrun; the same code runs in both. Data parallel: every rank holds the network and
its share of each global batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process's place: rank of world, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks of a tensor that has the same shape on each; a new tensor, so reading twice is reading once."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """True if any rank says so: all ranks leave a loop at the same batch."""
        if self.world == 1:
            return flag
        vote = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        return bool(vote.item() > 0)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Average gradients over ranks during backward, overlapped with it."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, forward_sync_buffers=False)


@contextmanager
def local_gradients(module: nn.Module, local: bool) -> Iterator[None]:
    """Inside, if ``local``, backward passes through a :meth:`Ranks.wrap`-ped module add to this rank's gradients only; the next
    one outside averages the sum. Forward and backward belong inside."""
    if local and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the group that torchrun describes in the environment, or be alone. NCCL on GPUs, gloo otherwise."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(device=device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    try:
        yield Ranks(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()
