"""The one netCDF of an evaluation of a response: everything that is known of it, readable without this package.

Legend: G arms (0 = baseline), P samples (initial condition and member) of an arm, V variable, S season, Y latitude, X longitude.

Names. ``baseline__<field>``, ``<label>__mean__<field>`` and ``<label>__<field>`` (perturbed minus baseline) are means of the whole run after
spin-up; with ``season__`` before the field they are those of the seasons. ``<label>__reference__<field>`` is the response of the reference,
``<label>__significant__<field>`` where the response is told from zero. Scalars lie along ``scalar``: ``<label>__estimate``, ``__low``,
``__high``, ``__n_eff``, ``__status``, ``__truth``. Maps are float32, which keeps a response to seven digits because it was differenced in
float64; scalars and profiles are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ace_core.config import StrictModel, dump
from ace_core.diagnostics.clock import SEASONS
from ace_core.grid import F64
from ace_core.netcdf import write_netcdf
from ace_core.prepare.regrid import latitude_bounds, longitude_bounds
from ace_core.provenance import canonical_json, write_atomic
from ace_core.response.climates import BASELINE, Bool, Climates, Findings, Scalar
from ace_core.variables import Variable, describe, standard_name

OUTPUT = "perturbation_response_diagnostics.nc"
SKIPPED, LABELS, AMPLITUDE, ABSENT = "skipped_diagnostic", "perturbation", "sst_amplitude", "absent"
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
_Found = dict[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]]  # name -> dims, values, attributes
References = Mapping[str, Mapping[str, F64]]


@dataclass(frozen=True)
class Averaged:
    """What is averaged, of whatever initial condition: from the first second to the last, since 1970-01-01, in a CF calendar. windows [P]:
    the same of every sample; none: all are the whole."""

    first: int
    last: int
    calendar: str
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def n_windows(self) -> int:
        """How many that are not the same."""
        return len(set(self.windows)) or 1


def to_dataset(
    climates: Climates,
    findings: Findings,
    config: StrictModel,
    reference: References | None = None,
    provenance: Mapping[str, str] | None = None,
    over: Averaged | None = None,
    described: Callable[[str], Variable] = describe,
) -> xr.Dataset:
    """config: what configured this evaluation. reference: label -> field -> response [Y, X]. provenance: global attributes, such as
    those of :func:`ace_core.lineage.attributes`. described: units and long names of ``climates.names``."""
    labels = climates.labels[1:]
    # One Dataset at the end: adding hundreds of variables one by one copies what is there every time.
    found = _masks(climates) | _skipped(findings)
    of_windows = "" if over is None or over.n_windows == 1 else f"of {over.n_windows} windows"
    found |= _means(climates, of_windows, described)
    for label in labels:
        for name, response in ((reference or {}).get(label) or {}).items():
            attributes = _attributes(described(name), name, f"{label} response of the reference", difference=True)
            found[f"{label}__reference__{name}"] = (_MAP, response.astype(np.float32), attributes)
    if findings.significant is not None:
        found |= _significance(climates, findings.significant, findings.map_dof, described)
        for label in labels:
            for name in _map_names(climates):
                found[f"{label}__{name}"][2]["ancillary_variables"] = f"{label}__significant__{name}"
    for name, (dims, profile, attrs) in findings.profiles.items():
        found[legal(name)] = (dims, profile, dict(attrs))
    found |= _scalars(findings, labels)
    coords = _axes(climates, over) | {n: v for n, v in found.items() if v[0] == (n,)}
    return xr.Dataset(
        {n: v for n, v in found.items() if n not in coords},
        coords,
        {
            "Conventions": "CF-1.11",
            "title": "Perturbation response of a climate emulator",
            "time_mean": f"{climates.n_steps} steps of {climates.timestep:g} s, after spin-up"
            + (of_windows and f", {of_windows}"),
            "configuration": canonical_json(dump(config)),
            **(provenance or {}),
        },
    )


def legal(name: str) -> str:
    """The name of a variable in the file: netCDF allows no ``/``."""
    return name.replace("/", "__")


def write(ds: xr.Dataset, path: Path) -> None:
    """Atomically. Raises OSError."""
    write_atomic(path, lambda temporary: to_netcdf(ds, temporary))


def to_netcdf(ds: xr.Dataset, path: Path) -> None:
    """As :func:`ace_core.netcdf.write_netcdf`, with labels that CF knows, and nothing missing in coordinates (CF 2.5.1)."""
    ds = ds.copy()
    for name, v in ds.variables.items():
        if v.dtype.kind == "O":
            v.encoding = {"dtype": "S1"}
        elif name in ds.coords or "bnds" in v.dims or v.dtype.kind != "f":
            v.encoding = {"_FillValue": None}
    write_netcdf(ds, path)


def _axes(climates: Climates, over: Averaged | None) -> _Found:
    """Coordinates of the maps: latitude, longitude, season, label, and a scalar time, which is what ``cell_methods`` speak of. Windows that
    are not the same have no time and bounds in common, but each sample has its own."""
    grid = climates.grid
    out: _Found = {
        "lat": (("lat",), grid.lat, _axis("latitude", "degrees_north", "Y", "lat_bnds")),
        "lon": (("lon",), grid.lon, _axis("longitude", "degrees_east", "X", "lon_bnds")),
        "lat_bnds": (("lat", "bnds"), _bounds(latitude_bounds(grid.lat, "grid")), {}),
        "lon_bnds": (("lon", "bnds"), _bounds(longitude_bounds(grid.lon, "grid")), {}),
        LABELS: ((LABELS,), _text(climates.labels[1:]), {"long_name": "label of the perturbation"}),
    }
    if len(known := _seasons(climates)) > 1:
        out["season"] = (("season",), _text([SEASONS[s] for s in known]), {"long_name": "months of the season"})
    clock = {"standard_name": "time", "units": "seconds since 1970-01-01"}
    if over is not None and over.n_windows > 1:
        for name, what, times in zip(("first_time", "last_time"), ("first", "last"), zip(*over.windows)):
            named = clock | {"calendar": over.calendar, "long_name": f"{what} step in the mean of a sample"}
            out[name] = (("sample",), np.array(times, np.int64), named)
    elif over is not None:
        named = clock | {"calendar": over.calendar, "long_name": "middle of the period"}
        named |= {"bounds": "time_bnds", "axis": "T"}
        out["time"] = ((), np.array((over.first + over.last) // 2, np.int64), named)
        out["time_bnds"] = (("bnds",), np.array([over.first, over.last], np.int64), {})
    return out


def _masks(climates: Climates) -> _Found:
    """What cells count as, their weights, the strength of every perturbation, and how much of the run the seasons are."""
    surface, out = climates.surface, _Found()
    for name, mask, noun in (
        ("ocean_mask", surface.ocean, "ocean"),
        ("land_mask", surface.land, "land"),
        ("sea_ice_mask", surface.ice, "ice"),
    ):
        what = {"ocean": "open ocean", "land": "land", "ice": "sea ice: neither open ocean nor land"}[noun]
        flags = _FLAGS | {"long_name": f"cells that count as {what}", "flag_meanings": f"no_{noun} {noun}"}
        out[name] = (_MAP, mask.astype(np.int8), flags)
    area = {
        "long_name": "weight of a cell in area means",
        "units": "1",
        "comment": "proportional to cos(latitude), sum 1",
    }
    out["area_weight"] = (_MAP, climates.grid.area_weights, area)
    amplitude = {"units": "K", "units_metadata": "temperature: difference"}
    amplitude["long_name"] = "mean over the ocean of what was added to the sea surface temperature"
    out[AMPLITUDE] = ((LABELS,), climates.amplitude[1:], amplitude)
    if len(known := _seasons(climates)) > 1:
        steps = climates.maps.weights.sum(axis=1)[known]
        out["season_weight"] = (
            ("season",),
            steps,
            {"units": "1", "long_name": "steps and samples in the mean of a season"},
        )
    return out


def _skipped(findings: Findings) -> _Found:
    if not findings.skipped:
        return {}
    names, reasons = _text(list(findings.skipped)), _text(list(findings.skipped.values()))
    return {
        SKIPPED: ((SKIPPED,), names, {"long_name": "diagnostics that were left out"}),
        "skipped_reason": ((SKIPPED,), reasons, {"long_name": "why a diagnostic was left out"}),
    }


def _text(values: Sequence[str]) -> npt.NDArray[np.object_]:
    return np.array(values, object)


def _axis(standard: str, units: str, axis: str, bounds: str) -> dict[str, str]:
    return {"units": units, "standard_name": standard, "long_name": standard, "axis": axis, "bounds": bounds}


def _bounds(edges: F64) -> F64:
    """[n + 1] -> [n, 2]."""
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _map_names(climates: Climates) -> tuple[str, ...]:
    """What there are maps of: the first of all names."""
    return climates.names[: climates.maps.mean.shape[3]]


def _seasons(climates: Climates) -> list[int]:
    """Those that the run has."""
    return [s for s in range(len(SEASONS)) if climates.maps.weights[s].sum() > 0]


def _means(climates: Climates, of_windows: str, described: Callable[[str], Variable]) -> _Found:
    """All means and responses; by season where the run has more than one. of_windows: of how many, if they are not the same."""
    method, maps = f"time: mean (interval: {climates.timestep:g} s", climates.maps
    whole = f"{method} comment: {of_windows})" if of_windows else f"{method})"
    out = _differenced(climates, maps.total(), "", whole, described)
    if len(known := _seasons(climates)) > 1:
        # One variable per field, not one per season.
        seasonal = np.stack([maps.total(s) for s in known], axis=2)
        of_season = ", ".join(filter(None, ["of the season", of_windows]))
        out |= _differenced(climates, seasonal, "season__", f"{method} comment: {of_season})", described)
    return out


def _differenced(
    climates: Climates, mean: F64, prefix: str, method: str, described: Callable[[str], Variable]
) -> _Found:
    """mean: [G, V, Y, X] or [G, V, S, Y, X]"""
    out, dims = _Found(), _MAP if mean.ndim == 4 else ("season", *_MAP)
    for v, name in enumerate(_map_names(climates)):
        of = described(name)
        for g, label in enumerate(climates.labels):
            attributes = _attributes(of, name, f"{label} time mean", difference=False) | {"cell_methods": method}
            key = f"{BASELINE}__{prefix}{name}" if g == 0 else f"{label}__mean__{prefix}{name}"
            out[key] = (dims, mean[g, v].astype(np.float32), attributes)
            if g:
                attributes = _attributes(of, name, f"{label} minus baseline", difference=True)
                response = (mean[g, v] - mean[0, v]).astype(np.float32)
                out[f"{label}__{prefix}{name}"] = (dims, response, attributes | {"cell_methods": method})
    return out


def _significance(climates: Climates, significant: Bool, dof: float, described: Callable[[str], Variable]) -> _Found:
    """significant: [G - 1, V, Y, X]"""
    out = _Found()
    for g, label in enumerate(climates.labels[1:]):
        for v, name in enumerate(_map_names(climates)):
            what = f"{described(name).long_name}, is the {label} response told from zero?"
            flags = _FLAGS | {"long_name": what, "flag_meanings": "not_significant significant"}
            flags["comment"] = f"false discovery rate 10 %, {dof:g} degrees of freedom"
            out[f"{label}__significant__{name}"] = (_MAP, significant[g, v].astype(np.int8), flags)
    return out


def _attributes(of: Variable, name: str, what: str, *, difference: bool) -> dict[str, Any]:
    out = {"units": of.units or "1", "long_name": f"{of.long_name}, {what}"}
    if of.units == "K":
        out["units_metadata"] = f"temperature: {'difference' if difference else 'on_scale'}"
    standard = standard_name(name)
    if standard is not None and not difference:
        out["standard_name"] = standard
    return out


def _scalars(findings: Findings, labels: tuple[str, ...]) -> _Found:
    """The table along ``scalar``: a name has one unit whatever the label."""
    first: dict[str, Scalar] = {}
    for s in findings.scalars:
        first.setdefault(s.name, s)
    known = {(s.label, s.name): s for s in findings.scalars}
    along = ("scalar",)
    out: _Found = {"scalar": (along, _text(list(first)), {"long_name": "name of the diagnostic"})}
    for label in labels:
        rows = [known.get((label, n)) for n in first]
        for key, text in COLUMNS.items():
            attribute = "reference" if key == "truth" else key
            values = [math.nan if s is None else float(getattr(s, attribute)) for s in rows]
            attrs = {"long_name": f"{label}: {text}", "comment": "of several units: see the variable units"}
            out[f"{label}__{key}"] = (along, np.array(values, np.float64), attrs)
        states = _text([ABSENT if s is None else s.status for s in rows])
        out[f"{label}__status"] = (along, states, {"long_name": f"{label}: ok, or why there is no interval"})
    units = _text([s.units for s in first.values()])
    out["units"] = (along, units, {"long_name": "units of the diagnostic"})
    out["description"] = (along, _text([s.long_name for s in first.values()]), {"long_name": "what the diagnostic is"})
    return out
