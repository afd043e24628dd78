"""What ``test_paired.py`` starts with torchrun: the same experiments on these ranks, and on tiles if there are two.

Arguments: folder of the data, checkpoint, folder for what the root rank found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig
from ace_core.distributed import Ranks, process_group
from ace_core.evaluation.opened import open_data
from ace_core.response.climates import Climates
from ace_core.response.paired import experiment
from ace_core.response.scalars import seed_scalars
from ace_core.training.checkpoint import load_emulator

P4K = {"label": "p4k", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 4.0}}]}}


def climates(data: Path, checkpoint: Path, ranks: Ranks, n: int) -> Climates:
    emulator = load_emulator(checkpoint)
    emulator.divide(ranks.tiles)
    starts = {"n_initial_conditions": n, "first": 27, "interval": 90}
    content = {"dataset": {"data_path": str(data / "native" / "test.zarr")}, "start_indices": starts}
    loader = InferenceDataLoaderConfig.model_validate(content)
    tile = ranks.tiles.of(emulator.info.grid.shape)
    opened = open_data(emulator, "it", loader, loader, 8, 3, with_targets=False, tile=tile, members=2)
    perturbations = [LabeledPerturbation.model_validate(P4K)]
    todo = experiment(opened, perturbations, ResponseAggregatorConfig(), 8, "ocean", ranks, spinup_steps=1)
    first, again = todo.run(ranks, 7), todo.run(ranks, 7)
    np.testing.assert_array_equal(first.maps.mean, again.maps.mean)
    np.testing.assert_array_equal(first.features.values, again.features.values)
    return first


def main() -> None:
    data, checkpoint, out = (Path(a) for a in sys.argv[1:])
    torch.set_num_threads(1)
    with process_group() as ranks:
        layouts = {f"{ranks.world}-1": (ranks, 1), f"{ranks.world}-3": (ranks, 3)}
        if ranks.world == 2:
            layouts["2-tiles"] = (ranks.divided(2, 1), 3)
        for name, (layout, n) in layouts.items():
            found = climates(data, checkpoint, layout, n)
            if not ranks.is_root:
                continue
            arrays = {
                "maps": found.maps.mean,
                "weights": found.maps.weights,
                "features": found.features.values,
                "steps": found.features.steps,
                "ocean": found.surface.ocean.astype(np.int8),
                "amplitude": found.amplitude,
            }
            variables = {k: ([f"{k}{i}" for i in range(v.ndim)], v) for k, v in arrays.items()}
            attrs = seed_scalars(ResponseAggregatorConfig(), found.means(), 1)
            attrs = {k.replace("/", "-"): v for k, v in attrs.items()}
            xr.Dataset(variables, attrs=attrs).to_netcdf(out / f"{name}.nc")
        ranks.barrier()


if __name__ == "__main__":
    main()
