"""Raw files as the models of ACE groups write them, a number per variable, and what the training store must hold of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ace_core.config import load
from ace_core.data.store import open_store
from ace_core.errors import ConfigError
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.l137 import L137_AK, L137_BK
from ace_core.prepare.prepare import prepare
from ace_core.prepare.vertical import INDEX_SETS

LV, G = 2.5e6, 9.80665
T = 6


def hybrid(n: int) -> tuple[np.ndarray, np.ndarray]:
    s = np.linspace(0, 1, n + 1)
    return 2e4 * s * (1 - s) + 100 * (1 - s), s**2


def store(
    path: Path,
    fields: dict[str, float | np.ndarray],
    levels: int = 0,
    hours: int = 6,
    first: int = 6,
    lat: np.ndarray | None = None,
    **more: Any,
) -> None:
    """A zarr store or netCDF file. A number fills the globe, an array [K] the levels; everything 12x24, T times."""
    lat = np.linspace(-82.5, 82.5, 12) if lat is None else lat
    lon = 7.5 + 15.0 * np.arange(24)
    data: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            data[name] = (
                ("time", "lev", "lat", "lon"),
                np.broadcast_to(value[:, None, None], (T * (6 // hours), levels, len(lat), 24)).astype("f4"),
            )
        else:
            data[name] = (("time", "lat", "lon"), np.full((T * (6 // hours), len(lat), 24), value, "f4"))
    n = T * (6 // hours)
    time = ("time", first + hours * np.arange(n), {"units": "hours since 2001-01-01", "calendar": "standard"})
    ds = xr.Dataset(data | more, {"time": time, "lat": lat, "lon": lon})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".nc":
        ds.to_netcdf(path)
    else:
        ds.to_zarr(path, consolidated=False)


def flat(values: dict[str, float]) -> dict[str, Any]:
    return {k: (("lat", "lon"), np.full((12, 24), v, "f4")) for k, v in values.items()}


def column(n: int) -> dict[str, np.ndarray]:
    """Temperature, and species that sum to 1e-3 (1 + level/n)."""
    k = np.arange(n) / n
    return {"t": 200 + 90 * k, "q": 1e-3 * (1 + k)}


RADIATION = {
    "DLWRFsfc": 340.0,
    "DSWRFsfc": 180.0,
    "DSWRFtoa": 341.0,
    "ULWRFsfc": 390.0,
    "ULWRFtoa": 240.0,
    "USWRFsfc": 25.0,
    "USWRFtoa": 100.0,
}


def fv3(folder: Path, kind: str, n: int) -> None:
    c = column(n)
    ak, bk = hybrid(n)
    state = {
        "PRESsfc": 98000.0, "surface_temperature": 290.0, "land_fraction": 0.3, "ocean_fraction": 0.6, "sea_ice_fraction": 0.1,
        "TMP850": 280.0, "h500": 5600.0, "air_temperature_at_two_meters": 288.0, "specific_humidity_at_two_meters": 0.008,
        "eastward_wind_at_ten_meters": 3.0, "northward_wind_at_ten_meters": -1.0,
        "air_temperature": c["t"], "eastward_wind": 0 * c["t"] + 7, "northward_wind": 0 * c["t"] - 2,
        "specific_humidity": 0.9 * c["q"], "cloud_water_mixing_ratio": 0.04 * c["q"], "cloud_ice_mixing_ratio": 0.03 * c["q"],
        "graupel_mixing_ratio": 0.01 * c["q"], "rain_mixing_ratio": 0.01 * c["q"], "snow_mixing_ratio": 0.01 * c["q"],
        "pressure_thickness_of_atmospheric_layer": np.diff(ak) + np.diff(bk) * 98000.0,
    }  # fmt: skip
    fluxes = RADIATION | {
        "PRATEsfc": 3e-5,
        "LHTFLsfc": 80.0,
        "SHTFLsfc": 20.0,
        "GRAUPELsfc": 1e-6,
        "ICEsfc": 2e-6,
        "SNOWsfc": 3e-6,
    }
    store(folder / "full_state.zarr", state, n, **flat({"HGTsfc": 230.0}))
    store(folder / "fluxes_2d.zarr", fluxes)
    xr.Dataset(
        {"global_mean_co2": (("time",), np.full(T, 4e-4))},
        {"time": ("time", 6 + 6 * np.arange(T), {"units": "hours since 2001-01-01"})},
    ).to_zarr(folder / "scalar.zarr", consolidated=False)
    xr.Dataset({"ak": ("phalf", ak), "bk": ("phalf", bk)}).to_netcdf(folder / "vertical_coordinate.nc")


def cm4(folder: Path, kind: str, n: int) -> None:
    c = column(n)
    ak, bk = hybrid(n)
    state = {
        "PRESsfc": 98000.0, "surface_temperature": 290.0, "TMP850": 280.0, "h500": 5600.0, "air_temperature_at_two_meters": 288.0,
        "specific_humidity_at_two_meters": 0.008, "eastward_wind_at_ten_meters": 3.0, "northward_wind_at_ten_meters": -1.0,
        "air_temperature": c["t"], "eastward_wind": 0 * c["t"] + 7, "northward_wind": 0 * c["t"] - 2,
        "specific_humidity": 0.9 * c["q"], "cloud_water_mixing_ratio": 0.06 * c["q"], "cloud_ice_mixing_ratio": 0.04 * c["q"],
    }  # fmt: skip
    fluxes = RADIATION | {
        "PRATEsfc": 3e-5, "SHTFLsfc": 20.0, "surface_evaporation_rate": 80.0 / LV, "total_frozen_precipitation_rate": 6e-6,
        "eastward_surface_wind_stress": 0.05, "northward_surface_wind_stress": 0.01,
    }  # fmt: skip
    store(folder / "full_state.zarr", state, n, **flat({"HGTsfc": 230.0}))
    store(folder / "fluxes_2d.zarr", fluxes)
    store(folder / "land_static.zarr", {}, **flat({"land_fraction": 0.95}))
    store(folder / "ice_6hourly.zarr", {"sea_ice_fraction": 0.1})  # more than there is room for beside the land
    xr.Dataset(
        {"carbon_dioxide": (("time",), np.full(T, 4e-4))},
        {"time": ("time", 6 + 6 * np.arange(T), {"units": "hours since 2001-01-01"})},
    ).to_zarr(folder / "scalar.zarr", consolidated=False)
    xr.Dataset({"ak": ("phalf", ak), "bk": ("phalf", bk)}).to_netcdf(folder / "vertical_coordinate.nc")


def e3sm(folder: Path, kind: str, n: int) -> None:
    c = column(n)
    ak, bk = hybrid(n)
    state = {
        "PS": 98000.0, "TS": 290.0, "LANDFRAC": 0.3, "OCNFRAC": 0.6, "ICEFRAC": 0.1, "QREFHT": 0.008, "TREFHT": 288.0,
        "T": c["t"], "U": 0 * c["t"] + 7, "V": 0 * c["t"] - 2, "Q": 0.9 * c["q"], "CLDLIQ": 0.05 * c["q"], "CLDICE": 0.03 * c["q"], "RAINQM": 0.02 * c["q"],
    }  # fmt: skip
    fluxes = {
        "LHFLX": 80.0, "SHFLX": 20.0, "SOLIN": 341.0, "FSNTOA": 241.0, "FLUT": 240.0, "FSDS": 180.0, "FSNS": 155.0, "FLDS": 340.0,
        "FLNS": 50.0, "PRECT": 3e-8, "PRECSC": 2e-9, "PRECSL": 4e-9,
    }  # fmt: skip
    lat = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(12)[0]))
    store(folder / "6hourly_instant/a.nc", state, n, lat=lat, hyai=(("ilev",), ak / 1e5), hybi=(("ilev",), bk))
    store(folder / "6hourly/a.nc", fluxes, lat=lat)
    xr.Dataset(flat({"PHIS": 230.0 * G}), {"lat": lat, "lon": 7.5 + 15.0 * np.arange(24)}).to_netcdf(folder / "c.nc")
    (folder / "time_invariant").mkdir()
    (folder / "c.nc").rename(folder / "time_invariant/c.nc")


def era5(folder: Path, kind: str, n: int) -> None:
    """Hourly, from north to south, both poles; SST missing over land."""
    c = column(n)
    lat = np.linspace(90, -90, 13)
    mean = {
        "mean_surface_latent_heat_flux": -80.0, "mean_surface_sensible_heat_flux": -20.0,
        "mean_top_downward_short_wave_radiation_flux": 341.0, "mean_top_net_short_wave_radiation_flux": 241.0,
        "mean_top_net_long_wave_radiation_flux": -240.0, "mean_surface_downward_short_wave_radiation_flux": 180.0,
        "mean_surface_net_short_wave_radiation_flux": 155.0, "mean_surface_downward_long_wave_radiation_flux": 340.0,
        "mean_surface_net_long_wave_radiation_flux": -50.0, "mean_total_precipitation_rate": 3e-5, "mean_snowfall_rate": 6e-6,
        "mean_vertically_integrated_moisture_divergence": 2e-6, "mean_eastward_gravity_wave_surface_stress": 0.02,
        "mean_eastward_turbulent_surface_stress": 0.03, "mean_northward_gravity_wave_surface_stress": 0.0,
        "mean_northward_turbulent_surface_stress": 0.01,
    }  # fmt: skip
    surface = {
        "surface_pressure": 98000.0, "skin_temperature": 290.0, "2m_temperature": 288.0, "2m_dewpoint_temperature": 283.15,
        "10m_u_component_of_wind": 3.0, "10m_v_component_of_wind": -1.0, "mean_sea_level_pressure": 101000.0,
    }  # fmt: skip
    time = 6 * T
    # Two halves of every parallel: land with neither sea ice nor SST, ocean with a tenth of ice.
    east = np.arange(24) >= 12
    sst = np.broadcast_to(np.where(east, 295.0, np.nan), (time, 13, 24)).astype("f4")
    ice = np.broadcast_to(np.where(east, 0.1, np.nan), (time, 13, 24)).astype("f4")
    land = np.broadcast_to(np.where(east, 0.0, 1.0), (13, 24)).astype("f4")
    more = {
        "sea_surface_temperature": (("time", "lat", "lon"), sst),
        "sea_ice_cover": (("time", "lat", "lon"), ice),
        "land_sea_mask": (("lat", "lon"), land),
        "geopotential_at_surface": (("lat", "lon"), np.full((13, 24), 230 * G, "f4")),
    }
    # The flux of hour h is that of all of them but one number, which grows: its mean over six hours is known.
    store(folder / "full_37-1h-0p25deg-chunk-1.zarr-v3", mean | surface, hours=1, first=1, lat=lat, **more)
    with xr.open_zarr(folder / "full_37-1h-0p25deg-chunk-1.zarr-v3", consolidated=False, decode_times=False) as ds:
        rain = ds["mean_total_precipitation_rate"].load() * (1 + 0.1 * np.arange(time))[:, None, None]
        rain.astype("f4").to_dataset(name="mean_total_precipitation_rate").drop_vars(("lat", "lon")).to_zarr(
            folder / "full_37-1h-0p25deg-chunk-1.zarr-v3",
            mode="r+",
            consolidated=False,
            region={"time": slice(0, time)},
        )
    levels = {
        "temperature": c["t"], "specific_humidity": 0.9 * c["q"], "specific_cloud_liquid_water_content": 0.04 * c["q"],
        "specific_cloud_ice_water_content": 0.03 * c["q"], "specific_rain_water_content": 0.02 * c["q"],
        "specific_snow_water_content": 0.01 * c["q"], "u_component_of_wind": 0 * c["t"] + 7, "v_component_of_wind": 0 * c["t"] - 2,
    }  # fmt: skip
    store(folder / "model-level-1h-0p25deg.zarr-v1", levels, n, hours=1, first=1, lat=lat)


FAMILIES = {
    "fv3gfs": (fv3, "fv3gfs_63"), "shield": (fv3, "shield_79"), "cm4": (cm4, "cm4_33"), "e3sm": (e3sm, "e3smv2_72"), "era5": (era5, "era5_137"),
}  # fmt: skip
COMMON = RADIATION | {
    "PRESsfc": 98000.0, "surface_temperature": 290.0, "PRATEsfc": 3e-5, "LHTFLsfc": 80.0, "SHTFLsfc": 20.0, "HGTsfc": 230.0,
    "total_frozen_precipitation_rate": 6e-6, "eastward_wind_3": 7.0, "northward_wind_7": -2.0, "TMP2m": 288.0,
}  # fmt: skip
OWN: dict[str, dict[str, float]] = {
    "fv3gfs": {"ocean_fraction": 0.6, "UGRD10m": 3.0, "global_mean_co2": 4e-4, "h500": 5600.0},
    "shield": {"ocean_fraction": 0.6, "Q2m": 0.008},
    "cm4": {"ocean_fraction": 0.0, "sea_ice_fraction": 0.05, "eastward_surface_stress": 0.05, "global_mean_co2": 4e-4},
    "e3sm": {"ocean_fraction": 0.6, "Q2m": 0.008},
    "era5": {
        "eastward_surface_stress": 0.05,
        "PRMSL": 101000.0,
        "tendency_of_total_water_path_due_to_advection": -2e-6,
    },
}


def config_of(kind: str, folder: Path, **source: Any) -> PrepareConfig:
    grid = {"nlat": 6, "nlon": 12}
    runs = {"a": {"data_path": str(folder)}}
    plain = {"name": kind, "source": {"kind": kind, **source}, "runs": runs, "grids": {"6x12": grid}, "shard_steps": 2}
    return PrepareConfig.model_validate(plain)


@pytest.mark.parametrize("kind", FAMILIES)
def test_family(kind, tmp_path):
    write, indices = FAMILIES[kind]
    edges = np.array(INDEX_SETS[indices])
    n = int(edges[-1])
    write(tmp_path / "raw", kind, n)
    done = prepare(config_of(kind, tmp_path / "raw"), tmp_path)
    s = open_store(done.runs["6x12/a"])
    expected = COMMON | OWN[kind]
    if kind == "era5":
        expected.pop("PRATEsfc")
        assert len(s.times) == T
    for name, value in expected.items():
        found = s.read([name], 0, len(s.times))
        np.testing.assert_allclose(found, value, rtol=2e-6, atol=1e-9, err_msg=name)
    ak, bk = (np.array(L137_AK), np.array(L137_BK)) if kind == "era5" else hybrid(n)
    dp = np.diff(ak) + np.diff(bk) * 98000.0
    for stem, native, scale in (
        ("air_temperature", column(n)["t"], 1.0),
        ("specific_total_water", column(n)["q"], 1.0),
    ):
        for k in range(8):
            part = slice(edges[k], edges[k + 1])
            weights = dp[part].copy()
            if kind == "era5" and k == 0:
                weights[0] = ak[1] / 2  # under the lid
            np.testing.assert_allclose(
                s.read([f"{stem}_{k}"], 0, 2), scale * np.average(native[part], weights=weights), rtol=3e-6
            )
    path = s.read(["total_water_path"], 1, 2)
    lid = np.array([ak[1] / 2 if kind == "era5" else dp[0], *dp[1:]])
    np.testing.assert_allclose(path, (column(n)["q"] * lid).sum() / G, rtol=3e-6)
    if kind != "era5":
        advection = s.read(["tendency_of_total_water_path_due_to_advection"], 0, 2)
        np.testing.assert_allclose(advection, -80.0 / LV + 3e-5, rtol=1e-3)  # the path is still


def test_era5_hours_surfaces_and_seas(tmp_path):
    era5(tmp_path / "raw", "era5", 137)
    done = prepare(config_of("era5", tmp_path / "raw"), tmp_path)
    s = open_store(done.runs["6x12/a"])
    assert [str(t) for t in s.times.to_cftime()[:2]] == ["2001-01-01 06:00:00", "2001-01-01 12:00:00"]
    # Hours 1..6 have rain 3e-5 (1 + 0.1 i), i = 0..5: mean 3e-5 * 1.25, labelled with the last.
    np.testing.assert_allclose(s.read(["PRATEsfc"], 0, 2)[:, 0, 0, 0], [3e-5 * 1.25, 3e-5 * 1.85], rtol=1e-6)
    sst, ocean, ice, merged, dew = s.read(
        [
            "sea_surface_temperature",
            "ocean_fraction",
            "sea_ice_fraction",
            "merged_sea_surface_and_skin_temperature",
            "Q2m",
        ],
        0,
        1,
    )[0]
    assert np.isnan(sst[:, 1:5]).all()
    np.testing.assert_allclose(sst[:, 7:11], 295.0, rtol=3e-7)
    np.testing.assert_allclose(ocean[:, 1:5], 0.0, atol=1e-6)
    np.testing.assert_allclose(ocean[:, 7:11], 0.9, rtol=1e-6)
    np.testing.assert_allclose(ice[:, 7:11], 0.1, rtol=1e-6)
    np.testing.assert_allclose(merged[:, 1:5], 290.0, rtol=3e-7)
    np.testing.assert_allclose(merged[:, 7:11], 295.0, rtol=3e-7)
    # 10 degrees of dew point are 12.27 hPa of vapour (WMO tables, to 0.3 %).
    np.testing.assert_allclose(dew, 0.622 * 1227 / (98000 - 0.378 * 1227), rtol=4e-3)


def test_era5_in_longer_steps_keeps_its_gaps(tmp_path):
    """SST is missing over land in the six-hourly store, and so in that of half days."""
    era5(tmp_path / "raw", "era5", 137)
    config = config_of("era5", tmp_path / "raw").model_dump(mode="json") | {"time_coarsen": {"factor": 2}}
    done = prepare(PrepareConfig.model_validate(config), tmp_path)
    s = open_store(done.runs["coarse/6x12/a"])
    sst, rain = s.read(["sea_surface_temperature", "PRATEsfc"], 0, 1)[0]
    assert np.isnan(sst[:, 1:5]).all()
    np.testing.assert_allclose(sst[:, 7:11], 295.0, rtol=3e-7)
    np.testing.assert_allclose(rain, 3e-5 * 1.55, rtol=1e-6)


def test_a_family_is_changed_key_by_key(tmp_path):
    """What the data lack is taken out, what is called otherwise renamed; the rest is the family's."""
    e3sm(tmp_path / "raw", "e3sm", 72)
    (tmp_path / "raw/6hourly_instant").rename(tmp_path / "raw/instant")
    config = config_of(
        "e3sm",
        tmp_path / "raw",
        streams={"state": {"path": "instant/*.nc"}},
        fields={"Q2m": None, "TS": {"TS": 1.0}, "surface_temperature": None},
        roundtrip=None,
    )
    s = open_store(prepare(config, tmp_path).runs["6x12/a"])
    assert "Q2m" not in s.names
    assert "surface_temperature" not in s.names
    np.testing.assert_allclose(s.read(["TS"], 0, 1), 290.0)


