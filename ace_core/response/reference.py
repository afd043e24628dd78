"""What an emulator's response is compared with: response fields in a file, or the climates of a pair of data sets.

Legend: G arms (0 = baseline), S steps of a block, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ace_core.calendar import format_time
from ace_core.config import StrictModel
from ace_core.data.config import RolloutDataset
from ace_core.data.configured import open_rollout_store
from ace_core.data.perturbation import SEA, Sea
from ace_core.data.store import Store, available
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import F64, LatLonGrid, require_same_grid
from ace_core.netcdf import named_netcdf
from ace_core.response.climates import BASELINE, Climates, Surface
from ace_core.response.gather import Gather, Piece, scene_of_arm
from ace_core.response.ingredients import WATER_PATH, ingredients
from ace_core.response.regions import surface_of
from ace_core.vertical import HybridSigma

Reference = tuple[dict[str, F64], dict[str, F64]]  # response fields and control means by name
BLOCK = 64  # steps that are read at once


class ReferenceData(StrictModel):
    """Stores of a model that has been run in both climates, of which the part that lies in the experiment's own windows counts."""

    baseline: RolloutDataset
    perturbed: RolloutDataset


@dataclass(frozen=True)
class Period:
    """Labels first and last, seconds, both included."""

    first: int
    last: int

    def describe(self, calendar: str) -> str:
        return f"{format_time(self.first, calendar)} .. {format_time(self.last, calendar)}"


@dataclass(frozen=True)
class Part:
    """Labels that all stores have of a period, ``n`` of them; firsts: where in each store they begin."""

    period: Period
    firsts: Mapping[str, int]
    n: int


def climates_of_data(
    stores: Mapping[str, Store],
    config: ResponseAggregatorConfig,
    names: Sequence[str],
    *,
    forcing_names: Sequence[str] = (),
    periods: Sequence[Period] = (),
    surface: Surface | None = None,
    sea: Sea = SEA,
    device: torch.device | None = None,
) -> Climates:
    """Climates of data as :class:`Gather` makes them of rollouts.

    stores: the baseline's first, then every perturbation's by label; of the labels that all of them have, those in ``periods`` count, each
    period a sample of its own; of none: all. names: what is looked at, as far as all stores have it; forcing_names: what else ingredients are computed from. surface: what cells
    count as; None: as the baseline's first label says.
    Raises :class:`DataError` for stores of different grids, time steps or calendars, without a label in common, or without a
    variable that scalars need.
    """
    (where, baseline), *others = stores.items()
    info = baseline.info
    for label, store in others:
        require_same_grid(info.grid, store.info.grid, store.path, f"the grid of {baseline.path}")
        if (store.info.timestep, store.info.calendar) != (info.timestep, info.calendar):
            found = f"{store.info.timestep} s, {store.info.calendar}"
            raise fail(
                DataError, f"{label}: {store.path}", found, f"{info.timestep} s, {info.calendar}, as {where} has"
            )
    common = set.intersection(*(set(available(s)) for s in stores.values()))
    lacking = [n for n in (*config.temperature_names, sea.sst_name, sea.ocean_fraction_name) if n not in common]
    if lacking:
        paths = ", ".join(s.path for s in stores.values())
        raise fail(DataError, paths, f"no {', '.join(dict.fromkeys(lacking))} in all of them", "what is compared")
    parts = labels_in_common(stores, periods)
    kept = [n for n in names if n in common]
    more = [n for n in dict.fromkeys([*forcing_names, sea.sst_name]) if n in common and n not in kept]
    if surface is None:
        at = parts[0].firsts[where] - 1  # as if it were the initial condition's
        surface = surface_of(baseline, np.array([at]), sea.ocean_fraction_name, config.ocean_fraction_cutoff)
    device = device or torch.device("cpu")
    starts = np.array([part.period.first for part in parts], np.int64) - info.timestep
    scene = scene_of_arm(info, kept, max(part.n for part in parts), starts, device)
    layers = info.vertical
    computed = ingredients((*kept, *more), layers if isinstance(layers, HybridSigma) else None)
    gather = Gather([label for label, _ in others], scene, computed, config, surface)
    total = gather.zero()
    for sample, part in enumerate(parts):
        for piece in _pieces(stores, part, sample, kept, more, sea.sst_name, device):
            gather.add_to(total, piece)
    return gather.climates(total)


