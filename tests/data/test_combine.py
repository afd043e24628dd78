"""Merged, repeated, overwritten and filled data, and repeated intervals: against the numbers computed another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ace_core.calendar import TimeAxis
from ace_core.config import load
from ace_core.data.config import (
    DataLoaderConfig,
    DatasetConfig,
    InferenceDataLoaderConfig,
    MergeConfig,
    RepeatedInterval,
)
from ace_core.data.dataset import open_dataset
from ace_core.data.inference import open_inference
from ace_core.data.loader import Loader, make_loader
from ace_core.data.subset import window_starts
from ace_core.data.units import same_units
from ace_core.errors import AceError, ConfigError, DataError

NAMES = ("air_temperature_1", "HGTsfc", "surface_temperature", "global_mean_co2", "PRESsfc")


def everything(sample, names, start, stop) -> np.ndarray:
    """[stop - start, C, Y, X]."""
    fields = {n: sample.fields[start:stop, c] for c, n in enumerate(sample.names)}
    fields |= {n: np.broadcast_to(v, (stop - start, 6, 8)) for n, v in sample.statics.items()}
    fields |= {n: np.broadcast_to(v[start:stop, None, None], (stop - start, 6, 8)) for n, v in sample.series.items()}
    return np.stack([fields[n] for n in names], axis=1)


def only(sample, *names):
    return sample.without(*{*sample.names, *sample.statics, *sample.series} - set(names))


def opened(config, names=NAMES, n=2, **options):
    return open_dataset(DataLoaderConfig(dataset=config, batch_size=1).dataset, names, n, **options)


def problem(error) -> tuple[str, str, str, str]:
    (p,) = error.value.problems
    return p.where, p.found, p.expected, p.fix


# --- merge


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_merging_gives_what_one_store_gives(sample, write, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("m")
    every = [*sample.names, "HGTsfc", "global_mean_co2"]
    owner = data.draw(st.lists(st.integers(0, 2), min_size=len(every), max_size=len(every)))
    # Every source needs a field of its own to be told apart from a store of coordinates.
    shares = [[n for n, k in zip(every, owner, strict=True) if k == source] for source in range(3)]
    shares = [share for share in shares if set(share) & set(sample.names)]
    owned = [n for share in shares for n in share]
    names = [n for n in data.draw(st.permutations(every)) if n in owned]
    layouts = data.draw(st.permutations(["packed", "zarr", "netcdf"]))
    paths = [
        write[layout](only(sample, *share), folder / f"{layout}.x")
        for layout, share in zip(layouts, shares, strict=False)
    ]
    dataset = opened({"merge": [{"data_path": str(p)} for p in paths]}, names, 3)
    assert len(dataset) == 21
    out = np.full((3, len(names), 6, 8), -1, np.float32)
    for index in (0, 7, 20):
        dataset.read(index, out)
        np.testing.assert_array_equal(out, everything(sample, names, index, index + 3))


def test_first_source_wins_and_labels_unite(sample, write, tmp_path):
    a = write["packed"](only(sample, "PRESsfc", "surface_temperature"), tmp_path / "a.zarr")
    changed = only(sample, "PRESsfc", "air_temperature_1")
    changed.fields[:] += 5
    b = write["zarr"](changed, tmp_path / "b.zarr")
    config = {
        "merge": [{"data_path": str(a), "labels": ["era5", "obs"]}, {"data_path": str(b), "labels": ["obs", "aimip"]}]
    }
    names = ("air_temperature_1", "PRESsfc", "surface_temperature")
    dataset = opened(config, names)
    assert dataset.info.labels == ("aimip", "era5", "obs")
    (batch,) = Loader(dataset, 22, train=False).batches()
    assert batch.labels == (("aimip", "era5", "obs"),) * 22
    assert batch.data_mask is None
    np.testing.assert_array_equal(batch.fields["PRESsfc"][:, 0], sample.fields[:22, 2])
    np.testing.assert_array_equal(batch.fields["air_temperature_1"][:, 0], sample.fields[:22, 4] + 5)


def test_concat_under_merge(sample, write, tmp_path):
    """Seams are those of the parts; sources may be cut differently if the windows are the same."""
    left, right = only(sample, "PRESsfc"), only(sample, "surface_temperature", "HGTsfc")
    for i, (a, b) in enumerate([(0, 9), (9, 23)]):
        write["packed"](left.part(a, b), tmp_path / f"l{i}.zarr")
    for i, (a, b) in enumerate([(0, 9), (9, 15), (14, 23)]):
        write["netcdf"](right.part(a, b), tmp_path / f"r{i}.nc")
    config = {
        "merge": [
            {"concat": [{"data_path": str(tmp_path / f"l{i}.zarr")} for i in range(2)]},
            {"concat": [{"data_path": str(tmp_path / f"r{i}.nc")} for i in range(3)]},
        ]
    }
    names = ("HGTsfc", "PRESsfc", "surface_temperature")
    dataset = opened(config, names, 2)
    starts = [*range(8), *range(9, 22)]
    assert len(dataset) == len(starts)
    for i, start in enumerate(starts):
        np.testing.assert_array_equal(dataset.times(i), sample.times.values[start : start + 2])
        out = np.zeros((2, 3, 6, 8), np.float32)
        dataset.read(i, out)
        np.testing.assert_array_equal(out, everything(sample, names, start, start + 2))
    # One more step per window moves the seams apart: 14..16 is one window of the first source and none of the second.
    with pytest.raises(DataError) as error:
        opened(config, names, 3)
    where, found, expected, fix = problem(error)
    assert str(tmp_path / "r1.nc") in where
    assert found == "18 times, 2001-01-01T06:00:00 .. 2001-01-06T06:00:00"
    assert expected.startswith("19 times, 2001-01-01T06:00:00 .. 2001-01-06T06:00:00, as in ")
    assert "subset" in fix


def test_what_a_merged_source_lacks(sample, write, tmp_path):
    """With a member of one source lacking a variable; NaN and False there, and only there."""
    left, right = only(sample, "PRESsfc", "HGTsfc"), only(sample, "surface_temperature", "ocean_fraction")
    a = [write["packed"](left.part(0, 9), tmp_path / "l0.zarr")]
    a.append(write["packed"](left.without("HGTsfc").part(9, 23), tmp_path / "l1.zarr"))
    b = [
        write["packed"](right.part(0, 9), tmp_path / "r0.zarr"),
        write["packed"](right.part(9, 23), tmp_path / "r1.zarr"),
    ]
    config = {"merge": [{"concat": [{"data_path": str(p)} for p in paths]} for paths in (a, b)]}
    names = ("surface_temperature", "HGTsfc", "PRESsfc")
    (batch,) = Loader(opened(config, names, allow_missing=True), 21, train=False).batches()
    assert batch.data_mask.tolist() == [[True, True, True]] * 8 + [[True, False, True]] * 13
    np.testing.assert_array_equal(batch.fields["HGTsfc"][:8, 0], np.broadcast_to(sample.statics["HGTsfc"], (8, 6, 8)))
    assert batch.fields["HGTsfc"][8:].isnan().all()
    np.testing.assert_array_equal(batch.fields["surface_temperature"][8:, 1], sample.fields[10:23, 0])
    with pytest.raises(DataError) as error:
        opened(config, names)
    assert problem(error)[:2] == (str(a[1]), "no variable HGTsfc")
    with pytest.raises(DataError, match=r"no variable PRESfc \(did you mean 'PRESsfc'\?\)"):
        opened(config, (*names, "PRESfc"), allow_missing=True)


def test_nan_in_a_merged_source_is_located(sample, write, tmp_path):
    sample.fields[6, 0, 2, 3] = np.nan
    a = write["zarr"](only(sample, "PRESsfc"), tmp_path / "a.zarr")
    b = write["packed"](only(sample, "surface_temperature"), tmp_path / "b.zarr")
    config = {"merge": [{"data_path": str(a)}, {"data_path": str(b)}]}
    names = ("surface_temperature", "PRESsfc")
    with pytest.raises(DataError, match="nan at 2001-01-02T18:00:00") as error:
        list(Loader(opened(config, names), 1, train=False).batches())
    assert problem(error)[0] == f"{b}:surface_temperature"
    rollout = {"dataset": config, "start_indices": {"list": [5]}}
    with pytest.raises(DataError, match="nan at 2001-01-02T18:00:00") as error:
        list(open_inference(InferenceDataLoaderConfig.model_validate(rollout), names, 3, 3).windows())
    assert problem(error)[0] == f"{b}:surface_temperature"


def units_of(path, name, units):
    zarr.open_array(str(path / name), mode="r+").attrs["units"] = units


def test_sources_that_do_not_fit(sample, write, tmp_path):
    a = write["packed"](only(sample, "PRESsfc", "surface_temperature"), tmp_path / "a.zarr")
    b = write["zarr"](only(sample, "surface_temperature", "air_temperature_1"), tmp_path / "b.zarr")
    config = {"merge": [{"data_path": str(a)}, {"data_path": str(b)}]}
    names = ("PRESsfc", "air_temperature_1", "surface_temperature")
    units_of(b, "surface_temperature", "degC")
    with pytest.raises(DataError) as error:
        opened(config, names)
    assert problem(error)[:3] == (
        str(b),
        "surface_temperature is in 'degC'",
        f"surface_temperature in 'K' as in {a}",
    )
    units_of(b, "surface_temperature", "K")
    assert len(opened(config, names)) == 22
    hours = zarr.open_array(str(b / "time"), mode="r+")
    hours[...] = sample.hours + 6
    with pytest.raises(DataError) as error:
        opened(config, names)
    assert problem(error)[1] == "22 times, 2001-01-01T12:00:00 .. 2001-01-06T18:00:00"
    # The same part of time makes them fit.
    subset = {"start_time": "2001-01-01T12", "stop_time": "2001-01-06T12"}
    dataset = opened({"merge": [{"data_path": str(p), "subset": subset} for p in (a, b)]}, names)
    out = np.zeros((2, 3, 6, 8), np.float32)
    dataset.read(4, out)
    np.testing.assert_array_equal(out[:, 0], sample.fields[5:7, 2])
    np.testing.assert_array_equal(out[:, 1], sample.fields[4:6, 4])
    hours.attrs["calendar"] = "360_day"
    with pytest.raises(DataError, match="calendar is 360_day"):
        opened(config, names)
    hours.attrs["calendar"] = "noleap"
    hours[...] = sample.hours * 2
    with pytest.raises(DataError, match="timestep is 43200"):
        opened(config, names)
    lat = zarr.open_array(str(b / "lat"), mode="r+")
    lat[...] = lat[...] * 0.9
    with pytest.raises(DataError, match=r"lat -61\.\d"):
        opened(config, names)


def test_same_unit_in_another_spelling():
    for a, b in [
        ("kg/m2/s", "kg m**-2 s^-1"),
        ("W m-2", "W/m**2"),
        ("kg/kg", "1"),
        ("1/s", "s-1"),
        ("", "Pa"),
        ("unknown", "K"),
        ("mm.day-1", "mm/day"),
    ]:
        assert same_units(a, b), (a, b)
    for a, b in [("K", "degC"), ("Pa", "hPa"), ("kg m-2", "kg m-2 s-1"), ("m/s", "m s"), ("0.1 K", "K")]:
        assert not same_units(a, b), (a, b)


def test_files_of_one_folder_share_units(sample, write, tmp_path):
    path = write["folder"](sample, tmp_path / "f")
    with xr.open_dataset(path / "part1.nc", decode_times=False) as ds:
        changed = ds.load()
    changed["PRESsfc"].attrs["units"] = "hPa"
    changed.to_netcdf(path / "part1.nc")
    dataset = opened({"data_path": str(path)})
    assert len(dataset) == 22  # the others do not say
    dataset.stores[0].close()
    with xr.open_dataset(path / "part2.nc", decode_times=False) as ds:
        changed = ds.load()
    changed["PRESsfc"].attrs["units"] = "Pa"
    changed.to_netcdf(path / "part2.nc")
    with pytest.raises(DataError) as error:
        opened({"data_path": str(path)})
    assert problem(error)[:2] == (f"{path / 'part2.nc'}:PRESsfc", "units 'Pa'")


def test_concat_that_is_not_strict(sample, write, tmp_path, caplog):
    a = write["zarr"](sample.part(0, 9), tmp_path / "a.zarr")
    b = write["zarr"](sample.part(9, 23), tmp_path / "b.zarr")
    units_of(a, "PRESsfc", "Pa")
    units_of(b, "PRESsfc", "hPa")
    members = [{"data_path": str(p)} for p in (a, b)]
    with pytest.raises(DataError, match="PRESsfc is in 'hPa'"):
        opened({"concat": members})
    with caplog.at_level("WARNING", logger="ace"):
        assert len(opened({"concat": members, "strict": False})) == 21
    zarr.open_array(str(b / "time"), mode="r+")[...] *= 2
    with pytest.raises(DataError, match="timestep"):
        opened({"concat": members, "strict": False})


def test_masks_of_both_sources(sea, write, tmp_path):
    """The first source's mask of a name; a variable is checked against its mask wherever that is."""
    air = only(sea, "surface_temperature", "ocean_fraction")
    a = write["packed"](air.__class__(**{**vars(air), "vertical": None}), tmp_path / "a.zarr")
    b = write["packed"](sea.without("surface_temperature", "ocean_fraction"), tmp_path / "b.zarr")
    names = ("zos", "surface_temperature", "thetao_1")
    dataset = opened({"merge": [{"data_path": str(a)}, {"data_path": str(b)}]}, names)
    assert set(dataset.info.masks.masks) == {"mask_0", "mask_1", "mask_zos"}
    assert dataset.info.vertical is not None
    (batch,) = Loader(dataset, 22, train=False).batches()
    np.testing.assert_array_equal(batch.fields["zos"][:, 0], sea.fields[:22, 4])


