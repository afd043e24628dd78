"""What a study found: checkpoints side by side, in one netCDF and on one page, from the netCDF files of its experiments alone.

Legend: C checkpoint, P period, G perturbation, Y latitude, X longitude.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from ace_core.config import dump, leaves
from ace_core.evaluation.report import REPORT, files, number, picture, write_page
from ace_core.lineage import attributes
from ace_core.plotting import draw_map, figure
from ace_core.provenance import sha256_file, write_atomic
from ace_core.response.dataset import ABSENT, COLUMNS, LABELS, OUTPUT, SKIPPED, to_netcdf
from ace_core.response.figures import MOST, shown_maps
from ace_core.response.report import Row, rows, table, warnings
from ace_core.response.study_config import Experiment, StudyConfig
from ace_core.response.trainings import one_more
from ace_core.training.checkpoint import load_emulator

STUDY = "study.nc"
_DIMS = ("checkpoint", "period", LABELS)
_WITHIN = ("mean", "reference", "significant", "season", *COLUMNS, "status")  # no fields, after a label


@dataclass(frozen=True)
class Done:
    """An experiment that is complete. folder: of its netCDF; seconds: leg -> what it took."""

    experiment: Experiment
    folder: Path
    seconds: Mapping[str, float]


def compare(config: StudyConfig, done: Sequence[Done], directory: Path) -> dict[str, float]:
    """``study.nc`` and ``report.html``; returns how much the study took."""
    with ExitStack() as stack:
        opened = {
            (d.experiment.checkpoint, d.experiment.period): stack.enter_context(
                xr.open_dataset(d.folder / OUTPUT, decode_times=False)
            )
            for d in done
        }
        seconds = {k: v for d in done for k, v in d.seconds.items()}
        _write(config, opened, seconds, directory / STUDY)
        _page(config, opened, seconds, directory)
    return {
        "experiments": float(len(done)),
        "legs": float(sum(len(d.experiment.legs()) for d in done)),
        "seconds_of_legs": sum(seconds.values()),
    }


Opened = Mapping[tuple[str, str], xr.Dataset]


def _labels(opened: Opened) -> list[str]:
    return [str(x) for x in next(iter(opened.values()))[LABELS].values]


# --- the file


def _write(config: StudyConfig, opened: Opened, seconds: Mapping[str, float], path: Path) -> None:
    checkpoints, periods, labels = list(config.checkpoints), list(config.periods), _labels(opened)
    first = next(iter(opened.values()))
    shape = (len(checkpoints), len(periods), len(labels))
    names = list(dict.fromkeys(str(n) for ds in opened.values() for n in ds["scalar"].values))
    columns: dict[str, Any] = {k: np.full((*shape, len(names)), math.nan) for k in COLUMNS}
    status = np.full((*shape, len(names)), ABSENT, object)
    units, texts = dict.fromkeys(names, ""), dict.fromkeys(names, "")
    took = np.full(shape, math.nan)
    for (c, p), ds in opened.items():
        for g, label in enumerate(labels):
            at = (checkpoints.index(c), periods.index(p), g)
            took[at] = seconds.get(f"{c}/{p}/{label}", math.nan)
            for row in rows(ds, label):
                n = names.index(row.name)
                units[row.name], texts[row.name] = row.units, row.description
                status[(*at, n)] = row.status
                for key, values in columns.items():
                    values[(*at, n)] = getattr(row, key)
    coords = {
        "checkpoint": ("checkpoint", np.array(checkpoints, object), {"long_name": "name of the checkpoint"}),
        "period": ("period", np.array(periods, object), {"long_name": "name of the period"}),
        LABELS: (LABELS, np.array(labels, object), {"long_name": "label of the perturbation"}),
        "scalar": ("scalar", np.array(names, object), {"long_name": "name of the diagnostic"}),
    }
    if config.ensembles:
        what = {"long_name": "name of the ensemble of trainings"}
        coords["ensemble"] = ("ensemble", np.array(list(config.ensembles), object), what)
    along = (*_DIMS, "scalar")
    found: dict[str, Any] = {k: (along, v, {"long_name": COLUMNS[k]}) for k, v in columns.items()}
    found["status"] = (along, status, {"long_name": "ok, or why there is no interval"})
    found["units"] = ("scalar", np.array(list(units.values()), object), {"long_name": "units of the diagnostic"})
    found["description"] = ("scalar", np.array(list(texts.values()), object), {"long_name": "what the diagnostic is"})
    found |= _ensembles(config, columns)
    found["seconds"] = (_DIMS, took, {"units": "s", "long_name": "time that the leg took"})
    alike = _one_grid(opened)
    if alike:
        found |= {
            v: first[v] for v in ("lat_bnds", "lon_bnds", "ocean_mask", "land_mask", "sea_ice_mask", "area_weight")
        }
        coords |= {v: (v, first[v].to_numpy(), first[v].attrs) for v in ("lat", "lon")}
    about = {"Conventions": "CF-1.11", "title": "Perturbation responses of climate emulators, compared"}
    about |= attributes("study", dump(config), path.parent)
    if not alike:
        about["maps"] = "left out: the checkpoints are of different grids"
    ds = xr.Dataset(found, coords, about)

    def write(temporary: Path) -> None:
        to_netcdf(ds, temporary)
        if alike:
            _add_maps(opened, checkpoints, periods, labels, temporary)

    write_atomic(path, write)


def _ensembles(config: StudyConfig, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What trainings that differ by their seed answer together, [E, P, G, scalar]: mean and the 90 % interval for one more."""
    if not config.ensembles:
        return {}
    checkpoints, dims = list(config.checkpoints), ("ensemble", *_DIMS[1:], "scalar")
    parts = [
        one_more(columns["estimate"][[checkpoints.index(m) for m in members]]) for members in config.ensembles.values()
    ]
    texts = (
        "mean over trainings",
        *(f"{end} end of the 90 % interval for one training more" for end in ("lower", "upper")),
    )
    out: dict[str, Any] = {
        f"ensemble_{key}": (dims, np.stack([part[i] for part in parts]), {"long_name": texts[i]})
        for i, key in enumerate(("mean", "low", "high"))
    }
    names = np.array([" ".join(members) for members in config.ensembles.values()], object)
    return out | {"ensemble_members": ("ensemble", names, {"long_name": "checkpoints of the ensemble"})}


