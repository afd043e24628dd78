"""One look for every figure: headless, small, with units on every axis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

BLUE, RED, GREY = "#2a6fbb", "#c4402f", "#777777"
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 110,
}


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes [rows, columns]; saved to ``path`` on leaving."""
    with mpl.rc_context(_STYLE):
        canvas = Figure(figsize=size, layout="constrained")
        axes = canvas.subplots(rows, columns, squeeze=False)
        yield axes
        canvas.savefig(path)


def draw_map(
    ax: Any,
    field: npt.NDArray[np.floating[Any]],
    lat: npt.NDArray[np.floating[Any]],
    lon: npt.NDArray[np.floating[Any]],
    title: str,
    units: str,
    limits: tuple[float, float],
    *,
    diverging: bool = False,
    coast: npt.NDArray[np.floating[Any]] | None = None,
) -> None:
    """A field [Y, X] with its colour bar; ``coast`` [Y, X] in 0..1 is outlined at one half."""
    mesh = ax.pcolormesh(
        lon, lat, field, cmap="RdBu_r" if diverging else "viridis", vmin=limits[0], vmax=limits[1], shading="nearest"
    )
    if coast is not None:
        ax.contour(lon, lat, coast, levels=[0.5], colors="k", linewidths=0.5)
    ax.set_title(title)
    ax.set_xlabel("longitude (°E)")
    ax.set_ylabel("latitude (°N)")
    ax.figure.colorbar(mesh, ax=ax, label=units, shrink=0.9)