# --- rollouts


def test_rollout_of_merged_stores(sample, write, tmp_path):
    a = write["zarr"](only(sample, "PRESsfc", "HGTsfc"), tmp_path / "a.zarr")
    b = write["packed"](sample.without("HGTsfc"), tmp_path / "b.zarr")
    config = {
        "dataset": {"merge": [{"data_path": str(a), "labels": ["x"]}, {"data_path": str(b), "labels": ["a"]}]},
        "start_indices": {"times": ["2001-01-02T00:00:00", "2001-01-01T06:00:00"]},
    }
    data = open_inference(InferenceDataLoaderConfig.model_validate(config), NAMES, 5, 2)
    windows = list(data.windows())
    assert [w.labels for w in windows] == [(("a", "x"),) * 2] * 3  # of every window, not of the last source alone
    for i, window in enumerate(windows):
        for row, start in enumerate((3, 0)):
            wanted = everything(sample, NAMES, start + 2 * i, start + min(2 * i + 2, 5) + 1)
            np.testing.assert_array_equal(window.fields.tensor[row], wanted)
    short = write["packed"](sample.part(0, 20), tmp_path / "c.zarr")
    config["dataset"]["merge"][1]["data_path"] = str(short)
    with pytest.raises(DataError) as error:
        open_inference(InferenceDataLoaderConfig.model_validate(config), NAMES, 5, 2)
    assert problem(error)[:2] == (str(short), "20 times, 2001-01-01T06:00:00 .. 2001-01-06T00:00:00")
    config["dataset"]["merge"].append({"concat": [{"data_path": "/x"}]})
    with pytest.raises(ValidationError):
        InferenceDataLoaderConfig.model_validate(config)


