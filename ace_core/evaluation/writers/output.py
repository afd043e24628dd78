"""One output of a rollout: chosen variables of a region, as they are or as means, in one file or one per member.

Legend: B sample, S steps of a window, C variable, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ace_core.calendar import I64
from ace_core.data.layout import F32
from ace_core.evaluation.writers.bins import Bins
from ace_core.evaluation.writers.config import NetCDFFormat, ZarrFormat
from ace_core.evaluation.writers.layout import FileLayout, make_layout
from ace_core.evaluation.writers.means import RunningMeans
from ace_core.evaluation.writers.netcdf import NetCDFFile
from ace_core.evaluation.writers.region import Region
from ace_core.evaluation.writers.zarr import ZarrStore


@dataclass(frozen=True, eq=False)
class OutputPlan:
    """Everything of an output that is known before the first step. kind: predictions, target or correction; label: of the file, which lies in
    ``folder`` of the run's; window: steps that arrive at once, the last time maybe fewer."""

    kind: str
    label: str
    names: tuple[str, ...]
    bins: Bins
    region: Region
    init_times: I64
    calendar: str
    window: int
    format: NetCDFFormat | ZarrFormat = field(default_factory=NetCDFFormat)
    members: bool = False
    folder: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, FileLayout]:
        """Path within the run's folder -> what it is to hold."""
        common = (self.names, self.bins, self.region, self.init_times, self.calendar, self.attributes)
        correction = self.kind == "correction"
        out = {}
        for member in range(len(self.init_times)) if self.members else (None,):
            label = self.label if member is None else f"{self.label}_ic{member:04d}"
            path = f"{self.folder}{label}.{self.format.suffix}"
            out[path] = make_layout(self.label, *common, member=member, correction=correction)
        return out

    @property
    def path(self) -> str:
        """Of the (first) file: what tells it from the others."""
        return next(iter(self.files))

    @property
    def nbytes(self) -> int:
        return sum(layout.nbytes for layout in self.files.values())

    @property
    def shard(self) -> int:
        """Times of a zarr shard: a window's, if windows always hold whole ones and nothing is left out between."""
        index, n = self.bins.index[0], self.bins.index.shape[1]
        if self.bins.monthly or (index < 0).any():
            return 1
        factor = n // self.bins.size
        return min(self.window // factor, self.bins.size) if self.window % factor == 0 else 1


class File(Protocol):
    """Of either format."""

    def write(self, sample: slice, time: slice, values: F32, counts: I64 | None = None) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Output:
    """An :class:`OutputPlan` being carried out. :meth:`write` is called window by window, in order."""

    def __init__(self, plan: OutputPlan, directory: Path, state: Mapping[str, Any] | None = None) -> None:
        """state: of :meth:`state`, to go on where it was taken. Raises OSError, RuntimeError."""
        self.plan = plan
        self._means = None
        if plan.bins.mean:
            self._means = RunningMeans(plan.bins, (len(plan.names), *plan.region.shape))
            if state is not None:
                self._means.restore(state["means"])
        self._files: list[File] = []
        for path, layout in plan.files.items():
            if isinstance(plan.format, NetCDFFormat):
                head = None if state is None else state["heads"][path]
                self._files.append(NetCDFFile(directory / path, layout, head))
            else:
                chunks = plan.format.chunks or {}
                resume = state is not None
                self._files.append(ZarrStore(directory / path, layout, chunks, plan.shard, resume=resume))

    def write(self, first_step: int, values: F32) -> None:
        """values [B, S, C, Y, X] of the plan's names on the whole grid, of forward steps first_step .. first_step + S - 1, counted from 0."""
        values = self.plan.region.of(values)
        if self._means is not None:
            for b, place, mean in self._means.add(first_step, values):
                counts = self.plan.bins.counts[b : b + 1, place : place + 1] if self.plan.bins.monthly else None
                self._put(slice(b, b + 1), slice(place, place + 1), mean[None, None], counts)
            return
        places = self.plan.bins.index[0, first_step : first_step + values.shape[1]]
        kept = np.flatnonzero(places >= 0)
        if len(kept):
            block = values if len(kept) == len(places) else values[:, kept]
            self._put(slice(0, len(values)), slice(int(places[kept[0]]), int(places[kept[-1]]) + 1), block, None)

    def _put(self, sample: slice, time: slice, values: F32, counts: I64 | None) -> None:
        if not self.plan.members:
            self._files[0].write(sample, time, values, counts)
            return
        for i, member in enumerate(range(sample.start, sample.stop)):
            self._files[member].write(slice(0, 1), time, values[i : i + 1])

    def flush(self) -> None:
        """Have all that was written on the disk."""
        for file in self._files:
            file.flush()

    def state(self) -> dict[str, Any]:
        """Plain data and tensors from which the output goes on: what no file holds yet."""
        heads = {str(p): f.head for p, f in zip(self.plan.files, self._files, strict=True) if isinstance(f, NetCDFFile)}
        return {"heads": heads, "means": None if self._means is None else self._means.state()}

    def close(self) -> None:
        for file in self._files:
            file.close()
