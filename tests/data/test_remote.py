"""Stores behind URLs: the same numbers as from the disk, and an address for everything that goes wrong."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from ace_core.data.config import DataLoaderConfig, InferenceDataLoaderConfig
from ace_core.data.inference import open_inference
from ace_core.data.loader import make_loader
from ace_core.data.packed import shard_file
from ace_core.data.store import open_store
from ace_core.errors import DataError

NAMES = ("air_temperature_1", "HGTsfc", "surface_temperature", "global_mean_co2")


class _Handler(SimpleHTTPRequestHandler):
    """Files with ranges; nothing below /secret for those who cannot say the word."""

    ranges = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._refused():
            return
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not self.ranges or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        part = data[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self) -> None:
        if not self._refused():
            super().do_HEAD()

    def _refused(self) -> bool:
        code = {"/secret": 403, "/login": 401, "/broken": 500}.get("/" + self.path.split("/")[1])
        if code is not None:
            self.send_error(code)
        return code is not None


class _NoRanges(_Handler):
    ranges = False


@pytest.fixture(params=[_Handler, _NoRanges], ids=["ranges", "no ranges"])
def server(request, tmp_path) -> Iterator[str]:
    """The URL of tmp_path."""
    pytest.importorskip("aiohttp")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(tmp_path)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an empty folder in memory."""
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    fs = fsspec.filesystem("memory")
    if fs.exists(name):
        fs.rm(name, recursive=True)


def upload(path: Path, url: str) -> None:
    fsspec.filesystem("memory").put(str(path), url.removeprefix("memory://"), recursive=True)


def check(url: str, sample, **keys: object) -> None:
    """Shuffled batches, a rollout, and single steps."""
    config = {"dataset": {"data_path": url} | keys, "batch_size": 3}
    loader = make_loader(DataLoaderConfig.model_validate(config), NAMES, 3, train=True, seed=1)
    for batch, starts in zip(loader.batches(0), loader.order(0).reshape(-1, 3), strict=True):
        for row, start in enumerate(starts):
            np.testing.assert_array_equal(batch.fields["air_temperature_1"][row], sample.fields[start : start + 3, 4])
            np.testing.assert_array_equal(batch.fields["HGTsfc"][row, 0], sample.statics["HGTsfc"])
            assert (batch.fields["global_mean_co2"][row, 1] == sample.series["global_mean_co2"][start + 1]).all()
    rollout = InferenceDataLoaderConfig.model_validate(
        {"dataset": config["dataset"], "start_indices": {"list": [3, 0]}}
    )
    (window,) = open_inference(rollout, NAMES, 9, 9).windows()
    np.testing.assert_array_equal(window.fields["surface_temperature"][0], sample.fields[3:13, 0])


@pytest.mark.parametrize(("layout", "options"), [("packed", {}), ("zarr", {"zarr_format": 2}), ("zarr", {})])
def test_zarr_in_memory(sample, write, tmp_path, memory, layout, options):
    upload(write[layout](sample, tmp_path / "a.zarr", **options), f"{memory}/a.zarr")
    check(f"{memory}/a.zarr", sample)
    check(memory, sample, file_pattern="a.zarr", engine="zarr")


@pytest.mark.parametrize("layout", ["packed", "zarr"])
def test_zarr_over_http(sample, write, tmp_path, server, layout):
    write[layout](sample, tmp_path / "a.zarr")
    check(f"{server}/a.zarr", sample)
    assert open_store(f"{server}/a.zarr").path == f"{server}/a.zarr"


def test_netcdf_in_memory(sample, write, tmp_path, memory):
    upload(write["folder"](sample, tmp_path / "f"), f"{memory}/f")
    check(f"{memory}/f", sample)


def test_netcdf_over_http(sample, write, tmp_path, server):
    write["folder"](sample, tmp_path / "f")
    write["netcdf"](sample, tmp_path / "whole.nc")
    check(f"{server}/f", sample, file_pattern="part*.nc")
    check(f"{server}/whole.nc", sample)
    # Messages speak of the URL, not of the copy.
    (tmp_path / "f" / "part2.nc").write_bytes(b"no netCDF")
    with pytest.raises(DataError) as error:
        open_store(f"{server}/f", file_pattern="part*.nc")
    assert error.value.problems[0].where == f"{server}/f/part2.nc"


def test_file_urls_are_paths(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    check(f"file://{path}", sample)


def test_damage_behind_a_url(sample, write, tmp_path, server):
    path = write["packed"](sample, tmp_path / "a.zarr")
    store = open_store(f"{server}/a.zarr")
    file = shard_file(path, 1)
    data = bytearray(file.read_bytes())
    data[100] ^= 4
    file.write_bytes(data)
    with pytest.raises(DataError, match="does not match its crc32c checksum") as error:
        store.read(NAMES, 6, 12)
    assert error.value.problems[0].where == f"{server}/a.zarr"
    file.unlink()
    with pytest.raises(DataError, match="shard file 1 is missing"):
        open_store(f"{server}/a.zarr")
    document = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(document.replace('"complete": true', '"complete": false'))
    with pytest.raises(DataError, match="the store is unfinished"):
        open_store(f"{server}/a.zarr")


def problem(url: str, **options: str) -> tuple[str, str]:
    with pytest.raises(DataError) as error:
        open_store(url, **options)
    (p,) = error.value.problems
    return p.found, p.fix


@pytest.mark.parametrize("engine", [{}, {"engine": "zarr"}, {"engine": "netcdf4"}])
def test_what_a_server_may_answer(tmp_path, server, engine):
    assert problem(f"{server}/secret/a.zarr", **engine)[0].startswith("access denied")
    assert "credentials" in problem(f"{server}/login/a.zarr", **engine)[1]
    assert problem(f"{server}/broken/a.zarr", **engine)[0].startswith("cannot be reached")
    found = problem(f"{server}/nowhere/a.zarr", **engine)[0]
    assert found.startswith(("no such file or folder", "not a zarr store"))


def test_nobody_answers(tmp_path):
    pytest.importorskip("aiohttp")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        port = httpd.server_address[1]
    found, fix = problem(f"http://127.0.0.1:{port}/a.zarr")
    assert found.startswith("cannot be reached")
    assert "network" in fix


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/a.zarr", "s3fs"), ("gs://bucket/a.zarr", "gcsfs")])
def test_a_backend_that_is_not_installed(url, package):
    try:
        __import__(package)
    except ImportError:
        found, fix = problem(url)
        assert "cannot be read here" in found
        assert fix == f"pip install {package}"
    else:
        pytest.skip(f"{package} is installed")


def test_a_protocol_that_nobody_knows():
    found, _ = problem("carrier-pigeon://roof/a.zarr")
    assert found == "Protocol not known: carrier-pigeon"
