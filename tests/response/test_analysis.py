"""Diagnostics of climates whose response is written down: what comes out is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ace_core.constants import LATENT_HEAT_OF_VAPORIZATION as LV
from ace_core.constants import SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE as CP
from ace_core.grid import F64
from ace_core.response.adiabat import lifted, mid_pressures
from ace_core.response.analysis import analyse
from ace_core.response.climates import Climates, Findings, Scalar
from ace_core.response.compare import climates_of_maps
from ace_core.response.diagnostic import Setting
from ace_core.response.extremes import rate_at
from ace_core.response.ingredients import EXCEEDANCES
from ace_core.response.moisture import clausius_clapeyron
from ace_core.response.regions import regions
from ace_core.response.scalars import seed_scalars
from tests.response.climate import CONFIG, GRID, ar1, climates, surface

OCEAN, LAND = surface().ocean, surface().land
TEMPERATURES = (222.0, 210.0, 222.0, 240.0, 257.0, 270.0, 285.0, 297.0)
WATER = (3e-6, 3e-6, 2e-5, 2e-4, 1e-3, 4e-3, 9e-3, 1.6e-2)
LATITUDE = np.broadcast_to(GRID.lat[:, None], GRID.shape)


def baseline() -> dict[str, F64 | float]:
    out: dict[str, F64 | float] = {f"air_temperature_{k}": t for k, t in enumerate(TEMPERATURES)}
    out |= {f"specific_total_water_{k}": q for k, q in enumerate(WATER)}
    return out | {"surface_temperature": 298.0, "PRESsfc": 1.01e5}


def warmed(arm: dict[str, F64 | float], by: F64 | float, names: tuple[str, ...] = ()) -> dict[str, F64 | float]:
    wanted = names or tuple(n for n in arm if "temperature" in n)
    return {n: x + by if n in wanted else x for n, x in arm.items()}


def found(c: Climates, reference: Climates | None = None) -> Findings:
    return analyse(c, CONFIG, 0, reference)


def scalars(findings: Findings, label: str = "p4k") -> dict[str, Scalar]:
    return {s.name: s for s in findings.scalars if s.label == label}


def test_land_warms_twice_as_much_in_every_band() -> None:
    by = np.where(OCEAN, 1.0, 2.0)
    s = scalars(found(climates({"baseline": baseline(), "p4k": warmed(baseline(), by)})))
    for band in ("tropics", "subtropics", "midlatitudes"):
        assert s[f"land_warming/{band}"].estimate == pytest.approx(2.0, abs=1e-10)
        assert s[f"ocean_warming/{band}"].estimate == pytest.approx(1.0, abs=1e-10)
        assert s[f"land_ocean_warming_ratio/{band}"].estimate == pytest.approx(2.0, abs=1e-9)
        for season in ("", "/DJF", "/MAM", "/JJA", "/SON"):
            assert s[f"land_ocean_contrast/{band}{season}"].estimate == pytest.approx(2.0, abs=1e-9)
    area = float((GRID.area_weights * by).sum())
    assert s["global_warming"].estimate == pytest.approx(area, abs=1e-10)
    assert s["column_warming/air_temperature_3"].estimate == pytest.approx(area, abs=1e-10)
    assert s["realised_sst_forcing"].estimate == pytest.approx(1.0, abs=1e-10)


def test_the_seeds_scalars_are_those_that_a_training_logs() -> None:
    """One formula: estimates of the analysis, numbers without intervals, and means of maps worked out here."""
    rng = np.random.Generator(np.random.Philox(8))
    arm = baseline() | {"total_water_path": 25.0}
    warm = {n: np.asarray(x) + rng.uniform(0.5, 3.0, GRID.shape) for n, x in arm.items()}
    c = climates({"baseline": arm, "p4k": warm})
    s, logged = scalars(found(c)), seed_scalars(CONFIG, c.means(), 1)
    assert len(logged) == 21
    for name, value in logged.items():
        assert s[name].estimate == pytest.approx(value, rel=1e-9), name
    by = warm["air_temperature_2"] - np.asarray(TEMPERATURES[2])
    w = GRID.area_weights * (OCEAN & (np.abs(LATITUDE) < 15))
    assert logged["tropical_ocean_upper_warming"] == pytest.approx(float((by * w).sum() / w.sum()), rel=1e-9)
    assert "total_water_path_sensitivity" not in seed_scalars(CONFIG, climates({"baseline": baseline()}).means(), 0)


def test_sea_ice_is_land_to_the_seed_and_neither_to_the_contrast() -> None:
    config = CONFIG.model_copy(
        update={"latitude_bands": [CONFIG.latitude_bands[0].model_copy(update={"lat_max": 90.0})]}
    )
    by = np.where(OCEAN, 1.0, np.where(LAND, 2.0, 5.0))
    c = climates({"baseline": baseline(), "p4k": warmed(baseline(), by)}, config=config)
    s = {x.name: x for x in analyse(c, config, 0).scalars}
    w = GRID.area_weights[~OCEAN]
    assert s["land_warming/tropics"].estimate == pytest.approx(float((w * by[~OCEAN]).sum() / w.sum()), abs=1e-10)
    assert s["land_ocean_contrast/tropics"].estimate == pytest.approx(2.0, abs=1e-9)


def test_two_metres_stand_for_the_surface_where_they_are_predicted() -> None:
    arm = baseline() | {"TMP2m": 299.0}
    warm = warmed(arm, 1.0) | {"TMP2m": 299.0 + np.where(OCEAN, 2.0, 3.0)}
    s = scalars(found(climates({"baseline": arm, "p4k": warm})))
    assert s["land_ocean_contrast/tropics"].estimate == pytest.approx(1.5, abs=1e-9)
    assert s["land_ocean_warming_ratio/tropics"].estimate == pytest.approx(1.0, abs=1e-9)


def test_upper_over_surface_over_tropical_ocean() -> None:
    warm = warmed(warmed(baseline(), 1.0), np.where(OCEAN, 1.3, 7.0), ("air_temperature_2",))
    s = scalars(found(climates({"baseline": baseline(), "p4k": warm})))
    assert s["tropical_ocean_upper_warming"].estimate == pytest.approx(2.3, abs=1e-10)
    assert s["tropical_ocean_surface_warming"].estimate == pytest.approx(1.0, abs=1e-10)
    assert s["vertical_warming_ratio_tropical_ocean"].estimate == pytest.approx(2.3, abs=1e-9)
    assert s["tropical_amplification/air_temperature_2"].estimate == pytest.approx(2.3, abs=1e-9)


def test_identical_climates_do_not_warm_and_have_no_ratio() -> None:
    findings = found(climates({"baseline": baseline(), "p4k": baseline()}))
    s = scalars(findings)
    for name in ("global_warming", "land_warming/tropics", "column_warming/air_temperature_0"):
        assert (s[name].estimate, s[name].low, s[name].high, s[name].status) == (0.0, 0.0, 0.0, "ok")
    for name in (
        "land_ocean_warming_ratio/tropics",
        "land_ocean_contrast/tropics/JJA",
        "moist_adiabat_ratio/air_temperature_2",
        "total_water_path_sensitivity",
    ):
        if name in s:
            assert math.isnan(s[name].estimate)
            assert s[name].status.startswith("insufficient")
    assert findings.significant is not None
    assert not findings.significant.any()


def test_energy_and_the_water_cycle() -> None:
    arm = baseline() | {
        "net_energy_flux_toa_into_atmosphere": 1.0,
        "net_shortwave_flux_toa_into_atmosphere": 240.0,
        "net_longwave_flux_toa_into_atmosphere": -239.0,
        "net_energy_flux_sfc_into_atmosphere": -1.0,
        "atmospheric_radiative_cooling": 100.0,
        "SHTFLsfc": 20.0,
        "PRATEsfc": 80.0 / LV,
    }
    warm = warmed(arm, 2.0) | {
        "net_energy_flux_toa_into_atmosphere": -2.0,
        "net_shortwave_flux_toa_into_atmosphere": 241.0,
        "net_longwave_flux_toa_into_atmosphere": -243.0,
        "net_energy_flux_sfc_into_atmosphere": 2.1,
        "atmospheric_radiative_cooling": 103.0,
        "SHTFLsfc": 19.0,
        "PRATEsfc": 84.5 / LV,
    }
    s = scalars(found(climates({"baseline": arm, "p4k": warm})))
    for name, value in {
        "cess_feedback": -1.5,
        "cess_feedback_shortwave": 0.5,
        "cess_feedback_longwave": -2.0,
        "energy_closure": 0.1,
        "hydrological_sensitivity": 100 * 4.5 / 80 / 2,
        "latent_heating_change": 4.5,
        "radiative_cooling_change": 4.0,
        "atmospheric_energy_residual": 0.5,
    }.items():
        assert s[name].estimate == pytest.approx(value, rel=1e-9), name


def test_water_vapour_grows_by_seven_percent_per_kelvin() -> None:
    arm = baseline() | {"total_water_path": 25.0, "relative_humidity_3": 40.0}
    warm = warmed(arm, 3.0) | {"total_water_path": 25.0 * math.exp(0.21), "relative_humidity_3": 41.5}
    warm["specific_total_water_5"] = WATER[5] * math.exp(0.18)
    warm["surface_temperature"] = 298.0 + 2.5
    s = scalars(found(climates({"baseline": arm, "p4k": warm})))
    assert s["total_water_path_sensitivity"].estimate == pytest.approx(7.0, rel=1e-9)
    assert s["total_water_path_sensitivity_tropical_ocean"].estimate == pytest.approx(8.4, rel=1e-9)
    assert s["humidity_sensitivity/specific_total_water_5"].estimate == pytest.approx(6.0, rel=1e-9)
    assert s["relative_humidity_change/3"].estimate == pytest.approx(1.5, rel=1e-9)


def test_moist_static_energy_closes_where_land_is_drier() -> None:
    t, q = np.where(OCEAN, 2.0, 3.0), np.where(OCEAN, 1e-3, 1e-3 - CP / LV)
    arm = baseline() | {"near_surface_moist_enthalpy": CP * TEMPERATURES[7] + LV * WATER[7]}
    warm = dict(arm) | {"air_temperature_7": TEMPERATURES[7] + t, "specific_total_water_7": WATER[7] + q}
    warm["near_surface_moist_enthalpy"] = arm["near_surface_moist_enthalpy"] + CP * t + LV * q
    s = scalars(found(climates({"baseline": arm, "p4k": warm})))
    assert s["tropical_mse_closure"].estimate == pytest.approx(0.0, abs=1e-9)
    assert s["tropical_mse_contrast_temperature"].estimate == pytest.approx(CP, rel=1e-9)
    assert s["tropical_mse_contrast_humidity"].estimate == pytest.approx(-CP, rel=1e-9)


@pytest.mark.parametrize("factor", [1.0, 0.6])
def test_p_minus_e_follows_its_own_pattern(factor: float) -> None:
    wet = 2e-5 * np.cos(np.deg2rad(3.0 * LATITUDE))
    warm_air = 2.0 + np.abs(LATITUDE) / 45.0
    arm = baseline() | {"precipitation_minus_evaporation": wet}
    alpha = clausius_clapeyron(np.asarray(TEMPERATURES[7]))
    warm = warmed(arm, warm_air) | {"precipitation_minus_evaporation": wet * (1 + factor * alpha * warm_air)}
    findings = found(climates({"baseline": arm, "p4k": warm}))
    s = scalars(findings)
    assert s["p_minus_e_scaling_slope"].estimate == pytest.approx(factor, rel=1e-9)
    assert s["p_minus_e_scaling_correlation"].estimate == pytest.approx(1.0, rel=1e-9)
    dims, scaled, _ = findings.profiles["p_minus_e_scaling"]
    assert dims == ("perturbation", "lat")
    assert scaled[0] == pytest.approx(86400 * (wet * alpha * warm_air)[:, 0], rel=1e-9)


def test_percentiles_of_an_exponential_tail_are_exact() -> None:
    thresholds = np.array(list(EXCEEDANCES.values()))
    for scale in (6.0, 11.0):
        share = np.exp(-thresholds / scale)
        for percentile in (90.0, 99.0, 99.9):
            assert rate_at(share, percentile) == pytest.approx(-scale * math.log(1 - percentile / 100), rel=1e-12)
    assert math.isnan(float(rate_at(np.exp(-thresholds / 0.05), 99.0)))  # drier than the least threshold
    assert math.isnan(float(rate_at(np.full(24, 0.5), 99.0)))  # wetter than the largest


def test_extremes_grow_by_what_their_scale_grows() -> None:
    thresholds = EXCEEDANCES.items()
    arm = baseline() | {n: math.exp(-t / 8.0) for n, t in thresholds}
    warm = warmed(arm, 3.0) | {n: math.exp(-t / (8.0 * math.exp(0.18))) for n, t in thresholds}
    c = climates({"baseline": arm, "p4k": warm})
    s = scalars(found(c))
    for percentile in ("99", "99.9"):
        assert s[f"extreme_precipitation_sensitivity/global/{percentile}"].estimate == pytest.approx(6.0, rel=1e-9)
    assert "24-hourly" in s["extreme_precipitation_sensitivity/global/99"].long_name
    six = scalars(found(replace(c, timestep=21600.0)))
    assert "6-hourly" in six["extreme_precipitation_sensitivity/global/99"].long_name
    monthly = found(replace(c, timestep=30 * 86400.0))
    assert not any("extreme" in x.name for x in monthly.scalars)
    assert "longer than a day" in monthly.skipped["extreme_precipitation_sensitivity"]


# --- the moist adiabat


def test_pseudo_adiabats_of_the_literature() -> None:
    """A saturated parcel of 293 K at 1000 hPa; numbers of MetPy's tests: the same equation, other constants."""
    levels = np.array([1000.0, 800.0, 600.0, 500.0, 400.0]) * 100
    start = np.array(293.0)
    saturated = np.array(1.0)  # more water than any air holds
    got = lifted(start, saturated, np.array(1e5), levels)
    assert got == pytest.approx([293.0, 284.64, 272.81, 264.42, 252.91], abs=0.04)


