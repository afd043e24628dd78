"""Climates of arms that were run one by one: kept in files, and put side by side later.

Legend: G arms (0 = baseline).

A member's trajectory depends on nothing but its own initial condition, forcing, perturbation and noise, so an arm that was run alone is the
arm that would have run beside the others: one baseline serves any number of perturbations, and one more of them costs one more rollout.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.provenance import write_atomic
from ace_core.response.climates import BASELINE, Climates, Features, Maps, Surface
from ace_core.vertical import HybridSigma

CLIMATES = "climates.npz"


def save(path: Path, climates: Climates) -> None:
    """All of it, to the bit, atomically. Cells of the maps that hold nothing are left out. Raises OSError."""
    c = climates
    there = c.maps.weights > 0
    known = {"labels": c.labels, "names": c.names, "regions": c.regions, "timestep": c.timestep, "n_steps": c.n_steps}
    known["vertical"] = None if c.vertical is None else c.vertical.state()
    arrays: dict[str, Any] = {
        "known": np.frombuffer(json.dumps(known).encode(), np.uint8),
        "lat": c.grid.lat,
        "lon": c.grid.lon,
        "ocean": c.surface.ocean,
        "land": c.surface.land,
        "map_weights": c.maps.weights,
        "maps": c.maps.mean[:, there],
        "values": c.features.values,
        "steps": c.features.steps,
        "seasons": c.features.seasons,
        "years": c.features.years,
        "kin": c.features.independent if c.features.kin is None else c.features.kin,
        "amplitude": c.amplitude,
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    write_atomic(path, write)


def load(path: Path) -> Climates:
    """The inverse of :func:`save`. Raises :class:`DataError` for a file that is no such."""
    try:
        with np.load(path, allow_pickle=False) as file:
            a = {k: file[k] for k in file.files}
        known = json.loads(a["known"].tobytes())
        weights, cells = a["map_weights"], a["maps"]
        mean = np.full((cells.shape[0], *weights.shape, *cells.shape[2:]), np.nan)
        mean[:, weights > 0] = cells
        vertical = known["vertical"]
        return Climates(
            tuple(known["labels"]),
            tuple(known["names"]),
            tuple(known["regions"]),
            LatLonGrid(a["lat"], a["lon"]),
            None if vertical is None else HybridSigma.from_state(vertical),
            Surface(a["ocean"], a["land"]),
            Maps(weights, mean),
            Features(a["values"], a["steps"], a["seasons"], a["years"], a["kin"]),
            float(known["timestep"]),
            int(known["n_steps"]),
            a["amplitude"],
        )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise fail(
            DataError, str(path), f"cannot be read ({reason})", "the climate of an arm", "delete its folder"
        ) from None


def joined(arms: Mapping[str, Climates]) -> Climates:
    """label -> climate of one arm, the baseline's first, all of one experiment -> climates of all arms."""
    labels, alone = tuple(arms), tuple(arms.values())
    first = alone[0]
    assert labels[0] == BASELINE
    for one in alone:
        assert len(one.labels) == 1
        assert (one.names, one.regions, one.n_steps) == (first.names, first.regions, first.n_steps)
        assert np.array_equal(one.features.steps, first.features.steps)
        assert np.array_equal(one.maps.weights, first.maps.weights)
    sea = np.concatenate([one.amplitude for one in alone])
    return replace(
        first,
        labels=labels,
        maps=replace(first.maps, mean=np.concatenate([one.maps.mean for one in alone])),
        features=replace(first.features, values=np.concatenate([one.features.values for one in alone])),
        amplitude=sea - sea[0],
    )
