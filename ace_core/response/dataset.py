"""The one netCDF of an evaluation of a response: everything that is known of it, readable without this package.

Legend: G arms (0 = baseline), V variable, S season, Y latitude, X longitude.

Names. ``baseline__<field>``, ``<label>__mean__<field>`` and ``<label>__<field>`` (perturbed minus baseline) are means of the whole run after
spin-up; with ``season__`` before the field they are those of the seasons. ``<label>__reference__<field>`` is the response of the reference,
``<label>__significant__<field>`` where the response is told from zero. Scalars lie along ``scalar``: ``<label>__estimate``, ``__low``,
``__high``, ``__n_eff``, ``__status``, ``__truth``. Maps are float32, which keeps a response to seven digits because it was differenced in
float64; scalars and profiles are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ace_core.config import StrictModel, dump
from ace_core.grid import F64
from ace_core.prepare.regrid import latitude_bounds, longitude_bounds
from ace_core.provenance import canonical_json, write_atomic
from ace_core.response.climates import BASELINE, SEASONS, Climates, Findings, Scalar
from ace_core.variables import Variable, describe, standard_name

OUTPUT = "perturbation_response_diagnostics.nc"
SKIPPED, LABELS, AMPLITUDE = "skipped_diagnostic", "perturbation", "sst_amplitude"
# Column of the scalars -> what it is.
COLUMNS = {
    "estimate": "response of the emulator",
    "low": "lower end of the 90 % interval of the estimate",
    "high": "upper end of the 90 % interval of the estimate",
    "n_eff": "degrees of freedom behind the interval",
    "truth": "the same of the reference",
}
_MAP = ("lat", "lon")
_FLAGS: dict[str, Any] = {"flag_values": np.array([0, 1], np.int8), "units": "1"}
References = Mapping[str, Mapping[str, F64]]


@dataclass(frozen=True)
class Period:
    """What is averaged, of whatever initial condition: from the first second to the last, since 1970-01-01, in a CF calendar."""

    first: int
    last: int
    calendar: str


def to_dataset(
    climates: Climates,
    findings: Findings,
    config: StrictModel,
    reference: References | None = None,
    provenance: Mapping[str, str] | None = None,
    period: Period | None = None,
    described: Callable[[str], Variable] = describe,
) -> xr.Dataset:
    """config: what configured this evaluation. reference: label -> field -> response [Y, X]. provenance: global attributes, such as those of :func:`ace_core.lineage.attributes`.
    described: units and long names of ``climates.names``."""
    labels = climates.labels[1:]
    ds = _coordinates(climates, findings)
    fields: dict[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]] = {}
    for name, values, attributes in _means(climates, described):
        fields[name] = (_MAP if values.ndim == 2 else ("season", *_MAP), values, attributes)
    for label in labels:
        for name, response in ((reference or {}).get(label) or {}).items():
            attributes = _attributes(described(name), name, f"{label} response of the reference", difference=True)
            fields[f"{label}__reference__{name}"] = (_MAP, response.astype(np.float32), attributes)
    if findings.significant is not None:
        for g, label in enumerate(labels):
            for v, name in enumerate(climates.names):
                mask = f"{label}__significant__{name}"
                what = f"{described(name).long_name}, is the {label} response told from zero?"
                flags = _FLAGS | {"long_name": what, "flag_meanings": "not_significant significant"}
                flags["comment"] = f"false discovery rate 10 %, {findings.map_dof:g} degrees of freedom"
                fields[mask] = (_MAP, findings.significant[g, v].astype(np.int8), flags)
                fields[f"{label}__{name}"][2]["ancillary_variables"] = mask
    ds = ds.assign(fields)
    for name, (dims, profile, attrs) in findings.profiles.items():
        ds[name] = (dims, profile, dict(attrs))
        if dims == (name,):
            ds = ds.set_coords(name)
    ds = _scalars(ds, findings, labels)
    if period is not None:
        ds = _with_time(ds, period)
    ds.attrs = {
        "Conventions": "CF-1.11",
        "title": "Perturbation response of a climate emulator",
        "time_mean": f"{climates.n_steps} steps of {climates.timestep:g} s, after spin-up",
        "interval": "90 %, paired block bootstrap",
        "configuration": canonical_json(dump(config)),
        **(provenance or {}),
    }
    for v in ds.variables:
        # NaN says "missing" in fields only: CF 2.5.1 allows none in coordinates, and flags have no room for one.
        kind = ds[v].dtype.kind
        is_field = kind == "f" and v not in ds.coords and "bnds" not in ds[v].dims
        ds[v].encoding["_FillValue"] = ds[v].dtype.type(np.nan) if is_field else None
        if kind == "O":
            # As characters: CF knows no coordinate that is text, but labels [name, letters], which readers take for one all the same.
            ds[v].encoding["dtype"] = "S1"
    return ds


def write(ds: xr.Dataset, path: Path) -> None:
    """Atomically, without compression, which would take ten times as long as the bytes it saves. Raises OSError."""
    write_atomic(path, lambda temporary: _to_netcdf(ds, temporary))


def _to_netcdf(ds: xr.Dataset, path: Path) -> None:
    ds.to_netcdf(path, engine="netcdf4")


def _coordinates(climates: Climates, findings: Findings) -> xr.Dataset:
    """Axes with their bounds, masks, and what was left out."""
    grid, surface, labels = climates.grid, climates.surface, climates.labels[1:]
    lat, lon = (_bounds(edges) for edges in (latitude_bounds(grid.lat, "grid"), longitude_bounds(grid.lon, "grid")))
    axes: dict[str, Any] = {"lat": ("lat", grid.lat, _axis("latitude", "degrees_north", "Y", "lat_bnds"))}
    axes["lon"] = ("lon", grid.lon, _axis("longitude", "degrees_east", "X", "lon_bnds"))
    axes[LABELS] = (LABELS, np.array(labels, object), {"long_name": "label of the perturbation"})
    ds = xr.Dataset({"lat_bnds": (("lat", "bnds"), lat), "lon_bnds": (("lon", "bnds"), lon)}, coords=axes)
    for name, mask, what in (
        ("ocean_mask", surface.ocean, "open ocean"),
        ("land_mask", surface.land, "land"),
        ("sea_ice_mask", surface.ice, "neither open ocean nor land: sea ice"),
    ):
        meanings = f"no {what.split()[-1]}".replace(" ", "_") + f" {what.split()[-1]}"
        ds[name] = (
            _MAP,
            mask.astype(np.int8),
            _FLAGS | {"long_name": f"cells that count as {what}", "flag_meanings": meanings},
        )
    area = {
        "long_name": "weight of a cell in area means",
        "units": "1",
        "comment": "proportional to cos(latitude), sum 1",
    }
    ds["area_weight"] = (_MAP, grid.area_weights, area)
    amplitude = {"units": "K", "units_metadata": "temperature: difference"}
    amplitude["long_name"] = "mean over the ocean of what was added to the sea surface temperature"
    ds[AMPLITUDE] = (LABELS, climates.amplitude[1:], amplitude)
    known = _seasons(climates)
    if len(known) > 1:
        seasons = np.array([SEASONS[s] for s in known], object)
        ds = ds.assign_coords(season=("season", seasons, {"long_name": "months of the season"}))
        steps = climates.maps.weights.sum(axis=1)[known]
        ds["season_weight"] = (
            "season",
            steps,
            {"units": "1", "long_name": "steps and samples in the mean of a season"},
        )
    if findings.skipped:
        ds[SKIPPED] = (
            SKIPPED,
            np.array(list(findings.skipped), object),
            {"long_name": "diagnostics that were left out"},
        )
        reasons = np.array(list(findings.skipped.values()), object)
        ds["skipped_reason"] = (SKIPPED, reasons, {"long_name": "why a diagnostic was left out"})
        ds = ds.set_coords(SKIPPED)
    return ds


def _axis(standard: str, units: str, axis: str, bounds: str) -> dict[str, str]:
    return {"units": units, "standard_name": standard, "long_name": standard, "axis": axis, "bounds": bounds}


def _bounds(edges: F64) -> F64:
    """[n + 1] -> [n, 2]."""
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _means(
    climates: Climates, described: Callable[[str], Variable]
) -> Iterator[tuple[str, npt.NDArray[np.float32], dict[str, Any]]]:
    """Name, values and attributes of every mean and response; by season where the run has more than one."""
    known = _seasons(climates)
    method = f"time: mean (interval: {climates.timestep:g} s"
    yield from _differenced(climates, climates.maps.total(), "", f"{method})", described)
    if len(known) > 1:
        # [G, V, S, Y, X]: one variable per field, not one per season.
        seasonal = np.stack([climates.maps.total(s) for s in known], axis=2)
        yield from _differenced(climates, seasonal, "season__", f"{method} comment: of the season)", described)


def _seasons(climates: Climates) -> list[int]:
    """Those that the run has."""
    return [s for s in range(len(SEASONS)) if climates.maps.weights[s].sum() > 0]


def _with_time(ds: xr.Dataset, period: Period) -> xr.Dataset:
    """A scalar time with bounds, which is what ``cell_methods`` speak of."""
    units = {"units": "seconds since 1970-01-01", "calendar": period.calendar}
    middle = (period.first + period.last) // 2
    named = {"standard_name": "time", "long_name": "middle of the period", "bounds": "time_bnds", "axis": "T"}
    ds["time_bnds"] = ("bnds", np.array([period.first, period.last], np.int64), {})
    return ds.assign_coords(time=((), np.int64(middle), units | named))


def _differenced(
    climates: Climates, mean: F64, prefix: str, method: str, described: Callable[[str], Variable]
) -> Iterator[tuple[str, npt.NDArray[np.float32], dict[str, Any]]]:
    """mean: [G, V, ...]"""
    for v, name in enumerate(climates.names):
        of = described(name)
        for g, label in enumerate(climates.labels):
            attributes = _attributes(of, name, f"{label} time mean", difference=False) | {"cell_methods": method}
            key = f"{BASELINE}__{prefix}{name}" if g == 0 else f"{label}__mean__{prefix}{name}"
            yield key, mean[g, v].astype(np.float32), attributes
            if g:
                attributes = _attributes(of, name, f"{label} minus baseline", difference=True)
                response = (mean[g, v] - mean[0, v]).astype(np.float32)
                yield f"{label}__{prefix}{name}", response, attributes | {"cell_methods": method}


def _attributes(of: Variable, name: str, what: str, *, difference: bool) -> dict[str, Any]:
    out = {"units": of.units or "1", "long_name": f"{of.long_name}, {what}"}
    if of.units == "K":
        out["units_metadata"] = f"temperature: {'difference' if difference else 'on_scale'}"
    standard = standard_name(name)
    if standard is not None and not difference:
        out["standard_name"] = standard
    return out


def _scalars(ds: xr.Dataset, findings: Findings, labels: tuple[str, ...]) -> xr.Dataset:
    """The table along ``scalar``: a name has one unit whatever the label."""
    first: dict[str, Scalar] = {}
    for s in findings.scalars:
        first.setdefault(s.name, s)
    found = {(s.label, s.name): s for s in findings.scalars}
    ds = ds.assign_coords(scalar=("scalar", np.array(list(first), object), {"long_name": "name of the diagnostic"}))
    for key, text in COLUMNS.items():
        attribute = "reference" if key == "truth" else key
        for label in labels:
            rows = [found.get((label, n)) for n in first]
            values = [math.nan if s is None else float(getattr(s, attribute)) for s in rows]
            attrs = {"long_name": f"{label}: {text}", "comment": "units differ: see the variable units"}
            ds[f"{label}__{key}"] = ("scalar", np.asarray(values, np.float64), attrs)
    for label in labels:
        states = [s.status if s is not None else "absent" for s in (found.get((label, n)) for n in first)]
        status = {"long_name": f"{label}: ok, or why there is no interval"}
        ds[f"{label}__status"] = ("scalar", np.array(states, object), status)
    ds["units"] = (
        "scalar",
        np.array([s.units for s in first.values()], object),
        {"long_name": "units of the diagnostic"},
    )
    texts = np.array([s.long_name for s in first.values()], object)
    ds["description"] = ("scalar", texts, {"long_name": "what the diagnostic is"})
    return ds
