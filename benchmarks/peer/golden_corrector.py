"""The peer's correctors of atmosphere, ocean and sea ice on random fields -> tests/golden/corrector.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_corrector.py

In float64, so that what is compared is the formulas and not the rounding; inputs are exact in float32. Every case is two
steps of a rollout from one state, so that what the peer carries between them shows.
"""

import datetime
import json
from pathlib import Path

import numpy as np
import torch
from fme.core.coordinates import DepthCoordinate, HybridSigmaPressureCoordinate
from fme.core.corrector.atmosphere import AtmosphereCorrectorConfig
from fme.core.corrector.ice import IceCorrectorConfig
from fme.core.corrector.ocean import OceanCorrectorConfig
from fme.core.gridded_ops import LatLonOperations
from fme.core.spatial_mask_provider import SpatialMaskProvider

torch.set_default_dtype(torch.float64)
AK = (1.0001825, 5119.895020, 13881.331055, 19343.511719, 20087.085938, 15596.695312, 8880.453125, 3489.234375, 0.0)
BK = (0.0, 0.0, 0.005378, 0.059728, 0.203491, 0.438391, 0.680643, 0.859432, 1.0)
TIMESTEP = datetime.timedelta(hours=6)
ICE_TIMESTEP = datetime.timedelta(seconds=16384)  # exact in binary, so that no cell hangs on a rounding error
Y, X, Z = 5, 6, 4
LAT = np.array([-72.0, -36.0, 0.0, 36.0, 72.0])
T = [f"air_temperature_{k}" for k in range(8)]
Q = [f"specific_total_water_{k}" for k in range(8)]
ADVECTION = "tendency_of_total_water_path_due_to_advection"
STATE = dict.fromkeys(T, (220.0, 80.0)) | dict.fromkeys(Q, (-0.001, 0.016)) | {"PRESsfc": (7e4, 3e4)}
FLUXES = {
    "LHTFLsfc": (0.0, 200.0),
    "SHTFLsfc": (-20.0, 60.0),
    "DSWRFsfc": (0.0, 300.0),
    "USWRFsfc": (0.0, 60.0),
    "DLWRFsfc": (200.0, 200.0),
    "ULWRFsfc": (250.0, 250.0),
}
STATIC = {"HGTsfc": (-50.0, 2000.0), "DSWRFtoa": (0.0, 600.0)}
ATMOSPHERE = (
    STATE
    | FLUXES
    | {
        "PRATEsfc": (-1e-5, 1e-4),
        "USWRFtoa": (0.0, 150.0),
        "ULWRFtoa": (180.0, 100.0),
        "total_frozen_precipitation_rate": (0.0, 8e-5),
        ADVECTION: (-1e-4, 2e-4),
    }
)
POSITIVE = [*Q, "PRATEsfc"]
HEAT = {"method": "constant_temperature", "constant_unaccounted_heating": 1.5}
ATMOSPHERE_CASES = {
    "positive": {"force_positive_names": POSITIVE},
    "dry_air": {"conserve_dry_air": True},
    "advection": {"zero_global_mean_moisture_advection": True},
    **{
        term: {"moisture_budget_correction": term}
        for term in ("precipitation", "evaporation", "advection_and_precipitation", "advection_and_evaporation")
    },
    "clip": {"moisture_budget_correction": "precipitation", "clip_frozen_precipitation": True},
    "energy": {"total_energy_budget_correction": HEAT},
    "all": {
        "force_positive_names": POSITIVE,
        "conserve_dry_air": True,
        "zero_global_mean_moisture_advection": True,
        "moisture_budget_correction": "advection_and_precipitation",
        "clip_frozen_precipitation": True,
        "total_energy_budget_correction": HEAT,
        "keep_gradient_through_clamps": True,
    },
}
THETA, SALT = [f"thetao_{k}" for k in range(Z)], [f"so_{k}" for k in range(Z)]
OCEAN_STATE = (
    dict.fromkeys(THETA, (-2.0, 30.0))
    | dict.fromkeys(SALT, (30.0, 8.0))
    | {"sst": (271.0, 30.0), "zos": (-1.0, 2.0), "SSH": (-1.0, 2.0), "hfds": (-100.0, 200.0)}
    | {"sea_ice_fraction": (-0.5, 2.0), "HI": (0.0, 3.0)}
)
OCEAN_INPUT = OCEAN_STATE | {"land_fraction": (0.0, 0.5)}
OCEAN_FORCING = FLUXES | {
    "PRATEsfc": (0.0, 1e-4),
    "total_frozen_precipitation_rate": (0.0, 2e-5),
    "sea_surface_fraction": (0.2, 0.8),
    "hfgeou": (0.0, 0.2),
    "PRESsfc": (7e4, 3e4),
}
ICE_FRACTION = {
    "sea_ice_fraction_name": "sea_ice_fraction",
    "land_fraction_name": "land_fraction",
    "zero_where_ice_free_names": ["HI"],
}
CONTENT = {"method": "scaled_temperature", "constant_unaccounted_heating": 3.0}
SALINITY = {
    "method": "scaled_salinity",
    "budget_config": {"type": "sea_surface_height"},
    "constant_unaccounted_salting": 1e-6,
}
OCEAN_CASES = {
    "positive": {"force_positive_names": THETA},
    "ice": {"sea_ice_fraction_correction": ICE_FRACTION},
    "ice_over_land": {"sea_ice_fraction_correction": ICE_FRACTION | {"remove_negative_ocean_fraction": False}},
    **{
        f"flux_{method}": {"surface_energy_flux_correction": {"method": method}}
        for method in ("residual_prediction", "prescribed", "prescribed_open_ocean")
    },
    "flux_total": {"surface_energy_flux_correction": {"method": "prescribed"}},
    "heat": {"ocean_heat_content_correction": CONTENT},
    "heat_total": {"ocean_heat_content_correction": CONTENT},
    "heat_input": {"ocean_heat_content_correction": True},
    "salt": {"ocean_salt_content_correction": SALINITY},
    "salt_plain": {
        "ocean_salt_content_correction": {"method": "scaled_salinity", "weight_by_sea_surface_fraction": False}
    },
    "zos": {"zos_global_mean_correction": {"reference_global_mean": 0.25}},
    "all": {
        "force_positive_names": THETA[1:],
        "sea_ice_fraction_correction": ICE_FRACTION,
        "surface_energy_flux_correction": {"method": "prescribed"},
        "ocean_heat_content_correction": CONTENT,
        "ocean_salt_content_correction": SALINITY,
        "zos_global_mean_correction": {},
        "keep_gradient_through_clamps": True,
    },
}
ICE_TERMS = {
    "simass": ["mass_source", "mass_sink", "mass_transport"],
    "siconc": ["conc_source", "conc_sink", "conc_transport"],
    "sisnmass": ["snow_source", "snow_sink", "snow_transport"],
}