def _one_grid(opened: Opened) -> bool:
    first, *others = opened.values()
    return all(np.array_equal(first[k], ds[k]) for ds in others for k in ("lat", "lon"))


def _add_maps(
    opened: Opened, checkpoints: Sequence[str], periods: Sequence[str], labels: Sequence[str], path: Path
) -> None:
    """``response__<field>`` [C, P, G, Y, X] and ``baseline__<field>`` [C, P, Y, X], one map in memory at a time."""
    sources = _fields(opened, labels)
    with netCDF4.Dataset(path, "a") as file:
        for name, of in sources.items():
            for kind, dims in (("baseline", _DIMS[:2]), ("response", _DIMS)):
                out: Any = file.createVariable(
                    f"{kind}__{name}", "f4", (*dims, "lat", "lon"), fill_value=np.float32("nan")
                )
                v = of[f"{'baseline' if kind == 'baseline' else labels[0]}__{name}"]
                kept = ("units", "long_name", "standard_name", "cell_methods", "units_metadata")
                out.setncatts({k: v.attrs[k] for k in kept if k in v.attrs})
                out.set_auto_maskandscale(False)
                for (c, p), ds in opened.items():
                    at = (checkpoints.index(c), periods.index(p))
                    if kind == "baseline":
                        out[at] = _values(ds, f"baseline__{name}", out.shape[-2:])
                        continue
                    for g, label in enumerate(labels):
                        out[(*at, g)] = _values(ds, f"{label}__{name}", out.shape[-2:])


def _fields(opened: Opened, labels: Sequence[str]) -> dict[str, xr.Dataset]:
    """Field -> the first file that has it."""
    out: dict[str, xr.Dataset] = {}
    for ds in opened.values():
        prefix = f"{labels[0]}__"
        for v in map(str, ds.data_vars):
            name = v.removeprefix(prefix)
            if v.startswith(prefix) and ds[v].dims == ("lat", "lon") and name.partition("__")[0] not in _WITHIN:
                out.setdefault(name, ds)
    return out