# --- one store, changed


def test_repeats_go_on_evenly(sample, write, tmp_path):
    path = str(write["packed"](sample, tmp_path / "a.zarr"))
    dataset = opened({"data_path": path, "n_repeats": 3}, NAMES, 4)
    assert len(dataset) == 3 * 23 - 3
    three = np.concatenate([everything(sample, NAMES, 0, 23)] * 3)
    for i in (0, 21, 22, 44, 65):
        out = np.zeros((4, 5, 6, 8), np.float32)
        dataset.read(i, out)
        np.testing.assert_array_equal(out, three[i : i + 4])
        np.testing.assert_array_equal(dataset.times(i), sample.times.values[0] + 21600 * np.arange(i, i + 4))
    assert dataset.info.calendar == "noleap"
    rollout = {"dataset": {"data_path": path, "n_repeats": 2}, "start_indices": {"list": [20]}}
    (window,) = open_inference(InferenceDataLoaderConfig.model_validate(rollout), NAMES, 20, 20).windows()
    np.testing.assert_array_equal(window.fields.tensor[0], three[20:41])


@pytest.mark.parametrize("layout", ["packed", "zarr", "netcdf"])
def test_overwritten_values(sample, write, tmp_path, layout):
    path = str(write[layout](sample, tmp_path / "a"))
    overwrite = {
        "constant": {"surface_temperature": 288.5, "global_mean_co2": 1e-3},
        "multiply_scalar": {"PRESsfc": 0.01, "HGTsfc": 2.0},
    }
    names = (*NAMES, "z", "x", "y")
    dataset = opened({"data_path": path, "overwrite": overwrite}, names)
    (batch,) = Loader(dataset, 22, train=False).batches()
    fields = batch.fields
    assert (fields["surface_temperature"] == 288.5).all()
    assert (fields["global_mean_co2"] == np.float32(1e-3)).all()
    np.testing.assert_array_equal(fields["PRESsfc"][:, 0], sample.fields[:22, 2] * np.float32(0.01))
    np.testing.assert_array_equal(fields["HGTsfc"][3, 1], 2 * sample.statics["HGTsfc"])
    np.testing.assert_array_equal(fields["air_temperature_1"][:, 1], sample.fields[1:23, 4])
    x, y, z = (fields[n][5, 1].double().numpy() for n in "xyz")
    np.testing.assert_allclose(x**2 + y**2 + z**2, 1, rtol=1e-6)
    lat, lon = np.meshgrid(sample.grid.lat, sample.grid.lon, indexing="ij")
    np.testing.assert_allclose(np.rad2deg(np.arcsin(z)), lat, atol=1e-4)
    np.testing.assert_allclose(np.rad2deg(np.arctan2(y, x)) % 360, lon, atol=1e-4)


