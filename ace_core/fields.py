"""Named fields in one tensor.

Legend: B sample, T time, C channel (one per name), Y latitude, X longitude. A name is a view, a list of names is one
gather: nothing on the hot path loops over variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fields:
    """tensor [..., C, Y, X] in SI units; names[c] belongs to channel c."""

    names: tuple[str, ...]
    tensor: Tensor

    def __post_init__(self) -> None:
        assert len(self.names) == self.tensor.shape[-3], (self.names, self.tensor.shape)

    def __contains__(self, name: object) -> bool:
        return name in _positions(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """View [..., Y, X]. Raises KeyError."""
        return self.tensor.select(-3, _positions(self.names)[name])

    def select(self, names: Sequence[str]) -> Tensor:
        """[..., len(names), Y, X]: a view where the names are consecutive, otherwise one gather."""
        wanted = tuple(names)
        if wanted == self.names:
            return self.tensor
        index = _indices(self.names, wanted)
        if all(b - a == 1 for a, b in pairwise(index)):
            return self.tensor.narrow(-3, index[0] if index else 0, len(index))
        return self.tensor.index_select(-3, _index_tensor(index, self.tensor.device))

    def subset(self, names: Sequence[str]) -> Fields:
        return Fields(tuple(names), self.select(names))

    def write(self, names: Sequence[str], values: Tensor) -> None:
        """Overwrite channels in place, values [..., len(names), Y, X]; what shares the memory sees it."""
        index = _indices(self.names, tuple(names))
        if all(b - a == 1 for a, b in pairwise(index)):
            self.tensor.narrow(-3, index[0] if index else 0, len(index)).copy_(values)
        else:
            self.tensor.index_copy_(-3, _index_tensor(index, self.tensor.device), values.to(self.tensor.dtype))

    def levels(self, prefix: str) -> Tensor:
        """[..., Z, Y, X]: ``prefix_0`` (top) .. ``prefix_{Z-1}``. Raises KeyError if there is no level 0."""
        return self.select(level_names(self.names, prefix))

    def at_time(self, index: int) -> Fields:
        """For [B, T, C, Y, X]: the fields [B, C, Y, X] of one step."""
        return Fields(self.names, self.tensor[:, index])

    def to(self, device: torch.device) -> Fields:
        return Fields(self.names, self.tensor.to(device, non_blocking=True))


class Draft:
    """An output [B, C, Y, X] that is being changed channel by channel; reading sees earlier changes.

    With gradients enabled the output is taken apart once and put together once at the end, because the backward pass of every
    view of a channel would be a whole tensor of zeros. Without, channels are written in place: into a copy, or with ``owned`` into
    the output itself, which nobody else may then hold.
    """

    def __init__(self, output: Fields, *, owned: bool = False) -> None:
        self.names = output.names
        self._channels: list[Tensor] | None = None
        if torch.is_grad_enabled():
            self._channels = list(_Apart.apply(output.tensor))  # type: ignore[no-untyped-call]
        self._changed = False
        if self._channels is None and not owned:
            output = Fields(output.names, output.tensor.clone())
        self._output = output

    def __contains__(self, name: object) -> bool:
        return name in self._output

    def __getitem__(self, name: str) -> Tensor:
        """[B, Y, X]."""
        return self._output[name] if self._channels is None else self._channels[_positions(self.names)[name]]

    def __setitem__(self, name: str, value: Tensor) -> None:
        if self._channels is None:
            self._output[name].copy_(value)
        else:
            self._channels[_positions(self.names)[name]] = value.to(self._output.tensor.dtype)
            self._changed = True

    def select(self, names: Sequence[str]) -> Tensor:
        """[B, len(names), Y, X]."""
        if self._channels is None:
            return self._output.select(names)
        return torch.stack([self._channels[i] for i in _indices(self.names, tuple(names))], dim=-3)

    def set_all(self, names: Sequence[str], values: Tensor) -> None:
        """values [B, len(names), Y, X]."""
        if self._channels is None:
            self._output.write(names, values)
        else:
            for name, value in zip(names, values.unbind(dim=-3), strict=True):
                self[name] = value

    def add(self, names: Sequence[str], value: Tensor) -> None:
        """Add what broadcasts to [B, len(names), Y, X], in the output's precision."""
        value = value.to(self._output.tensor.dtype)
        if self._channels is None:
            for run in runs(self.names, tuple(names)):
                self._output.select(run).add_(value)
        else:
            self.set_all(names, self.select(names) + value)

    def clamp_min(self, names: Sequence[str], low: float, clamp: Callable[[Tensor, float], Tensor]) -> None:
        """``max(x, low)``; clamp: the function that does it where gradients matter."""
        if self._channels is None:
            for run in runs(self.names, tuple(names)):
                self._output.select(run).clamp_(min=low)
        else:
            self.set_all(names, clamp(self.select(names), low))

    def finish(self) -> Fields:
        """The whole output."""
        if self._channels is None or not self._changed:
            return self._output
        return Fields(self.names, torch.stack(self._channels, dim=-3))


class _Apart(torch.autograd.Function):
    """``unbind`` of [B, C, Y, X] over channels, whose backward pass makes one tensor of zeros for all that nobody used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return x.unbind(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        some = next((g for g in gradients if g is not None), None)
        if some is None:
            return None
        zero = torch.zeros_like(some)
        return torch.stack([zero if g is None else g for g in gradients], dim=1)


@lru_cache(maxsize=256)
def runs(names: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """``wanted`` in the order of ``names``, cut into what is consecutive there: each part is a view."""
    chosen = set(wanted)
    parts = groupby(names, key=chosen.__contains__)
    return tuple(tuple(part) for inside, part in parts if inside)


@lru_cache(maxsize=256)
def level_names(names: tuple[str, ...], prefix: str) -> tuple[str, ...]:
    """``prefix_0``, ``prefix_1``, ... as far as they are in ``names``. Raises KeyError if there are none."""
    found: list[str] = []
    while f"{prefix}_{len(found)}" in names:
        found.append(f"{prefix}_{len(found)}")
    if not found:
        raise KeyError(f"{prefix}_0")
    return tuple(found)


@lru_cache(maxsize=256)
def _positions(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


@lru_cache(maxsize=1024)
def _indices(names: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[int, ...]:
    positions = _positions(names)
    return tuple(positions[name] for name in wanted)


@lru_cache(maxsize=1024)
def _index_tensor(index: tuple[int, ...], device: torch.device) -> Tensor:
    # Not of inference mode even if first asked for there: autograd refuses to save such tensors later.
    with torch.inference_mode(False):
        return torch.tensor(index, device=device)
