"""A synthetic planet whose response to a sea surface perturbation is known in closed form."""

from ace_core.planet.planet import Planet
from ace_core.planet.spec import PlanetSpec
from ace_core.planet.truth import response_truth

__all__ = ["Planet", "PlanetSpec", "response_truth"]