def test_a_factor_may_change_the_units(sample, write, tmp_path):
    a = write["zarr"](sample.part(0, 9), tmp_path / "a.zarr")
    b = write["zarr"](sample.part(9, 23), tmp_path / "b.zarr")
    units_of(a, "PRESsfc", "Pa")
    units_of(b, "PRESsfc", "hPa")
    other = {"data_path": str(b), "overwrite": {"multiply_scalar": {"PRESsfc": 100.0}}}
    dataset = opened({"concat": [{"data_path": str(a)}, other]})
    (batch,) = Loader(dataset, 21, train=False).batches()
    np.testing.assert_array_equal(batch.fields["PRESsfc"][8:, 0], sample.fields[9:22, 2] * np.float32(100.0))


def test_overwrite_that_cannot_act(sample, write, tmp_path):
    path = str(write["packed"](sample, tmp_path / "a.zarr"))
    with pytest.raises(DataError, match=r"no variable PRESfc \(did you mean 'PRESsfc'\?\)") as error:
        opened({"data_path": path, "overwrite": {"constant": {"PRESfc": 1.0}}})
    assert problem(error)[0] == f"{path}: overwrite"
    both = {"merge": [{"data_path": path}, {"data_path": path, "overwrite": {"constant": {"PRESsfc": 1.0}}}]}
    with pytest.raises(AceError, match="overwrite of PRESsfc has no effect: an earlier source has the variable"):
        opened(both)
    rollout = {"dataset": both, "start_indices": {"list": [0]}}
    with pytest.raises(ConfigError, match="overwrite of PRESsfc has no effect"):
        open_inference(InferenceDataLoaderConfig.model_validate(rollout), NAMES, 2, 2)
    with pytest.raises(ValidationError, match="PRESsfc: in constant and in multiply_scalar"):
        DatasetConfig(data_path="x", overwrite={"constant": {"PRESsfc": 1}, "multiply_scalar": {"PRESsfc": 1}})


