"""The peer's derived variables of ocean and sea ice on random fields -> tests/golden/derived_ocean.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_derived_ocean.py

In float64, so that what is compared is the formulas and not the rounding; inputs are exact in float32. Land and what
lies below the sea floor are NaN. One draw serves all cases: each names the fields that it keeps and what it calls them.
The last three show what the peer makes of unusual values, of no cell areas, and of float32.
"""

import datetime
import json
from pathlib import Path

import numpy as np
import torch
from fme.core.coordinates import DepthCoordinate, LatLonCoordinates
from fme.core.ocean_derived_variables import compute_ocean_derived_quantities

torch.set_default_dtype(torch.float64)
TIMESTEP = datetime.timedelta(days=5)
B, T, Y, X, Z = 2, 3, 4, 5, 4
DEPTH = [0.0, 10.0, 60.0, 400.0, 6000.0]
LAYERS = [f"{stem}_{k}" for stem in ("thetao", "so") for k in range(Z)]
RANGES = (
    {f"thetao_{k}": (-2.0, 30.0) for k in range(Z)}
    | {f"so_{k}": (30.0, 8.0) for k in range(Z)}
    | {
        "hfds": (-100.0, 200.0),
        "hfgeou": (0.0, 0.2),
        "wfo": (-1e-4, 2e-4),
        "sfdsi": (-1e-7, 1e-6),
        "land_fraction": (0.0, 0.6),
        "sea_surface_fraction": (0.2, 0.8),
        "ocean_sea_ice_fraction": (-0.3, 1.3),
        "sea_ice_volume": (-1e12, 2e13),
        "HI": (0.0, 4.0),
    }
)
FLUXES = ["hfds", "hfgeou", "wfo", "sfdsi"]
ICE = ["ocean_sea_ice_fraction", "sea_ice_volume"]
ATMOSPHERE_ICE = {"ocean_sea_ice_fraction": "sea_ice_fraction", "sea_ice_volume": "sea_ice_volume"}


def same(names: list[str]) -> dict[str, str]:
    return {n: n for n in names}


# case -> {name drawn: name in the case}
CASES = {
    "all": same([*LAYERS, *FLUXES, "land_fraction", "sea_surface_fraction", *ICE]),
    "one_fraction": same([*LAYERS, *FLUXES, *ICE]) | {"land_fraction": "LANDFRAC"},
    "fallbacks": same([*LAYERS, "wfo", "land_fraction", "sea_surface_fraction"])
    | {"hfds": "hfds_total_area"}
    | ATMOSPHERE_ICE,
    "ice": same(["land_fraction"]) | ATMOSPHERE_ICE,
    "kept": same([*LAYERS[:Z], "hfds", "sea_surface_fraction", "HI"]) | ATMOSPHERE_ICE,
}
STATIC = ["hfgeou", "land_fraction", "sea_surface_fraction"]


def draw(land: torch.Tensor, wet: torch.Tensor) -> dict[str, torch.Tensor]:
    fields = {n: (low + width * torch.rand(B, T, Y, X)).float().double() for n, (low, width) in RANGES.items()}
    fields["ocean_sea_ice_fraction"].clamp_(0.0, 1.0)
    # Without ice there is no volume; what the peer makes of that is in the case "odd".
    fields["sea_ice_volume"][fields["ocean_sea_ice_fraction"] == 0.0] = 0.0
    for name in [n for n in RANGES if n not in STATIC]:
        water = wet[..., int(name.split("_")[1])] > 0 if name in LAYERS else ~land
        fields[name] = torch.where(water, fields[name], torch.nan)
    fields["sfdsi"][torch.rand(B, T, Y, X) < 0.3] = torch.nan
    fields["land_fraction"][..., land], fields["sea_surface_fraction"][..., land] = 1.0, 0.0
    return fields


def derived(fields, depth, areas, forcing=None) -> dict[str, torch.Tensor]:
    result = compute_ocean_derived_quantities(dict(fields), depth, TIMESTEP, forcing, areas)
    return {n: x for n, x in result.items() if n not in fields}


