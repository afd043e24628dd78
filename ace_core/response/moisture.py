"""Water vapour against Clausius-Clapeyron, and where precipitation exceeds evaporation.

Legend: Y latitude rows, G arms. Source: Held & Soden 2006, doi:10.1175/JCLI3990.1 (eq. 6: d(P-E) = alpha dT (P-E)).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ace_core.grid import F64
from ace_core.response.diagnostic import Diagnostic, Key, MeansOf, Setting, changed, log_growth, per_kelvin, ratio
from ace_core.response.ingredients import P_MINUS_E, RELATIVE_HUMIDITY, WATER_PATH

OCEAN = "tropical_ocean"


def water_vapour(setting: Setting) -> Iterator[Diagnostic]:
    """Growth of column water over tropical ocean and of humidity by layer per K, change of relative humidity."""
    sea = setting.config.surface_temperature_name
    yield Diagnostic(
        "total_water_path_sensitivity_tropical_ocean",
        "%/K",
        "100 ln of the growth of total water path over tropical ocean, per K of its surface",
        ((WATER_PATH, OCEAN), (sea, OCEAN)),
        per_kelvin(log_growth(WATER_PATH, OCEAN), (sea, OCEAN)),
    )
    for water, air in zip(setting.levels("specific_total_water"), setting.levels("air_temperature")):
        yield Diagnostic(
            f"humidity_sensitivity/{water}",
            "%/K",
            f"100 ln of the growth of {water}, per K of {air}, global means",
            ((water, "global"), (air, "global")),
            per_kelvin(log_growth(water), (air, "global")),
        )
    for k in range(setting.vertical.n_layers if setting.vertical else 1):
        name = f"{RELATIVE_HUMIDITY}_{k}"
        yield Diagnostic(
            f"relative_humidity_change/{k}",
            "%",
            f"Change of relative humidity, layer {k}, global mean",
            ((name, "global"),),
            changed(name),
        )


def p_minus_e(setting: Setting) -> Iterator[Diagnostic]:
    """How the zonal mean of d(P-E) follows alpha dT (P-E): slope of the regression through zero, and correlation."""
    air, n_rows = setting.surface_air, setting.grid.shape[0]
    needs: tuple[Key, ...] = tuple((v, f"row/{i}") for v in (P_MINUS_E, air) for i in range(n_rows))
    weights = np.cos(np.deg2rad(setting.grid.lat))
    weights = weights / weights.sum()

    def slope(m: MeansOf) -> F64:
        found, scaled = p_minus_e_rows(m, air, n_rows)
        return ratio(_dot(found, scaled, weights), _dot(scaled, scaled, weights))

    def correlation(m: MeansOf) -> F64:
        found, scaled = (x - _dot(x, np.ones(n_rows), weights)[..., None] for x in p_minus_e_rows(m, air, n_rows))
        size = _dot(found, found, weights) * _dot(scaled, scaled, weights)
        return ratio(_dot(found, scaled, weights) * 1e10, np.sqrt(size) * 1e10)

    yield Diagnostic("p_minus_e_scaling_slope", "1", "Zonal mean d(P-E) per alpha dT (P-E), regression", needs, slope)
    name = "p_minus_e_scaling_correlation"
    yield Diagnostic(
        name, "1", "Correlation over latitudes of zonal mean d(P-E) with alpha dT (P-E)", needs, correlation
    )


def p_minus_e_rows(m: MeansOf, air: str, n_rows: int) -> tuple[F64, F64]:
    """Zonal means [..., G, Y], mm/day: d(P-E) and alpha dT (P-E), alpha at the baseline's temperature."""
    wet, warm = (np.stack([m[v, f"row/{i}"] for i in range(n_rows)], axis=-1) for v in (P_MINUS_E, air))
    before, temperature = 86400.0 * wet[..., :1, :], warm[..., :1, :]
    return 86400.0 * wet - before, clausius_clapeyron(temperature) * (warm - temperature) * before


def clausius_clapeyron(temperature: F64) -> F64:
    """d ln e_s / dT over water, 1/K at K (Bolton 1980, doi:10.1175/1520-0493(1980)108<1046:TCOEPT>2.0.CO;2, eq. 10)."""
    out: F64 = 17.67 * 243.5 / (temperature - 29.65) ** 2
    return out


def _dot(a: F64, b: F64, weights: F64) -> F64:
    out: F64 = (a * b * weights).sum(axis=-1)
    return out