def test_a_parcel_keeps_its_potential_and_equivalent_potential_temperature() -> None:
    """Bolton 1980, eq. 43, an independent formula, holds to a few tenths of a kelvin along the whole ascent."""
    temperature, water = np.array([300.0, 304.0]), np.array([0.016, 0.020])
    pressure = np.array([1.0e5, 1.0e5])
    levels = np.array([[9.9e4, 8e4, 6e4, 4e4, 3e4, 2e4]] * 2)
    got = lifted(temperature, water, pressure, levels)
    assert got[:, 0] == pytest.approx(temperature * 0.99 ** (287.05 / CP), rel=1e-9)  # below saturation: dry

    def equivalent(t: F64, p: F64) -> F64:
        e = 6.112 * np.exp(17.67 * (t - 273.15) / (t - 29.65))
        r = 0.622 * e / (p / 100 - e)
        theta = t * (1e5 / p) ** (0.2854 * (1 - 0.28 * r))
        return theta * np.exp((3.376 / t - 0.00254) * 1e3 * r * (1 + 0.81 * r))

    along = equivalent(got[:, 1:], levels[:, 1:])
    assert np.ptp(along, axis=1).max() < 3.0
    assert (got[1] - got[0])[-1] > 2.0 * (temperature[1] - temperature[0])


