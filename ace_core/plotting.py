"""One look for every figure: headless, small, with units on every axis.

Legend: Y latitude, X longitude. Speed decides how a figure is made, because a stage waits for it: margins are fixed rather than solved for, which takes
drawing all texts twice, and maps are images rather than meshes. (Eight maps: 0.97 s of a core so, 0.72 now; of 180 x 360 cells 1.24 and 0.69.)
"""

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
# Inches around the panels and between them: room for the numbers and the label of an axis, and for a title.
_LEFT, _RIGHT, _TOP, _BOTTOM, _BESIDE, _BELOW = 0.92, 0.45, 0.32, 0.5, 1.05, 0.82
_ROWS, _COLUMNS = 360, 720  # at least, of a map as an image: two cells per degree are more than its pixels
_HATCH = 8  # degrees between lines


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes [rows, columns]; saved to ``path`` on leaving. size: width and height, inches."""
    with mpl.rc_context(_STYLE):
        canvas = Figure(figsize=size)
        axes = canvas.subplots(rows, columns, squeeze=False)
        width, height = size
        across = (width - _LEFT - _RIGHT - (columns - 1) * _BESIDE) / columns
        down = (height - _TOP - _BOTTOM - (rows - 1) * _BELOW) / rows
        canvas.subplots_adjust(
            left=_LEFT / width,
            right=1 - _RIGHT / width,
            top=1 - _TOP / height,
            bottom=_BOTTOM / height,
            wspace=_BESIDE / across,
            hspace=_BELOW / down,
        )
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
    hatched: npt.NDArray[np.bool_] | None = None,
) -> None:
    """A field [Y, X] with its colour bar; ``coast`` [Y, X] in 0..1 is outlined at one half, ``hatched`` [Y, X] is hatched."""
    box, kind = _box(lat, lon), "RdBu_r" if diverging else "viridis"
    image = raster(field, lat, lon, max(_ROWS, 2 * len(lat)), max(_COLUMNS, 2 * len(lon)))
    mesh = ax.imshow(image, cmap=kind, vmin=limits[0], vmax=limits[1], **_IMAGE, extent=box)
    if hatched is not None and hatched.any():
        ax.imshow(_lines(raster(hatched, lat, lon, 180, 360)), **_IMAGE, extent=box)
    if coast is not None:
        ax.contour(lon, lat, coast, levels=[0.5], colors="k", linewidths=0.5)
    ax.set(title=title, xlabel="longitude (°E)", ylabel="latitude (°N)", xlim=box[:2], ylim=box[2:])
    ax.set_xticks([t for t in range(-180, 361, 90) if box[0] <= t <= box[1]])
    ax.set_yticks([t for t in range(-60, 61, 30) if box[2] <= t <= box[3]])
    ax.figure.colorbar(mesh, ax=ax, label=units, shrink=0.9)


_IMAGE: Any = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}


def raster(
    field: npt.NDArray[Any], lat: npt.NDArray[Any], lon: npt.NDArray[Any], rows: int, columns: int
) -> npt.NDArray[Any]:
    """[Y, X] -> [rows, columns] of equal steps over the box of the map: each holds the cell that its middle lies in, whatever the
    spacing of the latitudes. Cells end halfway between their centres, the outermost ones at the poles if they come near."""
    west, east, south, north = _box(lat, lon)
    y = south + (np.arange(rows) + 0.5) * (north - south) / rows
    x = west + (np.arange(columns) + 0.5) * (east - west) / columns
    i, j = (np.searchsorted((c[1:] + c[:-1]) / 2, at) for c, at in ((lat, y), (lon, x)))
    return np.asarray(field)[i[:, None], j]


def _box(lat: npt.NDArray[Any], lon: npt.NDArray[Any]) -> tuple[float, float, float, float]:
    """West, east, south, north edges of the cells, which are at least two each way."""
    west, east = 1.5 * lon[0] - 0.5 * lon[1], 1.5 * lon[-1] - 0.5 * lon[-2]
    south, north = 1.5 * lat[0] - 0.5 * lat[1], 1.5 * lat[-1] - 0.5 * lat[-2]
    # Rows that are not evenly spaced end a little short of the poles, where their outermost cells do end.
    if south - (lat[1] - lat[0]) / 2 <= -90.0:
        south = -90.0
    if north + (lat[-1] - lat[-2]) / 2 >= 90.0:
        north = 90.0
    return float(west), float(east), float(south), float(north)


def _lines(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """RGBA image of diagonal lines where the mask is true: contours with hatches of a noisy mask take longer than all else of a map."""
    i, j = np.indices(mask.shape)
    image = np.zeros((*mask.shape, 4), np.uint8)
    image[mask & ((i + j) % _HATCH == 0), 3] = 130
    return image