def _values(ds: xr.Dataset, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return ds[name].to_numpy() if name in ds else np.full(shape, np.nan, np.float32)


# --- the page


def _page(config: StudyConfig, opened: Opened, seconds: Mapping[str, float], directory: Path) -> None:
    parts = ["<h2>Checkpoints</h2>", _checkpoints(config, opened, seconds), "<h2>In what they differ</h2>"]
    parts.append(_differences(config))
    parts += [
        f'<p class="warn">{html.escape(c)}, {html.escape(p)}: {w}</p>'
        for (c, p), ds in opened.items()
        for w in warnings(ds)
    ]
    drawn: list[Path] = []
    for period in config.periods:
        for label in _labels(opened):
            parts.append(f"<h2>{html.escape(period)}: {html.escape(label)}</h2>")
            parts.append(_side_by_side({c: rows(opened[c, period], label) for c in config.checkpoints}))
            for name, members in config.ensembles.items():
                parts.append(f"<h3>{html.escape(name)}: {len(members)} trainings</h3>")
                parts.append(_together({c: rows(opened[c, period], label) for c in members}))
        for label in _labels(opened)[:MOST]:
            drawn += _maps(config, opened, period, label, directory / f"response_maps_{period}_{label}.png")
    parts += ["<h2>Figures</h2>", *(picture(path, path.stem.removeprefix("response_maps_")) for path in drawn)]
    left_out = [
        (c, p, str(n), str(r))
        for (c, p), ds in opened.items()
        if SKIPPED in ds
        for n, r in zip(ds[SKIPPED].values, ds["skipped_reason"].values)
    ]
    if left_out:
        parts += ["<h2>Left out</h2>", table(("checkpoint", "period", "diagnostic", "why"), left_out)]
    parts.append("<h2>Files</h2>" + files(directory))
    write_page(directory / REPORT, f"Study {directory.name}", parts)


def _checkpoints(config: StudyConfig, opened: Opened, seconds: Mapping[str, float]) -> str:
    body = []
    for name, path in config.checkpoints.items():
        seen = {str(ds.attrs.get("in_sample", "unknown")) for (c, _), ds in opened.items() if c == name}
        cost = sum(v for k, v in seconds.items() if k.startswith(f"{name}/"))
        parameters = f"{load_emulator(Path(path)).n_parameters}"
        body.append((name, path, sha256_file(Path(path))[:12], parameters, ", ".join(sorted(seen)), f"{cost:.1f} s"))
    return table(("name", "file", "sha256", "parameters", "in-sample", "cost of its legs"), body)


def _differences(config: StudyConfig) -> str:
    """Keys of the emulators' configurations that are not the same in all; statistics are told by whether they are."""
    if len(config.checkpoints) == 1:
        return '<p class="note">There is one checkpoint only.</p>'
    found = [leaves(dump(load_emulator(Path(p)).config)) for p in config.checkpoints.values()]
    body = []
    for key in dict.fromkeys(k for one in found for k in one):
        values = [str(one.get(key, "absent")) for one in found]
        if len(set(values)) > 1:
            body.append([key, *(v if len(v) <= 60 else f"{v[:57]}..." for v in values)])
    if not body:
        return '<p class="note">Their emulators have one configuration: they differ in what they were trained on, or how.</p>'
    return table(("key", *config.checkpoints), body)


def _side_by_side(found: Mapping[str, Sequence[Row]]) -> str:
    names: dict[str, Row] = {}
    for one in found.values():
        for row in one:
            names.setdefault(row.name, row)
    by_name = [{row.name: row for row in one} for one in found.values()]
    lines = []
    for name, row in names.items():
        cells = "".join(_cell(one.get(name)) for one in by_name)
        truth = next((number(one[name].truth) for one in by_name if name in one and math.isfinite(one[name].truth)), "")
        head = f'<td title="{html.escape(row.description)}">{html.escape(name)} <span class="note">{html.escape(row.units)}</span></td>'
        lines.append(f"<tr>{head}{cells}<td>{truth}</td></tr>")
    top = "".join(f"<th>{html.escape(h)}</th>" for h in ("diagnostic", *found, "reference"))
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _together(found: Mapping[str, Sequence[Row]]) -> str:
    """Mean and interval of an ensemble of trainings beside the reference, of the scalars that all have."""
    by_name = [{row.name: row for row in one} for one in found.values()]
    lines = []
    for name, row in by_name[0].items():
        estimates = np.array([one[name].estimate if name in one else math.nan for one in by_name])
        mean, low, high = (float(x) for x in one_more(estimates))
        if not math.isfinite(mean):
            continue
        outside = math.isfinite(row.truth) and not low <= row.truth <= high
        truth = number(row.truth) if math.isfinite(row.truth) else ""
        head = f'<td title="{html.escape(row.description)}">{html.escape(name)} <span class="note">{html.escape(row.units)}</span></td>'
        cell = f"<td{' class=off' if outside else ''}>{number(mean)} ({number(low)} .. {number(high)})</td>"
        lines.append(f"<tr>{head}{cell}<td>{truth}</td></tr>")
    top = "<th>diagnostic</th><th>mean (90 % interval for one training more)</th><th>reference</th>"
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(row: Row | None) -> str:
    if row is None:
        return "<td></td>"
    interval = f" ({number(row.low)} .. {number(row.high)})" if math.isfinite(row.low) else ""
    return f'<td{" class=off" if row.missed else ""} title="{html.escape(row.status)}">{number(row.estimate)}{interval}</td>'


def _maps(config: StudyConfig, opened: Opened, period: str, label: str, path: Path) -> list[Path]:
    """Rows of fields, columns of checkpoints, one scale a row."""
    first = opened[next(iter(config.checkpoints)), period]
    names = shown_maps(first, label)[:3]
    if not names:
        return []
    columns = list(config.checkpoints)
    with figure(path, len(names), len(columns), (4.9 * len(columns), 2.7 * len(names))) as axes:
        for row, name in zip(axes, names):
            fields = [opened[c, period].get(f"{label}__{name}") for c in columns]
            top = max((float(np.nanmax(np.abs(f), initial=0.0)) for f in fields if f is not None), default=0.0) or 1.0
            for ax, field, c in zip(row, fields, columns):
                if field is None:
                    ax.set_axis_off()
                    continue
                ds, mask = opened[c, period], f"{label}__significant__{name}"
                draw_map(
                    ax,
                    field.to_numpy(),
                    ds["lat"].to_numpy(),
                    ds["lon"].to_numpy(),
                    f"{name}: {c}",
                    str(field.attrs.get("units", "")),
                    (-top, top),
                    diverging=True,
                    coast=1.0 - ds["ocean_mask"].to_numpy().astype(float),
                    hatched=ds[mask].to_numpy() == 0 if mask in ds else None,
                )
    return [path]
