"""`ace data verify`, `describe`, `stats` and `export`: what damage they find, and that what they write is what was there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ace_core.data.export import export_fme
from ace_core.data.packed import shard_file
from ace_core.data.store import open_store
from ace_core.errors import DataError
from ace_core.prepare.ledger import Ledger
from ace_core.prepare.verify import describe, verify
from ace_core.provenance import write_json


def ace(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ace_core.cli", "data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    """A data set that can be damaged."""
    path = tmp_path / prepared.directory.name
    shutil.copytree(prepared.directory, path)
    write_json(path / "complete.json", {"outputs": prepared.outputs})
    return path


def test_a_whole_data_set_is_verified(copy):
    lines: list[str] = []
    verify(copy, lines.append)
    assert [line.partition(": ")[0].removeprefix(f"{copy}/") for line in lines] == [
        "native/test.zarr",
        "native/train.zarr",
        "pairs/p4k/p0k.zarr",
        "pairs/p4k/p4k.zarr",
        "pairs/p4k/patch.zarr",
    ]
    assert all("365 times, 6 shards as written" in line for line in lines)
    assert "moisture 9." in lines[0] or "moisture 1." in lines[0]
    done = ace("verify", str(copy / "native/test.zarr"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "verified")


@pytest.mark.parametrize("position", [3, 1_000_003, -5, -100])
def test_any_flipped_byte_is_found_and_never_read(copy, position):
    """In a value, in a checksum of a value, in the index or its checksum."""
    path = shard_file(copy / "native/train.zarr", 2)
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.zarr"):
        verify(copy, lambda _: None)
    store = open_store(copy / "native/train.zarr")
    with pytest.raises(DataError, match=r"train.zarr.*(checksum|not all in|steps)"):
        store.read(store.names, 128, 192)


def test_values_that_were_exchanged_are_found(copy):
    """Two whole shards with good checksums in each other's place: only the ledger knows."""
    a, b = (shard_file(copy / "native/train.zarr", shard) for shard in (1, 2))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    done = ace("verify", str(copy))
    assert done.returncode == 2
    assert "have another hash than when they were written" in done.stderr or "check fails by" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_beside_the_stores_are_checked(copy):
    (copy / "stats/combined/centering.nc").write_bytes(b"no")
    (copy / "truth/p4k/p4k.nc").unlink()
    Ledger(copy, "native/test").entry_file(3).unlink()
    with pytest.raises(DataError) as error:
        verify(copy, lambda _: None)
    text = str(error.value)
    assert "centering.nc: changed since it was written" in text
    assert "p4k.nc: missing" in text
    assert "shard 3 has no ledger entry" in text


def test_not_a_data_set(tmp_path):
    for path, words in ((tmp_path, "no dataset.yaml in it"), (tmp_path / "no", "no such folder")):
        done = ace("verify", str(path))
        assert done.returncode == 2
        assert words in done.stderr


def test_description(prepared):
    text = "\n".join(describe(prepared.directory))
    assert f"data set {prepared.dataset_id}" in text
    assert "16x32 legendre-gauss" in text
    assert "365, 0001-01-02 00:00:00 .. 0002-01-01 00:00:00, every 24 h, noleap" in text
    assert "pairs: p4k" in text
    done = ace("describe", str(prepared.runs["train"]))
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["LHTFLsfc"])
    assert row.split()[1:] == ["W/m**2", "Latent", "heat", "flux"]
    assert "seed: 5" in done.stdout


