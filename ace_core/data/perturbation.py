"""SST perturbations of forcing, and the pair artefact that names them.

Legend: B sample, T time, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from ace_core import provenance
from ace_core.config import StrictModel, dump
from ace_core.data.config import NotEmpty, PerturbationsConfig, PerturbationSelector
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics import sst

SST = "surface_temperature"
OCEAN_FRACTION = "ocean_fraction"


def perturb_sst(
    fields: Fields,
    perturbations: Sequence[sst.Perturbation],
    grid: LatLonGrid,
    *,
    sst_name: str = SST,
    ocean_fraction_name: str = OCEAN_FRACTION,
    cutoff: float = sst.OCEAN_CUTOFF,
) -> Fields:
    """Add the sum of ``perturbations`` where ocean fraction is strictly above ``cutoff``; a new tensor, the rest is copied.

    fields [..., C, Y, X]. The sum is formed in float64 and added in the dtype of the fields, once.
    Raises :class:`DataError` if the two variables are not among the fields.
    """
    if not perturbations:
        return fields
    require_ocean(fields.names, sst_name, ocean_fraction_name)
    tensor = fields.tensor.clone()
    delta = torch.from_numpy(sst.total_anomaly(perturbations, grid.lat, grid.lon)).to(tensor)
    perturbed = Fields(fields.names, tensor)
    temperature = perturbed[sst_name]
    # A cell outside the mask keeps its bits: adding zero would turn -0.0 into 0.0 and NaN payloads loose.
    temperature.copy_(torch.where(fields[ocean_fraction_name] > cutoff, temperature + delta, temperature))
    return perturbed


def require_ocean(names: Sequence[str], sst_name: str = SST, ocean_fraction_name: str = OCEAN_FRACTION) -> None:
    """Raise :class:`DataError` unless both variables, without which no SST can be perturbed, are among ``names``."""
    for name in (sst_name, ocean_fraction_name):
        if name not in names:
            raise fail(
                DataError,
                "perturbations.sst",
                f"{name} is not among the variables of the forcing",
                f"{sst_name} and {ocean_fraction_name}",
                "configure an ocean in the step, or add the variable to the forcing names",
            )


# --- pairs


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
    noise: do the arms share the noise of a stochastic emulator?
    """

    base: str
    arms: Annotated[tuple[Arm, ...], NotEmpty]
    mask: Mask = Mask()
    sea_ice: Literal["fixed"] = "fixed"
    ic_scope: Literal["none", "ocean", "full"] = "ocean"
    spinup_steps: Annotated[int, Field(ge=0)] = 0
    noise: Literal["common", "independent"] = "common"

    @property
    def pair_id(self) -> str:
        """Hex sha256 of the canonical JSON: equal for pairs that mean the same, whatever file they lie in."""
        return provenance.sha256_of(dump(self))

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


def check_pair(base: Fields, perturbed: Fields, pair: Pair, label: str, grid: LatLonGrid, where: str) -> None:
    """Raise :class:`DataError` unless ``perturbed`` is ``base`` plus exactly the arm's anomaly (float32) on the mask.

    Both [..., C, Y, X] with the same names, among them surface_temperature and ocean_fraction.
    """
    a, b = base.tensor.numpy(), perturbed.tensor.numpy()
    c = base.names.index("surface_temperature")
    delta = sst.total_anomaly(pair.arm(label).build(), grid.lat, grid.lon).astype(np.float32)
    ocean = base["ocean_fraction"].numpy() > pair.mask.cutoff
    expected = np.where(ocean, a[..., c, :, :] + delta, a[..., c, :, :])
    others = [i for i in range(len(base.names)) if i != c]
    same = np.array_equal(b[..., c, :, :], expected, equal_nan=True)
    if not same or not np.array_equal(a[..., others, :, :], b[..., others, :, :], equal_nan=True):
        worst = float(np.nanmax(np.abs(b[..., c, :, :] - expected)))
        raise fail(
            DataError,
            where,
            f"arm {label} differs from its specification (surface_temperature by up to {worst:g} K)",
            "the anomaly on the mask, nothing elsewhere",
            "delete the pair and prepare it again",
        )
