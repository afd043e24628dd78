"""What the peer's downscaling data are made of -> tests/golden/downscaling_data.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_downscaling_data.py

Patches that cover an extent and what the peer puts together of random predictions of them; patches of a training batch for given offsets;
coordinates of extents, also across the seam; a standardised static field.
"""

import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import xarray as xr
from fme.downscaling.data import config, datasets
from fme.downscaling.data.patching import get_patches
from fme.downscaling.data.static import load_static_inputs
from fme.downscaling.data.utils import ClosedInterval, adjust_fine_coord_range
from fme.downscaling.predictors.composite import composite_patch_predictions

# shape, patch, overlap
COVERS = [((8, 12), (4, 4), 0), ((8, 12), (5, 7), 1), ((9, 10), (4, 4), 2), ((7, 7), (7, 3), 1), ((6, 11), (3, 10), 2)]
# shape, patch, offset
TRAINED = [
    ((10, 11), (4, 3), (0, 0)),
    ((10, 11), (4, 3), (3, 2)),
    ((10, 11), (4, 3), (1, 1)),
    ((8, 12), (4, 6), (0, 0)),
]
NX, FACTOR = 24, 4
EXTENTS = [
    ((-66, 70), (-np.inf, np.inf)),
    ((-66, 70), (30, 97.5)),
    ((-10, 40), (-50, 60)),
    ((-10, 40), (300, 420)),
    ((-80, 80), (-170, 150)),
    ((0, 30), (-7.5, 22.5)),
]


def corners(patches):
    return [[p.input_slice.y.start, p.input_slice.x.start] for p in patches]


def extents(lat, lon):
    """Coarse and fine latitudes and longitudes that the peer selects."""
    fine = [torch.from_numpy(lat), torch.from_numpy(lon)]
    coarse = [c.reshape(-1, FACTOR).mean(dim=1) for c in fine]
    out = []
    for lat_extent, lon_extent in EXTENTS:
        lats, lons = ClosedInterval(*lat_extent), ClosedInterval(*lon_extent)
        rolled_coarse, rolled_fine = config._roll_lons_to_extent_convention(coarse[1], fine[1], lons)
        fine_lats = adjust_fine_coord_range(lats, coarse[0], fine[0])
        fine_lons = adjust_fine_coord_range(lons, rolled_coarse, rolled_fine)
        parts = lats.subset_of(coarse[0]), lons.subset_of(rolled_coarse)
        parts += fine_lats.subset_of(fine[0]), fine_lons.subset_of(rolled_fine)
        out.append([p.numpy() for p in parts])
    return out


def main() -> None:
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {}
    for i, (shape, patch, overlap) in enumerate(COVERS):
        patches = get_patches(shape, patch, overlap, drop_partial_patches=False)
        skip = [[p.output_slice.y.start or 0, p.output_slice.x.start or 0] for p in patches]
        made = rng.standard_normal((len(patches), 2, 3, *patch)).astype(np.float32)
        whole = composite_patch_predictions([{"a": torch.from_numpy(m)} for m in made], patches)["a"]
        out |= {f"cover {i} corners": corners(patches), f"cover {i} skip": skip}
        out |= {f"cover {i} made": made, f"cover {i} whole": whole.numpy()}
    for i, (shape, patch, offset) in enumerate(TRAINED):
        with mock.patch.object(datasets, "get_offset", side_effect=list(offset)):
            patches, _ = datasets._get_paired_patches(shape, patch, 0, None, random_offset=True)
        out[f"trained {i}"] = corners(patches)
    lat = (np.arange(18 * FACTOR) + 0.5) * 180 / (18 * FACTOR) - 90
    lon = (np.arange(NX * FACTOR) + 0.5) * 360 / (NX * FACTOR)
    out |= {"lat": lat, "lon": lon}
    for i, parts in enumerate(extents(lat, lon)):
        names = ("coarse lat", "coarse lon", "fine lat", "fine lon")
        out |= {f"extent {i} {name}": part for name, part in zip(names, parts, strict=True)}
    height = rng.gamma(1.0, 500.0, (6, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "z.nc")
        grid = {"lat": np.linspace(-75, 75, 6), "lon": 45.0 * np.arange(8)}
        xr.Dataset({"HGTsfc": (("lat", "lon"), height)}, grid).to_netcdf(path)
        out |= {"height": height, "static": load_static_inputs({"HGTsfc": path})[0].data.cpu().numpy()}
    cases = {"covers": COVERS, "trained": TRAINED, "factor": FACTOR}
    cases["extents"] = [[[str(x) for x in interval] for interval in extent] for extent in EXTENTS]
    path = Path(__file__).parents[2] / "tests" / "golden" / "downscaling_data.npz"
    np.savez_compressed(path, cases=json.dumps(cases), **out)


if __name__ == "__main__":
    main()