def store(out: dict[str, np.ndarray], key: str, fields: dict[str, torch.Tensor], dtype: type) -> None:
    out[f"{key}/names"] = np.array(list(fields))
    out[f"{key}/x"] = torch.stack(list(fields.values()), 2).numpy().astype(dtype)


def odd(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A wet column without temperature; volume of no ice, of unknown ice, and without sea; heat flux without sea."""
    found = {n: fields[n].clone() for n in [*LAYERS[:Z], *STATIC, *ICE]} | {"hfds_total_area": fields["hfds"].clone()}
    for k in range(Z):
        found[f"thetao_{k}"][..., 1, 1] = torch.nan
    found["ocean_sea_ice_fraction"][..., 1, 2:] = torch.tensor([0.0, torch.nan, 0.5])
    found["sea_ice_volume"][..., 1, 2:] = 2.0**40
    found["sea_surface_fraction"][..., 1, 4], found["hfds_total_area"][..., 1, 4] = 0.0, 8.0
    return found


def warming(wet: torch.Tensor) -> dict[str, torch.Tensor]:
    """Abyss of 4 degC that warms by 2**-16 K a step, above it nothing happens: 0.8 W/m**2 at most."""
    now = torch.full((B, T, Y, X), 4.0)
    later = now + 2.0**-16 * torch.arange(T)[:, None, None]
    return {f"thetao_{k}": torch.where(wet[..., k] > 0, later if k == Z - 1 else now, torch.nan) for k in range(Z)}


def main() -> None:
    torch.manual_seed(7)
    land = torch.zeros(Y, X, dtype=torch.bool)
    land[0, :2], land[2, 3], land[3, 4] = True, True, True
    idepth = torch.tensor(DEPTH)
    floor = torch.where(land, torch.nan, 5.0 + 6500.0 * torch.rand(Y, X) ** 2).float().double()
    wet = (floor.nan_to_num(0.0)[..., None] > idepth[:-1]).double()
    depth, whole = DepthCoordinate(idepth, wet, floor), DepthCoordinate(idepth, wet)
    lat, lon = torch.tensor([-67.5, -22.5, 22.5, 67.5]), torch.arange(X) * 72.0
    areas = LatLonCoordinates(lat=lat, lon=lon)
    fields = draw(land, wet)
    out = {"lat": lat.numpy(), "lon": lon.numpy(), "depth": idepth.numpy(), "wet": wet.numpy(), "floor": floor.numpy()}
    store(out, "fields", fields, np.float32)
    out["cases"] = np.array(json.dumps(CASES))
    for case, names in CASES.items():
        inputs = {new: fields[old] for old, new in names.items()}
        store(out, case, derived(inputs, depth, areas), np.float64)

    store(out, "whole", derived({n: fields[n] for n in LAYERS[:Z]}, whole, areas), np.float64)
    # Where the forcing has them, the same comes out.
    inputs, forcing = ({n: fields[n] for n in CASES["all"] if (n in STATIC) == static} for static in (False, True))
    apart, together = derived(inputs, depth, areas, forcing), derived({**inputs, **forcing}, depth, areas)
    for name in together:
        torch.testing.assert_close(apart[name], together[name], rtol=0, atol=0, equal_nan=True)

    strange = odd(fields)
    store(out, "odd/fields", strange, np.float32)
    result = derived(strange, depth, areas)
    store(out, "odd", {n: result[n] for n in ("ocean_heat_content", "HI", "hfds")}, np.float64)
    try:
        derived(strange, depth, None)
    except ValueError as error:
        out["no_areas"] = np.array(str(error))
    warm = warming(wet)
    store(out, "warming/fields", warm, np.float32)
    single = DepthCoordinate(idepth.float(), wet.float(), floor.float())
    for key, vertical, dtype in (("single", single, torch.float32), ("double", depth, torch.float64)):
        result = derived({n: x.to(dtype) for n, x in warm.items()}, vertical, areas)
        out[f"warming/{key}"] = result["ocean_heat_content_tendency"].numpy()
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "derived_ocean.npz"
    np.savez_compressed(path, **out)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