def test_a_product_that_overflows_is_reported(sample, write, tmp_path):
    path = str(write["packed"](sample, tmp_path / "a.zarr"))
    loader = Loader(opened({"data_path": path, "overwrite": {"multiply_scalar": {"PRESsfc": 1e37}}}), 1, train=False)
    for _ in range(2):
        with pytest.raises(DataError, match="PRESsfc: inf at 2001-01-01T06:00:00"):
            list(loader.batches())


@pytest.mark.parametrize("layout", ["packed", "zarr", "netcdf"])
def test_filling_leaves_infinity(sample, write, tmp_path, layout):
    sample.fields[3, 2, 1, 1] = np.nan
    sample.statics["HGTsfc"][0, 0] = np.nan
    path = str(write[layout](sample, tmp_path / "a"))
    fill = {"data_path": path, "fill_nans": {"method": "constant", "value": -5}}
    (batch,) = Loader(opened(fill), 22, train=False).batches()
    assert batch.fields["PRESsfc"][3, 0, 1, 1] == -5
    assert (batch.fields["HGTsfc"][:, :, 0, 0] == -5).all()
    assert int((batch.fields.tensor == -5).sum()) == 2 + 44
    # Filled, then multiplied, as in fme.
    scaled = fill | {"overwrite": {"multiply_scalar": {"PRESsfc": 2}}}
    (batch,) = Loader(opened(scaled), 22, train=False).batches()
    assert batch.fields["PRESsfc"][3, 0, 1, 1] == -10
    sample.fields[8, 2, 1, 1] = np.inf
    path = str(write[layout](sample, tmp_path / "b"))
    with pytest.raises(DataError, match="PRESsfc: inf at 2001-01-03T06:00:00"):
        list(Loader(opened(fill | {"data_path": path}), 22, train=False).batches())


