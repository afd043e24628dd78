"""The planet's tables: everything that is a number rather than an equation.

Layers k = 0..7 from the top. phi is latitude in radians unless a name says degrees.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ace_core.vertical import ACE_AK, ACE_BK

F64 = npt.NDArray[np.float64]

N_LAYERS = 8
N_MODES = 4  # vertical modes of the weather; one more chain carries humidity
AK = np.asarray(ACE_AK, np.float64)
BK = np.asarray(ACE_BK, np.float64)
_INTERFACES = AK + BK * 1e5
PRESSURE = 0.5 * (_INTERFACES[1:] + _INTERFACES[:-1])  # Pa, mid layer under 1000 hPa

# Response to the sea surface (the truth): memory and gain.
TAU_LAND_DAYS = 10.0
TAU_FREE_DAYS = 15.0
B_LOWEST = 0.95  # K of lowest layer per K of surface anomaly
KAPPA = 0.4  # K of land per doubling of CO2
CHI = np.array([4.0, 1.5, 0, 0, 0, 0, 0])  # K of cooling of layers 0..6 per doubling
_GAMMA_TROPICAL = np.array([-0.1, 0.5, 1.9, 1.75, 1.45, 1.2, 1.05])
_GAMMA_EXTRATROPICAL = np.array([-0.1, 0.2, 0.9, 1.0, 1.0, 1.0, 1.0])
BAND_WIDTH_DEGREES = 8.0  # of the Gaussian that averages the sea surface anomaly over latitudes


def land_amplification(phi: F64) -> F64:
    """A(phi) [Y]: K of land per K of surrounding ocean (Byrne & O'Gorman 2013, doi:10.1175/JCLI-D-12-00262.1)."""
    return np.asarray(1.25 + 0.25 * np.exp(-(((np.abs(np.rad2deg(phi)) - 23.0) / 12.0) ** 2)))


def free_gain(phi: F64) -> F64:
    """gamma_k(phi) [7, Y]: K of layer k per K of band-mean ocean, a smoothed moist adiabat."""
    tropical = np.exp(-((np.rad2deg(phi) / 25.0) ** 4))
    return np.asarray(_GAMMA_EXTRATROPICAL[:, None] + (_GAMMA_TROPICAL - _GAMMA_EXTRATROPICAL)[:, None] * tropical)


EQUATOR_TO_POLE = 40.0  # K, of air at sea level

# Humidity.
T_REFERENCE = np.array([222.0, 207, 222, 240, 257, 270, 279, 284])  # K
RELATIVE_HUMIDITY = np.array([0.0008, 0.01, 0.3, 0.38, 0.42, 0.5, 0.65, 0.78])
HUMIDITY_LOADING = np.array([0, 0, 0.6, 1, 1, 1, 0.7, 0.3])
HUMIDITY_SD = 0.25
# d ln e_s/dT at T_REFERENCE of e_s = 611.21 exp(17.502 (T - 273.16)/(T - 32.19)) Pa (Buck 1981)
ALPHA = 17.502 * (273.16 - 32.19) / (T_REFERENCE - 32.19) ** 2
SATURATION = (
    0.622 * 611.21 * np.exp(17.502 * (T_REFERENCE - 273.16) / (T_REFERENCE - 32.19)) / PRESSURE
)  # kg/kg at T_REFERENCE

# Weather.
SIGMA_T = np.array([1.5, 1.2, 1.5, 2.0, 2.2, 2.0, 1.8, 1.6])  # K
SIGMA_PSI = np.array([7.0, 7, 9, 8, 6, 4.5, 3.5, 3]) * 1e6  # m2/s
PRESSURE_SD = 450.0  # Pa
ROTATION_DAYS = np.array([18.0, 12, 25, 40, 20])  # of the four modes and of humidity
_JET = np.array([10.0, 18, 28, 24, 17, 11, 7, 3])  # m/s
_TRADES = np.array([8.0, 6, 2, 2, 3, 4, 5, 5])  # m/s


def vertical_loadings() -> F64:
    """V_kj [8, 4]: cosines of depth, rows of unit length."""
    depth = (np.arange(N_LAYERS) + 0.5) / N_LAYERS
    v = np.stack([np.cos(np.pi * j * depth) * (1.0 if j else np.sqrt(0.5)) for j in range(N_MODES)], axis=1)
    return np.asarray(v / np.sqrt((v**2).sum(axis=1, keepdims=True)))


def weather_amplitude(phi: F64) -> F64:
    """s(phi) [Y], storms are stronger away from the equator."""
    return np.asarray(0.35 + 0.65 * np.sin(phi) ** 2)


def mean_zonal_wind(phi: F64) -> F64:
    """[8, Y] m/s."""
    return np.asarray(_JET[:, None] * np.sin(2 * phi) ** 2 - _TRADES[:, None] * np.cos(phi) ** 6)


def mean_temperature(phi: F64, season: F64) -> F64:
    """Climatology of layers 0..7: season [n] (+1 in northern summer) -> [n, 8, Y] K."""
    sine = np.sin(phi)
    height = 7500.0 * np.log(1e5 / PRESSURE)
    surface = (300.0 - EQUATOR_TO_POLE * sine**2) + 5.0 * season[:, None] * sine
    floor = np.zeros((N_LAYERS, len(phi)))
    floor[0], floor[1], floor[2] = 222.0, 205.0 + 12.0 * sine**2, 212.0 + 5.0 * sine**2
    return np.asarray(np.maximum(surface[:, None] - 6.2e-3 * height[:, None], floor))
