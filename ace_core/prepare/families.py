"""Definitions of the model output that ACE groups train on. Names are those of the raw files: for FV3GFS, SHiELD and CM4 of the
regridded zarr stores, for ERA5 of the public ARCO stores, for E3SM of its monthly history files.

A file names a family as ``kind`` and changes what differs: paths of streams, variables it has or lacks (null).
"""

from __future__ import annotations

from typing import Any

from ace_core.constants import GRAVITY, LATENT_HEAT_OF_VAPORIZATION
from ace_core.prepare.definition import Definition
from ace_core.prepare.l137 import L137_AK, L137_BK


def _same(*names: str) -> dict[str, dict[str, float]]:
    return {name: {name: 1.0} for name in names}


def _sum(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


_WINDS = _same("eastward_wind", "northward_wind")
_FLUXES = _same(
    "DLWRFsfc", "DSWRFsfc", "DSWRFtoa", "ULWRFsfc", "ULWRFtoa", "USWRFsfc", "USWRFtoa", "SHTFLsfc", "PRATEsfc"
)
_NEAR_SURFACE = {
    "TMP2m": {"air_temperature_at_two_meters": 1.0},
    "Q2m": {"specific_humidity_at_two_meters": 1.0},
    "UGRD10m": {"eastward_wind_at_ten_meters": 1.0},
    "VGRD10m": {"northward_wind_at_ten_meters": 1.0},
}
# Masks, fractions and what has sharp edges suffers from a truncation of waves.
_UNFILTERED = ("land_fraction", "ocean_fraction", "sea_ice_fraction")


def _fv3(indices: str) -> dict[str, Any]:
    """FV3GFS and SHiELD: fluxes and states in stores of their own, already on a latitude-longitude grid."""
    return {
        "streams": {
            "fluxes": {"path": "fluxes_2d.zarr"},  # means that the model labels with the end of the interval
            "state": {"path": "full_state.zarr"},
            "scalar": {"path": "scalar.zarr"},
            "vertical": {"path": "vertical_coordinate.nc"},
        },
        "fields": {
            **_same("PRESsfc", "surface_temperature", "land_fraction", "ocean_fraction", "sea_ice_fraction"),
            **_FLUXES,
            **_same("LHTFLsfc", "TMP850", "h500"),
            **_NEAR_SURFACE,
            "total_frozen_precipitation_rate": _sum("GRAUPELsfc", "ICEsfc", "SNOWsfc"),
        },
        "levels": {
            "indices": indices,
            "surface_pressure": "PRESsfc",
            "thickness": "pressure_thickness_of_atmospheric_layer",
            "ak": {"ak": 1.0},
            "bk": {"bk": 1.0},
            "fields": {
                **_same("air_temperature"),
                "specific_total_water": _sum(
                    "specific_humidity",
                    "cloud_water_mixing_ratio",
                    "cloud_ice_mixing_ratio",
                    "graupel_mixing_ratio",
                    "rain_mixing_ratio",
                    "snow_mixing_ratio",
                ),
                **_WINDS,
            },
        },
        "statics": _same("HGTsfc"),
        "series": {"global_mean_co2": "global_mean_co2"},
        "derived": ["total_water_path", "advective_tendency"],
        "fill": {"sea_ice_fraction": 0.0},
        "quality": {"moisture": 1e-6, "dry_air": 1.0},
    }


_CM4: dict[str, Any] = {
    "streams": {
        "fluxes": {"path": "fluxes_2d.zarr"},
        "state": {"path": "full_state.zarr"},
        "land": {"path": "land_static.zarr"},
        "ice": {"path": "ice_6hourly.zarr"},
        "scalar": {"path": "scalar.zarr"},
        "vertical": {"path": "vertical_coordinate.nc"},
    },
    "fields": {
        **_same("PRESsfc", "surface_temperature", "sea_ice_fraction"),
        **_FLUXES,
        "LHTFLsfc": {"surface_evaporation_rate": LATENT_HEAT_OF_VAPORIZATION},
        **_same("total_frozen_precipitation_rate", "TMP850", "h500"),
        **_NEAR_SURFACE,
        "eastward_surface_stress": {"eastward_surface_wind_stress": 1.0},
        "northward_surface_stress": {"northward_surface_wind_stress": 1.0},
    },
    "levels": {
        "indices": "cm4_33",
        "surface_pressure": "PRESsfc",
        "ak": {"ak": 1.0},
        "bk": {"bk": 1.0},
        "fields": {
            **_same("air_temperature"),
            "specific_total_water": _sum("specific_humidity", "cloud_water_mixing_ratio", "cloud_ice_mixing_ratio"),
            **_WINDS,
        },
    },
    "statics": _same("HGTsfc", "land_fraction"),
    "series": {"global_mean_co2": "carbon_dioxide"},
    "derived": ["surface_fractions", "total_water_path", "advective_tendency"],
    "fill": {"sea_ice_fraction": 0.0},
    "quality": {"moisture": 1e-6, "dry_air": 1.0},
}

_E3SM: dict[str, Any] = {
    "streams": {
        "state": {"path": "6hourly_instant/*.nc"},
        "fluxes": {"path": "6hourly/*.nc"},
        "fixed": {"path": "time_invariant/*.nc"},
    },
    "fields": {
        "PRESsfc": {"PS": 1.0},
        "surface_temperature": {"TS": 1.0},
        "land_fraction": {"LANDFRAC": 1.0},
        "ocean_fraction": {"OCNFRAC": 1.0},
        "sea_ice_fraction": {"ICEFRAC": 1.0},
        "LHTFLsfc": {"LHFLX": 1.0},
        "SHTFLsfc": {"SHFLX": 1.0},
        "DSWRFtoa": {"SOLIN": 1.0},
        "USWRFtoa": {"SOLIN": 1.0, "FSNTOA": -1.0},
        "ULWRFtoa": {"FLUT": 1.0},
        "DSWRFsfc": {"FSDS": 1.0},
        "USWRFsfc": {"FSDS": 1.0, "FSNS": -1.0},
        "DLWRFsfc": {"FLDS": 1.0},
        "ULWRFsfc": {"FLDS": 1.0, "FLNS": 1.0},  # FLNS is upward
        "PRATEsfc": {"PRECT": 1000.0},  # m/s of liquid water
        "total_frozen_precipitation_rate": {"PRECSC": 1000.0, "PRECSL": 1000.0},
        "Q2m": {"QREFHT": 1.0},
        "TMP2m": {"TREFHT": 1.0},
    },
    "levels": {
        "indices": "e3smv2_72",
        "surface_pressure": "PS",
        "ak": {"hyai": 1e5},  # the reference pressure P0
        "bk": {"hybi": 1.0},
        "fields": {
            "air_temperature": {"T": 1.0},
            "specific_total_water": _sum("Q", "CLDLIQ", "CLDICE", "RAINQM"),
            "eastward_wind": {"U": 1.0},
            "northward_wind": {"V": 1.0},
        },
    },
    "statics": {"HGTsfc": {"PHIS": 1.0 / GRAVITY}},
    "derived": ["total_water_path", "advective_tendency"],
    "roundtrip": {"fraction_kept": 1.0, "exclude": list(_UNFILTERED)},
    "quality": {"negative": None, "path": None, "dry_air": 1.0},
}

_ERA5: dict[str, Any] = {
    "timestep_hours": 6.0,
    "streams": {
        "flux": {"path": "full_37-1h-0p25deg-chunk-1.zarr-v3", "sampling": "mean"},
        "surface": {"path": "full_37-1h-0p25deg-chunk-1.zarr-v3"},
        "model": {"path": "model-level-1h-0p25deg.zarr-v1"},
    },
    "fields": {
        "PRESsfc": {"surface/surface_pressure": 1.0},
        "surface_temperature": {"surface/skin_temperature": 1.0},
        "sea_surface_temperature": {"surface/sea_surface_temperature": 1.0},
        "sea_ice_fraction": {"surface/sea_ice_cover": 1.0},
        "TMP2m": {"surface/2m_temperature": 1.0},
        "DPT2m": {"surface/2m_dewpoint_temperature": 1.0},
        "UGRD10m": {"surface/10m_u_component_of_wind": 1.0},
        "VGRD10m": {"surface/10m_v_component_of_wind": 1.0},
        "PRMSL": {"surface/mean_sea_level_pressure": 1.0},
        # ERA5's vertical fluxes are positive downwards.
        "LHTFLsfc": {"flux/mean_surface_latent_heat_flux": -1.0},
        "SHTFLsfc": {"flux/mean_surface_sensible_heat_flux": -1.0},
        "DSWRFtoa": {"flux/mean_top_downward_short_wave_radiation_flux": 1.0},
        "USWRFtoa": {
            "flux/mean_top_downward_short_wave_radiation_flux": 1.0,
            "flux/mean_top_net_short_wave_radiation_flux": -1.0,
        },
        "ULWRFtoa": {"flux/mean_top_net_long_wave_radiation_flux": -1.0},
        "DSWRFsfc": {"flux/mean_surface_downward_short_wave_radiation_flux": 1.0},
        "USWRFsfc": {
            "flux/mean_surface_downward_short_wave_radiation_flux": 1.0,
            "flux/mean_surface_net_short_wave_radiation_flux": -1.0,
        },
        "DLWRFsfc": {"flux/mean_surface_downward_long_wave_radiation_flux": 1.0},
        "ULWRFsfc": {
            "flux/mean_surface_downward_long_wave_radiation_flux": 1.0,
            "flux/mean_surface_net_long_wave_radiation_flux": -1.0,
        },
        "PRATEsfc": {"flux/mean_total_precipitation_rate": 1.0},
        "total_frozen_precipitation_rate": {"flux/mean_snowfall_rate": 1.0},
        # The analysis does not close its water budget: the residual would be increments, so the divergence is taken as it is.
        "tendency_of_total_water_path_due_to_advection": {"flux/mean_vertically_integrated_moisture_divergence": -1.0},
        "eastward_surface_stress": _sum(
            "flux/mean_eastward_gravity_wave_surface_stress", "flux/mean_eastward_turbulent_surface_stress"
        ),
        "northward_surface_stress": _sum(
            "flux/mean_northward_gravity_wave_surface_stress", "flux/mean_northward_turbulent_surface_stress"
        ),
    },
    "levels": {
        "indices": "era5_137",
        "surface_pressure": "surface/surface_pressure",
        "ak": list(L137_AK),
        "bk": list(L137_BK),
        "fields": {
            "air_temperature": {"model/temperature": 1.0},
            "specific_total_water": _sum(
                "model/specific_humidity",
                "model/specific_cloud_liquid_water_content",
                "model/specific_cloud_ice_water_content",
                "model/specific_rain_water_content",
                "model/specific_snow_water_content",
            ),
            "eastward_wind": {"model/u_component_of_wind": 1.0},
            "northward_wind": {"model/v_component_of_wind": 1.0},
        },
    },
    "statics": {
        "HGTsfc": {"surface/geopotential_at_surface": 1.0 / GRAVITY},
        "land_fraction": {"surface/land_sea_mask": 1.0},
    },
    "derived": ["surface_fractions", "dewpoint_humidity", "merged_surface_temperature", "total_water_path"],
    "fill": {"surface/sea_ice_cover": 0.0},
    "skipna": ["surface/sea_surface_temperature"],
    "missing": ["sea_surface_temperature"],
    "quality": {"dry_air": None, "moisture": None},
}

FAMILIES: dict[str, dict[str, Any]] = {
    "fv3gfs": _fv3("fv3gfs_63"),
    "shield": _fv3("shield_79"),
    "cm4": _CM4,
    "e3sm": _E3SM,
    "era5": _ERA5,
}

# The planet's raw layer (ace_core/planet/raw.py), with every field of its eight-layer form. The water budget of every column closes up to
# the rounding of what is stored, on a coarser grid too. Global dry air is constant by the cosine weights of ACE on the planet's own grid;
# regridding conserves it by the cells' true areas, so by the weights of another grid it moves by some 0.1 Pa a step.
PLANET = Definition.model_validate(
    {
        "streams": {"planet": {"path": "none"}},
        "fields": {
            **_same("sea_ice_fraction", "DSWRFtoa", "PRESsfc", "surface_temperature"),
            **_same("TMP2m", "Q2m", "UGRD10m", "VGRD10m", "LHTFLsfc", "SHTFLsfc", "ULWRFsfc", "DLWRFsfc", "DSWRFsfc"),
            **_same("USWRFsfc", "ULWRFtoa", "USWRFtoa", "PRATEsfc", "TMP850", "h500"),
            **_same("eastward_surface_stress", "northward_surface_stress"),
            "total_frozen_precipitation_rate": _sum("SNOWsfc", "ICEsfc", "GRAUPELsfc"),
        },
        "levels": {
            "indices": list(range(0, 33, 4)),
            "surface_pressure": "PRESsfc",
            "ak": {"ak": 1.0},
            "bk": {"bk": 1.0},
            "fields": {
                **_same("air_temperature"),
                "specific_total_water": _sum(
                    "specific_humidity",
                    "cloud_water_mixing_ratio",
                    "cloud_ice_mixing_ratio",
                    "rain_mixing_ratio",
                    "snow_mixing_ratio",
                    "graupel_mixing_ratio",
                ),
                **_WINDS,
            },
        },
        "statics": _same("HGTsfc", "land_fraction"),
        "series": {"global_mean_co2": "global_mean_co2"},
        "derived": ["surface_fractions", "advective_tendency"],
        "quality": {"moisture": 2e-9, "dry_air": 1.0},
    }
)