def draw(ranges: dict[str, tuple[float, float]]) -> dict[str, torch.Tensor]:
    return {n: (low + width * torch.rand(2, Y, X)).float().double() for n, (low, width) in ranges.items()}


def store(out: dict[str, np.ndarray], key: str, fields: dict[str, torch.Tensor], dtype: type = np.float32) -> None:
    out[f"{key}/names"] = np.array(list(fields))
    out[f"{key}/x"] = torch.stack(list(fields.values()), 1).numpy().astype(dtype)


def run(out: dict[str, np.ndarray], key: str, corrector, inputs, outputs, forcing) -> None:
    """Two steps, the second from the first's result; stores the channels that the peer changed."""
    state, first = None, None
    for step, predicted in enumerate(outputs):
        result = corrector(inputs if first is None else {**inputs, **first}, predicted, forcing, state)
        state, first = result.corrector_state, result.corrected
        store(out, f"{key}/step{step}", {n: first[n] for n in predicted if n in result.diagnostics.delta}, np.float64)


def atmosphere(out: dict[str, np.ndarray], ops: LatLonOperations) -> None:
    vertical = HybridSigmaPressureCoordinate(torch.tensor(AK), torch.tensor(BK))
    inputs, outputs, forcing = draw(STATE | STATIC), [draw(ATMOSPHERE), draw(ATMOSPHERE)], draw(STATIC)
    for name, fields in (("input", inputs), ("output0", outputs[0]), ("output1", outputs[1]), ("forcing", forcing)):
        store(out, f"atmosphere/{name}", fields)
    for case, keys in ATMOSPHERE_CASES.items():
        corrector = AtmosphereCorrectorConfig.from_state(keys)._build(ops, vertical, TIMESTEP)
        run(out, f"atmosphere/{case}", corrector, inputs, outputs, forcing)
    out["atmosphere/cases"] = np.array(json.dumps(ATMOSPHERE_CASES))


