"""The pair: which data, and what each arm of an experiment adds to their sea surface. A small JSON artefact, named by its content.

Legend: T time, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ace_core import provenance
from ace_core.calendar import TimeAxis
from ace_core.config import StrictModel, dump
from ace_core.data.config import NotEmpty
from ace_core.data.layout import F32
from ace_core.data.perturbation import OCEAN_FRACTION, SST
from ace_core.data.perturbation_config import FieldSelector, PerturbationsConfig, PerturbationSelector, Scope
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics import sst


class Arm(StrictModel):
    """One side of a paired experiment. label: 'p0k', 'p4k', ..."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    perturbations: tuple[PerturbationSelector, ...] = ()

    def build(self) -> tuple[sst.Perturbation, ...]:
        return PerturbationsConfig(sst=self.perturbations).build()


class Mask(StrictModel):
    """Cells that are perturbed."""

    name: Literal["ocean_fraction"] = "ocean_fraction"
    op: Literal[">"] = ">"
    cutoff: Annotated[float, Field(ge=0, lt=1)] = sst.OCEAN_CUTOFF


class Pair(StrictModel):
    """Virtual form of an SST-perturbed forcing pair: base data plus what each arm adds to it.

    base: dataset id and run. ic_scope: what of the initial condition is perturbed. spinup_steps: left out of time means.
    noise: do the arms share the noise of a stochastic emulator? A pattern is known by what its file holds (``sha256``).
    """

    base: str
    arms: Annotated[tuple[Arm, ...], NotEmpty]
    mask: Mask = Mask()
    sea_ice: Literal["fixed"] = "fixed"
    ic_scope: Scope = "ocean"
    spinup_steps: Annotated[int, Field(ge=0)] = 0
    noise: Literal["common", "independent"] = "common"

    @model_validator(mode="after")
    def _patterns_by_content(self) -> Pair:
        for arm in self.arms:
            for i, selector in enumerate(arm.perturbations):
                if isinstance(selector, FieldSelector) and selector.config.sha256 is None:
                    raise ValueError(
                        f"arm {arm.label}, perturbations[{i}]: sha256 of the file is part of what a pair is"
                    )
        return self

    @property
    def pair_id(self) -> str:
        """Hex sha256 of the canonical JSON: equal for pairs that mean the same, whatever file they, and their patterns, lie in."""
        plain = dump(self)
        for arm in plain["arms"]:
            for selector in arm["perturbations"]:
                if selector["type"] == "field":
                    del selector["config"]["path"]
        return provenance.sha256_of(plain)

    def arm(self, label: str) -> Arm:
        """Raises :class:`DataError` for a label the pair does not have."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise fail(DataError, f"pair {self.pair_id[:10]}", f"no arm {label!r}", ", ".join(a.label for a in self.arms))


def write_pair(path: Path, pair: Pair) -> None:
    """Atomic JSON: the pair and its id."""
    provenance.write_json(path, {"pair_id": pair.pair_id, **dump(pair)})


def read_pair(path: Path) -> Pair:
    """Raises :class:`DataError` if the file is missing, is not a pair, or was edited after it was written."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        stated = document.pop("pair_id")
        pair = Pair.model_validate(document)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise fail(
            DataError, str(path), f"not a forcing pair ({error})", "JSON as the preparation writes", "prepare the pair"
        ) from None
    if pair.pair_id != stated:
        raise fail(
            DataError,
            str(path),
            f"content hashes to {pair.pair_id[:10]}, but pair_id says {str(stated)[:10]}",
            "an unedited file",
            "change the preparation's configuration instead, and prepare again",
        )
    return pair


def check_pair(
    base: Fields, perturbed: Fields, pair: Pair, label: str, grid: LatLonGrid, times: TimeAxis, where: str
) -> None:
    """Raise :class:`DataError` unless ``perturbed`` is ``base`` plus exactly the arm's anomaly (float32) on the mask, bit by bit.

    Both [T, C, Y, X] at ``times`` with the same names, among them surface_temperature and ocean_fraction.
    """
    a, b = base.tensor.numpy(), perturbed.tensor.numpy()
    c = base.names.index(SST)
    delta = sst.anomaly_at(pair.arm(label).build(), grid.lat, grid.lon, times).astype(np.float32)
    ocean = base[OCEAN_FRACTION].numpy() > pair.mask.cutoff
    expected = np.where(ocean, a[:, c] + delta, a[:, c])
    others = [i for i in range(len(base.names)) if i != c]
    if not _same_bits(b[:, c], expected) or not _same_bits(a[:, others], b[:, others]):
        worst = float(np.nanmax(np.abs(b[:, c] - expected)))
        raise fail(
            DataError,
            where,
            f"arm {label} differs from its specification (surface_temperature by up to {worst:g} K)",
            "the anomaly on the mask, nothing elsewhere",
            "delete the pair and prepare it again",
        )


def _same_bits(a: F32, b: F32) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))
