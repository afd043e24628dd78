"""What all diagnostics of a rollout share: what they may know beforehand, what they are given, and how they add up.

Legend: B sample (initial condition and member), S steps of a piece, N forward steps, C variable, Y latitude, X longitude.

A diagnostic never keeps anything: a piece of a rollout becomes a :class:`Means`, which has every name and shape from the start
(:meth:`Diagnostic.zero`). Pieces, ranks and segments of a long run merge by ``+``, in any order; all of a rollout's diagnostics are
reduced over ranks in one collective, and looked at twice they are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64
from ace_core.config import StrictModel
from ace_core.dataset_info import DatasetInfo
from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid, require_same_grid
from ace_core.metrics.accumulate import Means
from ace_core.variables import describe

if TYPE_CHECKING:
    import xarray as xr


class NotSupported(Exception):
    """A diagnostic that this rollout does not allow; the message says what it would need."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is known of a rollout before its first step.

    names: of all variables that are scored, derived ones included. means, stds: of the network's normalization, for those that have any.
    channel_names: what a mean over channels covers. starts [B]: seconds since 1970-01-01 of every sample's initial condition, of all
    ranks. members: samples of one initial condition, beside each other. paired: there is a target. device: where pieces are.
    corrected: variables that a corrector sets.
    """

    info: DatasetInfo
    names: tuple[str, ...]
    means: Mapping[str, float]
    stds: Mapping[str, float]
    channel_names: tuple[str, ...]
    n_steps: int
    starts: I64
    members: int = 1
    paired: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    corrected: tuple[str, ...] = ()

    @property
    def n_samples(self) -> int:
        return len(self.starts)

    @property
    def grid(self) -> LatLonGrid:
        return self.info.grid

    @property
    def days(self) -> float:
        """Length of the rollout."""
        return self.n_steps * self.info.timestep / 86400.0

    def area(self, names: Sequence[str] | None = None) -> Tensor:
        """Weights of :meth:`DatasetInfo.area_weights` on the device."""
        return self.info.area_weights(self.names if names is None else names).to(self.device)

    def of(self, names: Sequence[str]) -> Scene:
        """The same with fewer variables."""
        return replace(self, names=tuple(names), channel_names=tuple(n for n in self.channel_names if n in names))

    def scaling(self, normalized: bool) -> tuple[Tensor, Tensor]:
        """Mean and std [C, 1, 1] to be taken off and divided by; 0 and 1 unless ``normalized``, for names among
        :attr:`scaled_names`."""
        c = len(self.names)
        mean, std = torch.zeros(c, dtype=torch.float64), torch.ones(c, dtype=torch.float64)
        if normalized:
            mean = torch.tensor([self.means[n] for n in self.names], dtype=torch.float64)
            std = torch.tensor([self.stds[n] for n in self.names], dtype=torch.float64)
        return mean[:, None, None].to(self.device), std[:, None, None].to(self.device)

    @property
    def scaled_names(self) -> tuple[str, ...]:
        """Variables that the normalization knows."""
        return tuple(n for n in self.names if n in self.stds)


@dataclass(frozen=True, eq=False)
class Piece:
    """Steps first_step .. first_step + S - 1 of samples first_sample .. first_sample + B - 1; step 0 is the initial condition.

    prediction, target (None without one) [B, S, C, Y, X] float32, NaN where a variable is not known; times [B, S] seconds.
    correction: what the corrector changed, by name [B, S, Y, X] (corrected minus raw), None where nobody kept it.
    """

    names: tuple[str, ...]
    prediction: Tensor
    target: Tensor | None
    times: I64
    first_step: int
    first_sample: int = 0
    correction: Mapping[str, Tensor] | None = None
    # What several diagnostics want of these fields and one of them has computed: a piece with other fields has none of it.
    shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def n_steps(self) -> int:
        return self.prediction.shape[1]

    @property
    def steps(self) -> slice:
        """Of the N + 1 steps from the initial condition on."""
        return slice(self.first_step, self.first_step + self.n_steps)

    @property
    def samples(self) -> slice:
        """Of all samples."""
        return slice(self.first_sample, self.first_sample + self.prediction.shape[0])

    def of(self, names: Sequence[str]) -> Piece:
        """The same with fewer variables."""
        if tuple(names) == self.names:
            return self
        index = torch.tensor([self.names.index(n) for n in names], device=self.prediction.device)
        target = None if self.target is None else self.target.index_select(2, index)
        return replace(self, names=tuple(names), prediction=self.prediction.index_select(2, index), target=target)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a diagnostic found. scalars: ``<key>`` -> number, as they are logged below the diagnostic's name; dataset: what becomes
    ``<name>_diagnostics.nc``, None for no file. label: instead of the name, below which scalars are logged."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    dataset: xr.Dataset | None = None
    label: str | None = None


class Diagnostic(Protocol):
    """One kind of diagnostic of one rollout. ``name`` is its prefix in logs and its file's."""

    @property
    def name(self) -> str: ...

    @property
    def sees_start(self) -> bool:
        """Whether it is given the initial condition too, as a piece of step 0."""
        ...

    def zero(self) -> Means:
        """Of no piece: every name, in its final shape, float64, on the scene's device."""
        ...

    def add(self, piece: Piece) -> Means:
        """Of one piece, of the same names and shapes; waits for no device."""
        ...

    def findings(self, total: Means) -> Findings:
        """Of all pieces of all ranks."""
        ...


@runtime_checkable
class InPlace(Protocol):
    """A diagnostic whose sums have an entry per step: what a piece adds is added where it belongs, at the cost of the piece alone."""

    def add_to(self, total: Means, piece: Piece) -> None:
        """``total = total + add(piece)``, in the memory of ``total``."""
        ...