def test_statistics_of_one_run_and_two_months(prepared, tmp_path):
    out = tmp_path / "stats"
    done = ace(
        "stats",
        str(prepared.directory),
        "--run",
        "test",
        "--start-date",
        "0001-03",
        "--end-date",
        "0001-04",
        "-o",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    store = open_store(prepared.runs["test"])
    first = store.times.index_of("0001-03-01", "")
    x = store.read(["TMP2m"], first, first + 61).astype(np.float64)
    assert float(xr.load_dataset(out / "centering.nc")["TMP2m"]) == pytest.approx(x.mean(), rel=1e-12)
    steps = float(xr.load_dataset(out / "scaling-residual.nc")["TMP2m"])
    assert steps == pytest.approx(np.diff(x, axis=0).std(), rel=1e-10)
    np.testing.assert_allclose(xr.load_dataset(out / "time-mean.nc")["TMP2m"], x[:, 0].mean(axis=0), rtol=1e-6)
    done = ace("stats", str(prepared.directory), "--run", "tset", "-o", str(out))
    assert done.returncode == 2
    assert "did you mean 'test'?" in done.stderr
    done = ace("stats", str(prepared.directory), "--run", "test", "--grid", "fine", "-o", str(out))
    assert done.returncode == 2
    assert "no grid 'fine'\n    expected: none: there is one grid, without a label" in done.stderr


def test_statistics_replace_statistics_and_nothing_else(prepared, tmp_path):
    """Not a home folder that was named by mistake, nor good statistics by none."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years")
    for out, words in (
        (home, "holds something else than statistics"),
        (home / "thesis.txt", "is a file"),
        (prepared.directory, "holds something else than statistics"),
        (home / "thesis.txt" / "stats", "cannot be made or written (Not a directory)"),
    ):
        done = ace("stats", str(prepared.directory), "--run", "test", "-o", str(out))
        assert (done.returncode, f"{out}: {words}" in done.stderr) == (2, True), done.stderr
    assert (home / "thesis.txt").read_text() == "years"
    assert (prepared.directory / "native" / "test.zarr").is_dir()
    out = home / "stats"
    for run, period, code in (("train", (), 0), ("test", (), 0), ("test", ("--start-date", "0009"), 2)):
        done = ace("stats", str(prepared.directory), "--run", run, "-o", str(out), *period)
        assert done.returncode == code, done.stderr
    with xr.open_dataset(out / "centering.nc") as ds:
        assert ds.attrs["runs"] == "test"
    assert {p.name for p in home.iterdir()} == {"thesis.txt", "stats"}


def test_export_holds_the_same_bits(prepared, tmp_path):
    out = tmp_path / "fme.zarr"
    export_fme(prepared.runs["test"], out, shard_steps=100)
    ours, theirs = open_store(prepared.runs["test"]), open_store(out)
    assert type(theirs).__name__ == "ZarrStore"
    assert set(theirs.names) == set(ours.names)
    np.testing.assert_array_equal(theirs.read(ours.names, 0, 365), ours.read(ours.names, 0, 365))
    np.testing.assert_array_equal(theirs.times.values, ours.times.values)
    assert theirs.info.vertical == ours.info.vertical
    with xr.open_zarr(out, consolidated=False) as ds:
        assert ds["TMP2m"].dims == ("time", "lat", "lon")
        assert ds["TMP2m"].attrs["units"] == "K"
        np.testing.assert_array_equal(ds["TMP2m"].isel(time=200), ours.read(["TMP2m"], 200, 201)[0, 0])
        np.testing.assert_array_equal(ds["global_mean_co2"], ours.series["global_mean_co2"])
    with pytest.raises(DataError, match="exists already"):
        export_fme(prepared.runs["test"], out)
    before = sorted(prepared.runs["test"].rglob("*"))
    with pytest.raises(DataError, match="lies within"):
        export_fme(prepared.runs["test"], prepared.runs["test"] / "more" / "out.zarr")
    assert sorted(prepared.runs["test"].rglob("*")) == before
    done = ace("export", str(prepared.runs["test"]), "-o", str(tmp_path / "second.zarr"), "--layout", "fme")
    assert done.returncode == 0, done.stderr
    path = next((out / "TMP2m" / "c").rglob("0"))
    path = path if path.is_file() else next(p for p in path.rglob("*") if p.is_file())
    data = bytearray(path.read_bytes())
    data[777] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="TMP2m"):
        theirs.read(["TMP2m"], 0, 365)
