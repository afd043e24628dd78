"""The ledger: what says that a shard is done.

``_manifest/<key>/<shard>.json`` is written after the shard and its statistics (``.npz``), so whatever is listed is on the disk. Statistics
of any period or combination of runs are merged from it without reading a field again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_core import provenance
from ace_core.data.statistics import Moments, Seam, Stretch, from_arrays, to_arrays
from ace_core.errors import DataError, fail
from ace_core.prepare.config import PrepareConfig, code_sha256


@dataclass(frozen=True)
class Ledger:
    """Of one store. directory: of the data set. key: ``native/train``."""

    directory: Path
    key: str

    @property
    def folder(self) -> Path:
        return self.directory / "_manifest" / self.key

    def entry_file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.json"

    def statistics_file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.npz"

    @property
    def seams_file(self) -> Path:
        return self.folder / "seams.npz"

    def read(self, config: PrepareConfig, shard: int) -> dict[str, Any] | None:
        """The entry, or None if there is none of this configuration."""
        try:
            entry: dict[str, Any] = json.loads(self.entry_file(shard).read_text())
        except (OSError, ValueError):
            return None
        return entry if entry.get("config_sha256") == config.sha256 else None

    def is_done(self, config: PrepareConfig, shard: int) -> bool:
        """Is there an entry of this configuration and this code, and are its statistics what they were?"""
        entry, statistics = self.read(config, shard), self.statistics_file(shard)
        if entry is None or entry["code_sha256"] != code_sha256() or not statistics.is_file():
            return False
        return bool(provenance.sha256_file(statistics) == entry["statistics_sha256"])

    def write(self, shard: int, entry: dict[str, Any], stretches: list[Stretch]) -> None:
        """Statistics first, the entry last. Raises OSError for a disk that cannot be written."""
        path = self.statistics_file(shard)
        _write_arrays(path, to_arrays(stretches))
        provenance.write_json(self.entry_file(shard), {**entry, "statistics_sha256": provenance.sha256_file(path)})

    def write_seams(self, seams: list[Seam]) -> None:
        """Of every shard but the first to the one before."""
        stacked = [np.stack([np.stack([m.count, m.mean, m.m2]) for m in (s.plain, s.area)]) for s in seams]
        _write_arrays(self.seams_file, {"seams": np.stack(stacked) if stacked else np.zeros((0, 2, 3, 0))})

    def has_seams(self, n_shards: int) -> bool:
        try:
            with np.load(self.seams_file) as loaded:
                return len(loaded["seams"]) == n_shards - 1
        except (OSError, ValueError, KeyError):
            return False

    def stretches(self, config: PrepareConfig, n_shards: int) -> list[Stretch]:
        """All of the store, in order of time, each with the seam to the one before.

        Raises :class:`DataError` for an entry that is missing or does not match its statistics.
        """
        with np.load(self.seams_file) as loaded:
            between = loaded["seams"]
        found: list[Stretch] = []
        for shard in range(n_shards):
            entry, path = self.read(config, shard), self.statistics_file(shard)
            if entry is None or not path.is_file() or provenance.sha256_file(path) != entry["statistics_sha256"]:
                raise self.stale(shard, "has no valid statistics")
            with np.load(path) as loaded:
                part = from_arrays(dict(loaded))
            if shard:
                seam = Seam(*(Moments(*m) for m in between[shard - 1]))
                part[0] = Stretch(part[0].first, part[0].last, part[0].statistics, seam)
            found += part
        return found

    def stale(self, shard: int, what: str) -> DataError:
        entry = self.entry_file(shard)
        path = self.directory / f"{self.key}.zarr"
        return fail(
            DataError,
            str(path),
            f"shard {shard} {what}",
            f"the shard that {entry} describes",
            f"delete {entry} and {path}, then run the preparation again",
        )


def _write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the bool allow_pickle

    provenance.write_atomic(path, write)