def test_a_column_on_its_own_adiabat_has_ratio_one() -> None:
    """Both arms' columns are lifted from their own surface air: the model warms as the adiabat does, at every level."""
    setting = Setting.of(climates({"baseline": baseline(), "p4k": baseline()}), CONFIG)
    middle = mid_pressures(setting, np.array(1.01e5))
    arms = []
    for t, q in ((297.0, 0.0160), (300.0, 0.0192)):
        profile = lifted(np.array(t), np.array(q), middle[7], middle)
        arm = baseline() | {f"air_temperature_{k}": float(profile[k]) for k in range(2, 8)}
        arms.append(arm | {"specific_total_water_7": q})
    findings = found(climates({"baseline": arms[0], "p4k": arms[1]}))
    s = scalars(findings)
    for k in range(2, 7):
        assert s[f"moist_adiabat_ratio/air_temperature_{k}"].estimate == pytest.approx(1.0, rel=1e-3)
    assert 2.0 < s["moist_adiabat_amplification/air_temperature_2"].estimate < 3.0
    model, adiabat = (findings.profiles[f"tropical_{x}_warming"][1][0, 2:] for x in ("column", "adiabat"))
    assert model == pytest.approx(adiabat, rel=1e-3)


# --- what is missing, what is compared


def test_what_is_missing_is_named_and_never_a_number() -> None:
    findings = found(climates({"baseline": baseline(), "p4k": warmed(baseline(), 1.0)}))
    s = scalars(findings)
    for name in ("cess_feedback", "energy_closure", "hydrological_sensitivity", "p_minus_e_scaling_slope"):
        assert name not in s
        assert findings.skipped[name].startswith("needs ")
    assert "PRATEsfc" in findings.skipped["hydrological_sensitivity"]