# --- repeated intervals


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 6), start=st.integers(0, 5), rest=st.integers(0, 5), n=st.integers(1, 40))
def test_repeated_interval_by_counting(length, start, rest, n):
    block = start + length + rest
    times = TimeAxis(np.arange(n + 2, dtype=np.int64) * 21600, "noleap")
    wanted = [i for i in range(n) if start <= i % block < start + length]
    ints = RepeatedInterval(interval_length=length, start=start, block_length=block)
    spans = RepeatedInterval(interval_length=f"{6 * length}h", start=f"{6 * start}h", block_length=f"{6 * block}h")
    for subset in (ints, spans):
        if wanted:
            assert window_starts("here", times, 3, subset).tolist() == wanted
        else:
            with pytest.raises(DataError, match="selects no window"):
                window_starts("here", times, 3, subset)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((3, 4, 6), "start 4 and interval_length 3 reach beyond block_length 6"),
        (("2d", "1d", "60h"), "start 1d and interval_length 2d reach beyond block_length 60h"),
        (("2d", 1, 6), "must be all numbers of steps or all time spans"),
        ((0, 0, 6), "must be positive"),
        (("soon", "0h", "6h"), "unit abbreviation w/o a number"),
    ],
)
def test_repeated_intervals_that_make_no_sense(values, message):
    with pytest.raises(ValidationError, match=message):
        RepeatedInterval(**dict(zip(("interval_length", "start", "block_length"), values, strict=True)))


