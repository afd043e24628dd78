"""``isel``: of every dimension besides time, latitude and longitude (of an ensemble, of levels), one index.

Legend: Y latitude, X longitude. What is left is [time, Y, X], as all data are here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ace_core.config import nearest
from ace_core.data.config import Slice
from ace_core.data.layout import Variable
from ace_core.errors import ConfigError, Problem

Isel = Mapping[str, int | Slice]
NOTHING: Isel = {}


@dataclass(frozen=True, eq=False)
class Selected:
    """An array of which some axes have an index already. places: of every axis of ``array`` that index, None for those that are left."""

    array: Any
    places: tuple[int | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(n for n, place in zip(self.array.shape, self.places, strict=True) if place is None)

    def __getitem__(self, key: Any) -> Any:
        return self.array[full_index(self.places, key)]


def full_index(places: tuple[int | None, ...], key: Any) -> Any:
    """The index into an array that means ``key`` (slices of its first axes, or ...) of what is selected of it."""
    keys = iter(() if key is ... else key if isinstance(key, tuple) else (key,))
    return tuple(next(keys, slice(None)) if place is None else place for place in places)


def places_of(variable: Variable) -> tuple[int | None, ...]:
    """Of every axis of the stored array, its index or None."""
    return variable.array.places if isinstance(variable.array, Selected) else (None,) * len(variable.dims)


def select(where: str, variables: Mapping[str, Variable], isel: Isel) -> dict[str, Variable]:
    """The variables without the dimensions that ``isel`` names; those that lack them are as they were.

    Raises :class:`ConfigError` for time and the horizontal dimensions, of which a data set needs all (fme's rule: the last two of the
    first variable with three), dimensions that no variable has, indices out of range, and ranges of anything but one index.
    """
    if not isel:
        return dict(variables)
    sizes = {d: n for v in variables.values() for d, n in zip(v.dims, v.array.shape, strict=True)}
    fixed = ("time", *next((v.dims[-2:] for v in variables.values() if "time" in v.dims and len(v.dims) > 2), ()))
    others = [d for d in sizes if d not in fixed]
    places: dict[str, int] = {}
    problems: list[Problem] = []
    for dim, wanted in isel.items():
        at = f"{where}: isel.{dim}"
        if dim in fixed:
            found, fix = "time, or a horizontal dimension", "cut the data, or leave the key out"
            problems.append(Problem(at, found, "a further dimension, such as that of an ensemble", fix))
        elif dim not in others:
            known = f"one of {', '.join(others)}" if others else "no isel: there are no further dimensions"
            problems.append(Problem(at, f"no dimension {dim!r}", known, nearest(dim, others)))
        else:
            chosen = _indices(wanted, sizes[dim])
            if len(chosen) == 1:
                places[dim] = chosen[0]
                continue
            asked = f"{len(chosen)} indices of {sizes[dim]}" if isinstance(wanted, Slice) else f"index {wanted}"
            expected = f"one index of 0..{sizes[dim] - 1}: every field is [time, latitude, longitude]"
            problems.append(Problem(at, asked, expected, "give a number, or a range of one index"))
    if problems:
        raise ConfigError(problems)
    return {name: _selected(variable, places) for name, variable in variables.items()}


def _indices(wanted: int | Slice, size: int) -> list[int]:
    if isinstance(wanted, Slice):
        return list(range(size)[wanted.start : wanted.stop : wanted.step])
    return [wanted % size] if -size <= wanted < size else []


def _selected(variable: Variable, places: Mapping[str, int]) -> Variable:
    if not places.keys() & set(variable.dims):
        return variable
    dims = tuple(d for d in variable.dims if d not in places)
    array = Selected(variable.array, tuple(places.get(d) for d in variable.dims))
    return dataclasses.replace(variable, dims=dims, array=array)
