"""The only file that talks to ``torch.distributed``.

One process, or several started by torchrun; the same code runs in both. Ranks form a mesh: each *place of the data* has its share of every
global batch, and the ``h`` x ``w`` ranks of one place hold a tile of latitude and longitude of each of its fields (:class:`Tiles`). Every
rank holds the network.

How gradients come out right: all tiles of a place compute the same loss, and each starts a backward pass from its own copy. The adjoint
of a sum over tiles is a sum over tiles, so that what reaches a parameter on one rank is ``h w`` times that tile's share of its
gradient; the mean over all ranks of the mesh, which is what data parallel training takes anyway, is then the mean over places of the
whole gradient.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ace_core.errors import ConfigError, fail
from ace_core.grid import Tile, tiles_of

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
Index = tuple[slice, ...]


@dataclass(frozen=True)
class Tiles:
    """The ranks that hold the ``h`` x ``w`` tiles of the same fields, and which of them this process is, from west to east and then from
    south to north. Alone, it holds everything and every method gives back what it got."""

    h: int = 1
    w: int = 1
    index: int = 0
    group: Any = field(default=None, repr=False, compare=False)

    @property
    def count(self) -> int:
        return self.h * self.w

    def all_of(self, shape: tuple[int, int]) -> list[Tile]:
        """Every rank's tile of a grid."""
        return tiles_of(shape, self.h, self.w)

    def of(self, shape: tuple[int, int]) -> Tile:
        """This rank's."""
        return self.all_of(shape)[self.index]

    def part(self, whole: Tensor) -> Tensor:
        """This rank's tile of [..., Y, X], a view."""
        if self.count == 1:
            return whole
        ny, nx = whole.shape[-2:]
        return whole[(..., *self.of((ny, nx)).index)]

    def part_last(self, whole: Tensor) -> Tensor:
        """This rank's tile of [Y, X, C], a view."""
        return self.part(whole.movedim(-1, 0)).movedim(0, -1)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over tiles of what has the same shape on each; differentiable (see the module's docstring)."""
        if self.count == 1:
            return x
        out: Tensor = _Sum.apply(x, self.group)  # type: ignore[no-untyped-call]
        return out

    def mean(self, x: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
        """Mean over ``dims``, among them those that are divided, every cell counting once."""
        if self.count == 1:
            return x.mean(dim=dims)
        total = x.sum(dim=dims)
        # What is reduced is small; the cells are counted beside it instead of in a collective of their own.
        cells = total.new_full((1,), x.numel() / max(total.numel(), 1))
        both = self.sum(torch.cat([total.reshape(-1), cells]))
        return both[:-1].view_as(total) / both[-1].detach()

    def gather(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """This rank's tile [..., y, x] of a grid of ``shape`` -> the whole [..., Y, X]; differentiable."""
        if self.count == 1:
            return x
        out: Tensor = _Sum.apply(_Placed.apply(x, self.of(shape), shape), self.group)  # type: ignore[no-untyped-call]
        return out

    def exchange(self, x: Tensor, send: Sequence[Index], receive: Sequence[Index], shape: Sequence[int]) -> Tensor:
        """x[send[k]] to rank k, and what rank k has for this one to out[receive[k]] of the result; differentiable.

        What is not received is not set, and neither is the gradient of what is not sent.
        """
        out: Tensor = _Exchange.apply(x, tuple(send), tuple(receive), tuple(shape), self.group)  # type: ignore[no-untyped-call]
        return out

    def total(self, x: Tensor) -> Tensor:
        """:meth:`sum`, within a function that has a backward pass of its own."""
        if self.count == 1:
            return x
        out = x.clone()
        dist.all_reduce(out, group=self.group)
        return out


WHOLE = Tiles()


def require_tiles(world: int, h: int, w: int) -> None:
    """Raise :class:`ConfigError` if the number of ranks is no multiple of the number of tiles."""
    if world % (h * w):
        found, fix = f"{h} x {w} tiles on {world} rank(s)", f"start a multiple of {h * w} ranks"
        raise fail(ConfigError, "parallelism.tiles", found, f"a number of ranks that {h * w} divides", fix)


class Divisible(nn.Module):
    """A module that has something of a grid's size, or means over a grid: it says in :meth:`divide` what a tile needs of it."""

    tiles: Tiles = WHOLE

    def divide(self, tiles: Tiles) -> None:
        """Once, before the first call: fields will come in tiles. Parameters and what is saved stay whole."""
        self.tiles = tiles


def divide(module: nn.Module, tiles: Tiles) -> None:
    """Tell every part of ``module`` that has not been told."""
    if tiles.count == 1:
        return
    for part in module.modules():
        if isinstance(part, Divisible) and part.tiles.count == 1:  # once
            part.divide(tiles)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=ctx.group)
        return out, None


class _Placed(torch.autograd.Function):
    """A tile in a field that is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tile: Tile, shape: tuple[int, int]) -> Tensor:
        ctx.tile = tile
        out = x.new_zeros(*x.shape[:-2], *shape)
        out[(..., *tile.index)] = x
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][(..., *ctx.tile.index)], None, None


class _Exchange(torch.autograd.Function):
    """A permutation over ranks: its adjoint sends everything back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, send: tuple[Index, ...], receive: tuple[Index, ...], shape: tuple[int, ...], group: Any
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.shape, ctx.group = send, receive, x.shape, group
        return _exchange(x, send, receive, shape, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _exchange(grads[0], ctx.receive, ctx.send, ctx.shape, ctx.group), None, None, None, None


def _exchange(
    x: Tensor, send: tuple[Index, ...], receive: tuple[Index, ...], shape: Sequence[int], group: Any
) -> Tensor:
    out = x.new_empty(tuple(shape))
    pieces, places = [x[i] for i in send], [out[i] for i in receive]
    sizes = [[p.numel() for p in parts] for parts in (pieces, places)]
    sent = torch.cat([p.reshape(-1) for p in pieces])
    received = x.new_empty(sum(sizes[1]))
    dist.all_to_all_single(received, sent, sizes[1], sizes[0], group=group)
    for place, piece in zip(places, torch.split(received, sizes[1])):
        place.copy_(piece.view_as(place))
    return out


@dataclass(frozen=True)
class Ranks:
    """This process's place: rank of world, its device, and the tiles of its place in the data. votes: the group that decisions of hosts go
    through; None: that of everything else."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tiles: Tiles = WHOLE
    votes: Any = field(default=None, repr=False, compare=False)

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    @property
    def place(self) -> int:
        """Which share of every global batch is this rank's, from 0."""
        return self.rank // self.tiles.count

    @property
    def places(self) -> int:
        """Number of shares that a global batch has."""
        return self.world // self.tiles.count

    def divided(self, h: int, w: int) -> Ranks:
        """The same ranks with fields in h x w tiles; neighbouring ranks hold tiles of the same fields.

        Called on all ranks alike, once. Raises :class:`ConfigError` if the number of ranks is no multiple of the number of tiles.
        """
        n = h * w
        if n == 1:
            return self
        require_tiles(self.world, h, w)
        groups = [dist.new_group(list(range(i, i + n)), timeout=COLLECTIVE_TIMEOUT) for i in range(0, self.world, n)]
        return replace(self, tiles=Tiles(h, w, self.rank % n, groups[self.rank // n]))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over places of a tensor that has the same shape on each rank and the same numbers on all tiles of a place; a new tensor, so
        reading twice is reading once."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total if self.tiles.count == 1 else total / self.tiles.count

    def from_root(self, value: int) -> int:
        """The root rank's, on every rank."""
        if self.world == 1:
            return value
        told = torch.tensor(value, device=self.device)
        dist.broadcast(told, src=0)
        return int(told)

    def any(self, flag: bool) -> bool:
        """True if any rank says so: all ranks leave a loop at the same batch."""
        if self.world == 1:
            return flag
        # Between hosts: a device that still works on the batch is not waited for.
        vote = torch.tensor(float(flag))
        dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self.votes)
        return bool(vote.item() > 0)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Average gradients over ranks during backward, overlapped with it."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Gradients lie where they are sent from: otherwise they are there twice.
        return DistributedDataParallel(
            module, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def sharded(
        self, kind: type[torch.optim.Optimizer], parameters: list[nn.Parameter], keys: dict[str, Any]
    ) -> torch.optim.Optimizer:
        """``kind(parameters, **keys)`` of which every rank keeps and updates a part, and tells the others (ZeRO, stage 1: Rajbhandari et
        al. 2020, arXiv:1910.02054). Weights are those of one that every rank has whole, bit for bit."""
        if self.world == 1:
            return kind(parameters, **keys)
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(parameters, optimizer_class=kind, **keys)


def own_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """What this rank keeps of one from :meth:`Ranks.sharded`; any other is its own part."""
    part: torch.optim.Optimizer = getattr(optimizer, "optim", optimizer)
    return part


def consolidate(optimizer: torch.optim.Optimizer) -> None:
    """On all ranks, before ``state_dict()`` of one from :meth:`Ranks.sharded` on the root; nothing to do for any other."""
    bring_together = getattr(optimizer, "consolidate_state_dict", None)
    if bring_together is not None:
        bring_together(to=0)


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
    dist.init_process_group("nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
    votes = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if cuda else None
    try:
        yield Ranks(dist.get_rank(), world, device, votes=votes)
    finally:
        dist.destroy_process_group()
