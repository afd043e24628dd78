"""The moist adiabat, and the tropical column against it.

Legend: Z layers from the top, G arms; ... replicates. Pressures Pa, temperatures K.
Source: pseudo-adiabatic ascent, dT/dlnp = (Rd T + Lv r) / (cp + Lv**2 r eps / (Rd T**2)) with r of saturation, Bakhshaii & Stull 2013,
doi:10.1175/JAMC-D-12-062.1; saturation over water and the lifting condensation level: Bolton 1980,
doi:10.1175/1520-0493(1980)108<1046:TCOEPT>2.0.CO;2, eqs. 10 and 22; the expectation: Santer et al. 2005, doi:10.1126/science.1114867.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ace_core.constants import LATENT_HEAT_OF_VAPORIZATION, RDGAS, RVGAS, SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE
from ace_core.grid import F64
from ace_core.response.diagnostic import Diagnostic, MeansOf, Setting, Value, changed, per_kelvin, ratio
from ace_core.response.ingredients import HUMIDITY_2M, TEMPERATURE_2M, near_surface

OCEAN = "tropical_ocean"
HIGHEST = 15000.0  # Pa: above, the tropical tropopause layer follows no adiabat
_CP, _LV, _EPSILON = SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE, LATENT_HEAT_OF_VAPORIZATION, RDGAS / RVGAS
_STEPS = 6  # of Runge-Kutta between two levels: 1e-3 K from 1000 to 150 hPa


def lifted(temperature: F64, water: F64, pressure: F64, levels: F64) -> F64:
    """Temperature [..., Z] at ``levels`` [..., Z] of a parcel that starts with temperature [...], specific humidity [...] kg/kg and
    pressure [...]: dry-adiabatic to saturation, from there along the pseudo-adiabat. Levels in any order."""
    start, base = condensation_level(temperature, water, pressure)
    dry = temperature[..., None] * (levels / pressure[..., None]) ** (RDGAS / _CP)
    order = np.argsort(-levels.reshape(-1, levels.shape[-1]).mean(axis=0))
    moist, here, at = np.empty_like(dry), base, start
    for k in order:
        target = np.minimum(levels[..., k], here)
        at, here = _ascend(at, here, target), target
        moist[..., k] = at
    out: F64 = np.where(levels >= base[..., None], dry, moist)
    return out


def condensation_level(temperature: F64, water: F64, pressure: F64) -> tuple[F64, F64]:
    """Temperature and pressure at which a parcel becomes saturated; its own if it is."""
    vapour = water * pressure / (_EPSILON + (1.0 - _EPSILON) * water)
    humidity = np.clip(vapour / saturation(temperature), 1e-6, 1.0)
    at = 1.0 / (1.0 / (temperature - 55.0) - np.log(humidity) / 2840.0) + 55.0
    return at, pressure * (at / temperature) ** (_CP / RDGAS)


def saturation(temperature: F64) -> F64:
    """Pa, over water at every temperature."""
    out: F64 = 611.2 * np.exp(17.67 * (temperature - 273.15) / (temperature - 29.65))
    return out


def _slope(temperature: F64, log_pressure: F64) -> F64:
    """dT/dlnp, K."""
    vapour = saturation(temperature)
    r = _EPSILON * vapour / (np.exp(log_pressure) - vapour)
    out: F64 = (RDGAS * temperature + _LV * r) / (_CP + _LV**2 * r * _EPSILON / (RDGAS * temperature**2))
    return out


def _ascend(temperature: F64, start: F64, stop: F64) -> F64:
    """Runge-Kutta of fourth order in ln p from pressure ``start`` to ``stop``."""
    x, h = np.log(start), np.log(stop / start) / _STEPS
    for _ in range(_STEPS):
        a = _slope(temperature, x)
        b = _slope(temperature + 0.5 * h * a, x + 0.5 * h)
        c = _slope(temperature + 0.5 * h * b, x + 0.5 * h)
        d = _slope(temperature + h * c, x + h)
        temperature, x = temperature + h / 6.0 * (a + 2.0 * b + 2.0 * c + d), x + h
    return temperature


def amplification(setting: Setting) -> Iterator[Diagnostic]:
    """dT of layers over that of the surface, tropical ocean; the same of the adiabat lifted from each arm's own surface air; the model's
    warming over the adiabat's."""
    column, pressure = setting.config.column_temperature_names, setting.called("surface_pressure")
    air, water = near_surface(setting.names) or (TEMPERATURE_2M, HUMIDITY_2M)
    needs = tuple(dict.fromkeys((v, OCEAN) for v in (air, water, pressure)))
    for k in layers_of_column(setting):
        name = column[k]
        yield Diagnostic(
            f"tropical_amplification/{name}",
            "1",
            f"Warming of {name} over that of surface air, tropical ocean",
            ((name, OCEAN), (air, OCEAN)),
            per_kelvin(changed(name, OCEAN), (air, OCEAN)),
        )
        adiabat = _adiabat(setting, k)
        yield Diagnostic(
            f"moist_adiabat_amplification/{name}",
            "1",
            f"Warming at {name} of the lifted surface air over its own, tropical ocean",
            needs,
            per_kelvin(adiabat, (air, OCEAN)),
        )
        yield Diagnostic(
            f"moist_adiabat_ratio/{name}",
            "1",
            f"Warming of {name} over that of the lifted surface air, tropical ocean",
            tuple(dict.fromkeys((*needs, (name, OCEAN)))),
            _over(changed(name, OCEAN), adiabat),
        )


def _adiabat(setting: Setting, layer: int) -> Value:
    return lambda m: adiabat_warming(setting, m, (layer,))[..., 0]


def _over(above: Value, below: Value) -> Value:
    return lambda m: ratio(above(m), below(m))


def adiabat_warming(setting: Setting, means: MeansOf, layers: tuple[int, ...]) -> F64:
    """[..., G, len(layers)]: how much warmer than the baseline's is the adiabat of each arm, at the baseline's pressures, K.

    Surface air at 2 m starts from the surface pressure, the lowest layer from its own mean pressure.
    """
    assert setting.vertical is not None
    air, water = near_surface(setting.names) or (TEMPERATURE_2M, HUMIDITY_2M)
    temperature, humidity = means[air, OCEAN], means[water, OCEAN]
    surface = means[setting.called("surface_pressure"), OCEAN]
    middle = mid_pressures(setting, surface)
    start = surface if air == TEMPERATURE_2M else middle[..., -1]
    # One set of pressures: the response of a layer's temperature, not of the height of its layer.
    levels = np.broadcast_to(middle[..., :1, list(layers)], (*temperature.shape, len(layers)))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # of resampled air that cannot be, NaN
        profile = lifted(temperature, humidity, start, levels)
    out: F64 = profile - profile[..., :1, :]
    return out


def mid_pressures(setting: Setting, surface_pressure: F64) -> F64:
    """[...] -> [..., Z]: mean of a layer's two interfaces."""
    assert setting.vertical is not None
    interfaces = np.array(setting.vertical.ak) + np.array(setting.vertical.bk) * surface_pressure[..., None]
    out: F64 = 0.5 * (interfaces[..., 1:] + interfaces[..., :-1])
    return out


def layers_of_column(setting: Setting) -> tuple[int, ...]:
    """Layers below the tropopause and above the lowest; of none without layers that belong to the column's names."""
    column = setting.config.column_temperature_names
    if setting.vertical is None or setting.vertical.n_layers != len(column):
        return ()
    pressures = mid_pressures(setting, np.array(1e5))
    return tuple(k for k in range(len(column) - 1) if pressures[k] >= HIGHEST)