def test_a_run_without_winter_has_none() -> None:
    c = climates({"baseline": baseline(), "p4k": warmed(baseline(), 1.0)}, months=9)
    c = replace(
        c,
        features=replace(
            c.features,
            values=c.features.values[:, :, 2:],
            steps=c.features.steps[:, 2:],
            seasons=c.features.seasons[2:],
            years=c.features.years[2:],
        ),
    )
    findings = found(c)
    assert findings.skipped["land_ocean_contrast/tropics/DJF"] == "the run has no DJF"
    assert scalars(findings)["land_ocean_contrast/tropics/JJA"].estimate == pytest.approx(1.0)


def test_a_reference_stands_beside_every_scalar_and_map() -> None:
    arm = baseline()
    ours = climates({"baseline": arm, "p4k": warmed(arm, np.where(OCEAN, 1.0, 2.0))})
    theirs = climates({"baseline": arm, "other": arm, "p4k": warmed(arm, np.where(OCEAN, 1.0, 1.5))}, months=24)
    findings = found(ours, theirs)
    s = scalars(findings)
    assert s["land_ocean_warming_ratio/tropics"].reference == pytest.approx(1.5)
    assert s["land_ocean_contrast/tropics/MAM"].reference == pytest.approx(1.5)
    _, rmse, attributes = findings.profiles["reference/root_mean_square_error"]
    i = attributes["names"].split().index("air_temperature_7")
    share = float(GRID.area_weights[~OCEAN].sum())
    assert rmse[0, i] == pytest.approx(0.5 * math.sqrt(share), rel=1e-9)
    assert findings.profiles["reference/mean_error"][1][0, i] == pytest.approx(0.5 * share, rel=1e-9)
    assert findings.profiles["reference/pattern_correlation"][1][0, i] == pytest.approx(1.0, rel=1e-9)
    assert "reference/p4k" not in findings.skipped