def _pieces(
    stores: Mapping[str, Store],
    part: Part,
    sample: int,
    names: Sequence[str],
    more: Sequence[str],
    sea: str,
    device: torch.device,
) -> Iterator[Piece]:
    wanted = (*names, *more)
    for done in range(0, part.n, BLOCK):
        size = min(BLOCK, part.n - done)
        read = [s.read(wanted, part.firsts[k] + done, part.firsts[k] + done + size) for k, s in stores.items()]
        fields = Fields(wanted, torch.from_numpy(np.stack(read)).to(device))  # [G, S, C, Y, X]
        yield Piece(fields.subset(names), fields.subset(more), fields[sea], done + 1, sample)


def labels_in_common(stores: Mapping[str, Store], periods: Sequence[Period] = ()) -> list[Part]:
    """Of every period what all stores have, without those of which they have nothing; no periods: of all their time. Raises
    :class:`DataError` if nothing is left."""
    spans = {k: Period(int(s.times.values[0]), int(s.times.values[-1])) for k, s in stores.items()}
    whole = Period(max(p.first for p in spans.values()), min(p.last for p in spans.values()))
    found = [_part(stores, max(p.first, whole.first), min(p.last, whole.last)) for p in periods or [whole]]
    parts = [part for part in found if part is not None]
    if not parts:
        (_, one), *_ = stores.items()
        calendar = one.info.calendar
        told = [f"{stores[k].path} has {p.describe(calendar)}" for k, p in spans.items()]
        asked = [f"the experiment {', '.join(p.describe(calendar) for p in periods)}"] if periods else []
        raise fail(
            DataError,
            "reference",
            "no common period with the reference",
            "; ".join([*asked, *told]),
            "choose initial conditions and a length that lie in the reference's time, or another reference",
        )
    return parts


def _part(stores: Mapping[str, Store], first: int, last: int) -> Part | None:
    inside = [s.times.values[(s.times.values >= first) & (s.times.values <= last)] for s in stores.values()]
    labels = inside[0]
    if not len(labels) or not all(np.array_equal(x, labels) for x in inside[1:]):
        return None
    firsts = {k: int(np.searchsorted(s.times.values, labels[0])) for k, s in stores.items()}
    return Part(Period(int(labels[0]), int(labels[-1])), firsts, len(labels))


def open_references(references: Mapping[str, ReferenceData], names: Sequence[str]) -> dict[str, Store]:
    """The baseline that all of them have, and what is perturbed by label. Raises :class:`DataError` as :func:`open_rollout_store`."""
    first = next(iter(references.values()))
    perturbed = {label: open_rollout_store(r.perturbed, names) for label, r in references.items()}
    return {BASELINE: open_rollout_store(first.baseline, names), **perturbed}


def read_reference(path: Path, grid: LatLonGrid, window: tuple[int, int, int], wanted: Sequence[str]) -> Reference:
    """Response fields [Y, X] by name, and their control means (``<name>_control``).

    window: onset, first and last-plus-one step of the mean that it is compared with. Raises :class:`DataError` if the file is
    not readable, on another grid, lacks a wanted name, or does not say in its attributes that it is of this window.
    """
    if not path.is_file():
        raise fail(DataError, str(path), "no such reference", "a netCDF of response fields", "run `ace data prepare`")
    with named_netcdf(path, "a netCDF of response fields") as file:
        ds = file.load()
    maps = {str(n): v.to_numpy().astype(np.float64) for n, v in ds.data_vars.items() if v.dims == ("lat", "lon")}
    lacking = [n for n in ("lat", "lon") if n not in ds.coords] + [n for n in dict.fromkeys(wanted) if n not in maps]
    if WATER_PATH in maps and f"{WATER_PATH}_control" not in maps:
        lacking.append(f"{WATER_PATH}_control")
    if lacking:
        raise fail(
            DataError, str(path), f"lacks {', '.join(lacking)}", "response fields on (lat, lon)", "prepare it anew"
        )
    found = LatLonGrid(ds["lat"].to_numpy().astype(float), ds["lon"].to_numpy().astype(float))
    require_same_grid(grid, found, str(path), "the grid of the checkpoint")
    stated = tuple(int(ds.attrs[k]) if k in ds.attrs else None for k in ("onset", "start", "stop"))
    if stated != window:
        raise fail(
            DataError,
            str(path),
            "reference of onset {}, steps {}..{}".format(*stated),
            "onset {}, steps {}..{}, the window of this experiment".format(*window),
            "make start_indices, spinup_steps and n_forward_steps agree with the preparation's truth",
        )
    control = {n.removesuffix("_control"): v for n, v in maps.items() if n.endswith("_control")}
    return {n: v for n, v in maps.items() if not n.endswith("_control")}, control
