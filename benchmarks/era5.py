"""The ERA5 configuration of ACE2 that the benchmarks share: 44 inputs, 50 outputs, every atmosphere correction."""

# Name -> mean and standard deviation of the fields.
LEVELS: dict[str, tuple[float, float]] = {
    "air_temperature": (250.0, 15.0),
    "specific_total_water": (0.004, 0.002),
    "eastward_wind": (5.0, 10.0),
    "northward_wind": (0.0, 8.0),
}
FORCING = {
    "land_fraction": (0.3, 0.2),
    "ocean_fraction": (0.6, 0.3),
    "sea_ice_fraction": (0.1, 0.1),
    "DSWRFtoa": (340.0, 50.0),
    "HGTsfc": (400.0, 200.0),
    "global_mean_co2": (4e-4, 1e-5),
}
SURFACE = {
    "PRESsfc": (98000.0, 1500.0),
    "surface_temperature": (288.0, 10.0),
    "TMP2m": (287.0, 10.0),
    "Q2m": (0.009, 0.003),
    "UGRD10m": (0.0, 5.0),
    "VGRD10m": (0.0, 5.0),
}
DIAGNOSTIC = {
    "LHTFLsfc": (90.0, 30.0),
    "SHTFLsfc": (15.0, 10.0),
    "PRATEsfc": (3e-5, 1e-5),
    "ULWRFsfc": (390.0, 40.0),
    "ULWRFtoa": (240.0, 20.0),
    "DLWRFsfc": (330.0, 40.0),
    "DSWRFsfc": (190.0, 50.0),
    "USWRFsfc": (25.0, 10.0),
    "USWRFtoa": (100.0, 20.0),
    "tendency_of_total_water_path_due_to_advection": (0.0, 3e-5),
    "h500": (5600.0, 100.0),
    "TMP850": (280.0, 10.0),
}
PROGNOSTIC = SURFACE | {f"{stem}_{k}": values for stem, values in LEVELS.items() for k in range(8)}
STATISTICS = FORCING | PROGNOSTIC | DIAGNOSTIC
FLUXES = ["ULWRFsfc", "ULWRFtoa", "DLWRFsfc", "DSWRFsfc", "USWRFsfc", "USWRFtoa"]
CORRECTOR = {
    "force_positive_names": [*(f"specific_total_water_{k}" for k in range(8)), "Q2m", "PRATEsfc", *FLUXES],
    "conserve_dry_air": True,
    "zero_global_mean_moisture_advection": True,
    "moisture_budget_correction": "advection_and_precipitation",
    "total_energy_budget_correction": {"method": "constant_temperature"},
}
