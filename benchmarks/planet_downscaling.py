"""What `ace downscale` made of the planet's wind, beside what there is to be made: the conditional distribution in closed form.

    python benchmarks/planet_downscaling.py RUN --data DATA [--figure FILE]

RUN: the folder of the last stage of configs/planet/downscaling.yaml; DATA: that of its data. Prints the table of docs/downscaling.md.

Legend: T time, M member, Y, X fine latitude and longitude of the extent.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import yaml

from ace_core.data.store import open_store
from ace_core.downscaling.pair import GridPair, Window
from ace_core.grid import F64, LatLonGrid
from ace_core.loss.ensemble import member_score
from ace_core.planet.conditional import conditional, wind
from ace_core.planet.spec import PlanetSpec
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.regrid import Regridder

NAME, LAYER = "northward_wind_4", 4
RESOLVED = 21  # the planet's truncation: beyond this zonal wavenumber it has nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()

    prepared = PrepareConfig.model_validate(yaml.safe_load((arguments.data / "dataset.yaml").read_text()))
    spec: PlanetSpec = prepared.planet_spec("test")
    fine_store = open_store(arguments.data / "native" / "fine" / "test.zarr")
    coarse_store = open_store(arguments.data / "native" / "coarse" / "test.zarr")
    fine, coarse = fine_store.info.grid, coarse_store.info.grid
    [path] = arguments.run.glob("*.zarr")
    with xr.open_zarr(path, consolidated=False) as ds:
        made = ds[NAME].to_numpy().astype(np.float64)  # [T, M, Y, X]
        lat, lon = ds["latitude"].to_numpy(), ds["longitude"].to_numpy()
    factor = fine.shape[0] // coarse.shape[0]
    row, column = (int(np.abs(a - b).argmin()) for a, b in ((fine.lat, lat[0]), (fine.lon, lon[0])))
    window = Window(row // factor, column // factor, len(lat) // factor, len(lon) // factor)
    pair = GridPair.matching(fine, coarse, factor, "planet")
    assert pair.fine_window(window) == Window(row, column, len(lat), len(lon))
    regrid = Regridder.between(LatLonGrid.preset(spec.preset), coarse)
    field = wind(spec, "northward", LAYER)
    there = (slice(window.row, window.row + window.rows), slice(window.column, window.column + window.columns))
    known = conditional(field, regrid.rows, regrid.columns, there, factor)

    truth = fine_store.read([NAME], 0, len(made))[:, 0, row : row + len(lat), column : column + len(lon)].astype(float)
    given = coarse_store.read([NAME], 0, len(made))[:, 0][(slice(None), *there)].astype(float)
    area = np.cos(np.deg2rad(lat))[:, None] * np.ones(len(lon))
    area /= area.sum()
    crps = member_score(torch.from_numpy(made - truth[:, None]), 1, 1.0).numpy().mean(axis=0)
    ideal = known.expect(given)
    z = (truth - ideal) / known.std
    exact = known.std * (
        z * (2 * _cdf(z) - 1) + 2 * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    )
    best, here = float((known.best_crps * area).sum()), float((exact.mean(axis=0) * area).sum())
    found = float((crps * area).sum())
    bicubic = torch.nn.functional.interpolate(
        torch.from_numpy(given)[:, None], scale_factor=float(factor), mode="bicubic", align_corners=True
    )[:, 0].numpy()

    power = _power(made, lat).mean(axis=(0, 1))
    open_ = _power(made - ideal[:, None], lat).mean(axis=(0, 1))
    left = _power(np.moveaxis(known.root.reshape(*known.mean.shape, -1), -1, 0), lat).sum(axis=0)
    # Of fields drawn from the conditional distributions of these very coarse fields.
    expected = _power(ideal, lat).mean(axis=0) + left
    m = np.arange(1, RESOLVED + 1)
    ratio, off = power[m] / expected[m], (open_[m] - left[m]) / expected[m]
    spread = math.sqrt(float((made.var(axis=1, ddof=1).mean(axis=0) * area).sum()))
    right = math.sqrt(float((known.std**2 * area).sum()))
    rows = [
        ("CRPS, m/s", f"{found:.4f}", f"{best:.4f}", f"{found / best - 1:+.1%}"),
        ("the same beside the best for these very fields", f"{found:.4f}", f"{here:.4f}", f"{found / here - 1:+.1%}"),
        ("spread, m/s", f"{spread:.4f}", f"{right:.4f}", f"{spread / right - 1:+.1%}"),
        ("error of the ensemble mean, m/s", *_errors(made, truth, ideal, area)),
        (f"zonal power, worst of wavenumbers 1 to {RESOLVED}", *_worst(m, ratio)),
        (
            "power added to the known conditional mean, worst excess as part of all power",
            f"{off[np.abs(off).argmax()]:+.1%} at {m[np.abs(off).argmax()]}",
            "0",
            f"{off[np.abs(off).argmax()]:+.1%}",
        ),
    ]
    print(
        f"{made.shape[0]} times, {made.shape[1]} members, {len(lat)}x{len(lon)} cells; bicubic coarse field: "
        f"mean absolute error {float((np.abs(bicubic - truth).mean(axis=0) * area).sum()):.3f} m/s\n"
    )
    print(
        "wavenumber, generated / known power: "
        + "  ".join(f"{k} {r:.3f}" for k, r in zip(m, ratio, strict=True))
        + "\n"
    )
    print("| | generated | known | difference |\n|---|---|---|---|")
    for line in rows:
        print("| " + " | ".join(line) + " |")
    if arguments.figure is not None:
        _figure(arguments.figure, m, power, expected, open_, left, lat, crps, known.best_crps)


def _cdf(z: F64) -> F64:
    return np.asarray(0.5 * (1.0 + torch.erf(torch.from_numpy(z / math.sqrt(2.0))).numpy()))


def _power(x: F64, lat: F64) -> F64:
    """[..., Y, X] -> [..., W], rows weighted with the cosine of latitude."""
    weights = np.cos(np.deg2rad(lat))
    power = np.abs(np.fft.rfft(x, axis=-1, norm="forward")) ** 2
    return np.asarray((power * weights[:, None]).sum(axis=-2) / weights.sum())


def _errors(made: F64, truth: F64, ideal: F64, area: F64) -> tuple[str, str, str]:
    n = made.shape[1]

    def of(x: F64) -> float:
        return float((((x - truth) ** 2).mean(axis=0) * area).sum())

    # A mean of n members has 1/n of their variance as an error of its own.
    own = float((made.var(axis=1, ddof=1).mean(axis=0) * area).sum()) / n
    a, b = math.sqrt(max(of(made.mean(axis=1)) - own, 0.0)), math.sqrt(of(ideal))
    return f"{a:.4f}", f"{b:.4f}", f"{a / b - 1:+.1%}"


def _worst(m: F64, ratio: F64) -> tuple[str, str, str]:
    i = int(np.abs(ratio - 1).argmax())
    return f"{ratio[i]:.3f} of it at {m[i]}", "1", f"{ratio[i] - 1:+.1%}"


def _figure(
    file: Path, m: F64, power: F64, expected: F64, open_: F64, left: F64, lat: F64, crps: F64, best: F64
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (a, b) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    a.semilogy(m, expected[m], "k-", label="fine fields, known")
    a.semilogy(m, power[m], "C1o", ms=4, label="generated")
    a.semilogy(m, left[m], "k--", label="left open by the coarse field, known")
    a.semilogy(m, open_[m], "C0s", ms=4, label="generated less the known conditional mean")
    a.set_xlabel("zonal wavenumber")
    a.set_ylabel("power, m$^2$/s$^2$")
    a.legend(fontsize=8)
    b.plot(lat, best.mean(axis=1), "k-", label="least possible")
    b.plot(lat, crps.mean(axis=1), "C1o", ms=4, label="generated")
    b.set_xlabel("latitude")
    b.set_ylabel("CRPS, m/s")
    b.set_ylim(bottom=0)
    b.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