def test_maps_alone_are_a_reference_too() -> None:
    arm = baseline() | {"total_water_path": 25.0}
    c = climates({"baseline": arm, "p4k": warmed(arm, 1.0)})
    response = {n: np.where(OCEAN, 2.0, 3.0) for n in arm if "temperature" in n}
    response["total_water_path"] = np.full(GRID.shape, 20.0 * math.expm1(0.14))
    control = {"total_water_path": np.full(GRID.shape, 20.0)}
    reference = climates_of_maps(c, {"p4k": (response, control)}, regions(CONFIG, surface(), GRID)[1])
    s = scalars(found(c, reference))
    assert s["land_ocean_warming_ratio/midlatitudes"].reference == pytest.approx(1.5)
    near = float((GRID.area_weights * response["air_temperature_7"]).sum())
    assert s["total_water_path_sensitivity"].reference == pytest.approx(14.0 / near, rel=1e-9)
    assert math.isnan(s["land_ocean_contrast/tropics/JJA"].reference)  # maps have no seasons


def test_years_are_told_apart() -> None:
    drift = np.repeat([0.0, 1.0, 2.0], 12)
    c = climates(
        {"baseline": baseline(), "p4k": warmed(baseline(), 2.0)},
        months=36,
        noise=lambda n, g: g * drift * (n == "air_temperature_7"),
    )
    dims, values, _ = found(c).profiles["yearly/global_warming"]
    assert dims == ("perturbation", "year")
    assert values[0] == pytest.approx([2.0, 3.0, 4.0])
    assert found(c).profiles["year"][1].tolist() == [2000.0, 2001.0, 2002.0]


def test_significance_finds_the_half_that_warms() -> None:
    """Noise of batches is the same everywhere, so a map is all or nothing; half of the cells respond and are found, the others are not."""
    by = np.where(OCEAN, 3.0, 0.0)
    x = ar1((2, 1, 60), 0.2, 3)
    c = climates({"baseline": baseline(), "p4k": warmed(baseline(), by)}, months=60, noise=lambda n, g: x[g])
    findings = found(c)
    assert findings.significant is not None
    assert findings.map_dof == 16
    got = findings.significant[0, c.names.index("air_temperature_7")]
    assert got[OCEAN].all()
    assert not got[~OCEAN].any()


def test_few_batches_have_no_significance() -> None:
    findings = found(climates({"baseline": baseline(), "p4k": warmed(baseline(), 1.0)}, months=3, slices=3))
    assert findings.significant is None
    assert findings.skipped["significance"].startswith("insufficient: ")
