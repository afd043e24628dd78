"""Energy and the water cycle: radiative feedback, closure of budgets, hydrological sensitivity.

Source: Cess et al. 1990, doi:10.1029/JD095iD10p16601 (feedback from a change of the sea surface); Held & Soden 2006,
doi:10.1175/JCLI3990.1 and Pendergrass & Hartmann 2014, doi:10.1175/JCLI-D-13-00163.1 (precipitation and radiative cooling).
"""

from __future__ import annotations

from collections.abc import Iterator

from ace_core.constants import LATENT_HEAT_OF_VAPORIZATION
from ace_core.response.diagnostic import Diagnostic, Setting, change, changed, per_kelvin, ratio
from ace_core.response.ingredients import (
    NET_SURFACE,
    NET_TOA,
    NET_TOA_LONGWAVE,
    NET_TOA_SHORTWAVE,
    RADIATIVE_COOLING,
)

_FLUX = "W/m**2"


def feedback(setting: Setting) -> Iterator[Diagnostic]:
    """d<N>/d<T_s> with N into the atmosphere at its top, whole and its parts; negative is stabilising. T_s is the global mean, land
    included; sea ice and CO2 are those of the data."""
    air = setting.surface_air
    for suffix, what, flux in (
        ("", "net", NET_TOA),
        ("_shortwave", "shortwave", NET_TOA_SHORTWAVE),
        ("_longwave", "longwave", NET_TOA_LONGWAVE),
    ):
        yield Diagnostic(
            f"cess_feedback{suffix}",
            "W/m**2/K",
            f"Change of {what} flux into the top of the atmosphere per K of global warming",
            ((flux, "global"), (air, "global")),
            per_kelvin(changed(flux), (air, "global")),
        )


def closure(setting: Setting) -> Iterator[Diagnostic]:
    """What enters at the top and does not leave through the surface: no column stores it for long."""
    yield Diagnostic(
        "energy_closure",
        _FLUX,
        "Change of net flux into the top of the atmosphere minus that into the surface",
        ((NET_TOA, "global"), (NET_SURFACE, "global")),
        lambda m: change(m, NET_TOA) + change(m, NET_SURFACE),
    )


def precipitation(setting: Setting) -> Iterator[Diagnostic]:
    """Its growth per K and the energy that it needs."""
    rain, air, sensible = (
        setting.called("precipitation_rate"),
        setting.surface_air,
        setting.called("sensible_heat_flux"),
    )
    yield Diagnostic(
        "hydrological_sensitivity",
        "%/K",
        "Growth of global precipitation per K of global warming",
        ((rain, "global"), (air, "global")),
        lambda m: ratio(100.0 * change(m, rain), m[rain, "global"][..., :1] * change(m, air)),
    )
    yield Diagnostic(
        "latent_heating_change",
        _FLUX,
        "Change of latent heating by precipitation",
        ((rain, "global"),),
        lambda m: LATENT_HEAT_OF_VAPORIZATION * change(m, rain),
    )
    yield Diagnostic(
        "radiative_cooling_change",
        _FLUX,
        "Change of the atmosphere's radiative cooling minus that of sensible heat",
        ((RADIATIVE_COOLING, "global"), (sensible, "global")),
        lambda m: change(m, RADIATIVE_COOLING) - change(m, sensible),
    )
    yield Diagnostic(
        "atmospheric_energy_residual",
        _FLUX,
        "Change of latent heating minus that of radiative cooling less sensible heat",
        ((rain, "global"), (RADIATIVE_COOLING, "global"), (sensible, "global")),
        lambda m: LATENT_HEAT_OF_VAPORIZATION * change(m, rain) - change(m, RADIATIVE_COOLING) + change(m, sensible),
    )