def test_repeated_interval_of_a_store(sample, write, tmp_path):
    path = str(write["packed"](sample, tmp_path / "a.zarr"))
    config = {"data_path": path, "subset": {"interval_length": "1d", "start": "6h", "block_length": "2d"}}
    assert opened(config).start.tolist() == [1, 2, 3, 4, 9, 10, 11, 12, 17, 18, 19, 20]
    config["subset"]["interval_length"] = "7h"
    with pytest.raises(DataError, match="'7h' is no whole number of time steps") as error:
        opened(config)
    assert problem(error)[0] == f"{path} subset.interval_length"


# --- what fme's files say


def test_fme_spelling_of_all_keys(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("""
dataset:
  merge:
    - concat:
        - data_path: /data
          file_pattern: x.zarr
          engine: zarr
          n_repeats: 2
          spatial_dimensions: latlon
          infer_timestep: true
          dtype: float32
          subset: {interval_length: 2d, start: 0d, block_length: 7d}
      strict: true
    - data_path: /other
      overwrite: {constant: {a: 1}, multiply_scalar: {b: 2}}
      fill_nans: {method: constant, value: 0.0}
batch_size: 4
""")
    config = load(DataLoaderConfig, file)
    assert isinstance(config.dataset, MergeConfig)
    assert config.dataset.merge[0].concat[0].subset == RepeatedInterval(
        interval_length="2d", start="0d", block_length="7d"
    )
    assert config.dataset.merge[1].overwrite.names == ("a", "b")
    file.write_text("""dataset:
  merge:
    - {data_path: /a, spatial_dimensions: healpix, isel: {z: 3, time: 1}}
    - {data_path: /b, dtype: float64, infer_timestep: false}
batch_size: 4
""")
    with pytest.raises(ConfigError) as error:
        load(DataLoaderConfig, file)
    found = {p.where.removeprefix(str(file)): f"{p.found} {p.fix}" for p in error.value.problems}
    assert set(found) == {
        ":3 dataset.merge[0].spatial_dimensions",
        ":4 dataset.merge[1].infer_timestep",
        ":4 dataset.merge[1].dtype",
    }
    assert "HEALPix grids are not supported" in found[":3 dataset.merge[0].spatial_dimensions"]


def test_labels_for_all_merged_or_none():
    with pytest.raises(ValidationError, match="some members of merge have labels and some have none"):
        DataLoaderConfig(
            dataset={"merge": [{"data_path": "a", "labels": []}, {"concat": [{"data_path": "b"}]}]}, batch_size=1
        )


def test_ranks_and_workers_of_merged_data(sample, write, tmp_path):
    a = write["packed"](only(sample, "PRESsfc", "HGTsfc"), tmp_path / "a.zarr")
    b = write["zarr"](sample.without("HGTsfc"), tmp_path / "b.zarr")
    config = DataLoaderConfig(
        dataset={"merge": [{"data_path": str(a)}, {"data_path": str(b)}]}, batch_size=4, num_data_workers=2
    )
    whole = [b for e in range(2) for b in make_loader(config, NAMES, 2, train=True, seed=3).batches(e)]
    parts = []
    for rank in range(2):
        loader = make_loader(config, NAMES, 2, train=True, seed=3, rank=rank, world=2)
        parts.append([b for e in range(2) for b in loader.batches(e)])
        loader.close()
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.fields.tensor, torch.cat([first.fields.tensor, second.fields.tensor]))
