"""What the peer's data set makes of ``isel`` -> tests/golden/isel.npz, with the data that it was given.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_isel.py

An ensemble of three members, in netCDF and zarr: fields [time, sample, lat, lon], one without the dimension (netCDF only: the peer's zarr
path refuses it), a static of each member. Also which selections the peer refuses.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from fme.core.dataset.schedule import IntSchedule
from fme.core.dataset.xarray import XarrayDataConfig, XarrayDataset
from fme.core.typing_ import Slice

T, S, Y, X = 5, 3, 4, 8
CASES = {"first": {"sample": 0}, "last": {"sample": 2}, "from the end": {"sample": -2}}
REFUSED = {"beyond": {"sample": 3}, "latitude": {"lat": 0}, "time": {"time": 0}, "unknown": {"member": 0}}
REFUSED |= {"range beyond": {"sample": Slice(3, 13)}}


def write(folder: Path, names: tuple[str, ...], values: dict[str, np.ndarray]) -> None:
    dims = {"a": ("time", "sample", "lat", "lon"), "one": ("time", "lat", "lon"), "static": ("sample", "lat", "lon")}
    data = {n: (dims[n], values[n]) for n in names} | {f"{c}k_{k}": float(k) for c in "ab" for k in range(2)}
    time = ("time", 6 * np.arange(T), {"units": "hours since 2001-01-01", "calendar": "noleap"})
    coords = {"time": time, "sample": np.arange(S), "lat": np.linspace(-60, 60, Y), "lon": 45.0 * np.arange(X)}
    ds = xr.Dataset(data, coords)
    ds.to_netcdf(folder / "data.nc")
    ds.drop_vars("one", errors="ignore").to_zarr(folder / "data.zarr", zarr_format=3, consolidated=False)


def main() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (T, S, Y, X), "one": (T, Y, X), "static": (S, Y, X)}
    values = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    out, refused = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), tuple(values), values)

        def read(isel, engine, names):
            config = XarrayDataConfig(
                temporary, "data.nc" if engine == "netcdf4" else "data.zarr", engine=engine, isel=isel
            )
            dataset = XarrayDataset(config, list(names), IntSchedule.from_constant(2))
            return dataset[1][0]

        for engine, names in (("netcdf4", ("a", "one", "static")), ("zarr", ("a", "static"))):
            for case, isel in CASES.items():
                data = read(isel, engine, names)
                out |= {f"{engine} {case} {n}": np.array(data[n]) for n in names}
            for case, isel in REFUSED.items():
                try:
                    read(isel, engine, ("a",))
                except ValueError as error:
                    refused[f"{engine} {case}"] = str(error)
    path = Path(__file__).parents[2] / "tests" / "golden" / "isel.npz"
    np.savez_compressed(path, cases=json.dumps(CASES), refused=json.dumps(refused), **values, **out)


if __name__ == "__main__":
    main()