def ocean(out: dict[str, np.ndarray], ops: LatLonOperations, mask: torch.Tensor) -> None:
    depth = torch.tensor([0.0, 10.0, 50.0, 200.0, 1000.0])
    floor = torch.where(mask > 0, 20.0 + 1200.0 * torch.rand(Y, X), torch.nan).float().double()
    wet = (floor.nan_to_num(0.0)[..., None] > depth[:-1]).double()
    layers = DepthCoordinate(depth, wet, floor)
    inputs, outputs, forcing = draw(OCEAN_INPUT), [draw(OCEAN_STATE), draw(OCEAN_STATE)], draw(OCEAN_FORCING)
    inputs["sea_ice_fraction"] = inputs["sea_ice_fraction"].clamp(0.0, 0.5)
    inputs["land_fraction"][:, :, :3], inputs["sea_ice_fraction"][:, :, 1:3] = 0.0, 0.0
    for n in [*THETA, *SALT, "SSH"]:
        inputs[n] = torch.where(mask > 0, inputs[n], torch.nan)
    for name, fields in (("input", inputs), ("output0", outputs[0]), ("output1", outputs[1]), ("forcing", forcing)):
        store(out, f"ocean/{name}", fields)
    out["ocean/depth"], out["ocean/wet"], out["ocean/floor"] = depth.numpy(), wet.numpy(), floor.numpy()
    out["ocean/mask"] = mask.numpy()
    for case, keys in OCEAN_CASES.items():
        predicted = outputs
        if case.endswith("_total"):
            predicted = [{("hfds_total_area" if n == "hfds" else n): x for n, x in o.items()} for o in outputs]
        elif case == "heat_input":
            predicted = [{n: x for n, x in o.items() if n != "hfds"} for o in outputs]
        corrector = OceanCorrectorConfig.from_state(json.loads(json.dumps(keys)))._build(ops, layers, TIMESTEP)
        run(out, f"ocean/{case}", corrector, inputs, predicted, forcing)
    out["ocean/cases"] = np.array(json.dumps(OCEAN_CASES))


def ice(out: dict[str, np.ndarray]) -> None:
    """Multiples of 3/64, so that shares of one, two or three terms are exact; sinks of both signs, some terms zero."""

    def steps(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (2, Y, X)).double() * 3 / 64

    inputs = {"simass": steps(0, 20), "siconc": steps(0, 22), "sisnmass": steps(0, 8)}
    rates = {}
    for terms in ICE_TERMS.values():
        for name, bounds in zip(terms, ((-2, 12), (-24, 3), (-12, 12)), strict=True):
            rates[name] = torch.where(torch.rand(2, Y, X) < 0.25, 0.0, steps(*bounds)) / 16384
    output = {**{n: torch.zeros(2, Y, X) for n in ICE_TERMS}, **rates}
    store(out, "ice/input", inputs)
    store(out, "ice/output0", output)
    config = IceCorrectorConfig.from_state({"budget_correction": {"corrected_variables": ICE_TERMS}})
    corrector = config._build(None, ICE_TIMESTEP)
    run(out, "ice", corrector, inputs, [output], {})
    out["ice/terms"] = np.array(json.dumps(ICE_TERMS))


def main() -> None:
    torch.manual_seed(4)
    weights = torch.cos(torch.deg2rad(torch.from_numpy(LAT)))[:, None].expand(Y, X)
    weights = weights / weights.sum()
    mask = (torch.rand(Y, X) > 0.25).double()
    masked = LatLonOperations(weights, SpatialMaskProvider({"mask_2d": mask}))
    out: dict[str, np.ndarray] = {"lat": LAT}
    atmosphere(out, LatLonOperations(weights))
    ocean(out, masked, mask)
    ice(out)
    path = Path("tests/golden/corrector.npz")
    np.savez_compressed(path, **out)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