class DiagnosticConfig(StrictModel):
    """What all kinds can be told, as in fme. variables: only these, by default all; name: in logs and files; strict: refuse a rollout
    that does not allow it, rather than to leave it out with a warning."""

    variables: list[str] | None = None
    name: str | None = None
    enabled: bool = True
    strict: bool = False

    NAME: ClassVar[str] = ""

    def get_name(self) -> str:
        return self.name or self.NAME

    def scene(self, scene: Scene) -> Scene:
        """With the variables that are wanted. Raises :class:`NotSupported` for one that is not there."""
        if self.variables is None:
            return scene
        unknown = [n for n in self.variables if n not in scene.names]
        if unknown:
            raise NotSupported(f"variables {', '.join(unknown)}: not predicted; known are {', '.join(scene.names)}")
        return scene.of([n for n in scene.names if n in self.variables])

    def build(self, scene: Scene) -> Diagnostic:
        """Raises :class:`NotSupported`."""
        raise NotImplementedError


class Diagnostics:
    """All diagnostics of one rollout, with what they have gathered on this rank."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = list(diagnostics)
        self.totals = {d.name: d.zero() for d in self.diagnostics}

    @property
    def sees_correction(self) -> bool:
        """Whether pieces should say what the corrector changed."""
        return any(getattr(d, "sees_correction", False) for d in self.diagnostics)

    def add(self, piece: Piece) -> None:
        for d in self.diagnostics:
            if piece.first_step > 0 or d.sees_start:
                if isinstance(d, InPlace):
                    d.add_to(self.totals[d.name], piece)
                else:
                    self.totals[d.name] = self.totals[d.name] + d.add(piece)

    def state(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Plain tensors, from which :meth:`merge` goes on: a long run's segments keep it."""

        def kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.clone() for k, v in tensors.items()}  # later pieces are added in place

        return {n: {"sums": kept(m.sums), "weights": kept(m.weights)} for n, m in self.totals.items()}

    def merge(self, state: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> None:
        """Add what :meth:`state` gave of other pieces of the same rollout."""
        for name, parts in state.items():
            self.totals[name] = self.totals[name] + Means(parts["sums"], parts["weights"])

    def findings(self, ranks: Ranks) -> dict[str, Findings]:
        """By name, the same on every rank; in one collective."""
        joined = Means(
            {f"{n}|{k}": v for n, m in self.totals.items() for k, v in m.sums.items()},
            {f"{n}|{k}": v for n, m in self.totals.items() for k, v in m.weights.items()},
        ).reduced(ranks)
        found = {}
        for d in self.diagnostics:
            prefix = f"{d.name}|"
            sums = {k.removeprefix(prefix): v for k, v in joined.sums.items() if k.startswith(prefix)}
            weights = {k.removeprefix(prefix): v for k, v in joined.weights.items() if k.startswith(prefix)}
            found[d.name] = d.findings(Means(sums, weights))
        return found


def scalars_of(found: Mapping[str, Findings]) -> dict[str, float]:
    """``<diagnostic>/<key>`` -> number."""
    return {f"{f.label or name}/{key}": value for name, f in found.items() for key, value in f.scalars.items()}


def attributes(name: str, what: str, units: str | None = None) -> dict[str, str]:
    """``units`` and ``long_name`` of something computed of a variable; units: instead of the variable's own."""
    v = describe(name)
    return {"units": v.units if units is None else units, "long_name": f"{v.long_name}, {what}"}


def squared_units(name: str) -> str:
    """Of a variable's power; 1 of one whose units are not known."""
    units = describe(name).units
    return f"({units})^2" if units else "1"


def empty_dataset(grid: LatLonGrid | None = None, **coords: Any) -> xr.Dataset:
    """With latitude and longitude, if a grid is given, and further one-dimensional coordinates."""
    import xarray as xr

    known: dict[str, Any] = {}
    if grid is not None:
        known["lat"] = ("lat", grid.lat, {"units": "degrees_north", "standard_name": "latitude"})
        known["lon"] = ("lon", grid.lon, {"units": "degrees_east", "standard_name": "longitude"})
    return xr.Dataset(coords=known | {k: (k, np.asarray(v)) for k, v in coords.items()})


def require_grid_of(variable: xr.DataArray, grid: LatLonGrid, path: str) -> None:
    """Raise :class:`ace_core.errors.DataError` for a reference (..., lat, lon) that is on other points, such as rows from north to south;
    of a file without coordinates only the shape is known."""
    if variable.shape[-2:] != grid.shape:
        found = f"{variable.name} has shape {variable.shape}"
        expected = f"{grid.shape[0]}x{grid.shape[1]}, as the emulator's grid is"
        raise fail(DataError, path, found, expected, "regrid the reference")
    if all(d in variable.coords for d in variable.dims[-2:]):
        lat, lon = (np.asarray(variable[d].to_numpy(), np.float64) for d in variable.dims[-2:])
        require_same_grid(grid, LatLonGrid(lat, lon), f"{path}:{variable.name}", "the emulator's")


def require_compared(found: Collection[str], scene: Scene, path: str, dims: str) -> None:
    """Raise :class:`ace_core.errors.DataError` for a reference without any variable that is predicted. found: those it has; dims: of each."""
    if not found:
        what = "has none of the variables that are predicted"
        expected = f"<variable>({dims}) of at least one of {', '.join(scene.names)}"
        raise fail(DataError, path, what, expected, "rename its variables, or leave it out")


def zeros(device: torch.device, **shapes: Sequence[int]) -> dict[str, Tensor]:
    return {k: torch.zeros(tuple(s), dtype=torch.float64, device=device) for k, s in shapes.items()}
