"""Frames of a ``video`` diagnostic as GIFs."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL import Image

FRAMES_PER_SECOND = 4
# Pixels between prediction and target, and across the wider of a small grid's fields.
GAP, WIDTH = 10, 360


def movies(path: Path) -> list[Path]:
    """``<diagnostic>_<variable>.gif`` beside a file of the ``video`` diagnostic, of every variable of it: prediction, and the target to its
    right, between the target's least and largest value. Returns what was written."""
    written = []
    with xr.open_dataset(path) as frames:
        for name in frames:
            values = frames[name].transpose(..., "timestep", "lat", "lon").to_numpy()
            # To the right of a prediction, what sets the range: the target, if there is one.
            fields = values if values.ndim == 4 else values[None]
            target = path.with_name(f"{path.name.removesuffix('_diagnostics.nc')}_{name}.gif")
            save(fields, target)
            written.append(target)
    return written


def save(fields: npt.NDArray[np.floating], path: Path) -> None:
    """[F, T, Y, X] -> F fields beside each other, north up, T frames; what is not finite is white."""
    last = fields[-1]
    finite = last[np.isfinite(last)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    scale = max(1, WIDTH // fields.shape[-1])
    shown = np.full((*fields.shape[1:3], 0), np.nan)
    gap = np.full((*fields.shape[1:3], -(-GAP // scale)), np.nan)
    for field in fields:
        shown = np.concatenate([shown, gap, field] if shown.shape[-1] else [field], axis=-1)
    colours = mpl.colormaps["viridis"].with_extremes(bad="white")
    scaled = np.ma.masked_invalid((shown[:, ::-1] - low) / ((high - low) or 1.0))
    images = [
        Image.fromarray(np.kron(colours(frame, bytes=True)[..., :3], np.ones((scale, scale, 1), np.uint8)))
        for frame in scaled
    ]
    images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // FRAMES_PER_SECOND, loop=0)
