"""May these data stand beside each other? Of one model configuration: grid, clock, vertical coordinate, masks, units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ace_core.data.units import same_units
from ace_core.dataset_info import DatasetInfo
from ace_core.depth import DepthLayers
from ace_core.errors import DataError, fail
from ace_core.grid import require_same_grid

Difference = tuple[str, str]  # what was found, what was expected


class Described(Protocol):
    """A store, or all that a data set consists of. units: of the variables that state theirs."""

    @property
    def path(self) -> str: ...
    @property
    def units(self) -> Mapping[str, str]: ...
    @property
    def info(self) -> DatasetInfo: ...


def require_alike(first: Described, other: Described, names: Sequence[str] = ()) -> None:
    """Raise :class:`DataError` unless grid, time step, calendar, vertical coordinate, masks and the units of ``names`` are the same."""
    require_same_clock_and_grid(first, other)
    a, b = first.info, other.info
    different = [] if _vertical(a) == _vertical(b) else [(f"vertical is {_vertical(b)}", f"vertical {_vertical(a)}")]
    different += _differing_maps(_maps(a), _maps(b)) + _differing_units(first, other, names)
    _require_none(first, other, different)


def require_mergeable(first: Described, other: Described, names: Sequence[str]) -> None:
    """As :func:`require_alike`, of sources whose variables stand side by side: one may have masks or a vertical coordinate that the
    other has not, or of another kind (air and sea); what both have must be the same."""
    require_same_clock_and_grid(first, other)
    a, b = first.info, other.info
    different = []
    if type(a.vertical) is type(b.vertical) and _vertical(a) != _vertical(b):
        different.append((f"vertical is {_vertical(b)}", f"vertical {_vertical(a)}"))
    mine, theirs = _maps(a), _maps(b)
    both = mine.keys() & theirs.keys()
    different += _differing_maps({n: mine[n] for n in both}, {n: theirs[n] for n in both})
    different += _differing_units(first, other, names)
    _require_none(first, other, different)


def require_same_clock_and_grid(first: Described, other: Described) -> None:
    """Raise :class:`DataError` unless grid points, time step and calendar are the same."""
    require_same_grid(first.info.grid, other.info.grid, other.path, first.path)
    pairs = [(key, getattr(first.info, key), getattr(other.info, key)) for key in ("timestep", "calendar")]
    _require_none(first, other, [(f"{key} is {b}", f"{key} {a}") for key, a, b in pairs if a != b])


def _require_none(first: Described, other: Described, different: Sequence[Difference]) -> None:
    if different:
        raise fail(
            DataError,
            other.path,
            "; ".join(found for found, _ in different),
            "; ".join(expected for _, expected in different) + f" as in {first.path}",
            "use data of one model configuration",
        )


def _vertical(info: DatasetInfo) -> object:
    if isinstance(info.vertical, DepthLayers):
        return f"idepth {info.vertical.interfaces.tolist()}"
    return None if info.vertical is None else (info.vertical.ak, info.vertical.bk)


def _maps(info: DatasetInfo) -> dict[str, Tensor]:
    """Everything [Y, X]; the wet masks of depth layers are among the masks."""
    floor = info.vertical.floor if isinstance(info.vertical, DepthLayers) else None
    return dict(info.masks.masks) if floor is None else {**info.masks.masks, "deptho": floor}


def _differing_maps(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[Difference]:
    """What b has, and what was expected of it. NaN equals NaN."""
    different = []
    for name in sorted({*a, *b}):
        if name not in b:
            different.append((f"no {name}", name))
        elif name not in a:
            different.append((name, f"no {name}"))
        else:
            same = (a[name] == b[name]) | (a[name].isnan() & b[name].isnan())
            if not same.all():
                different.append((f"{name} differs in {int((~same).sum())} of {same.numel()} cells", f"{name}"))
    return different


def _differing_units(first: Described, other: Described, names: Sequence[str]) -> list[Difference]:
    different = []
    for name in names:
        a, b = first.units.get(name, ""), other.units.get(name, "")
        if not same_units(a, b):
            different.append((f"{name} is in {b!r}", f"{name} in {a!r}"))
    return different
