"""The peer's SST perturbations on random fields -> tests/golden/perturbation.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_perturbation.py

In float32, as the peer applies them: in place, one after the other. Fractions of exactly 0.5 and 1 are among the cells.
"""

import json
from pathlib import Path

import numpy as np
import torch
from fme.ace.data_loading.perturbation import PerturbationSelector, SSTPerturbation

T, Y, X = 3, 18, 36


def patch(amplitude, lat, lon, height, width):
    config = {"amplitude": amplitude, "lat_center": lat, "lon_center": lon, "lat_width": height, "lon_width": width}
    return {"type": "greens_function", "config": config}


CASES = {
    "constant": [{"type": "constant", "config": {"amplitude": 4.0}}],
    "patch": [patch(2.0, 10.0, 180.0, 60.0, 90.0)],
    "across_0_from_the_east": [patch(-1.5, -20.0, 8.0, 80.0, 100.0)],
    "across_0_from_the_west": [patch(3.0, 0.0, 350.0, 50.0, 120.0)],
    "one_cell": [patch(1.0, 5.0, 15.0, 3.0, 3.0)],
    "sum": [{"type": "constant", "config": {"amplitude": -2.0}}, patch(2.0, 40.0, 300.0, 30.0, 40.0)],
}


def main() -> None:
    torch.manual_seed(0)
    lat = torch.linspace(-85.0, 85.0, Y)
    lon = torch.linspace(5.0, 355.0, X)
    fraction = torch.rand(T, Y, X)
    fraction[:, 2:5, ::3], fraction[:, 9, 1::4], fraction[:, 12, :] = 0.5, 1.0, 0.0
    temperature = 270.0 + 30.0 * torch.rand(T, Y, X)
    grid = torch.meshgrid(lat, lon, indexing="ij")
    out = {
        "lat": lat.numpy(),
        "lon": lon.numpy(),
        "temperature": temperature.numpy(),
        "ocean_fraction": fraction.numpy(),
    }
    for name, entries in CASES.items():
        data = temperature.clone()
        for perturbation in SSTPerturbation([PerturbationSelector(**entry) for entry in entries]).perturbations:
            perturbation.apply_perturbation(data, *grid, fraction)
        out[name] = data.numpy()
    path = Path(__file__).parents[2] / "tests" / "golden" / "perturbation.npz"
    np.savez_compressed(path, cases=json.dumps(CASES), **out)


if __name__ == "__main__":
    main()
