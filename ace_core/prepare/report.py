"""``qc/report.json``: what the quality gate found in every store, from the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ace_core import provenance
from ace_core.data import packed
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.content import store_path
from ace_core.prepare.ledger import Ledger


def write_report(config: PrepareConfig, directory: Path, keys: list[str]) -> Path:
    """Worst value of every check and all jumps, per store; the file is touched only if it changes."""
    report: dict[str, Any] = {}
    for key in keys:
        worst: dict[str, float] = {}
        jumps: list[str] = []
        for shard in range(packed.n_shards(store_path(directory, key)) or 0):
            entry = Ledger(directory, key).read(config, shard)
            assert entry is not None
            found = dict(entry["quality"])
            jumps += found.pop("jumps")
            for name, value in found.items():
                worst[name] = max(worst.get(name, value), value)
        report[key] = {**worst, "jumps": jumps}
    path = directory / "qc" / "report.json"
    if not path.is_file() or json.loads(path.read_text()) != report:
        provenance.write_json(path, report)
    return path
