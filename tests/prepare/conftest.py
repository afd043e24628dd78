"""One small planet, prepared once per test process, and ways to look at what was prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import PreparedDataset, prepare

FOUR = {"type": "constant", "config": {"amplitude": 4}}
PATCH = {"type": "greens_function", "config": {"amplitude": 2, "lat_width": 60, "lon_width": 90, "lon_center": 180}}
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "source": {"kind": "planet", "preset": "F8", "years": 1, "dt_hours": 24, "seed": 5},
    "runs": {"train": {"scenario": "random_sst"}, "test": {"noise_stream": 1}},
    "shard_steps": 64,
    "statistics": {"runs": ["train", "test"]},
    "pairs": [
        {
            "name": "p4k",
            "base": "test",
            "materialize": True,
            "arms": [
                {"label": "p0k"},
                {"label": "p4k", "perturbations": [FOUR]},
                {"label": "patch", "perturbations": [FOUR, PATCH]},
            ],
        }
    ],
    "truth": {"start_step": 300, "stride": 8},
}


@pytest.fixture(scope="session")
def config() -> PrepareConfig:
    return PrepareConfig.model_validate(CONFIG)


@pytest.fixture(scope="session")
def prepared(config, tmp_path_factory) -> PreparedDataset:
    """Read only."""
    return prepare(config, tmp_path_factory.mktemp("whole"))


def content_of(directory: Path) -> dict[str, bytes]:
    """Every file below ``directory``, without what names the code's version (it may be edited while tests run)."""
    found = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".json":
            document = json.loads(data)
            for holder in (document, document.get("attributes", {})):
                for key in ("git_sha", "code_sha256"):
                    holder.pop(key, None)
            data = json.dumps(document).encode()
        found[path.relative_to(directory).as_posix()] = data
    return found


@pytest.fixture(scope="session")
def contents():
    return content_of
