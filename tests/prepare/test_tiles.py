"""Steps stored in tiles: the same values and the same hashes, and everything that looks after a store works on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ace_core.data.export import export_fme
from ace_core.data.packed import shard_file
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, DataError
from ace_core.grid import tiles_of
from ace_core.prepare.config import PrepareConfig, TilesConfig
from ace_core.prepare.ledger import Ledger
from ace_core.prepare.prepare import PreparedDataset, prepare
from ace_core.prepare.verify import verify
from ace_core.provenance import write_json


@pytest.fixture(scope="session")
def tiled_config(config: PrepareConfig) -> PrepareConfig:
    """16 x 32 cells in 3 x 2: the last rows are filled up."""
    return config.model_copy(
        update={
            "tiles": TilesConfig(h=3, w=2),
            "runs": {"train": config.runs["train"]},
            "statistics": config.statistics.model_copy(update={"runs": ("train",)}),
            "pairs": (),
            "truth": None,
        }
    )


@pytest.fixture
def tiled(tiled_config: PrepareConfig, tmp_path: Path) -> PreparedDataset:
    done = prepare(tiled_config, tmp_path / "root")
    write_json(done.directory / "complete.json", {"outputs": done.outputs})
    return done


def test_tiles_change_where_values_lie_and_nothing_else(config, prepared, tiled_config, tiled, tmp_path):
    assert tiled_config.dataset_id != config.dataset_id
    whole, cut = open_store(prepared.runs["train"]), open_store(tiled.runs["train"])
    np.testing.assert_array_equal(cut.read(cut.names, 0, 365), whole.read(whole.names, 0, 365))
    for tile in tiles_of((16, 32), 3, 2):
        np.testing.assert_array_equal(
            cut.read(cut.names, 60, 70, tile=tile), whole.read(whole.names, 60, 70)[(..., *tile.index)]
        )
    entries = [
        [Ledger(d.directory, "native/train").read(c, shard)["sha256"] for shard in range(6)]
        for d, c in ((prepared, config), (tiled, tiled_config))
    ]
    assert entries[0] == entries[1]
    with xr.open_zarr(tiled.runs["train"], consolidated=False) as ds:
        np.testing.assert_array_equal(ds["fields"][64, 3], whole.read(whole.names[3:4], 64, 65)[0, 0])
    lines: list[str] = []
    verify(tiled.directory, lines.append)
    assert "365 times, 6 shards as written" in lines[0]
    export_fme(tiled.runs["train"], tmp_path / "fme.zarr")
    exported = open_store(tmp_path / "fme.zarr")
    np.testing.assert_array_equal(exported.read(cut.names, 200, 210), whole.read(cut.names, 200, 210))


def test_damage_is_found_and_mended(tiled_config, tiled):
    file = shard_file(tiled.runs["train"], 2)
    intact = file.read_bytes()
    for position in (3, len(intact) // 2, -5, -200):
        data = bytearray(intact)
        data[position] ^= 4
        file.write_bytes(data)
        with pytest.raises(DataError, match=r"train\.zarr"):
            verify(tiled.directory, lambda _: None)
    file.write_bytes(intact[:-1])
    again = prepare(tiled_config, tiled.directory.parent)
    assert again.n_tasks == 1
    assert file.read_bytes() == intact
    assert again.outputs == tiled.outputs
    assert prepare(tiled_config, tiled.directory.parent).skipped


def test_more_tiles_than_rows(tiled_config, tmp_path):
    with pytest.raises(ConfigError, match="16 latitudes in 17 parts"):
        prepare(tiled_config.model_copy(update={"tiles": TilesConfig(h=17)}), tmp_path)