def test_another_variable_beside_the_family_s_is_said_to_be_added_or_in_its_place(tmp_path):
    """Rain from the accumulated variable: in silence it would be twice as much."""
    with pytest.raises(ValueError, match=r"fields.PRATEsfc: flux/tp would be added to the family's flux/mean_total_pr"):
        config_of("era5", tmp_path, fields={"PRATEsfc": {"flux/tp": 0.2778}})
    with pytest.raises(ValueError, match=r"levels.fields.air_temperature: t would be added"):
        config_of("e3sm", tmp_path, levels={"fields": {"air_temperature": {"t": 1.0}}})
    instead = {"PRATEsfc": {"flux/tp": 0.2778, "flux/mean_total_precipitation_rate": None}}
    assert config_of("era5", tmp_path, fields=instead).source.fields["PRATEsfc"] == {"flux/tp": 0.2778}


def test_a_definition_that_does_not_hold_together(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text(
        """name: x
source:
  kind: generic
  streams: {s: {path: a.nc, sampling: average}}
  fields: {TMP2m: {t2m: 1.0}}
  levels: {indices: era5_138, surface_pressure: ps, ak: [0, 1], bk: [0, 1], fields: {air_temperature: {t: 1}}}
  derived: [total_water_path, surface_fraction]
runs: {a: {data_path: raw}}
"""
    )
    with pytest.raises(ConfigError) as error:
        load(PrepareConfig, file)
    text = str(error.value)
    assert f"{file}:4 source.streams.s.sampling: 'average'" in text
    assert "'era5_138' is no published set; they are fv3gfs_63" in text
    file.write_text(
        """name: x
source:
  kind: generic
  streams: {s: {path: a.nc}}
  fields: {sea_ice_fraction: {ci: 1.0}}
  derived: [surface_fractions, advective_tendency]
runs: {a: {years: 3}}
truth: {}
"""
    )
    with pytest.raises(ConfigError) as error:
        load(PrepareConfig, file)
    text = str(error.value)
    assert "derived surface_fractions needs land_fraction" in text
    assert "needs levels.fields.specific_total_water" in text
