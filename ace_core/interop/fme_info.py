"""fme's ``dataset_info`` of a checkpoint, of any version, into ours (:class:`ace_core.dataset_info.DatasetInfo`), and back.

Legend: Z layers, Y latitude, X longitude.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ace_core.calendar import canonical
from ace_core.dataset_info import DatasetInfo, Vertical
from ace_core.depth import DepthLayers
from ace_core.errors import ConfigError, DataError, fail
from ace_core.grid import F64, LatLonGrid, gaussian_latitudes
from ace_core.spatial_mask import SpatialMasks
from ace_core.vertical import HybridSigma

log = logging.getLogger("ace")
MICROSECONDS = 1_000_000
DEFAULT_TIMESTEP = 6 * 3600 * MICROSECONDS  # of checkpoints that do not say


def to_ours(info: Mapping[str, Any], where: str, calendar: str, labels: Sequence[str]) -> DatasetInfo:
    """labels: in the order in which the networks know them; calendar: fme's checkpoints hold none.

    Raises :class:`ConfigError` for a grid or calendar that this package lacks, :class:`DataError` for what cannot be.
    """
    grid = _grid(info, where)
    provider = info.get("mask_provider") or {}
    masks = SpatialMasks({str(n): m.float().clone() for n, m in (provider.get("masks") or {}).items()})
    for name, mask in masks.masks.items():
        if tuple(mask.shape) != grid.shape:
            raise fail(DataError, f"{where} dataset_info", f"{name} has shape {tuple(mask.shape)}", f"{grid.shape}")
    vertical = _vertical(info.get("vertical_coordinate"), where, grid.shape)
    step = info.get("timestep")
    if not isinstance(step, int) or step <= 0 or step % MICROSECONDS:
        raise fail(
            DataError, f"{where} dataset_info.timestep", f"{step!r}", "a whole number of seconds, in microseconds"
        )
    return DatasetInfo(grid, vertical, step // MICROSECONDS, canonical(calendar), masks, tuple(labels))


def to_peer(info: DatasetInfo) -> dict[str, Any]:
    """Float32 throughout, as fme's own: its steps compute in the precision of coordinates and masks."""
    grid = {"lat": torch.from_numpy(info.grid.lat).float(), "lon": torch.from_numpy(info.grid.lon).float()}
    return {
        "horizontal_coordinates": grid,
        "vertical_coordinate": _peer_vertical(info.vertical),
        "mask_provider": {"masks": {n: m.float().clone() for n, m in info.masks.masks.items()}},
        "timestep": info.timestep * MICROSECONDS,
        "variable_metadata": None,
        "gridded_operations": None,
        "img_shape": None,
        "all_labels": list(info.labels),
    }


def _vertical(state: Mapping[str, Any] | None, where: str, shape: tuple[int, int]) -> Vertical | None:
    if not state:
        return None
    if "ak" in state:
        return HybridSigma(tuple(state["ak"].tolist()), tuple(state["bk"].tolist()))
    if "idepth" not in state:
        found, expected = f"vertical_coordinate of {', '.join(state)}", "ak and bk, or idepth and mask, or nothing"
        raise fail(ConfigError, f"{where} dataset_info", found, expected)
    mask = state["mask"]
    # Whatever broadcasts against fields with the layers last. Copies, because the file is only mapped.
    wet = mask.expand(*shape, mask.shape[-1]).permute(2, 0, 1).float().clone(memory_format=torch.contiguous_format)
    floor = state.get("deptho")
    floor = None if floor is None else floor.expand(shape).float().clone(memory_format=torch.contiguous_format)
    return DepthLayers(state["idepth"].float().clone(), wet, floor)


def _peer_vertical(vertical: Vertical | None) -> dict[str, torch.Tensor]:
    if vertical is None:
        return {}
    if isinstance(vertical, HybridSigma):
        return {"ak": torch.tensor(vertical.ak), "bk": torch.tensor(vertical.bk)}
    state = {"idepth": vertical.interfaces.float(), "mask": vertical.wet.permute(1, 2, 0).float().contiguous()}
    return state if vertical.floor is None else state | {"deptho": vertical.floor.float()}


# --- grids


def _grid(info: Mapping[str, Any], where: str) -> LatLonGrid:
    horizontal = info.get("horizontal_coordinates")
    place = f"{where} dataset_info"
    if horizontal is None:
        return _grid_from_weights(info, place)
    if "lat" not in horizontal:
        raise fail(
            ConfigError,
            place,
            f"a grid of {', '.join(horizontal)}",
            "latitudes and longitudes (HEALPix is not supported)",
        )
    lat, lon = (np.asarray(horizontal[n].tolist(), np.float64) for n in ("lat", "lon"))
    for name, values, bound in (("lat", lat, 90.001), ("lon", lon, 720.0)):
        steps = np.diff(values) if values.ndim == 1 else np.zeros(1)
        if not (
            values.size
            and np.isfinite(values).all()
            and abs(values).max() <= bound
            and ((steps > 0).all() or (steps < 0).all())
        ):
            shape = list(values.shape)
            raise fail(
                DataError, f"{place} {name}", f"{shape} numbers that are no {name}", "one axis of degrees in order"
            )
    return LatLonGrid(lat, lon)


def _grid_from_weights(info: Mapping[str, Any], where: str) -> LatLonGrid:
    """Of old checkpoints that hold the area weights alone, or not even these: the one usual grid that has them."""
    operations = info.get("gridded_operations") or {}
    if operations.get("type", "LatLonOperations") != "LatLonOperations":
        raise fail(ConfigError, where, f"gridded_operations of {operations['type']}", "LatLonOperations")
    weights = (operations.get("state") or {}).get("area_weights")
    if weights is None:
        raise fail(DataError, where, "neither horizontal_coordinates nor area weights", "one of them")
    ny, nx = weights.shape[-2:]
    said = info.get("img_shape")
    if said is not None and tuple(said) != (ny, nx):
        raise fail(DataError, where, f"img_shape {tuple(said)}, but area weights [{ny}, {nx}]", "the same shape")
    rows = np.asarray(weights.double().expand(ny, nx)[:, 0].tolist())
    for lat in _usual_latitudes(ny):
        expected = np.cos(np.deg2rad(lat))
        if np.allclose(rows / rows.sum(), expected / expected.sum(), rtol=0, atol=1e-4 / ny):
            lon = np.asarray((np.arange(nx) + 0.5) * (360.0 / nx), np.float64)
            grid = LatLonGrid(np.asarray(lat, np.float64), lon)
            log.warning(
                "%s: no coordinates; by its area weights the grid is %s, longitudes assumed", where, grid.describe()
            )
            return grid
    raise fail(
        DataError,
        where,
        f"no coordinates, and area weights [{ny}, {nx}] of no usual grid",
        "those of Gaussian latitudes, or of cells of equal height with or without the poles",
        "load the checkpoint with fme, save it again and import that",
    )


def _usual_latitudes(ny: int) -> list[F64]:
    centres = np.asarray((np.arange(ny) + 0.5) * (180.0 / ny) - 90.0, np.float64)
    return [gaussian_latitudes(ny), centres, np.linspace(-90.0, 90.0, ny)]
