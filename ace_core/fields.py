"""Named fields in one tensor.

Legend: B sample, T time, C channel (one per name), Y latitude, X longitude. A name is a view, a list of names is one
gather: nothing on the hot path loops over variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

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

    def levels(self, prefix: str) -> Tensor:
        """[..., Z, Y, X]: ``prefix_0`` (top) .. ``prefix_{Z-1}``. Raises KeyError if there is no level 0."""
        return self.select(level_names(self.names, prefix))

    def at_time(self, index: int) -> Fields:
        """For [B, T, C, Y, X]: the fields [B, C, Y, X] of one step."""
        return Fields(self.names, self.tensor[:, index])

    def to(self, device: torch.device) -> Fields:
        return Fields(self.names, self.tensor.to(device, non_blocking=True))


@dataclass(eq=False)
class Draft:
    """An output as changed so far. Reading sees earlier changes; the channels are written once, at the end."""

    output: Fields
    changed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return self.output.names

    def __contains__(self, name: object) -> bool:
        return name in self.output

    def __getitem__(self, name: str) -> Tensor:
        """[B, Y, X]."""
        found = self.changed.get(name)
        return self.output[name] if found is None else found

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.changed[name] = value.to(self.output.tensor.dtype)

    def select(self, names: Sequence[str]) -> Tensor:
        """[B, len(names), Y, X]."""
        if any(n in self.changed for n in names):
            return torch.stack([self[n] for n in names], dim=-3)
        return self.output.select(names)

    def set_all(self, names: Sequence[str], values: Tensor) -> None:
        """values [B, len(names), Y, X]."""
        rounded = values.to(self.output.tensor.dtype)
        self.changed.update(zip(names, rounded.unbind(dim=-3), strict=True))

    def finish(self) -> Fields:
        """The whole output."""
        if not self.changed:
            return self.output
        pieces: list[Tensor] = []
        start = 0
        for i, name in enumerate(self.names):
            if name in self.changed:
                pieces += [self.output.tensor[:, start:i], self.changed[name].unsqueeze(-3)]
                start = i + 1
        pieces.append(self.output.tensor[:, start:])
        return Fields(self.names, torch.cat(pieces, dim=-3))


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
    return torch.tensor(index, device=device)
