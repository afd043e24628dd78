"""Masks and depth layers: read from every layout, kept in checkpoints, compared; NaN is legal under a mask and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ace_core.calendar import TimeAxis
from ace_core.data.alike import require_alike
from ace_core.data.config import ConcatConfig, DataLoaderConfig, DatasetConfig, InferenceDataLoaderConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.gaps import Gaps, require_finite
from ace_core.data.inference import open_inference
from ace_core.data.loader import Loader, make_loader
from ace_core.data.packed import PackedSchema
from ace_core.data.perturbation import Sea
from ace_core.data.store import open_store
from ace_core.dataset_info import DatasetInfo
from ace_core.depth import DepthLayers
from ace_core.errors import DataError
from ace_core.grid import LatLonGrid
from ace_core.spatial_mask import SpatialMasks
from ace_core.vertical import HybridSigma

LAYOUTS = [("packed", {}), ("zarr", {"zarr_format": 2}), ("zarr", {"zarr_format": 3}), ("netcdf", {}), ("folder", {})]
NAMES = ("zos", "thetao_1", "surface_temperature", "thetao_0", "global_mean_co2")
CHANNELS = [4, 3, 0, 2]  # of NAMES but the last, in the fixture's fields


def problem(error) -> tuple[str, str, str, str]:
    (p,) = error.value.problems
    return p.where, p.found, p.expected, p.fix


@pytest.mark.parametrize(("layout", "options"), LAYOUTS)
def test_reads_masks_and_depth_layers(sea, write, tmp_path, layout, options):
    info = open_store(write[layout](sea, tmp_path / "store", **options)).info
    assert set(info.masks.masks) == {"mask_0", "mask_1", "mask_zos"}
    for name, mask in info.masks.masks.items():
        assert mask.dtype == torch.float32
        np.testing.assert_array_equal(mask, sea.statics[name])
    np.testing.assert_array_equal(info.masks.of("thetao_1"), sea.statics["mask_1"])
    assert info.masks.of("surface_temperature") is None
    assert isinstance(info.vertical, DepthLayers)
    assert info.vertical.interfaces.tolist() == [0.0, 10.0, 50.0]
    np.testing.assert_array_equal(info.vertical.floor, sea.statics["deptho"])
    # Written out: a floor at 500 m leaves both layers whole, one at 30 m cuts the lower to 20 m, one at 7.5 m the upper.
    whole, deep = sea.statics["deptho"] == 500, sea.statics["deptho"] == 30
    shelf, land = sea.statics["deptho"] == 7.5, sea.statics["mask_0"] == 0
    assert min(whole.sum(), deep.sum(), shelf.sum(), land.sum()) > 1
    upper = np.where(land, 0, np.where(shelf, 7.5, 10))
    lower = np.where(whole, 40, np.where(deep, 20, 0))
    np.testing.assert_array_equal(info.vertical.thickness, np.stack([upper, lower]))


def test_data_without_masks_have_none(sample, write, tmp_path):
    info = open_store(write["zarr"](replace(sample, vertical=None), tmp_path / "a.zarr")).info
    assert info.masks.masks == {}
    assert info.vertical is None
    assert DatasetInfo(sample.grid, None, 1, "noleap").masks.masks == {}


def test_layers_without_a_known_floor_are_whole(sea, write, tmp_path):
    layers = open_store(write["netcdf"](sea.without("deptho"), tmp_path / "a.nc")).info.vertical
    assert layers.floor is None
    wet = np.stack([sea.statics["mask_0"], sea.statics["mask_1"]])
    np.testing.assert_array_equal(layers.thickness, wet * np.array([10.0, 40.0])[:, None, None])


def test_packed_layers_bring_their_statics(sea, write, tmp_path):
    bare = sea.without("mask_0", "mask_1", "deptho")
    assert isinstance(bare.vertical, DepthLayers)
    store = open_store(write["packed"](bare, tmp_path / "a.zarr"))
    assert set(store.statics) == {"HGTsfc", "mask_0", "mask_1", "mask_zos", "deptho"}
    np.testing.assert_array_equal(store.info.vertical.thickness, sea.vertical.thickness)
    assert PackedSchema((), sea.grid, None, sea.times, {}, {}, 1).vertical is None


@pytest.mark.parametrize("dtype", ["bool", "i1", "i4", "f8"])
@pytest.mark.parametrize("layout", ["a.nc", "a2.zarr", "a3.zarr"])
def test_masks_of_any_number_type(sea, write, tmp_path, dtype, layout):
    ds = xr.open_dataset(write["netcdf"](sea, tmp_path / "c" / "b.nc"), decode_times=False)
    ds["mask_0"] = ds["mask_0"].astype(dtype)
    ds["mask_0"].encoding = {}
    if layout.endswith(".nc"):
        ds.to_netcdf(tmp_path / layout)
    else:
        ds.to_zarr(tmp_path / layout, zarr_format=int(layout[1]), consolidated=False)
    store = open_store(tmp_path / layout)
    np.testing.assert_array_equal(store.info.masks.masks["mask_0"], sea.statics["mask_0"])
    np.testing.assert_array_equal(store.info.vertical.wet[0], sea.statics["mask_0"])
    np.testing.assert_array_equal(store.read(("mask_0",), 3, 5)[1, 0], sea.statics["mask_0"])


@pytest.mark.parametrize("layout", ["packed", "zarr", "netcdf"])
def test_masks_that_are_none(sea, write, tmp_path, layout):
    """All at once. What rounds to 0 or 1 is a mask: 0.4, 1.4, -0.3."""
    for name, value in (("mask_0", 2.0), ("mask_1", np.nan), ("mask_zos", -0.6)):
        sea.statics[name][2, 2:4] = value
    sea.statics["mask_fine"] = np.resize(np.float32([0.4, 1.4, -0.3, 0.0]), (6, 8))
    sea.fields[:, 1] = 1.0
    path = write[layout](replace(sea, names=("mask_moving", *sea.names[1:]), vertical=None), tmp_path / "s")
    with pytest.raises(DataError) as error:
        open_store(path)
    found = {p.where.removeprefix(f"{path}:"): p.found for p in error.value.problems}
    assert found == {
        "mask_0": "2 value(s) that are neither 0 nor 1, such as 2",
        "mask_1": "2 value(s) that are neither 0 nor 1, such as nan",
        "mask_zos": "2 value(s) that are neither 0 nor 1, such as -0.6",
        "mask_moving": "not a static [latitude, longitude] field of numbers",
    }


def test_fill_value_in_a_mask(sea, write, tmp_path):
    path = write["netcdf"](sea, tmp_path / "a.nc")
    with netCDF4.Dataset(str(path), "a") as file:
        file["mask_1"].missing_value = np.float32(0)
    with pytest.raises(DataError, match=r"mask_1: \d+ value.s. that are neither 0 nor 1, such as nan"):
        open_store(path)


def scalars(sample, path, keep=(), **values):
    """The data set with other ``idepth_k``, or with more scalars, as a netCDF file."""
    ds = xr.open_dataset(path, decode_times=False)
    ds = ds.drop_vars([n for n in ds.variables if n.startswith("idepth") and n not in keep])
    ds.assign({n: ((), v) for n, v in values.items()}).to_netcdf(path.parent / "changed.nc")
    return path.parent / "changed.nc"


ALL = ("idepth_0", "idepth_1", "idepth_2")


@pytest.mark.parametrize(
    ("keep", "values", "found", "expected"),
    [
        (ALL, {"ak_0": 0.0, "bk_0": 1.0}, "two vertical coordinates: ak_k, bk_k and idepth_k", "either of them"),
        (ALL, {"bk_1": 1.0}, "two vertical coordinates: ak_k, bk_k and idepth_k", "either of them"),
        (ALL[::2], {}, "interfaces idepth_[0, 2]", "idepth_0..idepth_N without holes"),
        (ALL[1:], {}, "interfaces idepth_[1, 2]", "idepth_0..idepth_N without holes"),
        (ALL[:1], {}, "interfaces idepth_[0]", "for at least one layer"),
        (ALL[:2], {}, "masks mask_[0, 1] for 1 layers between idepth_0 and idepth_1", "mask_0..mask_0 without holes"),
        (ALL, {"idepth_3": 90.0}, "masks mask_[0, 1] for 3 layers between idepth_0 and idepth_3", "mask_0..mask_2"),
        ((), {"idepth_0": 9.0, "idepth_1": 4.0, "idepth_2": 0.0}, "idepth_k are 9, 4, 0", "increase downwards"),
        (ALL[1:], {"idepth_0": np.nan}, "idepth_k are nan, 10, 50", "increase downwards"),
    ],
)
def test_depth_layers_that_are_none(sea, write, tmp_path, keep, values, found, expected):
    path = scalars(sea, write["netcdf"](sea, tmp_path / "a.nc"), keep, **values)
    with pytest.raises(DataError) as error:
        open_store(path)
    where, said, wanted, fix = problem(error)
    assert (where, said) == (str(path), found)
    assert expected in wanted
    assert fix


@pytest.mark.parametrize("layout", ["zarr", "netcdf"])
@pytest.mark.parametrize("lost", [("mask_0",), ("mask_1",), ("mask_0", "mask_1")])
def test_depth_layers_without_masks(sea, write, tmp_path, lost, layout):
    with pytest.raises(DataError, match=r"for 2 layers between idepth_0 and idepth_2") as error:
        open_store(write[layout](sea.without(*lost), tmp_path / "a"))
    assert "write one static mask_k per layer" in problem(error)[3]


@pytest.mark.parametrize("layout", ["packed", "zarr", "netcdf"])
def test_sea_floor_that_moves(sea, write, tmp_path, layout):
    layers = replace(sea.vertical, floor=None)
    moving = replace(sea.without("deptho"), names=("deptho", *sea.names[1:]), vertical=layers)
    with pytest.raises(DataError, match=r":deptho: not a static .latitude, longitude. field of numbers"):
        open_store(write[layout](moving, tmp_path / "a"))
    store = open_store(write[layout](replace(moving, vertical=None), tmp_path / "b"))
    assert "deptho" in store.names  # without layers it is a variable like any other


def test_later_files_need_neither_masks_nor_layers(sea, write, tmp_path):
    write["netcdf"](sea.part(0, 9), tmp_path / "a.nc")
    rest = write["netcdf"](sea.part(9, 23).without("mask_0", "mask_1", "mask_zos", "deptho"), tmp_path / "b.nc")
    store = open_store(tmp_path)
    np.testing.assert_array_equal(store.info.vertical.thickness, sea.vertical.thickness)
    np.testing.assert_array_equal(store.info.masks.masks["mask_zos"], sea.statics["mask_zos"])
    np.testing.assert_array_equal(store.read(sea.names, 0, 23), sea.fields)
    assert store.statics["HGTsfc"].shape == (6, 8)
    with pytest.raises(DataError, match="for 2 layers"):
        open_store(rest)


# --- checkpoints


def through_a_file(info: DatasetInfo, path) -> DatasetInfo:
    torch.save(info.state(), path)
    return DatasetInfo.from_state(torch.load(path, weights_only=True))


@pytest.mark.parametrize("floor", [True, False])
def test_state_of_an_ocean(sea, write, tmp_path, floor):
    info = open_store(write["zarr"](sea if floor else sea.without("deptho"), tmp_path / "a.zarr")).info
    again = through_a_file(info, tmp_path / "info.pt")
    assert (again.timestep, again.calendar) == (21600, "noleap")
    assert isinstance(again.vertical, DepthLayers)
    assert torch.equal(again.vertical.interfaces, info.vertical.interfaces)
    assert torch.equal(again.vertical.wet, info.vertical.wet)
    assert torch.equal(again.vertical.thickness, info.vertical.thickness)
    assert (again.vertical.floor is not None) == floor
    assert list(again.masks.masks) == list(info.masks.masks)
    assert all(torch.equal(again.masks.masks[n], m) for n, m in info.masks.masks.items())


def test_state_of_an_atmosphere_and_of_before_there_were_masks(tmp_path):
    sigma = HybridSigma((100.0, 50.0, 0.0), (0.0, 0.25, 1.0))
    grid = LatLonGrid.gaussian(6, 8)
    info = DatasetInfo(grid, sigma, 21600, "noleap", SpatialMasks({"mask_2d": torch.eye(6, 8)}))
    again = through_a_file(info, tmp_path / "info.pt")
    assert again.vertical == sigma
    assert torch.equal(again.masks.masks["mask_2d"], torch.eye(6, 8))
    old = {k: v for k, v in info.state().items() if k != "masks"}
    assert DatasetInfo.from_state(old).vertical == sigma
    assert DatasetInfo.from_state(old).masks.masks == {}
    assert DatasetInfo.from_state(old | {"vertical": None}).vertical is None


# --- alike


def flipped(sample, name, y, x):
    field = sample.statics[name].copy()
    field[y, x] = 1 - field[y, x]
    return replace(sample, statics=sample.statics | {name: field})


def deeper(sample):
    return replace(sample, vertical=replace(sample.vertical, interfaces=torch.tensor([0.0, 10.0, 60.0])))


CHANGES = {
    "mask": (lambda s: flipped(s, "mask_zos", 1, [1, 2]), "mask_zos differs in 2 of 48 cells", "mask_zos"),
    "wet": (lambda s: flipped(s, "mask_1", 3, 3), "mask_1 differs in 1 of 48 cells", "mask_1"),
    "floor": (lambda s: flipped(s, "deptho", 0, 0), "deptho differs in 1 of 48 cells", "deptho"),
    "no floor": (lambda s: s.without("deptho"), "no deptho", "deptho"),
    "no mask": (lambda s: s.without("mask_zos"), "no mask_zos", "mask_zos"),
    "one mask more": (
        lambda s: replace(s, statics=s.statics | {"mask_2d": s.statics["mask_0"]}),
        "mask_2d",
        "no mask_2d",
    ),
    "depths": (deeper, "vertical is idepth [0.0, 10.0, 60.0]", "vertical idepth [0.0, 10.0, 50.0]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_stores_that_are_not_alike(sea, write, tmp_path, change):
    changed, found, expected = CHANGES[change]
    a, b = (open_store(write["zarr"](s, tmp_path / n)) for s, n in ((sea, "a.zarr"), (changed(sea), "b.zarr")))
    require_alike(a, a)  # NaN of the sea floor equals NaN
    with pytest.raises(DataError) as error:
        require_alike(a, b)
    assert problem(error)[:3] == (b.path, found, f"{expected} as in {a.path}")


def test_alike_says_everything_at_once(sea, sample, write, tmp_path):
    a, b = write["zarr"](sea, tmp_path / "a.zarr"), write["netcdf"](sample, tmp_path / "b.nc")
    with pytest.raises(DataError) as error:
        open_dataset(
            ConcatConfig(concat=[DatasetConfig(data_path=str(p)) for p in (a, b)]), ("surface_temperature",), 2
        )
    _, found, expected, _ = problem(error)
    assert found == ("vertical is ((100.0, 50.0, 0.0), (0.0, 0.25, 1.0)); no deptho; no mask_0; no mask_1; no mask_zos")
    assert expected.startswith("vertical idepth [0.0, 10.0, 50.0]; deptho; mask_0; mask_1; mask_zos as in")


# --- NaN


@pytest.fixture(params=["packed", "netcdf"])
def written(request, sea, write, tmp_path):
    return lambda name="s": str(write[request.param](sea, tmp_path / name))


def test_nan_under_a_mask_stays(sea, written):
    config = DataLoaderConfig(dataset={"data_path": written()}, batch_size=4, num_data_workers=1)
    loader = make_loader(config, NAMES, 3, train=True, seed=3)
    for batch, wanted in zip(loader.batches(1), loader.order(1).reshape(-1, 4), strict=True):
        assert batch.data_mask is None
        for row, start in enumerate(wanted):
            expected = sea.fields[start : start + 3, CHANNELS]
            assert 0 < np.isnan(expected).sum() < expected.size
            np.testing.assert_array_equal(batch.fields.tensor[row, :, :4], expected)
    loader.close()


PLACES = {
    "wet cell": (2, "mask_0", 1, np.nan, "or NaN where the variable's mask is 0"),
    "another layer's land": (3, "mask_1", 1, np.nan, "or NaN where the variable's mask is 0"),
    "no mask": (0, "mask_0", 0, np.nan, "finite numbers"),
    "infinity on land": (4, "mask_zos", 0, np.inf, "finite numbers"),
    "minus infinity at sea": (4, "mask_zos", 1, -np.inf, "finite numbers"),
}


@pytest.mark.parametrize("place", PLACES)
def test_any_other_nan_is_refused(sea, written, place):
    channel, mask, inside, value, expected = PLACES[place]
    cells = np.argwhere(sea.statics[mask] == inside)
    (y, x), (y2, x2) = cells[3], cells[5]
    sea.fields[9, channel, [y, y2], [x, x2]] = value
    path = written()
    dataset = open_dataset(DatasetConfig(data_path=path, subset={"start": 2, "stop": 9}), NAMES, 2)
    loader = Loader(dataset, 3, train=False)
    batches = loader.batches()
    next(batches)
    next(batches)
    with pytest.raises(DataError) as error:
        next(batches)
    where, found, wanted, _ = problem(error)
    assert where == f"{path}:{sea.names[channel]}"
    lat, lon = f"{sea.grid.lat[y]:g}", f"{sea.grid.lon[x]:g}"
    assert found == f"{value} at 2001-01-03T12:00:00, lat {lat}, lon {lon} (2 such cells in this field)"
    assert expected in wanted


def test_infinities_of_both_signs_do_not_hide(sea, written):
    (y, x), (y2, x2) = np.argwhere(sea.statics["mask_0"] == 0)[[1, 2]]
    sea.fields[1, 2, y, x], sea.fields[1, 2, y2, x2] = np.inf, -np.inf
    dataset = open_dataset(DatasetConfig(data_path=written()), ("thetao_0",), 2)
    with pytest.raises(DataError, match=r"thetao_0: inf at .*2 such cells"):
        next(Loader(dataset, 1, train=False).batches())


def test_allow_nan(sea, written):
    sea.fields[1, 0, 2, 2] = np.nan
    path = written()
    config = DataLoaderConfig(dataset={"data_path": path}, batch_size=2)
    batch = next(make_loader(config, NAMES, 2, train=False, allow_nan=True).batches())
    np.testing.assert_array_equal(batch.fields["surface_temperature"][0], sea.fields[:2, 0])
    sea.fields[1, 0, 2, 2] = np.inf  # allowed is what fill_nans_on_normalize fills
    config = DataLoaderConfig(dataset={"data_path": written("other")}, batch_size=2)
    with pytest.raises(DataError, match="surface_temperature: inf at"):
        next(make_loader(config, NAMES, 2, train=False, allow_nan=True).batches())


def test_rollouts_take_nan_under_masks(sea, written):
    four = {"perturbations": {"sst": [{"type": "constant", "config": {"amplitude": 4}}]}}
    names = ("thetao_1", "zos", "ocean_fraction")

    def opened(**more):
        config = {"dataset": {"data_path": path}, "start_indices": {"list": [2, 0]}} | four
        return open_inference(InferenceDataLoaderConfig.model_validate(config), names, 3, 3, sea=Sea("zos"), **more)

    path = written()
    (window,) = opened().windows()
    ocean = sea.fields[2:6, 1] > 0.5
    warm = sea.fields[2:6, 4] + np.where(ocean, np.float32(4), np.float32(0))
    np.testing.assert_array_equal(window.fields["zos"][0], warm)
    np.testing.assert_array_equal(window.fields["thetao_1"][1], sea.fields[:4, 3])
    np.testing.assert_array_equal(opened().initial_condition().fields["zos"][0, 0], warm[0])
    y, x = np.argwhere(sea.statics["mask_1"] == 1)[3]
    sea.fields[3, 3, y, x] = np.nan
    path = written("other")
    opened().initial_condition()
    with pytest.raises(DataError, match=r"thetao_1: nan at 2001-01-02T00:00:00.*1 such cells"):
        next(opened().windows())
    (window,) = opened(allow_nan=True).windows()
    np.testing.assert_array_equal(window.fields["thetao_1"][0], sea.fields[2:6, 3])


class _Nowhere:
    """What an error asks of a store."""

    path = "here"
    times = TimeAxis(np.arange(2, dtype=np.int64) * 3600, "noleap")
    info = DatasetInfo(LatLonGrid.gaussian(2, 3), None, 3600, "noleap")


NUMBERS = st.sampled_from([0.0, 1.0, 3e38, np.nan, np.inf, -np.inf])


@settings(max_examples=300, deadline=None)
@given(
    values=hnp.arrays(np.float32, (2, 2, 2, 2, 3), elements=NUMBERS, fill=st.just(1.0)),
    needed=hnp.arrays(bool, (2, 2, 3)),
    all_of_second=st.booleans(),
)
def test_refuses_exactly_what_is_wrong(values, needed, all_of_second):
    """Against the definition: infinity anywhere, NaN where a number is needed. The sum of two 3e38 overflows."""
    everything = np.ones_like(needed)
    gaps = [Gaps(np.ones(2, bool), needed), Gaps(np.ones(2, bool), None if all_of_second else needed)]
    wanted = np.stack([needed, everything if all_of_second else needed])[:, None]
    wrong = np.isinf(values) | (np.isnan(values) & wanted)
    arguments = torch.from_numpy(values), ("a", "b"), [_Nowhere] * 2, gaps, np.array([[0, 3600], [3600, 7200]])
    if not wrong.any():
        require_finite(*arguments)
        return
    row, step, channel, y, x = np.argwhere(wrong)[0]
    with pytest.raises(DataError) as error:
        require_finite(*arguments)
    where, found, _, _ = problem(error)
    assert where == f"here:{'ab'[channel]}"
    assert found.startswith(f"{values[row, step, channel, y, x]} at 1970-01-01T0{row + step}:00:00, lat ")
    assert f"({wrong[row, step, channel].sum()} such cells" in found
