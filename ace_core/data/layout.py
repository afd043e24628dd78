"""What a store holds, told from metadata alone: which variables are fields, statics, series; its grid and its times.

Legend: T time, C channel, Y latitude, X longitude. Shared by all formats, so that all give the same messages.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ace_core.calendar import TimeAxis, format_time, from_cf
from ace_core.config import nearest
from ace_core.dataset_info import DatasetInfo, Vertical
from ace_core.depth import DepthLayers
from ace_core.errors import DataError, Problem, fail
from ace_core.grid import LatLonGrid
from ace_core.spatial_mask import SpatialMasks
from ace_core.vertical import HybridSigma

F32 = npt.NDArray[np.float32]
_INTERFACE = re.compile(r"^(ak|bk|idepth)_(\d+)$")
_NOT_STATIC = "not a static [latitude, longitude] field of numbers"
_LEVEL_MASK = re.compile(r"^mask_(\d+)$")


@dataclass(frozen=True, eq=False)
class Variable:
    """An opened array of any format: ``array[...]`` reads values as stored, nothing masked, nothing scaled.

    fill: what the format itself puts where nothing was written, besides the attributes; None if it has no such number.
    """

    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    attrs: Mapping[str, Any]
    array: Any
    fill: float | None = None

    @cached_property
    def missing(self) -> tuple[np.float32, ...]:
        """Numbers that stand for a missing value (``_FillValue``, ``missing_value``, fill), NaN excepted."""
        stated = [self.attrs.get("_FillValue"), self.attrs.get("missing_value"), self.fill]
        with np.errstate(over="ignore"):
            numbers = {np.float32(x) for value in stated if value is not None for x in _numbers(value)}
        return tuple(sorted(x for x in numbers if not np.isnan(x)))

    def values(self) -> F32:
        """All of it as float32, missing values as NaN."""
        values = np.array(self.array[...], np.float32)
        return nan_missing(values, self.missing)


@dataclass(frozen=True, eq=False)
class Layout:
    """Structural facts of one store.

    names: time-dependent 2-D fields, in store order. statics: [Y, X] float32. series: [T] float32.
    """

    names: tuple[str, ...]
    statics: dict[str, F32]
    series: dict[str, F32]
    times: TimeAxis
    grid: LatLonGrid
    vertical: Vertical | None
    masks: SpatialMasks

    def info(self, where: str) -> DatasetInfo:
        """Raises :class:`DataError` unless times are at least two, increasing and evenly spaced."""
        check_times(self.times, where)
        return DatasetInfo(self.grid, self.vertical, self.times.step, self.times.calendar, self.masks)


def nan_missing(values: F32, missing: Sequence[np.float32]) -> F32:
    """Replace the numbers ``missing`` by NaN, which every check reports, in place; returns ``values``."""
    for number in missing:
        values[values == number] = np.nan
    return values


def _numbers(value: Any) -> list[float]:
    """An attribute as numbers; xarray writes the ``_FillValue`` of zarr v3 as the base64 of a little-endian double."""
    if isinstance(value, str):
        try:
            return [float(x) for x in struct.unpack("<d", base64.b64decode(value, validate=True))]
        except (ValueError, struct.error):
            return []
    try:
        return [float(x) for x in np.atleast_1d(np.asarray(value))]
    except (TypeError, ValueError):
        return []


def describe_layout(where: str, variables: Mapping[str, Variable], *, timeless: bool = True) -> Layout:
    """Sort the variables of an fme-layout store (one array per variable) into fields, statics, series and coordinates.

    The first variable with three dimensions and time first names the horizontal dimensions, as in fme: the last two
    dimensions count, not what they are called. timeless: read statics, masks and vertical coordinate, too.

    Raises :class:`DataError` for a store without a time dimension or without horizontal coordinates, and for what
    :func:`read_masks` and :func:`read_vertical` refuse.
    """
    if "time" not in variables:
        raise fail(
            DataError,
            where,
            f"no time coordinate among {_some(variables)}",
            "a 1-D variable 'time' with CF units",
            "data must have the dimensions time, latitude, longitude, in this order",
        )
    spatial = next((v.dims[1:] for v in variables.values() if len(v.dims) == 3 and v.dims[0] == "time"), None)
    if spatial is None:
        raise fail(
            DataError,
            where,
            f"no variable with the dimensions (time, latitude, longitude) among {_some(variables)}",
            "at least one",
            "time must be the first dimension of every time-dependent field; select one index of each further dimension with isel",
        )
    names = tuple(n for n, v in variables.items() if v.dims == ("time", *spatial))
    for name, variable in variables.items():
        coordinate = name in spatial or (variable.dims == () and _INTERFACE.match(name))
        if coordinate or variable.dims in (("time", *spatial), spatial, ("time",)):
            _refuse_packed(where, name, variable)
    statics = {n: v.values() for n, v in variables.items() if timeless and v.dims == spatial and v.dtype.kind in "fiub"}
    series = {
        n: v.values() for n, v in variables.items() if v.dims == ("time",) and n != "time" and v.dtype.kind == "f"
    }
    grid = read_grid(where, variables, spatial)
    times = read_times(where, variables["time"])
    if not timeless:
        return Layout(names, statics, series, times, grid, None, SpatialMasks({}))
    masks = read_masks(where, variables, statics)
    return Layout(names, statics, series, times, grid, read_vertical(where, variables, statics, masks), masks)


def read_times(where: str, time: Variable) -> TimeAxis:
    """CF time coordinate -> :class:`TimeAxis`. Raises :class:`DataError` for units or values that are not CF times."""
    units = time.attrs.get("units")
    if not isinstance(units, str) or " since " not in units:
        raise fail(
            DataError,
            f"{where}:time",
            f"units are {units!r}",
            "CF units such as 'hours since 1979-01-01'",
            "write the time coordinate with CF units and calendar",
        )
    labels = np.asarray(time.array[...])
    if not len(labels):
        raise fail(DataError, f"{where}:time", "no time steps", "at least one", "remove the file, or write it again")
    return from_cf(labels, units, str(time.attrs.get("calendar", "standard")), f"{where}:time")


def check_times(times: TimeAxis, where: str) -> None:
    """Raise :class:`DataError` unless labels are at least two, strictly increasing and evenly spaced."""
    if len(times) < 2:
        raise fail(DataError, f"{where}:time", f"{len(times)} time(s)", "at least 2, to know the time step")
    steps = np.diff(times.values)
    wrong = np.flatnonzero(steps <= 0)
    if len(wrong):
        i = int(wrong[0])
        kind = "repeats" if steps[i] == 0 else "runs backwards"
        raise fail(
            DataError,
            f"{where}:time",
            f"time {kind}: index {i} is {_label(times, i)}, index {i + 1} is {_label(times, i + 1)}",
            "strictly increasing times",
            "sort the data in time and remove repeated steps",
        )
    wrong = np.flatnonzero(steps != steps[0])
    if len(wrong):
        i = int(wrong[0])
        raise fail(
            DataError,
            f"{where}:time",
            f"uneven time step: index {i} ({_label(times, i)}) to {i + 1} ({_label(times, i + 1)}) is "
            f"{steps[i] / 3600:g} h",
            f"{steps[0] / 3600:g} h throughout, as between the first two labels",
            "fill the gap, or list the parts as separate datasets under concat",
        )


def read_grid(where: str, variables: Mapping[str, Variable], dims: Sequence[str]) -> LatLonGrid:
    """Coordinates of the two horizontal dimensions.

    Raises :class:`DataError` if absent, not ascending, of one latitude only, or with latitudes beyond the poles.
    """
    values = []
    for dim in dims:
        if dim not in variables or variables[dim].dims != (dim,):
            raise fail(
                DataError,
                where,
                f"dimension {dim!r} has no coordinate variable",
                f"a 1-D variable {dim!r} in degrees",
                "write latitudes and longitudes as 1-D coordinates named like their dimensions",
            )
        values.append(np.asarray(variables[dim].array[...], np.float64))
    for dim, value, kind in zip(dims, values, ("latitude", "longitude"), strict=True):
        if len(value) > 1 and not np.all(np.diff(value) > 0):
            direction = "descending" if np.all(np.diff(value) < 0) else "not monotonic"
            raise fail(
                DataError,
                f"{where}:{dim}",
                f"{kind} is {direction} ({value[0]:g} .. {value[-1]:g})",
                f"ascending {kind}",
                f"reverse the data, for example with xarray: ds.sortby({dim!r})",
            )
    lat = values[0]
    if len(lat) < 2:
        raise fail(DataError, f"{where}:{dims[0]}", f"{len(lat)} latitude(s)", "at least 2", "use data on a whole grid")
    if np.abs(lat).max() > 90:
        raise fail(
            DataError,
            f"{where}:{dims[0]}",
            f"latitudes {lat[0]:g} .. {lat[-1]:g}",
            "between -90 and 90; the dimensions must be time, latitude, longitude, in this order",
            f"if {dims[0]} is the longitude, transpose: ds.transpose('time', {dims[1]!r}, {dims[0]!r})",
        )
    return LatLonGrid(lat, values[1])


def read_masks(where: str, names: Iterable[str], statics: Mapping[str, F32]) -> SpatialMasks:
    """The ``mask_*`` among the statics. names: of all variables.

    Raises :class:`DataError` for masks that are not static [Y, X], or hold anything that does not round to 0 or 1.
    """
    problems = []
    found = [name for name in names if name.startswith("mask_")]
    for name in found:
        at = f"{where}:{name}"
        if name not in statics:
            problems.append(
                Problem(at, _NOT_STATIC, "a mask that does not depend on time", "drop or rename the variable")
            )
            continue
        wrong = statics[name][~np.isin(np.round(statics[name]), (0, 1))]
        if len(wrong):
            values = f"{len(wrong)} value(s) that are neither 0 nor 1, such as {wrong[0]:g}"
            problems.append(Problem(at, values, "1 where there are data, 0 elsewhere", "correct or rename the mask"))
    if problems:
        raise DataError(problems)
    return SpatialMasks({name: torch.from_numpy(statics[name]) for name in found})


def read_vertical(
    where: str, variables: Mapping[str, Variable], statics: Mapping[str, F32], masks: SpatialMasks
) -> Vertical | None:
    """Scalars ``ak_k``, ``bk_k`` -> hybrid coordinate; ``idepth_k`` with ``mask_k`` (and ``deptho``, the sea floor) -> depth
    layers; None if there are neither. Raises :class:`DataError` for both, for holes and for layers without masks.
    """
    found: dict[str, dict[int, float]] = {"ak": {}, "bk": {}, "idepth": {}}
    for name, variable in variables.items():
        match = _INTERFACE.match(name)
        if match and variable.dims == ():
            found[match[1]][int(match[2])] = float(np.asarray(variable.array[...]))
    hybrid = found["ak"] or found["bk"]
    if hybrid and found["idepth"]:
        raise fail(
            DataError,
            where,
            "two vertical coordinates: ak_k, bk_k and idepth_k",
            "either of them",
            "split the data of atmosphere and ocean, or drop the scalars that do not belong to the variables",
        )
    if found["idepth"]:
        if "deptho" in variables and "deptho" not in statics:
            raise fail(
                DataError,
                f"{where}:deptho",
                _NOT_STATIC,
                "the depth of the sea floor in m, which does not depend on time",
                "drop its other dimensions, or the variable",
            )
        return _depth_layers(where, found["idepth"], masks, statics.get("deptho"))
    if not hybrid:
        return None
    wanted = list(range(len(found["ak"])))
    if sorted(found["ak"]) != wanted or sorted(found["bk"]) != wanted:
        raise fail(
            DataError,
            where,
            f"interfaces ak_{sorted(found['ak'])}, bk_{sorted(found['bk'])}",
            "ak_0..ak_N and bk_0..bk_N without holes",
            "write one scalar ak_k and one bk_k per interface, top first",
        )
    return HybridSigma(tuple(found["ak"][k] for k in wanted), tuple(found["bk"][k] for k in wanted))


def _depth_layers(where: str, depths: Mapping[int, float], masks: SpatialMasks, floor: F32 | None) -> DepthLayers:
    interfaces, n = sorted(depths), len(depths) - 1
    if n < 1 or interfaces != list(range(n + 1)):
        raise fail(
            DataError,
            where,
            f"interfaces idepth_{interfaces}",
            "idepth_0..idepth_N without holes, for at least one layer",
            "write one scalar idepth_k in m per interface, surface first",
        )
    levels = sorted(int(m[1]) for m in map(_LEVEL_MASK.match, masks.masks) if m)
    if levels != list(range(n)):
        raise fail(
            DataError,
            where,
            f"masks mask_{levels} for {n} layers between idepth_0 and idepth_{n}",
            f"mask_0..mask_{n - 1} without holes",
            "write one static mask_k per layer, 1 where it holds water",
        )
    values = [depths[k] for k in interfaces]
    if not all(a < b for a, b in pairwise(values)):
        raise fail(
            DataError,
            where,
            f"idepth_k are {', '.join(f'{v:g}' for v in values)}",
            "depths in m that increase downwards",
            "write the interfaces surface first, positive down",
        )
    wet = torch.stack([masks.masks[f"mask_{k}"] for k in range(n)])
    return DepthLayers(
        torch.tensor(values, dtype=torch.float64), wet, None if floor is None else torch.from_numpy(floor)
    )


def require_names(where: str, wanted: Sequence[str], available: Sequence[str]) -> None:
    """Raise one :class:`DataError` that lists every name the store lacks, each with the nearest it has."""
    missing = [n for n in wanted if n not in available]
    if missing:
        hints = [f"{n} ({hint})" if (hint := nearest(n, available)) else n for n in missing]
        raise fail(
            DataError,
            where,
            f"no variable {', '.join(hints)}",
            f"the store has {', '.join(sorted(available))}",
            "correct the name in the configuration, or add the variable to the data",
        )


def check_range(where: str, start: int, stop: int, length: int) -> None:
    """Raise :class:`DataError` unless 0 <= start < stop <= length."""
    if not 0 <= start < stop <= length:
        raise fail(DataError, where, f"steps {start}..{stop} requested", f"a range within 0..{length}")


def unreadable(where: str, names: Sequence[str], times: TimeAxis, start: int, stop: int, why: object) -> DataError:
    """The error for bytes that do not decode: names the store, the variables and the time range."""
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    error = fail(
        DataError,
        where,
        f"cannot be read: {some}, {_label(times, start)} .. {_label(times, stop - 1)} (steps {start}..{stop}): {why}",
        "intact data",
        "the file is damaged or incomplete; restore it from a copy, or delete it and prepare the data again",
    )
    assert isinstance(error, DataError)
    return error


def _refuse_packed(where: str, name: str, variable: Variable) -> None:
    # Values are read as stored; reading packed integers that way would silently train on nonsense.
    if "scale_factor" in variable.attrs or "add_offset" in variable.attrs:
        raise fail(
            DataError,
            f"{where}:{name}",
            "packed with scale_factor/add_offset",
            "values stored as float32",
            "unpack the data, for example with xarray: open_dataset(...).to_netcdf(...) with encoding dtype float32",
        )


def _label(times: TimeAxis, index: int) -> str:
    return format_time(int(times.values[index]), times.calendar)


def _some(variables: Mapping[str, Variable]) -> str:
    names = sorted(variables)
    return ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
