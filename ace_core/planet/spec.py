"""Which planet: resolution, length, random streams and experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ace_core.errors import AceError, ConfigError, Problem
from ace_core.grid import PRESETS
from ace_core.physics.sst import Static

Scenario = Literal["control", "random_sst", "amip_corr", "random_co2"]
SCENARIOS: tuple[Scenario, ...] = ("control", "random_sst", "amip_corr", "random_co2")
DAYS_PER_YEAR = 365
SECONDS_PER_DAY = 86400


@dataclass(frozen=True)
class PlanetSpec:
    """Everything the data depend on: equal specs give equal bytes.

    preset: ``F8``, ``F12`` or ``F22.5`` (:data:`ace_core.grid.PRESETS`). years of 365 days. dt_hours: a divisor of 24, or whole days.
    seed: geography and, with noise_stream, the weather; two specs that differ in noise_stream only share their
    continents. scenario: ``control``; ``random_sst`` adds a uniform random offset to the sea surface; ``amip_corr`` lets
    that offset and CO2 rise together; ``random_co2`` redraws CO2 every 30 days. perturbations: sea surface temperature
    patterns that act from the first step on, where ocean_fraction > 0.5. Raises :class:`ConfigError`.
    """

    preset: str
    years: int
    dt_hours: int = 6
    seed: int = 0
    noise_stream: int = 0
    scenario: Scenario = "control"
    perturbations: tuple[Static, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            (self.preset in PRESETS, "preset", self.preset, f"one of {', '.join(PRESETS)}"),
            (self.years >= 1, "years", self.years, "at least 1"),
            # A label's hour then is the same every day, and with it the phase of land's diurnal cycle.
            (
                self.dt_hours >= 1 and (24 % self.dt_hours == 0 or self.dt_hours % 24 == 0),
                "dt_hours",
                self.dt_hours,
                "a divisor or a multiple of 24",
            ),
            # One 32-bit word each: longer integers would make the keys of the random streams ambiguous.
            (0 <= self.seed < 2**32, "seed", self.seed, "an integer of 32 bits"),
            (0 <= self.noise_stream < 2**32, "noise_stream", self.noise_stream, "an integer of 32 bits"),
            (self.scenario in SCENARIOS, "scenario", self.scenario, f"one of {', '.join(SCENARIOS)}"),
        )
        problems = [Problem(f"planet.{key}", repr(found), want) for ok, key, found, want in checks if not ok]
        if problems:
            error: AceError = ConfigError(problems)
            raise error

    @property
    def dt(self) -> int:
        """Seconds per step."""
        return self.dt_hours * 3600

    @property
    def n_times(self) -> int:
        """Number of stored times: states 1 .. n of the recursion, so that all of them have fluxes."""
        return self.years * DAYS_PER_YEAR * 24 // self.dt_hours
