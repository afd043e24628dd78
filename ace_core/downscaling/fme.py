"""Downscaling models in fme's checkpoints, and bundles of experts, as ours.

Read are ``model`` = {config, module, coarse_shape, downscale_factor, full_fine_coords, static_inputs} of its trainer, of older layouts with
the coordinates among the static inputs, and ``experts`` with their ``sigma_ranges``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ace_core.config import Source, parse
from ace_core.downscaling.config import DiffusionModelConfig
from ace_core.downscaling.generator import Expert, Generator
from ace_core.downscaling.model import Downscaler, build_downscaler
from ace_core.downscaling.song_unet_names import song_unet_from_fme
from ace_core.downscaling.statics import Statics
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.interop.fme_checkpoint import is_fme_downscaling

__all__ = ["is_fme_downscaling", "load_coordinates", "models_from_fme"]


def models_from_fme(
    content: Mapping[str, Any], where: str, statics: Statics | None = None, fine: LatLonGrid | None = None
) -> Generator:
    """What is in it, in evaluation mode. statics, fine: of a checkpoint that holds none.

    Raises :class:`DataError` for what is not laid out so, :class:`ace_core.errors.ConfigError` for networks and options this package lacks.
    """
    try:
        if "experts" not in content:
            return Generator.of(_model(content["model"], where, statics, fine))
        models = [_model(state, where, statics, fine) for state in content["experts"]]
        renames = content.get("expert_renames") or [None] * len(models)
        models = [m.renamed(r or {}) for m, r in zip(models, renames, strict=True)]
        ranges = [(float(low), float(high)) for low, high in content["sigma_ranges"]]
        experts = tuple(Expert(m, *r) for m, r in zip(models, ranges, strict=True))
        steps, churn = int(content["num_diffusion_generation_steps"]), float(content["churn"])
        return Generator.with_experts(experts, steps, churn, where, capped=False)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        found = f"is not laid out as fme's downscaling checkpoints are ({type(error).__name__}: {reason})"
        raise fail(DataError, where, found, "a file that fme's downscaling trainer wrote") from None


def _model(state: Mapping[str, Any], where: str, statics: Statics | None, fine: LatLonGrid | None) -> Downscaler:
    plain = {**state["config"], "cap_churn": False}
    config = parse(DiffusionModelConfig, Source(where, plain))
    held = _statics(state.get("static_inputs"))
    if held is not None and statics is not None:
        fix = "leave out static_inputs"
        raise fail(DataError, where, "holds static inputs, and others are given", "one of them", fix)
    coordinates = state.get("full_fine_coords")
    grid = _grid(coordinates) if coordinates else fine
    used = held or statics
    grid = grid or (used.grid if used is not None else None)
    if grid is None:
        fix = "give fine_coordinates_path, or static_inputs on the fine grid"
        raise fail(DataError, where, "holds no coordinates of the fine grid", "its latitudes and longitudes", fix)
    shape = (int(state["coarse_shape"][0]), int(state["coarse_shape"][1]))
    if used is not None and not config.use_fine_topography:
        used = None  # fme counts such fields among the network's inputs, and never gives them to it: such a model was never trained
    model = build_downscaler(config, grid, shape, int(state["downscale_factor"]), used, seed=0)
    model.denoiser.network.load_state_dict(song_unet_from_fme(state["module"]))
    model.denoiser.eval()
    return model


def _grid(coordinates: Mapping[str, Any]) -> LatLonGrid:
    lat, lon = (np.asarray(coordinates[k].double().cpu().numpy(), np.float64) for k in ("lat", "lon"))
    return LatLonGrid(lat, lon)


def _statics(state: Mapping[str, Any] | None) -> Statics | None:
    """Standardised already; fme keeps no names."""
    if not state or not state.get("fields"):
        return None
    fields = state["fields"]
    coordinates = state.get("coords") or fields[0]["coords"]
    names = tuple(f"static_{i}" for i in range(len(fields)))
    return Statics(names, torch.stack([f["data"].float().cpu() for f in fields]), _grid(coordinates))


def load_coordinates(path: Path) -> LatLonGrid:
    """latitude and longitude of a netCDF file. Raises :class:`DataError`."""
    import xarray as xr

    try:
        with xr.open_dataset(path) as data:
            names = {k: next(n for n in (k, k[:3]) if n in data.coords) for k in ("latitude", "longitude")}
            lat, lon = (np.asarray(data[n].to_numpy(), np.float64) for n in names.values())
    except (OSError, StopIteration, ValueError) as error:
        raise fail(DataError, str(path), f"gives no coordinates ({error})", "a netCDF file with lat and lon") from None
    return LatLonGrid(lat, lon)
